"""Hypothesis strategy for random programs, stages and recompute policies."""

from dataclasses import dataclass

from hypothesis import strategies as st

from sleeptrain.program import Evict, Gradient, Loop, Program, Sleep, Window, compile
from sleeptrain.schedule import RECOMPUTE_POLICIES, Schedule, StageBlocks, build_schedule, stage_blocks


@dataclass(frozen=True)
class ScheduleCase:
    """The inputs of `build_schedule`."""

    sleep: Sleep
    depth: int
    program: Program
    stages: tuple[StageBlocks, ...]
    group: int
    policy: str

    def build_schedule(self, policy: str | None = None) -> Schedule:
        return build_schedule(self.program, self.stages, self.group, RECOMPUTE_POLICIES[policy or self.policy])


@st.composite
def schedule_cases(draw: st.DrawFn, max_windows: int = 4, max_depth: int = 7, max_stages: int = 4) -> ScheduleCase:
    """A program over up to `max_windows` windows of random length, on up to `max_stages` stages of random size."""
    depth = draw(st.integers(1, max_depth))
    passes = draw(st.integers(1, 4))
    first = draw(st.integers(0, depth - 1))
    stop = draw(st.integers(first + 1, depth))
    layers = "all" if (first, stop) == (0, depth) else (first, stop)
    feedback = draw(st.sampled_from(["raw", "embeddings"] + (["normed"] if stop == depth else [])))
    k = draw(st.just("all") | st.integers(1, 4))
    windows = draw(st.just("all") | st.integers(1, 3)) if k == "all" or k >= passes else "all"
    sleep = Sleep(
        window=4, passes=passes,
        loop=Loop(layers, feedback, draw(st.sampled_from(["context", "every"]))),
        evict=Evict(draw(st.sampled_from(["hard", "sliding"]))),
        gradient=Gradient(k, windows),
    )  # fmt: skip
    assert not sleep.problems()
    start, layout = 0, []
    for _ in range(draw(st.integers(1, max_windows))):
        length = draw(st.integers(1, 4))
        layout.append(Window(start, start + length, draw(st.booleans())))
        start += length
    count = draw(st.integers(1, min(max_stages, depth)))
    cuts = tuple(sorted(draw(st.permutations(range(1, depth)))[: count - 1])) if depth > 1 else ()
    group = draw(st.integers(count, count + 2))
    return ScheduleCase(
        sleep,
        depth,
        compile(sleep, layout, depth),
        stage_blocks(sleep, depth, cuts),
        group,
        draw(st.sampled_from([*RECOMPUTE_POLICIES])),
    )
