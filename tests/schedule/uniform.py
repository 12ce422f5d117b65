"""A circular schedule with equal stages, and costs that are equal for all blocks; for results known in closed form."""

from sleeptrain.program import Loop, Sleep, Window, compile
from sleeptrain.schedule import RECOMPUTE_POLICIES, BlockFlops, Costs, ValueSizes, build_schedule, stage_blocks


def uniform_costs(depth, **kwargs):
    """Costs of blocks of one FLOP per token, at one FLOP per second."""
    sizes = ValueSizes(
        h=2.0, fast=(64.0,) * depth, conv=(3.0,) * depth, kv=(0.0,) * depth, graph=(40.0,) * depth, head=50.0
    )
    return Costs(sizes, (BlockFlops(1.0),) * depth, **kwargs)


def circular_schedule(stages, windows, passes, group, policy="none", recompute=None, depth=None, targets=True):
    depth = depth or stages
    sleep = Sleep(window=4, passes=passes, loop=Loop(trigger="every"))
    layout = [Window(4 * i, 4 * i + 4, targets) for i in range(windows)]
    cuts = tuple(depth // stages * i for i in range(1, stages))
    return build_schedule(
        compile(sleep, layout, depth), stage_blocks(sleep, depth, cuts), group, recompute or RECOMPUTE_POLICIES[policy]
    )
