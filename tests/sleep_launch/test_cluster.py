"""Values of a cluster file that cannot stand in a job script."""

from __future__ import annotations

import pytest

from sleep_launch.cluster import Nodes, Restart, Slurm, Software, problems, time_seconds


@pytest.mark.parametrize(
    ("section", "paths"),
    [
        (
            Slurm("gpu,big", "a-1", constraint="h100&ib|x", exclude="n[1-3,7]", options={"mem": "0", "exclusive": ""}),
            [],
        ),
        (Slurm("gpu\n#SBATCH --uid=0"), ["slurm.partition"]),
        (Slurm("two words", account=""), ["slurm.partition", "slurm.account"]),
        (Slurm(time="soon"), ["slurm.time"]),
        (Slurm(time="0"), ["slurm.time"]),
        (Slurm(time="00:00:00"), ["slurm.time"]),
        (Slurm(time="10", lead=301), ["slurm.lead"]),
        (Slurm(lead=0), ["slurm.lead"]),
        (Slurm(options={"--mem": "0"}), ["slurm.options"]),
        (Slurm(options={"output": "x", "mem": "a b"}), ["slurm.options", "slurm.options"]),
        (Nodes(tasks=0, gpus=-1, cpus=0), ["nodes.tasks", "nodes.gpus", "nodes.cpus"]),
        (Nodes(tasks=8, gpus=4), ["nodes.tasks"]),
        (Nodes(gpus=8), ["nodes.tasks"]),  # seven GPUs would be idle
        (Software(environment={"A B": "1"}), ["software.environment"]),
        (Restart(limit=0, delay=-1), ["restart.limit", "restart.delay"]),
    ],
)
def test_problems(section: Slurm | Nodes | Software | Restart, paths: list[str]) -> None:
    sections = {type(each): each for each in (Slurm(), Nodes(), Software(), Restart())} | {type(section): section}
    assert [path for path, _ in problems(*sections.values())] == paths  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 600), ("10:30", 630), ("1:10:30", 4230), ("2-12", 216000), ("1-02:03", 93780), ("1-02:03:04", 93784)],
)
def test_times(text: str, seconds: int) -> None:
    """As the manual of sbatch lists them."""
    assert time_seconds(text) == seconds
