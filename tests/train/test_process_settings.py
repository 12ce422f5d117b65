"""Garbage collection by schedule, precision and determinism, and the comparison of the ranks' times."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from sleeptrain.errors import UserError
from sleeptrain.recipe import load_recipe
from sleeptrain.train.config import Train
from sleeptrain.train.process_settings import ScheduledCollection, apply_settings
from sleeptrain.train.rank_times import RankTimes, slowest
from tests.distributed import run
from tests.train.jobs import recipe_file, rule110_data, trained

SHORT = ["sleep.window=9", "sleep.passes=2", "train.batch=8", "checkpoint.every=0", "log.every=2"]


class Cycle:
    """An object that only the garbage collector can free."""

    def __init__(self):
        self.itself = self


def test_garbage_is_collected_at_multiples_of_the_interval_only():
    with ScheduledCollection(3) as collection:
        assert not gc.isenabled()
        alive = weakref.ref(Cycle())
        for step in (1, 2):
            collection.after(step)
            assert alive() is not None
        collection.after(3)
        assert alive() is None
    assert gc.isenabled() and gc.get_freeze_count() == 0
    with ScheduledCollection(0):
        assert gc.isenabled()


def test_torch_gets_the_settings():
    try:
        apply_settings(Train(steps=1, matmul_precision="high", deterministic=True))
        assert torch.get_float32_matmul_precision() == "high" and torch.are_deterministic_algorithms_enabled()
    finally:
        apply_settings(Train(steps=1))
    assert torch.get_float32_matmul_precision() == "highest" and not torch.are_deterministic_algorithms_enabled()


def test_a_slow_rank_is_named_with_its_multiple_of_the_median():
    assert slowest([1.0, 3.0, 2.0]) == {"slowest_rank": 1, "slowest_rank_seconds": 3.0, "slowest_rank_ratio": 1.5}
    assert RankTimes().report(1)["slowest_rank"] is None


@pytest.mark.parametrize(
    ("key", "value"), [("gc_every", "-1"), ("z_loss", "-1"), ("z_loss", ".inf"), ("z_loss", ".nan")]
)
def test_wrong_values_are_named(tmp_path, key, value):
    with pytest.raises(UserError, match=rf"train\.{key}"):
        load_recipe(recipe_file(tmp_path), [f"train.{key}={value}", "data.sources=[{path: nowhere}]"])


def watched(folder: str):
    """Metrics of a training in which rank 1 reads for 1,000 seconds, by its clock; and tensors that a step leaves in cycles."""
    where, left = Path(folder), []

    def spoil(setup):
        step, times = setup.engine.step, setup.context.times

        def slow_step(*args, **options):
            result = step(*args, **options)
            times._seconds += 1000.0 if setup.process.rank == 1 else 500.0
            gc.collect()
            left.append(sum(item.nbytes for item in gc.garbage if isinstance(item, torch.Tensor)))
            gc.garbage.clear()
            gc.set_debug(gc.DEBUG_SAVEALL)
            return result

        setup.engine.step = slow_step

    rows, _ = trained(
        where,
        "run",
        where / "rule110",
        [*SHORT, "train.steps=5", "train.recompute=selective", "train.deterministic=true"],
        spoil,
    )
    gc.set_debug(0)
    return rows, left


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    made = tmp_path_factory.mktemp("settings")
    rule110_data(made)
    recipe_file(made)
    return run(watched, 2, str(made))


def test_ranks_are_compared_every_few_steps(two):
    rows, _ = two[0]
    assert [row["slowest_rank"] for row in rows] == [None, 1, None, 1, None]
    for row in rows[1::2]:
        assert row["slowest_rank_seconds"] >= 1000 and row["slowest_rank_ratio"] == pytest.approx(4 / 3, rel=0.05)


def test_a_step_leaves_no_tensors_to_the_collector(two):
    """Otherwise they would take memory until the next scheduled collection."""
    for _, left in two:
        assert left[2:] == [0, 0, 0]
