"""System programs of tests: what happens if one is missing, and the installation of their packages."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import system
from tests.system import SystemProgramMissing, needs_system

SCRIPT = Path(__file__).parent / "setup-system.sh"
MISSING = "no-such-program-anywhere"


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list with two packages that stands in for tests/system-packages.txt."""
    path = tmp_path / "packages.txt"
    path.write_text("# packages\nfirst-package  # for this\n\nsecond-package\n")
    monkeypatch.setattr(system, "PACKAGES", path)
    return path


@pytest.mark.parametrize("value", ["true", "1"])
def test_a_missing_program_fails_in_ci(listed: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CI", value)
    with pytest.raises(pytest.fail.Exception, match=f"{MISSING} is missing; `make setup-system` .*first-package"):
        needs_system(MISSING, package="first-package")


@pytest.mark.parametrize("value", [None, "", "false"])
def test_a_missing_program_skips_with_a_warning_elsewhere(
    listed: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("CI", raising=False)
    if value is not None:
        monkeypatch.setenv("CI", value)
    with pytest.warns(SystemProgramMissing, match=MISSING):
        with pytest.raises(pytest.skip.Exception, match=f"{MISSING} is missing; `make setup-system` .*second-package"):
            needs_system(MISSING, package="second-package")


def test_a_program_is_found_on_path_and_beside_it(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = tmp_path / "sbin" / MISSING
    daemon.parent.mkdir()
    daemon.touch(0o755)
    monkeypatch.setattr(system, "FOLDERS", (str(daemon.parent),))
    assert needs_system(MISSING, package="first-package") == str(daemon)
    assert Path(needs_system("sh", package="first-package")).name == "sh"


def test_a_package_that_setup_would_not_install_is_refused(listed: Path) -> None:
    with pytest.raises(ValueError, match=r"third-package is not in .*packages\.txt"):
        needs_system("sh", package="third-package")


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    """A PATH with a Debian that has first-package alone, with records of what is asked of apt-get."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {
        "dpkg-query": 'case "$*" in *first-package) echo installed ;; *second-package) echo config-files ;; *) exit 1 ;; esac',
        "apt-get": 'echo "apt-get $*" >> "$ASKED"',
        "id": 'echo "$USER_ID"',
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    for name in ("bash", "env", "sed", "grep", "dirname", "sh", "echo"):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    return folder


def set_up(debian: Path, packages: Path, user: int) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run the script as a user; its result, and what it asked of apt-get."""
    asked = debian.parent / "asked"
    environment = {"PATH": str(debian), "USER_ID": str(user), "ASKED": str(asked)}
    command = ["/usr/bin/bash", str(SCRIPT), str(packages)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done, asked.read_text() if asked.exists() else ""


def test_setup_installs_what_is_missing(debian: Path, listed: Path) -> None:
    done, asked = set_up(debian, listed, 0)
    assert (done.returncode, done.stderr) == (0, "")
    assert asked.splitlines() == [
        "apt-get update --quiet",
        "apt-get install --yes --no-install-recommends second-package",
    ]


def test_setup_asks_nothing_of_apt_if_nothing_is_missing(debian: Path, listed: Path) -> None:
    for text in ("first-package\n", "# nothing\n"):
        listed.write_text(text)
        done, asked = set_up(debian, listed, 1000)
        assert (done.returncode, done.stderr, asked) == (0, "", "")
        assert done.stdout == "setup-system: no Debian package is missing\n"


def test_setup_without_root_prints_the_command(debian: Path, listed: Path) -> None:
    done, asked = set_up(debian, listed, 1000)
    assert (done.returncode, done.stdout, asked) == (2, "", "")
    assert done.stderr == (
        "setup-system: missing: second-package; installing needs root: "
        "sudo apt-get install --yes --no-install-recommends second-package\n"
    )


def test_setup_without_apt_names_the_packages(debian: Path, listed: Path) -> None:
    (debian / "apt-get").unlink()
    done, _ = set_up(debian, listed, 0)
    assert done.returncode == 2 and "missing: second-package; there is no apt-get here" in done.stderr
