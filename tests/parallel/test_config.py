"""The `mesh:` section: invalid values, axis sizes, batch layout, stage cuts, and the messages of what does not fit."""

from dataclasses import replace

import pytest

from sleeptrain.parallel import Mesh
from sleeptrain.parallel.config import (
    LayoutError,
    batch_layout,
    data_parallel_size,
    padded_vocab,
    pipeline_obstacle,
    stage_cuts,
    tensor_obstacle,
    unsharded_options,
)
from sleeptrain.program import Loop, Sleep
from tests.model import toy


def test_options_that_tensor_parallelism_does_not_shard_are_named() -> None:
    jet = toy.jet().config
    assert unsharded_options(jet) == ["model.attention.bias", "model.deltanet.generator"]
    assert unsharded_options(replace(jet, layers="GG")) == ["model.deltanet.generator"]
    assert unsharded_options(toy.config()) == []


def test_problems_name_the_field() -> None:
    assert Mesh().problems() == Mesh(data=4, zero=2, tensor=2).problems() == []
    fields = {problem.field for problem in Mesh(data=-1, pipe=0, tensor=0, group=-1, zero=0).problems()}
    assert fields == {"data", "pipe", "tensor", "group", "zero"}
    assert Mesh(zero=3).problems() == []


@pytest.mark.parametrize(
    ("mesh", "world", "message"),
    [
        (
            Mesh(tensor=2),
            5,
            "mesh.data = 0 with mesh.tensor = 2: 5 processes were started; start 4 or 6",
        ),
        (Mesh(tensor=4), 2, "mesh.tensor = 4: 2 processes were started; start 4"),
        (
            Mesh(data=2, tensor=2),
            8,
            "start 4, for instance with torchrun --nproc_per_node 4 -m sleeptrain train ..., or set mesh.data=0",
        ),
        (
            Mesh(data=2),
            1,
            "1 process was started; start 2, for instance with torchrun --nproc_per_node 2 -m sleeptrain train ..., or set mesh.data=0",
        ),
    ],
)
def test_a_world_size_that_does_not_fit_is_refused_with_sizes_that_do(mesh: Mesh, world: int, message: str) -> None:
    with pytest.raises(LayoutError) as caught:
        data_parallel_size(mesh, world)
    assert message in str(caught.value)


def test_data_parallel_size_of_world_sizes_that_fit() -> None:
    cases = {3: Mesh(), 6: Mesh(tensor=2), 4: Mesh(data=2, tensor=2)}
    assert [data_parallel_size(mesh, world) for world, mesh in cases.items()] == [3, 3, 2]


def test_sizes_that_tensor_parallelism_cannot_divide_are_named_with_sizes_that_work() -> None:
    model = toy.config()  # 4 heads, 2 of keys and values; 2 key heads, 4 value heads; 16 columns
    assert tensor_obstacle(model, 2) is None
    reason = tensor_obstacle(model, 4)
    assert reason is not None and "model.attention.kv_heads = 2 and model.deltanet.key_heads = 2" in reason
    assert "mesh.tensor can be 1, 2" in reason
    assert tensor_obstacle(replace(model, layers="AA", attention=replace(model.attention, kv_heads=4)), 4) is None


@pytest.mark.parametrize(
    ("batch", "micro", "mesh", "data", "expected"),
    [
        (8, None, Mesh(), 2, (4, 1, 1)),
        (8, 2, Mesh(), 1, (2, 1, 4)),
        (8, 2, Mesh(group=2), 1, (2, 2, 2)),
        (8, None, Mesh(pipe=2), 1, (2, 4, 1)),
        (12, 2, Mesh(pipe=2), 1, (2, 3, 2)),
        (12, 1, Mesh(pipe=2, group=6), 2, (1, 6, 1)),
    ],
)
def test_batch_layout_divides_rows_into_micro_batches_and_groups(batch, micro, mesh, data, expected) -> None:
    made = batch_layout(batch, micro, mesh, data)
    assert (made.micro, made.group, made.accumulation) == expected
    assert made.micro * made.group * made.accumulation * data == batch


@pytest.mark.parametrize(
    ("batch", "micro", "mesh", "data", "message"),
    [
        (9, None, Mesh(), 2, "train.batch = 9: does not divide over 2 processes; the nearest that does is 8"),
        (8, 3, Mesh(), 1, "train.micro = 3 with train.batch = 8: the micro-batch does not divide the 8 rows"),
        (14, 2, Mesh(pipe=4), 1, "groups of 4 or 5 or 6 .*the nearest batch that does is 16"),
        (7, None, Mesh(pipe=4), 1, "groups of 4 or 5 or 6 .*the nearest batch that does is 8"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_does(batch, micro, mesh, data, message) -> None:
    with pytest.raises(LayoutError, match=message):
        batch_layout(batch, micro, mesh, data)


def test_stage_cuts_balance_the_cost_and_too_many_stages_are_refused() -> None:
    model, sleep = toy.config("AGAGAGAG"), Sleep(passes=4, loop=Loop(layers=(2, 8)))
    assert stage_cuts(toy.config("GGGG"), Sleep(), 2) == (2,)
    assert stage_cuts(model, sleep, 2) == (5,)  # blocks 0 and 1 run once a window, the other six four times
    assert pipeline_obstacle(model, Mesh(pipe=8)) is None
    assert "mesh.pipe can be 1 to 8" in str(pipeline_obstacle(model, Mesh(pipe=9)))


def test_the_vocabulary_is_padded_to_equal_shards() -> None:
    assert (padded_vocab(11, 1), padded_vocab(11, 2), padded_vocab(128, 2), padded_vocab(129, 2)) == (11, 128, 128, 256)
