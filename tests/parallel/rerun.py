"""A recorder without a GPU: replaying runs the function again, on its inputs' places, into what it returned first.

Whatever a recording would have baked in by mistake stays what it was when it was recorded, as on a GPU.
"""

from sleeptrain.parallel.replay import Replays


class Rerun:
    """Counts what it does."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def record(self, run):
        self.recorded += 1
        run()
        made = run()

        def again():
            self.replayed += 1
            for name, tensor in run().items():
                made[name].copy_(tensor)

        return made, again


def replays(dtype):
    return Replays(Rerun(), dtype)
