"""Exported folders in transformers 5: native loading, logits, greedy tokens, the class that sleeps, tokenizers."""

import shutil
import sys

import pytest
import torch

from sleep_data.tokenize import ByteTokenizer, FileTokenizer, encode_document
from sleeptrain.convert.export import export_hf
from sleeptrain.convert.import_hf import import_hf
from sleeptrain.errors import UserError
from sleeptrain.inference import SleepSession
from sleeptrain.model.config import AttentionConfig, DeltaNetConfig
from sleeptrain.program import Evict, Loop, Sleep
from sleeptrain.recipe.load_trained import open_trained
from tests.convert.runs import BYTES, SYMBOLS, TEXTS, train_tokenizer, write_run
from tests.convert.toys import small

pytestmark = pytest.mark.engines
EVERY = Sleep(window=8, passes=3, loop=Loop(trigger="every"), evict=Evict("sliding"))
GATED = Sleep(window=8, passes=3, loop=Loop(trigger="every", feedback="gated"))
MODELS = {
    "every second": {"layers": "GAGA"},
    "irregular, tied": {"layers": "AGG", "tie": True},
    "deltanet alone": {"layers": "GG", "deltanet": DeltaNetConfig(1, 4, 16, conv=3)},
    "attention alone": {"layers": "AA", "attention": AttentionConfig(4, 1, 16, rotary=1.0, theta=1e6)},
    "no gate": {"layers": "GA", "attention": AttentionConfig(4, 2, 16, rotary=0.5, gate=False)},
    "no rotary": {"layers": "GA", "attention": AttentionConfig(4, 2, 16, rotary=0.0)},
    "scaled branches": {"layers": "GA", "residual_scale": 0.3, "eps": 1e-5},
}


def export(tmp_path, model, sleep, vocabulary=BYTES, tokenizer=None, dtype=torch.float32, size=60_000):
    run = write_run(tmp_path / "run", model, sleep, vocabulary, tokenizer)
    export_hf(run, tmp_path / "hf", dtype, size)
    return tmp_path / "hf"


def load(folder, **options):
    """The model of a folder and what its loading reported."""
    from transformers import AutoModelForCausalLM, Qwen3_5ForCausalLM

    auto = AutoModelForCausalLM if options else Qwen3_5ForCausalLM
    model, info = auto.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    return model.eval()


@pytest.mark.parametrize("case", MODELS)
def test_the_native_model_has_our_logits_and_greedy_tokens(case, tmp_path):
    ours = small(vocab=BYTES.size, std=0.05, **MODELS[case])
    native = load(export(tmp_path, ours, Sleep(window=128)))
    assert type(native).__name__ == "Qwen3_5ForCausalLM" and native.dtype == torch.float32
    tokens = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(3))
    session = SleepSession(ours, Sleep(window=128), batch=2)
    expected = session.feed(tokens)
    with torch.no_grad():
        torch.testing.assert_close(native(tokens, use_cache=False).logits, expected, rtol=0, atol=1e-4)
    greedy = torch.stack(list(session.generate(64)), 1)
    # transformers keeps no length in a cache without attention blocks.
    for use_cache in (True, False) if "A" in ours.config.pattern else (False,):
        found = native.generate(tokens, max_new_tokens=64, do_sample=False, eos_token_id=None, use_cache=use_cache)
        assert torch.equal(found[:, 20:], greedy)


@pytest.mark.parametrize("sleep", [EVERY, GATED], ids=["raw, sliding", "gated"])
def test_the_class_of_the_folder_sleeps_as_a_session(sleep, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    ours = small(vocab=BYTES.size, gated=sleep.gated, std=0.05, residual_scale=0.5)
    model = load(export(tmp_path, ours, sleep), trust_remote_code=True)
    assert type(model).__name__ == "SleepForCausalLM" and "modeling_sleep" in type(model).__module__
    tokens = torch.randint(0, 256, (2, 29), generator=torch.Generator().manual_seed(3))
    for passes in (None, 1, 4):
        session = SleepSession(ours, sleep, batch=2, passes=passes)
        expected = session.feed(tokens)
        cache = model.sleep(tokens[:, :-1], passes)
        last = model(tokens[:, -1:], past_key_values=cache).logits
        torch.testing.assert_close(last, expected[:, -1:], rtol=0, atol=1e-4)
        found = model.generate(tokens, max_new_tokens=64, do_sample=False, eos_token_id=None, passes=passes)
        assert torch.equal(found[:, 29:], torch.stack(list(session.generate(64)), 1))


def test_a_model_that_transformers_saves_again_is_imported_bit_for_bit(tmp_path):
    ours = small(vocab=BYTES.size, layers="AGG", tie=True, gated=True)
    folder = export(tmp_path, ours, GATED)
    load(folder).save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match=r"imported with its subfolder sleeptrain"):
        shutil.copy(folder / "tokenizer.json", tmp_path / "saved")
        import_hf(tmp_path / "saved", tmp_path / "back")
    shutil.copytree(folder / "sleeptrain", tmp_path / "saved" / "sleeptrain")
    import_hf(tmp_path / "saved", tmp_path / "back")
    back = open_trained(tmp_path / "back")
    assert back.recipe.sleep == GATED
    assert all(torch.equal(p, back.model.get_parameter(name)) for name, p in ours.named_parameters())


def test_bf16_differs_no_more_than_bf16_itself(tmp_path):
    ours = small(vocab=BYTES.size, std=0.05)
    native = load(export(tmp_path, ours, Sleep(window=128), dtype=torch.bfloat16))
    assert native.dtype == torch.bfloat16
    tokens = torch.randint(0, 256, (2, 60), generator=torch.Generator().manual_seed(3))
    exact = SleepSession(ours, Sleep(window=128), batch=2).feed(tokens)
    rounded = SleepSession(ours.to(torch.bfloat16), Sleep(window=128), batch=2).feed(tokens)
    with torch.no_grad():
        found = native(tokens).logits.float()
    assert (found - exact).norm() <= 2 * (rounded - exact).norm()


def test_the_tokenizer_of_bytes_gives_the_ids_of_the_data(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(export(tmp_path, small(vocab=BYTES.size), EVERY))
    for text in [*TEXTS, "".join(map(chr, [*range(300), 0x10FFFF]))]:
        ids = tokenizer(text).input_ids
        assert ids == encode_document(ByteTokenizer(), text.encode()).tolist()
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 256, 257)


def test_a_tokenizer_file_gives_the_ids_of_the_data(tmp_path):
    from transformers import AutoTokenizer

    vocabulary = train_tokenizer(path := tmp_path / "trained.json")
    model = small(vocab=vocabulary.size + 6)
    tokenizer = AutoTokenizer.from_pretrained(export(tmp_path, model, EVERY, vocabulary, path))
    for text in [*TEXTS, "<|end|>"]:
        ids = tokenizer(text).input_ids
        assert ids == encode_document(FileTokenizer(str(path)), text.encode()).tolist()
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id) == (vocabulary.pad - 1, vocabulary.pad)


def test_the_tokenizer_of_a_task_has_its_symbols(tmp_path):
    from transformers import AutoTokenizer

    sleep = Sleep(window=8, passes=2)
    tokenizer = AutoTokenizer.from_pretrained(export(tmp_path, small(vocab=4), sleep, SYMBOLS))
    assert tokenizer("1 0 ? 1").input_ids == [1, 0, 2, 1] and tokenizer.decode([1, 0, 2]) == "1 0 ?"
    assert tokenizer(["1", "1 0 ?"], padding=True, padding_side="left").input_ids == [[3, 3, 1], [1, 0, 2]]
    with pytest.raises(Exception, match="UNK"):
        tokenizer("1 2")
