"""The whole recipe: sections composed, rules across sections, completed by data and processes; trained runs opened."""

from sleeptrain.recipe.completion import check_batch, complete
from sleeptrain.recipe.continuation import check_run, open_run
from sleeptrain.recipe.recipe import Recipe, load_recipe

__all__ = ["Recipe", "check_batch", "check_run", "complete", "load_recipe", "open_run"]
