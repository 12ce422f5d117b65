"""The error that users see."""

from sleeptrain.errors import UserError


def test_one_error_or_many() -> None:
    assert UserError("a").errors == ["a"] and str(UserError("a")) == "a"
    assert UserError(["a", "b"]).errors == ["a", "b"] and str(UserError(["a", "b"])) == "a\nb"
