"""Recordings without a GPU, counted."""

from sleeptrain.parallel.recorders import Rerun
from sleeptrain.parallel.replay import Replays


class Counted(Rerun):
    """Counts what it does; runs the function once more before it is recorded, as is done on a GPU."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def record(self, run):
        self.recorded += 1
        run()
        made, again = super().record(run)

        def counted():
            self.replayed += 1
            again()

        return made, counted


def replays(dtype):
    return Replays(Counted(), dtype)
