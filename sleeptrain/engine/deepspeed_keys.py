"""Checks keys and values of the `deepspeed:` section, since DeepSpeed silently ignores keys that it does not know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sleeptrain.config.names import nearest
from sleeptrain.parallel.patches.deepspeed_logging import deepspeed_quiet


def refused_keys(overrides: Mapping[str, Any], reserved: Mapping[str, str]) -> list[tuple[str, str]]:
    """(dotted path, reason) for every key of a `deepspeed:` section that is reserved, unknown or has an invalid value.

    overrides   keys of DeepSpeed's configuration, nested as in its JSON
    reserved    dotted paths that cannot be overridden, each with the field of the recipe that decides it

    A top-level key is known if DeepSpeed 0.19.8 reads it from a configuration. Most nested sections are pydantic models,
    which report unknown keys themselves.
    """
    refused: list[tuple[str, str]] = []
    for key, value in overrides.items():
        inner = value if isinstance(value, Mapping) else {}
        taken = {
            path: field for path, field in reserved.items() if path == key or path.removeprefix(f"{key}.") in inner
        }
        refused += [(path, f"is decided by {field}; set {field} instead") for path, field in taken.items()]
        refused += [(path, why) for path, why in _rejections(key, value) if path not in taken]
    return refused


class _RecordingDict(dict[str, Any]):
    """A dict, nested dicts included, that records in `read_keys` which keys are read."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__({k: _RecordingDict(v) if isinstance(v, Mapping) else v for k, v in content.items()})
        self.read_keys: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read_keys.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.read_keys.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.read_keys.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self

    def __iter__(self) -> Iterator[str]:
        # Defined, and returned by `keys`, so that `**` unpacking reads key by key through `__getitem__`.
        return super().__iter__()

    def items(self) -> Any:
        self.read_keys |= set(self)
        return super().items()

    def __copy__(self) -> _RecordingDict:
        # DeepSpeed reads a shallow copy of the configuration.
        return self


def _rejections(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """(dotted path, reason) for what DeepSpeed rejects or never reads when it parses one top-level key."""
    with deepspeed_quiet():
        from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS as REMOVED
        from deepspeed.runtime.config import DeepSpeedConfig
        from pydantic import ValidationError

        config = _RecordingDict({"train_micro_batch_size_per_gpu": 1, key: value})
        try:
            DeepSpeedConfig(config)
        except ValidationError as error:
            yield from _validation_errors(key, value, error)
            return
        except Exception as error:  # DeepSpeed raises many types, AssertionError included
            yield key, f"DeepSpeed does not take this: {error}".partition("\n")[0]
            return
    if key not in config.read_keys:
        yield key, f"unknown key{nearest(key, config.read_keys - REMOVED.keys())}"
    inner = config.get(key)
    if isinstance(inner, _RecordingDict) and inner.read_keys:
        for name in [name for name in inner if name not in inner.read_keys]:
            yield f"{key}.{name}", f"unknown key{nearest(name, inner.read_keys)}"


def _validation_errors(key: str, value: Any, error: Any) -> Iterator[tuple[str, str]]:
    """(dotted path, reason) for every error of a pydantic model under `key`, whose input was `value`."""
    for detail in error.errors():
        path, given = [key], value
        for name in detail["loc"]:
            if not isinstance(given, Mapping) or name not in given:
                break  # the key is missing in the input
            path, given = [*path, name], given[name]
        if detail["type"] == "extra_forbidden":
            why = f"unknown key{nearest(detail['loc'][-1], _model_fields(error.title, detail['loc'][:-1]))}"
        else:
            missing = ".".join(map(str, detail["loc"][len(path) - 1 :]))
            why = f"DeepSpeed does not take this: {missing + ': ' if missing else ''}{detail['msg']}"
        yield ".".join(path), why


def _model_fields(title: str, path: tuple[Any, ...]) -> set[str]:
    """Field names of DeepSpeed's pydantic model `title`, or of the model nested in it at `path`; empty if there is none."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    models = {model.__name__: model for model in _subclasses(DeepSpeedConfigModel)}
    model = models.get(title)
    for name in path:
        field = model.model_fields.get(str(name)) if model is not None else None
        annotation = str(field.annotation) if field is not None else ""
        model = next((nested for nested in models.values() if f".{nested.__name__}" in annotation), None)
    return {field.alias or name for name, field in model.model_fields.items()} if model is not None else set()


def _subclasses(kind: type) -> Iterator[Any]:
    """All direct and indirect subclasses."""
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)
