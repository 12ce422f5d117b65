"""Compares the kernels with the float64 reference on the machine at hand: `python -m sleep_kernels.self_test`.

A run's shapes take a few seconds: `self_test("cuda", [Shape(8, 1024, 16, 32, 128)])`. The whole table of this GPU, and
marking as verified what passed: `python -m sleep_kernels.self_test --write`.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from sleep_kernels import choice, verified
from sleep_kernels.comparison import Result, Shape, compare


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


def verify(device: torch.device, entry: dict[str, Any]) -> Iterator[Result]:
    """Everything that a table's entry must pass: lengths around a chunk, one and two value heads a key head, three seeds."""
    dtype = getattr(torch, entry["dtype"])
    shapes = [Shape(2, time, 2, 2 * group, entry["d"], dtype) for group in (1, 2) for time in (1, 63, 64, 257)]
    for seed in range(3):
        yield from self_test(device, shapes, seed=seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"mark what passed as verified in {verified.TABLE}")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here, so nothing to verify; on a CPU the tests run the kernels in Triton's interpreter")
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    verdicts = []
    for entry in entries(device):
        passed = []
        for result in verify(device, entry):
            print(result, flush=True)
            passed.append(result.ok)
        verdicts.append((entry["dtype"], entry["d"], all(passed)))
    if not verdicts:
        print(
            f"the table has no entry for Triton {choice.triton_version()} on {architecture(device)}: {verified.TABLE}"
        )
        return 2
    if arguments.write:
        _mark(verdicts, architecture(device))
    return 0 if all(ok for *_, ok in verdicts) else 1


def _mark(verdicts: list[tuple[str, int, bool]], arch: str) -> None:
    """Set verified_on_gpu of the entries that were tested, leaving the file's layout as it is."""
    content = verified.TABLE.read_text()
    for dtype, d, ok in verdicts:
        key = json.dumps({"triton": choice.triton_version(), "arch": arch, "dtype": dtype, "d": d})[1:-1]
        for old in ("true", "false"):
            new = f'{key}, "verified_on_gpu": {"true" if ok else "false"}'
            content = content.replace(f'{key}, "verified_on_gpu": {old}', new)
    verified.TABLE.write_text(content)


if __name__ == "__main__":
    sys.exit(main())
