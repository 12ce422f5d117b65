"""What the host launches for a pass with CUDA graphs, counted without a GPU: replays, and operators beside them.

Graphs are replayed by running their functions again (`EagerReplay`); operators inside are not counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sleeptrain.execute.autograd import CheckpointedExecutor, ExecutorOptions
from sleeptrain.execute.cuda_graphs import CHECKS, GraphCache
from sleeptrain.execute.graph_capture import EagerReplay, NamedOutputs
from sleeptrain.execute.graphed_actions import GraphKey
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.program import Pass, Window, compile
from sleeptrain.recipe import load_recipe

TOKENS, VOCAB = 8, 50
SMALL = [
    "model.width=16", "model.mlp.hidden=16", f"model.vocab={VOCAB}", "model.attention.heads=2",
    "model.attention.kv_heads=1", "model.attention.head_dim=8",
    "model.deltanet={key_heads: 1, value_heads: 2, head_dim: 8}", f"sleep.window={TOKENS}", "train.recompute=block",
]  # fmt: skip
"""Sizes do not change the counts."""


class CountedReplay(EagerReplay):
    """Tells a counter when replays begin and end."""

    def __init__(self) -> None:
        self.counter = Launches()

    def capture(self, run: Callable[[], NamedOutputs]) -> tuple[NamedOutputs, Callable[[], None]]:
        """See `GraphRecorder`."""
        outputs, replay = super().capture(run)

        def counted() -> None:
            self.counter.inside = True
            replay()
            self.counter.inside = False

        return outputs, counted


class Launches(TorchDispatchMode):
    """Counts the operators outside of replays that launch something on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.beside = False, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run and count an operator."""
        self.beside += not self.inside and is_launch(func)
        return func(*args, **(kwargs or {}))


def is_launch(operator: Any) -> bool:
    """Whether an operator of torch computes something: it neither returns a view, a number or a property nor only allocates."""
    schema = operator._schema
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    return not views and not re.search("sym_|empty|::detach$|_local_scalar_dense|^prim::|promote_types", schema.name)


class KindCounter(GraphCache):
    """A cache that counts replays by what they compute."""

    def __init__(self, recorder: CountedReplay) -> None:
        super().__init__(recorder)
        self.kinds = Counter[str]()

    def __call__(self, kind: Any, *arguments: Any, **options: Any) -> NamedOutputs:
        """See `GraphCache`."""
        assert isinstance(kind, GraphKey)
        before = self.replayed
        outputs = super().__call__(kind, *arguments, **options)
        self.kinds[kind.what] += self.replayed - before
        return outputs


def counts(windows: int, *overrides: str) -> tuple[int, Counter[str], int]:
    """Passes, replays by kind, and operators beside them of forward and backward of a row of some windows, which all have a loss."""
    job = load_recipe("hybrid-1b", [*SMALL, *overrides]).value
    layout = [Window(start, start + TOKENS, True) for start in range(0, windows * TOKENS, TOKENS)]
    model, recorder = LanguageModel(job.model, gated=job.sleep.gated, seed=0), CountedReplay()
    cache, program = KindCounter(recorder), compile(job.sleep, layout, len(job.model.pattern))
    tokens = torch.randint(VOCAB, (1, windows * TOKENS), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        row, options = MicroBatch(tokens, tokens, model.zero_state(job.sleep, 1)), ExecutorOptions(graph_cache=cache)
        executor = CheckpointedExecutor(
            model, [row], program, job.sleep, job.train.schedule_policy, offload=False, options=options
        )
        torch.stack([output.nll.sum() for output in executor.run()]).sum().backward()

    for _ in range(CHECKS + 1):  # until every graph has been compared with eager execution
        step()
    cache.kinds.clear()
    with recorder.counter:
        step()
    return sum(isinstance(op, Pass) for op in program.ops), cache.kinds, recorder.counter.beside


def measure() -> dict[str, Any]:
    """Replays of a pass and of the loss of a window, and operators beside them: what a step of more passes has more, by pass."""
    (few, _, before), (many, replays, after) = counts(2), counts(4)
    return {
        "replays of a pass": {what: replays[f"a {what} pass"] / many for what in ("forward", "backward")},
        "replays of the loss of a window": replays["the head"] / 4,
        "operators beside them, of a pass": round((after - before) / (many - few), 1),
    }
