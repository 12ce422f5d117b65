"""User errors in runs of several processes: every process exits with 2, one message is printed, and no stack trace."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from sleep_data.build import build
from sleep_data.rule110 import Rule110
from tests.cli.lines import TINY, Line, run_named
from tests.distributed import run

STATIC: dict[str, tuple[Sequence[str], str]] = {
    "more stages than blocks": (["mesh.pipe=3"], 'mesh.pipe = 3 (command line) with model.layers = "AG" (model/ag-tiny.yaml:4): the stack has 2 blocks; mesh.pipe can be 1 to 2'),
    "more processes than key heads": (["mesh.tensor=4"], "model.deltanet.key_heads = 2 cannot be shared by 4 processes; mesh.tensor can be 1, 2 for this model; choose one of these"),
    "an odd width of the MLP": (["mesh.tensor=2", "model.mlp.hidden=127"], "mesh.tensor = 2 (command line): model.mlp.hidden = 127 cannot be shared by 2 processes; mesh.tensor can be 1 for"),
    "ZeRO 3 with stages": (["mesh.zero=3", "mesh.pipe=2"], "mesh.zero = 3 (command line) with mesh.pipe = 2 (command line): pipeline stages need whole parameters"),
    "ZeRO 3 with Muon": (["mesh.zero=3", "optim.name=muon", "optim.adam_lr=0.1"], 'with optim.name = "muon" (command line): Muon orthogonalises whole matrices, and ZeRO 3 shards them'),
    "sequence alone": (["mesh.sequence=true"], "mesh.sequence = true (command line) with mesh.tensor = 1 (default): sequence parallelism divides the tokens"),
    "a group that is too small": (["mesh.pipe=2", "mesh.group=1"], "mesh.group = 1 (command line) with mesh.pipe = 2 (command line): every pass would leave stages idle"),
    "rows that make no groups": (["mesh.pipe=2", "mesh.data=2", "train.batch=10"], "train.batch = 10 (command line) with train.micro = null (default) with mesh.group = 0 (default) with mesh.pipe = 2 (command line) with mesh.data = 2 (command line): the 5 rows of each of 2 processes do not make groups of 2 or 3 or 4 micro-batches; the nearest batch that does is 12"),
    "no pass": (["sleep.passes=0", "mesh.pipe=2"], "sleep.passes = 0 (command line): must be at least 1; the first pass is counted"),
    "a draw of no pass": (["sleep.passes={low: 0, high: 2}"], "sleep.passes = {low: 0, high: 2} (command line): a draw needs 1 <= low <= high"),
    "a misspelt key of deepspeed": (["deepspeed.wall_clock_breakdwn=true"], "deepspeed.wall_clock_breakdwn = true (command line): unknown key; did you mean wall_clock_breakdown?"),
    "a misspelt nested key": (["deepspeed.zero_optimization.overlap_com=true"], "deepspeed.zero_optimization.overlap_com = true (command line): unknown key; did you mean overlap_comm?"),
    "a misspelt key of a section without a model": (["deepspeed.activation_checkpointing.profil=true"], "deepspeed.activation_checkpointing.profil = true (command line): unknown key; did you mean profile?"),
    "a value that DeepSpeed rejects": (["deepspeed.zero_optimization.reduce_bucket_size=many"], 'deepspeed.zero_optimization.reduce_bucket_size = "many" (command line): DeepSpeed does not take this: Input should be a valid integer'),
    "a key that DeepSpeed has removed": (["deepspeed.amp.enabled=true"], "deepspeed.amp = {enabled: true} (command line): DeepSpeed does not take this: NVIDIA Apex AMP integration has been removed"),
    "a key that the mesh section decides": (["deepspeed.zero_optimization.stage=3"], "deepspeed.zero_optimization.stage = 3 (command line): is decided by mesh.zero; set mesh.zero instead"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATIC)
def test_recipe_errors_are_printed_before_the_processes_join(
    sleeptrain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    changes, message = STATIC[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sleeptrain.parallel.process.init_distributed", lambda: pytest.fail("joined"))
    ran = sleeptrain("train", "rule110-tiny", *changes)
    assert (ran.status, ran.out) == (2, ""), ran.err
    assert ran.err.startswith("error: ") and ran.err.count("\n") == 1 and message in ran.err, ran.err
    assert not list(tmp_path.iterdir())


def test_keys_that_deepspeed_knows_are_accepted(sleeptrain: Any) -> None:
    keys = [
        "zero_optimization.overlap_comm=true",
        "flops_profiler={enabled: true}",
        "comms_logger.enabled=true",
        "dump_state=true",
    ]
    ran = sleeptrain("train", "rule110-tiny", "--explain", *(f"deepspeed.{key}" for key in keys))
    assert (ran.status, ran.err) == (0, "") and "deepspeed.zero_optimization.overlap_comm" in ran.out


class OneWindow(Rule110):
    """Rule 110 with each sample in one window."""

    def windows(self) -> Any:
        first, *_, last = super().windows()
        return [type(first)(0, last.stop, True)]


class Spoiled(Rule110):
    """Rule 110 whose second training sample has a target in a window that is declared to have none."""

    def generate(self, split: str, start: int, stop: int, seed: int = 0) -> Any:
        columns = super().generate(split, start, stop, seed)
        if split == "train" and start <= 1 < stop:
            columns["targets"][1 - start, 12] = 1
        return columns


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of several kinds, and `elsewhere`, which stands for another machine with other data of the same name."""
    made = tmp_path_factory.mktemp("bad")
    sizes: dict[str, Any] = {"strings": 2, "width": 8, "transitions": (1, 2), "holdout": 8}
    for name, kind, seed in (
        ("data", Rule110, 0), ("one", OneWindow, 0), ("spoiled", Spoiled, 0), ("elsewhere/data", Rule110, 1)
    ):  # fmt: skip
        with mock.patch("sleep_data.shards.check_block"):  # a writer of shards that does not check
            build(kind(**sizes), made / name, {"train": 64, "test": 8}, seed)
    for process in (made, made / "elsewhere"):
        (process / "small.yaml").write_text("sleep: {window: 9}\ntrain: {steps: 2, batch: 8}\n")
    return made


def recipe(*changes: str, data: str = "data") -> list[str]:
    return ["train", "small.yaml", f"data.sources=[{{path: {data}}}]", *TINY, "run_dir=none", *changes]


WRONG = {
    "longer than a sample": (recipe("sleep.window=512"), "sleep.window = 512 (command line): the data in data has windows of 9 tokens; set sleep.window=9"),
    "longer than a window": (recipe("sleep.window=10"), "sleep.window = 10 (command line): the data in data has windows of 9 tokens; set sleep.window=9"),
    "one window, every": (recipe("sleep.loop.trigger=every", "sleep.passes=2", "sleep.window=20", data="one"), 'sleep.loop.trigger = "every" (command line): samples of one are one window, and the last window of a sample never sleeps, so passes = 2 would change nothing'),
    "one window, context": (recipe("sleep.passes=2", "sleep.window=20", data="one"), "every window of one has targets, so no window would sleep and passes = 2 would change nothing"),
}  # fmt: skip


def test_windows_that_never_sleep_are_refused(folder: Path) -> None:
    ran = run_named({name: words for name, (words, _) in WRONG.items()}, folder)
    for name, line in ran.items():
        assert (line.status, line.out) == (2, ""), line.err
        assert line.err.startswith("error: ") and line.err.count("\n") == 1 and WRONG[name][1] in line.err, line.err
    assert not (folder / "none").exists()


def run_on_this_rank(lines: list[tuple[list[str], list[list[str]]]]) -> list[Line]:
    """Run this rank's command lines. Each of `lines` has folders by rank and words by rank."""
    from sleeptrain.cli.main import main
    from sleeptrain.parallel import process

    # DeepSpeed keeps the first process group for the lifetime of the process.
    process.shutdown_distributed = lambda: None
    rank = int(os.environ["RANK"])
    results = []
    for folders, words in lines:
        os.chdir(folders[rank])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words[rank])
        results.append(Line(status, out.getvalue(), err.getvalue()))
    return results


def error_lines(line: Line) -> list[str]:
    return [text for text in line.err.splitlines() if text.startswith("error: ")]


SEQUENCE = recipe("mesh.tensor=2", "mesh.sequence=true", "model.attention.kv_heads=2", "model.deltanet.key_heads=2")
TWO_RANKS: dict[str, tuple[list[str], list[str], str]] = {
    "stages": (recipe("mesh.pipe=2"), recipe(), "ranks have different values: mesh.pipe is 2 on rank 0 and 1 on rank 1; start every rank with the same recipe, overrides and data"),
    "passes and seed": (recipe("sleep.passes=2", "train.seed=1"), recipe("sleep.passes=3"), "sleep.passes is 2 on rank 0 and 3 on rank 1; train.seed is 1 on rank 0 and 0 on rank 1; start every rank"),
    "not given": (recipe("deepspeed.dump_state=false"), recipe(), "deepspeed.dump_state is False on rank 0 and not given on rank 1"),
    "a recipe that rank 1 does not have": (recipe(), ["train", "lost.yaml"], 'error: rank 1: recipe "lost.yaml": no such file'),
    "no fused kernels": (recipe("train.kernels=require_fused"), recipe("train.kernels=require_fused"), "error: train.kernels = require_fused, but "),
    "too few": (recipe("mesh.data=2", "mesh.pipe=2"), recipe("mesh.data=2", "mesh.pipe=2"), "mesh.data = 2 (command line) with mesh.pipe = 2 (command line): 2 processes were started; start 4, for instance with torchrun --nproc_per_node 4"),
    "windows that cannot be shared": (SEQUENCE, SEQUENCE, "mesh.sequence = true (command line) with mesh.tensor = 2 (command line): 2 processes cannot divide windows of 9 tokens, as in data; build windows of a multiple, or set mesh.sequence=false"),
    "no groups": (recipe("mesh.pipe=2", "train.micro=8"), recipe("mesh.pipe=2", "train.micro=8"), "with train.micro = 8 (command line) with mesh.group = 0 (default) with mesh.pipe = 2 (command line): the 1 micro-batches of each of 1 processes do not make groups of 2 or 3 or 4"),
}  # fmt: skip


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> dict[str, tuple[Line, Line]]:
    """Results by rank of every command line for two processes, run in one launch."""
    here, elsewhere = str(folder), str(folder / "elsewhere")
    torn = recipe("run_dir=torn")
    # Only rank 1 reads the damaged sample, in its first step. It is last: the other command lines end before a step.
    spoiled = recipe("data.shuffle=false", "train.batch=2", "run_dir=spoiled-run", data="spoiled")
    lines = {name: ([here, here], [first, second]) for name, (first, second, _) in TWO_RANKS.items()}
    lines |= {"torn": ([here, elsewhere], [torn, torn]), "spoiled": ([here, here], [spoiled, spoiled])}
    return dict(zip(lines, zip(*run(run_on_this_rank, 2, list(lines.values()), timeout=300), strict=True), strict=True))


SHARD = "spoiled/train/shard.00000.mds, sample 1 in it, position 12, in window 1 of tokens 9 to 17"
MESSAGES = {
    **{name: message for name, (_, _, message) in TWO_RANKS.items()},
    "torn": "ranks have different values: the data's hash is ",
    "spoiled": f"there is a target in a window that the manifest declares to have none ({SHARD})",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_an_error_in_two_processes_is_printed_once(
    two_ranks: dict[str, tuple[Line, Line]], folder: Path, name: str
) -> None:
    """Among them ranks of two machines that have different data of the same name ("torn")."""
    one, other = two_ranks[name]
    assert (one.status, other.status) == (2, 2), one.err + other.err
    assert len(error_lines(one)) == 1 and MESSAGES[name] in error_lines(one)[0], one.err
    assert not error_lines(other) and "traceback" not in (one.err + other.err).lower(), other.err
    assert not (folder / "none").exists()


@pytest.mark.slow
def test_resuming_goes_on_with_other_processes_and_not_on_other_data(folder: Path, tmp_path: Path) -> None:
    for name in ("data", "elsewhere/data"):
        shutil.copytree(folder / name, tmp_path / name)
    shutil.copy(folder / "small.yaml", tmp_path)
    words = recipe("run_dir=alone", "train.steps=1", "checkpoint.every=0")
    ((done,),) = run(run_on_this_rank, 1, [([str(tmp_path)], [words])], timeout=300)
    assert done.status == 0, done.err
    more = [*words, "train.steps=2"]
    ((one,), (other,)) = run(run_on_this_rank, 2, [([str(tmp_path)] * 2, [more, more])], timeout=300)
    assert (one.status, other.status) == (0, 0), one.err + other.err
    assert "alone: continuing at step 1 of 2" in one.err and "alone: step 2 of 2, done" in one.err
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(tmp_path / "elsewhere" / "data", tmp_path / "data")
    ((again,),) = run(run_on_this_rank, 1, [([str(tmp_path)], [words])], timeout=300)
    assert again.status == 2
    assert error_lines(again) == [
        "error: alone was trained on other data than data holds now; restore the old data to continue it, or start another run with run_dir=..., "
        "from its weights with init_from=alone"
    ]


ALONE = """
import sys
from datetime import timedelta
from sleeptrain.cli import main, train
assert train.RENDEZVOUS_WITHOUT_RECIPE > timedelta(seconds=1)  # else the name has changed and nothing is set here
train.RENDEZVOUS_WITHOUT_RECIPE = timedelta(seconds=1)
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_recipe_error_is_printed_by_local_rank_0_and_no_rank_waits(rank: str, folder: Path) -> None:
    """One rank of two, without its peer: it must not wait for the other rank, which has exited or never starts."""
    # Port 9 (discard): nothing listens there.
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    words = [sys.executable, "-c", ALONE, *recipe("sleep.pases=3")]
    done = subprocess.run(words, cwd=folder, env=os.environ | where, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    printed = [line for line in done.stderr.splitlines() if "sleep.pases" in line or line.startswith("error")]
    expected = ["error: sleep.pases = 3 (command line): unknown key; did you mean sleep.passes?"]
    assert printed == (expected if rank == "0" else [])
    assert not (folder / "none").exists()
