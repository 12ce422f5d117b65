"""Small models of ours, and the same models of transformers 5 with mapped tensors."""

from __future__ import annotations

from typing import Any

import torch

from sleeptrain.convert.hf_config import config_json
from sleeptrain.convert.qwen3_5 import mapped_tensors
from sleeptrain.model.config import AttentionConfig, DeltaNetConfig, MlpConfig, Model
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.program import Sleep
from tests.convert.runs import BYTES

VOCAB = 101
IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": VOCAB - 1}


def small(layers: str = "GAGA", *, gated: bool = False, std: float = 0.1, **changes: Any) -> LanguageModel:
    """A model whose norms are not neutral, so that a missing one shows."""
    sizes = {
        "attention": AttentionConfig(heads=4, kv_heads=2, head_dim=16, rotary=0.5), "deltanet": DeltaNetConfig(2, 4, 16),
        "width": 48, "mlp": MlpConfig(64), "vocab": VOCAB, "tie": False,
    } | changes  # fmt: skip
    model = LanguageModel(Model(layers=layers, init_std=std, **sizes), gated=gated)
    initialise(model, seed=0, horizon=400)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "feedback" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def tensors(model: LanguageModel) -> dict[str, torch.Tensor]:
    """Their tensors by name."""
    ours = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {t.name: t.join([ours[name] for name in t.parameters]) for t in mapped_tensors(model.config)}


def theirs(model: LanguageModel, sleep: Sleep | None = None, cls: Any = None) -> Any:
    """The model of transformers, or of another class, with the same weights in float32."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    feedback = [] if model.feedback is None else model.feedback.weight.tolist()
    body = config_json(model.config, sleep or Sleep(), dtype="float32", length=64, tokens=IDS, feedback=feedback)
    other = (cls or Qwen3_5ForCausalLM)(Qwen3_5TextConfig(**body)).eval()
    missing, unexpected = other.load_state_dict(tensors(model), strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if model.config.tie else set())
    return other


def random_tokens(rows: int, length: int, seed: int = 2) -> torch.Tensor:
    """Tokens without the padding token."""
    return torch.randint(0, VOCAB - 1, (rows, length), generator=torch.Generator().manual_seed(seed))


def text(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Rows of bytes that can be predicted: steps through the alphabet, of a size that each row has."""
    generator = torch.Generator().manual_seed(seed)
    step, start = (torch.randint(1, 8, (rows, 1), generator=generator) for _ in range(2))
    return 97 + (start + step * torch.arange(length)) % 26


def trained(sleep: Sleep | None = None, steps: int = 60, **options: Any) -> LanguageModel:
    """A model after some steps of training with a sleep."""
    sleep = sleep or Sleep(window=64)
    model = small(vocab=BYTES.size, std=0.05, **options).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for i in range(steps):
        tokens = text(8, 33, seed=i)
        loss = model(tokens[:, :-1], tokens[:, 1:], sleep=sleep)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 2.5, "it has learned something"
    return model.eval()
