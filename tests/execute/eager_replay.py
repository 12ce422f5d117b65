"""Recordings without a GPU, counted."""

from sleeptrain.execute.cuda_graphs import GraphCache
from sleeptrain.execute.graph_capture import EagerReplay


class Counted(EagerReplay):
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


def graph_cache(dtype):
    return GraphCache(Counted(), dtype)
