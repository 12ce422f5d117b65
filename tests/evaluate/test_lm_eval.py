"""`sleeptrain eval --lm-eval` with local tasks: scores, generated texts and metrics are those of SleepSession at every N.

Needs lm_eval beside transformers 5: `make test-lm-eval`.
"""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from sleeptrain.cli.main import main
from sleeptrain.convert.export import export_hf
from sleeptrain.errors import UserError
from sleeptrain.inference import SleepSession
from sleeptrain.program import Loop, Sleep
from tests.convert.runs import SYMBOLS, write_run
from tests.convert.toys import small, text, trained

pytestmark = pytest.mark.lm_eval
SLEEP = Sleep(window=8, passes=2, loop=Loop(trigger="every"))
PASSES = (1, 2, 4)
COMMON = "dataset_path: json\ntest_split: test\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
TASKS = {
    "next_letters": "output_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: label\n"
    "target_delimiter: ''\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
    "spell_on": "output_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{answer}}'\n"
    "generation_kwargs: {until: [z, '.'], max_gen_toks: 10}\nmetric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
    "whole_text": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\nmetric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]\n",
}
"""The YAML of each task."""


def letters(seed):
    """Samples of lengths around window ends: a text, the three letters that follow, four choices, and what ends before a z."""
    samples = []
    for i, row in enumerate(text(12, 40, seed)):
        word, at = bytes(row.tolist()).decode(), (7, 8, 15, 16, 17, 26)[i % 6]
        right = word[at : at + 3]
        choices = [right, right[::-1] + "a", word[:2], right[:2] + "q"]
        samples.append(
            {"text": word[:at], "choices": choices, "label": 0, "answer": word[at : at + 10].partition("z")[0]}
        )
    return samples


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trained model, its export, a folder with the tasks, and their samples."""
    base = tmp_path_factory.mktemp("harness")
    ours, samples = trained(SLEEP, layers="GAGA"), letters(7)
    export_hf(write_run(base / "run", ours, SLEEP), base / "hf", torch.float32, 10**9)
    (base / "tasks").mkdir()
    (base / "tasks" / "data.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    for name, body in TASKS.items():
        common = COMMON.format(data=base / "tasks" / "data.jsonl")
        (base / "tasks" / f"{name}.yaml").write_text(f"task: {name}\n{common}{body}")
    return ours, base, samples


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """Nothing of the user's folders is read or written."""
    home = tmp_path_factory.getbasetemp() / "huggingface"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(home / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def evaluate(base, *words):
    """The status of a command on the exported folder."""
    return main(["eval", str(base / "hf"), "--task-files", str(base / "tasks"), "--rows", "5", *words])


def prompt(words):
    return [256, *words.encode()]


def likelihood(ours, context, tokens, passes):
    """The log-likelihood of tokens after others, by a session of their own."""
    session = SleepSession(ours, SLEEP, passes=passes)
    logits = [session.prefill(torch.tensor([context]))]
    logits += [session.prefill(torch.tensor([[token]]), scored=True) for token in tokens[:-1]]
    return float(torch.cat(logits).log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum())


def spelled(ours, words, passes):
    """The text that a session generates before a z or a full stop."""
    session = SleepSession(ours, SLEEP, passes=passes)
    session.feed(torch.tensor([prompt(words)]))
    made = bytes(token for row in session.generate(10) if (token := int(row)) < 256).decode(errors="replace")
    return made.partition("z")[0].partition(".")[0]


def test_every_task_has_the_scores_of_sessions_at_every_number_of_passes(made, tmp_path, capsys):
    ours, base, samples = made
    words = ["--lm-eval", ",".join(TASKS), "--passes", ",".join(map(str, PASSES)), "--out", str(tmp_path)]
    assert evaluate(base, *words) == 0
    table = capsys.readouterr().out
    report = json.loads((tmp_path / "lm_eval.json").read_text())
    assert report["model"]["sleep"]["window"] == 8 and report["environment"]["versions"]["lm_eval"] == "0.4.13"
    logged = [json.loads(line) for line in (tmp_path / "lm_eval_samples.jsonl").read_text().splitlines()]
    likelihoods = set()
    for n in PASSES:
        metrics = report["passes"][str(n)]["results"]
        rows = {name: [r for r in logged if (r["task"], r["passes"]) == (name, n)] for name in TASKS}
        right, exact, total = [], [], 0.0
        for i, sample in enumerate(samples):
            context = prompt(sample["text"])
            scores = [likelihood(ours, context, list(choice.encode()), n) for choice in sample["choices"]]
            found = [float(response[0][0]) for response in rows["next_letters"][i]["resps"]]
            assert found == pytest.approx(scores, abs=1e-3)
            right.append(scores.index(max(scores)) == 0)
            expected = spelled(ours, sample["text"], n)
            assert rows["spell_on"][i]["resps"] == [[expected]]
            exact.append(expected == sample["answer"])
            total += likelihood(ours, [256], list(sample["text"].encode()), n)
        bits = -total / math.log(2) / sum(len(sample["text"]) for sample in samples)
        assert metrics["next_letters"]["acc,none"] == pytest.approx(sum(right) / 12)
        assert metrics["spell_on"]["exact_match,none"] == pytest.approx(sum(exact) / 12)
        assert metrics["whole_text"]["bits_per_byte,none"] == pytest.approx(bits, abs=1e-4)
        assert f"{metrics['next_letters']['acc,none']:.4f}" in table and f"N = {n}" in table
        likelihoods.add(round(bits, 5))
    assert len(likelihoods) == len(PASSES), "passes matter"


def test_the_class_of_the_folder_has_the_same_scores(made, capsys):
    _, base, _ = made
    words = ["--lm-eval", "next_*", "--samples", "4", "--json"]
    found = []
    for more in ([], ["--trust-remote-code"], ["--few-shot", "1"]):
        assert evaluate(base, *words, *more) == 0
        found.append(json.loads(capsys.readouterr().out)["passes"]["2"])
    assert found[0]["results"] == found[1]["results"]
    assert found[0]["n-samples"] == {"next_letters": {"original": 12, "effective": 4}} and found[2]["n-shot"] == {"next_letters": 1}  # fmt: skip


def test_the_model_is_registered_for_programs(made):
    import lm_eval

    from sleeptrain.evaluate import lm_eval_model

    lm = lm_eval.api.registry.get_model("sleep").create_from_arg_string(
        f"pretrained={made[1] / 'hf'},passes=4", {"batch_size": 2}
    )
    assert isinstance(lm, lm_eval_model.SleepLM) and (lm.passes, lm.batch_size) == (4, 2)
    assert lm.tok_encode("ab") == [256, 97, 98] and lm.tok_encode("ab", add_special_tokens=False) == [97, 98]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--lm-eval", "next_leters"], "lm_eval has no task 'next_leters'; did you mean next_letters"),
        (["--lm-eval", "next_letters", "--task-files", "nowhere"], "--task-files nowhere is no folder"),
        (["--lm-eval", "next_letters", "--data", "x"], "--data does not apply to --lm-eval"),
        (["--lm-eval", "next_letters", "--few-shot", "-1"], "--few-shot -1: must be 0 or more"),
        (["--lm-eval", "next_letters,"], "has an empty name"),
        (["--few-shot", "1"], "--task-files goes with --lm-eval TASK"),
    ],
)
def test_wrong_requests(made, words, part, capsys):
    assert evaluate(made[1], *words) == 2
    shown = capsys.readouterr()
    assert part in shown.err and not shown.out


def test_folders_that_cannot_be_evaluated_are_refused(made, tmp_path, capsys):
    task = ["--lm-eval", "next_letters", "--task-files", str(made[1] / "tasks")]
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text("{}")
    export_hf(
        write_run(tmp_path / "symbols-run", small(vocab=4), SLEEP, SYMBOLS), tmp_path / "symbols", torch.float32, 10**9
    )
    for folder, part in (
        (made[1] / "run", f"it is a run; export it: sleeptrain export {made[1] / 'run'} --to hf"),
        (tmp_path / "nothing", "name an exported folder"),
        (tmp_path / "plain", "has no section sleep"),
        (tmp_path / "symbols", "cannot be encoded by"),
    ):
        assert main(["eval", str(folder), *task]) == 2, folder
        assert part in capsys.readouterr().err, folder
    from sleeptrain.evaluate.lm_eval_model import SleepLM

    symbols = SleepLM(str(tmp_path / "symbols"))
    with pytest.raises(UserError, match="no token that starts a text; every request must have a context"):
        symbols.loglikelihood_rolling([])
    with pytest.raises(UserError, match="passes 0 must be a whole number of at least 1"):
        symbols.passes = 0
    with pytest.raises(UserError, match="batch_size 'auto' must be a whole number"):
        SleepLM(str(tmp_path / "symbols"), batch_size="auto")
