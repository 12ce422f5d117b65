"""`sleeptrain launch`: submit a recipe to SLURM as a job that checks its nodes, trains, and continues until it is done."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

from sleeptrain.cli.help import add_command
from sleeptrain.errors import UserError

if TYPE_CHECKING:
    from sleeptrain.cli.cluster import ClusterFile
    from sleeptrain.cli.job_script import JobRun

DESCRIPTION = """\
Submit a recipe to SLURM. The job checks its nodes, trains one rank per task, saves before its time limit and when it is preempted,
and is requeued until the run is done. Code and recipe are copied into the run folder, so that later changes do not reach the job.
`sleeptrain job` shows and cancels it."""
EXAMPLES = (
    "sleeptrain launch rule110-tiny --cluster example --dry-run",
    "sleeptrain launch hybrid-1b --cluster mine.yaml --nodes 4 mesh.tensor=2 run_dir=/shared/runs/1b",
)


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    parser = add_command(subparsers, "launch", "submit a recipe to SLURM", DESCRIPTION, EXAMPLES)
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of one in configs/")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="changes to the recipe")
    parser.add_argument("--cluster", required=True, metavar="NAME", help="a YAML file, or the name of one in configs/cluster")  # fmt: skip
    parser.add_argument("--nodes", type=int, metavar="N", help="nodes of the job (default: as many as the mesh needs)")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="a change to the cluster file, such as slurm.time=1:00:00")  # fmt: skip
    parser.add_argument("--after", metavar="JOB", help="start when this job of SLURM has ended without error")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the job script, and stop")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 0. Raises UserError before anything is written or submitted."""
    from sleep_launch.script import render
    from sleep_launch.submit import free_folder, prepare, submit
    from sleeptrain.cli.job_script import job_script, refuse_second_job
    from sleeptrain.run.environment import revision

    cluster, trained, nodes = check(args)
    job = job_script(cluster, free_folder(trained.folder), [trained], nodes)
    if args.dry_run:
        print(render(job), end="")
        print(summary(cluster, trained, nodes), file=sys.stderr)
        print("Dry run: everything was checked and nothing was written or submitted.", file=sys.stderr)
        return 0
    refuse_second_job(trained.folder)
    prepare(job, [trained.resolved.to_yaml()], revision())
    submitted = submit(job, args.after)
    print(summary(cluster, trained, nodes))
    print(f"job {submitted.number} is submitted; its log will be {submitted.log}")
    print(f"  sleeptrain job status {trained.folder}")
    return 0


def check(args: argparse.Namespace) -> tuple[ClusterFile, JobRun, int]:
    """Check recipe, cluster file, mesh, batch, data, run folder and memory as training would, and count nodes. Writes nothing."""
    from sleeptrain import plan
    from sleeptrain.cli.cluster import load_job_cluster
    from sleeptrain.cli.job_script import plan_run
    from sleeptrain.cli.train import check_writable
    from sleeptrain.cli.training import naming_data
    from sleeptrain.evaluate.held_out import open_held_out
    from sleeptrain.recipe import check_batch, check_run, load_recipe
    from sleeptrain.recipe.load_trained import initial_weights
    from sleeptrain.train.setup import open_reader
    from sleeptrain.train.wandb_run import check_wandb

    cluster = load_job_cluster(args.cluster, args.set).value
    resolved = load_recipe(args.recipe, [*cluster.recipe, *args.overrides])
    folder = resolved.value.folder(args.recipe).absolute()
    tasks = cluster.nodes.tasks
    if args.nodes is not None and args.nodes < 1:
        raise UserError(f"--nodes {args.nodes}: must be at least 1")
    if args.after is not None and not re.fullmatch(r"\d+(_\d+)?", args.after):
        raise UserError(f"--after {args.after}: must be the number of a job, as squeue shows it")
    nodes = args.nodes or -(-plan.planned_world(resolved.value, None) // tasks)
    batch = check_batch(resolved, nodes * tasks)
    with naming_data(resolved):
        open_reader(resolved.value, batch, 0).close()
        open_held_out(resolved.value, batch, 0)
    completed, data_layout = plan.resolve_data(resolved)
    check_run(completed, folder, data_layout.manifest)
    initial_weights(completed, args.recipe)
    check_writable(completed, folder)
    if not {"WANDB_MODE", "WANDB_API_KEY"} & {*cluster.software.environment}:
        check_wandb(completed.value.log)
    return cluster, plan_run(args.recipe, resolved, folder, nodes * tasks, cluster), nodes


def summary(cluster: ClusterFile, trained: JobRun, nodes: int) -> str:
    """What will run where, in two lines, and notes on the run."""
    slurm, tasks = cluster.slurm, cluster.nodes.tasks
    where = f"partition {slurm.partition}" if slurm.partition else "the default partition"
    return (
        f"{trained.folder}: {trained.parameters:,} parameters on {nodes * tasks} ranks\n"
        f"  {nodes} nodes x {tasks} tasks in {where}, {slurm.time} for each start"
        + "".join(f"\n  {line}" for line in trained.notes)
    )
