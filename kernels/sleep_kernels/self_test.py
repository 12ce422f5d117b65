"""Compares the kernels with the float64 reference on the machine at hand: `python -m sleep_kernels.self_test`.

A run's shapes take a few seconds: `self_test("cuda", [Shape(8, 1024, 16, 32, 128)])`. The whole table of this GPU, and
marking as verified what passed: `python -m sleep_kernels.self_test --write`. Every entry is then tested in a process of its
own, since an illegal address leaves a process without its GPU; `--only bfloat16-128` is such a process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import torch

from sleep_kernels import choice, verified
from sleep_kernels.comparison import Result, Shape, compare

AT_ONCE = 5
"""Entries tested at a time, given the cores: most of their time is compiling, which takes one core each."""
LIMIT_S = 300.0
"""Of one entry: a kernel that never ends must not take the others' verdicts with it."""


def self_test(
    device: str | torch.device, shapes: Iterable[Shape], backend: str = "triton", seed: int = 0
) -> list[Result]:
    """All operators of a layer against the float64 reference: outputs, final state and the gradients of everything, the
    initial state's among them. One result a shape; shapes are reduced (see Shape.reduced)."""
    return [compare(torch.device(device), shape, backend, seed) for shape in shapes]


def entries(device: torch.device) -> list[dict[str, Any]]:
    """The entries of the table for this GPU and Triton."""
    here = (choice.triton_version(), architecture(device))
    return [entry for entry in verified.table() if (entry["triton"], entry["arch"]) == here]


def architecture(device: torch.device) -> str:
    """Of a GPU, as the table has it: "sm_90"."""
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def name(entry: dict[str, Any]) -> str:
    """Of an entry among those of one Triton and GPU: "bfloat16-128"."""
    return f"{entry['dtype']}-{entry['d']}"


def verify(device: torch.device, entry: dict[str, Any]) -> Iterator[Result]:
    """Everything that a table's entry must pass: lengths around a chunk, one and two value heads a key head, three seeds."""
    dtype = getattr(torch, entry["dtype"])
    shapes = [Shape(2, time, 2, 2 * group, entry["d"], dtype) for group in (1, 2) for time in (1, 63, 64, 257)]
    for seed in range(3):
        yield from self_test(device, shapes, seed=seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--write", action="store_true", help=f"mark what passed as verified in {verified.TABLE}")
    which.add_argument("--only", metavar="NAME", help="one entry, in this process: bfloat16-128")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here, so nothing to verify; on a CPU the tests run the kernels in Triton's interpreter")
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    arch = architecture(device)
    found = {name(entry): entry for entry in entries(device)}
    if not found or arguments.only not in (None, *found):
        what = f"entry {arguments.only}" if found else "entry"
        print(f"the table has no {what} for Triton {choice.triton_version()} on {arch}: {verified.TABLE}")
        return 2
    if arguments.only:
        return 0 if _passes(device, found[arguments.only]) else 1
    verdicts = []
    for one, ok, said in _each(list(found)):
        print(said, f"{'ok' if ok else 'NOT OK'}: {one}", sep="\n", flush=True)
        verdicts.append(ok)
        if arguments.write:
            _mark(found[one], ok)
    return 0 if all(verdicts) else 1


def _passes(device: torch.device, entry: dict[str, Any]) -> bool:
    """Whether it passes everything, all of which is printed."""
    passed = []
    for result in verify(device, entry):
        print(result, flush=True)
        passed.append(result.ok)
    return all(passed)


def _each(names: list[str]) -> Iterator[tuple[str, bool, str]]:
    """Name, whether it passed, and what was said, of each entry as soon as its process ends; a few at a time."""
    with ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as pool:
        running = {pool.submit(_child, _command(one), LIMIT_S): one for one in names}
        for done in as_completed(running):
            yield running[done], *done.result()


def _command(one: str) -> list[str]:
    """Of the process that tests an entry."""
    return [sys.executable, "-m", "sleep_kernels.self_test", "--only", one]


def _child(command: list[str], limit: float) -> tuple[bool, str]:
    """Whether a process ended well within `limit` seconds, and what it said: all of it, or its last lines and its end."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:  # a pipe would also wait for a compiler left behind
        try:
            end = subprocess.run(command, stdout=output, stderr=output, timeout=limit, check=False).returncode
            how = f"ended with status {end}"
        except subprocess.TimeoutExpired:
            end, how = -1, f"stopped after {limit:g} s"
        output.seek(0)
        lines = output.read().splitlines()
    return end == 0, "\n".join(lines if end == 0 else [*lines[-40:], how])


def _mark(entry: dict[str, Any], ok: bool) -> None:
    """Set verified_on_gpu of an entry that was tested, leaving the file's layout as it is; the file is whole at all times."""
    content = verified.TABLE.read_text()
    key = json.dumps({part: entry[part] for part in ("triton", "arch", "dtype", "d")})[1:-1]
    for old in ("true", "false"):
        new = f'{key}, "verified_on_gpu": {"true" if ok else "false"}'
        content = content.replace(f'{key}, "verified_on_gpu": {old}', new)
    fresh = verified.TABLE.with_suffix(".part")
    fresh.write_text(content)
    fresh.replace(verified.TABLE)


if __name__ == "__main__":
    sys.exit(main())
