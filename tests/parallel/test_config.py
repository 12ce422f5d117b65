"""The mesh section says what it cannot do, with the fields and the sizes that work."""

from dataclasses import replace

import pytest

from sleeptrain.parallel import Mesh
from sleeptrain.parallel.config import data_size, padded, undivided
from tests.model import toy


def test_problems_name_the_field() -> None:
    assert Mesh().problems() == Mesh(data=4, zero=2, tensor=2).problems() == []
    fields = {problem.field for problem in Mesh(data=-1, pipe=2, tensor=0, zero=0).problems()}
    assert fields == {"data", "pipe", "tensor", "zero"}
    assert "not available in this version" in Mesh(zero=3).problems()[0].message


@pytest.mark.parametrize(
    ("mesh", "world", "message"),
    [
        (
            Mesh(tensor=2),
            5,
            "mesh.data = all x mesh.pipe = 1 x mesh.tensor = 2 does not fill 5 processes: start 4 or 6",
        ),
        (Mesh(tensor=4), 2, "mesh.tensor = 4 does not fill 2 processes: start 4"),
        (Mesh(data=2, tensor=2), 8, "start 4, or set mesh.data = 4"),
        (Mesh(data=2), 1, "does not fill 1 process: start 2, or set mesh.data = 1"),
    ],
)
def test_a_world_that_does_not_fit_is_told_what_does(mesh: Mesh, world: int, message: str) -> None:
    with pytest.raises(ValueError, match=r"does not fill") as caught:
        data_size(mesh, world)
    assert message in str(caught.value)


def test_worlds_that_fit() -> None:
    assert [data_size(Mesh(), 3), data_size(Mesh(tensor=2), 6), data_size(Mesh(data=2, tensor=2), 4)] == [3, 3, 2]


def test_heads_that_cannot_be_shared_are_named_with_the_sizes_that_can() -> None:
    model = toy.config()  # 4 heads, 2 of keys and values; 2 key heads, 4 value heads; 16 columns
    assert undivided(model, 2) is None
    reason = undivided(model, 4)
    assert reason is not None and "model.attention.kv_heads = 2 and model.deltanet.key_heads = 2" in reason
    assert "mesh.tensor can be 1, 2" in reason
    assert undivided(replace(model, layers="AA", attention=replace(model.attention, kv_heads=4)), 4) is None


def test_the_vocabulary_is_padded_to_equal_parts() -> None:
    assert (padded(11, 1), padded(11, 2), padded(128, 2), padded(129, 2)) == (11, 128, 128, 256)
