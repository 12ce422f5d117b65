"""Makes torchvision importable where its compiled library does not match the installed torch (CPU builds of torch).

What breaks without it: torchvision 0.28.0 from PyPI is built for CUDA. With a CPU build of torch 2.13.0 its shared
library does not load. Its Python part then registers fake kernels for `torchvision::nms`, an operator that has not been
declared: `RuntimeError: operator torchvision::nms does not exist`. mosaicml-streaming 0.13.0 imports torchvision
unconditionally (for its image datasets), so that not even its shard writer can be imported. The patch declares the two
operators, which suffices.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Literal

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_MARK = "_operators_declared_by_sleep_data"


def ensure_torchvision() -> Literal["absent", "native", "patched"]:
    """Import torchvision; declare the operators that its Python part expects if its compiled library does not load.

    Call it before `import streaming` in every process; further calls cost nothing. Any other import error is raised
    unchanged.
    """
    if importlib.util.find_spec("torchvision") is None:
        return "absent"
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return "patched" if hasattr(torchvision, _MARK) else "native"

    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # partly initialised modules of the failed import
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    import torchvision

    # The operators exist as long as the library object, so that the module that needs them holds a reference to it.
    setattr(torchvision, _MARK, library)
    return "patched"
