"""The verdict on every node of a job, from what its tasks have measured and written into a shared folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

CLOCK_S = 5.0
"""Largest difference in seconds between a node's clock and that of the shared file system."""
SLOWEST = {"matmul": 0.85, "all-reduce in the node": 0.7}
"""Least share of the median over the job that a GPU, and the links of a node, must reach."""

Verdicts = dict[str, list[str]]
"""What is wrong with each node, by name; an empty list if it may be used."""


def judge(folder: Path, nodes: list[str]) -> Verdicts:
    """What is wrong with each of `nodes`, by the files `rank-*.json` in `folder`.

    A node fails by what its tasks report, by a task that has written nothing, by versions that most nodes have not, by its
    clock, and by a GPU or links that are much slower than the median. Only if nothing is wrong with any node alone do errors
    of the process group count, for all nodes that report one.
    """
    results = read_results(folder)
    verdicts: Verdicts = {node: [] for node in nodes}
    usual = _usual(results)
    middle = {
        name: median(values)
        for name in SLOWEST
        if (values := [each["speeds"][name] for each in results if each["judged"] and name in each["speeds"]])
    }
    for node in nodes:
        own = [each for each in results if each["node"] == node]
        reasons = [reason for each in own for reason in each["failures"]]
        tasks = own[0]["tasks"] if own else None
        if tasks is None:
            reasons.append("no task has written a result: the shared folder, Python or the node does not work")
        elif len(own) < tasks:
            reasons.append(f"{tasks - len(own)} of {tasks} tasks have written no result")
        for each in own:
            reasons += [
                f"{name} {each['facts'].get(name)}; most nodes have {value}"
                for name, value in usual.items()
                if each["facts"].get(name) != value
            ]
            if abs(each["clock"]) > CLOCK_S:
                reasons.append(f"the clock differs by {each['clock']:+.1f} s from that of the shared file system")
            reasons += [
                f"task {each['rank']}: {name} {speed(each['speeds'][name], name)}, the median is {speed(middle[name], name)}"
                for name in middle
                if name in each["speeds"] and each["speeds"][name] < SLOWEST[name] * middle[name]
            ]
        verdicts[node] = list(dict.fromkeys(reasons))
    if not any(verdicts.values()):
        for each in results:
            if each["group"] and each["node"] in verdicts:
                verdicts[each["node"]].append(each["group"])
    return verdicts


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results of all tasks in order of rank; a file that is not whole is left out."""
    results = []
    for path in sorted(folder.glob("rank-*.json")):
        try:
            results.append(json.loads(path.read_text()))
        except (OSError, ValueError):
            continue
    return sorted(results, key=lambda each: int(each["rank"]))


def _usual(results: list[dict[str, Any]]) -> dict[str, str]:
    """The value of every fact that most nodes have; of several as frequent ones that of the first rank."""
    names = {name for each in results for name in each["facts"]}
    return {name: Counter(each["facts"].get(name) for each in results).most_common(1)[0][0] for name in sorted(names)}


def speed(value: float, name: str) -> str:
    """A measured speed with its unit."""
    return f"{value / 1e12:.3g} TFLOP/s" if name == "matmul" else f"{value / 1e9:.3g} GB/s"


def table(verdicts: Verdicts) -> str:
    """A line for each node, and what is wrong with it below."""
    width = max(map(len, verdicts), default=0)
    lines = []
    for node, reasons in verdicts.items():
        lines.append(f"preflight: {node.ljust(width)}  {'FAILED' if reasons else 'ok'}")
        lines += [f"           {reason}" for reason in reasons]
    return "\n".join(lines)
