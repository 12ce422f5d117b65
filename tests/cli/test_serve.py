"""`sleeptrain serve`: a real server, the official client, many and impolite clients, sessions, wrong requests, signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from sleep_data.tokenize import ByteTokenizer
from sleeptrain import SleepSession, open_trained
from sleeptrain.inference.sampling import Sampling
from sleeptrain.recipe.load_trained import Trained
from tests.cli.programs import ENVIRONMENT, WAIT
from tests.cli.runs import untrained
from tests.train.jobs import text_data

LIMITS = (
    "--rows",
    "8",
    "--waiting",
    "40",
    "--max-tokens",
    "300",
    "--sessions",
    "3",
    "--session-tokens",
    "500",
    "--body",
    "32KiB",
)
BOS = 256


class Server:
    """A server in a process of its own."""

    def __init__(self, folder: Path, *options: str, run: str = "runs/text") -> None:
        command = [sys.executable, "-m", "sleeptrain", "serve", run, *options, "--port", "0"]
        environ = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(command, cwd=folder, env=environ, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert line.startswith(f"serving {Path(run).name} at http://127.0.0.1:"), line + self.process.stderr.read()
        self.url = line.split()[-1]
        self.http = httpx.Client(base_url=self.url, timeout=WAIT)
        self.client = openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=WAIT)

    def complete(self, prompt: Any, seed: int = 0, **fields: Any) -> Any:
        return self.client.completions.create(model="text", prompt=prompt, seed=seed, **fields)

    def post(self, **fields: Any) -> httpx.Response:
        return self.http.post(
            "/completions", json={"model": "text", "prompt": "a", "max_tokens": 2, "seed": 0} | fields
        )

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Send a signal; the exit status and the rest of standard error."""
        try:
            self.process.send_signal(number)
            _, err = self.process.communicate(timeout=WAIT)
            return self.process.returncode, err
        finally:
            self.process.kill()
            self.http.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose next tokens depend on the context, and whose likeliest text never ends: its weights are larger than those
    of an untrained one."""
    made = tmp_path_factory.mktemp("served")
    changes = ("sleep.window=16", "sleep.passes=2", "sleep.loop.trigger=every", "model.init_std=0.3")
    untrained(made, "runs/text", text_data(made), *changes, never=ByteTokenizer.bos)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder, *LIMITS)
    yield server
    assert server.stop() == (0, ""), "SIGINT is the normal end, and no request left a trace"


@pytest.fixture(scope="module")
def narrow(folder: Path) -> Iterator[Server]:
    """A server with one row, where a text that is not stopped takes hours."""
    server = Server(folder, "--rows", "1", "--waiting", "0", "--max-tokens", "900000", "--seconds", "90000")
    yield server
    assert server.stop() == (0, "")


class Alone:
    """A session with one row, which no other request shares."""

    def __init__(self, trained: Trained) -> None:
        self.session = SleepSession(trained.model, trained.recipe.sleep)

    def text(self, prompt: list[int], count: int, seed: int, temperature: float = 1.0) -> str:
        sample, written = Sampling(temperature, seed=seed).sampler(), []
        self.session.feed(torch.tensor([prompt], dtype=torch.int64))
        while len(written) < count and (token := int(sample(self.session.logits))) != BOS:
            written.append(token)
            self.session.feed(torch.tensor([[token]]), scored=True)
        return bytes(token for token in written if token < 256).decode(errors="replace")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Trained:
    return open_trained(folder / "runs/text")


@pytest.fixture
def alone(trained: Trained) -> Alone:
    return Alone(trained)


def tokens(prompt: str) -> list[int]:
    return [BOS, *prompt.encode()]


def joined(stream: Any) -> str:
    return "".join(choice.text for chunk in stream for choice in chunk.choices)


def test_the_official_client_lists_models_and_completes(server: Server, alone: Alone) -> None:
    assert [model.id for model in server.client.models.list()] == ["text"]
    assert server.client.models.retrieve("text").owned_by == "sleeptrain"
    answer = server.complete("lmno é", seed=3, max_tokens=40)
    assert answer.choices[0].text == alone.text(tokens("lmno é"), 40, 3)
    assert answer.object == "text_completion" and answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage.prompt_tokens == 8 and answer.usage.total_tokens == 8 + answer.usage.completion_tokens


def test_the_official_client_streams(server: Server, alone: Alone) -> None:
    options = {"include_usage": True}
    chunks = list(
        server.complete("a longer prompt of some windows", 5, max_tokens=40, stream=True, stream_options=options)
    )
    assert joined(chunks) == alone.text(tokens("a longer prompt of some windows"), 40, 5)
    assert len(chunks) > 10 and chunks[-1].usage.prompt_tokens == 32
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] is not None


def test_prompts_and_choices_are_in_order(server: Server, trained: Trained) -> None:
    answer = server.complete([tokens("ab"), tokens("xyz")], seed=2, n=2, max_tokens=9)
    expected = [Alone(trained).text(tokens(p), 9, 2 + i) for p in ("ab", "xyz") for i in range(2)]
    assert [choice.text for choice in sorted(answer.choices, key=lambda c: c.index)] == expected
    assert len(set(expected)) == 4


def test_texts_end_before_a_stop_string(server: Server) -> None:
    whole = server.complete("lmno", seed=1, max_tokens=30).choices[0].text
    stop = whole[9:12]
    for stream in (False, True):
        answer = server.complete("lmno", seed=1, max_tokens=30, stop=["nowhere", stop], stream=stream)
        assert (joined(answer) if stream else answer.choices[0].text) == whole[: whole.index(stop)]


@pytest.mark.slow
def test_32_clients_at_once_get_what_they_get_alone(server: Server, trained: Trained) -> None:
    prompts = {seed: "abcdefgh " * (seed % 7) + str(seed) for seed in range(32)}
    start = threading.Barrier(len(prompts))

    def ask(seed: int) -> str:
        start.wait()
        return joined(server.complete(prompts[seed], seed, max_tokens=8 + seed % 9, stream=True))

    with ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(ask, prompts))
    assert found == [Alone(trained).text(tokens(p), 8 + seed % 9, seed) for seed, p in prompts.items()]


def test_a_client_that_does_not_read_delays_nobody(server: Server, alone: Alone) -> None:
    with raw_request(server, max_tokens=100, stream=True, prompt="slow", seed=9) as slow:
        assert server.post().status_code == 200
        received = b""
        while b"[DONE]" not in received:
            received += slow.recv(512)
    events = [json.loads(line[6:]) for line in received.split(b"\n") if line.startswith(b"data: {")]
    assert "".join(e["choices"][0]["text"] for e in events) == alone.text(tokens("slow"), 100, 9)


def raw_request(server: Server, **fields: Any) -> socket.socket:
    url = httpx.URL(server.url)
    body = json.dumps({"model": "text", "prompt": "a"} | fields).encode()
    connection = socket.create_connection((url.host, url.port), timeout=WAIT)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def wait_until(answer: Callable[[], httpx.Response], status: int) -> httpx.Response:
    """Ask until an answer has a status."""
    deadline = time.monotonic() + WAIT
    while (found := answer()).status_code != status:
        assert time.monotonic() < deadline, found
    return found


ENDLESS = {"max_tokens": 900000, "temperature": 0}
"""The likeliest token of this model never ends a text."""


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_frees_the_row(narrow: Server, stream: bool) -> None:
    def ask_beside_it() -> httpx.Response:
        with raw_request(narrow, **ENDLESS, stream=stream):
            return narrow.post()  # which may arrive first

    full = wait_until(ask_beside_it, 503)
    assert full.json()["error"]["code"] == "overloaded" and full.headers["retry-after"] == "1"
    wait_until(narrow.post, 200)


def test_sessions_continue_their_own_text(server: Server, trained: Trained) -> None:
    alone = [Alone(trained) for _ in range(2)]
    ids: list[str] = ["new", "new"]
    for turn, prompt in enumerate(["the first prompt, over a window", "", " and on", "x"]):
        for i in range(2):
            read = tokens(prompt + "!" * i) if turn == 0 else [*f"{prompt}{'!' * i}".encode()]
            answer = server.complete(prompt + "!" * i, 40 + i, max_tokens=11, extra_body={"session": ids[i]})
            assert answer.choices[0].text == alone[i].text(read, 11, 40 + i)
            ids[i] = answer.session
    assert ids[0] != ids[1]
    for name in ids:
        assert server.http.delete(f"/sessions/{name}").json() == {"id": name, "object": "session", "deleted": True}
        assert server.post(session=name).status_code == 404


def test_an_aborted_request_leaves_its_session_as_it_was(narrow: Server) -> None:
    def begin() -> str:
        return wait_until(lambda: narrow.post(session="new", prompt="a beginning"), 200).json()["session"]

    name = begin()
    body = {"model": "text", "prompt": "b", "stream": True, "session": name, **ENDLESS}
    endless = narrow.http.build_request("POST", "/completions", json=body)
    answer = wait_until(lambda: narrow.http.send(endless, stream=True), 200)
    lines = answer.iter_lines()  # whose end would close the connection
    assert next(lines).startswith("data: ")
    assert narrow.post(session=name).status_code == 409
    assert narrow.http.delete(f"/sessions/{name}").status_code == 409
    lines.close()
    answer.close()
    again = wait_until(lambda: narrow.post(session=name, prompt="c", max_tokens=20), 200)
    expected = narrow.post(session=begin(), prompt="c", max_tokens=20)
    assert again.json()["choices"] == expected.json()["choices"]


def test_sessions_and_their_tokens_are_limited(server: Server) -> None:
    names = [server.post(session="new").json()["session"] for _ in range(3)]
    full = server.post(session="new")
    assert (full.status_code, full.json()["error"]["code"]) == (429, "too_many_sessions")
    long = server.post(session=names[0], prompt="a" * 400, max_tokens=200)
    assert (long.status_code, long.json()["error"]["code"]) == (400, "too_many_tokens")
    assert "4 + 400 + max_tokens = 200 tokens are above 500" in long.json()["error"]["message"]
    assert server.post(session=names[0], prompt="a" * 400).status_code == 200
    for name in names:
        assert server.http.delete(f"/sessions/{name}").status_code == 200


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"model": "gpt"}, 404, "model", "model 'gpt' does not exist; this server has 'text'"),
        ({"prompt": ""}, 400, "prompt", "is empty; give at least one token"),
        ({"prompt": []}, 400, "prompt", "0 prompts times n = 1 are not 1 to 48 texts"),
        ({"prompt": ["a"] * 49}, 400, "prompt", "49 prompts times n = 1"),
        ({"prompt": {"a": 1}}, 400, "prompt", "must be a text, token ids, or a list of either"),
        ({"prompt": [1, True]}, 400, "prompt", "must be a text, token ids"),
        ({"prompt": [-1]}, 400, "prompt", "token ids must be in 0..257"),
        ({"prompt": [10**30]}, 400, "prompt", "token ids must be in 0..257"),
        ({"prompt": "a" * 501}, 400, "prompt", "502 tokens are above 500"),
        ({"max_tokens": 0}, 400, "max_tokens", "0 is not in 1..300"),
        ({"max_tokens": 301}, 400, "max_tokens", "301 is not in 1..300"),
        ({"max_tokens": "many"}, 400, "max_tokens", "valid integer"),
        ({"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ({"top_p": 0}, 400, "top_p", "greater than 0"),
        ({"n": 49}, 400, "prompt", "1 prompts times n = 49"),
        ({"stop": ""}, 400, "stop", "at most 16 strings that are not empty"),
        ({"stop": ["a"] * 17}, 400, "stop", "at most 16 strings"),
        ({"stream": 1}, 400, "stream", "valid boolean"),
        ({"logprobs": 2}, 400, "logprobs", "not implemented"),
        ({"echo": True}, 400, "echo", "not implemented"),
        ({"temprature": 1}, 400, "temprature", "there is no such field"),
        ({"session": "nothing"}, 404, "session", "session 'nothing' does not exist or has expired"),
        ({"session": "new", "n": 2}, 400, "session", "a session has one text"),
    ],
)  # fmt: skip
def test_wrong_fields_are_refused(
    server: Server, fields: dict[str, Any], status: int, param: str, message: str
) -> None:
    answer = server.post(**fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert message in error["message"]


def test_neutral_fields_of_openai_are_accepted(server: Server) -> None:
    assert (
        server.post(best_of=1, echo=False, logprobs=None, presence_penalty=0.0, suffix=None, user="me").status_code
        == 200
    )
    with pytest.raises(openai.BadRequestError, match="frequency_penalty: not implemented"):
        server.complete("a", frequency_penalty=0.5)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/completions", b"{", 400, "invalid_request"),
        ("POST", "/completions", b"[]", 400, "invalid_request"),
        ("POST", "/completions", b"\xff", 400, "invalid_request"),
        ("POST", "/completions", b'{"model": "text", "prompt": "\\ud800"}', 400, "invalid_request"),
        ("POST", "/completions", b"[" * 30000, 400, "invalid_request"),
        ("POST", "/completions", b" " * (1 << 20), 413, "body_too_large"),
        ("GET", "/completions", b"", 405, "not_found"),
        ("GET", "/nothing", b"", 404, "not_found"),
        ("GET", "/models/gpt", b"", 404, "model_not_found"),
        ("POST", "/chat/completions", b"{}", 404, "no_chat_template"),
        ("DELETE", "/sessions/nothing", b"", 404, "session_not_found"),
    ],
)  # fmt: skip
def test_wrong_requests_have_errors_in_the_format_of_openai(
    server: Server, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    answer = server.http.request(method, path, content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["run", "startup"])
def test_a_signal_before_the_server_listens_ends_it(folder: Path, method: str) -> None:
    code = f"""import os, signal, sys, uvicorn
from sleeptrain.cli.main import main
begun = uvicorn.Server.{method}
def begin(*args, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return begun(*args, **options)
uvicorn.Server.{method} = begin
sys.exit(main(["serve", "runs/text", "--port", "0"]))"""
    environ = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environ, capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert ran.returncode == 0 and len(ran.stderr.splitlines()) == 1, ran.stderr


@pytest.mark.slow
def test_a_text_that_takes_too_long_ends(folder: Path) -> None:
    server = Server(folder, "--seconds", "0.5", "--max-tokens", "900000")
    late = server.post(**ENDLESS)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
    with pytest.raises(openai.APIError, match=r"the text took more than 0\.5 seconds"):
        list(server.complete("a", **ENDLESS, stream=True))
    assert server.stop(signal.SIGTERM) == (0, "")


@pytest.mark.slow
def test_a_stop_request_ends_running_texts(folder: Path) -> None:
    server = Server(folder, "--max-tokens", "900000")
    stream = iter(server.complete("a", **ENDLESS, stream=True))
    next(stream)
    status, err = server.stop(signal.SIGTERM)
    assert status == 0 and "Traceback" not in err
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        list(stream)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["runs/nope"], ["runs/nope does not exist; give a run folder"]),
        (["runs/text", "--port", "99999", "--rows", "0", "--passes", "0", "--seconds", "nan"], ["--port 99999: must be from 0", "--rows 0: must be above 0", "--passes 0", "--seconds nan: must be above 0"]),
        (["runs/text", "--host", "192.0.2.1"], ["--host 192.0.2.1 --port 8000: cannot listen there"]),
    ],
)  # fmt: skip
def test_wrong_options(
    sleeptrain: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], parts: list[str]
) -> None:
    monkeypatch.chdir(folder)
    ran = sleeptrain("serve", *words)
    assert ran.status == 2 and all(part in ran.err for part in parts), ran.err


def test_a_port_in_use_and_a_missing_package_are_named(
    sleeptrain: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = sleeptrain("serve", "runs/text", "--port", str(taken.getsockname()[1]))
    assert ran.status == 2 and "name another port, or 0 for any free one" in ran.err
    monkeypatch.setattr("sleeptrain.cli.serve.find_spec", lambda name: None)
    ran = sleeptrain("serve", "runs/text")
    assert ran.status == 2 and "serve needs fastapi and uvicorn: pip install 'sleeptrain[serve]'" in ran.err


@pytest.mark.slow
def test_examples_run(folder: Path, examples: Any) -> None:
    if not (folder / "runs/text-small").exists():
        (folder / "runs/text-small").symlink_to(folder / "runs/text", target_is_directory=True)
    for _, run, *options in examples("serve"):
        server = Server(folder, *options, run=run)  # at a free port instead of that of the example
        assert [model.id for model in server.client.models.list()] == [Path(run).name]
        assert server.stop() == (0, "")
