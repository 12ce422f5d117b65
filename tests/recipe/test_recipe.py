"""Checks of a recipe: batch size against the number of processes, rules over several sections, run folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from sleeptrain.data.manifest import Manifest
from sleeptrain.errors import UserError
from sleeptrain.program import Window
from sleeptrain.recipe import check_batch, complete, load_recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("world", [1, 2, 4, 64])
def test_a_batch_that_divides_is_accepted(world: int) -> None:
    check_batch(load_recipe("rule110-tiny"), world)
    check_batch(load_recipe("rule110-tiny", [f"mesh.data={world}"]), world)


@pytest.mark.parametrize(
    ("changes", "world", "errors"),
    [
        ([], 3, ["train.batch = 64 (rule110-tiny.yaml:16): does not divide over 3 processes; the nearest that does is 63"]),
        (["train.batch=2"], 8, ["train.batch = 2 (command line): does not divide over 8 processes; the nearest that does is 8"]),
        (
            ["train.micro=32"],
            4,
            ["train.micro = 32 (command line) with train.batch = 64 (rule110-tiny.yaml:16): the micro-batch does not divide the 16 rows of each of 4 processes; choose a divisor of 16"],
        ),
        (
            ["mesh.data=2", "train.batch=8"],
            3,
            ["mesh.data = 2 (command line): 3 processes were started; start 2, for instance with torchrun --nproc_per_node 2 -m sleeptrain train ..., or set mesh.data=0 to take all there are"],
        ),
        (["mesh.tensor=2"], 3, ["mesh.data = 0 (default) with mesh.tensor = 2 (command line): 3 processes were started; start 2 or 4, for instance with torchrun --nproc_per_node 2 -m sleeptrain train ..."]),
        (["mesh.tensor=2", "mesh.pipe=2"], 1, ["mesh.data = 0 (default) with mesh.pipe = 2 (command line) with mesh.tensor = 2 (command line): 1 process was started; start 4, for instance with torchrun --nproc_per_node 4 -m sleeptrain train ..."]),
        (["mesh.data=2", "mesh.pipe=2"], 3, ["mesh.data = 2 (command line) with mesh.pipe = 2 (command line): 3 processes were started; start 4, for instance with torchrun --nproc_per_node 4 -m sleeptrain train ..."]),
        (
            ["mesh.pipe=2", "train.batch=20", "train.micro=2"],
            4,
            ["train.batch = 20 (command line) with train.micro = 2 (command line) with mesh.group = 0 (default) with mesh.pipe = 2 (command line): "
             "the 5 micro-batches of each of 2 processes do not make groups of 2 or 3 or 4 micro-batches; the nearest batch that does is 24"],
        ),
    ],
)  # fmt: skip
def test_a_batch_or_mesh_that_does_not_fit_the_processes_is_refused(
    changes: list[str], world: int, errors: list[str]
) -> None:
    line = (ROOT / "configs" / "rule110-tiny.yaml").read_text().splitlines().index("  batch: 64") + 1
    with pytest.raises(UserError) as caught:
        check_batch(load_recipe("rule110-tiny", changes), world)
    assert caught.value.errors == [error.replace("tiny.yaml:16", f"tiny.yaml:{line}") for error in errors]


def test_the_run_folder_has_the_name_of_the_recipe() -> None:
    recipe = load_recipe("rule110-tiny").value
    assert recipe.folder("rule110-tiny") == recipe.folder("somewhere/rule110-tiny.yaml") == Path("runs/rule110-tiny")
    assert load_recipe("rule110-tiny", ["run_dir=there"]).value.folder("rule110-tiny") == Path("there")


@pytest.mark.parametrize(
    "gradient", ["{passes: 2}", "{passes: 2, windows: 1}", "{passes: 4, windows: 3}", "{windows: 3}"]
)
def test_a_horizon_is_accepted_if_gradient_crosses_windows(gradient: str) -> None:
    load_recipe("rule110-tiny", ["sleep.passes=4", f"sleep.gradient={gradient}"])
    with pytest.raises(UserError, match="no gradient crosses a sleeping window unless all of its passes"):
        load_recipe("rule110-tiny", ["sleep.passes=4", "sleep.gradient={passes: 3, windows: 2}"])


def test_truncated_normed_feedback_between_stages_is_refused() -> None:
    normed = ["sleep.passes=3", "sleep.loop.feedback=normed", "model.layers=AGGA"]
    with pytest.raises(UserError) as caught:
        load_recipe("rule110-tiny", [*normed, "mesh.pipe=2", "sleep.gradient.passes=2"])
    assert caught.value.errors == [
        'mesh.pipe = 2 (command line) with sleep.loop.feedback = "normed" (command line) with sleep.gradient.passes = 2 (command '
        "line): the gradient of the final norm would be incomplete: the sending stage applies the norm and receives no gradient "
        "from a pass that detaches its input; use sleep.gradient.passes=all, sleep.loop.feedback=raw, or mesh.pipe=1"
    ]
    load_recipe("rule110-tiny", [*normed, "mesh.pipe=2", "sleep.gradient.passes=all"])
    load_recipe("rule110-tiny", [*normed, "mesh.pipe=2", "sleep.gradient.passes=3"])
    load_recipe("rule110-tiny", [*normed, "mesh.pipe=2", "sleep.gradient.passes=2", "sleep.loop.feedback=raw"])
    load_recipe("rule110-tiny", [*normed, "mesh.pipe=1", "sleep.gradient.passes=2"])


def test_deepspeed_keys_are_reported_together_with_broken_rules() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("rule110-tiny", ["mesh.sequence=true", "deepspeed.optimizer.type=Adam", "deepspeed.dump_stat=true"])
    assert [error.partition(" = ")[0] for error in caught.value.errors] == [
        "deepspeed.optimizer",
        "deepspeed.dump_stat",
        "mesh.sequence",
    ]


def test_sliding_eviction_needs_windows_of_equal_length() -> None:
    windows = tuple(Window(start, stop, True) for start, stop in ((0, 9), (9, 17), (17, 20)))
    manifest = Manifest(
        task="toy", vocab=8, pad=7, query=None, length=20, windows=windows, tokenizer={}, label=None, label_values=(), labels={},
        baselines={}, splits={}, hash="", body={},
    )  # fmt: skip
    sliding = ["sleep.evict.mode=sliding", "sleep.loop.trigger=every"]
    with pytest.raises(UserError, match=r"sleep\.evict\.mode = .*those in runs/data/rule110-tiny have 3, 8, 9 tokens"):
        complete(load_recipe("rule110-tiny", sliding), manifest)
    complete(load_recipe("rule110-tiny", sliding[1:]), manifest)
