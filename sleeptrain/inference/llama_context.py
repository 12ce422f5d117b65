"""A text in llama.cpp: reads tokens or features, and forgets its attention cache while its fast weights stay.

Works with stock llama.cpp through llama-cpp-python. Fast weights and convolution tails are the recurrent part of a sequence's
state, which `LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY` saves and restores alone.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sleeptrain.errors import UserError

ERROR = 4
"""The level of an error in ggml's log (GGML_LOG_LEVEL_ERROR)."""
TEXT_POSITIONS = 3
"""Rotary positions of a token of text: equal ones in time, height and width. The fourth is 0."""


class LlamaModel:
    """The weights of a GGUF file."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where llama-cpp-python is missing or cannot load the file."""
        self.lib = llama_library("--engine llama.cpp")
        options = self.lib.llama_model_default_params()
        # Repacked weights make quantised models crash on CPUs with AMX (llama-cpp-python 0.3.36).
        options.use_extra_bufts = False
        if not path.is_file():
            raise UserError(f"--gguf {path} is no file; write one with sleeptrain export RUN --to gguf --out {path}")
        self.handle = self.lib.llama_model_load_from_file(str(path).encode(), options)
        if not self.handle:
            raise UserError(
                f"--gguf {path} cannot be loaded by llama.cpp; write it again with sleeptrain export --to gguf"
            )
        self.path = path
        self.width = int(self.lib.llama_model_n_embd(self.handle))
        self.layers = int(self.lib.llama_model_n_layer(self.handle))
        self.vocab = int(self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.handle)))

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata as text; None where it has not the key."""
        buffer = ctypes.create_string_buffer(1 << 16)
        found = self.lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode() if found >= 0 else None

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.lib.llama_model_free(self.handle)


class LlamaContext:
    """One text that a model reads, of at most `length` tokens until its attention cache is forgotten."""

    def __init__(self, model: LlamaModel, length: int, *, features: bool) -> None:
        """`features`: reading returns the features after the final norm, too."""
        self.model, self._lib, self._features = model, model.lib, features
        options = self._lib.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = length
        options.n_seq_max, options.embeddings = 1, features
        options.pooling_type = self._lib.LLAMA_POOLING_TYPE_NONE
        options.n_threads = options.n_threads_batch = torch.get_num_threads()
        # A cache of one window is small; f16, the default, would change the logits by 5e-3.
        options.type_k = options.type_v = self._lib.GGML_TYPE_F32
        options.flash_attn_type = 0
        self._handle = self._lib.llama_init_from_model(model.handle, options)
        if not self._handle:
            raise UserError(
                f"llama.cpp cannot read windows of {length} tokens with {model.path}; see its messages above"
            )

    def read(self, inputs: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Read tokens [time] or features [time, width], the first of which has a rotary position.

        Returns the logits [vocab] after the last one, and the features after the final norm [time, width], or [0, width].
        """
        time, lib = len(inputs), self._lib
        batch, tokens = lib.llama_batch(n_tokens=time), inputs.ndim == 1
        places = torch.arange(position, position + time, dtype=torch.int32)
        if tokens:
            values = inputs.to(torch.int32).contiguous()
            batch.token = ctypes.cast(values.data_ptr(), ctypes.POINTER(lib.llama_token))
        else:
            values = inputs.float().contiguous()
            batch.embd = ctypes.cast(values.data_ptr(), ctypes.POINTER(ctypes.c_float))
            # The library expands the positions of tokens, but not those of features.
            places = torch.cat([places.repeat(TEXT_POSITIONS), torch.zeros_like(places)])
        output = torch.zeros(time, dtype=torch.int8)
        output[0 if self._features else -1 :] = 1
        batch.pos = ctypes.cast(places.data_ptr(), ctypes.POINTER(lib.llama_pos))
        batch.logits = ctypes.cast(output.data_ptr(), ctypes.POINTER(ctypes.c_int8))
        if code := lib.llama_decode(self._handle, batch):
            raise RuntimeError(
                f"llama.cpp could not read {time} tokens at position {position} (llama_decode returned {code})"
            )
        logits = _values(lib.llama_get_logits_ith(self._handle, time - 1), self.model.vocab)
        found = [
            _values(lib.llama_get_embeddings_ith(self._handle, i), self.model.width)
            for i in range(time * self._features)
        ]
        return logits, torch.stack(found) if found else torch.empty(0, self.model.width)

    def clear(self) -> None:
        """Forget everything that was read."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._handle), True)

    def forget_keys(self) -> None:
        """Clear the attention cache. Fast weights and convolution tails stay, and the next position is 0."""
        state = self.state(self._lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)
        self.clear()
        self.set_state(state, self._lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)

    def state(self, flags: int = 0) -> bytearray:
        """The state of the text as llama.cpp writes it; with `flags` a part of it."""
        size = self._lib.llama_state_seq_get_size_ext(self._handle, 0, flags)
        data = bytearray(size)
        if self._lib.llama_state_seq_get_data_ext(self._handle, _bytes(data), size, 0, flags) != size:
            raise RuntimeError("llama.cpp did not return its state")
        return data

    def set_state(self, data: bytearray, flags: int = 0) -> None:
        """Continue from a state that `state` returned with the same flags."""
        if not self._lib.llama_state_seq_set_data_ext(self._handle, _bytes(data), len(data), 0, flags):
            raise RuntimeError("llama.cpp did not take its state back")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._lib.llama_free(self._handle)


def _values(pointer: Any, count: int) -> Tensor:
    """A copy of floats that llama.cpp owns."""
    return torch.frombuffer(
        (ctypes.c_float * count).from_address(ctypes.addressof(pointer.contents)), dtype=torch.float32
    ).clone()


def _bytes(data: bytearray) -> Any:
    return (ctypes.c_uint8 * len(data)).from_buffer(data)


def llama_library(needed_by: str) -> Any:
    """The package llama_cpp. Raises UserError, naming the option that needs it, where it is not installed."""
    try:
        import llama_cpp
    except ImportError:
        raise UserError(
            f"{needed_by} needs llama-cpp-python, which pip builds from source: pip install 'sleeptrain[llama]'"
        ) from None
    llama_cpp.llama_log_set(_log_callback(), None)
    return llama_cpp


@cache
def _log_callback() -> Any:
    """A function that llama.cpp calls with its messages, of which errors are shown.

    That of llama-cpp-python 0.3.36 takes warnings for errors and hides errors.
    """
    import llama_cpp

    def show(level: int, text: bytes, _: Any) -> None:
        if level == ERROR:
            sys.stderr.write(text.decode(errors="replace"))

    return llama_cpp.llama_log_callback(show)
