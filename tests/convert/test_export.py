"""Exports without an engine: accounting, bitwise round trips, shards, memory, refusals."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sleeptrain.checkpoint import WeightReader
from sleeptrain.checkpoint.format import TensorLayout
from sleeptrain.convert.export import export_hf
from sleeptrain.convert.hf_config import full_attention_interval, read_sleep, sleep_json
from sleeptrain.convert.import_hf import import_hf
from sleeptrain.convert.qwen3_5 import mapped_tensors
from sleeptrain.convert.shards import plan_shards
from sleeptrain.errors import UserError
from sleeptrain.model.config import AttentionConfig, DeltaNetConfig
from sleeptrain.program import Evict, Loop, Sleep
from sleeptrain.recipe.load_trained import open_trained
from tests.convert.runs import BYTES, train_tokenizer, write_run
from tests.convert.toys import small, tensors

FP32, BF16 = torch.float32, torch.bfloat16
GATED = Sleep(window=8, passes=3, loop=Loop(trigger="every", feedback="gated"))
MODELS = {
    "untied": {"layers": "(GGGA)x1"},
    "tied, more value heads": {"layers": "AG", "tie": True, "deltanet": DeltaNetConfig(1, 4, 16, conv=3)},
    "no gate": {"layers": "GA", "attention": AttentionConfig(4, 2, 16, gate=False)},
}


def write(tmp_path: Path, sleep: Sleep = GATED, **changes: object) -> Path:
    model = small(vocab=BYTES.size, gated=sleep.gated, **changes)  # type: ignore[arg-type]
    return write_run(tmp_path / "run", model, sleep)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    reader = WeightReader(next((folder / "checkpoints").iterdir()))
    return {name: reader.read(name) for name in reader.shapes}


@pytest.mark.parametrize("case", MODELS)
def test_an_import_of_an_export_is_the_run_bit_for_bit(case: str, tmp_path: Path) -> None:
    run = write(tmp_path, **MODELS[case])
    export_hf(run, tmp_path / "hf", FP32, 30_000)
    imported = import_hf(tmp_path / "hf", tmp_path / "back")
    before, after = weights(run), weights(tmp_path / "back")
    assert before.keys() == after.keys() and not imported.dropped
    assert all(torch.equal(before[name], after[name]) for name in before)
    one, two = open_trained(run), open_trained(tmp_path / "back")
    assert (one.recipe, one.manifest) == (dataclasses.replace(two.recipe, run_dir=one.recipe.run_dir), two.manifest)
    export_hf(tmp_path / "back", tmp_path / "again", FP32, 30_000)
    for path in (tmp_path / "hf").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_changed_recipe_or_manifest_of_an_export_is_refused(tmp_path: Path) -> None:
    export_hf(write(tmp_path, layers="GA"), out := tmp_path / "hf", FP32, 1 << 30)
    manifest, config = out / "sleeptrain" / "manifest.json", out / "sleeptrain" / "config.yaml"
    before = manifest.read_text(), config.read_text()
    manifest.write_text(before[0].replace('"pad": 257', '"pad": 255'))
    with pytest.raises(UserError, match=r"manifest.json was changed .* or remove .*sleeptrain to import without it"):
        import_hf(out, tmp_path / "back")
    manifest.write_text(before[0])
    config.write_text(before[1].replace("width: 48", "width: 32"))
    with pytest.raises(UserError, match=r"config.yaml describes another model than .*config.json"):
        import_hf(out, tmp_path / "back")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "hf"}


def test_folded_branches_and_bf16_are_imported_as_they_were_written(tmp_path: Path) -> None:
    run = write(tmp_path, layers="GA", residual_scale=0.3)
    export_hf(run, tmp_path / "hf", BF16, 1 << 30)
    import_hf(tmp_path / "hf", tmp_path / "back")
    assert open_trained(tmp_path / "back").recipe.model.residual_scale == 1.0
    export_hf(tmp_path / "back", tmp_path / "again", BF16, 1 << 30)
    name = "model.safetensors"
    assert (tmp_path / "hf" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    scaled, found = (
        weights(run)["layers.0.mlp.down.weight"] * 0.3,
        weights(tmp_path / "back")["layers.0.mlp.down.weight"],
    )
    assert torch.equal(scaled.to(BF16).float(), found)


def test_a_file_is_what_safetensors_reads_and_its_index_names_every_tensor(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = small(vocab=BYTES.size, layers="GAG")
    run, out = write_run(tmp_path / "run", model, Sleep(window=8)), tmp_path / "hf"
    exported = export_hf(run, out, BF16, 40_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    expected, found = tensors(model), {}
    for path in sorted(out.glob("*.safetensors")):
        part = load_file(path)
        assert {index["weight_map"][name] for name in part} == {path.name}
        assert sum(t.nbytes for t in part.values()) <= 40_000 and len(part) > 1
        found |= part
    assert found.keys() == expected.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    for name, tensor in found.items():
        kept = bool(re.search("norm|A_log|dt_bias", name))
        assert tensor.dtype == (FP32 if kept else BF16) and torch.equal(tensor, expected[name].to(tensor.dtype)), name
    assert exported.tensors == len(found) and exported.files["config.json"] == (out / "config.json").stat().st_size
    assert {path.name for path in tmp_path.iterdir()} == {"run", "hf"}


@given(st.lists(st.integers(1, 100), min_size=1, max_size=20), st.integers(1, 150))
@settings(max_examples=100, deadline=None)
def test_shards_hold_all_tensors_in_order_within_the_limit(sizes: list[int], limit: int) -> None:
    layouts = {f"t{i}": TensorLayout(torch.bfloat16, (size,)) for i, size in enumerate(sizes)}
    shards = plan_shards(layouts, limit)
    assert [name for shard in shards.values() for name in shard] == list(layouts)
    assert all(len(shard) == 1 or sum(t.nbytes for t in shard.values()) <= limit for shard in shards.values())
    assert list(shards) == sorted(shards) and (len(shards) > 1 or list(shards) == ["model.safetensors"])


@pytest.mark.parametrize("case", MODELS)
def test_every_parameter_is_in_exactly_one_tensor_of_its_shape(case: str) -> None:
    model = small(**MODELS[case])  # type: ignore[arg-type]
    mapped = mapped_tensors(model.config)
    assert Counter(name for t in mapped for name in t.parameters) == Counter(
        name for name, _ in model.named_parameters()
    )
    made = tensors(model)
    for tensor in mapped:
        assert tuple(made[tensor.name].shape) == tensor.shape
        for ours, back in zip(tensor.parameters, tensor.split(made[tensor.name]), strict=True):
            assert torch.equal(back, model.get_parameter(ours)), ours


def test_intervals_of_attention() -> None:
    patterns = {"GGGA": 4, "GGGAGGGA": 4, "AA": 1, "GAG": 2, "AGAG": None, "GG": None, "GAAG": None, "GGAG": 3}
    assert {pattern: full_attention_interval(pattern) for pattern in patterns} == patterns


def test_the_section_sleep_is_read_as_it_was_written() -> None:
    for sleep in (GATED, Sleep(16, 2, Loop((1, 3), "embeddings"), Evict("sliding", False)), Sleep(16, 4)):
        assert read_sleep(sleep_json(sleep, 4, []), 4, "config.json") == sleep


def test_the_tokenizer_of_the_run_comes_back(tmp_path: Path) -> None:
    vocabulary = train_tokenizer(path := tmp_path / "tokenizer.json")
    run = write_run(tmp_path / "run", small(vocab=vocabulary.size), Sleep(window=8), vocabulary, path)
    export_hf(run, tmp_path / "hf", FP32, 1 << 30)
    import_hf(tmp_path / "hf", tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == path.read_bytes()
    (run / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer .*tokenizer.json"):
        export_hf(run, tmp_path / "other", FP32, 1 << 30)
    assert not (tmp_path / "other").exists()


def test_the_card_has_the_scores_of_the_checkpoint_and_licences_go_on(tmp_path: Path) -> None:
    run = write(tmp_path, layers="GGGA")
    row = {"step": 7, "eval_loss": 1.25, "eval_accuracy": 0.5, "eval_accuracy_by_label": {}}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (run / "LICENSE").write_text("terms of the base model")
    export_hf(run, tmp_path / "hf", FP32, 1 << 30)
    card = (tmp_path / "hf" / "README.md").read_text()
    for text in (
        "| loss on held-out data, nats per token | 1.2500 |",
        "| window L | 8 tokens |",
        "applies: LICENSE",
        "passes=4",
    ):
        assert text in card
    import_hf(tmp_path / "hf", tmp_path / "back")
    assert (tmp_path / "back" / "LICENSE").read_text() == "terms of the base model"


def refused(run: Path, out: Path) -> str:
    with pytest.raises(UserError) as error:
        export_hf(run, out, FP32, 1 << 30)
    beside = {path.name for path in out.parent.iterdir()}
    assert not any(name.startswith(f".{out.name}") for name in beside)
    return str(error.value)


def test_what_the_format_cannot_express_is_refused_by_name(tmp_path: Path) -> None:
    changes = {
        "norm": "sandwich", "attention": AttentionConfig(4, 2, 16, qk_norm=False, window=4),
        "deltanet": DeltaNetConfig(2, 2, 16, negative_eigenvalues=True),
    }  # fmt: skip
    lines = refused(write(tmp_path, layers="GA", **changes), tmp_path / "hf").splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        "model.norm",
        "model.deltanet.negative_eigenvalues",
        "model.attention.window",
        "model.attention.qk_norm",
    ]
    assert all("cannot be exported to qwen3_5_text" in line for line in lines)
    assert not (tmp_path / "hf").exists()


def test_an_existing_folder_and_a_damaged_checkpoint_are_refused(tmp_path: Path) -> None:
    run = write(tmp_path, layers="GA")
    (tmp_path / "hf").mkdir()
    assert "exists; remove it" in refused(run, tmp_path / "hf")
    (file,) = run.glob("checkpoints/*/*.weights.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert "is not what was written" in refused(run, tmp_path / "other")
    assert "has no checkpoint yet" in refused(_without_checkpoint(run), tmp_path / "other")


def _without_checkpoint(run: Path) -> Path:
    (run / "checkpoints").rename(run / "moved")
    return run


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sleeptrain.convert.export as module

    def full(folder: Path) -> object:
        def sink(file: str, *_: object) -> None:
            (folder / file).write_bytes(b"begun")
            raise OSError(28, "No space left on device", str(folder / file))

        return sink

    run = write(tmp_path, layers="GA")
    monkeypatch.setattr(module, "folder_sink", full)
    assert "cannot be written (No space left on device" in refused(run, tmp_path / "hf")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


MEMORY = """
import resource, sys, torch
from sleeptrain.convert.qwen3_5 import mapped_tensors
from sleeptrain.convert.shards import plan_shards, write_shards
from sleeptrain.convert.source import WeightSource
from sleeptrain.recipe import load_recipe
from sleeptrain.recipe.load_trained import parameter_shapes

groups, limit = int(sys.argv[1]), int(sys.argv[2])
recipe = load_recipe("hybrid-7b", ["model.vocab=152000", f"model.layers=(GGGA)x{groups}"]).value
shapes = parameter_shapes(recipe)
class Ones:
    def read(self, name):
        return torch.ones(shapes[name])
source = WeightSource(Ones(), mapped_tensors(recipe.model), torch.bfloat16)
shards = plan_shards(source.layouts(), limit)
largest = max(sum(layout.nbytes for layout in shard.values()) for shard in shards.values())
before, total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, 0
def discard(file, layouts, tensors):
    global total
    for tensor in tensors:
        total += tensor.nbytes
write_shards(shards, source.make, discard)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, largest, total)
"""


@pytest.mark.parametrize(
    ("groups", "limit", "size"),
    [
        pytest.param(2, 4 * 10**9, 5.5e9, marks=pytest.mark.slow),
        pytest.param(8, 4 * 10**9, 13e9, marks=pytest.mark.exhaustive),
    ],
)
def test_the_memory_of_an_export_is_that_of_a_shard(groups: int, limit: int, size: float) -> None:
    """A quarter of the blocks of `hybrid-7b`, and all of them."""
    command = [sys.executable, "-c", MEMORY, str(groups), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, largest, total = map(int, done.stdout.split())
    assert total > size and peak <= 1.2 * largest
