"""Planned memory against real runs: activations by the executor's own accounting, and all storages of a whole step."""

import math
from itertools import pairwise

import pytest
import torch

from sleeptrain.data.batch import IGNORED
from sleeptrain.engine import orthogonalise
from sleeptrain.engine.muon import Fragment, MatrixPartition, Muon
from sleeptrain.engine.optimizers import kind
from sleeptrain.execute import segments
from sleeptrain.execute.activation_checkpoint import COMPILED_WRAPPERS
from sleeptrain.execute.autograd import CheckpointedExecutor, run_with_autograd
from sleeptrain.execute.executor import StageExecutor
from sleeptrain.execute.gradients import GradAccumulator
from sleeptrain.execute.p2p import P2PChannels
from sleeptrain.execute.segments import forward_no_grad, loss_segment, vjp
from sleeptrain.execute.stage_plan import StagePlan
from sleeptrain.model.compile_blocks import compile_blocks, partitioned_eager
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.state import State, leaves
from sleeptrain.model.trained import freeze
from sleeptrain.parallel.mesh import init_mesh
from sleeptrain.parallel.process import init_distributed
from sleeptrain.parallel.tensor import local_config
from sleeptrain.plan.activations import measure_activations
from sleeptrain.plan.costs import costs_of, layer_activations
from sleeptrain.plan.optimizer_memory import _muon_work
from sleeptrain.program import Pass
from sleeptrain.schedule import estimate
from sleeptrain.train.build_model import new_model
from sleeptrain.train.kernels import DTYPES
from sleeptrain.train.lanes import Lanes
from sleeptrain.train.trained import trained_weights
from tests.distributed import run
from tests.plan.plans import plan_of
from tests.plan.step_memory import LARGE, step_bytes_by_case
from tests.storages import StorageCounter

MASKS = {"padded": "valid", "right-padded": "prefix"}
POLICIES = ("window", "pass", "block", "selective", "none")
CASES = {
    "every": [],
    "sliding": ["sleep.evict.mode=sliding"],
    "range": ["sleep.loop.layers=[1, 3]"],
    "normed": ["sleep.loop.feedback=normed", "model.layers=GAGG"],
    "embeddings": ["sleep.loop.feedback=embeddings"],
    "last two passes": ["sleep.gradient.passes=2"],
    "context": ["data.sources=[{path: nowhere/rule110}]", "sleep.window=24", "sleep.loop.trigger=context", "train.batch=2", "train.micro=1"],
    "bf16": ["train.precision=bf16"],
    "offload": ["train.offload=true"],
    "padded": [],
    "right-padded": [],
    "large vocabulary": ["model.vocab=300000"],
    "frozen": ["optim.trainable=[layers.2.mixer]", "model.tie=false"],
    "frozen, below": ["optim.trainable=[layers.2, '!layers.2.mlp']", "sleep.loop.feedback=embeddings", "sleep.evict.mode=sliding"],
}  # fmt: skip


def model_of(plan):
    """The initialised model of a plan, with all blocks."""
    model = LanguageModel(plan.job.model)
    initialise(model, 0, 64)
    freeze(model, trained_weights(plan.job))
    return model.to(DTYPES[plan.job.train.precision])


def group_of(plan, model, seed=0):
    """The micro-batches of one backward."""
    generator, windows, found = torch.Generator().manual_seed(seed), plan.data_layout.windows, []
    for _ in range(plan.layout.batch.group):
        tokens = torch.randint(0, 4, (plan.layout.batch.micro, windows[-1].stop), generator=generator)
        targets = torch.full_like(tokens, IGNORED)
        for w in windows:
            if w.targets:
                targets[:, w.start : w.stop] = tokens[:, w.start : w.stop]
        valid = (
            torch.arange(windows[-1].stop).expand(tokens.shape) < windows[-1].stop - 3
            if plan.data_layout.mask
            else None
        )
        state, right = model.zero_state(plan.job.sleep, plan.layout.batch.micro), plan.data_layout.mask == "prefix"
        found.append(MicroBatch(tokens, targets, state, valid, right_padded=right))
    return found


def saved_bytes(plan, model=None, seed=0):
    """Bytes that the checkpointed executor has saved at the start of backward, by component."""
    model, train = model or model_of(plan), plan.job.train
    group = group_of(plan, model, seed)
    executor = CheckpointedExecutor(
        model, group, plan.schedule.program, plan.job.sleep, train.schedule_policy, offload=train.offload
    )
    results = executor.run()
    saved = executor.bytes()
    torch.stack([result.nll.sum() for result in results]).sum().backward()
    return saved


def assert_close(found, planned, what):
    assert found.keys() == planned.keys()
    for component, size in planned.items():
        assert found[component] == pytest.approx(size, rel=0.05), (what, component)
    assert sum(found.values()) == pytest.approx(sum(planned.values()), rel=0.05), what


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case == "frozen" else []) for case in CASES]
)
def test_saved_activations_of_one_stage_match_the_plan_under_every_policy(case):
    totals = {}
    # Offload is refused without recompute.
    for policy in POLICIES[:3] if case == "offload" else POLICIES:
        plan = plan_of(*CASES[case], f"train.recompute={policy}", mask=MASKS.get(case))
        saved = saved_bytes(plan)
        assert_close(saved, plan.memory[0].saved, (case, policy))
        totals[policy] = sum(saved.values()) + plan.memory[0].host
    if case == "frozen, below":  # there `selective` saves outputs of products of blocks that have no backward
        totals.pop("selective")
    assert list(totals.values()) == sorted(set(totals.values()))


SLIDING = ["train.precision=bf16", "sleep.evict.mode=sliding"]


@pytest.mark.parametrize(
    "changes, inductor",
    [
        pytest.param([], True, marks=pytest.mark.slow),
        pytest.param(SLIDING, False, marks=pytest.mark.slow),
        pytest.param(SLIDING, True, marks=pytest.mark.exhaustive),
    ],
)
def test_saved_activations_of_compiled_blocks_match_the_plan(changes, inductor):
    """The graphs that torch.compile makes save less than those of autograd, and products alone less still, whether TorchInductor compiles
    them or their operators run one by one."""
    totals = []
    for compiled, policy in (("false", "none"), ("true", "none"), ("true", "selective")):
        plan = plan_of(
            *changes, f"train.recompute={policy}", f"train.compile={compiled}", mask="valid" if changes else None
        )
        model = model_of(plan)
        if plan.job.train.compiled:
            backend = "inductor" if inductor else partitioned_eager()
            compile_blocks(model, backend, COMPILED_WRAPPERS[plan.job.train.compiled])
        saved = saved_bytes(plan, model)
        assert_close(saved, plan.memory[0].saved, (compiled, policy))
        totals.append(sum(saved.values()))
    assert totals[2] < 0.9 * totals[1] < 0.81 * totals[0]


def test_temporaries_of_compiled_blocks_do_not_depend_on_what_their_graphs_save():
    """The graph of the head is kept under both policies and counted there, although it needs more than any block here."""
    plans = [plan_of("model.vocab=300000", "train.compile=true", f"train.recompute={p}") for p in ("none", "selective")]
    assert len({plan.memory[0].phases[0].work for plan in plans}) == 1
    assert len({plan.memory[0].saved["body"] for plan in plans}) == 2


def state_bytes(model, plan):
    """Bytes of the state of all rows of a group, with full caches, by kind."""
    found = {"fast": 0, "conv": 0, "kv": 0}
    for leaf in model.zero_state(plan.job.sleep, 1).spec:
        found[leaf.kind] += leaf.dtype.itemsize * torch.Size(leaf.shape).numel()
    return {kind: size * plan.layout.batch.micro * plan.layout.batch.group for kind, size in found.items()}


def test_under_recompute_window_every_window_saves_one_state():
    more = ["train.recompute=window", "sleep.evict.mode=sliding"]
    plans = [plan_of(*more, windows=count) for count in (3, 4, 5)]
    model = model_of(plans[0])
    state, saved = state_bytes(model, plans[0]), [saved_bytes(plan) for plan in plans]
    assert all(state.values())
    for by_windows in (saved, [plan.memory[0].saved for plan in plans]):
        for few, many in pairwise(by_windows):
            assert growth(few, many) == {"S": state["fast"], "conv": state["conv"], "kv": state["kv"]}


def growth(few, many):
    """The difference in bytes of every component that differs."""
    return {name: many[name] - few[name] for name in many if many[name] != few[name]}


def test_saved_activations_do_not_grow_with_gradient_accumulation():
    once, often = (plan_of("train.recompute=pass", f"train.batch={rows}") for rows in (4, 12))
    assert (once.layout.batch.accumulation, often.layout.batch.accumulation) == (1, 3)
    assert once.memory[0].saved == often.memory[0].saved and once.estimate.stages == often.estimate.stages
    model = model_of(often)
    first, second, third = (saved_bytes(often, model, seed) for seed in range(3))
    assert first == second == third
    assert_close(first, often.memory[0].saved, "accumulated")


STAGED = ["mesh.pipe=2", "train.batch=6", "mesh.group=3", "model.tie=false"]


def stage_bytes(plan, p2p):
    """Bytes that this process's stage has saved at the start of backward, and their peak; measured and planned."""
    model = model_of(plan)
    blocks = plan.schedule.stages[p2p.stage].blocks
    model.keep_stage(blocks.start, blocks.stop)
    p2p.open(plan.schedule.channels, torch.device("cpu"))
    stage = StageExecutor(
        model,
        group_of(plan, model),
        StagePlan(plan.schedule, p2p.stage),
        p2p,
        GradAccumulator({}, model.partial_grads()),
    )
    found = {"peak": 0}

    def measure(event, action):
        # A backward action releases its graph, so its end is never a peak.
        if event == "begin" or (event == "end" and action.kind in ("FWD", "RECOMPUTE", "RECV")):
            found["peak"] = max(found["peak"], sum(stage.bytes().values()))
        if event == "begin" and action == stage.stage.backward[0]:
            found["start of backward"] = stage.bytes()

    stage.observer = measure
    torch.stack([result.nll.sum() for result in run_with_autograd(stage)]).sum().backward()
    layout, saved = plan.layout, plan.memory[p2p.stage].saved
    alone = estimate(plan.schedule, costs_of(layout, layer_activations(layout, plan.data_layout.mask)))
    return found, {"start of backward": dict(saved), "peak": sum(alone.stages[p2p.stage].peak.values())}


def stage_bytes_by_case(plans):
    init_distributed()
    p2p = P2PChannels([[0, 1]])
    return {key: stage_bytes(plan, p2p) for key, plan in plans.items()}


@pytest.fixture(scope="module")
def two():
    keys = [*((policy, 3) for policy in POLICIES), ("window", 4)]
    return run(
        stage_bytes_by_case, 2, {key: plan_of(*STAGED, f"train.recompute={key[0]}", windows=key[1]) for key in keys}
    )  # fmt: skip


def test_saved_activations_of_two_stages_match_the_plan_under_every_policy(two):
    for stage, by_case in enumerate(two):
        for key, (found, planned) in by_case.items():
            assert_close(found["start of backward"], planned["start of backward"], (stage, key))
            assert found["peak"] == pytest.approx(planned["peak"], rel=0.05), (stage, key)
        sums = {policy: sum(by_case[policy, 3][0]["start of backward"].values()) for policy in POLICIES}
        assert sums["window"] < sums["pass"] < sums["block"] < sums["selective"] < sums["none"]


def test_under_recompute_window_a_stage_saves_the_state_and_the_received_features_of_every_pass(two):
    rows, h = 6, 16 * 32 * 4  # bytes of the features of a window, in float32
    state = rows * 4 * 8 * 8 * 4  # the Gated DeltaNet block of a stage
    tail = rows * 3 * (2 * 2 + 4) * 8 * 4
    # The first stage embeds in pass 1 and receives features in passes 2 and 3; the last stage receives features in all passes.
    for stage, passes in ((0, 2), (1, 3)):
        few, many = (two[stage]["window", windows][0]["start of backward"] for windows in (3, 4))
        assert growth(few, many) == {"S": state, "conv": tail, "received h": passes * rows * h}


def tensor_parallel_bytes(plans):
    """Bytes that this tensor-parallel process has saved at the start of backward under every policy; measured and planned."""
    process, found = init_distributed(), {}
    for key, plan in plans.items():
        axes = init_mesh(plan.job.mesh, process.rank, process.world)
        model = new_model(plan.layout, axes, 64, process.device).to(DTYPES[plan.job.train.precision])
        if plan.job.train.compiled:
            compile_blocks(model, partitioned_eager(), COMPILED_WRAPPERS[plan.job.train.compiled])
        found[key] = saved_bytes(plan, model), dict(plan.memory[0].saved)
    return found


@pytest.mark.slow
def test_saved_activations_of_two_tensor_processes_match_the_plan():
    changes = ["mesh.tensor=2", "sleep.evict.mode=sliding"]
    plans = {policy: plan_of(*changes, f"train.recompute={policy}") for policy in POLICIES}
    plans["bf16"] = plan_of(*changes, "train.recompute=none", "train.precision=bf16")
    plans["compiled"] = plan_of(*changes, "train.recompute=none", "train.compile=true")
    plans["compiled, sequence"] = plan_of(
        "mesh.tensor=2", "mesh.sequence=true", "train.recompute=none", "train.compile=true", "train.precision=bf16"
    )
    for by_case in run(tensor_parallel_bytes, 2, plans):
        for key, (saved, planned) in by_case.items():
            assert_close(saved, planned, key)


# The memory of a whole step.

WHOLE = {
    "fp32": [],
    "fp32, several backwards": ["train.batch=8"],
    "fp32, zero 2": ["mesh.zero=2", "train.batch=8"],
    "muon": ["optim.name=muon", "optim.adam_lr=0.001", "train.batch=8"],
    "graphs kept": ["train.recompute=none"],
    "selective": ["train.recompute=selective"],
    "bf16": ["train.precision=bf16", "train.recompute=block"],
    "bf16, several backwards": ["train.precision=bf16", "train.batch=8"],
    "bf16, zero 2": ["train.precision=bf16", "mesh.zero=2", "train.batch=8"],
    "offload": ["train.offload=true", "train.recompute=pass"],
    "fp32, zero 3": ["mesh.zero=3"],
    "fp32, zero 3, graphs kept": ["mesh.zero=3", "train.recompute=none"],
    "fp32, zero 3, pass": ["mesh.zero=3", "train.recompute=pass"],
    "large vocabulary": ["model.vocab=40000"],
    "large vocabulary, bf16": ["model.vocab=40000", "train.precision=bf16"],
    "frozen, fp32": ["optim.trainable=[layers.G]"],
    "frozen, bf16": ["optim.trainable=[layers.G]", "train.precision=bf16", "train.batch=8"],
    "frozen, zero 3": ["optim.trainable=[layers.G]", "mesh.zero=3"],
    "frozen, zero 2, bf16": ["optim.trainable=[layers.G]", "mesh.zero=2", "train.precision=bf16"],
}
PARTS = {
    "data": ["mesh.data=2", "train.batch=8"],
    "data, zero 2": ["mesh.data=2", "mesh.zero=2", "train.precision=bf16", "train.batch=16"],
    "data, zero 3": ["mesh.data=2", "mesh.zero=3", "train.batch=8"],
    "data, zero 3, bf16, several backwards": ["mesh.data=2", "mesh.zero=3", "train.precision=bf16", "train.batch=16"],
    "data, muon": ["optim.name=muon", "optim.adam_lr=0.001", "mesh.data=2", "train.batch=8"],
    "data, frozen": ["optim.trainable=[layers.G]", "mesh.data=2", "train.precision=bf16", "train.batch=8"],
    "data, frozen, zero 3": ["optim.trainable=[layers.G]", "mesh.data=2", "mesh.zero=3", "train.batch=8"],
    "data, zero 2, fp32, several backwards": ["mesh.data=2", "mesh.zero=2", "train.batch=16"],
    # From here on with a mesh: DeepSpeed 0.19.8 keeps that of the last engine, and builds none without one after it.
    "pipe": ["mesh.pipe=2", "train.batch=6"],
    "pipe, bf16, tied large vocabulary": ["mesh.pipe=2", "train.precision=bf16", "train.batch=6", "model.vocab=40000"],
    "tensor": ["mesh.tensor=2"],
    "tensor, bf16, several backwards": ["mesh.tensor=2", "train.precision=bf16", "train.batch=8"],
    "sequence": ["mesh.tensor=2", "mesh.sequence=true"],
    "tensor, bf16, large vocabulary": [
        "mesh.tensor=2",
        "train.precision=bf16",
        "train.recompute=block",
        "model.vocab=40001",
    ],
}


SHARP = {
    1: {"compiled, fp32": ["train.compile=true", "train.recompute=none", "train.batch=8"]},
    4: {
        "data, zero 3, bf16": ["mesh.data=4", "mesh.zero=3", "train.precision=bf16", "train.batch=32"],
        "data, zero 2, bf16": ["mesh.data=4", "mesh.zero=2", "train.precision=bf16", "train.batch=32", "train.recompute=selective"],
        "data and pipe, fp32": ["mesh.data=2", "mesh.pipe=2", "train.batch=12", "train.recompute=none"],
        "data and tensor, fp32": ["mesh.data=2", "mesh.tensor=2", "train.batch=8", "train.recompute=none"],
    },
}  # fmt: skip
"""Few cases on four processes, and of compiled blocks on one, in every precision and ZeRO stage."""
SAMPLE = {
    "muon", "graphs kept", "frozen, bf16", "data, frozen, zero 3", "bf16, several backwards", "fp32, zero 3", "fp32, zero 3, graphs kept",
    "fp32, zero 3, pass", "data, zero 3, bf16, several backwards", "data, zero 2, fp32, several backwards", "pipe",
    "tensor, bf16, several backwards", "sequence", "tensor, bf16, large vocabulary",
}  # fmt: skip
"""What CI measures; `make drills` measures the rest."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [1024, 150000])
def test_memory_of_the_head_matches_the_plan(vocab, dtype):
    """With few logits, which are saved, and with many, which are computed in tiles."""
    plan = plan_of(f"model.vocab={vocab}", "train.micro=4", "train.batch=8")
    rows, sleep = group_of(plan, model_of(plan))[0], plan.job.sleep
    model = model_of(plan).to(dtype)
    op = next(op for op in plan.schedule.program.ops if isinstance(op, Pass) and op.loss)
    segment, h = loss_segment(model, op, rows), torch.randn(4, op.stop - op.start, plan.job.model.width).to(dtype)

    with StorageCounter() as storages:
        forward_no_grad(segment, h, {})
        graph = segments.forward_with_grad(segment, h, {})
        vjp(graph, torch.ones_like(graph.out), {})
    planned = measure_activations(plan.job.model, sleep, 4, op.stop - op.start, dtype).head
    assert storages.peak == pytest.approx(planned.kept + planned.work, rel=0.05)


def muon_bytes(plan, rank, shapes):
    """Peak of what Muon allocates in a step over the partition of a data rank, whose matrices have gradients of zero."""
    data, counts = plan.layout.batch.data, [math.prod(shape) for shape in shapes]
    n, fragments, start = plan.parameters.stages[0].partition(data)["matrix"], [[] for _ in range(data)], 0
    for matrix, count in enumerate(counts):
        for each in range(data):
            low, high = max(start, each * n), min(start + count, (each + 1) * n)
            if low < high:
                fragments[each].append(Fragment(matrix, low - each * n, low - start, high - low))
        start += count
    flat = torch.nn.Parameter(torch.zeros(n))
    flat.grad = torch.zeros(n)
    group = {"params": [flat], "muon": True, "lr": 0.1, "weight_decay": 0.1}
    muon = Muon([group], momentum=0.9, ns_dtype=getattr(torch, plan.job.optim.ns_dtype))
    muon.set_partition(MatrixPartition(shapes, fragments, rank, None))
    muon.step()  # the first one allocates the momentum
    with StorageCounter() as storages:
        muon.step()
    return storages.peak


@pytest.mark.parametrize("batch", [2**27, 40_000, 1], ids=["all of a shape", "some matrices", "one matrix"])
@pytest.mark.parametrize("more", [[], ["mesh.data=2"], ["mesh.data=8", "optim.ns_dtype=float32"]], ids=str)
def test_temporaries_of_muon_match_the_plan(more, batch, monkeypatch):
    monkeypatch.setattr(orthogonalise, "BATCH", batch)
    monkeypatch.setattr("torch.distributed.all_to_all_single", lambda *tensors, group: None)
    muon = ["optim.name=muon", "optim.adam_lr=0.001", "train.batch=32", "model.layers=GAG"]
    plan = plan_of(*muon, *LARGE[:2], *more)
    held, data = plan.parameters.stages[0], plan.layout.batch.data
    shapes = [tuple(p.shape) for name, p in model_of(plan).named_parameters() if kind(name, p) == "matrix"]
    assert tuple(shapes) == held.matrices
    found = [muon_bytes(plan, rank, shapes) for rank in range(data)]
    planned = _muon_work(plan.job, held, held.partition(data)["matrix"])
    assert planned <= max(found) <= planned + 1000, [size / planned for size in found]


def test_the_reduction_of_one_large_group_copies_nothing():
    """With groups of above and below 500 million elements, where DeepSpeed sends the first one alone."""
    flat = torch.ones(5)
    assert torch._utils._flatten_dense_tensors([flat]).data_ptr() == flat.data_ptr()
    large, small = (
        plan_of("train.precision=bf16", "model.width=8192", "model.mlp.hidden=16384"),
        plan_of("train.precision=bf16"),
    )
    held = [plan.parameters.stages[0].elements for plan in (large, small)]
    assert [plan.memory[0].phases[1].gradients for plan in (large, small)] == [4 * held[0], 8 * held[1]]


@pytest.mark.parametrize(
    "sampled", [pytest.param(True, marks=pytest.mark.slow), pytest.param(False, marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("world", [1, 2])
def test_memory_of_a_step_matches_the_plan(world, sampled):
    cases = {name: more for name, more in (WHOLE if world == 1 else PARTS).items() if (name in SAMPLE) is sampled}
    check_ratios(world, cases)


@pytest.mark.slow
def test_memory_of_a_step_of_four_processes_and_of_compiled_blocks_matches_the_plan():
    """Few cases like those of the grid that `python -m benchmarks.plan_memory` measures."""
    for world, cases in SHARP.items():
        check_ratios(world, cases)


def check_ratios(world, cases):
    """Measured over planned of some cases on every process."""
    for found in run(step_bytes_by_case, world, cases, timeout=1200):
        for name, (measured, planned) in found.items():
            print(f"{world} processes, {name}: {measured / planned:.3f} of the planned memory")
            assert 0.95 < measured / planned < 1.05, name


@pytest.mark.parametrize("changes", [[], ["sleep.evict.mode=sliding", "train.precision=bf16"], ["mesh.tensor=2"]])
def test_the_state_of_lanes_is_planned(changes):
    """Bytes of the tensors that lanes of that shape hold, before and after a step."""
    plan = plan_of("sleep.loop.trigger=every", "data.row=48", "data.lane=96", *changes)
    layout = plan.layout
    config = local_config(layout.job.model, layout.job.mesh.tensor)
    dtype = torch.bfloat16 if "bf16" in str(changes) else torch.float32
    empty = State.zeros(leaves(config, layout.job.sleep, dtype), layout.batch.micro)
    lanes = Lanes(empty, layout.batch.micro_batches, layout.length, config.attention)
    held = sum(state.nbytes("fast", "conv") for state in lanes.states)
    keys = sum(t.nbytes for s in lanes.states for name, t in s.tensors.items() if name.endswith(("key", "value")))
    masks = sum(t.nbytes for s in lanes.states for name, t in s.tensors.items() if name.endswith("seen"))
    assert plan.memory[0].lanes == 2 * (held + keys + masks) and held > 0
    assert plan.memory[0].total == plan_total_without(plan) + plan.memory[0].lanes
    assert plan_of("sleep.loop.trigger=every", "data.row=48", *changes).memory[0].lanes == 0


def plan_total_without(plan):
    memory = plan.memory[0]
    return memory.parameters + memory.optimizer + memory.peak.total
