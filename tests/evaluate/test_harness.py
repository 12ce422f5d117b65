"""lm-evaluation-harness on an exported folder: scores and texts are those of SleepSession, for every number of passes."""

import json
import os

import pytest
import torch

from sleeptrain.cli.main import main
from sleeptrain.convert.export import export_hf
from sleeptrain.evaluate.harness import evaluate_folder
from sleeptrain.inference import SleepSession
from sleeptrain.program import Loop, Sleep
from tests.convert.runs import BYTES, write_run
from tests.convert.toys import small

pytestmark = pytest.mark.engines
CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}]
"""
WRITING = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 12}}
metric_list: [{{metric: exact_match}}]
"""
ROLLING = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
TEXTS = ["the fast weights remember what was evicted", "a window sleeps"]


@pytest.fixture
def needs_harness():
    if "CI" not in os.environ:  # where a missing package fails
        pytest.importorskip("lm_eval", reason="lm-eval is not installed in .venv-engines")


def likelihood(session, tokens, scored):
    """The log-likelihood of the last `scored` tokens after the others, and whether all are the likeliest ones."""
    total, greedy = 0.0, True
    session.prefill(torch.tensor([tokens[:-scored]]))
    for token in tokens[-scored:]:
        logits = session.logits[0]
        total, greedy = total + logits.log_softmax(-1)[token].item(), greedy and int(logits.argmax()) == token
        session.prefill(torch.tensor([[token]]), scored=True)
    return total, greedy


@pytest.mark.parametrize("trigger", ["context", "every"])
def test_tasks_sleep_over_their_context(trigger, tmp_path, needs_harness, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sleep = Sleep(window=8, passes=3, loop=Loop(trigger=trigger))
    ours = small(vocab=BYTES.size, std=0.1)
    export_hf(write_run(tmp_path / "run", ours, sleep), tmp_path / "hf", torch.float32, 1 << 30)

    def session(n):
        return SleepSession(ours, sleep, passes=n)

    bos, choices = [256], [" in the fast weights", " nowhere", " x"]
    docs, answers = [], {n: [] for n in (1, 3)}
    for text in TEXTS:
        context = bos + list(text.encode())
        scores = {n: [likelihood(session(n), context + list(c.encode()), len(c))[0] for c in choices] for n in (1, 3)}
        for n in (1, 3):
            one = session(n)
            one.prefill(torch.tensor([context]))
            tokens = [int(t) for t in one.generate(12, stop=256)]
            answers[n].append(bytes(t for t in tokens if t < 256).decode("utf-8", "replace").split("\n\n")[0])
        docs.append({"text": text, "choices": choices, "label": max(range(3), key=scores[3].__getitem__), "answer": answers[3][-1], "scores": scores})  # fmt: skip
    (tmp_path / "data.jsonl").write_text(
        "\n".join(json.dumps({k: v for k, v in d.items() if k != "scores"}) for d in docs)
    )
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, body in (("choices", CHOICES), ("writing", WRITING), ("rolling", ROLLING)):
        (tasks / f"{name}.yaml").write_text(body.format(name=f"toy_{name}", data=tmp_path / "data.jsonl"))
    results = evaluate_folder(tmp_path / "hf", ["toy_choices", "toy_writing", "toy_rolling"], [1, 3], tasks)
    for n in (1, 3):
        picked = [max(range(3), key=d["scores"][n].__getitem__) == d["label"] for d in docs]
        assert results[n]["toy_choices"]["acc,none"] == sum(picked) / 2
        same = [a == b for a, b in zip(answers[n], answers[3], strict=True)]
        assert results[n]["toy_writing"]["exact_match,none"] == sum(same) / 2
        whole = [likelihood(session(n), bos + list(t.encode()), len(t))[0] for t in TEXTS]
        bits = -sum(whole) / sum(map(len, TEXTS)) / torch.tensor(2.0).log().item()
        assert results[n]["toy_rolling"]["bits_per_byte,none"] == pytest.approx(bits, abs=1e-4)
    assert (
        main(["harness", str(tmp_path / "hf"), "--tasks", "toy_choices", "--include", str(tasks), "--passes", "1,3"])
        == 0
    )
    assert "toy_choices acc,none" in (shown := capsys.readouterr().out) and "N=3" in shown
    assert main(["harness", str(tmp_path / "hf"), "--tasks", "nothing", "--include", str(tasks)]) == 2
    assert main(["harness", str(tmp_path / "run"), "--tasks", "toy_choices"]) == 2
    told = capsys.readouterr().err
    assert "--tasks nothing is no task" in told and "config.json cannot be read" in told
