"""A training step of `hybrid-1b` on a GPU, by `sleeptrain train`: seconds, tokens a second, MFU, memory, and where the time goes.

    python benchmarks/training.py --out FOLDER          `benchmarks/gpu.sh training OUT` calls it
    python benchmarks/training.py --out FOLDER --dry    toy runs on a CPU

Two rows of 8 windows of 2,048 bytes, vocabulary of 32,768, N = 2, micro-batches of one row, Muon, fused kernels. For each mode: seconds
from the command to the first step; the median of steps 3 to 5; of step 6 a profile. The run is ended then, without a checkpoint of 20 GB.
No mode begins later than --begin seconds, and one that runs is ended after --limit seconds; training.json is written after each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODES = {
    "compiled": ["train.compile=true", "train.recompute=block", "train.cuda_graphs=false"],
    "compiled, selective": ["train.compile=true", "train.recompute=selective"],
    "compiled, graphs": ["train.compile=true", "train.recompute=block", "train.cuda_graphs=true"],
    "eager": ["train.recompute=block", "train.compile=false", "train.cuda_graphs=false"],
}
STEPS = 6
REAL = [
    "hybrid-1b", "model.vocab=32768", "data.row=16384", "train.batch=2", "train.kernels=require_fused", "optim.schedule={name: constant}",
]  # fmt: skip
TOY = ["text-small", "data.row=128", "train.batch=2"]
COMMON = ["train.tokens=null", "train.steps=1000", "checkpoint.every=0", "eval.every=0", f"train.profile=[{STEPS}]"]
PROGRAM = [sys.executable, "-m", "sleeptrain"]


def build(folder: Path) -> Path:
    """Text of two million bytes as shards."""
    (folder / "text").mkdir()
    words = " ".join(str(n * n) for n in range(200_000))[:2_000_000]
    for i in range(20):
        (folder / "text" / f"{i}.txt").write_text(words[100_000 * i : 100_000 * (i + 1)])
    out = folder / "data"
    subprocess.run([*PROGRAM, "data", "build", "text", "--out", str(out), f"paths=[{folder / 'text'}]"], check=True)
    return out


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The whole rows of metrics.jsonl that there are."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def mode(words: list[str], where: Path, log: Path, limit: float) -> dict[str, Any]:
    """Train until the profile of the last step is written, or for `limit` seconds; then end the run and read its metrics."""
    began, first = time.monotonic(), None
    with log.open("w") as output:
        process = subprocess.Popen(
            [*PROGRAM, "train", *words, f"run_dir={where}"], stdout=output, stderr=output, start_new_session=True
        )
        while process.poll() is None and time.monotonic() - began < limit:
            rows = rows_of(where / "metrics.jsonl")
            first = first or (time.monotonic() - began if rows else None)
            if list((where / "profile").glob("*.txt")):
                break
            time.sleep(0.2)
        ended = process.poll()
        if ended is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    rows = rows_of(where / "metrics.jsonl")
    found: dict[str, Any] = {"steps": len(rows), "command to first step, s": first}
    if ended is not None or len(rows) < STEPS - 1:
        found["failed"] = log.read_text().splitlines()[-20:]
    if timed := rows[2 : STEPS - 1]:
        keys = ("seconds", "tokens_per_second", "mfu", "hfu", "memory_bytes")
        found |= {
            key: statistics.median(v) if (v := [r[key] for r in timed if r.get(key) is not None]) else None
            for key in keys
        }
        found |= {"losses": [row["loss"] for row in rows], "grad_norms": [row["grad_norm"] for row in rows]}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="report, logs and profiles go there")
    parser.add_argument("--begin", type=float, default=400, help="seconds after which no mode begins")
    parser.add_argument("--limit", type=float, default=560, help="seconds after which the last one is ended")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--dry", action="store_true", help="toy runs on a CPU, all of them eager")
    arguments = parser.parse_args()
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    report: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "torch": torch.__version__,
        "gpu": gpu,
        "modes": {},
    }
    began, out = time.monotonic(), arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if gpu == "none" and not arguments.dry:
        print("no GPU run")
        (out / "training.json").write_text(json.dumps(report, indent=1))
        return 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        data = build(folder)
        for name in arguments.modes:
            spent = time.monotonic() - began
            if spent > arguments.begin:
                break
            words = [*(TOY if arguments.dry else REAL), *COMMON, f"data.sources=[{{path: {data}}}]"]
            words += [w for w in MODES[name] if not arguments.dry or w.startswith("train.recompute")]
            label, where = name.replace(", ", "-"), folder / "run"
            row = mode(words, where, out / f"{label}.log", arguments.limit - spent)
            report["modes"][name] = row
            print(name, json.dumps(row), flush=True)
            (out / "training.json").write_text(json.dumps(report, indent=1))
            for profile in (where / "profile").glob("*"):
                shutil.copy(profile, out / f"{label}.{profile.name}")
            shutil.rmtree(where, ignore_errors=True)
    return 0 if report["modes"] and not any("failed" in row for row in report["modes"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
