"""Which weights patterns choose, what is said of wrong ones, and the block down to which gradients are needed."""

from __future__ import annotations

import pytest

from sleeptrain.model.trained import first_block, select, selection_problem, weights_of
from sleeptrain.program import Loop, Sleep
from tests.model import toy

CONFIG = toy.config("AGAG")
ALL = set(weights_of(CONFIG, False))
BLOCKS = {n: {name for name in ALL if name.startswith(f"layers.{n}.")} for n in range(4)}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["layers.G"], BLOCKS[1] | BLOCKS[3]),
        (["layers.3"], BLOCKS[3]),
        (["layers.[01]", "norm"], BLOCKS[0] | BLOCKS[1] | {"norm.weight"}),
        (["layers.A.mixer.q*"], {f"layers.{n}.mixer.{q}.weight" for n in (0, 2) for q in ("q", "q_norm")}),
        (["layers.*.mlp"], {name for name in ALL if ".mlp." in name}),
        (["layers.1.mixer.A_log", "head.weight"], {"layers.1.mixer.A_log", "head.weight"}),
        (["!embed", "!layers.G"], ALL - {"embed.weight"} - BLOCKS[1] - BLOCKS[3]),
        (["layers.G", "!layers.*.mlp"], {name for name in BLOCKS[1] | BLOCKS[3] if ".mlp." not in name}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_patterns_name_weights_and_modules_by_number_and_by_letter(patterns: list[str], expected: set[str]) -> None:
    assert select(tuple(patterns), CONFIG, False) == expected
    assert selection_problem(tuple(patterns), CONFIG, False) is None


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        (["layers.G", "layers.1.mixr"], "no weight or module matches 'layers.1.mixr'; did you mean layers.1.mixer"),
        (["G"], "no weight or module matches 'G'; the model has embed, norm, head, layers.A, layers.G, layers.0 to layers.3"),
        (["!layers.9"], "no weight or module matches '!layers.9'; did you mean "),
        (["layers.G", "!layers.*"], "no weight is left to be trained"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_patterns_are_named_with_what_was_probably_meant(patterns: list[str], problem: str) -> None:
    assert str(selection_problem(tuple(patterns), CONFIG, False)).startswith(problem)


def test_a_tied_model_has_no_head_and_a_vocabulary_is_not_needed() -> None:
    tied = toy.config("AG", tie=True, vocab=None)
    assert "'head'" in str(selection_problem(("head",), tied, False))
    assert select(("feedback",), tied, True) == {"feedback.weight"}


@pytest.mark.parametrize(
    ("patterns", "sleep", "expected"),
    [
        (["layers.2"], Sleep(), 2),
        (["layers.2", "embed"], Sleep(), 0),
        (["head"], Sleep(), 3),
        (["layers.2"], Sleep(passes=2), 0),
        (["layers.2"], Sleep(passes=2, loop=Loop(feedback="embeddings")), 2),
        (["layers.3"], Sleep(passes=2, loop=Loop(layers=(1, 3))), 3),
        (["layers.2"], Sleep(passes=2, loop=Loop(layers=(1, 3))), 1),
        (["layers.0"], Sleep(passes=2, loop=Loop(layers=(1, 3))), 0),
        (["norm"], Sleep(passes=2, loop=Loop(feedback="normed")), 0),
        (["norm"], Sleep(passes=2), 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_blocks_below_the_first_that_depends_on_a_trained_weight_need_no_gradient(
    patterns: list[str], sleep: Sleep, expected: int
) -> None:
    assert first_block(select(tuple(patterns), CONFIG, False), CONFIG, sleep) == expected
