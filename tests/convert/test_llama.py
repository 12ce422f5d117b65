"""Exported GGUF files in llama.cpp on a CPU: its converter's tensors and metadata, logits, greedy tokens, sleep, tokenizers.

The models are trained briefly: in random ones every pass multiplies rounding errors.
"""

import copy
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sleep_data.tokenize import ByteTokenizer, FileTokenizer, encode_document
from sleeptrain.convert.export import export_hf
from sleeptrain.convert.export_gguf import export_gguf
from sleeptrain.errors import UserError
from sleeptrain.inference import SleepSession
from sleeptrain.inference.llama_session import LlamaSession
from sleeptrain.model.config import AttentionConfig, DeltaNetConfig
from sleeptrain.program import Evict, Loop, Sleep
from tests.convert.runs import BYTES, TEXTS, train_tokenizer, write_run
from tests.convert.toys import small, text, trained

pytestmark = pytest.mark.llama
SOURCE = Path(os.environ.get("LLAMA_CPP_SOURCE", Path(__file__).parents[2] / ".llama.cpp"))
"""The source of llama-cpp-python, which `make test-llama` unpacks."""
HEADS = AttentionConfig(4, 2, 32, rotary=0.5)
SMALL_HEADS = {"layers": "GA"}
"""A model whose rotary sections are ours; see `rotary_sections`."""
MODELS = {
    "every second": {"layers": "GAGA", "attention": HEADS},
    "irregular, tied": {"layers": "AGG", "tie": True, "attention": HEADS},
    "more value heads": {"layers": "GA", "deltanet": DeltaNetConfig(2, 6, 16, conv=3), "attention": HEADS},
    "whole rotary": {"layers": "GA", "attention": AttentionConfig(4, 1, 32, rotary=1.0, theta=1e6)},
    "no gate": {"layers": "GA", "attention": AttentionConfig(4, 2, 32, rotary=0.5, gate=False)},
    "scaled branches": {"layers": "GA", "residual_scale": 0.3, "eps": 1e-5, "attention": HEADS},
}
CONVERT = """
import json, sys
sys.path.insert(1, sys.argv[1])
import convert_hf_to_gguf
from conversion import base
for folder, out, kind, pre in json.loads(sys.argv[2]):
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre  # it knows published tokenizers only
    sys.argv = ["convert", folder, "--outfile", out, "--outtype", kind, "--no-mtp"]
    convert_hf_to_gguf.main()
"""


def tolerance(model, sleep, tokens, passes):
    """1e-3, or 50 times the difference between float32 and float64 of ours."""
    double = copy.deepcopy(model).double()
    one, two = (SleepSession(m, sleep, passes=passes).feed(tokens) for m in (model, double))
    return max(1e-3, 50 * (one - two).abs().max().item())


def greedy(session, count):
    """The tokens that a session generates, [batch, count]."""
    found = []
    for _ in range(count):
        token = session.logits.argmax(-1)
        found.append(token)
        session.prefill(token[:, None], scored=True)
    return torch.stack(found, 1)


@pytest.mark.parametrize("case", [*MODELS, "small heads"])
def test_llama_has_our_logits_and_greedy_tokens(case, tmp_path):
    ours, sleep = trained(**MODELS.get(case, SMALL_HEADS)), Sleep(window=128)
    export_gguf(write_run(tmp_path / "run", ours, sleep), out := tmp_path / "model.gguf", "f32")
    tokens = text(1, 40, seed=99)
    session, llama = SleepSession(ours, sleep), LlamaSession(out, ours.config, sleep)
    allowed = tolerance(ours, sleep, tokens, 1)
    for piece in tokens.split([20, 1, 1, 18], 1):
        torch.testing.assert_close(llama.prefill(piece), session.prefill(piece), rtol=0, atol=allowed)
    assert torch.equal(greedy(llama, 32), greedy(session, 32))


@pytest.mark.parametrize("trigger", ["context", "every"])
@pytest.mark.parametrize("feedback", ["embeddings", "normed"])
def test_windows_sleep_in_llama_as_in_a_session(feedback, trigger, tmp_path):
    sleep = Sleep(window=8, passes=2, loop=Loop(trigger="every", feedback=feedback))
    ours = trained(sleep, layers="GAGA")
    export_gguf(write_run(tmp_path / "run", ours, sleep), out := tmp_path / "model.gguf", "f32")
    sleep = Sleep(window=8, loop=Loop(trigger=trigger, feedback=feedback))
    tokens, logits = text(2, 3 * 8 + 5, seed=99), []
    for passes in (1, 2, 4):
        session, llama = (
            SleepSession(ours, sleep, batch=2, passes=passes),
            LlamaSession(out, ours.config, sleep, batch=2, passes=passes),
        )
        allowed = tolerance(ours, sleep, tokens[:1], passes)
        lengths = torch.tensor([29, 21])
        for at, stop in ((0, 11), (11, 12), (12, 29)):
            count = (lengths.clamp_max(stop) - at).clamp_min(0)
            expected, found = session.prefill(tokens[:, at:stop], count), llama.prefill(tokens[:, at:stop], count)
            torch.testing.assert_close(found, expected, rtol=0, atol=allowed)
        assert torch.equal(llama.lengths, session.lengths)
        logits.append(llama.logits)
        assert torch.equal(greedy(llama, 32), greedy(session, 32))
    assert min((a - b).abs().max() for a, b in itertools.pairwise(logits)) > 0.01, "passes matter"


@pytest.mark.parametrize("feedback", ["embeddings", "normed"])
def test_llama_wakes_from_what_a_session_has_read(feedback, tmp_path):
    sleep = Sleep(window=8, passes=3, loop=Loop(trigger="every", feedback=feedback))
    ours = trained(sleep, layers="GAAG", deltanet=DeltaNetConfig(2, 6, 16))
    export_gguf(write_run(tmp_path / "run", ours, sleep), out := tmp_path / "model.gguf", "f32")
    tokens = text(2, 40, seed=99)
    session = SleepSession(ours, sleep, batch=2)
    session.prefill(tokens[:, :21], torch.tensor([21, 16]))
    llama = LlamaSession(out, ours.config, sleep, batch=2)
    llama.load_state(session)
    allowed = tolerance(ours, sleep, tokens[:1], 3)
    assert torch.equal(llama.logits, session.logits) and torch.equal(llama.lengths, session.lengths)
    for piece in tokens[:, 21:].split([1, 18], 1):
        torch.testing.assert_close(llama.prefill(piece), session.prefill(piece), rtol=0, atol=allowed)


def test_llama_quantises_and_reads_the_result(tmp_path):
    import gguf

    ours, sleep = trained(layers="GA", width=64), Sleep(window=64)
    run, out = write_run(tmp_path / "run", ours, sleep), tmp_path / "model.gguf"
    export_gguf(run, out, "q8_0")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(out).tensors}
    assert types["blk.0.ffn_gate.weight"] == "Q8_0" and types["blk.0.ssm_a"] == "F32"
    tokens = text(1, 40, seed=99)
    found, expected = LlamaSession(out, ours.config, sleep).prefill(tokens), SleepSession(ours, sleep).prefill(tokens)
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "model.gguf"}


def test_what_llama_cannot_do_is_refused_by_name(tmp_path):
    sleep = Sleep(window=8, passes=2, loop=Loop((0, 1)), evict=Evict("sliding", False))
    ours = small("GA", vocab=BYTES.size)
    with pytest.raises(UserError) as error:
        LlamaSession(tmp_path / "model.gguf", ours.config, sleep)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "sleep.evict.mode", "sleep.evict.conv_carry", "sleep.loop.feedback", "sleep.loop.layers",
    ]  # fmt: skip
    plain = Sleep(window=8)
    with pytest.raises(UserError, match=r"model.gguf is no file; write one with sleeptrain export"):
        LlamaSession(tmp_path / "model.gguf", ours.config, plain)
    (tmp_path / "model.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(UserError, match=r"cannot be loaded by llama\.cpp"):
        LlamaSession(tmp_path / "model.gguf", ours.config, plain)
    export_gguf(write_run(tmp_path / "run", ours, plain), out := tmp_path / "other.gguf", "f32")
    with pytest.raises(UserError, match="has 2 blocks, and the run has 3"):
        LlamaSession(out, small("GAG", vocab=BYTES.size).config, plain)


def test_llamas_tokenizer_gives_the_ids_of_the_data(tmp_path):
    from llama_cpp import Llama

    vocabulary = train_tokenizer(path := tmp_path / "trained.json")
    for name, run, tokenizer in (
        ("bytes", write_run(tmp_path / "a", small("GA", vocab=BYTES.size), Sleep(window=8)), ByteTokenizer()),
        ("file", write_run(tmp_path / "b", small("GA", vocab=vocabulary.size), Sleep(window=8), vocabulary, path), FileTokenizer(str(path))),
    ):  # fmt: skip
        export_gguf(run, out := tmp_path / f"{name}.gguf", "f32")
        llama = Llama(str(out), vocab_only=True, verbose=False)
        for words in TEXTS:
            ids = encode_document(tokenizer, words.encode()).tolist()
            assert llama.tokenize(words.encode(), add_bos=True, special=False) == ids
            assert llama.detokenize(ids[1:]) == words.encode()
        assert (llama.token_bos(), llama.token_eos()) == (ids[0], ids[0])


def test_the_converter_of_llama_cpp_writes_the_same_tensors_and_metadata(tmp_path):
    import gguf

    vocabulary = train_tokenizer(path := tmp_path / "trained.json")
    cases = {name: small(vocab=vocabulary.size, std=0.05, **options) for name, options in MODELS.items()}
    jobs, ours = [], []
    for i, (model, kind) in enumerate(zip(cases.values(), ["f32", "f16", "bf16"] * 2, strict=True)):
        run = write_run(tmp_path / f"run-{i}", model, Sleep(window=8), vocabulary, path)
        export_hf(run, tmp_path / f"hf-{i}", torch.float32, 1 << 30)
        export_gguf(run, tmp_path / f"{i}.gguf", kind)
        jobs.append([str(tmp_path / f"hf-{i}"), str(tmp_path / f"theirs-{i}.gguf"), kind, "gpt-2"])
        ours.append(tmp_path / f"{i}.gguf")
    source = str(SOURCE / "vendor" / "llama.cpp")
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, source, json.dumps(jobs)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for path, (_, other, *_) in zip(ours, jobs, strict=True):
        one, two = gguf.GGUFReader(path), gguf.GGUFReader(other)
        a, b = ({t.name: t for t in reader.tensors} for reader in (one, two))
        assert a.keys() == b.keys()
        for name, tensor in a.items():
            assert tensor.tensor_type == b[name].tensor_type and np.array_equal(tensor.shape, b[name].shape), name
            assert tensor.data.tobytes() == b[name].data.tobytes(), name
        a, b = ({f.name: (f.types, f.contents()) for f in reader.fields.values()} for reader in (one, two))
        described = {  # from the name of the folder, or of our own
            "general.name",
            "general.basename",
            "general.version",
            "general.size_label",
            "general.tags",
            "qwen35.full_attention_interval",
            "GGUF.kv_count",
        }
        assert {k: v for k, v in a.items() if not k.startswith("sleeptrain.") and k not in described} == {
            k: v for k, v in b.items() if k not in described
        }
