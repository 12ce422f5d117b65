"""Every command of the guide pages runs, in the order of the page, in a shell, with real processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if "```sh" in path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_run(page, tmp_path):
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for line in "".join(blocks).splitlines():
        ran = subprocess.run(
            ["bash", "-c", line],
            check=False,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, f"{line}\n{ran.stdout}\n{ran.stderr}"
        assert "Traceback" not in ran.stderr, f"{line}\n{ran.stderr}"


def test_the_commands_that_the_demo_echoes_can_be_pasted(tmp_path):
    [function] = [line for line in (ROOT / "docs" / "demo.sh").read_text().splitlines() if line.startswith("run() ")]
    words = ["printf", "%s,", "a b", "[{path: x}]", "it's", "$HOME", "*"]
    script = f'{function}\nrun "$@" > out\nsed "s/\\x1b\\[[0-9]*m//g; 1s/^\\$ //; 1q" out'
    echoed = subprocess.run(
        ["bash", "-c", script, "bash", *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    pasted = subprocess.run(["bash", "-c", echoed.stdout], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert pasted.stdout == "a b,[{path: x}],it's,$HOME,*,"
