"""Reports: runs by recipe and seed, comparisons with and without verdict, table, Markdown and plot."""

import dataclasses
import json
import math

import pytest

from sleeptrain.data import Data, Source
from sleeptrain.data.manifest import Manifest
from sleeptrain.evaluate.compare import compare
from sleeptrain.evaluate.measure import Measurement, Tally
from sleeptrain.evaluate.report import markdown, plot_accuracy, print_report, table_rows, to_json, write
from sleeptrain.evaluate.seeds import RunResult, group_by_recipe
from sleeptrain.model.config import DeltaNetConfig, Model
from sleeptrain.program import Sleep
from sleeptrain.recipe.recipe import Recipe
from sleeptrain.train.config import Train

MANIFEST = Manifest(
    task="toy", vocab=8, pad=99, query=None, length=12, windows=(), tokenizer={}, label="t", label_values=(1, 2),
    labels={"t": "transitions"}, splits={}, hash="", body={},
    baselines={"1": {"chance": 0.5, "majority": 0.6, "exact_chance": 0.25, "exact_majority": 0.36}},
)  # fmt: skip


def run_result(name, passes, right, *, seed=0, tokens=1000, seconds=10.0, horizon=64, data="d", **train):
    """A run that gives `right` of 500 answers of two tokens at t=1, and half of them at t=2."""
    by_value = {
        1: Tally({bytes([i % 256, i // 256]): [2, 2 * (i < right), 1, i < right, 1.0] for i in range(500)}),
        2: Tally({bytes([i % 256, i // 256]): [2, 1, 1, 0, 1.0] for i in range(500)}),
    }
    recipe = Recipe(
        model=Model(deltanet=DeltaNetConfig(horizon=horizon)), sleep=Sleep(passes=passes), train=Train(seed=seed, **train)
    )  # fmt: skip
    measured = [Measurement(passes, 500, 700.0, 2000, by_value, 0.5, 1.0, 0.25)]
    return RunResult(name, f"runs/{name}/{seed}", 10, tokens, seconds, recipe, data, measured)


def seeds(name, passes, rights, **options):
    return [run_result(name, passes, right, seed=seed, **options) for seed, right in enumerate(rights)]


def lines(*runs):
    return compare(group_by_recipe(runs), MANIFEST)


def test_runs_that_differ_in_the_seed_or_in_what_is_not_learned_are_one_group():
    one, other = run_result("a", 1, 100), run_result("a", 1, 120, seed=1, recompute="block", micro=2)
    assert [group.seeds for group in group_by_recipe([one, other])] == [[0, 1]]
    for different in (
        run_result("b", 2, 100, seed=1), run_result("b", 1, 100, seed=1, batch=7), run_result("b", 1, 100),
        run_result("b", 1, 100, seed=1, horizon=65), dataclasses.replace(other, step=11),
        run_result("b", 1, 100, seed=1, data="e"),
    ):  # fmt: skip
        assert [group.seeds for group in group_by_recipe([one, different])] == [[0], [different.seed]]


def test_verdicts_come_from_seeds():
    a, b = seeds("a", 1, (300, 310, 305)), seeds("b", 4, (400, 405, 395), seconds=38.0)
    [line] = lines(*a, *b)
    assert line.startswith(
        "b (N=4) with 1.00 times the tokens and 3.80 times the time of a (N=1): ahead at t = 1 (+0.190 ["
    )
    assert line.endswith("; not separated at t = 2 (+0.000 [+0.000, +0.000]).")
    [line] = lines(*seeds("a", 1, (400, 405, 395)), *seeds("b", 4, (300, 310, 305)))
    assert "behind at t = 1 (-0.190 [" in line
    [line] = lines(*seeds("a", 1, (300, 400, 200)), *seeds("b", 4, (350, 260, 420)))
    assert "not separated at t = 1, " not in line and "not separated at t = 1 (" in line
    assert lines(*seeds("a", 1, (300, 310)), *seeds("b", 1, (400, 410), batch=7)) == []


def test_one_seed_and_other_decays_give_no_verdict():
    [line] = lines(run_result("a", 1, 100), run_result("b", 4, 500))
    assert line.endswith("of a (N=1): no verdict from one seed; train several with --seeds 0,1,2.")
    [line] = lines(*seeds("a", 1, (100, 110)), *seeds("b", 4, (500, 490), horizon=256))
    assert "no verdict, since their initial decays differ (model.deltanet.horizon 256 and 64)" in line


def test_what_else_differs_is_said():
    [line] = lines(*seeds("a", 1, (100, 110)), *seeds("b", 4, (400, 410), batch=7, data="e"))
    assert " and another train.batch, data of a (N=1): ahead at t = 1" in line


def test_a_difference_on_few_problems_is_no_verdict_however_alike_the_seeds():
    [line] = lines(*seeds("a", 1, (499, 499, 499)), *seeds("b", 4, (500, 500, 500)))
    assert "ahead" not in line and "not separated at t = 1 (+0.002 [-0.002, +0.006])" in line
    assert "ahead at t = 1" in lines(*seeds("a", 1, (490, 490)), *seeds("b", 4, (500, 500)))[0]


def test_an_interval_over_seeds_is_not_narrower_than_over_problems():
    same = table_rows(group_by_recipe(seeds("a", 1, (300, 300, 300))), MANIFEST)
    one = table_rows(group_by_recipe(seeds("a", 1, (300,))), MANIFEST)
    cells = [dict(zip(header, rows[-1], strict=True))["t=1 exact"] for header, rows in (same, one)]
    assert cells[0] == f"{cells[1]} 0.600–0.600"


def test_runs_at_several_steps_are_told_apart():
    runs = [run_result("a", 1, 300), dataclasses.replace(run_result("a", 1, 310, seed=1), step=12)]
    assert [group.name for group in group_by_recipe(runs)] == ["a (step 10)", "a (step 12)"]


def test_pairing_needs_equal_seeds_and_samples():
    """Seeds that differ much, but alike in both recipes, separate them only when they are paired."""
    a, b = seeds("a", 1, (100, 300, 200)), seeds("b", 4, (120, 321, 219))
    assert "ahead at t = 1 (+0.040 [" in lines(*a, *b)[0]
    assert "not separated at t = 1" in lines(*a, *[dataclasses.replace(run, tokens=2000) for run in b])[0]


def test_table_and_markdown_have_baselines_and_intervals(tmp_path):
    one = [run_result("a", 1, 300)]
    header, rows = table_rows(group_by_recipe(one), MANIFEST)
    assert len({len(header), *map(len, rows)}) == 1
    assert [row[0] for row in rows] == ["(chance)", "(majority)", "a"]
    cells = dict(zip(header, rows[-1], strict=True))
    assert cells["t=1 exact"] == "0.600 [0.556, 0.642]" and cells["retention"] == "0.25" and cells["horizon"] == "64"
    text = markdown(one, MANIFEST)
    assert text.count("\n| ") == 4 and "0.600 [0.556, 0.642]" in text
    assert plot_accuracy(one, MANIFEST, tmp_path / "p.png") and (tmp_path / "p.png").stat().st_size > 5000
    three = seeds("a", 1, (300, 310, 305))
    cells = dict(zip(header, table_rows(group_by_recipe(three), MANIFEST)[1][-1], strict=True))
    assert cells["seeds"] == "3" and cells["t=1 exact"] == "0.610 [0.567, 0.651] 0.600–0.620"
    assert plot_accuracy(three, MANIFEST, tmp_path / "q.png")


def test_json_has_every_run_and_every_group():
    body = json.loads(json.dumps(to_json(seeds("a", 1, (300, 310)), MANIFEST, {}, "command")))
    assert [run["seed"] for run in body["runs"]] == [0, 1]
    [group] = body["groups"]
    assert group["seeds"] == [0, 1]
    exact = group["measured"][0]["by_value"]["1"]["exact"]
    assert exact["values"] == [0.6, 0.62] and exact["mean"] == pytest.approx(0.61)


def test_held_out_sets_have_a_column_each():
    run = run_result("a", 1, 300)
    run.measured[0].by_source |= {"code": [200.0, 100.0, 150.0], "web": [0.0, 0.0, 0.0]}
    header, rows = table_rows(group_by_recipe([run]), MANIFEST)
    assert len({len(header), *map(len, rows)}) == 1
    cells = dict(zip(header, rows[-1], strict=True))
    assert cells["loss of code"] == "0.5000" and cells["loss of web"] == "–" and cells["t=1"].startswith("0.600")
    body = json.loads(json.dumps(to_json([run], MANIFEST, {}, "command")))
    assert body["runs"][0]["measured"][0]["by_source"] == {
        "code": {"loss": 0.5, "accuracy": 0.75}, "web": {"loss": None, "accuracy": None},
    }  # fmt: skip


def test_runs_of_other_proportions_are_other_recipes():
    one, other = (run_result("a", 1, 300, seed=seed) for seed in (0, 1))

    def on(run, *sources):
        return dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, data=Data([*sources])))

    plain, moved, mixed = on(one, Source("here", 1.0)), on(other, Source("there", 1.0)), on(other, Source("here", 2.0))
    assert len(group_by_recipe([plain, moved])) == 1 and len(group_by_recipe([plain, mixed])) == 2


def test_report_on_the_terminal_has_a_column_for_each_recipe(capsys):
    print_report([run_result("a", 1, 300), *seeds("[b]", 4, (400, 410, 405))], MANIFEST)
    shown = capsys.readouterr().out.splitlines()
    header = next(line for line in shown if "N=1" in line)
    assert header.split() == ["(chance)", "(majority)", "a", "N=1", "[b]", "N=4"]
    accuracy = next(line for line in shown if line.split()[:1] == ["t=1"])
    assert accuracy.split()[1:4] == ["0.500", "0.600", "0.600"] and "0.800–0.820" in accuracy
    assert any(line.startswith("Intervals of a single seed are over distinct problems") for line in shown)
    assert shown[-1].endswith("no verdict from one seed; train several with --seeds 0,1,2.")


def test_a_loss_that_is_not_finite_leaves_the_report_json(tmp_path):
    """More passes than in training may overflow; JSON has neither NaN nor infinity."""
    good, bad = run_result("a", 1, 100), run_result("b", 2, 100)
    broken = dataclasses.replace(bad, measured=[dataclasses.replace(bad.measured[0], nll=math.nan, residual=math.inf)])
    write([good, broken], MANIFEST, tmp_path, {}, "sleeptrain eval")
    text = (tmp_path / "report.json").read_text()
    runs = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["runs"]
    assert [run["measured"][0]["loss"] for run in runs] == [0.35, None] and runs[1]["measured"][0]["residual"] is None
    assert runs[1]["measured"][0]["by_value"]["1"]["accuracy"] == 0.2
    assert "| nan |" in (tmp_path / "report.md").read_text()
