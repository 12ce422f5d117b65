"""mosaicml-streaming is imported without torchvision and transformers, which can be imported afterwards; and the need for it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sleep_data.patches.streaming_import import NAMES

OTHERS = "('torchvision', 'transformers')"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_neither_package_is_imported_or_left_behind() -> None:
    done = run(
        "import sys\n"
        "from sleep_data.patches.streaming_import import import_streaming\n"
        "import_streaming(); import_streaming()\n"
        "from streaming import MDSWriter, StreamingDataLoader\n"
        f"print([name for name in sys.modules if name.partition('.')[0] in {OTHERS}])\n"
        "import transformers\n"
        "print(transformers.__version__)"
    )
    assert done.returncode == 0, done.stderr
    left, version = done.stdout.splitlines()
    assert left == "[]" and version[0].isdigit()


def test_a_package_that_is_imported_already_is_used() -> None:
    done = run(
        "import transformers\n"
        "from sleep_data.patches.streaming_import import import_streaming\n"
        "import_streaming()\n"
        "import streaming.base.dataloader as used\n"
        "print(used.BatchFeature is transformers.BatchFeature)"
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="torchvision fits a CUDA build of torch")
def test_torchvision_still_does_not_import() -> None:
    done = run("import streaming")
    assert "operator torchvision::nms does not exist" in done.stderr, "torchvision need not be left out"


@pytest.mark.slow
def test_the_package_still_imports_transformers() -> None:
    stand_ins = {name: members for name, members in NAMES.items() if name.startswith("torchvision")}
    done = run(
        "import sys\n"
        "from sleep_data.patches import streaming_import\n"
        f"streaming_import.NAMES = {stand_ins}\n"
        "streaming_import.import_streaming()\n"
        "print('transformers' in sys.modules)"
    )
    assert done.stdout == "True\n", f"transformers need not be left out: {done.stderr}"
