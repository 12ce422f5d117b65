"""Share of a step's FLOPs of `hybrid-1b` that are attention scores which a dense mask excludes: the most that a block mask could save.

scaled_dot_product_attention computes every pair of a query and a key where it gets a mask: under sliding eviction the window's queries
with all cached keys, and in rows of several documents the whole window. Without a mask it computes the causal half alone. A kernel that
skips excluded blocks (flex_attention) would compute what the masks allow, at best. FLOPs are those of forward and backward, which has two
products for each of forward's; where blocks are recomputed, all of it is, and the share stays.

    python -m benchmarks.mask_share [--out benchmarks/results/mask_share.json]
"""

from __future__ import annotations

import argparse
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sleeptrain.model.attention import attention_mask
from sleeptrain.model.counts import stack_flops, step_flops
from sleeptrain.program import Pass, Window, compile, kept_tokens
from sleeptrain.recipe import load_recipe

WINDOWS, VOCAB = 8, 32768
CASES = {
    "sliding eviction": ("sliding", False),
    "hard eviction": ("hard", False),
    "hard eviction, rows of several documents": ("hard", True),
}
"""Mode of eviction, and whether every pass has a mask."""


def pairs(tokens: int, cached: int, span: int, masked: bool) -> tuple[int, int]:
    """Pairs of a query and a key that attention computes in a pass, and those that its mask allows, counted in the mask itself.

    Of documents the mask allows less; a row is counted as one.
    """
    allowed = int(attention_mask(tokens, torch.ones(1, cached + tokens, dtype=torch.bool), span).sum())
    return (tokens * (cached + tokens) if cached or masked else allowed), allowed


def share(mode: str, masked: bool) -> dict[str, float]:
    """FLOPs of a row of 8 windows, and the share of excluded pairs."""
    recipe = load_recipe("hybrid-1b", [f"model.vocab={VOCAB}", f"sleep.evict.mode={mode}"]).value
    model, sleep = recipe.model, recipe.sleep
    windows = [Window(i * sleep.window, (i + 1) * sleep.window, True) for i in range(WINDOWS)]
    program = compile(sleep, windows, len(model.pattern))
    of_pair = sum(block.pair for block in stack_flops(model, sleep))
    known: dict[int, tuple[int, int]] = {}
    excluded = forward = 0.0
    for op in program.ops:
        if isinstance(op, Pass):
            cached = min(kept_tokens(sleep), op.position0) if op.kv_read else 0
            computed, allowed = known.setdefault(cached, pairs(op.stop - op.start, cached, program.span, masked))
            excluded += of_pair * (computed - allowed)
            forward += of_pair * allowed
    needed = step_flops(model, program, sleep)
    return {
        "model TFLOPs": round(needed / 1e12, 2), "attention's, that the mask allows": round(3 * forward / 1e12, 2),
        "excluded TFLOPs": round(3 * excluded / 1e12, 2), "share of forward and backward": round(3 * excluded / (needed + 3 * excluded), 4),
    }  # fmt: skip


def main() -> None:
    """Print the shares, or write them with the versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the shares there as JSON")
    out = parser.parse_args().out
    body: dict[str, Any] = {
        "command": "python -m benchmarks.mask_share",
        "versions": {"torch": metadata.version("torch")},
    }
    body |= {"windows": WINDOWS, "vocabulary": VOCAB, "cases": {name: share(*case) for name, case in CASES.items()}}
    if out:
        out.write_text(json.dumps(body, indent=1) + "\n")
    print(json.dumps(body, indent=1))


if __name__ == "__main__":
    main()
