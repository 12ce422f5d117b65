"""Pretraining of language models that sleep.

    LanguageModel   a model; `model(tokens, sleep=sleep)` are logits, `model(tokens, targets, sleep=sleep)` a loss
    Model           the section `model:` of a recipe
    Sleep, Loop     the section `sleep:`, and `loop:` in it
    SleepSession    reads and generates tokens in bounded memory; full windows sleep
    load_recipe     a recipe, its includes and overrides
    open_trained    the model of a run folder or a checkpoint, with its recipe

Importing this package does not import torch; each of these names imports what it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sleeptrain.inference import SleepSession
    from sleeptrain.model.config import Model
    from sleeptrain.model.language import LanguageModel
    from sleeptrain.program import Loop, Sleep
    from sleeptrain.recipe import load_recipe
    from sleeptrain.recipe.load_trained import open_trained

__all__ = ["LanguageModel", "Loop", "Model", "Sleep", "SleepSession", "load_recipe", "open_trained"]
__version__ = "0.2.0"

_MODULES = {
    "LanguageModel": "sleeptrain.model.language",
    "Loop": "sleeptrain.program",
    "Model": "sleeptrain.model.config",
    "Sleep": "sleeptrain.program",
    "SleepSession": "sleeptrain.inference",
    "load_recipe": "sleeptrain.recipe",
    "open_trained": "sleeptrain.recipe.load_trained",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
