"""Verdicts on nodes from what their tasks have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sleep_launch.verdict import judge

NODES = ["n1", "n2", "n3"]


def write(folder: Path, changes: dict[int, dict[str, Any]]) -> None:
    """Results of two tasks on each of three nodes with GPUs; a change of None leaves a task's file out."""
    for rank in range(6):
        result = {
            "node": NODES[rank // 2], "rank": rank, "tasks": 2, "clock": 0.1, "facts": {"torch": "2.13", "driver": "580"},
            "failures": [], "speeds": {"matmul": 7e14 + rank, "all-reduce in the node": 4e11}, "judged": True, "group": None,
        } | (changes.get(rank) or {})  # fmt: skip
        if rank not in changes or changes[rank] is not None:
            (folder / f"rank-{rank:05}.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, {}),
        ({3: {"failures": ["no space"]}}, {"n2": ["no space"]}),
        ({4: None}, {"n3": ["1 of 2 tasks have written no result"]}),
        ({4: None, 5: None}, {"n3": ["no task has written a result: the shared folder, Python or the node does not work"]}),
        ({0: {"facts": {"torch": "2.12", "driver": "580"}}}, {"n1": ["torch 2.12; most nodes have 2.13"]}),
        ({2: {"clock": -7.0}}, {"n2": ["the clock differs by -7.0 s from that of the shared file system"]}),
        ({5: {"speeds": {"matmul": 5.6e14}}}, {"n3": ["task 5: matmul 560 TFLOP/s, the median is 700 TFLOP/s"]}),
        ({5: {"speeds": {"matmul": 6.2e14}}}, {}),
        (
            {1: {"speeds": {"matmul": 7e14, "all-reduce in the node": 2e11}}},
            {"n1": ["task 1: all-reduce in the node 200 GB/s, the median is 400 GB/s"]},
        ),
        ({rank: {"judged": False, "speeds": {"matmul": 1e9 * 2**rank}} for rank in range(6)}, {}),
        # A node that fails makes the process group of all fail.
        ({1: {"group": "task 1: timeout"}, 4: None}, {"n3": ["1 of 2 tasks have written no result"]}),
        ({1: {"group": "task 1: timeout"}, 2: {"group": "task 2: timeout"}}, {"n1": ["task 1: timeout"], "n2": ["task 2: timeout"]}),
    ],
)  # fmt: skip
def test_verdicts(tmp_path: Path, changes: dict[int, dict[str, Any]], reasons: dict[str, list[str]]) -> None:
    write(tmp_path, changes)
    assert judge(tmp_path, NODES) == {node: reasons.get(node, []) for node in NODES}
