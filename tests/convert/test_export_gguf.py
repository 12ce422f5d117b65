"""GGUF exports without llama.cpp: values, types, metadata and tokenizers as its sources document them; refusals."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if "CI" not in os.environ:  # where a missing package fails
    pytest.importorskip("gguf", reason="the extra gguf is not installed")

import gguf

from sleeptrain.cli.main import main
from sleeptrain.convert.export_gguf import check_gguf, export_gguf
from sleeptrain.errors import UserError
from sleeptrain.model.config import AttentionConfig, DeltaNetConfig
from sleeptrain.program import Loop, Sleep
from tests.convert.runs import BYTES, SYMBOLS, train_tokenizer, write_run
from tests.convert.toys import small, tensors

GATED = Sleep(window=8, passes=3, loop=Loop(trigger="every", feedback="gated"))
THREE = DeltaNetConfig(key_heads=2, value_heads=6, head_dim=16)


def fields(path: Path) -> dict[str, Any]:
    return {field.name: field.contents() for field in gguf.GGUFReader(path).fields.values()}


def expected(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of a model with two key heads and six value heads, by a permutation that is written out."""
    heads = torch.tensor([0, 3, 1, 4, 2, 5])  # value heads of key heads 0 and 1 in turn
    channels = (heads[:, None] * 16 + torch.arange(16)).flatten()
    qkv = torch.cat([torch.arange(64), 64 + channels])
    theirs, made = tensors(model), {}
    for name, t in theirs.items():
        if name.endswith("norm.weight") and "linear_attn" not in name:
            t = t + 1
        if "in_proj_qkv" in name or "conv1d" in name:
            t = t.squeeze(1)[qkv] if t.ndim == 3 else t[qkv]
        if "in_proj_z" in name:
            t = t[channels]
        if "in_proj_a" in name or "in_proj_b" in name or "dt_bias" in name:
            t = t[heads]
        if "A_log" in name:
            t = -(t[heads].exp())
        if "out_proj" in name:
            t = t[:, channels]
        made[name] = t
    return made


def by_name(path: Path, theirs: list[str]) -> dict[str, Any]:
    """The tensors of a file by the names of transformers, which the package gguf maps."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN35, 3)
    found = {t.name: t for t in gguf.GGUFReader(path).tensors}
    result = {}
    for name in theirs:
        asked = name.replace("dt_bias", "dt_proj.bias")
        result[name] = found.pop(names.get_name(asked, try_suffixes=(".weight", ".bias")))
    assert not found
    return result


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_a_file_has_the_tensors_of_the_model(kind: str, tmp_path: Path) -> None:
    model = small("GAG", vocab=BYTES.size, deltanet=THREE)
    export_gguf(write_run(tmp_path / "run", model, Sleep(window=8)), out := tmp_path / "model.gguf", kind)
    made = expected(model)
    for name, tensor in by_name(out, list(made)).items():
        value = made[name]
        wide = value.ndim == 1 or "conv1d" in name
        assert tensor.tensor_type.name == ("F32" if wide else kind.upper()), name
        assert list(tensor.shape) == list(value.shape)[::-1]
        dtype = torch.float32 if wide else {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]
        bits = value.to(dtype).contiguous().view(torch.uint8).numpy().reshape(-1)
        assert np.array_equal(tensor.data.reshape(-1).view(np.uint8), bits), name
    assert {path.name for path in tmp_path.iterdir()} == {"run", "model.gguf"}


def test_metadata_describe_the_model_its_sleep_and_licences(tmp_path: Path) -> None:
    attention = AttentionConfig(4, 2, 32, rotary=0.5, theta=1e6)
    model = small("GGAG", gated=True, vocab=BYTES.size, tie=True, deltanet=THREE, attention=attention, eps=1e-5)
    run = write_run(tmp_path / "run", model, GATED)
    (run / "LICENSE").write_text("terms of the base model")
    export_gguf(run, out := tmp_path / "model.gguf", "bf16")
    found = fields(out)
    wanted = {
        "block_count": 4, "embedding_length": 48, "feed_forward_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2,
        "attention.key_length": 32, "attention.value_length": 32, "rope.freq_base": 1e6, "rope.dimension_count": 16,
        "ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 6, "ssm.inner_size": 96,
        "attention.recurrent_layers": [True, True, False, True],
    }  # fmt: skip
    assert {key: found[f"qwen35.{key}"] for key in wanted} == wanted
    assert found["qwen35.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert "qwen35.full_attention_interval" in found and found["general.file_type"] == 32
    sleep = json.loads(found["sleeptrain.sleep"])
    assert (sleep["passes"], sleep["feedback"]) == (3, "gated")
    torch.testing.assert_close(torch.tensor(sleep["feedback_weight"]), model.feedback.weight.detach())
    assert found["sleeptrain.licence.LICENSE"] == "terms of the base model"
    assert "output.weight" not in {t.name for t in gguf.GGUFReader(out).tensors}


def test_a_tokenizer_has_the_ids_of_the_data(tmp_path: Path) -> None:
    vocabulary = train_tokenizer(path := tmp_path / "tokenizer.json")
    model = small("GA", vocab=vocabulary.size + 6)
    export_gguf(
        write_run(tmp_path / "run", model, Sleep(window=8), vocabulary, path), out := tmp_path / "a.gguf", "f32"
    )
    found, body = fields(out), json.loads(path.read_text())
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == vocabulary.size + 6 and tokens[vocabulary.pad - 1 : vocabulary.pad + 2] == ["<|bos|>", "<|pad|>", f"[PAD{vocabulary.size}]"]  # fmt: skip
    assert all(tokens[i] == token for token, i in body["model"]["vocab"].items())
    assert types[0] == types[vocabulary.pad] == 3 and types[5] == 1 and types[-1] == 5
    assert found["tokenizer.ggml.merges"] == [" ".join(pair) for pair in body["model"]["merges"]]
    assert (found["tokenizer.ggml.pre"], found["tokenizer.ggml.add_bos_token"]) == ("gpt-2", True)
    export_gguf(write_run(tmp_path / "task", small("GA", vocab=4), Sleep(window=8), SYMBOLS), out := tmp_path / "b.gguf", "f32")  # fmt: skip
    found = fields(out)
    assert (found["tokenizer.ggml.model"], found["qwen35.vocab_size"]) == ("none", 4)


TOKENIZERS = {
    "no pre-tokenizer": ({"pre_tokenizer": None}, r"no pre-tokenizer 'none'; it has those of gpt-2"),
    "another expression": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated", "invert": False}},
        r"no pre-tokenizer 'a\+'",
    ),
    "normalizer": ({"normalizer": {"type": "Lowercase"}}, "no normalizer Lowercase"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_that_llama_cpp_has_not_is_refused(case: str, tmp_path: Path) -> None:
    from sleep_data.tokenize import FileTokenizer

    changes, message = TOKENIZERS[case]
    train_tokenizer(path := tmp_path / "tokenizer.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    vocabulary = FileTokenizer(str(path)).vocabulary
    run = write_run(tmp_path / "run", small("GA", vocab=vocabulary.size), Sleep(window=8), vocabulary, path)
    with pytest.raises(UserError, match=message):
        export_gguf(run, tmp_path / "model.gguf", "f32")
    assert {p.name for p in tmp_path.iterdir()} == {"run", "tokenizer.json"}


def test_what_cannot_be_exported_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = (
        write_run(tmp_path / "run", small("GA", vocab=BYTES.size, norm="sandwich"), Sleep(window=8)),
        tmp_path / "x.gguf",
    )
    assert main(["export", str(run), "--to", "gguf", "--out", str(out)]) == 2
    assert "model.norm" in (told := capsys.readouterr().err) and "cannot be exported to GGUF (qwen35)" in told
    assert main(["export", str(run), "--to", "gguf", "--out", str(out), "--dtype", "bf16"]) == 2
    assert "--dtype does not apply to --to gguf" in capsys.readouterr().err
    out.write_text("mine")
    with pytest.raises(UserError, match="exists; remove it"):
        export_gguf(run, out, "f32")
    assert out.read_text() == "mine" and {p.name for p in tmp_path.iterdir()} == {"run", "x.gguf"}


def test_a_file_that_is_not_what_was_written_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sleeptrain.convert.export_gguf as module

    def damaged(path: Path, source: Any) -> None:
        content = bytearray(path.read_bytes())
        content[-33] ^= 1
        path.write_bytes(content)
        check_gguf(path, source)

    monkeypatch.setattr(module, "check_gguf", damaged)
    run = write_run(tmp_path / "run", small("GA", vocab=BYTES.size), Sleep(window=8))
    with pytest.raises(UserError, match="is not what was written"):
        export_gguf(run, tmp_path / "model.gguf", "f32")
    assert {p.name for p in tmp_path.iterdir()} == {"run"}
