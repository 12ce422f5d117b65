"""Imports of Ouro folders: values against a forward written from the published formulas, grafted blocks, accounting, refusals, training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from sleeptrain.checkpoint import WeightReader
from sleeptrain.convert import ouro
from sleeptrain.convert.export import export_hf
from sleeptrain.convert.import_hf import import_hf
from sleeptrain.errors import UserError
from sleeptrain.inference.session import SleepSession
from sleeptrain.model.config import Model
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import run
from sleeptrain.program import Loop, Pass, Program, Sleep, Window, compile
from sleeptrain.recipe import load_recipe
from sleeptrain.recipe.load_trained import open_trained, parameter_shapes
from tests.cli.lines import run_lines
from tests.convert.runs import train_tokenizer
from tests.convert.spoil import check_refused, rewrite, to_pickle, truncate

PUBLISHED: dict[str, Any] = {
    "architectures": ["OuroForCausalLM"], "model_type": "ouro", "vocab_size": 49152, "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 128, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_scaling": None, "max_position_embeddings": 65536, "tie_word_embeddings": False,
    "total_ut_steps": 4, "early_exit_threshold": 1.0, "use_sliding_window": False, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
"""config.json of Ouro-1.4B, as far as it matters."""
SMALL = {
    "vocab_size": 280, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 8,
}  # fmt: skip
CONFIG = PUBLISHED | SMALL
"""A small model. Its tokenizer has all 280 ids, as the published one has all 49,152."""
STEPS, WINDOW = 4, 12
GATE = ["model.early_exit_gate.bias", "model.early_exit_gate.weight"]


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The published tensors of a model of this size."""
    width, hidden, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    found = {
        "model.embed_tokens.weight": (vocab, width),
        "lm_head.weight": (vocab, width),
        "model.norm.weight": (width,),
    }
    found |= {"model.early_exit_gate.weight": (1, width), "model.early_exit_gate.bias": (1,)}
    for i in range(config["num_hidden_layers"]):
        norms = ("input_layernorm", "input_layernorm_2", "post_attention_layernorm", "post_attention_layernorm_2")
        found |= {f"model.layers.{i}.{name}.weight": (width,) for name in norms}
        found |= {f"model.layers.{i}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        found |= {f"model.layers.{i}.mlp.{name}_proj.weight": (hidden, width) for name in ("gate", "up")}
        found[f"model.layers.{i}.mlp.down_proj.weight"] = (width, hidden)
    return found


def tensors() -> dict[str, Tensor]:
    """Random values; norms are not neutral, so that a missing one shows."""
    generator, made = torch.Generator().manual_seed(3), dict[str, Tensor]()
    for name, shape in shapes(CONFIG).items():
        values = torch.randn(shape, generator=generator)
        branch = 0.3 if "layernorm_2" in name else 1.0  # small branches amplify rounding less
        made[name] = branch * (1 + 0.3 * values) if "norm" in name else 0.1 * values
    return made


STATE = tensors()


def forward(p: dict[str, Tensor], tokens: Tensor, steps: int) -> list[Tensor]:
    """Ouro's logits [rows, time, vocab] after each step, from the formulas of its publication."""
    heads, d, time = CONFIG["num_attention_heads"], CONFIG["head_dim"], tokens.shape[1]

    def norm(x: Tensor, name: str) -> Tensor:
        return p[f"{name}.weight"] * x / torch.sqrt(x.square().mean(-1, keepdim=True) + CONFIG["rms_norm_eps"])

    def rotate(x: Tensor) -> Tensor:
        frequency = CONFIG["rope_theta"] ** (-torch.arange(0, d, 2, dtype=x.dtype) / d)
        angle = torch.outer(torch.arange(time, dtype=x.dtype), frequency)
        left, right = x[..., : d // 2], x[..., d // 2 :]
        return torch.cat([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()], dim=-1)

    def attention(x: Tensor, name: str) -> Tensor:
        q, k, v = ((x @ p[f"{name}.{n}_proj.weight"].T).unflatten(-1, (heads, d)).transpose(1, 2) for n in "qkv")
        scores = rotate(q) @ rotate(k).transpose(-1, -2) / d**0.5
        later = torch.ones(time, time, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(later, float("-inf")).softmax(-1) @ v
        return mixed.transpose(1, 2).flatten(2) @ p[f"{name}.o_proj.weight"].T

    def mlp(x: Tensor, name: str) -> Tensor:
        gate, up = (x @ p[f"{name}.{n}_proj.weight"].T for n in ("gate", "up"))
        return (F.silu(gate) * up) @ p[f"{name}.down_proj.weight"].T

    h, logits = p["model.embed_tokens.weight"][tokens], []
    for _ in range(steps):
        for i in range(CONFIG["num_hidden_layers"]):
            name = f"model.layers.{i}"
            h = h + norm(
                attention(norm(h, f"{name}.input_layernorm"), f"{name}.self_attn"), f"{name}.input_layernorm_2"
            )
            inner = mlp(norm(h, f"{name}.post_attention_layernorm"), f"{name}.mlp")
            h = h + norm(inner, f"{name}.post_attention_layernorm_2")
        h = norm(h, "model.norm")
        logits.append(h @ p["lm_head.weight"].T)
    return logits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in the published layout."""
    (made := tmp_path / "theirs").mkdir()
    train_tokenizer(made / "tokenizer.json")
    (made / "config.json").write_text(json.dumps(CONFIG))
    (made / "LICENSE").write_text("their terms")
    save_file(STATE, made / "model.safetensors", metadata={"format": "pt"})
    return made


def text(rows: int, length: int) -> Tensor:
    return torch.randint(0, CONFIG["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(5))


def scored_in_last_pass(model: LanguageModel, passes: int, length: int) -> Program:
    """A program of one window with `passes` passes, whose head reads the features of the last one."""
    program = compile(Sleep(length, passes, Loop(feedback="normed")), [Window(0, length, False)], len(model.layers))
    (*before, last) = program.ops
    assert isinstance(last, Pass) and last.index == passes
    return dataclasses.replace(program, ops=(*before, dataclasses.replace(last, loss=True)))


def logits(model: LanguageModel, tokens: Tensor, passes: int) -> Tensor:
    """The head's logits after pass `passes` over the tokens, which are one window."""
    sleep = Sleep(tokens.shape[1], passes, Loop(feedback="normed"))
    batch = MicroBatch(tokens, torch.full_like(tokens, -100), model.zero_state(sleep, tokens.shape[0]))
    predicted = run(
        model, batch, scored_in_last_pass(model, passes, tokens.shape[1]), sleep, predict="logits"
    ).predicted
    assert isinstance(predicted, Tensor)
    return predicted


@pytest.mark.parametrize("layers", [None, "AAAAA", "GAAAGGAAG"])
def test_pass_n_over_a_window_computes_step_n_of_ouro(layers: str | None, folder: Path, tmp_path: Path) -> None:
    found = import_hf(folder, out := tmp_path / "ours", layers)
    trained, tokens = open_trained(out), text(2, WINDOW)
    assert trained.recipe.model.pattern == (layers or "AAGAAAG") and found.tensors == len(STATE) - len(GATE)
    assert trained.recipe.sleep == Sleep(2048, STEPS, Loop(feedback="normed", trigger="every"))
    for passes, expected in enumerate(forward(STATE, tokens, STEPS), 1):
        got = logits(trained.model, tokens, passes)
        assert got.shape[-1] == 282 and expected.std() > 0.3
        torch.testing.assert_close(got[..., :280], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(got[..., 280:], got[..., :1].expand(-1, -1, 2), rtol=0, atol=1e-5)


def test_a_prediction_costs_one_pass_and_is_that_of_step_one(folder: Path, tmp_path: Path) -> None:
    """Nothing of an evicted window is read before the grafted blocks are trained, whatever N is."""
    import_hf(folder, out := tmp_path / "ours")
    model, tokens = open_trained(out).model, text(1, 2 * WINDOW)
    sleep = Sleep(WINDOW, STEPS, Loop(feedback="normed", trigger="every"))
    halves = [forward(STATE, half, 1)[0] for half in tokens.split(WINDOW, 1)]
    got = model(tokens, sleep=sleep)[..., :280]
    torch.testing.assert_close(got, torch.cat(halves, 1), rtol=0, atol=1e-5)
    session = SleepSession(model, sleep)
    session.feed(tokens)
    torch.testing.assert_close(session.logits[:, :280], halves[1][:, -1], rtol=0, atol=1e-5)


def test_gradients_of_four_passes_are_those_of_four_steps(folder: Path, tmp_path: Path) -> None:
    import_hf(folder, out := tmp_path / "ours")
    model, tokens = open_trained(out).model.double(), text(2, WINDOW)
    theirs = {name: tensor.double().requires_grad_() for name, tensor in STATE.items()}
    weight = torch.randn(280, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    (forward(theirs, tokens, STEPS)[-1] @ weight).sum().backward()  # type: ignore[no-untyped-call]
    (logits(model, tokens, STEPS)[..., :280] @ weight).sum().backward()  # type: ignore[no-untyped-call]
    mapped = ouro.mapped_tensors(model.config, CONFIG)
    for tensor in mapped:
        (ours,) = tensor.parameters
        grad, expected = model.get_parameter(ours).grad, theirs[tensor.name].grad
        assert grad is not None and expected is not None
        torch.testing.assert_close(grad[: expected.shape[0]], expected, rtol=1e-4, atol=1e-4 * float(expected.norm()))
    grafted = {n: p for n, p in model.named_parameters() if n.startswith(("layers.2.", "layers.6."))}
    largest = max(p.grad.norm() for n, p in model.named_parameters() if n not in grafted and p.grad is not None)
    moved = {n.rsplit(".", 2)[1] for n, p in grafted.items() if p.grad is not None and p.grad.norm() > 0}
    assert moved == {"out1", "out2"}, "the norms at the outputs begin, and the rest follows"
    assert all(p.grad.norm() < 10 * largest for p in grafted.values() if p.grad is not None)


def test_every_tensor_is_used_or_listed(folder: Path, tmp_path: Path) -> None:
    halves = {name: tensor.bfloat16() for name, tensor in STATE.items()}
    save_file(halves, folder / "model.safetensors")
    found = import_hf(folder, out := tmp_path / "ours")
    assert sorted(found.dropped) == GATE and all("early exit gate" in why for why in found.dropped.values())
    assert found.added == (
        "Gated DeltaNet blocks 2, 6: they add nothing until they are trained",
        "ids 280 to 281 in embedding and head: copies of id 0",
    )
    reader = WeightReader(out / "checkpoints" / "step-00000000")
    mapped, used = ouro.mapped_tensors(found.model, CONFIG), list[str]()
    for tensor in mapped:
        ours = [reader.read(name) for name in tensor.parameters]
        torch.testing.assert_close(tensor.join(ours), halves[tensor.name].float(), rtol=0, atol=1e-7)
        used += tensor.parameters
    new = sorted(set(reader.shapes) - set(used))
    assert len(used) == len(set(used)) and new and all(name.startswith(("layers.2.", "layers.6.")) for name in new)
    outs = [name for name in new if ".out" in name]
    assert len(outs) == 4 and all(bool((reader.read(name) == -1).all()) for name in outs)
    assert (out / "LICENSE").read_text() == "their terms" and (out / "tokenizer.json").exists()


def _config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


NORM = "model.layers.1.input_layernorm_2.weight"
REFUSALS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing tensor": (lambda f: rewrite(f, **{NORM: None}), r"tensor model.layers.1.input_layernorm_2.weight is missing"),
    "other tensor": (lambda f: rewrite(f, extra=torch.zeros(1)), r"model.safetensors: extra is a tensor that the model"),
    "a block too many": (lambda f: _config(f, num_hidden_layers=4), r"model.layers.4.* is a tensor that the model of config.json has not"),
    "wrong shape": (lambda f: rewrite(f, **{NORM: torch.zeros(3)}), r"has the shape \[3\], and config.json gives it \[32\]"),
    "wrong dtype": (lambda f: rewrite(f, **{NORM: torch.zeros(32, dtype=torch.int8)}), r"has dtype I8"),
    "truncated": (truncate, r"model.safetensors cannot be read as safetensors"),
    "pickle": (to_pickle, r"pytorch_model.bin may be a pickle, which can run code and is not opened"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer.json cannot be read"),
    "no steps": (lambda f: (f / "config.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k != "total_ut_steps"})),
                 r"config.json has no 'total_ut_steps'"),
    "zero steps": (lambda f: _config(f, total_ut_steps=0), r"config.json: total_ut_steps must be at least 1"),
    "a text as steps": (lambda f: _config(f, total_ut_steps="four"), r"config.json has a value of a wrong type"),
    "early exit": (lambda f: _config(f, early_exit_threshold=0.5), r"early_exit_threshold is 0.5, and sleeptrain has 1.0 only"),
    "scaled positions": (lambda f: _config(f, rope_scaling={"rope_type": "yarn"}), r"rope_type is 'yarn'"),
    "sliding window": (lambda f: _config(f, use_sliding_window=True), r"use_sliding_window is True"),
    "other layers": (lambda f: _config(f, layer_types=["sliding_attention"] * 5), r"reads full_attention only, not 'sliding_attention'"),
    "odd heads": (lambda f: _config(f, num_attention_heads=6), r"model.attention.heads must be a multiple"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bad_folder_is_refused_with_its_fault_and_nothing_is_written(case: str, folder: Path) -> None:
    check_refused(folder, *REFUSALS[case])


@pytest.mark.parametrize(
    "layers, message",
    [
        ("AAGA", r"--layers AAGA has 3 blocks of attention \(A\), and .*config.json has 5; .* as in \(AAGAA\)x1AG"),
        ("AAMAA", r"--layers AAMAA: must be made of A \(attention\)"),
        ("AAGLA", r"--layers AAGLA: Ouro has no local attention \(L\)"),
    ],
)
def test_another_number_of_blocks_is_refused(layers: str, message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        import_hf(folder, tmp_path / "ours", layers)


@pytest.mark.parametrize(
    "depth, pattern", [(1, "AG"), (2, "AGA"), (3, "AAGA"), (4, "AAGAA"), (9, "AAGAAAAGAAAG"), (24, "AAGAA" * 6)]
)
def test_every_four_blocks_get_one_in_their_middle(depth: int, pattern: str) -> None:
    assert Model(layers=ouro.default_layers(depth)).pattern == pattern


def test_the_shipped_recipe_is_ouro_with_six_new_blocks() -> None:
    """The numbers of parameters are counted on the meta device."""
    published, recipe = 1_434_652_673, load_recipe("ouro-1.4b").value
    assert sum(torch.Size(shape).numel() for shape in shapes(PUBLISHED).values()) == published
    model = ouro.read_model(PUBLISHED, "config.json", None, 49154)
    assert model == recipe.model
    assert recipe.sleep == ouro.read_sleep(PUBLISHED, "config.json")
    used = {tensor.name: tensor.shape for tensor in ouro.mapped_tensors(model, PUBLISHED)}
    assert used == {name: shape for name, shape in shapes(PUBLISHED).items() if name not in GATE}
    width, hidden, heads, d = 2048, 5632, 16, 128
    mixer = 5 * width * heads * d + 2 * width * heads + 3 * heads * d * 4 + 2 * heads + d
    block = mixer + 3 * width * hidden + 4 * width
    gate, rows = width + 1, 2 * 2 * width
    count = sum(torch.Size(shape).numel() for shape in parameter_shapes(recipe).values())
    assert count == published - gate + rows + 6 * block == 1_768_696_768


def test_export_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    import_hf(folder, out := tmp_path / "ours")
    with pytest.raises(UserError) as error:
        export_hf(out, tmp_path / "theirs-again", torch.float32, 1 << 30)
    assert [line.partition(" =")[0] for line in error.value.errors] == ["model.norm", "model.attention.qk_norm"]
    assert not (tmp_path / "theirs-again").exists()


@pytest.mark.slow
def test_training_from_an_import_lowers_the_loss(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    for i in range(30):
        (tmp_path / "documents" / f"{i}.txt").write_text(f"the fast weights remember number {i}. " * (i % 7 + 1))
    small = ["sleep.window=8", "data.row=24", "data.workers=0", "train.batch=4", "log.every=1", "checkpoint.every=0"]
    lines = run_lines(
        [
            ["data", "build", "text", "--out", "data", "paths=[documents]", "block=960", "holdout=6", "tokenizer=theirs/tokenizer.json"],
            ["import", "theirs", "--out", "ours", "--layers", "AAGAAA"],
            ["train", "ours/config.yaml", "init_from=ours", "run_dir=tuned", "train.steps=20", "data.sources=[{path: data}]",
             "optim.name=adamw", "optim.lr=0.003", "optim.schedule.warmup=1", *small],
        ],
        tmp_path,
    )  # fmt: skip
    assert [line.status for line in lines] == [0, 0, 0], [line.err for line in lines]
    assert "left out  model.early_exit_gate.bias: the early exit gate" in lines[1].out
    assert "new       Gated DeltaNet blocks 2: they add nothing" in lines[1].out
    rows = [json.loads(line) for line in (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 20 and rows[0]["passes"] == STEPS
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    out1 = WeightReader(tmp_path / "tuned" / "checkpoints" / "step-00000020").read("layers.2.out1.weight")
    assert bool((out1 != -1).any())
