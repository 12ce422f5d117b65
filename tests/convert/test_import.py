"""Imports of Qwen3.5 folders that other programs wrote, and refusals that leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sleeptrain.checkpoint import WeightReader
from sleeptrain.convert.hf_config import config_json, sleep_json
from sleeptrain.convert.import_hf import import_hf
from sleeptrain.errors import UserError
from sleeptrain.inference.text import Codec
from sleeptrain.program import Loop, Sleep
from sleeptrain.recipe import load_recipe
from sleeptrain.recipe.load_trained import initial_weights, open_trained
from tests.convert.runs import TEXTS, train_tokenizer
from tests.convert.spoil import check_refused, rewrite, to_pickle, truncate
from tests.convert.toys import IDS, small, tensors

MODEL = small("GGGA", vocab=288, tie=True)
STATE = tensors(MODEL)
"""The tensors of a model that another program wrote."""


def config(**changes: Any) -> dict[str, Any]:
    body = config_json(MODEL.config, Sleep(), dtype="bfloat16", length=64, tokens=IDS)
    return {key: value for key, value in body.items() if key not in ("sleep", "auto_map")} | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as others publish it: no section of ours, one file."""
    (made := tmp_path / "theirs").mkdir()
    train_tokenizer(made / "tokenizer.json")
    (made / "config.json").write_text(json.dumps(config()))
    (made / "LICENSE").write_text("their terms")
    save_file(STATE, made / "model.safetensors")
    return made


def imported(out: Path) -> dict[str, torch.Tensor]:
    reader = WeightReader(out / "checkpoints" / "step-00000000")
    return {name: reader.read(name) for name in reader.shapes}


def test_a_folder_of_another_program_becomes_a_run_to_start_from(folder: Path, tmp_path: Path) -> None:
    found = import_hf(folder, out := tmp_path / "ours")
    assert found.tensors == len(STATE) and not found.dropped
    weights = imported(out)
    assert all(torch.equal(weights[name], p) for name, p in MODEL.named_parameters())
    trained = open_trained(out)
    assert (
        trained.recipe.sleep == Sleep(window=2048, loop=Loop(trigger="every")) and trained.recipe.model.layers == "GGGA"
    )
    assert (out / "LICENSE").read_text() == "their terms"
    codec = Codec(trained.manifest, out)
    ids = codec.encode(TEXTS[0])
    assert ids[0] == trained.manifest.pad - 1 and "".join(codec.decode(ids[1:])) == TEXTS[0]
    resolved = load_recipe(str(out / "config.yaml"), [f"init_from={out}", f"run_dir={tmp_path / 'new'}"])
    assert initial_weights(resolved, "new") == out / "checkpoints" / "step-00000000"


def test_tensors_of_vision_and_prediction_are_listed_as_dropped(folder: Path, tmp_path: Path) -> None:
    text = {name.replace("model.", "model.language_model.", 1): t for name, t in STATE.items()}
    others = {name: torch.zeros(2) for name in ("model.visual.merger.norm.weight", "mtp.fc.weight")}
    halves = {name: tensor.bfloat16() for name, tensor in text.items()} | others
    save_file(
        halves | {"lm_head.weight": halves["model.language_model.embed_tokens.weight"].clone()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(
        json.dumps({"model_type": "qwen3_5", "tie_word_embeddings": True, "text_config": config()})
    )
    found = import_hf(folder, tmp_path / "ours")
    assert found.tensors == len(STATE) and found.dropped == {
        "lm_head.weight": "it is the embedding (tie_word_embeddings)",
        "model.visual.merger.norm.weight": "the vision tower, which sleeptrain has not",
        "mtp.fc.weight": "multi-token prediction, which sleeptrain has not",
    }
    assert torch.equal(imported(tmp_path / "ours")["embed.weight"], MODEL.embed.weight.bfloat16().float())


def _index(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)


def _config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config(**changes)))


NORM = "model.norm.weight"
SLEEP = sleep_json(Sleep(window=8, passes=2, loop=Loop(trigger="every")), 4, [])
REFUSALS = {
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), r"has no \*.safetensors files. Save"),
    "pickle": (to_pickle, r"pytorch_model.bin may be a pickle, which can run code and is not opened"),
    "truncated": (truncate, r"model.safetensors cannot be read as safetensors"),
    "no safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04K\x01."), r"cannot be read as safetensors"),
    "missing tensor": (lambda f: rewrite(f, **{NORM: None}), r"tensor model.norm.weight is missing"),
    "other tensor": (lambda f: rewrite(f, extra=torch.zeros(1)), r"model.safetensors: extra is a tensor that the model"),
    "wrong shape": (lambda f: rewrite(f, **{NORM: torch.zeros(3)}), r"model.norm.weight has the shape \[3\], and config.json gives it \[48\]"),
    "wrong dtype": (lambda f: rewrite(f, **{NORM: torch.zeros(48, dtype=torch.int8)}), r"has dtype I8"),
    "twice": (lambda f: save_file({NORM: torch.zeros(48)}, f / "more.safetensors"), r"is in .*model.safetensors and in .*more"),
    "missing file": (lambda f: _index(f, '{"weight_map": {"a": "model-00009.safetensors"}}'), r"lacks model-00009.safetensors"),
    "path in the index": (lambda f: _index(f, '{"weight_map": {"a": "../x.safetensors"}}'), r"is no file of this folder"),
    "broken index": (lambda f: _index(f, "[]"), r"index.json cannot be read"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config.json cannot be read"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), r"is no JSON object"),
    "other model": (lambda f: _config(f, model_type="llama"), r"model_type 'llama' cannot be imported"),
    "no size": (lambda f: (f / "config.json").write_text('{"model_type": "qwen3_5_text"}'), r"has no 'num_hidden_layers'"),
    "a text as size": (lambda f: _config(f, hidden_size="large"), r"config.json has a value of a wrong type"),
    "odd heads": (lambda f: _config(f, num_attention_heads=3), r"model.attention.heads must be a multiple"),
    "odd sleep": (lambda f: _config(f, sleep={"window": 8}), r"config.json has no 'layers'"),
    "wrong sleep": (lambda f: _config(f, sleep=SLEEP | {"feedback": "none"}), r'sleep.loop.feedback = "none" \(.*config.json\): expected one of'),
    "no feedback": (lambda f: _config(f, sleep=SLEEP | {"feedback": "gated"}), r"feedback_weight must have 48 numbers"),
    "older key of rotary positions": (
        lambda f: _config(f, rope_scaling={"type": "yarn", "factor": 4.0, "rope_theta": 10000.0}), r"rope_type is 'yarn'"
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer.json cannot be read"),
    "small vocabulary": (lambda f: _config(f, vocab_size=281), r"has 280 ids, and the model has 281"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bad_folder_is_refused_with_its_fault_and_nothing_is_written(case: str, folder: Path) -> None:
    check_refused(folder, *REFUSALS[case])


def test_what_our_blocks_cannot_express_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    _config(
        folder, hidden_act="gelu", attention_bias=True, linear_value_head_dim=32, layer_types=["sliding_attention"] * 4
    )
    with pytest.raises(UserError) as error:
        import_hf(folder, tmp_path / "ours")
    told = str(error.value)
    names = (
        "hidden_act is 'gelu'",
        "attention_bias is True",
        "linear_value_head_dim is 32",
        "layer 'sliding_attention'",
    )
    assert all(name in told for name in names) and len(error.value.errors) == 4


def test_missing_folders_and_existing_ones_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; name a folder with config.json"):
        import_hf(tmp_path / "nowhere", tmp_path / "ours")
    with pytest.raises(UserError, match=r"exists; remove it, or name another folder"):
        import_hf(folder, folder)
