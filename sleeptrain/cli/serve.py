"""`sleeptrain serve`: completions over HTTP, with sessions that keep their fast weights."""

from __future__ import annotations

import argparse
import socket
from importlib.util import find_spec
from typing import Any

from sleeptrain.cli.generate_engine import add_compile
from sleeptrain.cli.help import add_command, memory_size
from sleeptrain.errors import UserError

EXAMPLES = ("sleeptrain serve runs/text-small", "sleeptrain serve runs/text-small --port 8001 --passes 4 --rows 8")
GRACE = 5
"""Seconds that answers have to end after a stop request."""


def add(subparsers: Any) -> None:
    """Add this command to the program's parser."""
    description = (
        "Serve a trained model over HTTP with OpenAI's completions interface: /v1/models and /v1/completions, with\n"
        "server-sent events. Texts are written in one batch that they join and leave at any token. A request with\n"
        '"session": "new" begins a session, and one with its id continues it: fast weights, not text, are kept between them.\n'
        "Needs the packages of the extra serve: pip install 'sleeptrain[serve]'."
    )
    parser = add_command(subparsers, "serve", "serve completions over HTTP", description, EXAMPLES)
    parser.add_argument(
        "folder", metavar="RUN", help="a run folder, or a checkpoint in one, such as RUN/checkpoints/best"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen at; 0: any free one (default: 8000)")
    parser.add_argument("--name", help="name of the model in requests (default: the name of the run folder)")
    parser.add_argument("--passes", type=int, metavar="N", help="number of passes of a sleep (default: as trained)")
    add_compile(parser)
    limits = parser.add_argument_group("limits")
    for option, of, default, meaning in (
        ("--rows", int, 32, "texts that are read and written in one batch"),
        ("--waiting", int, 128, "texts that wait for a row of the batch; more are refused"),
        ("--max-tokens", int, 4096, "largest max_tokens of a request"),
        ("--seconds", float, 300.0, "time of a request"),
        ("--sessions", int, 64, "sessions that are kept"),
        ("--session-tokens", int, 1_000_000, "tokens that a session reads and writes"),
        ("--session-seconds", float, 600.0, "time that an unused session is kept"),
    ):
        limits.add_argument(option, type=of, default=default, metavar="N", help=f"{meaning} (default: {default:,.0f})")
    limits.add_argument(
        "--body", type=memory_size, default=4 << 20, metavar="SIZE", help="size of a request (default: 4MiB)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM. Returns 0."""
    _check(args)
    _check_packages()
    from sleeptrain.inference.text import Codec
    from sleeptrain.recipe.load_trained import open_trained
    from sleeptrain.serve.app import build_app
    from sleeptrain.serve.limits import Limits
    from sleeptrain.serve.served import Served
    from sleeptrain.serve.server import serve_until_stopped

    trained = open_trained(args.folder)
    listener = _listen(args.host, args.port)
    served = Served(
        args.name or trained.run.absolute().name, trained.model, trained.recipe.sleep, Codec(trained.manifest, trained.run), args.passes,
        args.compile,
    )  # fmt: skip
    limits = Limits(
        args.rows, args.waiting, args.max_tokens, args.body, args.seconds, args.sessions, args.session_tokens, args.session_seconds
    )  # fmt: skip
    app = build_app(served, limits)
    host, port = listener.getsockname()[:2]
    where = f"[{host}]" if ":" in host else host
    serve_until_stopped(app, listener, f"serving {served.name} at http://{where}:{port}/v1", GRACE)
    return 0


def _check_packages() -> None:
    """Raise UserError, naming the extra, where a package of the server is missing."""
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs {' and '.join(missing)}: pip install 'sleeptrain[serve]'")


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address. Raises UserError where that is not possible."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({error}); name another port, or 0 for any free one"
        ) from None
    return listener


def _check(args: argparse.Namespace) -> None:
    """Raise UserError that lists every option out of range."""
    counts = {
        name: getattr(args, name)
        for name in ("rows", "max_tokens", "seconds", "sessions", "session_tokens", "session_seconds", "body")
    }
    rules = [(f"--{name.replace('_', '-')}", value, value > 0, "above 0") for name, value in counts.items()]
    rules += [
        ("--waiting", args.waiting, args.waiting >= 0, "0 or more"),
        ("--port", args.port, 0 <= args.port < 65536, "from 0 to 65535"),
        ("--passes", args.passes, args.passes is None or args.passes >= 1, "at least 1"),
    ]
    errors = [f"{name} {value}: must be {wanted}" for name, value, good, wanted in rules if not good]
    if errors:
        raise UserError(errors)
