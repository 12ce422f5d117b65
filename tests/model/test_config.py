"""The `model:` section: values of L blocks and of dynamic convolution that do not fit."""

from dataclasses import replace

import pytest

from sleeptrain.model.config import Model, expand
from tests.model import toy


def test_local_blocks_are_letters_of_a_pattern() -> None:
    assert expand("(GL)x2A") == "GLGLA"
    with pytest.raises(ValueError, match="L \\(local attention\\)"):
        expand("GW")


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("attention", {"local": None}, "attention.local must be the number of keys that a query of the L blocks in layers sees"),
        ("attention", {"theta": 0.0}, "attention.theta must be above 0"),
        ("attention", {"theta": float("nan")}, "attention.theta must be above 0"),
        ("attention", {"local": 0}, "attention.local must be at least 1 key"),
        ("deltanet", {"generator": None}, "deltanet.value_dim must be head_dim or null without deltanet.generator"),
        ("deltanet", {"generator": 0}, "deltanet.generator must be at least 1"),
        ("deltanet", {"eps": 0.0}, "deltanet.eps must be above 0"),
    ],
)  # fmt: skip
def test_each_wrong_value_is_named(section: str, changes: dict[str, float | None], message: str) -> None:
    config: Model = toy.jet().config
    assert not config.problems()
    [problem] = replace(config, **{section: replace(getattr(config, section), **changes)}).problems()
    assert f"{problem.field} {problem.message}".startswith(message)
