"""The environment of a run, on machines that lack what it asks for."""

from importlib import metadata

from sleeptrain.run.environment import environment


def test_without_git_the_code_is_named_by_its_version(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["code"] == metadata.version("sleeptrain")


def test_the_code_of_a_checkout_is_named_by_its_revision():
    assert environment()["code"] not in (None, "")
