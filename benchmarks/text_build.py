"""Building text: bytes a second of CPU time, the speed beside the tokenizer alone, two processes against one, memory, real tokens.

The corpus is the source of Python's standard library, and documents of 50 bytes. Memory is that of a process that builds one file.
Two processes are compared with one on 384 MiB, 27 parts and 13 shards, so that neither the last part nor the start of the
processes decides. What they take in addition to the work that grows with the corpus is a figure of its own, by a second size.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from figures import Figure, interleaved, median_ratio, part

from sleep_data.text import Text
from sleep_data.text_build import build
from sleep_data.tokenize import FileTokenizer
from sleep_data.train_tokenizer import train_tokenizer

LIBRARY = Path(sysconfig.get_path("stdlib"))
SPLITS = {"train": None, "test": None}
ROW = 8192
MEMORY = "{}; from sleeptrain.train.throughput import peak_memory; print(peak_memory())"


def corpora(folder: Path, megabytes: int) -> dict[str, Path]:
    """Files of lines: the standard library's sources, repeated with a number in front, and short documents."""
    files = {"sources": folder / "sources.jsonl", "documents of 50 bytes": folder / "short.jsonl"}
    write_sources(files["sources"], megabytes)
    random = np.random.default_rng(0)
    short = ["".join(map(chr, random.integers(97, 123, 50))) for _ in range((megabytes << 20) // 200)]
    files["documents of 50 bytes"].write_text("\n".join(json.dumps({"text": text}) for text in short))
    return files


def write_sources(path: Path, megabytes: int) -> Path:
    """Write the standard library's sources to a file of lines until it has so many MiB of text, each with a number in front."""
    sources = [path.read_text(errors="replace") for path in sorted(LIBRARY.glob("*.py"))]
    size = number = 0
    with path.open("w") as file:
        while size < megabytes << 20:
            for source in sources:
                file.write(json.dumps({"text": f"# {number}\n{source}"}) + "\n")
                size, number = size + len(source), number + 1
    return path


def built(path: Path, folder: Path, processes: int, tokenizer: Path | None, clock: Callable[[], float]) -> float:
    """Seconds of a clock in which a corpus is built."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        task = Text(paths=(str(path),), tokenizer=None if tokenizer is None else str(tokenizer))
        began = clock()
        build(task, Path(out, "shards"), SPLITS, processes=processes)
        return clock() - began


def scaling(folder: Path, small: int, large: int, rounds: int) -> list[Figure]:
    """Two processes against one for `large` MiB of sources, and what of their time does not grow with the corpus."""
    paths = {size: write_sources(folder / f"{size}.jsonl", size) for size in (small, large)}
    built(paths[small], folder, 2, None, time.perf_counter)  # imports
    times = interleaved(
        {
            f"{size} {n}": lambda size=size, n=n: built(paths[size], folder, n, None, time.perf_counter)
            for size, n in ((large, 1), (large, 2), (small, 2))
        },
        rounds,
    )
    for path in paths.values():
        path.unlink()
    ratio = median_ratio(times[f"{large} 1"], times[f"{large} 2"])
    begun, whole = (statistics.median(times[f"{size} 2"]) for size in (small, large))
    fixed = (begun * large - whole * small) / (large - small)
    detail = {"MiB": large, "seconds": {name: statistics.median(values) for name, values in times.items()}}
    return [
        Figure("two processes over one", ratio, "x", at_least=1.7, detail=detail),
        Figure("two processes: time that does not grow with the corpus", fixed, "s", detail={"MiB": [small, large]}),
    ]


def encoding(path: Path, tokenizer: Path) -> Callable[[], float]:
    """A function that encodes the texts of a corpus with the tokenizer and returns the seconds of CPU time it took."""
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    loaded = FileTokenizer(str(tokenizer))._tokenizer

    def run() -> float:
        began = time.process_time()
        for start in range(0, len(texts), 256):
            loaded.encode_batch_fast(texts[start : start + 256], add_special_tokens=False)
        return time.process_time() - began

    return run


def peak(path: Path, folder: Path) -> float:
    """Mebibytes of a process that builds the bytes of a file, beyond those of one that only imports."""
    imports = (
        "from pathlib import Path; from sleep_data.patches.streaming_import import import_streaming; import_streaming(); "
        "import streaming; from sleep_data.text import Text; from sleep_data.text_build import build"
    )
    out = folder / "memory"
    whole = f"{imports}; build(Text(paths=({str(path)!r},)), Path({str(out)!r}), dict(train=None, test=None))"
    sizes = [
        int(
            subprocess.run(
                [sys.executable, "-c", MEMORY.format(code)], capture_output=True, text=True, check=True
            ).stdout
        )
        for code in (imports, whole)
    ]
    return (sizes[1] - sizes[0]) / (1 << 20)


def figures(quick: bool) -> list[Figure]:
    """All figures; a quick run builds 1 MB instead of 64, and 2 instead of 384."""
    megabytes, rounds = (1, 1) if quick else (64, 3)
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = corpora(folder, megabytes)
        tokenizer = folder / "tokenizer.json"
        train_tokenizer([str(LIBRARY / "asyncio")], 2048, tokenizer)
        for kind, path in files.items():
            seconds = statistics.median(
                interleaved({"one": lambda path=path: built(path, folder, 1, None, time.process_time)}, rounds)["one"]
            )
            rate = path.stat().st_size / 1e6 / seconds
            found.append(
                Figure(f"bytes, one process: {kind}", rate, "MB/s", at_least=5.0 if kind == "sources" else None)
            )
            body = build(Text(paths=(str(path),)), folder / f"{path.stem}-shards", SPLITS)
            entry = body["splits"]["train"]
            rows = -(-entry["tokens"] // ROW)
            found.append(
                Figure(f"real tokens of rows of {ROW}: {kind}", entry["tokens"] / (rows * ROW), "x", at_least=0.97)
            )
        found += scaling(folder, *((1, 2) if quick else (64, 384)), rounds)
        (folder / "bpe").mkdir()
        path = write_sources(folder / "bpe" / "sources.jsonl", max(1, megabytes // 8))
        builds = {
            "alone": encoding(path, tokenizer),
            "build": lambda: built(path, folder, 1, tokenizer, time.process_time),
        }
        pair = interleaved(builds, rounds)
        ratios = [alone / whole for alone, whole in zip(pair["alone"], pair["build"], strict=True)]
        found.append(
            Figure(
                "BPE: speed of a build over that of `tokenizers` alone", statistics.median(ratios), "x", at_least=0.8
            )
        )
        large = folder / "large.txt"
        with large.open("wb") as file:
            for _ in range(1 if quick else 1024):
                file.write(bytes(range(32, 127)) * ((1 << 20) // 95))
        found.append(
            Figure(f"memory for a file of {large.stat().st_size >> 20} MiB", peak(large, folder), "MiB", at_most=1024)
        )
    return found


if __name__ == "__main__":
    part(figures, __doc__, ["numpy", "tokenizers", "mosaicml-streaming"])
