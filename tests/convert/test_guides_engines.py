"""The Python of the guide pages that uses an exported folder, as it stands there, in transformers 5."""

import re
import sys
from pathlib import Path

import pytest
import torch

from sleeptrain.convert.export import export_hf
from sleeptrain.program import Loop, Sleep
from tests.convert.runs import BYTES, write_run
from tests.convert.toys import small

pytestmark = pytest.mark.engines
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("page", "folder"), [("questions.md", "runs/mine-hf"), ("export.md", "runs/small-hf")])
def test_the_block_runs_where_the_commands_have_left_the_folder(
    page: str, folder: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    [block] = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert f'"{folder}"' in block
    sleep = Sleep(window=16, passes=2, loop=Loop(trigger="every"))
    run = write_run(tmp_path / "run", small(vocab=258), sleep, BYTES)
    export_hf(run, tmp_path / folder, torch.float32, 1_000_000)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert page != "questions.md" or "Note 7. The number" in capsys.readouterr().out
