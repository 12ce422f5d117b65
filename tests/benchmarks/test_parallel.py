"""The benchmark of layouts: slots counted by hand, teams of processes that do what they are told, and a whole quick run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.stage_slots import idle_slots, planned_slots
from benchmarks.teams import Team
from sleeptrain.program import Loop, Sleep, Window, compile
from sleeptrain.schedule import RECOMPUTE_POLICIES, build_schedule, stage_blocks

ROOT = Path(__file__).parents[2]


def schedule(policy, group, windows=3, passes=3):
    sleep = Sleep(window=4, passes=passes, loop=Loop(trigger="every"))
    program = compile(sleep, [Window(4 * i, 4 * i + 4, True) for i in range(windows)], 4)
    return build_schedule(program, stage_blocks(sleep, 4, (1,)), group, RECOMPUTE_POLICIES[policy])


@pytest.mark.parametrize("group", [2, 4])
def test_planned_slots_are_those_of_the_formula_however_unevenly_blocks_are_cut(group):
    assert planned_slots(schedule("none", group)) == pytest.approx([1 + 2, 1 + 2])


def test_slots_of_what_two_stages_did_by_hand():
    there, back = (0, 1, "forward"), (1, 0, "backward")
    first = [("begin", "FWD", 0, 0, None), ("end", "FWD", 0, 0, None), ("begin", "SEND", 0, 0, there), ("end", "SEND", 0, 0, there),
             ("begin", "RECV", 0, 0, back), ("end", "RECV", 0, 0, back),
             ("begin", "BWD", 0, 0, None), ("arrived", "rdh", 0, 0, (1, 0, "")), ("end", "BWD", 0, 0, None)]  # fmt: skip
    last = [("begin", "RECV", 0, 0, there), ("end", "RECV", 0, 0, there), ("begin", "FWD", 0, 0, None),
            ("arrived", "h", 0, 0, (0, 1, "")), ("end", "FWD", 0, 0, None), ("begin", "BWD", 0, 0, None), ("end", "BWD", 0, 0, None),
            ("begin", "SEND", 0, 0, back), ("end", "SEND", 0, 0, back)]  # fmt: skip
    # One forward, the other's forward and backward, one backward: six slots, of which each works three.
    assert idle_slots([first, last]) == [3, 3]
    with pytest.raises(RuntimeError, match="never sent"):
        idle_slots([[event for event in first if event[1] != "SEND"], last])


def told(greeting):
    """Orders of a process that joins no group."""
    return {
        "say": lambda *words: (greeting, os.environ["RANK"], os.environ["WORLD_SIZE"], *words),
        "fail": lambda: 1 / 0,
    }


def test_a_team_answers_by_rank_and_says_who_failed():
    with Team(2, told, "here") as team:
        assert team.do("say", "a") == [("here", "0", "2", "a"), ("here", "1", "2", "a")]
        with pytest.raises(RuntimeError, match=r"rank 0 of 2, fail:\n(.*\n)*ZeroDivisionError"):
            team.do("fail")


@pytest.mark.exhaustive
def test_the_quick_form_runs_and_writes_every_figure(tmp_path):
    out = tmp_path / "parallel.json"
    words = [sys.executable, str(ROOT / "benchmarks" / "parallel.py"), "--quick", "--json", str(out)]
    made = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert made.returncode == 0, made.stderr
    body = json.loads(out.read_text())
    assert body["command"].endswith(f"benchmarks/parallel.py --quick --json {out}") and body["backend"] in (
        "gloo",
        "nccl",
    )
    assert (
        body["hardware"]["cores"] >= 1 and body["environment"]["machine"] and body["environment"]["versions"]["torch"]
    )
    figures = {figure["name"]: figure for figure in body["processes"]["2"]}
    assert all(name in made.stdout for name in figures)
    for policy in ("none", "block", "pass", "window"):
        for layout in ("data=2", "tensor=2", "pipe=2"):
            assert figures[f"step, recompute {policy}, {layout}: over one process"]["value"] > 0
            assert figures[f"kept, recompute {policy}, {layout}: over plan"]["value"] == pytest.approx(1, rel=0.05)
        assert figures[f"idle slots, recompute {policy}, pipe=2: executed less planned"]["value"] == 0
        assert 0 < figures[f"idle, recompute {policy}, pipe=2: by the clock"]["value"] < 1
    kept = [
        max(figures[f"kept, recompute {p}, pipe=2: over plan"]["detail"]["by_process"])
        for p in ("window", "pass", "none")
    ]
    assert kept == sorted(kept)
