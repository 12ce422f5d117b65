"""What is shipped: the wheel, installed and used from elsewhere, and names that must not hide other people's packages."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest

from tests.cli.lines import TINY

ROOT = Path(__file__).parents[1]
STACK = {"torch", "deepspeed", "megatron-core", "triton", "mosaicml-streaming", "wandb", "omegaconf"}
VERSION = re.findall(r'__version__ = "(.+)"', (ROOT / "sleeptrain" / "__init__.py").read_text())[0]
ELSEWHERE = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", text)[0] for text in requirements if "extra ==" not in text}


def test_the_installed_metadata_names_the_stack() -> None:
    assert names(metadata.requires("sleeptrain") or []) >= STACK
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert names(declared["dependencies"]) >= STACK
    assert all("==" in text for text in declared["dependencies"]), "versions are pinned: they were run together"


def test_the_version_is_the_newest_of_the_changelog_and_that_of_the_citation() -> None:
    newest = re.findall(r"(?m)^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text())[0]
    assert newest == VERSION == re.findall(r"(?m)^version: (\S+)", (ROOT / "CITATION.cff").read_text())[0]


def test_no_folder_of_ours_is_taken_for_a_package_of_others() -> None:
    """From the repository root `kernels` and `launch` are found as folders; PyPI has packages of these names."""
    code = """
import importlib.util, json
found = {name: getattr(importlib.util.find_spec(name), "origin", None) for name in ("kernels", "launch")}
import transformers
from transformers.utils import is_kernels_available
print(json.dumps([found, is_kernels_available(), transformers.__version__]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found, available, _ = json.loads(done.stdout.splitlines()[-1])
    assert found == {"kernels": None, "launch": None}, "namespace folders, nothing that could be imported by mistake"
    assert available is False


@pytest.mark.engines
def test_transformers_5_does_not_take_our_folder_for_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    spec = importlib.util.find_spec("kernels")
    assert spec is None or spec.origin is None
    import transformers
    from transformers.utils import is_kernels_available

    assert transformers.__version__.startswith("5.")
    assert is_kernels_available() is False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment in which sleeptrain comes from the wheel and the rest from this environment."""
    home = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    # .pth files of a folder that is added in this way are not read: the editable installation stays out.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


@pytest.mark.slow
def test_the_wheel_holds_the_four_packages_and_the_recipes(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = archive.namelist()
        (about,) = (name for name in held if name.endswith(".dist-info/METADATA"))
        told = Parser().parsestr(archive.read(about).decode())
    tops = {name.partition("/")[0] for name in held if ".dist-info" not in name}
    assert tops == {"sleeptrain", "sleep_kernels", "sleep_data", "sleep_launch"}
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert {f"sleeptrain/{name}" for name in shipped} <= set(held)
    assert names(told.get_all("Requires-Dist") or []) >= STACK
    assert told["Version"] == VERSION
    assert told["License-Expression"] == "Apache-2.0" and any(name.endswith("licenses/LICENSE") for name in held)


@pytest.mark.slow
def test_the_source_distribution_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """Nothing that the wheel needs is missing in it, and neither are documents and tests."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, "--sdist", str(ROOT)], capture_output=True, check=True)
    (file,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert all(
        (source / name).exists() for name in ("docs/first-hour.md", "mkdocs.yml", "tests/conftest.py", "Makefile")
    )
    subprocess.run([*build, "--wheel", str(source)], capture_output=True, check=True)
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(again) as theirs:
        assert {name: ours.read(name) for name in ours.namelist()} == {
            name: theirs.read(name) for name in theirs.namelist()
        }


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    def said(*command: str) -> str:
        words = [str(installed / command[0]), *command[1:]]
        done = subprocess.run(words, cwd=tmp_path, env=ELSEWHERE, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    code = "import sleeptrain, sleep_kernels, sleep_data, sleep_launch as l; print(*(m.__file__ for m in (sleeptrain, sleep_kernels, sleep_data, l)))"
    assert all(Path(file).is_relative_to(installed.parent) for file in said("python", "-c", code).split())
    assert "training on the CPU works here" in said("sleeptrain", "doctor")
    said("sleeptrain", "data", "build", "rule110-tiny", "--out", "runs/data/rule110-tiny", "train=128", "test=16")
    said("sleeptrain", "train", "rule110-tiny", "train.steps=2", "run_dir=runs/wheel", *TINY)
    environment = json.loads((tmp_path / "runs" / "wheel" / "environment.json").read_text())
    assert environment["code"] == VERSION
    assert "rule110: 1 run(s)" in said("sleeptrain", "eval", "runs/wheel")
