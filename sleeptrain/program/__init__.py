"""What runs when: the `sleep:` section, the program compiled from it, and its timeline on stages. Pure Python, no torch."""

from sleeptrain.program.config import Draw, Evict, Gradient, Loop, Ramp, Sleep
from sleeptrain.program.place import own_channels, place
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
)
from sleeptrain.program.timeline import (
    POLICIES,
    Action,
    Edge,
    Item,
    Retain,
    Slice,
    Source,
    Stage,
    Timeline,
    Value,
    slices,
)
from sleeptrain.program.values import results, touches

__all__ = [
    "POLICIES", "Action", "Boundary", "Draw", "Edge", "Evict", "Gradient", "Item", "Layers", "Loop", "Op", "Pass",
    "Program", "Ramp", "Retain", "Sleep", "Slice", "Source", "Stage", "Timeline", "Value", "Window", "blocks_of",
    "compile", "kept_tokens", "loop_range", "own_channels", "place", "results", "slices", "touches",
]  # fmt: skip
