"""Lanes: rows that continue those of the step before equal one long row whose gradient is cut where they are.

Runs with lanes are the same in every layout, and continue in others.
"""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from sleeptrain.data.batch import Batch
from sleeptrain.execute.autograd import CheckpointedExecutor, ExecutorOptions
from sleeptrain.model.micro_batch import MicroBatch, starts_by_window
from sleeptrain.model.sleep import run
from sleeptrain.program import Evict, Gradient, Loop, Sleep, compile
from sleeptrain.train.lanes import Lanes
from sleeptrain.train.step import read_step, train_step
from tests.distributed import run as run_processes
from tests.execute.eager_replay import graph_cache
from tests.model import toy
from tests.train.jobs import text_data, trained

L, WINDOWS, PARTS, ROWS = 4, 3, 3, 3
LENGTH = L * WINDOWS
CASES = {
    "N=1": Sleep(window=L, passes=1, loop=Loop(trigger="every")),
    "N=2": Sleep(window=L, passes=2, loop=Loop(trigger="every")),
    "N=3, normed, no tail": Sleep(
        window=L, passes=3, loop=Loop(trigger="every", feedback="normed"), evict=Evict(conv_carry=False)
    ),
    "N=2, range": Sleep(window=L, passes=2, loop=Loop(trigger="every", layers=(1, 3), feedback="embeddings")),
    "N=2, clipped adjoint": Sleep(window=L, passes=2, loop=Loop(trigger="every"), gradient=Gradient(clip_state=1e-3)),
    "sliding, N=1": Sleep(window=L, passes=1, loop=Loop(trigger="every"), evict=Evict("sliding")),
    "sliding, N=2": Sleep(window=L, passes=2, loop=Loop(trigger="every"), evict=Evict("sliding")),
    "sliding, N=2, range": Sleep(window=L, passes=2, loop=Loop(trigger="every", layers=(1, 3)), evict=Evict("sliding")),
}


def stream():
    """Tokens, targets and first tokens [rows, parts * LENGTH]: documents of many rows, of parts of windows, and one that begins with a row."""
    tokens, targets = toy.batch(toy.windows(L, WINDOWS * PARTS), rows=ROWS)
    starts = torch.zeros(tokens.shape, dtype=torch.bool)
    starts[1, [2, 5, LENGTH, LENGTH + 6, LENGTH + 7]] = True
    starts[2, [LENGTH - 1, 2 * LENGTH - 3]] = True
    return tokens, targets, starts


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def by_one_long_row(model, sleep, tokens, targets, starts):
    cut = dataclasses.replace(sleep, gradient=dataclasses.replace(sleep.gradient, windows=WINDOWS))
    layout = toy.windows(L, WINDOWS * PARTS)
    program = compile(cut, layout, len(model.layers))
    # The bound on the adjoint is in units of the loss of a row's targets, of which a long row has more.
    batch = MicroBatch(tokens, targets, model.zero_state(cut, ROWS), starts=starts_by_window(starts, layout))
    output = run(model, batch, program, cut)
    output.nll.square().sum().backward()
    return output.nll.detach(), gradients(model)


def by_lanes(model, sleep, tokens, targets, starts, policy):
    """The same, a row of LENGTH tokens at a time; `policy` is that of the executor, None for plain autograd."""
    layout = toy.windows(L, WINDOWS)
    program, losses = compile(sleep, layout, len(model.layers), carried=True), []
    lanes, cache = Lanes(model.zero_state(sleep, ROWS), 1, LENGTH, model.config.attention), graph_cache()
    for step in range(PARTS):
        part = (slice(None), slice(step * LENGTH, (step + 1) * LENGTH))
        ids = torch.arange(ROWS)
        batch = Batch(
            tokens[part], targets[part], targets[part], ids, {}, starts[part], continued=torch.full((ROWS,), step > 0)
        )
        micro = MicroBatch(batch.tokens, batch.targets, lanes.begin(0, batch), starts=batch.starts_by_window(layout))
        if policy is None:
            output = run(model, micro, program, sleep)
        else:
            options = ExecutorOptions(graph_cache=cache if policy == "graphs" else None)
            kept = "pass" if policy == "graphs" else policy
            (output,) = CheckpointedExecutor(model, [micro], program, sleep, kept, options=options).run()
        output.nll.square().sum().backward()
        lanes.keep([output.state])
        losses.append(output.nll.detach())
    return torch.cat(losses, 1), gradients(model)


@pytest.mark.parametrize("policy", [None, "none", "selective", "block", "pass", "window", "graphs"])
@pytest.mark.parametrize("case", [case for case in CASES if "clipped" not in case])
def test_lanes_equal_one_long_row(case, policy):
    model = toy.model()
    losses, wanted = by_one_long_row(model, CASES[case], *stream())
    found, ours = by_lanes(model, CASES[case], *stream(), policy)
    torch.testing.assert_close(found, losses, rtol=0, atol=1e-12)
    assert ours.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (ours[name] - gradient).norm() <= 1e-11 * gradient.norm(), name
    assert all(bool(g.abs().max() > 1e-6) for g in wanted.values())


def test_the_policies_agree_where_the_adjoint_is_clipped():
    model, sleep = toy.model(), CASES["N=2, clipped adjoint"]
    results = [by_lanes(model, sleep, *stream(), policy) for policy in (None, "none", "window")]
    free = by_lanes(model, CASES["N=2"], *stream(), None)
    for losses, found in results[1:]:
        assert torch.equal(losses, results[0][0])
        for name, gradient in results[0][1].items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-11, atol=1e-12)
    assert any((results[0][1][name] - gradient).abs().max() > 1e-6 for name, gradient in free[1].items())


@pytest.mark.parametrize("case", ["N=2", "sliding, N=2"])
def test_a_row_that_continues_nothing_begins_empty(case):
    model, sleep, layout = toy.model(), CASES[case], toy.windows(L, WINDOWS)
    tokens, targets, _ = stream()
    lanes = Lanes(model.zero_state(sleep, ROWS), 1, LENGTH, model.config.attention)
    program = compile(sleep, layout, len(model.layers), carried=True)
    losses, ids, no_starts = [], torch.arange(ROWS), torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    for continued in ([False] * 3, [True, False, True]):
        batch = Batch(
            tokens[:, :LENGTH], targets[:, :LENGTH], targets, ids, {}, no_starts, continued=torch.tensor(continued)
        )
        output = run(model, MicroBatch(batch.tokens, batch.targets, lanes.begin(0, batch)), program, sleep)
        lanes.keep([output.state])
        losses.append(output.nll.detach())
    torch.testing.assert_close(losses[0][1], losses[1][1], rtol=0, atol=1e-12)
    assert all((losses[0][row] - losses[1][row]).abs().max() > 1e-3 for row in (0, 2))


COMMON = [
    "sleep.window=16", "sleep.passes=2", "sleep.loop.trigger=every", "train.batch=4", "train.micro=1", "checkpoint.every=0",
    "optim.schedule.name=constant", "model.layers=AGAG", "model.attention.kv_heads=2", "model.deltanet.key_heads=2",
    "data.row=48", "data.lane=192",
]  # fmt: skip
STEPS = 2
"""Steps in each layout."""
LAYOUTS = {
    "hard": [(1, ["train.micro=2"]), (2, []), (2, ["mesh.pipe=2"]), (2, ["mesh.tensor=2"])],
    "sliding": [(4, ["mesh.pipe=2", "mesh.tensor=2"]), (2, ["mesh.zero=3", "train.recompute=pass"]), (1, ["train.recompute=window"])],
}  # fmt: skip
"""By eviction: processes and overrides."""


def lane_states(setup):
    return [{name: t.clone() for name, t in state.tensors.items()} for state in setup.context.lanes.states]


def continued(folder, name, overrides):
    """Train on to a step; rows of metrics, and the lanes at the begin and the end."""
    seen = {}

    def look(setup):
        seen["begin"], seen["setup"] = lane_states(setup), setup

    rows, _ = trained(Path(folder), name, Path(folder) / "text", [*COMMON, *overrides], spoil=look)
    return rows, seen["begin"], lane_states(seen.pop("setup"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("lanes")
    text_data(made)
    return str(made)


@pytest.mark.slow
@pytest.mark.parametrize("eviction", LAYOUTS)
def test_a_run_with_lanes_goes_on_in_other_layouts(folder, eviction):
    mode, total = f"sleep.evict.mode={eviction}", STEPS * len(LAYOUTS[eviction])
    rows = []
    for number, (world, mesh) in enumerate(LAYOUTS[eviction], 1):
        found = run_processes(
            continued, world, folder, f"{eviction}-chain", [mode, *mesh, f"train.steps={STEPS * number}"], timeout=300
        )
        rows = found[0][0]
    ((whole, _, _),) = run_processes(
        continued, 1, folder, f"{eviction}-whole", [mode, f"train.steps={total}"], timeout=300
    )
    assert [row["step"] for row in rows] == list(range(1, total + 1))
    for row, expected in zip(rows, whole, strict=True):
        for key in ("loss", "grad_norm"):
            assert math.isclose(row[key], expected[key], rel_tol=1e-5), (row["step"], key, row[key], expected[key])


def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(folder):
    options = ["sleep.evict.mode=sliding", "train.precision=bf16"]
    ((_, _, saved),) = run_processes(continued, 1, folder, "resumed", [*options, "train.steps=3"])
    ((rows, begin, end),) = run_processes(continued, 1, folder, "resumed", [*options, "train.steps=5"])
    ((whole, _, expected),) = run_processes(continued, 1, folder, "unbroken", [*options, "train.steps=5"])
    assert [row["loss"] for row in rows] == [row["loss"] for row in whole]
    for one, other in ((begin, saved), (end, expected)):
        for found, wanted in zip(one, other, strict=True):
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(state["layers.1.fast"].abs().max() > 0 and state["layers.0.seen"].any() for state in saved)


@pytest.mark.parametrize("case", ["N=2", "sliding, N=2"])
def test_a_row_after_a_skipped_step_has_no_state_of_another_document(case):
    """Row 0 goes on over the step, row 1 begins a run in it, and row 2 a document: the states before it are not theirs."""
    model, sleep, layout = toy.model(), CASES[case], toy.windows(L, WINDOWS)
    tokens, targets, _ = stream()
    program = compile(sleep, layout, len(model.layers), carried=True)
    none = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    inside = none.clone()
    inside[2, 5] = True
    parts = [(none, [False] * 3), (inside, [True, False, True]), (none, [True] * 3)]

    def row(step, starts, continued):
        part = (slice(None), slice(step * LENGTH, (step + 1) * LENGTH))
        ids = torch.arange(ROWS)
        return Batch(tokens[part], targets[part], targets[part], ids, {}, starts, continued=torch.tensor(continued))

    def losses(lanes, batch):
        state, starts = lanes.begin(0, batch), batch.starts_by_window(layout)
        return run(model, MicroBatch(batch.tokens, batch.targets, state, starts=starts), program, sleep)

    first, skipped, last = (row(step, *part) for step, part in enumerate(parts))
    lanes = Lanes(model.zero_state(sleep, ROWS), 1, LENGTH, model.config.attention)
    empty = losses(lanes, last).nll.detach()
    lanes.keep([losses(lanes, first).state])
    kept = losses(lanes, last).nll.detach()
    lanes.skip([skipped])
    found = losses(lanes, last).nll.detach()
    assert torch.equal(found[0], kept[0]) and torch.equal(found[1:], empty[1:])
    assert all((kept[i] - empty[i]).abs().max() > 1e-3 for i in range(ROWS))


def skipped_step(folder):
    """Lanes before and after a step that is skipped, and after one that is not; and in which lanes a document began in it."""
    found, began = [], []

    def steps(setup):
        context, program = setup.context, setup.layout.program()
        for limit in (math.inf, 0.0, math.inf):
            batches = read_step(setup.reader)
            report = train_step(context, batches, program, 1.0, limit)
            found.append((report.skipped, lane_states(setup)))
            began.append([~batch.continued | batch.starts.any(1) for batch in batches])

    trained(Path(folder), "skipped", Path(folder) / "text", [*COMMON, "train.steps=1"], spoil=steps)
    return found, began[1]


def test_a_skipped_step_leaves_the_lanes_as_they_were_where_no_document_began(folder):
    (((first, second, third), began),) = run_processes(skipped_step, 1, folder)
    assert [skipped for skipped, _ in (first, second, third)] == [False, True, False]
    assert 0 < sum(int(rows.sum()) for rows in began) < sum(len(rows) for rows in began)
    for one, two, three, new in zip(first[1], second[1], third[1], began, strict=True):
        for name, tensor in one.items():
            assert torch.equal(two[name][~new], tensor[~new]) and not two[name][new].any()
        assert (one["layers.1.fast"] != three["layers.1.fast"]).any()
