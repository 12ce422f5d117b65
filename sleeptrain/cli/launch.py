"""`sleeptrain launch`: submit a recipe to SLURM as a job that checks its nodes, trains, and continues until it is done."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleeptrain.cli.help import add_command
from sleeptrain.errors import UserError

if TYPE_CHECKING:
    from sleep_launch.script import JobScript
    from sleeptrain.cli.cluster import ClusterFile

DESCRIPTION = """\
Submit a recipe to SLURM. The job checks its nodes, trains one rank per task, saves before its time limit and when it is preempted,
and is requeued until the run is done. Code and recipe are copied into the run folder, so that later changes do not reach the job.
`sleeptrain job` shows and cancels it."""
EXAMPLES = (
    "sleeptrain launch rule110-tiny --cluster example --dry-run",
    "sleeptrain launch hybrid-1b --cluster h100 --nodes 4 mesh.tensor=2 run_dir=/shared/runs/1b",
)
OPTIMIZER_BYTES = 12
"""Bytes of a parameter in a checkpoint: fp32 weight and two moments."""


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    parser = add_command(subparsers, "launch", "submit a recipe to SLURM", DESCRIPTION, EXAMPLES)
    parser.add_argument("recipe", help="a YAML file, or the name of one in configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    parser.add_argument("--cluster", required=True, metavar="NAME", help="a YAML file, or the name of one in configs/cluster")  # fmt: skip
    parser.add_argument("--nodes", type=int, metavar="N", help="nodes of the job (default: as many as the mesh needs)")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="a change to the cluster file, such as slurm.time=1:00:00")  # fmt: skip
    parser.add_argument("--after", metavar="JOB", help="start when this job of SLURM has ended without error")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the job script, and stop")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Request:
    """A checked recipe and the job that would train it."""

    resolved: Any
    folder: Path
    """The run folder."""
    cluster: ClusterFile
    nodes: int
    parameters: int

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.nodes * self.cluster.nodes.tasks


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 0. Raises UserError before anything is written or submitted."""
    from sleep_launch.script import render
    from sleep_launch.submit import free_folder, newest_job, prepare, submit
    from sleeptrain.run.environment import revision

    request = check(args)
    if (earlier := newest_job(request.folder)) and not args.dry_run and (state := earlier.state()):
        raise UserError(f"{request.folder} has job {earlier.number}, which is {state}; cancel it first: sleeptrain job cancel {request.folder}")  # fmt: skip
    job = script_of(request, free_folder(request.folder))
    if args.dry_run:
        print(render(job), end="")
        print(summary(request), file=sys.stderr)
        print("Dry run: everything was checked and nothing was written or submitted.", file=sys.stderr)
        return 0
    prepare(job, [request.resolved.to_yaml()], revision())
    submitted = submit(job, args.after)
    print(summary(request))
    print(f"job {submitted.number} is submitted; its log will be {submitted.log}")
    print(f"  sleeptrain job status {request.folder}")
    return 0


def check(args: argparse.Namespace) -> Request:
    """Check recipe, cluster file, mesh, batch, data, run folder and memory as training would, and count nodes. Writes nothing."""
    from sleeptrain import plan
    from sleeptrain.cli.cluster import load_cluster
    from sleeptrain.cli.train import check_writable
    from sleeptrain.cli.training import naming_data
    from sleeptrain.recipe import check_batch, check_run, load_recipe
    from sleeptrain.recipe.load_trained import initial_weights
    from sleeptrain.train.layout import resolve_layout
    from sleeptrain.train.setup import open_reader

    cluster = load_cluster(args.cluster, args.set).value
    resolved = load_recipe(args.recipe, [*cluster.recipe, *args.overrides])
    folder = resolved.value.folder(args.recipe).absolute()
    tasks = cluster.nodes.tasks
    if args.nodes is not None and args.nodes < 1:
        raise UserError(f"--nodes {args.nodes}: must be at least 1")
    nodes = args.nodes or -(-plan.planned_world(resolved.value, None) // tasks)
    batch = check_batch(resolved, nodes * tasks)
    with naming_data(resolved):
        open_reader(resolved.value, batch, 0).close()
    completed, data_layout = plan.resolve_data(resolved)
    check_run(completed, folder, data_layout.manifest)
    initial_weights(completed, args.recipe)
    check_writable(completed, folder)
    check_memory(args, cluster, completed, batch, data_layout)
    layout = resolve_layout(completed.value, data_layout.windows, batch, data_layout.sizes)
    return Request(located(resolved, folder), folder, cluster, nodes, plan.parameter_ownership(layout).total)


def check_memory(args: argparse.Namespace, cluster: ClusterFile, resolved: Any, batch: Any, data_layout: Any) -> None:
    """Raise UserError if the plan of a process does not fit a GPU of the cluster, where its file says how large that is."""
    from sleeptrain import plan
    from sleeptrain.train.layout import resolve_layout

    if cluster.hardware is None:
        return
    memory = plan.DeviceMemory(cluster.hardware.bytes, f"a GPU of {args.cluster}")
    resolved, _ = plan.resolve_recompute(resolved, batch, data_layout, memory)
    found = plan.make_plan(resolve_layout(resolved.value, data_layout.windows, batch, data_layout.sizes), data_layout)
    if not memory.holds(found):
        raise UserError(
            f"{args.recipe} needs {plan.size(plan.needed(found))} a process on {batch.data * resolved.value.mesh.pipe * resolved.value.mesh.tensor} "
            f"processes, more than the {memory}; `sleeptrain plan` with the same words and --cluster says what would make it fit"
        )


def script_of(request: Request, folder: Path) -> JobScript:
    """The job that trains a checked recipe; its own files will be in `folder`."""
    from sleep_launch.script import JobScript

    cluster = request.cluster
    keep = request.resolved.value.checkpoint.keep
    return JobScript(
        name=request.folder.name,
        folder=str(folder),
        runs=(str(request.folder),),
        workdir=str(Path.cwd()),
        count=request.nodes,
        lead=_lead(request),
        space=request.parameters * OPTIMIZER_BYTES * (keep + 1),
        python=cluster.software.python or sys.executable,
        slurm=cluster.slurm,
        nodes=cluster.nodes,
        software=cluster.software,
        restart=cluster.restart,
    )


def _lead(request: Request) -> int:
    """Seconds before the time limit at which the run is asked to stop."""
    from sleep_launch.cluster import time_seconds
    from sleep_launch.lead import lead_seconds

    slurm, measured = request.cluster.slurm, lead_seconds(request.folder)
    if measured > time_seconds(slurm.time) / 2:
        raise UserError(
            f"slurm.time {slurm.time}: a step and a save of {request.folder} have taken so long that it must be asked to stop "
            f"{measured} s before the limit, which is more than half of it; give a longer time or a smaller checkpoint.every"
        )
    return max(slurm.lead, measured)


def summary(request: Request) -> str:
    """What will run where, in two lines."""
    slurm, tasks = request.cluster.slurm, request.cluster.nodes.tasks
    where = f"partition {slurm.partition}" if slurm.partition else "the default partition"
    return (
        f"{request.folder}: {request.parameters:,} parameters on {request.world} ranks\n"
        f"  {request.nodes} nodes x {tasks} tasks in {where}, {slurm.time} for each start"
    )


def located(resolved: Any, folder: Path) -> Any:
    """The recipe with absolute paths of its run folder and data, since it is read from another folder."""
    import dataclasses

    value = dataclasses.replace(resolved.value, data=resolved.value.data.located(), run_dir=str(folder))
    return dataclasses.replace(resolved, value=value)
