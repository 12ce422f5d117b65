"""`sleeptrain plan`: what a recipe needs on its mesh, before it is queued."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleeptrain.cli.help import add_command, memory_size
from sleeptrain.errors import UserError

if TYPE_CHECKING:
    from sleeptrain.cli.progress import Show
    from sleeptrain.plan import DeviceMemory, Hardware
    from sleeptrain.plan.search import Reload
    from sleeptrain.train.layout import Layout

EXAMPLES = (
    "sleeptrain plan rule110-tiny",
    "sleeptrain plan hybrid-7b mesh.data=4 mesh.pipe=4 mesh.tensor=4",
    "sleeptrain plan hybrid-1b mesh.pipe=2 --processes 8 --speed 4e14",
    "sleeptrain plan hybrid-1b --processes 8 --memory 80GiB",
    "sleeptrain plan rule110-tiny --processes 16 --cluster h100-slurm",
    "sleeptrain plan text-small --search --processes 2 --memory 16GiB",
    "sleeptrain plan text-small mesh.pipe=2 train.batch=12 --draw",
    "sleeptrain plan text-small mesh.pipe=2 train.batch=12 --svg runs/text-small.svg --json",
)


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    description = (
        "Print what a recipe needs before it is queued: parameters and memory of every process, FLOPs, traffic, balance "
        "and idle time of pipeline stages. It needs no GPU, no data and no memory of the model's size. Where there is no "
        "data yet, it takes the windows of the task that the data folder is named after. With --cluster it prints the time of a step, and "
        "what the whole run takes and costs. With --search it prints the layouts that are fastest."
    )
    parser = add_command(subparsers, "plan", "what a recipe needs, before it is queued", description, EXAMPLES)
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of one in configs/")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="changes to the recipe, such as mesh.pipe=4"
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="processes of the run (default: those that mesh names)"
    )
    parser.add_argument(
        "--windows", type=int, metavar="N", help="windows of a sample of text, where there is no data yet"
    )
    parser.add_argument("--speed", type=float, metavar="FLOPS", help="FLOPs a second of one process, to estimate seconds")  # fmt: skip
    parser.add_argument(
        "--memory", type=memory_size, metavar="SIZE",
        help="memory of a GPU, such as 80GiB: says whether the plan fits (default: that of the GPU here, or 80GiB where train.recompute is auto)",
    )  # fmt: skip
    parser.add_argument(
        "--cluster", metavar="NAME", help="a cluster file, or the name of one in configs/cluster/, whose hardware: says what time and price follow from",
    )  # fmt: skip
    parser.add_argument(
        "--search", action="store_true",
        help="look at all layouts of --processes N, and print the fastest that fit; what key=value sets stays as it is",
    )  # fmt: skip
    parser.add_argument("--draw", action="store_true", help="draw the schedule of the stages")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the schedule as an SVG picture")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 0."""
    from sleeptrain.cli.progress import with_progress

    _check(args)
    print(with_progress(lambda show: _search(args, show), quiet=False) if args.search else _plan(args))
    return 0


def _plan(args: argparse.Namespace) -> str:
    """The plan of one layout, as text or JSON."""
    from sleeptrain import plan
    from sleeptrain.cli.cluster import load_hardware
    from sleeptrain.recipe import check_batch
    from sleeptrain.schedule import draw
    from sleeptrain.train.layout import resolve_layout

    hardware = load_hardware(args.cluster) if args.cluster else None
    reload = _reloads(args)
    resolved, data_layout = reload(())
    batch = check_batch(resolved, plan.planned_world(resolved.value, args.processes))
    memory, why = _memory(args, hardware, resolved.value.train.recompute == plan.AUTO), None
    layout = resolve_layout(resolved.value, data_layout.windows, batch, data_layout.sizes)
    announce(layout)
    if memory is not None:
        resolved, why = plan.resolve_recompute(resolved, batch, data_layout, memory)
        layout = resolve_layout(resolved.value, data_layout.windows, batch, data_layout.sizes)
    layout, left_off = plan.resolve_auto(layout, data_layout, memory)
    found = plan.make_plan(layout, data_layout, args.speed)
    advice = plan.advise(reload, resolved, data_layout, found, memory) if memory else None
    time = plan.step_time(found, hardware) if hardware else None
    picture = draw(found.schedule, found.costs) if args.draw or args.svg else None
    if args.svg and picture:
        _write(args.svg, picture.svg)
    if args.json:
        body = plan.to_json(found, memory) | ({"advice": asdict(advice)} if advice else {})
        return json.dumps(
            body | ({"time": plan.time_json(found, time, hardware)} if time and hardware else {}), indent=1
        )
    parts = [
        plan.text(found, memory, [*([f"recompute {why}"] if why else []), *left_off], advice.lines() if advice else ())
    ]
    parts += [plan.time_text(found, time, hardware)] if time and hardware else []
    parts += [f"schedule: {args.svg}"] if args.svg else []
    return "\n\n".join(parts + ([picture.text] if args.draw and picture else []))


def _search(args: argparse.Namespace, show: Show | None) -> str:
    """The best layouts, as text or JSON."""
    from sleeptrain import plan
    from sleeptrain.cli.cluster import load_hardware

    hardware = load_hardware(args.cluster) if args.cluster else plan.Hardware()
    memory = _memory(args, hardware if args.cluster else None, assume=True)
    assert memory is not None
    found = plan.search(_reloads(args), args.processes, memory, hardware, show)
    if args.json:
        return json.dumps(plan.search_json(found, args.processes, memory, hardware), indent=1)
    return plan.search_text(found, args.processes, memory, hardware, assumed=not args.cluster)


def _reloads(args: argparse.Namespace) -> Reload:
    """Loads the recipe of the command line with further changes, and its data."""
    from sleeptrain.plan import resolve_data
    from sleeptrain.recipe import load_recipe

    return lambda changes: resolve_data(load_recipe(args.recipe, [*args.overrides, *changes]), args.windows)


MANY = 20_000
"""Passes of all stages and micro-batches beyond which a plan takes longer than some seconds."""


def announce(layout: Layout) -> None:
    """Print a line on the error stream before a plan that takes long."""
    from sleeptrain.program import Pass

    turns = sum(isinstance(op, Pass) for op in layout.program().ops) * layout.batch.group * layout.job.mesh.pipe
    if turns > MANY:
        print(f"planning {turns:,} passes of stages and micro-batches; this takes minutes", file=sys.stderr, flush=True)


ASSUMED = 80 * 2.0**30
"""Bytes of a device that `train.recompute: auto` and --search plan for where there is neither --memory, --cluster nor a GPU."""


def _memory(args: argparse.Namespace, hardware: Hardware | None, assume: bool) -> DeviceMemory | None:
    """The memory that the plan is held against; None: it is not."""
    from sleeptrain.parallel.process import local_device
    from sleeptrain.plan import DeviceMemory, process_memory

    if args.memory is not None:
        return DeviceMemory(args.memory, "--memory", gpu=True)
    if hardware is not None:
        return DeviceMemory(hardware.bytes, f"a GPU of {args.cluster}", gpu=True)
    device = local_device()
    if device.type == "cuda":
        return process_memory(device)
    return DeviceMemory(ASSUMED, "assumed; --memory says otherwise", gpu=True) if assume else None


def _check(args: argparse.Namespace) -> None:
    """Raise UserError with every option that is out of range."""
    rules = (
        ("--processes", args.processes, args.processes is None or args.processes >= 1, "at least 1"),
        ("--windows", args.windows, args.windows is None or args.windows >= 1, "at least 1"),
        # A core of a CPU computes a thousand times as much: a smaller number is in another unit.
        (
            "--speed",
            args.speed,
            args.speed is None or 1e6 <= args.speed < float("inf"),
            "FLOPs a second, at least 1e6 (400 TFLOPs: 4e14)",
        ),
    )
    errors = [f"{name} {value}: must be {wanted}" for name, value, good, wanted in rules if not good]
    if args.search and args.processes is None:
        errors.append("--search needs --processes N, the number of processes of the layouts")
    if args.search and (args.draw or args.svg):
        errors.append("--search draws no schedule; plan one of its layouts with --draw or --svg")
    if args.draw and args.json:
        errors.append(
            "--draw draws the schedule as text, and --json prints JSON alone; --svg FILE writes it as a picture"
        )
    if args.speed is not None and (args.search or args.cluster):
        errors.append(
            f"--speed {args.speed:g}: with --cluster and --search the speed is hardware.flops x hardware.share of the cluster file"
        )
    if errors:
        raise UserError(errors)


def _write(path: Path, svg: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(svg)
    except OSError as error:
        raise UserError(f"--svg {path} cannot be written: {error.strerror}") from None
