"""The `sleep:` section, and the program of passes and window boundaries compiled from it. Pure Python, no torch."""

from sleeptrain.program.config import Draw, Evict, Gradient, Loop, Ramp, Sleep
from sleeptrain.program.program import (
    Boundary,
    Layers,
    Op,
    Pass,
    Program,
    Window,
    blocks_of,
    compile,
    kept_tokens,
    loop_range,
    pairs_seen,
)

__all__ = [
    "Boundary", "Draw", "Evict", "Gradient", "Layers", "Loop", "Op", "Pass", "Program", "Ramp", "Sleep", "Window",
    "blocks_of", "compile", "kept_tokens", "loop_range", "pairs_seen",
]  # fmt: skip
