"""What a run writes: every step as JSON, lines for a terminal that shows no bar, and W&B."""

from __future__ import annotations

import http.server
import json
import math
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sleeptrain.train.config import Log, Wandb
from sleeptrain.train.log import Logs, MetricsFile, Progress, read_metrics


def row(step: int, loss: float = 1.5) -> dict[str, Any]:
    return {"step": step, "loss": loss, "grad_norm": 0.5, "tokens_per_second": 10.0, "loss_by_window": [None, loss]}


def test_rows_after_the_place_of_a_resume_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, 1)
    for step in (1, 2, 3):
        first.write(row(step))
    first.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # a crash in the middle of a line
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3]
    again = MetricsFile(path, 3)
    again.write(row(3, loss=7.0))
    again.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(path)] == [(1, 1.5), (2, 1.5), (3, 7.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 1)
    file.write(row(1, loss=value))
    file.close()
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["loss"] is None and found["loss_by_window"] == [None, None] and found["grad_norm"] == 0.5


def test_lines_where_no_bar_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("run", 0, 5, every=2)
    for step in range(1, 6):
        progress.update(step, row(step) | {"grad_norm": None if step == 4 else 0.5})
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["step 2/5", "step 4/5", "step 5/5"]
    assert "loss 1.5000  grad 0.50  10 tokens/s" in lines[0] and "grad n/a" in lines[1]
    assert all(line.endswith(" s left") for line in lines)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that were asked of a server which W&B takes for its own; its settings and caches in a temporary folder."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
            monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "elsewhere"))
        monkeypatch.delenv("WANDB_MODE", raising=False)
        yield asked
        listening.shutdown()


def log_steps(folder: Path, mode: Any, steps: range, config: dict[str, Any] | None = None) -> None:
    log = Log(every=2, wandb=Wandb(mode=mode))
    with Logs(log, folder, config or {}, steps.start - 1, 10, rank=0, quiet=True) as logs:
        for step in steps:
            logs.write(row(step))


def test_off_leaves_nothing_behind(tmp_path: Path, server: list[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    log_steps(folder, "off", range(1, 5))
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"] and server == []


def records(file: Path) -> Iterator[Any]:
    """What a W&B file holds, in order: after seven bytes, records of checksum, length and kind, as in LevelDB's log."""
    from wandb.proto import wandb_internal_pb2

    data, process = file.read_bytes(), 7
    assert data.startswith(b":W&B") and len(data) < 2**15, "one block, so that no record is cut"
    while process < len(data):
        _, length, kind = struct.unpack_from("<IHB", data, process)
        assert kind == 1, "a whole record"
        yield wandb_internal_pb2.Record.FromString(data[process + 7 : process + 7 + length])
        process += 7 + length


def test_offline_goes_on_as_the_same_run_and_asks_nobody(tmp_path: Path, server: list[str]) -> None:
    import wandb

    folder, steps = tmp_path / "run", []
    folder.mkdir()
    for part in (range(1, 5), range(5, 9)):
        log_steps(folder, "offline", part, {"train.batch": 8})
    wandb.teardown()  # its service writes on after a run has finished; it ends with the process, or here
    known = (folder / "wandb-id").read_text()
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert {file.name for file in files} == {f"run-{known}.wandb"} and len(files) == 2
    for file in files:
        for record in records(file):
            if record.WhichOneof("record_type") == "run":
                assert (record.run.run_id, record.run.project, record.run.display_name) == (known, "sleeptrain", "run")
            if record.WhichOneof("record_type") == "history":
                values = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                assert values["loss"] == 1.5 and "loss_by_window" not in values
                steps.append((record.history.step.num, values["step"]))
    assert steps == [(2, 2), (4, 4), (6, 6), (8, 8)]
    assert [r["step"] for r in read_metrics(folder / "metrics.jsonl")] == list(range(1, 9))
    assert server == []


@pytest.mark.parametrize(("mode", "passed"), [("online", "online"), ("offline", "offline")])
def test_the_mode_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, passed: str) -> None:
    """Only what `wandb.init` is asked for: a server that speaks W&B's protocol would be one more program to get wrong."""
    import wandb

    asked: list[dict[str, Any]] = []

    class Run:
        def log(self, *args: Any, **kwargs: Any) -> None:
            pass

        def finish(self, *args: Any, **kwargs: Any) -> None:
            pass

    def init(**kwargs: Any) -> Run:
        asked.append(kwargs)
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    for _ in range(2):
        log_steps(tmp_path, mode, range(1, 3))
    assert [a["mode"] for a in asked] == [passed] * 2
    assert len({a["id"] for a in asked}) == 1 and {a["resume"] for a in asked} == {"allow"}
    assert {a["dir"] for a in asked} == {str(tmp_path)}
