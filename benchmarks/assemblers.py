"""Which Triton and which ptxas give right kernels on this GPU, and whether torch.compile works beside them.

    python benchmarks/assemblers.py --json OUT [--triton FOLDER ...] [--ptxas FILE ...]     `benchmarks/gpu.sh assemblers` calls it

Every Triton (the installed one, and each FOLDER of `pip install --no-deps --target FOLDER triton==3.7.1`) is tried with every ptxas (its
own, and each FILE, such as that of the wheel nvidia-cuda-nvcc). For each pair the self-test of the kernels runs, all entries of the table,
and torch.compile of a small function, compared with eager execution. Pairs run beside each other, each with caches of its own, and are
written as they end; one that takes longer than 400 s is stopped. The exit status is 1 unless some pair passes the self-test.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LIMIT_S = 400.0
VERSIONS = """
import json, torch, triton
from triton.backends.nvidia.compiler import get_ptxas
print(json.dumps({"torch": torch.__version__, "triton": triton.__version__, "ptxas": get_ptxas(90).version}))
"""
INDUCTOR = """
import torch

def function(x, w):
    y = torch.nn.functional.silu(x @ w)
    return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)

def results(call):
    leaves = [torch.randn(512, 512, generator=torch.Generator().manual_seed(i)).cuda().requires_grad_() for i in range(2)]
    out = call(*leaves)
    return [out.detach(), *torch.autograd.grad(out.cos().sum(), leaves)]

for ours, theirs in zip(results(torch.compile(function, fullgraph=True)), results(function)):
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
print("ok")
"""
CHECKS = {"versions": ["-c", VERSIONS], "inductor": ["-c", INDUCTOR], "self_test": ["-m", "sleep_kernels.self_test"]}
"""Arguments of the interpreter by check, in order."""


def own_ptxas(triton: Path | None) -> Path:
    """The ptxas that a Triton brings; it is named, since the kernels would choose that of the extra `gpu` where none is."""
    folder = Path(str(find_spec("triton").origin)).parent if triton is None else triton / "triton"  # type: ignore[union-attr]
    return folder / "backends" / "nvidia" / "bin" / "ptxas"


def environment(triton: Path | None, ptxas: Path | None, cache: str) -> dict[str, str]:
    """Variables of a pair's processes."""
    found = os.environ | {"TRITON_PTXAS_PATH": str(ptxas or own_ptxas(triton))}
    found |= {"TRITON_CACHE_DIR": f"{cache}/triton", "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}
    if triton is not None:
        found["PYTHONPATH"] = os.pathsep.join([str(triton), *filter(None, [os.environ.get("PYTHONPATH")])])
    return found


def run(words: list[str], variables: dict[str, str], limit: float) -> dict[str, Any]:
    """Exit status and last lines of a Python process, which is stopped with all its children after `limit` seconds."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=output, stderr=output, env=variables, start_new_session=True
        )
        try:
            status: int | str = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = f"stopped after {limit:g} s"
        output.seek(0)
        return {"ok": status == 0, "status": status, "output": output.read().splitlines()[-60:]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results there")
    parser.add_argument(
        "--triton", metavar="FOLDER", type=Path, action="append", default=[], help="a folder with another Triton"
    )
    parser.add_argument("--ptxas", metavar="FILE", type=Path, action="append", default=[], help="another assembler")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "pairs": []}
    lock = threading.Lock()

    def pair(triton: Path | None, ptxas: Path | None) -> bool:
        row: dict[str, Any] = {"triton": str(triton or "installed"), "ptxas": str(ptxas or "its own")}
        with tempfile.TemporaryDirectory() as cache:
            for name, words in CHECKS.items():
                row[name] = run(words, environment(triton, ptxas, cache), LIMIT_S)
        with lock:
            report["pairs"].append(row)
            verdicts = ", ".join(f"{name} {'ok' if row[name]['ok'] else 'NOT OK'}" for name in CHECKS)
            print(
                f"Triton {row['triton']}, ptxas {row['ptxas']}: {verdicts}",
                *row["versions"]["output"],
                sep="\n",
                flush=True,
            )
            print(
                *(line for line in row["self_test"]["output"] if line.startswith(("ok: ", "NOT OK: "))),
                sep="\n",
                flush=True,
            )
            if arguments.json:
                arguments.json.write_text(json.dumps(report, indent=1))
        return bool(row["self_test"]["ok"])

    pairs = list(itertools.product([None, *arguments.triton], [None, *arguments.ptxas]))
    with ThreadPoolExecutor(len(pairs)) as pool:
        return 0 if any(list(pool.map(lambda each: pair(*each), pairs))) else 1


if __name__ == "__main__":
    sys.exit(main())
