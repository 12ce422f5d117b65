"""The learning-rate multiplier against values computed by hand, and invalid values of the `optim:` section."""

import pytest

from sleeptrain.engine.config import LRSchedule, Optim
from sleeptrain.engine.lr_schedule import lr_multiplier


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (LRSchedule("constant", warmup=4), {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 99: 1.0, 500: 1.0}),
        (LRSchedule("constant"), {0: 1.0}),
        # Decay from step 0 to 100: at a quarter it is (1 + cos 45 degrees) / 2.
        (LRSchedule("cosine"), {0: 1.0, 25: 0.8535533905932737, 50: 0.5, 75: 0.14644660940672627, 100: 0.0, 200: 0.0}),
        # Step 60 is half way between 20 and 100; with the floor, 0.5 becomes 0.1 + 0.9 * 0.5.
        (LRSchedule("cosine", warmup=20, floor=0.1), {9: 0.5, 19: 1.0, 20: 1.0, 60: 0.55, 100: 0.1}),
        # The last fifth decays: 1 at 80, 0.5 at 90, 0.05 at the last step.
        (LRSchedule("wsd", warmup=10, decay=0.2), {0: 0.1, 9: 1.0, 50: 1.0, 80: 1.0, 90: 0.5, 99: 0.05, 100: 0.0}),
        (LRSchedule("wsd", decay=0.5, floor=0.2), {49: 1.0, 75: 0.6, 100: 0.2, 101: 0.2}),
    ],
)
def test_multiplier_at_points_of_every_schedule(schedule: LRSchedule, points: dict[int, float]) -> None:
    for step, expected in points.items():
        assert lr_multiplier(schedule, step, 100) == pytest.approx(expected, abs=1e-12), step


def test_a_run_that_is_shorter_than_its_warmup() -> None:
    for name in ("constant", "cosine", "wsd"):
        schedule = LRSchedule(name, warmup=10)  # type: ignore[arg-type]
        assert [lr_multiplier(schedule, step, 5) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
        lr_multiplier(schedule, 12, 5)


def test_problems_name_the_field() -> None:
    bad = Optim(name="muon", lr=-1.0, betas=(0.9, 1.0), clip=-1.0)
    assert {problem.field for problem in bad.problems()} == {"lr", "betas", "clip", "adam_lr"}
    assert {p.field for p in LRSchedule(warmup=-1, decay=0.0, floor=2.0).problems()} == {"warmup", "decay", "floor"}
    assert Optim().problems() == [] and LRSchedule().problems() == []
    assert Optim(lr=float("nan")).problems()
