"""Waiting for a save while a rank does not run any more: one that has only ended before this one, and one that is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from sleeptrain.checkpoint import Saver
from sleeptrain.checkpoint import save as save_module
from sleeptrain.errors import ProcessLost
from sleeptrain.parallel.process import Process


def saver(folder: Path, lost: Callable[[], str], written: threading.Event) -> Saver:
    """A saver whose last save is complete once `written` is set."""
    engine = cast(Any, SimpleNamespace(process=Process(0, 1, 0, torch.device("cpu"))))
    made = Saver(engine, folder, lost=lost)
    made._thread = threading.Thread(target=written.wait, name="the checkpoint of step 3", daemon=True)
    made._thread.start()
    return made


def test_a_rank_that_ended_because_the_save_is_complete_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save_module, "ASKING", 0.01)
    written = threading.Event()

    def lost() -> str:
        monkeypatch.setattr(save_module, "ASKING", 60.0)
        written.set()  # the message that the other rank has had already arrives here
        return "rank 1 does not run"

    saver(tmp_path, lost, written).wait()
    assert written.is_set()


def test_a_save_without_a_rank_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save_module, "ASKING", 0.01)
    written = threading.Event()
    with pytest.raises(ProcessLost, match="the checkpoint of step 3 cannot be completed: rank 1 does not run"):
        saver(tmp_path, lambda: "rank 1 does not run", written).wait()
    written.set()
