"""The report of a study: means and intervals over seeds, equal budgets, accuracy by depth, tuned rates, laws, missing runs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from sleeptrain.recipe.load_trained import parameter_shapes
from sleeptrain.study.chart import INKS, draw_svg
from sleeptrain.study.config import load_study
from sleeptrain.study.points import Point, make_points
from sleeptrain.study.results import read_results
from sleeptrain.study.study_report import StudyReport
from tests.study.folders import row, write_run
from tests.study.test_curves import pictures, texts

Rows = Callable[[Point], Iterator[dict[str, Any]]]


def finish(point: Point, rows: Any, measured: dict[int, dict[int, float]] | None = None) -> None:
    """Leave the run folder of a point that is done; `measured`: accuracy by label and passes."""
    config = point.resolved.to_yaml().replace("vocab: null", "vocab: 7")
    folder = write_run(point.folder, rows, config)
    (folder / "outcome.json").write_text(json.dumps({"state": "done", "step": 4}))
    (folder / "manifest.json").write_text("{}")
    if measured is not None:
        assert point.eval_command is not None
        runs = [
            {
                "passes": n,
                "loss": 1.0,
                "by_value": {str(v): {"accuracy": a, "exact": a / 2} for v, a in by_value.items()},
            }
            for n, by_value in measured.items()
        ]
        report = {
            "label": "t", "baselines": {"2": {"chance": 0.5, "majority": 0.6}, "4": {"chance": 0.5, "majority": 0.55}},
            "command": shlex.join(point.eval_command[:-2]), "runs": [{"step": 4, "measured": runs}],
        }  # fmt: skip
        (folder / "evaluation").mkdir()
        (folder / "evaluation" / "report.json").write_text(json.dumps(report))


def study(folder: Path, text: str) -> list[Point]:
    (folder / "s.yaml").write_text(text)
    return make_points(load_study("s.yaml").value, "s.yaml")


def report_of(sleeptrain: Any) -> dict[str, Any]:
    ran = sleeptrain("study", "s.yaml", "--report", "--json")
    assert ran.status == 0, ran.err
    return json.loads(ran.out)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)


def test_seeds_budgets_and_depth(tmp_path: Path, sleeptrain: Any) -> None:
    points = study(
        tmp_path,
        "recipe: rule110-tiny\nevaluate: {passes: [2]}\naxes:\n"
        "  t:\n    2: {'data.sources': [{path: two}]}\n    4: {'data.sources': [{path: four}]}\n"
        "  sleep.passes: [1, 2]\n  train.seed: [0, 1]\n"
        "published: [{setting: {t: 4, sleep.passes: 2}, value: 'above 0.3', source: a paper}]\n",
    )
    for point in points[:-1]:
        passes, seed, t = (int(point.labels[axis]) for axis in ("sleep.passes", "train.seed", "t"))
        # Passes cost in proportion; held-out losses fall by 1 a step from a start that depends on the seed.
        rows = [
            row(
                i, eval_loss=9.0 - i - 0.5 * passes + seed * seed, flops_per_second=500.0 * passes, seconds=1.0 * passes
            )
            for i in (1, 2, 3, 4)
        ]
        own = {t: 0.5 + 0.1 * passes + 0.01 * seed}
        finish(point, rows, {passes: own} | ({2: own} if passes == 1 else {}))
    write_run(points[-1].folder, [row(1)], state="running")
    found = report_of(sleeptrain)
    assert found["missing"] == [f"{points[-1].folder}: running at step 1"] and len(found["results"]) == 7
    assert [s["seeds"] for s in found["settings"]] == [[0, 1], [0, 1], [0, 1], [0]]
    accuracies = {line["line"]: line["accuracy"] for line in found["depth"]}
    assert accuracies["passes 1: N=1"] == {"2": [0.6, 0.61], "4": [0.6, 0.61]}
    assert set(accuracies) == {"passes 1: N=1", "passes 1: N=2*", "passes 2: N=2"}
    tokens, flops, seconds = (e for e in found["effects"] if e["more"]["t"] == "2")
    # At equal tokens both are read at the end. Two passes have used the FLOPs of the other run after one step, its time after two.
    assert (tokens["equal"], tokens["amount"], tokens["difference"], tokens["read_at"]) == ("tokens", 400, -0.5, [1, 1])
    assert tokens["interval"] == [-0.5, -0.5]
    assert (flops["amount"], flops["difference"], flops["read_at"]) == (4 * 500.0, pytest.approx(7.0 - 4.5), [0.25, 1])
    assert (seconds["amount"], seconds["difference"], seconds["read_at"]) == (4.0, pytest.approx(6.0 - 4.5), [0.5, 1])


def test_the_page_of_means_and_intervals(tmp_path: Path, sleeptrain: Any) -> None:
    points = study(
        tmp_path,
        "recipe: rule110-tiny\naxes: {model.layers: [AG, GA], train.seed: [0, 1, 2]}\nrates: {optim.lr: {tune: [0.1, 0.2]}}\n",
    )
    losses = {("AG", "0.1"): (1.0, 1.2, 1.1), ("AG", "0.2"): (2.0, 2.0, 2.0), ("GA", "0.1"): (3.0, 3.0, 3.0), ("GA", "0.2"): (0.5, 0.6, 0.7)}  # fmt: skip
    for point in points:
        value = losses[point.labels["model.layers"], point.labels["optim.lr"]][int(point.labels["train.seed"])]
        finish(point, [row(1, eval_loss=value)])
    found = report_of(sleeptrain)
    assert [(s["axes"]["model.layers"], s["axes"]["optim.lr"]) for s in found["settings"]] == [
        ("AG", "0.1"),
        ("GA", "0.2"),
    ]
    spread = student.ppf(0.975, 2) * np.std([1.0, 1.2, 1.1], ddof=1) / np.sqrt(3)
    assert found["loss"] == "held out" and found["settings"][0]["loss"] == pytest.approx(1.1)
    assert found["settings"][0]["interval"] == pytest.approx([1.1 - spread, 1.1 + spread])
    folder = tmp_path / "runs" / "study" / "s"
    page, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert (
        "| layers GA, lr 0.2 | 3 | 0.6 [0.3516, 0.8484] | taken |" in markdown
        and "| layers GA, lr 0.1 | 3 | 3 [3, 3] |  |" in markdown
    )
    [chart, _] = pictures(page)
    assert {"Loss by model.layers", "AG", "GA", "final loss (nats per target)", "lr 0.1", "lr 0.2"} <= texts(chart)


def test_a_law_from_runs_of_several_sizes(tmp_path: Path, sleeptrain: Any) -> None:
    points = study(
        tmp_path,
        "recipe: rule110-tiny\naxes:\n  model.width: [32, 64, 128, 256]\n  train.steps: [10, 100, 1000]\n  train.seed: [0, 1]\n"
        "set: {model.vocab: 7}\nextrapolate: {large: {params: 1.0e+8, tokens: 1.0e+7}}\n",
    )
    noise = np.random.default_rng(0)
    for point in points:
        recipe = point.resolved.value
        params = sum(np.prod(shape) for shape in parameter_shapes(recipe).values())
        tokens = 1000.0 * (recipe.train.steps or 0)
        loss = (0.5 + 60 / params**0.4 + 40 / tokens**0.3) * np.exp(0.002 * noise.standard_normal())
        finish(point, [row(1, eval_loss=loss, tokens=tokens, flops_per_second=6 * params * tokens, seconds=1.0)])
    [law] = report_of(sleeptrain)["laws"]
    for name, true in {"E": 0.5, "alpha": 0.4, "beta": 0.3}.items():
        low, high = law["constants"][name]["interval"]
        assert low <= true <= high, name
    low, high = law["extrapolated"]["large"]["interval"]
    assert low <= 0.5 + 60 / 1e8**0.4 + 40 / 1e7**0.3 <= high
    assert law["flops_per_param_token"] == pytest.approx(6)
    assert [set(best) for best in law["optima"]] == [{"flops", "params", "tokens"}] * 3
    assert "times the largest run" in (tmp_path / "runs" / "study" / "s" / "report.md").read_text()


def test_a_rate_at_which_seeds_fail_is_not_the_best(tmp_path: Path, sleeptrain: Any) -> None:
    points = study(
        tmp_path, "recipe: rule110-tiny\naxes: {train.seed: [0, 1]}\nrates: {optim.lr: {tune: [0.1, 0.9]}}\n"
    )
    for point in points[:3]:
        finish(point, [row(1, eval_loss=1.0 if point.labels["optim.lr"] == "0.1" else 0.5)])
    write_run(points[3].folder, [row(1)], state="failed")
    found = report_of(sleeptrain)
    assert [(s["axes"], s["seeds"]) for s in found["settings"]] == [({"optim.lr": "0.1"}, [0, 1])]
    assert found["missing"] == [f"{points[3].folder}: failed at step 1"]


def test_runs_of_another_configuration_are_named_and_left_out(tmp_path: Path, sleeptrain: Any) -> None:
    text = "recipe: rule110-tiny\naxes: {train.seed: [0, 1, 2]}\nset: {train.steps: 4, log.every: 2}\n"
    first, second, third = study(tmp_path, text)
    for point in (first, second, third):
        finish(point, [row(i) for i in (1, 2, 3, 4)])
    config = (second.folder / "config.yaml").read_text()
    (second.folder / "config.yaml").write_text(config.replace("window: 9", "window: 18"))
    study(tmp_path, text.replace("log.every: 2", "log.every: 3"))
    found = report_of(sleeptrain)
    [told] = found["missing"]
    assert found["settings"][0]["seeds"] == [0, 2], "how often a run logs changes nothing that is learned"
    assert told.startswith(f"{second.folder}: done otherwise than the study asks now: sleep.window = ")
    study(tmp_path, text.replace("steps: 4", "steps: 8"))
    found = report_of(sleeptrain)
    assert found["results"] == [] and "train.steps = 8 (the study), was 4" in found["missing"][0]


def test_runs_that_were_not_measured_are_named(tmp_path: Path, sleeptrain: Any) -> None:
    points = study(
        tmp_path, "recipe: rule110-tiny\nevaluate: {}\naxes: {sleep.passes: [1, 2, 3], train.seed: [0, 1]}\n"
    )
    for point in points:
        passes, seed = int(point.labels["sleep.passes"]), int(point.labels["train.seed"])
        without = passes == 3 or (passes, seed) == (2, 0)
        finish(point, [row(1)], None if without else {passes: {2: 0.5 + 0.1 * seed}})
    found = report_of(sleeptrain)
    assert [line.partition(":")[0] for line in found["missing"]] == [str(points[i].folder) for i in (2, 4, 5)]
    assert "not measured by `sleeptrain eval`" in found["missing"][0]
    assert {line["line"]: line["accuracy"] for line in found["depth"]} == {
        "passes 1: N=1": {"2": [0.5, 0.6]},
        "passes 2 (1 of 2 seeds): N=2": {"2": [0.6]},
    }


def test_curves_of_held_out_and_of_training_losses_are_not_compared(tmp_path: Path, sleeptrain: Any) -> None:
    """A run of half the steps was evaluated once, at its end."""
    longer, shorter = study(
        tmp_path,
        "recipe: rule110-tiny\naxes: {size: {a: {sleep.passes: 1, train.steps: 8}, b: {sleep.passes: 2, train.steps: 4}}}\n",
    )
    for point, steps in ((longer, 8), (shorter, 4)):
        finish(point, [row(i, loss=2.0, **({"eval_loss": 9.0} if i % 4 == 0 else {})) for i in range(1, steps + 1)])
    for effect in report_of(sleeptrain)["effects"]:
        assert (effect["difference"], effect["loss"]) == (0.0, "training")


def test_losses_that_do_not_depend_on_the_size_have_no_law(tmp_path: Path, sleeptrain: Any) -> None:
    points = study(
        tmp_path,
        "recipe: rule110-tiny\naxes:\n  model.width: [32, 64, 128]\n  train.steps: [10, 100, 1000]\nset: {model.vocab: 7}\n"
        "extrapolate: {large: {params: 1.0e+8, tokens: 1.0e+7}}\n",
    )
    noise = np.random.default_rng(0)
    for point in points:
        tokens, loss = 1000.0 * (point.resolved.value.train.steps or 0), 2.0 + 1e-3 * noise.standard_normal()
        finish(point, [row(1, eval_loss=loss, tokens=tokens, flops_per_second=tokens, seconds=1.0)])
    [law] = report_of(sleeptrain)["laws"]
    assert law["why_not"].startswith("the losses do not determine ") and "constants" not in law


def test_baselines_of_several_data_sets_are_shown_where_they_are_the_same(tmp_path: Path, sleeptrain: Any) -> None:
    points = study(
        tmp_path,
        "recipe: rule110-tiny\nevaluate: {}\naxes:\n  rows:\n    few: {'data.sources': [{path: few}]}\n    many: {'data.sources': [{path: many}]}\n",
    )
    for point, majority in zip(points, (0.6, 0.9), strict=True):
        finish(point, [row(1)], {2: {2: 0.7, 4: 0.8}})
        report = point.folder / "evaluation" / "report.json"
        found = json.loads(report.read_text())
        found["baselines"]["2"]["majority"] = majority
        report.write_text(json.dumps(found))
    assert report_of(sleeptrain)["depth"]
    lines = (tmp_path / "runs" / "study" / "s" / "report.md").read_text().splitlines()
    assert "| (chance) | 0.500 | 0.500 |" in lines and "| (majority) | – | 0.550 |" in lines


def test_a_line_over_an_axis_goes_from_left_to_right(tmp_path: Path) -> None:
    points = study(tmp_path, "recipe: rule110-tiny\naxes: {sleep.passes: [4, 1, 2]}\n")
    for point in points:
        finish(point, [row(1, eval_loss=float(point.labels["sleep.passes"]))])
    report = StudyReport(load_study("s.yaml").value, "s", read_results(points), 3)
    chart, *_ = report.page().charts
    assert list(chart.lines[0].x) == list(chart.lines[0].y) == [1.0, 2.0, 4.0]


def test_values_that_are_no_numbers_are_points_without_a_line(tmp_path: Path) -> None:
    points = study(tmp_path, "recipe: rule110-tiny\naxes: {model.layers: [AG, GA], sleep.passes: [1, 2]}\n")
    for point in points:
        finish(point, [row(1, eval_loss=1.0)])
    names, numbers, *_ = StudyReport(load_study("s.yaml").value, "s", read_results(points), 3).page().charts
    assert {line.style for line in names.lines} == {"points"} and {line.style for line in numbers.lines} == {"marks"}
    line = rf'<g id="line2d_\d+">\s*<path d="M [^"]*L [^"]*" clip-path="[^"]*" style="fill: none; stroke: {INKS[0].lower()}'
    assert re.search(line, draw_svg(numbers)) and not re.search(line, draw_svg(names))


def test_a_task_with_one_value_of_its_label_has_a_table_and_no_chart(tmp_path: Path, sleeptrain: Any) -> None:
    (point,) = study(tmp_path, "recipe: rule110-tiny\nevaluate: {}\naxes: {train.seed: [0]}\n")
    finish(point, [row(1)], {2: {4: 0.8}})
    assert report_of(sleeptrain)["depth"]
    markdown = (tmp_path / "runs" / "study" / "s" / "report.md").read_text()
    assert "| accuracy at t = | 4 |" in markdown and "Rate of right answers" not in markdown


def test_names_below_an_axis_do_not_overlap(tmp_path: Path) -> None:
    """Six places share the width of the chart, so that a long name is broken into lines. One line alone needs no legend."""
    names = ["N=1", "N=4, raw", "N=4, normed", "N=4, embeddings", "N=4, gated", "N=1 at the FLOPs of N=4"]
    steps = ", ".join(f'"{name}": {{sleep.passes: {i}}}' for i, name in enumerate(names, 1))
    points = study(tmp_path, f"recipe: rule110-tiny\naxes: {{arm: {{{steps}}}}}\n")
    for point in points:
        finish(point, [row(1, eval_loss=1.0)])
    chart, *_ = StudyReport(load_study("s.yaml").value, "s", read_results(points), 3).page().charts
    written = re.findall(r"<text[^>]*>([^<]*)</text>", draw_svg(chart))
    assert "N=4," in written and "embeddings" in written and "FLOPs of" in written
    assert max(map(len, written[: written.index("arm")])) <= 11
    assert [line.label for line in chart.lines] == [""]
