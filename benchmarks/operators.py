"""Chunked gated delta rule against transformers' plain-torch one and a token loop: CPU time on one thread.

Run it in an environment with transformers 5; without it only the token loop is compared.
"""

from __future__ import annotations

from importlib import metadata

import torch
from figures import Figure, part
from gated_delta_cpu import contenders, measure

TARGETS = {32: 1.25, 64: 1.25, 128: 1.1}
"""Smallest speed-up over transformers by head dimension."""
LOOP_TARGET = 14.0
"""Smallest speed-up over the token loop."""
NAMES = {"transformers": "transformers 5, chunked", "transformers loop": "transformers 5, token loop"}


def figures(quick: bool) -> list[Figure]:
    """Speed-ups of a forward and backward at batch 4, 512 tokens, 4 heads."""
    torch.set_num_threads(1)
    rules, found = contenders(), []
    for d, target in TARGETS.items():
        if quick and d > 32:
            continue
        row = measure(rules, (1, 64, 2, d) if quick else (4, 512, 4, d), 3 if quick else 15, 1 if quick else 5)
        times = {"milliseconds": row["milliseconds"], "shape": row["shape"]}
        targets = {"transformers": target, "token loop": LOOP_TARGET}
        for other, ratio in row["speedup"].items():
            name = f"gated delta rule, d {d}: over {NAMES.get(other, other)}"
            found.append(Figure(name, ratio, "x", at_least=targets.get(other), detail=times))
    return found


if __name__ == "__main__":
    installed = {d.metadata["Name"] for d in metadata.distributions()}
    part(figures, __doc__, [name for name in ("torch", "transformers") if name in installed])
