"""Metrics logging: `metrics.jsonl`, progress lines without a progress bar, and W&B."""

from __future__ import annotations

import http.server
import json
import math
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sleeptrain.errors import UserError
from sleeptrain.train.config import Log, Wandb
from sleeptrain.train.log import Logs, MetricsFile, Progress, read_metrics
from sleeptrain.train.wandb_run import check_wandb, wandb_mode


def row(step: int, loss: float = 1.5) -> dict[str, Any]:
    return {
        "step": step,
        "loss": loss,
        "grad_norm": 0.5,
        "tokens_per_second": 10.0,
        "padding": 0.0,
        "loss_by_window": [None, loss],
    }


def test_rows_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, 1)
    for step in (1, 2, 3):
        first.write(row(step))
    first.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # a line truncated by a crash
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3]
    resumed = MetricsFile(path, 3)
    resumed.write(row(3, loss=7.0))
    resumed.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(path)] == [(1, 1.5), (2, 1.5), (3, 7.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_damaged_line_costs_no_other_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [json.dumps(row(step)) for step in range(1, 6)]
    rows[1], rows[3] = rows[1][:9] + "\x00\x00", "[4]"
    path.write_bytes(("\n".join(rows) + "\n").encode() + b"\xff")
    resumed = MetricsFile(path, 5)
    resumed.close()
    assert [r["step"] for r in read_metrics(path)] == [1, 3]
    warned = capsys.readouterr().err.splitlines()
    assert warned == [f"warning: {path}, line {number} is damaged and left out" for number in (2, 4)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_values_are_null(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 1)
    file.write(row(1, loss=value))
    file.close()
    parsed = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert parsed["loss"] is None and parsed["loss_by_window"] == [None, None] and parsed["grad_norm"] == 0.5


def test_progress_lines_without_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("run", 0, 5, every=2)
    for step in range(1, 6):
        progress.update(
            step, row(step) | {"grad_norm": None if step == 4 else 0.5, "padding": 0.25 if step == 4 else 0.04}
        )
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["step 2/5", "step 4/5", "step 5/5"]
    assert "loss 1.5000  grad 0.50  10 tokens/s" in lines[0] and "grad n/a" in lines[1]
    assert "10 tokens/s  padding 25%  " in lines[1] and "padding" not in lines[0]
    assert all(line.endswith(" s left") for line in lines)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Requested paths of a local server set as W&B's base URL; W&B's settings and caches are in a temporary folder."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
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
        yield requests
        listening.shutdown()


def log_steps(folder: Path, mode: Any, steps: range, config: dict[str, Any] | None = None) -> None:
    log = Log(every=2, wandb=Wandb(mode=mode))
    with Logs(log, folder, config or {}, steps.start - 1, 10, rank=0, quiet=True) as logs:
        for step in steps:
            logs.write(row(step))


def test_mode_off_writes_no_wandb_files_and_sends_no_requests(tmp_path: Path, server: list[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    log_steps(folder, "off", range(1, 5))
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"] and server == []


def records(file: Path) -> Iterator[Any]:
    """Records of a W&B file in order. After seven bytes, each record has checksum, length and kind, as in LevelDB's log."""
    from wandb.proto import wandb_internal_pb2

    data, offset = file.read_bytes(), 7
    assert data.startswith(b":W&B") and len(data) < 2**15, "one block, so no record is split"
    while offset < len(data):
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        assert kind == 1, "a complete record"
        yield wandb_internal_pb2.Record.FromString(data[offset + 7 : offset + 7 + length])
        offset += 7 + length


def history(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a W&B file, each with its number."""
    return [
        (
            record.history.step.num,
            {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item},
        )
        for record in records(file)
        if record.WhichOneof("record_type") == "history"
    ]


def test_offline_continues_the_same_run_and_sends_no_requests(tmp_path: Path, server: list[str]) -> None:
    import wandb

    folder, steps = tmp_path / "run", []
    folder.mkdir()
    for part in (range(1, 6), range(6, 10)):
        log_steps(folder, "offline", part, {"train.batch": 8})
    wandb.teardown()  # W&B's service writes after a run has finished, until teardown or the end of the process
    run_id = (folder / "wandb-id").read_text()
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert {file.name for file in files} == {f"run-{run_id}.wandb"} and len(files) == 2
    for file in files:
        for record in records(file):
            if record.WhichOneof("record_type") == "run":
                assert (record.run.run_id, record.run.project, record.run.display_name) == (run_id, "sleeptrain", "run")
        for number, values in history(file):
            assert values["loss"] == 1.5 and values["loss_by_window/1"] == 1.5 and "loss_by_window/0" not in values
            steps.append((number, values["step"]))
    assert steps == [(2, 2), (4, 4), (5, 5), (6, 6), (8, 8), (9, 9)], "the last step of each part, too"
    assert [r["step"] for r in read_metrics(folder / "metrics.jsonl")] == list(range(1, 10))
    assert server == []


def test_wandb_prints_its_command_and_no_table_of_metrics(tmp_path: Path, server: list[str]) -> None:
    """In a process of its own, where W&B is set up as training does it: after the check of the key."""
    program = (
        "import sys; from pathlib import Path; from sleeptrain.train.config import Log, Wandb\n"
        "from sleeptrain.train.log import Logs\nfrom sleeptrain.train.wandb_run import quiet_wandb\n"
        "quiet_wandb()\n"
        "with Logs(Log(every=1, wandb=Wandb(mode='offline')), Path(sys.argv[1]), {}, 0, 2, rank=0, quiet=True) as logs:\n"
        "    for step in (1, 2): logs.write({'step': step, 'loss': 1.5, 'grad_norm': 0.5, 'tokens_per_second': 1.0, 'padding': 0.0})\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    [folder] = tmp_path.glob("wandb/offline-run-*")
    assert ran.stdout == "" and ran.stderr.splitlines() == [
        f"W&B: the run is stored; this sends it: wandb sync {folder}"
    ]


def test_steps_that_are_made_again_reach_wandb(tmp_path: Path, server: list[str]) -> None:
    """After a run went back; W&B drops rows whose numbers do not grow."""
    import wandb

    with Logs(Log(every=1, wandb=Wandb(mode="offline")), tmp_path, {}, 0, 10, rank=0, quiet=True) as logs:
        for step in (1, 2, 3, 4):
            logs.write(row(step))
        logs.rewind(2)
        for step in (3, 4, 5):
            logs.write(row(step))
    wandb.teardown()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert [(n, v["step"]) for n, v in history(file)] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 3), (6, 4), (7, 5)]
    axes = [r.metric for r in records(file) if r.WhichOneof("record_type") == "metric"]
    assert any(axis.glob_name == "*" and axis.step_metric == "step" for axis in axes)
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("mode", "passed"), [("online", "online"), ("offline", "offline")])
def test_the_mode_is_passed_to_wandb_init(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str, passed: str
) -> None:
    """Checks the arguments of `wandb.init` only, because a test server would have to implement W&B's protocol."""
    import wandb

    calls: list[dict[str, Any]] = []

    class Run:
        step, offline, url = 0, mode == "offline", "https://wandb.test/run"
        sync_dir = "a folder"

        def define_metric(self, *args: Any, **kwargs: Any) -> None:
            pass

        def log(self, *args: Any, **kwargs: Any) -> None:
            pass

        def finish(self, *args: Any, **kwargs: Any) -> None:
            pass

    def init(**kwargs: Any) -> Run:
        calls.append(kwargs)
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    for _ in range(2):
        log_steps(tmp_path, mode, range(1, 3))
    assert [call["mode"] for call in calls] == [passed] * 2
    assert len({call["id"] for call in calls}) == 1 and {call["resume"] for call in calls} == {"allow"}
    assert {call["dir"] for call in calls} == {str(tmp_path)}
    lines = {
        "online": ["W&B: https://wandb.test/run"] * 2,
        "offline": ["W&B: the run is stored; this sends it: wandb sync 'a folder'"],
    }
    assert capsys.readouterr().err.splitlines() == lines[mode] * 2, "at the start and the end of each part"


@pytest.mark.parametrize(
    ("configured", "environment", "mode"),
    [
        ("online", None, "online"),
        ("online", "offline", "offline"),
        ("offline", "disabled", "disabled"),
        ("offline", "online", "online"),
    ],
)
def test_the_environment_goes_before_the_recipe(
    monkeypatch: pytest.MonkeyPatch, configured: Any, environment: str | None, mode: str
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert wandb_mode(Log(wandb=Wandb(mode=configured))) == mode


def test_a_missing_key_is_told_before_a_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"there is no API key for W&B; run `wandb login` or set WANDB_API_KEY"):
        check_wandb(Log(wandb=Wandb(mode="online")))
    check_wandb(Log(wandb=Wandb(mode="offline")))
    check_wandb(Log())
