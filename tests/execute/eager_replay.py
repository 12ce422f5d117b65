"""A graph cache without a GPU, whose captures and replays are counted."""

from sleeptrain.execute.cuda_graphs import GraphCache
from sleeptrain.execute.graph_capture import EagerReplay


class CountingReplay(EagerReplay):
    """Counts captures and replays; runs the function once before a capture, as the warm-up on a GPU does."""

    def __init__(self):
        self.captured = self.replayed = 0

    def capture(self, run):
        self.captured += 1
        run()
        outputs, replay = super().capture(run)

        def counting():
            self.replayed += 1
            replay()

        return outputs, counting


def graph_cache():
    return GraphCache(CountingReplay())
