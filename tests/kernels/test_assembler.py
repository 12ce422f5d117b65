"""Which ptxas Triton uses: its own, one that the user sets, and that of the extra `gpu`. Programs that only print a version stand for them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sleep_kernels import assembler

ROOT = Path(__file__).parents[2]


def fake(path: Path, version: str) -> Path:
    """A program at `path` that answers as ptxas does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    release = version.rpartition(".")[0]
    path.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {release}, V{version}"\necho "Build cuda_x"\n')
    path.chmod(0o755)
    return path


def install(site: Path, version: str) -> Path:
    """A package of the extra `gpu` in a folder, in some version; its ptxas."""
    info = site / f"nvidia_cuda_nvcc-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {assembler.PACKAGE}\nVersion: {version}\n")
    return fake(site / assembler.FILE, version)


@pytest.fixture(autouse=True)
def variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has set no path, and what a test sets is taken back."""
    monkeypatch.setenv(assembler.VARIABLE, "")
    monkeypatch.delenv(assembler.VARIABLE)


def test_triton_s_own_is_used_where_nothing_else_is_installed() -> None:
    found = assembler.in_use("sm_90")
    assert found is not None and found[0].endswith("/triton/backends/nvidia/bin/ptxas")
    assert re.fullmatch(r"\d+\.\d+\.\d+", found[1]) and assembler.VARIABLE not in os.environ
    assert assembler.way_out(found[1]) == f"install ptxas {assembler.VERSION} with `{assembler.EXTRA}`, "


def test_a_path_that_the_user_sets_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = install(tmp_path / "site", assembler.VERSION)
    monkeypatch.syspath_prepend(tmp_path / "site")
    mine = str(fake(tmp_path / "mine", "12.9.86"))
    monkeypatch.setenv(assembler.VARIABLE, mine)
    assert assembler.in_use("sm_90") == (mine, "12.9.86") and os.environ[assembler.VARIABLE] == mine
    assert assembler.way_out("12.9.86") == f"unset {assembler.VARIABLE} to use ptxas 13.0.88, which is installed, "
    installed.unlink()
    assert assembler.way_out("12.9.86").endswith(f", and unset {assembler.VARIABLE}, ")


def test_that_of_the_extra_is_used_and_triton_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = str(install(tmp_path, assembler.VERSION))
    monkeypatch.syspath_prepend(tmp_path)
    assert assembler.in_use("sm_90") == (installed, assembler.VERSION)
    assert os.environ[assembler.VARIABLE] == installed and assembler.way_out(assembler.VERSION) == ""


def test_another_version_of_the_package_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "13.5.37")
    monkeypatch.syspath_prepend(tmp_path)
    found = assembler.in_use("sm_90")
    assert found is not None and "triton" in found[0] and assembler.VARIABLE not in os.environ


def test_a_path_without_a_program_leaves_triton_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Triton does."""
    monkeypatch.setenv(assembler.VARIABLE, str(tmp_path / "none"))
    found = assembler.in_use("sm_90")
    assert found is not None and "triton" in found[0]


def test_the_extra_pins_the_version_that_is_looked_for() -> None:
    pins = re.findall(rf'"{assembler.PACKAGE}==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert pins == [assembler.VERSION]
