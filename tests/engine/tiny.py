"""A small model with the parameter names of the language model and looped layers, and helpers that train it."""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn

from sleeptrain.engine import Engine, EngineSpec, Optim, StepResult, build_engine

VOCAB, WIDTH, PASSES = 11, 6, 3


class Mixer(nn.Module):
    """A mixer with every kind of parameter: a tall and a wide matrix, a small projection, a convolution and vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.o = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.b = nn.Linear(WIDTH, 2, bias=False)
        self.A_log = nn.Parameter(torch.zeros(2))
        self.conv_q = nn.Parameter(torch.randn(WIDTH, 3) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + x.roll(1, dims=1) * self.conv_q.sum(1)
        weight = (torch.sigmoid(self.b(x)) * torch.exp(-torch.exp(self.A_log.float())).to(x.dtype)).repeat_interleave(
            WIDTH, -1
        )
        return self.o(torch.tanh(self.q(x)) * weight)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(WIDTH)
        self.mixer = Mixer()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm1(x))


class Tiny(nn.Module):
    """Embedding, two blocks looped PASSES times, norm, head."""

    def __init__(self, seed: int = 0, vocabulary: int = VOCAB) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(vocabulary, WIDTH)
            self.layers = nn.ModuleList(Block() for _ in range(2))
            self.norm = nn.RMSNorm(WIDTH)
            self.head = nn.Linear(WIDTH, vocabulary, bias=False)

    def features(self, tokens: Tensor) -> Tensor:
        """Features [rows, time, width] after all passes over tokens [rows, time]."""
        x = self.embed(tokens)
        for _ in range(PASSES):
            for layer in self.layers:
                x = layer(x)
        return x

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The sum of the losses of all targets; -100 is not scored."""
        logits = self.head(self.norm(self.features(tokens))).float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)


def batch(step: int, rows: int = 4, length: int = 5) -> tuple[Tensor, Tensor]:
    """Tokens and targets [rows, length] of the global batch of a step; rows have different numbers of targets."""
    source = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(VOCAB, (rows, length), generator=source)
    targets = torch.randint(VOCAB, (rows, length), generator=source)
    for row in range(rows):
        targets[row, : row % length] = -100
    return tokens, targets


def loss_of(engine: Engine, step: int, micro: int, rows: int = 4) -> Tensor:
    """The scaled loss of this rank's rows of micro-batch `micro` of a step's global batch of `rows` rows."""
    tokens, targets = batch(step, rows)
    scale = engine.scale(int((targets != -100).sum()))
    each = rows // (engine.data_parallel_size * engine.accumulation)
    first = (engine.process.rank * engine.accumulation + micro) * each
    return engine.module(tokens[first : first + each], targets[first : first + each]) * scale


def train(engine: Engine, steps: range, rows: int = 4) -> list[StepResult]:
    """Whole steps; the learning rate changes from step to step."""
    results = []
    for step in steps:
        for micro in range(engine.accumulation):
            engine.backward(loss_of(engine, step, micro, rows))
        results.append(engine.step(1.0 / (1 + step)))
    return results


def full_weights(engine: Engine) -> dict[str, Tensor]:
    """All full parameters by name, in fp32; a collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    return {name: safe_get_full_fp32_param(p).detach().clone() for name, p in engine.module.named_parameters()}


def snapshot(engine: Engine) -> list[Tensor]:
    """Copies of all that a step may change on this rank: parameters, master weights, optimizer states and step counts."""
    # Under ZeRO 3 a parameter may be gathered or not; ds_tensor is this rank's partition.
    tensors = [getattr(p, "ds_tensor", p).detach() for p in engine.module.parameters()]
    states = engine.optimizer.state
    # Muon makes the states of its group last, a loaded checkpoint in the order of the groups. ZeRO 3 keeps partitions elsewhere.
    in_groups = [partition for group in engine.optimizer.param_groups for partition in group["params"]]
    for partition in in_groups or states:
        values = sorted(states[partition].items()) if partition in states else []
        tensors += [partition.detach(), *(value for _, value in values if torch.is_tensor(value))]
    return [tensor.clone() for tensor in tensors]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two snapshots are bitwise equal."""
    return len(one) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))
        for a, b in zip(one, other, strict=True)
    )


def make_engine(model: nn.Module, optim: Optim, precision: str, zero: int, *, accumulation: int = 1) -> Engine:
    """`build_engine`, after which existing objects are frozen for the garbage collector.

    DeepSpeed runs eight full collections while it builds its bf16 optimizer, which take 1.5 s over all imported modules.
    """
    engine = build_engine(model, optim, EngineSpec(precision, zero, micro_rows=1, accumulation=accumulation))  # type: ignore[arg-type]
    gc.freeze()
    return engine
