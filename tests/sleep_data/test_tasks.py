"""Tasks by name from plain values, and samples that must not change within a version of a task."""

import hashlib

import pytest

from sleep_data.copying import Copy
from sleep_data.depo import Depo
from sleep_data.recall import Recall
from sleep_data.rule110 import Rule110
from sleep_data.state_tracking import StateTracking
from sleep_data.tasks import TASKS, make
from sleep_data.word_problems import WordProblems


def test_parameters_from_yaml():
    assert make("rule110", {"transitions": [1, 2], "width": 8}) == Rule110(transitions=(1, 2), width=8)
    assert make("rule110", {"transitions": 4}) == Rule110(transitions=4)
    assert make("depo", {}) == Depo()
    assert sorted(TASKS) == ["copy", "depo", "recall", "rule110", "state", "text", "word_problems"]


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("rul110", {}, "did you mean 'rule110'"),
        ("rule110", {"widht": 8}, "did you mean 'width'"),
        ("rule110", {"width": "8"}, "takes a whole number"),
        ("rule110", {"width": True}, "takes a whole number"),
        ("rule110", {"width": [8]}, "takes a whole number"),
        ("rule110", {"transitions": [1, "2"]}, "takes a whole number or a list of these"),
        ("rule110", {"width": 1}, "width is 1"),
        ("text", {"paths": 3}, "takes text or a list of these"),
    ],
)
def test_wrong_requests(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        make(name, parameters)


@pytest.mark.parametrize(
    ("task", "version", "sha"),
    [
        (Rule110(), 2, "0d0ce97b28e2dbe0"),
        (Rule110(width=10, transitions=(1, 3), variant="dense"), 2, "40de1565b8d6c8f8"),
        (Depo(), 2, "67f0f6491dbf1908"),
        (Copy(), 1, "9230ed76792aa612"),
        (Recall(kind="variables", sizes=(1, 2)), 2, "12fb9e340426a1be"),
        (Recall(kind="frequent_words"), 2, "0d0d554525197098"),
        (StateTracking(), 1, "451afbb45988482a"),
        (WordProblems(), 2, "de26728b26957f05"),
    ],
)
def test_samples_of_a_version_do_not_change(task, version, sha):
    """If this fails, the samples have changed: increment the version of the task, then update the hashes here."""
    rows = [task.generate(split, 1000, 1050, seed=3) for split in ("train", "test")]
    content = b"".join(block[name].tobytes() for block in rows for name in ("tokens", "targets", "groups"))
    assert (task.version, hashlib.sha256(content).hexdigest()[:16]) == (version, sha)
