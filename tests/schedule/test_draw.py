"""Drawings of schedules: exact text, and SVG that parses."""

import xml.etree.ElementTree as ET
from dataclasses import replace

from sleeptrain.program import Sleep, Window, compile
from sleeptrain.schedule import RECOMPUTE_POLICIES, BlockFlops, Costs, ValueSizes, build_schedule, draw, stage_blocks

SVG = "{http://www.w3.org/2000/svg}"


def schedule(policy, group=2):
    sleep = Sleep(window=4, passes=2)
    program = compile(sleep, [Window(0, 4, False), Window(4, 8, True)], 4)
    return build_schedule(program, stage_blocks(sleep, 4, (2,)), group, RECOMPUTE_POLICIES[policy])


def test_text_has_one_column_per_slot():
    assert draw(schedule("none")).text == (
        "2 stages · group of 2 micro-batches · 14.3% idle\n"
        "stage 0  |010101...BBAABBAABBAA| 86%\n"
        "stage 1  |.010101BBAABBAABBAA..| 86%\n"
        "0-9, a-z: forward of a micro-batch · A-Z: backward · r: recompute · +: head · .: idle"
    )
    assert draw(schedule("window")).text.splitlines()[1:3] == [
        "stage 0  |010101r...BBrAArrBBrrAArBBrAA| 90%",
        "stage 1  |.010101rBBrAArrBBrrAArBBrAA..| 90%",
    ]


def test_text_of_a_long_schedule_has_the_requested_number_of_columns():
    rows = draw(schedule("pass", group=9), columns=40).text.splitlines()[1:3]
    assert all(len(row.split("|")[1]) == 40 for row in rows)


def test_svg_has_a_bar_for_every_action_that_takes_time():
    root = ET.fromstring(draw(schedule("window")).svg)
    titles = [t.text for t in root.iter(f"{SVG}title")]
    recomputes = 2 * 2 * (3 + 1)
    assert root.tag == f"{SVG}svg" and len(titles) == 2 * 2 * 3 * 2 + recomputes
    assert "BWD window 0 pass 2 micro 1" in titles and "RECOMPUTE window 1 pass 1 micro 0" in titles
    edges = [float(r.get("x")) + float(r.get("width")) for r in root.iter(f"{SVG}rect")]
    assert max(edges) <= float(root.get("width")) + 0.01


def test_costs_set_the_time_scale_and_show_the_head():
    sizes = ValueSizes(1.0, (1.0,) * 4, (0.0,) * 4, (0.0,) * 4, (1.0,) * 4)
    picture = draw(schedule("pass"), Costs(sizes, (BlockFlops(1.0),) * 4, head=4.0), columns=60)
    assert "+" in picture.text.splitlines()[2] and "+" not in picture.text.splitlines()[1]
    assert any(t.text.startswith("LOSS") for t in ET.fromstring(picture.svg).iter(f"{SVG}title"))


def test_a_schedule_that_deadlocks_is_drawn_up_to_the_deadlock():
    valid = schedule("none")
    picture = draw(replace(valid, channels={e: e.direction for e in valid.channels}))
    assert picture.text.splitlines()[0].endswith("invalid schedule") and ET.fromstring(picture.svg) is not None


def test_a_schedule_whose_actions_take_no_time_is_drawn():
    valid = schedule("none")
    free = Costs(ValueSizes(0.0, (0.0,) * 4, (0.0,) * 4, (0.0,) * 4, (0.0,) * 4), (BlockFlops(0.0),) * 4)
    assert "0.0% idle" in draw(valid, free).text
