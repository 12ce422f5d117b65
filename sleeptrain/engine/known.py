"""Which keys of DeepSpeed's configuration there are: it ignores others without a word, so that a slip would go unseen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sleeptrain.config.names import nearest
from sleeptrain.engine.patches.quiet import quiet


def refused(overrides: Mapping[str, Any], ours: Mapping[str, str]) -> list[tuple[str, str]]:
    """(dotted path, what is wrong) of the keys of a `deepspeed:` section that cannot be taken.

    overrides   keys of DeepSpeed's configuration, as its JSON would have them
    ours        dotted paths that are not theirs to say, each with the field of the recipe that says it

    A key at the top is known if DeepSpeed 0.19.8 asks for it when it reads a configuration; the sections below are its own
    pydantic models, which say themselves what they do not know.
    """
    found: list[tuple[str, str]] = []
    for key, value in overrides.items():
        inner = value if isinstance(value, Mapping) else {}
        mine = {path: field for path, field in ours.items() if path == key or path.removeprefix(f"{key}.") in inner}
        found += [(path, f"is decided by {field}; set {field} instead") for path, field in mine.items()]
        found += [(path, why) for path, why in _complaints(key, value) if path not in mine]
    return found


class _Asked(dict[str, Any]):
    """A dict that remembers which keys it was asked for."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__({k: _Asked(v) if isinstance(v, Mapping) else v for k, v in content.items()})
        self.names: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.names.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.names.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.names.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self

    def __iter__(self) -> Iterator[str]:
        # With an iterator of its own it is asked key by key where a function is given it as `**`.
        return super().__iter__()

    def items(self) -> Any:
        self.names |= set(self)
        return super().items()

    def __copy__(self) -> _Asked:
        # DeepSpeed reads a copy.
        return self


def _complaints(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """What DeepSpeed says of one key, or what it does not say: that it never looks at it."""
    with quiet():
        from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS as REMOVED
        from deepspeed.runtime.config import DeepSpeedConfig
        from pydantic import ValidationError

        asked = _Asked({"train_micro_batch_size_per_gpu": 1, key: value})
        try:
            DeepSpeedConfig(asked)
        except ValidationError as error:
            yield from _of_a_model(key, value, error)
            return
        except Exception as error:  # of every kind, also assertions: what is wrong is in the words
            yield key, f"DeepSpeed does not take this: {error}".partition("\n")[0]
            return
    if key not in asked.names:
        yield key, f"unknown key{nearest(key, asked.names - REMOVED.keys())}"
    inner = asked.get(key)
    if isinstance(inner, _Asked) and inner.names:
        for name in [name for name in inner if name not in inner.names]:
            yield f"{key}.{name}", f"unknown key{nearest(name, inner.names)}"


def _of_a_model(key: str, value: Any, error: Any) -> Iterator[tuple[str, str]]:
    """The errors of one of DeepSpeed's pydantic models."""
    for one in error.errors():
        place, given = [key], value
        for name in one["loc"]:
            if not isinstance(given, Mapping) or name not in given:
                break  # it is what is missing
            place, given = [*place, name], given[name]
        if one["type"] == "extra_forbidden":
            why = f"unknown key{nearest(one['loc'][-1], _fields(error.title, one['loc'][:-1]))}"
        else:
            rest = ".".join(map(str, one["loc"][len(place) - 1 :]))
            why = f"DeepSpeed does not take this: {rest + ': ' if rest else ''}{one['msg']}"
        yield ".".join(place), why


def _fields(title: str, path: tuple[Any, ...]) -> set[str]:
    """The names of the fields of a model, or of the model that stands at `path` in it."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    models = {model.__name__: model for model in _below(DeepSpeedConfigModel)}
    model = models.get(title)
    for name in path:
        field = model.model_fields.get(str(name)) if model is not None else None
        words = str(field.annotation) if field is not None else ""
        model = next((inner for inner in models.values() if f".{inner.__name__}" in words), None)
    return {field.alias or name for name, field in model.model_fields.items()} if model is not None else set()


def _below(kind: type) -> Iterator[Any]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)
