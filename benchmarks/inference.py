"""Time per token at wake by passes and by length of the context, the rate of prefill, and the bytes of the context's state.

A model that sleeps and a full-attention model of transformers of the same width, depth and MLP, with random weights, read and write
in turn in one process, so that what slows one slows both. The bytes are counted from shapes, at those of `hybrid-1b`.

Full attention reads 32k tokens once: minutes on two cores. The whole run takes less than nine.

    python benchmarks/cpu.py --only inference --json benchmarks/results/inference.json
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from figures import Figure, interleaved, median_ratio, part
from torch.profiler import ProfilerActivity, profile

from sleeptrain import LanguageModel, Loop, Model, Sleep, SleepSession, load_recipe
from sleeptrain.inference.rows import session_leaves
from sleeptrain.model.config import AttentionConfig, DeltaNetConfig, MlpConfig

VOCAB = 8192
PASSES = (1, 2, 4, 8)


def model_config(width: int) -> Model:
    """A hybrid of 8 blocks, one in four with attention."""
    return Model(
        width=width, layers="(GGGA)x2", vocab=VOCAB, mlp=MlpConfig(4 * width),
        attention=AttentionConfig(heads=width // 64, kv_heads=width // 64, head_dim=64),
        deltanet=DeltaNetConfig(key_heads=width // 64, value_heads=width // 64, head_dim=64),
    )  # fmt: skip


def full_attention(width: int, longest: int) -> Any:
    """A model of transformers with attention in every block, of the same width and depth."""
    # Text models import torchvision through image utilities; one that was built for another torch cannot be imported.
    with mock.patch("transformers.utils.import_utils._torchvision_available", False):
        from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=width, num_hidden_layers=8, intermediate_size=4 * width, head_dim=64,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=longest, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def seconds(call: Callable[[], Any]) -> float:
    """The time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Writer:
    """A session that has read `length` tokens, and writes single ones."""

    def __init__(self, model: LanguageModel, sleep: Sleep, passes: int, length: int, *, compiled: bool = False) -> None:
        self.session = SleepSession(model, sleep, passes=1, compiled=compiled)
        self.session.prefill(torch.randint(VOCAB, (1, length)))
        self.session.passes = (
            passes  # the context is read with one pass: the time of a token does not depend on what it was
        )
        self.state = self.session.state()

    def write(self, tokens: int) -> float:
        """The time of a token, from the same state each time, so that no window ends."""
        self.session.load_state(self.state)
        return seconds(lambda: list(self.session.generate(tokens))) / tokens


class FullCache:
    """A model with a cache of all tokens, of which `length` are read."""

    def __init__(self, model: Any, length: int) -> None:
        from transformers import DynamicCache

        self.model, self.length, self.cache = model, length, DynamicCache()
        with torch.no_grad():
            model(torch.randint(VOCAB, (1, length)), past_key_values=self.cache, logits_to_keep=1)

    def write(self, tokens: int) -> float:
        """The time of a token."""
        prompt = torch.zeros(1, self.length + 1, dtype=torch.int64)
        options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        taken = seconds(lambda: self.model.generate(prompt, past_key_values=self.cache, **options)) / tokens
        self.cache.crop(self.length)
        return taken


def tokens_at_wake(quick: bool) -> list[Figure]:
    """Ratios of the time of a token."""
    width, window, lengths = (
        (64, 32, (48, 80)) if quick else (512, 512, (1024 + 256, 4096 + 256, 16384 + 256, 32768 - 256))
    )
    tokens, rounds = (3, 1) if quick else (32, 7)
    model = LanguageModel(model_config(width)).eval()
    sleep = Sleep(window=window, passes=1, loop=Loop(trigger="every"))
    runs: dict[str, Callable[[], float]] = {}
    for passes in PASSES:
        runs[f"N={passes}"] = partial(Writer(model, sleep, passes, lengths[0]).write, tokens)
    for length in lengths[1:]:
        runs[f"{length}"] = partial(Writer(model, sleep, 1, length).write, tokens)
    compiled = Writer(model, sleep, 1, lengths[0], compiled=True)
    compiled.write(1)  # which compiles
    runs["compiled"] = partial(compiled.write, tokens)
    runs["full"] = partial(FullCache(full_attention(width, lengths[-1] + 64), lengths[0]).write, tokens)
    times = interleaved(runs, rounds)
    first = times["N=1"]
    found = [
        Figure("a token with N=1", 1e3 * statistics.median(first), "ms", detail={"width": width, "context": lengths[0]})
    ]
    found += [
        Figure(f"a token with N={n} by one with N=1", median_ratio(times[f"N={n}"], first), "ratio", at_most=1.1)
        for n in PASSES[1:]
    ]
    for length in lengths[1:]:
        ratio = median_ratio(times[f"{length}"], first)
        found.append(Figure(f"a token after {length} by one after {lengths[0]}", ratio, "ratio", at_most=1.1))
    ratio = median_ratio(times["compiled"], first)
    found.append(Figure("a token of compiled decoding by one of eager decoding", ratio, "ratio"))
    found += operators(model, sleep, lengths[0])
    ratio = median_ratio(first, times["full"])
    return [*found, Figure(f"a token after {lengths[0]} by one of full attention", ratio, "ratio", at_most=1.0)]


def operators(model: LanguageModel, sleep: Sleep, length: int) -> list[Figure]:
    """What the profiler of torch counts for a token: operators, those that others call included, and bytes of new tensors."""
    found = []
    for kind in ("eager", "compiled"):
        writer, tokens = Writer(model, sleep, 1, length, compiled=kind == "compiled"), 8
        writer.write(1)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            writer.write(tokens)
        events = [e for e in profiled.key_averages() if e.key.startswith(("aten::", "sleep_kernels::"))]
        calls, made = sum(e.count for e in events), sum(max(0, e.self_cpu_memory_usage) for e in events)
        found.append(Figure(f"operators of a token, {kind}", calls / tokens, "operators"))
        found.append(Figure(f"bytes that a token allocates, {kind}", made / tokens, "bytes"))
    return found


def prefill(quick: bool) -> list[Figure]:
    """The rate at which a long prompt is read, beside full attention."""
    width, window, length = (64, 32, 96) if quick else (512, 512, 32768)
    model = LanguageModel(model_config(width)).eval()
    sleep = Sleep(window=window, passes=1, loop=Loop(trigger="every"))
    full, prompt = full_attention(width, length), torch.randint(VOCAB, (1, length))

    def read() -> Any:
        return SleepSession(model, sleep).prefill(prompt)

    SleepSession(model, sleep).prefill(
        prompt[:, : 2 * window]
    )  # pages, threads and kernels that the first call would wait for

    def read_full() -> Any:
        with torch.no_grad():
            return full(prompt, use_cache=True, logits_to_keep=1)

    times = interleaved({"ours": lambda: seconds(read), "full": lambda: seconds(read_full)}, 1)
    return [
        Figure(
            f"prefill of {length} tokens",
            length / statistics.median(times["ours"]),
            "tokens/s",
            detail={"width": width},
        ),
        Figure("prefill by that of full attention", median_ratio(times["full"], times["ours"]), "ratio", at_least=1.5),
    ]


def state_bytes(quick: bool) -> list[Figure]:
    """The most that the state of a context takes, by the cache of full attention in every block after 32k tokens."""
    recipe = load_recipe("hybrid-1b", ["model.vocab=32768"]).value
    model, a = recipe.model, recipe.model.attention
    leaves = session_leaves(model, recipe.sleep, torch.bfloat16)
    kinds = {kind: 0 for kind in ("fast", "conv", "kv", "live")}
    for leaf in leaves:
        kinds[leaf.kind] += leaf.dtype.itemsize * torch.Size(leaf.shape).numel()
    cache = 2 * len(model.pattern) * a.kv_heads * a.head_dim * 2 * 32768
    detail = {"bytes": kinds, "cache": cache, "window": recipe.sleep.window}
    return [
        Figure(
            "bytes of hybrid-1b's state by a cache of 32k tokens",
            sum(kinds.values()) / cache,
            "ratio",
            at_most=0.15,
            detail=detail,
        )
    ]


def measure(quick: bool) -> Sequence[Figure]:
    """All figures."""
    torch.manual_seed(0)
    return [*state_bytes(quick), *tokens_at_wake(quick), *prefill(quick)]


if __name__ == "__main__":
    part(measure, __doc__ or "", ("torch", "transformers"))
