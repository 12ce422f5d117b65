"""Memory kept for backward under every `train.recompute`, counted by torch's allocator, over what each policy promises.

What is counted is every byte that a forward pass allocates and that still exists when backward could begin, whoever
holds it: saved tensors, closures of recomputed functions, results. Growth is the difference of two runs, divided by
the number of passes or windows that one has more.

`pass` promises the features [rows, window, width] and the state entering every pass, and the first pass of a window
reads tokens instead of features. `window` promises the state at window starts. Under sliding eviction the attention
cache is a part of that state; all passes over a window share it.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from allocated import allocated
from figures import Figure, part
from steps import batch, text

from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.sleep import run
from sleeptrain.model.state import leaves
from sleeptrain.program import compile
from sleeptrain.recipe import load_recipe
from sleeptrain.train.build_model import AUTOGRAD_WRAPPERS

VOCAB, LENGTH, ROWS = 257, 64, 16
CLOSE = 1.05
"""Measured over promised, at most."""


@dataclasses.dataclass(frozen=True)
class Promise:
    """Bytes of one batch: features of a window, state that every pass rewrites, attention cache at a window's start."""

    features: int
    rewritten: int
    cache: int

    def growth(self, recompute: str, passes: int) -> tuple[int, int]:
        """Bytes more for one pass more over a window, and for one window more."""
        if recompute == "window":
            return 0, self.rewritten + self.cache
        return self.features + self.rewritten, (passes - 1) * self.features + passes * self.rewritten + self.cache


def kept(recompute: str, evict: str, rows: int, passes: int, windows: int) -> tuple[int, Promise]:
    """Bytes kept by one forward pass, and what the policies promise."""
    over = [f"sleep.passes={passes}", f"sleep.evict.mode={evict}", f"sleep.window={LENGTH}"]
    recipe = load_recipe("text-small", over).value
    model = LanguageModel(dataclasses.replace(recipe.model, vocab=VOCAB))
    layout = text(windows, LENGTH)
    initialise(model, 0, layout[-1].stop)
    data, program = batch(layout, rows, VOCAB), compile(recipe.sleep, layout, len(recipe.model.pattern))
    state = model.zero_state(recipe.sleep, rows)
    # The result holds the graph.
    bytes_, _ = allocated(
        partial(
            run, model, data.tokens, data.targets, state, program, recipe.sleep, recompute=AUTOGRAD_WRAPPERS[recompute]
        )
    )
    sizes = {"kv": 0, "rest": 0}
    for leaf in leaves(model.config, recipe.sleep):
        size = rows * leaf.dtype.itemsize * torch.Size(leaf.shape).numel()
        sizes["kv" if leaf.kind == "kv" else "rest"] += size
    return bytes_, Promise(rows * LENGTH * model.config.width * 4, sizes["rest"], sizes["kv"])


def figures(quick: bool) -> list[Figure]:
    """Growth by pass and by window, measured over promised, for both kinds of eviction."""
    torch.set_num_threads(1)
    # Passes and windows of the run that the others are compared with.
    rows, passes, windows = (2, 2, 2) if quick else (ROWS, 3, 4)
    found = []
    for evict in ("hard",) if quick else ("hard", "sliding"):
        growths: dict[str, tuple[float, float]] = {}
        for recompute in ("none", "pass", "window"):
            base, promise = kept(recompute, evict, rows, passes, windows)
            deeper, _ = kept(recompute, evict, rows, passes + 2, windows)
            longer, _ = kept(recompute, evict, rows, passes, windows + 2)
            per_pass = (deeper - base) / 2 / (windows - 1)  # all windows but the last sleep
            per_window = (longer - base) / 2
            growths[recompute] = per_pass, per_window
            if recompute == "none":
                continue
            promised = promise.growth(recompute, passes)
            sizes = dataclasses.asdict(promise)
            for what, bytes_, formula in zip(("pass", "window"), growths[recompute], promised, strict=True):
                name = f"kept for one {what} more, recompute {recompute}, {evict} eviction"
                detail = {"bytes": bytes_, "promised": formula, "of": sizes, "rows": rows}
                if formula:
                    found.append(Figure(name, bytes_ / formula, "of promise", at_most=CLOSE, detail=detail))
                else:
                    share = bytes_ / promise.rewritten
                    found.append(Figure(name, share, "of a state", at_most=CLOSE - 1, detail=detail))
        for recompute in ("pass", "window"):
            ratio = growths["none"][1] / growths[recompute][1]
            detail = {"bytes": {name: growth[1] for name, growth in growths.items()}, "rows": rows, "passes": passes}
            found.append(
                Figure(f"a window: recompute none over {recompute}, {evict} eviction", ratio, "x", detail=detail)
            )
    return found


if __name__ == "__main__":
    part(figures, __doc__, ["torch"])
