"""`sleeptrain train`: requests that are wrong, runs that cannot go on, and what a run folder says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sleep_data import shards
from sleep_data.tasks import make
from sleeptrain.errors import UserError
from sleeptrain.recipe import load_recipe
from sleeptrain.recipe.load_trained import find_checkpoint
from sleeptrain.train.log import read_metrics
from tests.cli.lines import TINY, Line, run_named
from tests.train.jobs import text_data

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with recipes that are wrong in themselves."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lost.yaml").write_text("include: [model/ag-tinny.yaml]\ntrain: {steps: 2}\n")
    (tmp_path / "tabs.yaml").write_text("train:\n\tsteps: 2\n")
    (tmp_path / "both.yaml").write_text("train: {steps: 2, tokens: 100}\n")
    (tmp_path / "list.yaml").write_text("- train\n")
    (tmp_path / "twice.yaml").write_text("train: {steps: 2}\ntrain: {steps: 3}\n")
    (tmp_path / "folder").mkdir()
    return tmp_path


STATIC: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "key": (["rule110-tiny", "sleep.pases=3"], ["sleep.pases = 3 (command line): unknown key; did you mean sleep.passes?"]),
    "section": (["rule110-tiny", "slep.window=3"], ["slep = {window: 3} (command line): unknown key; did you mean sleep?"]),
    "type": (["rule110-tiny", "train.batch=many"], ['train.batch = "many" (command line): expected a whole number']),
    "choice": (["rule110-tiny", "optim.name=muonn"], ['optim.name = "muonn" (command line): expected one of muon, adamw; did you mean muon?']),
    "word": (["rule110-tiny", "train.steps"], ['"train.steps" (command line): expected key=value, such as train.steps=100']),
    "recipe": (["rule110-tinny"], ['recipe "rule110-tinny": no such file', str(CONFIGS), "did you mean rule110-tiny"]),
    "folder": (["folder"], ['recipe folder: this is a folder; give a YAML file, or the name of one in configs/']),
    "include": (["lost.yaml"], ['include "model/ag-tinny.yaml" (lost.yaml:1): no such file', "did you mean model/ag-tiny.yaml?"]),
    "tabs": (["tabs.yaml"], ["tabs.yaml:2: not valid YAML: found character '\\t' that cannot start any token"]),
    "list": (["list.yaml"], ["list.yaml:1: a recipe is a mapping of sections, not [train]"]),
    "twice": (["twice.yaml", "data.sources=[{path: x}]"], ["twice.yaml:2: train is given twice, first at twice.yaml:1"]),
    "no steps": (["rule110-tiny", "train.steps=0"], ["train.steps = 0 (command line): must be at least 1"]),
    "steps and tokens": (["both.yaml", "data.sources=[{path: x}]"], ["train.steps = 2 (both.yaml:1): set exactly one of train.steps and train.tokens; =null takes back the other"]),
    "passes": (["rule110-tiny", "sleep.passes=0"], ["sleep.passes = 0 (command line): must be at least 1"]),
    "ramp": (["rule110-tiny", "sleep.passes={start: 1, stop: 4, steps: 5, stepz: 9}"], ["sleep.passes.stepz = 9 (command line): unknown key; did you mean sleep.passes.steps?"]),
    "micro": (["rule110-tiny", "train.micro=3"], ["train.micro = 3 (command line)", "train.batch = 64 (rule110-tiny.yaml:", "choose a micro-batch that divides the batch"]),
    "range": (["rule110-tiny", "sleep.loop.layers=[0,5]"], ["sleep.loop.layers = [0, 5] (command line)", '"AG" (model/ag-tiny.yaml:4)', "the stack has 2 blocks"]),
    "normed": (["rule110-tiny", "sleep.loop={layers: [0, 1], feedback: normed}"], ['sleep.loop.feedback = "normed" (command line)', "use sleep.loop.feedback=raw"]),
    "pipe": (["rule110-tiny", "mesh.pipe=3"], ["mesh.pipe = 3 (command line)", "the stack has 2 blocks; mesh.pipe can be 1 to 2"]),
    "tensor": (["rule110-tiny", "mesh.tensor=3"], ["mesh.tensor = 3 (command line)", "cannot be shared by 3 processes; mesh.tensor can be 1, 2"]),
    "zero": (["rule110-tiny", "mesh.zero=4"], ["mesh.zero = 4 (command line): must be 1, 2 or 3; 0 is not offered"]),
    "horizon": (["rule110-tiny", "sleep.gradient={passes: 1, windows: 2}"], ["sleep.gradient.windows = 2 (command line)", "use `all` or 1"]),
    "sources": (["rule110-tiny", "data.sources=[]"], ["data.sources = [] (command line): is empty; give at least one, such as [{path: "]),
}  # fmt: skip


@pytest.mark.parametrize("name", STATIC)
def test_wrong_recipes_are_told_in_one_line(sleeptrain: Any, recipes: Path, name: str) -> None:
    words, parts = STATIC[name]
    ran = sleeptrain("train", *words)
    assert (ran.status, ran.out) == (2, ""), ran.err
    assert all(part in ran.err for part in parts), ran.err
    assert ran.err.startswith("error: ") and ran.err.count("\n") == 1, ran.err
    assert not (recipes / "runs").exists()


def test_all_errors_are_told_at_once(sleeptrain: Any, recipes: Path) -> None:
    words = [
        "train.batch=many",
        "sleep.windw=3",
        "model.widht=5",
        "train.precision=fp8",
        "mesh.zero=4",
        "sleep.passes=0",
    ]
    ran = sleeptrain("train", "rule110-tiny", *words)
    assert ran.status == 2
    lines = ran.err.splitlines()
    assert len(lines) == len(words) and all(line.startswith("error: ") and "(command line)" in line for line in lines)
    for word in words:
        assert sum(f"{word.partition('=')[0]} = " in line for line in lines) == 1, word


def test_the_program_itself_ends_with_2_and_no_stack_trace(recipes: Path) -> None:
    for words in (
        ["train", "rule110-tiny", "sleep.pases=3"],
        ["eval", "nowhere"],
        ["generate", "nowhere", "--prompt", "x"],
    ):
        command = [sys.executable, "-m", "sleeptrain", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_explain_prints_every_value_with_its_source(sleeptrain: Any) -> None:
    ran = sleeptrain("train", "rule110-tiny", "--explain", "train.batch=32")
    assert (ran.status, ran.err) == (0, "")
    rows = [re.split(r" {2,}", line.strip()) for line in ran.out.splitlines()]
    table = {row[0]: tuple(row[1:]) for row in rows}
    assert table["train.batch"] == ("32", "command line")
    assert table["model.width"] == ("64", "model/ag-tiny.yaml:3")
    assert table["sleep.window"] == ("9", "rule110-tiny.yaml:5")
    assert table["optim.clip"][1] == "default"


SHORT = ["data.sources=[{path: data/rule110}]", "sleep.window=9", "train.steps=2", "train.batch=8", *TINY]


def recipe(*changes: str, run: str = "runs/none") -> list[str]:
    """A command line that trains something small."""
    return ["train", "small.yaml", *SHORT, f"run_dir={run}", *changes]


WRONG: dict[str, tuple[list[str], Sequence[str]]] = {
    "no data": (recipe("data.sources=[{path: data/nope}]"), ["data.sources = ", "data/nope", "(command line)", "does not exist", "sleeptrain data build "]),
    "data without shards": (recipe("data.sources=[{path: data/empty}]"), ["(command line)", "data/empty", "is empty", "sleeptrain data build "]),
    "data that is a file": (recipe("data.sources=[{path: afile}]"), ["(command line)", "afile"]),
    "data of another kind": (recipe("data.sources=[{path: documents}]"), ["(command line)", "documents", "manifest"]),
    "two that differ": (recipe("data.sources=[{path: data/rule110}, {path: text}]"), ["do not fit together", "data/rule110", "text", "build both"]),
    "split": (recipe("data.split=trian"), ["no split 'trian'", "train"]),
    "held-out split": (recipe("eval.every=1", "data.eval_split=valid"), ["no split 'valid'; it has test, train"]),
    "vocabulary": (recipe("model.vocab=2"), ["model.vocab = 2 (command line): the data in data/rule110 has 9 tokens", "null"]),
    "window": (recipe("sleep.window=4"), ["sleep.window = 4 (command line)", "windows of 9 tokens; set sleep.window=9"]),
    "trigger": (recipe("data.sources=[{path: text}]", "sleep.window=16", "sleep.passes=2"), ['sleep.loop.trigger = "context" (default)', "set sleep.loop.trigger=every"]),
    "processes": (recipe("mesh.data=2"), ["mesh.data = 2 (command line): 1 process was started", "torchrun --nproc_per_node 2", "mesh.data=0"]),
    "too large a batch": (recipe("train.batch=1000"), ["1000", "use a smaller batch or more data"]),
    "graphs": (recipe("train.cuda_graphs=true", "train.recompute=pass"), ["train.cuda_graphs = true needs a GPU, and torch sees none here; train.cuda_graphs=false"]),
    "kernels": (recipe("train.kernels=require_fused", "model.layers=AG"), ["train.kernels = require_fused, but ", "use train.kernels=auto to train in plain torch"]),
    "run folder is here": (recipe(run="."), ['run_dir = "." (command line): . is the current folder or above it; name a folder for this run, such as runs/first']),
    "run folder is above": (recipe(run=".."), ['run_dir = ".." (command line): .. is the current folder or above it']),
    "run folder is a file": (recipe(run="afile"), ['run_dir = "afile" (command line)', "cannot be written", "run_dir=..."]),
    "run folder below a file": (recipe(run="afile/run"), ['run_dir = "afile/run" (command line)', "cannot be written"]),
    "run folder in the void": (recipe(run="/proc/run"), ['run_dir = "/proc/run" (command line)', "cannot be written"]),
    "run of another configuration": (
        recipe("model.width=24", "optim.lr=1", "train.micro=4", run="runs/done"),
        ["runs/done holds a run of another configuration", "start another run with run_dir=...", "model.width = 24 (command line), was 16"],
    ),
    "budget of another batch": (
        recipe("train.batch=16", "train.steps=null", "train.tokens=100000", run="runs/done"),
        ["train.batch = 16 (command line), was 8: train.tokens = 100,000 is a number of steps of one batch", "train.tokens=null train.steps=..."],
    ),
    "weights of no run": (recipe("init_from=nowhere"), ['init_from = "nowhere" (command line): nowhere does not exist; give a run folder']),
    "weights of another model": (recipe("init_from=runs/done", "model.mlp.hidden=24"), ["does not fit the configuration: the shape of parameter layers.0.mlp.down.weight is [16, 16] in the checkpoint and [16, 24] in the configuration"]),
    "run with keys of DeepSpeed": (recipe("deepspeed.wall_clock_breakdown=true", run="runs/done"), ["deepspeed.wall_clock_breakdown = true (command line), was not given"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("train")
    text_data(made)
    sizes = {"strings": 2, "width": 8, "transitions": (1, 2), "variant": "dense", "holdout": 8}
    shards.build(make("rule110", sizes), made / "data" / "rule110", {"train": 64, "test": 16}, 0)
    (made / "data" / "empty").mkdir()
    (made / "afile").write_text("")
    (made / "small.yaml").write_text("optim: {schedule: {name: constant}}\n")
    return made


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Line]:
    """Every command line of this file that needs data, in one process."""
    lines = {"done": recipe(run="runs/done")}
    lines |= {name: words for name, (words, _) in WRONG.items()}
    lines |= {
        "auto": recipe("train.recompute=auto", run="runs/auto"),
        "auto, offload": recipe("train.recompute=auto", "train.offload=true", "train.steps=3", run="runs/auto"),
        "evaluated": recipe(
            "train.steps=5",
            "eval.every=2",
            "eval.samples=9",
            "checkpoint.every=1",
            "checkpoint.keep=1",
            "optim.lr=0.003",
            run="runs/evaluated",
        ),
        "further": recipe("train.steps=3", run="runs/done"),
        "again": recipe("train.steps=3", run="runs/done"),
        "shorter": recipe("train.steps=1", run="runs/done"),
        "diverged": recipe("train.steps=9", "optim.lr=1e30", "checkpoint.every=1", run="runs/diverged"),
        "own config": ["train", "runs/done/config.yaml", "train.steps=4", "train.micro=4", "optim.lr=1e-4"],
        "from weights": recipe("init_from=runs/done", run="runs/second"),
        "nothing left": recipe("optim.lr=0.5", run="runs/second"),
        "seeds": recipe("--seeds", "3,0", run="runs/seeds"),
        "one seed": recipe("train.seed=0", run="runs/alone"),
        "no seed": recipe("--seeds", "1,x", run="runs/none"),
        "one seed twice": recipe("--seeds", "1,1", run="runs/none"),
        "seeds in a run": recipe("--seeds", "1", run="runs/done"),
        "other letters": recipe("--seeds", "4,5", "--dry-run", run="runs/\N{SLEEPING FACE} é"),
        "several runs": ["generate", "runs/seeds", "--prompt", "0"],
        "two groups": ["eval", "runs/seeds", "--samples", "8", "--json"],
        "many passes": recipe("sleep.passes=200", "train.steps=1", run="runs/many"),
    }
    return run_named(lines, folder)


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_told_before_anything_is_written(ran: dict[str, Line], folder: Path, name: str) -> None:
    line, parts = ran[name], WRONG[name][1]
    assert (line.status, line.out) == (2, ""), line.err
    assert all(part in line.err for part in parts), line.err
    assert all(text.startswith("error: ") for text in line.err.splitlines()), line.err
    assert not (folder / "runs" / "none").exists()


def test_auto_says_and_saves_the_recompute_that_it_has_chosen(ran: dict[str, Line], folder: Path) -> None:
    """A run may continue with another one: nothing that is learned changes."""
    assert ran["auto"].status == 0 and "\n  memory  recompute none (auto) needs " in ran["auto"].err
    assert "this machine's free memory" in ran["auto"].err
    assert ran["auto, offload"].status == 0 and "continuing at step 2 of 3" in ran["auto, offload"].err
    (saved,) = (
        line for line in (folder / "runs" / "auto" / "config.yaml").read_text().splitlines() if "recompute:" in line
    )
    assert saved.split()[1] in ("block", "pass") and saved.endswith("# chosen by auto")


def test_what_may_change_is_not_complained_about(ran: dict[str, Line]) -> None:
    assert len(ran["run of another configuration"].err.splitlines()) == 2
    assert len(ran["run with keys of DeepSpeed"].err.splitlines()) == 2


def test_a_run_goes_on_and_is_left_alone_when_it_is_done(ran: dict[str, Line], folder: Path) -> None:
    assert [ran[name].status for name in ("done", "further", "again", "shorter")] == [0, 0, 0, 0]
    assert "runs/done: step 2 of 2, done" in ran["done"].err
    assert "runs/done: continuing at step 2 of 3" in ran["further"].err and "step 3 of 3, done" in ran["further"].err
    assert "step 3 of 3, done" in ran["again"].err
    assert "step 3 of 1, done" in ran["shorter"].err
    rows = [json.loads(line) for line in (folder / "runs" / "done" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]  # the last one by "own config"


def test_a_run_that_diverges_stops_as_a_failure_with_one_message(ran: dict[str, Line], folder: Path) -> None:
    line, run = ran["diverged"], folder / "runs" / "diverged"
    assert line.status == 1
    (message,) = [text for text in line.err.splitlines() if text.startswith("error: ")]
    assert "loss or gradient was not finite 3 times in a row" in message
    assert "lower optim.lr = 1e+30" in message and str(Path("runs/diverged/metrics.jsonl")) in message
    assert "traceback" not in line.err.lower()
    assert not list(run.glob("*.traceback.txt"))
    rows = [
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        for text in (run / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["skipped"] for row in rows[-3:]] == [True] * 3
    assert len(list((run / "checkpoints").glob("step-*"))) > 0


def test_a_run_says_what_it_trains_before_its_first_step(ran: dict[str, Line]) -> None:
    lines = [line.strip() for line in ran["done"].err.splitlines()]
    device, model, data, epochs, step = lines[1:6]
    assert lines[0] == "runs/done: small.yaml"
    assert device.startswith("device  CPU (") and device.endswith("1 process")
    assert re.fullmatch(r"model   [\d,]+ parameters in 4 blocks \(AGAG\), fp32", model)
    assert data == "data    data/rule110: 64 samples of 36 tokens in 4 windows"
    assert epochs == "epochs  0.25 in the whole run"
    assert step == "step    8 samples, 288 tokens, N = 1, adamw, recompute none; 2 steps"


def test_a_start_says_how_long_each_phase_took(ran: dict[str, Line]) -> None:
    timed = [line.strip() for line in ran["done"].err.splitlines() if re.search(r", \d+\.\d s$", line)]
    phases = ["mesh    and its groups", "weights drawn", "kernels plain torch", "engine  and optimizer built"]
    assert [line.rsplit(", ", 1)[0] for line in timed[:-1]] == phases
    assert re.fullmatch(r"first   step \d+\.\d s after the process began, \d+\.\d s", timed[-1])
    continued = [line.strip() for line in ran["further"].err.splitlines()]
    assert any(line.startswith("weights loaded, ") for line in continued)


def test_a_run_evaluates_and_keeps_its_best_checkpoint(ran: dict[str, Line], folder: Path) -> None:
    """At steps 2, 4 and the last one."""
    run = folder / "runs" / "evaluated"
    losses = {row["step"]: row["eval_loss"] for row in read_metrics(run / "metrics.jsonl") if "eval_loss" in row}
    assert list(losses) == [2, 4, 5]
    best = min(losses, key=lambda step: losses[step])
    held_out = [line for line in ran["evaluated"].err.splitlines() if "held out: " in line]
    assert [line.split("  held out: ")[0] for line in held_out] == [f"evaluated  step {step}/5" for step in losses]
    assert re.search(
        r"held out: loss \d\.\d{4}  accuracy \d\.\d{3} \(1: \d\.\d{3}, 2: \d\.\d{3}\)  \d+\.\d s$", held_out[0]
    )
    last = ran["evaluated"].err.splitlines()[-1]
    assert (
        last
        == f"runs/evaluated: the best evaluated checkpoint is runs/evaluated/checkpoints/step-0000000{best}, loss {losses[best]:.4f}"
    )
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == sorted(
        {f"step-0000000{best}", "step-00000005"}
    )
    assert "the best" not in ran["done"].err
    named = run / "checkpoints" / "best"
    assert find_checkpoint(named) == (run, run / "checkpoints" / f"step-0000000{best}")
    with pytest.raises(UserError, match=r"no checkpoint there was evaluated; train with eval\.every"):
        find_checkpoint(folder / "runs/done/checkpoints/best")


def test_the_config_of_a_run_continues_it(ran: dict[str, Line], folder: Path) -> None:
    """Its data is named by absolute paths, so that commands work from every folder."""
    assert ran["own config"].status == 0, ran["own config"].err
    config = folder / "runs" / "done" / "config.yaml"
    resolved = load_recipe(str(config))
    assert resolved.value.folder(str(config)) == config.parent
    assert resolved.sources["run_dir"] == f"the folder of {config}"
    assert [source.path for source in resolved.value.data.sources] == [str(folder / "data" / "rule110")]
    moved = load_recipe(str(config), ["run_dir=elsewhere"])
    assert moved.value.folder(str(config)) == Path("elsewhere")


def test_what_a_continuation_changes_is_announced(ran: dict[str, Line]) -> None:
    """A smaller micro-batch changes nothing that is learned. The rate is that of the command line."""
    lines = [line.strip() for line in ran["own config"].err.splitlines()]
    at = lines.index("runs/done: continuing at step 3 of 4")
    assert lines[at + 1 : at + 4] == [
        "optim.lr = 0.0001 (command line), was 0.001", "train.steps = 4 (command line), was 1",
        "the learning rate jumps from 0.001 in step 3 to 0.0001 in step 4",
    ]  # fmt: skip
    assert "micro" not in ran["own config"].err
    assert "optim.lr = 0.5 (command line), was 0.001" in ran["nothing left"].err
    assert "jumps" not in ran["nothing left"].err, "there is no further step"


def test_a_new_run_starts_from_the_weights_of_another(ran: dict[str, Line], folder: Path) -> None:
    line = ran["from weights"]
    assert line.status == 0, line.err
    assert "runs/second: starting from the weights of runs/done/checkpoints/step-0000000" in line.err
    first, begun = (
        json.loads((folder / "runs" / run / "metrics.jsonl").read_text().splitlines()[0]) for run in ("done", "second")
    )
    assert begun["step"] == 1 and begun["loss"] < first["loss"]


def test_several_seeds_are_trained_one_after_the_other(ran: dict[str, Line], folder: Path) -> None:
    assert ran["seeds"].status == 0, ran["seeds"].err
    shown = [line for line in ran["seeds"].err.splitlines() if "done" in line]
    assert shown == ["runs/seeds/seed-3: step 2 of 2, done", "runs/seeds/seed-0: step 2 of 2, done"]
    assert ran["no seed"].status == 2 and "'x' is not a whole number of at least 0" in ran["no seed"].err

    assert (ran["one seed twice"].status, ran["one seed twice"].err) == (
        2,
        "error: --seeds 1,1: a seed is given twice\n",
    )
    assert (
        ran["seeds in a run"].status == 2
        and "runs/done holds a run, and --seeds would put" in ran["seeds in a run"].err
    )
    assert "holds several runs; name one of runs/seeds/seed-0, runs/seeds/seed-3" in ran["several runs"].err
    assert "in runs/\N{SLEEPING FACE} é/seed-4." in ran["other letters"].out, ran["other letters"].err
    assert "After seed 4 the command would train seed 5, in" in ran["other letters"].out
    body = json.loads(ran["two groups"].out)
    assert [run["seed"] for run in body["runs"]] == [0, 3] and [group["seeds"] for group in body["groups"]] == [[0, 3]]

    def losses(run: str) -> list[float]:
        rows = (folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(row)["loss"] for row in rows]

    assert losses("seeds/seed-0") == losses("alone") != losses("seeds/seed-3")


def test_home_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    value = load_recipe(
        "rule110-tiny", ["run_dir=~/runs/x", "data.sources=[{path: ~/data}]", "data.cache=~/cache"]
    ).value
    assert value.folder("rule110-tiny") == Path("/home/me/runs/x")
    assert (value.data.sources[0].path, value.data.cache) == ("/home/me/data", "/home/me/cache")


def test_many_passes_are_only_slow(ran: dict[str, Line], folder: Path) -> None:
    assert ran["many passes"].status == 0, ran["many passes"].err
    (row,) = (folder / "runs" / "many" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(row)["passes"] == 200


def test_a_folder_in_which_no_step_was_made_takes_other_values(tmp_path: Path) -> None:
    """A run that failed on its data, say, which are then named rightly."""
    from sleeptrain.recipe import check_run

    (tmp_path / "config.yaml").write_text(load_recipe("rule110-tiny", ["optim.weight_decay=0.5"]).to_yaml())
    check_run(load_recipe("rule110-tiny"), tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    check_run(load_recipe("rule110-tiny"), tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"optim.weight_decay = 0.1 .*, was 0.5"):
        check_run(load_recipe("rule110-tiny"), tmp_path)


def test_a_run_from_before_compile_was_auto_continues(tmp_path: Path) -> None:
    """Its config.yaml says true or false, and its recipe now says auto, or the other way round; neither changes what is learned."""
    from sleeptrain.recipe import check_run
    from sleeptrain.recipe.continuation import announced_changes

    now = load_recipe("rule110-tiny")
    assert (now.value.train.compile, now.value.train.cuda_graphs) == ("auto", "auto")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    for words in (["train.compile=false", "train.cuda_graphs=false"], ["train.compile=true"]):
        old = load_recipe("rule110-tiny", words)
        (tmp_path / "config.yaml").write_text(old.to_yaml())
        assert load_recipe(str(tmp_path / "config.yaml")).value.train == old.value.train
        check_run(now, tmp_path)
        assert announced_changes(now, tmp_path)[1] == []
    (tmp_path / "config.yaml").write_text(now.to_yaml())
    assert load_recipe(str(tmp_path / "config.yaml")).value.train == now.value.train
    check_run(load_recipe("rule110-tiny", ["train.compile=true"]), tmp_path)
