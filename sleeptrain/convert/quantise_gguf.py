"""Quantised GGUF files by llama.cpp's own quantiser, through llama-cpp-python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sleeptrain.errors import UserError
from sleeptrain.inference.llama_context import llama_library

QUANTISED = {
    "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0", "q6_k": "LLAMA_FTYPE_MOSTLY_Q6_K", "q5_k_m": "LLAMA_FTYPE_MOSTLY_Q5_K_M",
    "q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M", "q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0",
}  # fmt: skip
"""Types of matrices, and llama.cpp's names of the file types."""


def quantise(source: Path, out: Path, kind: str) -> None:
    """Write the f32 file `source` with matrices of a type in QUANTISED. llama.cpp chooses another type where a row does not fit.

    Raises UserError where llama.cpp cannot do it.
    """
    lib: Any = llama_library(f"--type {kind}")
    options = lib.llama_model_quantize_default_params()
    options.ftype = getattr(lib, QUANTISED[kind])
    if code := lib.llama_model_quantize(str(source).encode(), str(out).encode(), options):
        raise UserError(
            f"llama.cpp could not quantise the model to {kind} (it returned {code}); its messages are above"
        )
