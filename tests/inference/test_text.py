"""Encoding of prompts and decoding of generated tokens with the tokenizer of the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sleep_data.build import build
from sleep_data.tasks import make
from sleeptrain.data.manifest import Manifest
from sleeptrain.errors import UserError
from sleeptrain.inference.text import Codec


def manifest(task: str, folder: Path, **parameters: object) -> Manifest:
    build(make(task, parameters), folder, {"train": 4, "test": 2}, 0)
    return Manifest.from_json(json.loads((folder / "manifest.json").read_text()))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"sleep number {i}, naïve. " * 3)
    return folder


@pytest.fixture
def text(documents: Path, tmp_path: Path) -> Codec:
    return Codec(manifest("text", tmp_path / "text", paths=[str(documents)], block=64, holdout=6))


def test_bytes_round_trip(text: Codec) -> None:
    ids = text.encode("naïve ∞")
    assert ids[0] == text.stop == 256
    pieces = list(text.decode(ids))
    assert "".join(pieces) == "naïve ∞"
    assert pieces[0] == "" and "ï" in pieces, "a character is returned whole, with its last byte"
    assert "".join(text.decode([0xC3])) == "\ufffd"


def test_prompt_bytes_that_are_not_utf8(text: Codec) -> None:
    prompt = b"\xff\xfea".decode("utf-8", "surrogateescape")  # as Python decodes arguments
    assert text.encode(prompt) == [256, 0xFF, 0xFE, ord("a")]


def test_symbols_round_trip(tmp_path: Path) -> None:
    codec = Codec(
        manifest("rule110", tmp_path / "rule110", strings=2, width=4, transitions=(1, 2), variant="dense", holdout=4)
    )
    ids = codec.encode("T1 01 1 T2")
    assert "".join(codec.decode(ids)).split() == ["T1", "0", "1", "1", "T2"] and codec.stop is None
    assert codec.encode("") == []
    with pytest.raises(UserError, match=r"'x' in '0x1' is not a symbol of this task; its symbols are 0 1 Q PAD"):
        codec.encode("0x1")


def test_tokens_without_a_symbol_are_shown_by_number(tmp_path: Path) -> None:
    codec = Codec(
        manifest("rule110", tmp_path / "rule110", strings=1, width=4, transitions=1, variant="paper", holdout=4)
    )
    assert "".join(codec.decode([0, 63])).split() == ["0", "<63>"]


def tokenizer_file(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel

    symbols = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(sorted(symbols))}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    tokenizer.save(str(path))


def test_a_tokenizer_file_round_trips_and_a_changed_one_is_refused(documents: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    tokenizer_file(file)
    with_file = manifest(
        "text",
        tmp_path / "text",
        paths=[str(documents)],
        block=64,
        holdout=6,
        tokenizer=str(file),
    )
    codec = Codec(with_file)
    ids = codec.encode("naïve ∞")
    assert ids[0] == codec.stop
    assert "".join(codec.decode(ids[1:])) == "naïve ∞"
    assert (tmp_path / "text" / "tokenizer.json").read_bytes() == file.read_bytes()
    run = tmp_path / "run"
    run.mkdir()
    (run / "tokenizer.json").write_bytes(file.read_bytes())
    original = file.read_text()
    file.write_text(original.replace("[]", "[ ]"))
    assert Codec(with_file, run).encode("naïve") == codec.encode("naïve"), "the copy in the run is taken"
    with pytest.raises(UserError, match=r"tokenizer .*tokenizer.json was changed since the data was built"):
        Codec(with_file)
    file.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Codec(with_file)


def test_a_continuation_keeps_its_first_space_and_an_unfinished_character(documents: Path, tmp_path: Path) -> None:
    """Metaspace drops the space at the start of a text; a continuation starts inside one. Bytes may end within a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["?", "▁the", "▁cat", "s", *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="?", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    paths = {"paths": [str(documents)], "tokenizer": str(file)}
    codec = Codec(manifest("text", tmp_path / "text", block=64, holdout=6, **paths))
    euro = [words[f"<0x{byte:02X}>"] for byte in "€".encode()]
    prompt = [codec.stop or 0, words["▁the"]]
    assert "".join(codec.decode([words["▁cat"], words["s"], *euro, words["▁the"]], prompt)) == " cats€ the"
    assert "".join(codec.decode([words["s"], *euro[:2]], prompt)).rstrip("\ufffd") == "s"
    assert "".join(codec.decode([words["s"], *euro[:2]], prompt)) != "s"
    assert "".join(codec.decode([words["▁the"]])) == "the"
