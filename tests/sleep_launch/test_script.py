"""Job scripts: whole, for two cluster files, and run by bash with programs of the same names as SLURM's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sleep_launch.cluster import Nodes, Restart, Slurm, Software
from sleep_launch.script import JobScript, render, render_last
from tests.system import needs_system

SCRIPTS = Path(__file__).parent / "scripts"
PLAIN = JobScript(
    name="first", folder="/shared/runs/first/launch/1", runs=("/shared/runs/first",), workdir="/home/user/project", count=1, lead=300,
    space=1 << 30, python="/opt/python/bin/python", slurm=Slurm(), nodes=Nodes(), software=Software(), restart=Restart(),
)  # fmt: skip
FULL = JobScript(
    name="rule 110's study", folder="/shared/my runs/study/launch/2", runs=("/shared/my runs/a", "/shared/my runs/b's $HOME"), workdir="/shared/it's here",
    count=4, lead=420, space=80 << 30, python="python3",
    slurm=Slurm(
        "gpu,big", "team-7", "high", "h100&ib", "week_48", "node[07,12-14]", "2-00:00:00", 300, {"mem": "0", "exclusive": ""},
        ("--container-image=docker://example.org/train:1", "--container-mounts=/shared"),
    ),
    nodes=Nodes(8, 8, 12, "/scratch/$USER"),
    software=Software(("cuda/13.0", "nccl"), "python3", ("apptainer", "exec", "--nv", "/shared/my image.sif"), {"NCCL_SOCKET_IFNAME": "ib0", "NOTE": 'a "b" $c'}),
    restart=Restart(5, 120), array=(1,), then=((), ("eval", "it's")),
)  # fmt: skip
JOBS = {"plain": PLAIN, "full": FULL}
LAST_WORDS = ("study", "it's", "--report")
AWKWARD = 'it\'s a $HOME `run`; "touch" x\nsecond line %j \\ *'
"""A name with everything that a shell, or SLURM's file names, could read as its own."""


@pytest.mark.parametrize("name", JOBS)
def test_the_script_is_the_committed_one(name: str) -> None:
    """`python -m tests.sleep_launch.test_script` writes them again; look at the difference."""
    assert render(JOBS[name]) == (SCRIPTS / f"{name}.sh").read_text()
    assert render_last(FULL, LAST_WORDS) == (SCRIPTS / "last.sh").read_text()


@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("*.sh")))
def test_shellcheck_finds_nothing(name: str) -> None:
    shellcheck = needs_system("shellcheck", package="shellcheck")
    assert subprocess.run(["bash", "-n", SCRIPTS / f"{name}.sh"], check=False).returncode == 0
    done = subprocess.run([shellcheck, SCRIPTS / f"{name}.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def bash(tmp_path: Path) -> Callable[..., tuple[int, list[list[str]]]]:
    """Runs a job's script with programs that write down their words; `decide` prints the given decisions in turn."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("srun", "scontrol"):
        (programs / name).write_text(
            f"#!/bin/bash\nprintf '%s\\0' {name} \"$@\" >> {tmp_path}/words\nprintf '\\n\\0' >> {tmp_path}/words\n"
            f"case \"$*\" in *attempt*) head -n1 {tmp_path}/decisions; sed -i 1d {tmp_path}/decisions;; *hostnames*) printf 'n1\\nn2\\n';; esac\n"
        )
        (programs / name).chmod(0o755)

    def run(job: JobScript, *decisions: str) -> tuple[int, list[list[str]]]:
        (tmp_path / "decisions").write_text("".join(f"{decision}\n" for decision in decisions))
        script = tmp_path / "job.sh"
        script.write_text(render(job))
        environ = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
        if job.array:
            environ |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(job.array[-1])}
        done = subprocess.run(["bash", script], env=environ, capture_output=True, text=True, check=False)
        assert not done.stderr, done.stderr
        words = (tmp_path / "words").read_text().split("\0\n\0")
        return done.returncode, [line.split("\0") for line in words if line]

    return run


def test_awkward_names_reach_programs_as_they_are(
    bash: Callable[..., tuple[int, list[list[str]]]], tmp_path: Path
) -> None:
    folder = tmp_path / AWKWARD
    folder.mkdir()
    job = replace(PLAIN, name=AWKWARD, folder=f"{folder}/launch/1", runs=(f"{folder}/run",), workdir=str(folder))
    status, ran = bash(replace(job, nodes=Nodes(local=AWKWARD)), "go", "end 0")
    assert status == 0
    hosts, preflight, begin, train, end = ran
    assert hosts == ["scontrol", "show", "hostnames", "n[1-2]"]
    assert preflight[-4:] == ["--space", str(1 << 30), "--local", AWKWARD]
    assert begin[begin.index("begin") :][:3] == ["begin", "--nodes", "n1,n2"]
    assert begin[begin.index("--run") + 1] == f"{folder}/run" and begin[begin.index("--job") + 1] == job.folder
    assert train[-2:] == ["train", f"{job.folder}/recipe-0.yaml"]
    assert end[end.index("end") :][:3] == ["end", "--status", "0"]
    assert sorted(path.name for path in folder.iterdir()) == ["launch", "run"]  # no word of a name was executed


def test_what_follows_a_run_is_read_from_the_folder_of_the_job(
    bash: Callable[..., tuple[int, list[list[str]]]], tmp_path: Path
) -> None:
    job = replace(PLAIN, folder=f"{tmp_path}/job", runs=(f"{tmp_path}/run",), workdir=str(tmp_path), then=((AWKWARD,),))
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "then-0").write_text(f"eval\0{AWKWARD}\0")
    status, ran = bash(job, "go", "end 0")
    assert status == 0 and ran[-1][-3:] == ["sleeptrain", "eval", AWKWARD]
    status, ran = bash(job, "go", "end 75")
    assert status == 75 and "sleeptrain" not in ran[-1]


@pytest.mark.parametrize(
    ("decisions", "status", "updates"),
    [
        (["end 1"], 1, []),
        (["go", "end 75"], 75, []),
        (["go", "again 60"], 75, ["StartTime=now+60"]),
        (["again 15 n2,n5"], 75, ["StartTime=now+15", "ExcNodeList=n9,n2,n5"]),
        ([], 1, []),
    ],
)
def test_decisions_are_carried_out(
    bash: Callable[..., tuple[int, list[list[str]]]],
    tmp_path: Path,
    decisions: list[str],
    status: int,
    updates: list[str],
) -> None:
    """A decision that cannot be made ends the job."""
    job = replace(
        PLAIN, folder=f"{tmp_path}/job", runs=(f"{tmp_path}/run",), workdir=str(tmp_path), slurm=Slurm(exclude="n9")
    )
    found, ran = bash(job, *decisions)
    after = [line[1:] for line in ran if line[0] == "scontrol" and line[1] != "show"]
    assert found == status
    assert after == ([["requeue", "7"]] if updates else []) + [["update", "JobId=7", update] for update in updates]


def test_a_job_of_an_array_names_itself_and_not_the_array(
    bash: Callable[..., tuple[int, list[list[str]]]], tmp_path: Path
) -> None:
    runs = (f"{tmp_path}/0", f"{tmp_path}/1")
    status, ran = bash(
        replace(PLAIN, folder=f"{tmp_path}/job", runs=runs, workdir=str(tmp_path), array=(0, 1)), "again 15 n2"
    )
    assert status == 75 and ["scontrol", "requeue", "7_1"] in ran
    assert [line[2] for line in ran if line[:2] == ["scontrol", "update"]] == ["JobId=7_1"] * 2


def test_a_module_that_is_not_there_ends_the_job_before_it_trains(tmp_path: Path) -> None:
    """The message names module, key and way out."""
    job = replace(PLAIN, folder=f"{tmp_path}/job", workdir=str(tmp_path), software=Software(modules=("cuda/it's", "b")))
    script = tmp_path / "job.sh"
    script.write_text(f'module() {{ [ "$2" = b ]; }}\n{render(job)}')
    environ = os.environ | {"SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", script], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "launch: module load cuda/it's has failed; correct software.modules of the cluster file and launch again\n"
    )
    assert not (tmp_path / "job").exists()


if __name__ == "__main__":
    for each, described in JOBS.items():
        (SCRIPTS / f"{each}.sh").write_text(render(described))
    (SCRIPTS / "last.sh").write_text(render_last(FULL, LAST_WORDS))
