"""`sleeptrain plan`: what a recipe needs on its mesh, before it is queued."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleeptrain.cli.help import add_command, memory_size
from sleeptrain.errors import UserError

if TYPE_CHECKING:
    from sleeptrain.plan import DeviceMemory

EXAMPLES = (
    "sleeptrain plan rule110-tiny",
    "sleeptrain plan hybrid-7b mesh.data=4 mesh.pipe=4 mesh.tensor=4",
    "sleeptrain plan hybrid-1b mesh.pipe=2 --processes 8 --speed 4e14",
    "sleeptrain plan hybrid-1b --processes 8 --memory 80GiB",
    "sleeptrain plan text-small mesh.pipe=2 train.batch=12 --draw",
    "sleeptrain plan text-small mesh.pipe=2 train.batch=12 --svg runs/text-small.svg --json",
)


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    description = (
        "Print what a recipe needs before it is queued: parameters and memory of every process, FLOPs, traffic, balance "
        "and idle time of pipeline stages. It needs no GPU, no data and no memory of the model's size. Where there is no "
        "data yet, it takes the windows of the task that the data folder is named after."
    )
    parser = add_command(subparsers, "plan", "what a recipe needs, before it is queued", description, EXAMPLES)
    parser.add_argument("recipe", help="a YAML file, or the name of one in configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe, such as mesh.pipe=4")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="processes of the run (default: those that mesh names)"
    )
    parser.add_argument(
        "--windows", type=int, metavar="N", help="windows of a sample of text, where there is no data yet"
    )
    parser.add_argument("--speed", type=float, metavar="FLOPS", help="FLOPs a second of one process, to estimate seconds")  # fmt: skip
    parser.add_argument(
        "--memory", type=memory_size, metavar="SIZE",
        help="memory of a device, such as 80GiB: says whether the plan fits (default: that of the GPU here, or 80GiB where train.recompute is auto)",
    )  # fmt: skip
    parser.add_argument("--draw", action="store_true", help="draw the schedule of the stages")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the schedule as an SVG picture")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 0."""
    _check(args)
    from sleeptrain import plan
    from sleeptrain.recipe import check_batch, load_recipe
    from sleeptrain.schedule import draw
    from sleeptrain.train.layout import resolve_layout

    resolved, data_layout = plan.resolve_data(load_recipe(args.recipe, args.overrides), args.windows)
    world = plan.planned_world(resolved.value, args.processes)
    batch = check_batch(resolved, world)
    memory, why = _memory(args.memory, resolved.value.train.recompute == plan.AUTO), None
    if memory is not None:
        resolved, why = plan.resolve_recompute(resolved, batch, data_layout, memory)
    layout = resolve_layout(resolved.value, data_layout.windows, batch, data_layout.sizes)
    found = plan.make_plan(layout, data_layout, args.speed)
    picture = draw(found.schedule, found.costs) if args.draw or args.svg else None
    if args.svg and picture:
        _write(args.svg, picture.svg)
    if args.json:
        print(json.dumps(plan.to_json(found, memory), indent=1))
        return 0
    print(plan.text(found, memory, why))
    if args.draw and picture:
        print(f"\n{picture.text}")
    return 0


ASSUMED = 80 * 2.0**30
"""Bytes of a device that `train.recompute: auto` is planned for where there is neither --memory nor a GPU."""


def _memory(given: float | None, auto: bool) -> DeviceMemory | None:
    """The memory that the plan is held against; None: it is not."""
    from sleeptrain.parallel.process import local_device
    from sleeptrain.plan import DeviceMemory, process_memory

    if given is not None:
        return DeviceMemory(given, "--memory")
    device = local_device()
    if device.type == "cuda":
        return process_memory(device)
    return DeviceMemory(ASSUMED, "assumed; --memory says otherwise") if auto else None


def _check(args: argparse.Namespace) -> None:
    """Raise UserError with every option that is out of range."""
    rules = (
        ("--processes", args.processes, args.processes is None or args.processes >= 1, "at least 1"),
        ("--windows", args.windows, args.windows is None or args.windows >= 1, "at least 1"),
        ("--speed", args.speed, args.speed is None or 0 < args.speed < float("inf"), "above 0"),
    )
    errors = [f"{name} {value}: must be {wanted}" for name, value, good, wanted in rules if not good]
    if errors:
        raise UserError(errors)


def _write(path: Path, svg: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(svg)
    except OSError as error:
        raise UserError(f"--svg {path} cannot be written: {error.strerror}") from None
