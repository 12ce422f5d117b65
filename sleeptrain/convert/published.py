"""The kinds of published models that can be imported: which module reads a config.json and names its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sleeptrain.convert import hf_config, jet_nemotron, qwen3_5
from sleeptrain.convert.qwen3_5 import MappedTensor
from sleeptrain.errors import UserError
from sleeptrain.model.config import Model


@dataclass(frozen=True)
class PublishedModel:
    """A model of another program, as its config.json describes it."""

    config: Mapping[str, Any]
    """The part of config.json that describes the text model."""
    model: Model
    mapped_tensors: Callable[[Model], list[MappedTensor]]
    """The tensors of such a model."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions of tensors that are left out, and why."""
    prefix: str = "model."
    """Of the tensors of the text model, in place of `model.`."""
    notices: dict[str, str] = field(default_factory=dict)
    """Files about the licence of the weights that go with everything that is made from them, by name (`licences.PATTERNS`)."""


def published_model(config: dict[str, Any], source: str) -> PublishedModel:
    """The model that a config.json describes. Raises UserError, with `source`, for kinds and options that sleeptrain has not."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in KINDS:
        names = ", ".join(KINDS)
        raise UserError(f"{source}: model_type {kind!r} cannot be imported; these can: {names}")
    return KINDS[kind](config, source)


def _qwen3_5(config: dict[str, Any], source: str) -> PublishedModel:
    """The dense text model; that of a model with vision is a section of its config.json."""
    text = config.get("text_config") if config["model_type"] == "qwen3_5" else config
    if not isinstance(text, dict) or text.get("model_type") != "qwen3_5_text":
        raise UserError(f"{source}: model_type 'qwen3_5' without a text_config of qwen3_5_text cannot be imported")
    text = {"tie_word_embeddings": config.get("tie_word_embeddings", False), **text}
    dropped = {
        r"mtp\..*": "multi-token prediction, which sleeptrain has not",
        r"model\.visual\..*": "the vision tower, which sleeptrain has not",
    }
    model = hf_config.read_model(text, source)
    return PublishedModel(text, model, qwen3_5.mapped_tensors, dropped, prefix="model.language_model.")


def _jet_nemotron(config: dict[str, Any], source: str) -> PublishedModel:
    model = jet_nemotron.read_model(config, source)
    return PublishedModel(config, model, jet_nemotron.mapped_tensors, notices=jet_nemotron.NOTICES)


KINDS: Mapping[str, Callable[[dict[str, Any], str], PublishedModel]] = {
    "qwen3_5_text": _qwen3_5,
    "qwen3_5": _qwen3_5,
    "jet_nemotron": _jet_nemotron,
}
"""By `model_type`."""
