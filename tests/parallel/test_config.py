"""The mesh section says what it cannot do yet."""

from sleeptrain.parallel import Mesh


def test_problems_name_the_field() -> None:
    assert Mesh().problems() == Mesh(data=4, zero=2).problems() == []
    assert {problem.field for problem in Mesh(data=-1, pipe=2, tensor=0, zero=0).problems()} == {
        "data",
        "pipe",
        "tensor",
        "zero",
    }
    assert "not available in this version" in Mesh(tensor=2).problems()[0].message
    assert "not available in this version" in Mesh(zero=3).problems()[0].message
