"""Self-test of the Triton kernels against the float64 reference on this machine: `python -m sleep_kernels.self_test`.

`self_test("cuda", [Shape(8, 1024, 16, 32, 128)])` tests the shapes of one run in a few seconds. The command tests all entries
of the table for this GPU; `--write` keeps the verdicts in the user's cache folder, where `train.kernels: auto` looks, `--ship` in the
package (verdicts.json). Each entry is tested in its own process (`--only bfloat16-128`), because an illegal address makes the GPU
unusable for the process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import torch

from sleep_kernels import assembler, dispatch, verdicts, verified
from sleep_kernels.comparison import ErrorReport, Shape, compare

MAX_PARALLEL = 5
"""Largest number of entries tested in parallel, given enough cores: most of the time is compilation on one core each."""
TIMEOUT_S = 300.0
"""Time limit of one entry, so that a kernel that hangs does not prevent the verdicts of other entries."""


def self_test(
    device: str | torch.device, shapes: Iterable[Shape], backend: str = "triton", seed: int = 0
) -> list[ErrorReport]:
    """Compare all operators of a layer with the float64 reference: outputs, final state and gradients of all inputs.

    Returns one report per shape; shapes are reduced first (see Shape.reduced).
    """
    return [compare(torch.device(device), shape, backend, seed) for shape in shapes]


def entries(device: torch.device) -> list[dict[str, Any]]:
    """Entries of the table for this GPU and Triton version."""
    here = (dispatch.triton_version(), architecture(device))
    return [entry for entry in verified.table() if (entry["triton"], entry["arch"]) == here]


def architecture(device: torch.device) -> str:
    """Architecture of a GPU as in the table, for instance "sm_90"."""
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def entry_name(entry: dict[str, Any]) -> str:
    """Name of an entry among those of one Triton version and GPU, for instance "bfloat16-128"."""
    return f"{entry['dtype']}-{entry['d']}"


def verify(device: torch.device, entry: dict[str, Any]) -> Iterator[ErrorReport]:
    """Run all tests of an entry: lengths around a chunk, one and two value heads per key head, three seeds."""
    dtype = getattr(torch, entry["dtype"])
    shapes = [Shape(2, time, 2, 2 * group, entry["d"], dtype) for group in (1, 2) for time in (1, 63, 64, 257)]
    for seed in range(3):
        yield from self_test(device, shapes, seed=seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--write", action="store_true", help=f"keep the verdicts in {verdicts.cached()}")
    which.add_argument("--ship", action="store_true", help=f"keep the verdicts in {verdicts.SHIPPED}")
    which.add_argument("--only", metavar="NAME", help="test one entry in this process, for instance bfloat16-128")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here, so there is nothing to verify; on a CPU, pytest runs the kernels in Triton's interpreter")
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    arch = architecture(device)
    found = {entry_name(entry): entry for entry in entries(device)}
    if not found or arguments.only not in (None, *found):
        what = f"entry {arguments.only}" if found else "entry"
        print(f"the table has no {what} for Triton {dispatch.triton_version()} on {arch}: {verified.TABLE}")
        return 2
    ptxas = assembler.in_use(arch)
    if ptxas is None:
        print(f"Triton {dispatch.triton_version()} finds no ptxas to assemble kernels with; see {assembler.VARIABLE}")
        return 2
    if arguments.only:
        return 0 if _passes(device, found[arguments.only]) else 1
    print(f"Triton {dispatch.triton_version()}, ptxas {ptxas[1]} ({ptxas[0]}), {arch}", flush=True)
    passed = []
    for name, ok, output in _run_all(list(found)):
        print(output, f"{'ok' if ok else 'NOT OK'}: {name}", sep="\n", flush=True)
        passed.append(ok)
        if arguments.write or arguments.ship:
            path = verdicts.SHIPPED if arguments.ship else verdicts.cached()
            try:
                verdicts.write(path, verdicts.VerdictKey.of(found[name], ptxas[1]), ok)
            except OSError as error:
                print(f"the verdicts cannot be kept in {path}: {error.strerror}")
                return 1
    return 0 if all(passed) else 1


def _passes(device: torch.device, entry: dict[str, Any]) -> bool:
    """Run and print all tests of an entry; whether all of them pass."""
    passed = []
    for result in verify(device, entry):
        print(result, flush=True)
        passed.append(result.ok)
    return all(passed)


def _run_all(names: list[str]) -> Iterator[tuple[str, bool, str]]:
    """Test entries in parallel processes; yield name, verdict and output of each as soon as its process ends."""
    with ThreadPoolExecutor(min(MAX_PARALLEL, os.cpu_count() or 1)) as pool:
        running = {pool.submit(_run_child, _command(name), TIMEOUT_S): name for name in names}
        for done in as_completed(running):
            yield running[done], *done.result()


def _command(name: str) -> list[str]:
    """Command line of the process that tests an entry."""
    return [sys.executable, "-m", "sleep_kernels.self_test", "--only", name]


def _run_child(command: list[str], limit: float) -> tuple[bool, str]:
    """Run a command with a time limit in seconds; whether it succeeded, and its output.

    Of a command that failed, the last lines of its output and how it ended.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:  # a pipe would also wait for orphaned compilers
        try:
            end = subprocess.run(command, stdout=output, stderr=output, timeout=limit, check=False).returncode
            how = f"ended with status {end}"
        except subprocess.TimeoutExpired:
            end, how = -1, f"stopped after {limit:g} s"
        output.seek(0)
        lines = output.read().splitlines()
    return end == 0, "\n".join(lines if end == 0 else [*lines[-40:], how])


if __name__ == "__main__":
    sys.exit(main())
