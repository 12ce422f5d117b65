"""sleeptrain as a library: its public names, and the example script with a run of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sleeptrain
from sleeptrain import LanguageModel, Model, Sleep, SleepSession
from sleeptrain.model.init import initialise
from sleeptrain.program import Loop, Window
from tests.cli.runs import untrained
from tests.model import toy
from tests.train.jobs import rule110_data

ROOT = Path(__file__).parents[1]


def test_importing_the_package_imports_neither_torch_nor_any_other_module_of_it():
    code = """
import sys
import sleeptrain
print(sorted(name for name in sys.modules if name == "torch" or name.startswith("sleeptrain.")))
print(sorted(set(sleeptrain.__all__) - set(dir(sleeptrain))))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]
    assert all(getattr(sleeptrain, name) for name in sleeptrain.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        sleeptrain.nothing  # noqa: B018


def test_a_model_has_the_initial_values_of_its_seed():
    config = toy.config()
    expected = LanguageModel(config, seed=None)
    initialise(expected, 3, 4096)
    for (name, value), other in zip(
        LanguageModel(config, seed=3).named_parameters(), expected.parameters(), strict=True
    ):
        assert torch.equal(value, other), name
    assert not torch.equal(LanguageModel(config).embed.weight, expected.embed.weight)
    with torch.device("meta"):
        assert LanguageModel(config).embed.weight.is_meta
    with pytest.raises(ValueError, match=r"model\.vocab is null"):
        LanguageModel(Model())


@pytest.mark.parametrize("trigger", ["every", "context"])
def test_logits_are_those_of_a_session_and_the_loss_is_their_cross_entropy(trigger):
    m, sleep = toy.model(), Sleep(window=4, passes=2, loop=Loop(trigger=trigger))
    tokens = torch.randint(0, toy.VOCAB, (2, 10), generator=torch.Generator().manual_seed(0))
    logits = m(tokens, sleep=sleep)
    session = SleepSession(m, sleep, batch=2).feed(tokens)
    first = 0 if trigger == "every" else 8  # under `context` the windows before the last one are context
    torch.testing.assert_close(logits.double(), session[:, first:].double(), rtol=1e-6, atol=1e-6)
    targets = torch.full_like(tokens, -100)
    targets[0, 8], targets[1, 9] = 1, 2
    loss = m(tokens, targets, sleep=sleep)
    expected = torch.stack([logits[0, 8 - first], logits[1, 9 - first]]).log_softmax(-1)
    torch.testing.assert_close(loss.double(), -(expected[0, 1] + expected[1, 2]).double() / 2, rtol=1e-6, atol=1e-6)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())


def test_requests_that_do_not_fit_are_refused():
    m, tokens = toy.model(), torch.zeros(2, 8, dtype=torch.long)
    every = Sleep(window=4, passes=2, loop=Loop(trigger="every"))
    with pytest.raises(ValueError, match=r"none would sleep and passes = 2 would change nothing; use Sleep"):
        m(tokens, tokens, sleep=Sleep(window=4, passes=2))
    with pytest.raises(ValueError, match=r"\[rows, length\] with a length of at least 1, not \[8\]"):
        m(tokens[0], sleep=every)
    for windows in ([Window(0, 4, True)], [Window(0, 3, True), Window(4, 8, True)], [Window(2, 8, True)]):
        with pytest.raises(ValueError, match="windows must follow one another from token 0 to 8"):
            m(tokens, sleep=every, windows=windows)
    with pytest.raises(ValueError, match="the window of tokens 0 to 3 has targets, but is not predicted"):
        m(tokens, tokens, sleep=every, windows=[Window(0, 4, False), Window(4, 8, True)])
    gated = Sleep(window=4, passes=2, loop=Loop(trigger="every", feedback="gated"))
    for use in (lambda: m(tokens, sleep=gated), lambda: SleepSession(m, gated)):
        with pytest.raises(ValueError, match="gated=True"):
            use()


def test_sizes_below_one_are_refused():
    for wrong in ({"passes": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            SleepSession(toy.model(), Sleep(window=4), **wrong)


def test_the_example_runs(tmp_path):
    run = untrained(tmp_path, "run", rule110_data(tmp_path), "sleep.window=9", "sleep.passes=2")
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "library.py", run], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    losses = [float(line.split()[-1]) for line in lines if line.startswith("step")]
    assert losses[-1] < losses[0] and "next token" in lines[-1] and not done.stderr
