"""Training on a mixture: loss, rows and tokens by source, held-out sets by name, and a run that goes on in a schedule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sleep_data.build import build
from sleep_data.tasks import make
from sleeptrain.data.batch import Batch
from sleeptrain.data.evaluation import Evaluation
from sleeptrain.data.reader import Reader
from sleeptrain.evaluate.runs import evaluate
from sleeptrain.train.job import Job
from tests.distributed import run
from tests.train.jobs import recipe_file, trained

NAMES = ("code", "web", "notes")
SCHEDULE = ("[[0, 0.7], [6, 0.1]]", "0.3", "[[2, 0], [6, 0.4]]")
COMMON = [
    "sleep.window=16", "sleep.passes=2", "sleep.loop.trigger=every", "train.batch=8", "train.micro=2", "train.steps=6",
    "checkpoint.every=2", "eval.every=3", "optim.lr=0.003", "optim.schedule.name=constant",
]  # fmt: skip


def text(folder: Path, seed: int, documents: int) -> None:
    """Documents of letters of their own, of very different lengths."""
    source = folder / "documents"
    source.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for i in range(documents):
        length = int(torch.randint(5, 90, (1,), generator=generator))
        letters = torch.randint(97 + 8 * seed, 105 + 8 * seed, (length,), generator=generator)
        (source / f"{i}.txt").write_text("".join(map(chr, letters.tolist())))
    task = make("text", {"paths": [str(source)], "block": 384, "holdout": 6})
    build(task, folder / "text", {"train": None, "test": None}, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("mixtures")
    for seed, (name, documents) in enumerate(zip(NAMES, (40, 25, 12), strict=True)):
        text(made / name, seed, documents)
    recipe_file(made)
    return str(made)


def sources(folder: str) -> str:
    parts = (
        f"{{path: {folder}/{name}/text, name: {name}, proportion: {share}}}"
        for name, share in zip(NAMES, SCHEDULE, strict=True)
    )
    return f"data.sources=[{', '.join(parts)}]"


def training(folder: str, name: str, more: list[str]) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """Rows of metrics, and the losses by source that the first step should have where a process holds the whole model."""
    expected: dict[str, float | None] = {}

    def spoil(setup: Any) -> None:
        if setup.step == 0 and setup.job.mesh.pipe * setup.job.mesh.tensor == 1:
            expected.update(first_losses(setup))

    rows, _ = trained(Path(folder), name, Path(folder), [*COMMON, sources(folder), *more], spoil=spoil)
    return rows, expected


def whole_steps(job: Job, steps: int) -> Iterator[Batch]:
    """Global batches, read by one rank."""
    reader = Reader(job.data, micro=job.train.batch, seed=job.train.seed, window=job.sleep.window)
    for _ in range(steps):
        yield from reader.next_step()
    reader.close()


def first_losses(setup: Any) -> dict[str, float | None]:
    """Mean losses of the rows of each source in the first step, each source run alone by the public model."""
    [batch] = whole_steps(setup.job, 1)
    losses: dict[str, float | None] = {}
    for number, name in enumerate(setup.job.data.names):
        rows = (batch.sources == number).nonzero()[:, 0]
        losses[name] = None
        if len(rows):
            tokens, targets, starts = batch.tokens[rows], batch.targets[rows], batch.starts[rows]
            valid = tokens != setup.context.pad
            with torch.no_grad():
                loss = setup.context.model(tokens, targets, sleep=setup.job.sleep, starts=starts, valid=valid)
            losses[name] = float(loss)
    return losses


@pytest.fixture(scope="module")
def alone(folder: str) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    return run(training, 1, folder, "alone", [], timeout=300)[0]


def test_the_loss_by_source_is_that_of_its_rows_alone(alone: Any) -> None:
    rows, expected = alone
    found = rows[0]["loss_by_source"]
    assert list(found) == list(NAMES) and found["notes"] is None is expected["notes"]
    assert found == pytest.approx(expected, rel=1e-5)
    assert found["code"] != pytest.approx(found["web"], rel=1e-3)


def test_rows_and_real_tokens_by_source_are_those_of_the_batches(folder: str, alone: Any) -> None:
    """Counted from the rows that a reader of its own finds, and from all rows of each source read on their own."""
    rows, _ = alone
    job = load_job(folder)
    seen, tokens = dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0)
    sizes = {name: read_alone(job, i)[0] for i, name in enumerate(NAMES)}
    real = torch.cat([read_alone(job, i)[1] for i in range(len(NAMES))])
    assert int((real < 48).sum()) == len(NAMES), "the last row of every source is padded"
    for row, batch in zip(rows, whole_steps(job, 6), strict=True):
        for source, number in zip(batch.sources.tolist(), batch.ids.tolist(), strict=True):
            seen[NAMES[source]] += 1
            tokens[NAMES[source]] += int(real[number])
        assert row["rows_by_source"] == seen and row["tokens_by_source"] == tokens
        assert row["epochs_by_source"] == {name: seen[name] / sizes[name] for name in NAMES}
    assert [row["rows_by_source"]["notes"] > 0 for row in rows] == [False, False, False, True, True, True]


def load_job(folder: str) -> Job:
    from sleeptrain.recipe import load_recipe
    from tests.train.jobs import SMALL

    return load_recipe(recipe_file(Path(folder)), [*SMALL, *COMMON, sources(folder)]).value


def read_alone(job: Job, source: int) -> tuple[int, torch.Tensor]:
    """The number of rows of a source, and the real tokens of each."""
    data = replace(job.data, sources=[replace(job.data.sources[source], proportion=None)])
    one = Evaluation(data, micro=1, split="train", window=job.sleep.window)
    return one.samples, torch.tensor([int((batch.tokens != one.manifest.pad).sum()) for batch in one])


def test_held_out_sets_are_reported_by_name(folder: str, alone: Any) -> None:
    """By training as by the command, on the whole and on the data of every source alone."""
    last = alone[0][-1]
    (result,), _ = evaluate([f"{folder}/alone"], None, None, 8, None, quiet=True)
    measured = result.measured[0]
    assert list(last["eval_loss_by_source"]) == list(NAMES) == list(measured.by_source)
    total = 0.0
    for name in NAMES:
        (single,), _ = evaluate([f"{folder}/alone"], None, f"{folder}/{name}/text", 8, None, quiet=True)
        loss, accuracy = measured.source_loss(name), measured.source_accuracy(name)
        assert last["eval_loss_by_source"][name] == pytest.approx(loss, rel=1e-5)
        assert last["eval_accuracy_by_source"][name] == pytest.approx(accuracy)
        assert loss == pytest.approx(single.measured[0].loss, rel=1e-5)
        total += single.measured[0].nll
    assert last["eval_loss"] == pytest.approx(total / last["eval_targets"], rel=1e-5)


def test_every_field_of_the_rows_is_in_the_document(alone: Any) -> None:
    """docs/metrics.md names each in backquotes; the last row has those of several sources and of an evaluation, too."""
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert "eval_accuracy_by_source" in alone[0][-1]
    assert not [field for field in alone[0][-1] if f"`{field}`" not in page]


BY_SOURCE = ("rows_by_source", "tokens_by_source", "epochs_by_source")


def test_a_run_that_was_stopped_goes_on_in_the_schedule(folder: str, alone: Any) -> None:
    run(training, 1, folder, "stopped", ["train.steps=3"], timeout=300)
    rows, _ = run(training, 1, folder, "stopped", [], timeout=300)[0]
    for key in ("loss", "loss_by_source", *BY_SOURCE):
        assert [row[key] for row in rows] == [row[key] for row in alone[0]], key


LAYOUTS = {
    "data": (2, ["mesh.zero=1"]),
    "pipe": (2, ["mesh.pipe=2", "train.recompute=window"]),
    "tensor": (2, ["mesh.tensor=2", "model.attention.kv_heads=2", "model.deltanet.key_heads=2", "optim.name=adamw"]),
}


@pytest.mark.parametrize(
    "layout", ["data", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pipe", "tensor"))]
)
def test_every_layout_has_the_same_losses_and_counts(folder: str, alone: Any, layout: str) -> None:
    world, more = LAYOUTS[layout]
    rows, _ = run(training, world, folder, layout, more, timeout=300)[0]
    expected = alone[0]
    if layout == "tensor":
        expected, _ = run(training, 1, folder, "heads", more[1:], timeout=300)[0]
    for row, one in zip(rows, expected, strict=True):
        assert all(row[key] == one[key] for key in BY_SOURCE)
        assert row["loss_by_source"] == pytest.approx(one["loss_by_source"], rel=1e-4)
        for key in ("eval_loss_by_source", "eval_accuracy_by_source"):
            assert row.get(key) == pytest.approx(one.get(key), rel=1e-4)
