"""Imports mosaicml-streaming without torchvision and transformers.

What it costs without it: mosaicml-streaming 0.13.0 imports torchvision for its image data sets, and transformers for its text data
sets and for the type of a batch. Together they take two seconds of CPU time at the start of every process, workers of readers
included. And torchvision 0.28.0 from PyPI, which is built for CUDA, does not import beside a CPU build of torch: "operator
torchvision::nms does not exist". Nothing here uses what the package imports from them, so that classes without members stand in.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

NAMES = {
    "torchvision": (),
    "torchvision.datasets": ("VisionDataset",),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": ("to_tensor",),
    "transformers": (),
    "transformers.feature_extraction_utils": ("BatchFeature",),
    "transformers.models": (),
    "transformers.models.auto": (),
    "transformers.models.auto.tokenization_auto": ("AutoTokenizer",),
    "transformers.tokenization_utils_base": ("BatchEncoding",),
}
"""What the package imports from them, by module."""


def import_streaming() -> None:
    """Import `streaming`. Further calls cost nothing.

    A package that is imported already is used as it is. The others can be imported afterwards as ever.
    """
    if "streaming" in sys.modules:
        return
    missing = [name for name in NAMES if name.partition(".")[0] not in sys.modules]
    sys.modules.update({name: _stand_in(name) for name in missing})
    try:
        importlib.import_module("streaming")
    finally:
        for name in missing:
            del sys.modules[name]


def _stand_in(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(
        name, None
    )  # without it `find_spec`, which libraries ask for what is installed, raises ValueError
    for member in NAMES[name]:
        setattr(module, member, type(member, (), {}))
    return module
