"""The engine of `sleeptrain generate`: a session of ours, or one in llama.cpp."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sleeptrain.errors import UserError

if TYPE_CHECKING:
    from sleeptrain.inference import SleepSession
    from sleeptrain.inference.continuation import TextSession
    from sleeptrain.inference.llama_session import LlamaSession
    from sleeptrain.inference.text import Codec
    from sleeptrain.recipe.load_trained import RunFiles

LLAMA = "llama.cpp"


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the options of engines to the command's parser."""
    parser.add_argument(
        "--engine", choices=["sleeptrain", LLAMA], default="sleeptrain",
        help="what computes: sleeptrain, or llama.cpp, where windows sleep with feedback normed or embeddings",
    )  # fmt: skip
    parser.add_argument(
        "--gguf", type=Path, metavar="FILE", help="for llama.cpp: the model of RUN, which sleeptrain export wrote"
    )
    add_compile(parser)


def add_compile(parser: argparse.ArgumentParser) -> None:
    """Add the option that compiles decoding."""
    parser.add_argument(
        "--compile", action="store_true",
        help="compile what a written token computes, which takes up to a minute at the first one (default: no)",
    )  # fmt: skip


def engine_problems(args: argparse.Namespace) -> Iterator[str]:
    """What is wrong with the options of engines."""
    if (args.engine == LLAMA) != (args.gguf is not None):
        yield f"--engine {LLAMA} and --gguf FILE go together; sleeptrain export RUN --to gguf writes the file"
    if args.engine == LLAMA and args.compile:
        yield f"--compile does not apply to --engine {LLAMA}; leave one of them out"
    if args.engine == LLAMA and args.save_state is not None:
        yield f"--save-state does not apply to --engine {LLAMA}; leave one of them out"


def open_session(args: argparse.Namespace, rows: int) -> tuple[TextSession, Codec]:
    """A session for `rows` texts, which continues a saved one where the options name one, and what encodes its texts."""
    from sleeptrain.inference.text import Codec
    from sleeptrain.recipe.load_trained import open_run_files

    opened = open_run_files(Path(args.folder))
    session = _open_llama(args, opened, rows) if args.engine == LLAMA else _open(args, rows)
    return session, Codec(opened.manifest, opened.run)


def _open(args: argparse.Namespace, rows: int) -> SleepSession:
    """A session of ours."""
    from sleeptrain.inference import SleepSession
    from sleeptrain.inference.state_file import load_state
    from sleeptrain.recipe.load_trained import open_trained

    trained = open_trained(args.folder)
    session = SleepSession(trained.model, trained.recipe.sleep, batch=rows, passes=args.passes, compiled=args.compile)
    if args.load_state is not None:
        load_state(session, args.load_state)
    return session


def _open_llama(args: argparse.Namespace, opened: RunFiles, rows: int) -> LlamaSession:
    """A session in llama.cpp. The run's weights are read only to continue a saved session."""
    from sleeptrain.inference.llama_session import LlamaSession

    recipe = opened.resolved.value
    saved = _open(args, rows) if args.load_state is not None else None
    rows = len(saved.lengths) if saved else rows
    session = LlamaSession(args.gguf, recipe.model, recipe.sleep, batch=rows, passes=args.passes)
    written = session.loaded.metadata("sleeptrain.step")
    if written is not None and int(written) != opened.step:
        raise UserError(
            f"--gguf {args.gguf} is of step {int(written):,}, and {args.folder} of step {opened.step:,}; name that checkpoint, or export "
            "the run again"
        )
    if saved:
        session.load_state(saved)
    return session
