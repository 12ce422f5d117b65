"""What runs when: the `sleep:` section, the program compiled from it, and its timeline on stages. Pure Python, no torch."""

from sleeptrain.program.balance import Balance, balance
from sleeptrain.program.check import check
from sleeptrain.program.config import Draw, Evict, Gradient, Loop, Ramp, Sleep
from sleeptrain.program.draw import Picture, draw
from sleeptrain.program.memory import Sizes
from sleeptrain.program.place import own_channels, place
from sleeptrain.program.price import Costs, Price, StagePrice, pairs_seen, price
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
    "POLICIES", "Action", "Balance", "Boundary", "Costs", "Draw", "Edge", "Evict", "Gradient", "Item", "Layers",
    "Loop", "Op", "Pass", "Picture", "Price", "Program", "Ramp", "Retain", "Sizes", "Sleep", "Slice", "Source",
    "Stage", "StagePrice", "Timeline", "Value", "Window", "balance", "blocks_of", "check", "compile", "draw",
    "kept_tokens", "loop_range", "own_channels", "pairs_seen", "place", "price", "results", "slices", "touches",
]  # fmt: skip
