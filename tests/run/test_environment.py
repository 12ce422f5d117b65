"""The environment of a run, on machines that lack what it asks for."""

import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from sleeptrain.run.environment import environment

ROOT = Path(__file__).parents[2]


def test_without_git_the_code_is_named_by_its_version(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["code"] == metadata.version("sleeptrain")


@pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="these sources are not a checkout, so that they have no revision"
)
def test_the_code_of_a_checkout_is_named_by_its_revision():
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    abbreviated = environment()["code"].removesuffix("-dirty").rsplit("-g")[-1]  # after a tag: v0.1-3-gabcdef
    assert len(abbreviated) >= 7 and head.startswith(abbreviated)
