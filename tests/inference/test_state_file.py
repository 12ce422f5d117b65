"""States of sessions as files: another process continues from one, and files that do not fit are refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sleeptrain.errors import UserError
from sleeptrain.inference import SleepSession
from sleeptrain.inference.state_file import load_state, save_state
from sleeptrain.program import Evict, Loop, Sleep
from tests.model import toy

SLEEP = Sleep(window=4, passes=2, loop=Loop(trigger="every"), evict=Evict("sliding"))


def saved(path: Path, dtype: torch.dtype = torch.float32) -> SleepSession:
    session = SleepSession(toy.model(dtype=dtype), SLEEP, batch=2)
    session.prefill(torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0]]), torch.tensor([6, 3]))
    save_state(session, path)
    return session


def test_another_process_continues_from_a_file(tmp_path: Path) -> None:
    session = saved(tmp_path / "a")
    code = (
        "import sys, torch; from sleeptrain.inference import SleepSession; from sleeptrain.inference.state_file import *\n"
        "from tests.inference.test_state_file import SLEEP; from tests.model import toy\n"
        "session = SleepSession(toy.model(dtype=torch.float32), SLEEP)\n"
        "load_state(session, sys.argv[1]); session.feed(torch.tensor([[3], [5]])); save_state(session, sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a"), str(tmp_path / "b")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    session.feed(torch.tensor([[3], [5]]))
    found = load_file(tmp_path / "b")
    assert found.keys() == session.state().tensors.keys()
    for name, tensor in session.state().tensors.items():
        assert torch.equal(found[name], tensor), name
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a", "b"]


def test_passes_and_rows_may_differ_from_those_of_the_saved_session(tmp_path: Path) -> None:
    session = saved(tmp_path / "a")
    other = SleepSession(session.model, Sleep(window=4, passes=3, loop=SLEEP.loop, evict=SLEEP.evict), batch=1)
    load_state(other, tmp_path / "a")
    session.passes = 3
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert torch.equal(other.feed(tokens), session.feed(tokens))


@pytest.mark.parametrize(
    ("model", "sleep", "message"),
    [
        ({"seed": 1}, {}, "was saved with other weights of a model of this shape"),
        ({"dtype": torch.float64}, {}, r"was saved in torch.float32, and this model computes in torch.float64"),
        ({"layers": "AG"}, {}, "was saved with model.layers = AGAG, and this model has AG"),
        ({}, {"window": 5}, "was saved with sleep.window = 4, and this model has 5"),
        ({}, {"evict": Evict("hard")}, "was saved with sleep.evict.mode = sliding, and this model has hard"),
    ],
    ids=["weights", "dtype", "layers", "window", "eviction"],
)  # fmt: skip
def test_states_of_other_models_are_refused(tmp_path: Path, model: dict, sleep: dict, message: str) -> None:
    saved(tmp_path / "a")
    fields = {"window": 4, "passes": 2, "loop": SLEEP.loop, "evict": SLEEP.evict} | sleep
    session = SleepSession(toy.model(**{"dtype": torch.float32} | model), Sleep(**fields))
    before = session.state()
    with pytest.raises(UserError, match=f"a {message}"):
        load_state(session, tmp_path / "a")
    assert session.state() is before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.1.fast"), r"tensor layers\.1\.fast is missing or unknown"),
        (lambda t: t.update(more=torch.zeros(1)), r"tensor more is missing or unknown"),
        (lambda t: t.update({"layers.1.fast": torch.zeros(2, 4, 4, 5)}), r"tensor layers\.1\.fast is torch.float32 \[2, 4, 4, 5\], and must be torch.float32 \[rows, 4, 4, 4\]"),
        (lambda t: t.update({"layers.1.fast": torch.zeros(3, 4, 4, 4)}), r"tensor .* with the rows of the others"),
        (lambda t: t.update({"live.tokens": torch.zeros(2, 5, dtype=torch.int64)}), r"live\.tokens is torch.int64 \[2, 5\], and must be torch.int64 \[rows, up to 4\]"),
        (lambda t: t.update({"live.real": t["live.real"].float()}), r"live\.real is torch.float32"),
        (lambda t: t.update({"live.tokens": t["live.tokens"] + 99}), r"live\.tokens has values that no session writes"),
        (lambda t: t.update({"live.fill": t["live.fill"] + 9}), r"live\.fill has values that no session writes"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(tmp_path: Path, change, message: str) -> None:
    session = saved(tmp_path / "a")
    with safe_open(tmp_path / "a", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(tmp_path / "a")
    change(tensors)
    save_file(tensors, tmp_path / "b", metadata)
    with pytest.raises(UserError, match=message):
        load_state(session, tmp_path / "b")


def test_files_that_are_no_states_are_refused(tmp_path: Path) -> None:
    session = saved(tmp_path / "a")
    (tmp_path / "cut").write_bytes((tmp_path / "a").read_bytes()[:-9])
    (tmp_path / "text").write_text("hello")
    save_file({"x": torch.zeros(1)}, tmp_path / "weights")
    for name, message in [
        ("cut", "cut cannot be read as a state of a session"),
        ("text", "text cannot be read as a state of a session"),
        ("none", "none cannot be read as a state of a session"),
        ("weights", "weights is not a state of a session"),
    ]:
        with pytest.raises(UserError, match=message):
            load_state(session, tmp_path / name)
    with pytest.raises(UserError, match="nowhere/a cannot be written"):
        save_state(session, tmp_path / "nowhere" / "a")
