"""A small schema with every kind of field, and recipes written for one test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from sleeptrain.config import Problem, Resolved, load
from sleeptrain.errors import UserError


@dataclass(frozen=True)
class Ramp:
    start: int
    stop: int
    steps: int = 100


@dataclass(frozen=True)
class Draw:
    low: int
    high: int


@dataclass(frozen=True)
class Loop:
    layers: Literal["all"] | tuple[int, int] = "all"
    feedback: Literal["raw", "normed"] = "raw"


@dataclass(frozen=True)
class Sleep:
    window: int = 16
    passes: int | Ramp | Draw = 1
    horizon: Literal["all"] | int = "all"
    loop: Loop = field(default_factory=lambda: Loop(feedback="normed"))

    def problems(self) -> list[Problem]:
        found = []
        if self.window < 1:
            found.append(Problem("window", "must be at least 1 token"))
        if self.loop.layers != "all" and self.loop.layers[0] >= self.loop.layers[1]:
            found.append(Problem("loop.layers", "must be an ascending range"))
        if self.window == 13:
            found.append(Problem("", "is unlucky"))
        return found


@dataclass(frozen=True)
class Source:
    path: str
    share: float = 1.0


@dataclass(frozen=True)
class Data:
    sources: tuple[Source, ...] = (Source("here"),)
    lanes: bool = False
    ratios: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Model:
    width: int
    name: str = "plain"


@dataclass(frozen=True)
class Optim:
    lr: float = 0.1
    mode: Literal["off", "online"] = "off"


@dataclass(frozen=True)
class Train:
    steps: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    model: Model
    sleep: Sleep = field(default_factory=Sleep)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    extra: Optim | None = None
    run_dir: str | None = None
    deepspeed: dict[str, Any] = field(default_factory=dict)


Read = Callable[..., Resolved[Any]]


@pytest.fixture
def sections() -> dict[str, type]:
    """The section classes by name."""
    return {kind.__name__: kind for kind in (Recipe, Model, Sleep, Loop, Ramp, Draw, Data, Source, Optim, Train)}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """`read(text, *overrides, files={...})` loads a recipe `a.yaml` with this text, in a folder with `files`."""

    def read(text: str, *overrides: str, files: dict[str, str] | None = None, **options: Any) -> Resolved[Any]:
        for name, content in {"a.yaml": text, **(files or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return load("a", list(overrides), Recipe, root=tmp_path, **options)

    return read


@pytest.fixture
def errors(read: Read) -> Callable[..., list[str]]:
    """As `read`, for recipes that are wrong: the list of errors."""

    def errors(text: str, *overrides: str, **options: Any) -> list[str]:
        with pytest.raises(UserError) as caught:
            read(text, *overrides, **options)
        assert str(caught.value) == "\n".join(caught.value.errors)
        return caught.value.errors

    return errors
