"""Checks of installed packages: pinned versions, and shards written and read by mosaicml-streaming."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from sleeptrain.cli.checks.check import CheckResult

NEEDED_ON_CPU = ("torch", "deepspeed", "mosaicml-streaming", "omegaconf", "numpy", "rich")
"""Pinned packages that every training needs; the others serve GPUs, tensor parallelism, tracking or export."""
CHECKED = (
    "torch",
    "deepspeed",
    "megatron-core",
    "triton",
    "mosaicml-streaming",
    "wandb",
    "omegaconf",
    "numpy",
    "rich",
)


def check_versions() -> Iterator[CheckResult]:
    """Installed versions against the pinned ones, which are tested together."""
    requirements = "\n".join(metadata.requires("sleeptrain") or [])
    pinned = dict(re.findall(r"(?m)^([\w.-]+)==([\w.]+)", requirements))
    for name in CHECKED:
        wanted, needed = pinned[name], name in NEEDED_ON_CPU
        advice = f"pip install {name}=={wanted}"
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield CheckResult(name, "missing", f"{wanted} is pinned", advice, needed)
            continue
        if installed.partition("+")[0] == wanted:
            yield CheckResult(name, "ok", installed, needed=needed)
        else:
            detail = f"{installed}, but {wanted} is pinned"
            yield CheckResult(name, "failed", detail, f"{advice}; other versions are not tested", False)


def check_streaming() -> Iterator[CheckResult]:
    """Eight samples written as MDS shards and read back."""
    import numpy as np

    from sleep_data import shards
    from sleep_data.rule110 import Rule110
    from sleeptrain.data.config import Data, Source
    from sleeptrain.data.evaluation import Evaluation

    task = Rule110()
    with tempfile.TemporaryDirectory(prefix="sleeptrain-doctor-") as folder:
        out = Path(folder, "shards")
        shards.build(task, out, {"train": 8})
        [stored] = Evaluation(Data([Source(str(out))]), micro=8, split="train")
    generated = np.concatenate([block["tokens"] for block in task.blocks("train", 8, 0)])
    equal = bool((stored.tokens.numpy() == generated).all())
    yield CheckResult("streaming", "ok" if equal else "failed", "8 samples written and read back")
