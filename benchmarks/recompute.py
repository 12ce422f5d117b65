"""Memory saved for backward by plain autograd under every `train.recompute`, relative to what the policy should save.

The measured bytes are all that a forward pass allocates and that still exist when backward could begin: saved tensors,
closures of recomputed functions, results. Growth is the difference of two runs, divided by the number of additional passes
or windows.

`pass` saves the features [rows, window, width] and the state entering every pass; the first pass of a window reads tokens
instead of features. `window` saves the state at window starts. Under sliding eviction the attention cache is part of that
state; all passes over a window share it.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from allocated import allocated
from figures import Figure, part
from steps import batch, text

from sleeptrain.execute.activation_checkpoint import AUTOGRAD_WRAPPERS
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import run
from sleeptrain.model.state import leaves
from sleeptrain.program import compile
from sleeptrain.recipe import load_recipe

VOCAB, LENGTH, ROWS = 257, 64, 16
CLOSE = 1.05
"""The largest allowed ratio of measured to expected bytes."""


@dataclasses.dataclass(frozen=True)
class SavedSizes:
    """Bytes of one batch: features of a window, state that every pass rewrites, attention cache at a window's start."""

    features: int
    rewritten: int
    cache: int

    def growth(self, recompute: str, passes: int) -> tuple[int, int]:
        """Expected bytes for one more pass over a window, and for one more window."""
        if recompute == "window":
            return 0, self.rewritten + self.cache
        return self.features + self.rewritten, (passes - 1) * self.features + passes * self.rewritten + self.cache


def saved_bytes(recompute: str, evict: str, rows: int, passes: int, windows: int) -> tuple[int, SavedSizes]:
    """Bytes saved by one forward pass, and the sizes of what policies save."""
    over = [f"sleep.passes={passes}", f"sleep.evict.mode={evict}", f"sleep.window={LENGTH}"]
    recipe = load_recipe("text-small", over).value
    model = LanguageModel(dataclasses.replace(recipe.model, vocab=VOCAB), seed=None)
    layout = text(windows, LENGTH)
    initialise(model, 0, layout[-1].stop)
    data, program = batch(layout, rows, VOCAB), compile(recipe.sleep, layout, len(recipe.model.pattern))
    micro_batch = MicroBatch(data.tokens, data.targets, model.zero_state(recipe.sleep, rows))
    # The result keeps the graph alive.
    bytes_, _ = allocated(
        partial(run, model, micro_batch, program, recipe.sleep, recompute=AUTOGRAD_WRAPPERS[recompute])
    )
    sizes = {"kv": 0, "rest": 0}
    for leaf in leaves(model.config, recipe.sleep):
        size = rows * leaf.dtype.itemsize * torch.Size(leaf.shape).numel()
        sizes["kv" if leaf.kind == "kv" else "rest"] += size
    return bytes_, SavedSizes(rows * LENGTH * model.config.width * 4, sizes["rest"], sizes["kv"])


def figures(quick: bool) -> list[Figure]:
    """Growth per pass and per window, measured over expected, for both eviction modes."""
    torch.set_num_threads(1)
    # The baseline to which passes or windows are added.
    rows, passes, windows = (2, 2, 2) if quick else (ROWS, 3, 4)
    results = []
    for evict in ("hard",) if quick else ("hard", "sliding"):
        growths: dict[str, tuple[float, float]] = {}
        for recompute in ("none", "pass", "window"):
            base, sizes = saved_bytes(recompute, evict, rows, passes, windows)
            deeper, _ = saved_bytes(recompute, evict, rows, passes + 2, windows)
            longer, _ = saved_bytes(recompute, evict, rows, passes, windows + 2)
            per_pass = (deeper - base) / 2 / (windows - 1)  # all windows but the last sleep
            per_window = (longer - base) / 2
            growths[recompute] = per_pass, per_window
            if recompute == "none":
                continue
            growth = sizes.growth(recompute, passes)
            for what, bytes_, expected in zip(("pass", "window"), growths[recompute], growth, strict=True):
                name = f"saved for one more {what}, recompute {recompute}, {evict} eviction"
                detail = {"bytes": bytes_, "expected": expected, "of": dataclasses.asdict(sizes), "rows": rows}
                if expected:
                    results.append(Figure(name, bytes_ / expected, "of expected", at_most=CLOSE, detail=detail))
                else:
                    share = bytes_ / sizes.rewritten
                    results.append(Figure(name, share, "of a state", at_most=CLOSE - 1, detail=detail))
        for recompute in ("pass", "window"):
            ratio = growths["none"][1] / growths[recompute][1]
            detail = {"bytes": {name: growth[1] for name, growth in growths.items()}, "rows": rows, "passes": passes}
            results.append(
                Figure(f"a window: recompute none over {recompute}, {evict} eviction", ratio, "x", detail=detail)
            )
    return results


if __name__ == "__main__":
    part(figures, __doc__, ["torch"])
