"""mergekit's YAML recipes: read, checked and planned from headers alone, then run.

    outputs = read_outputs("recipe.yml", Problems("recipe.yml"))
    merge_outputs(outputs, places_of(outputs, ["merged"]))

Inputs are never rounded: ``dtype`` and ``out_dtype`` choose the type that is written, and nothing
else; mergekit rounds inputs to ``dtype`` when it loads them.
"""

from wspace.recipes.costs import Cost, cost
from wspace.recipes.devices import device_for
from wspace.recipes.grammar import Recipe, parse_recipe
from wspace.recipes.outputs import (
    Output,
    Outputs,
    merge_outputs,
    places_of,
    plan_outputs,
    read_outputs,
)
from wspace.recipes.plan import Plan, plan_recipe
from wspace.recipes.problems import Problems, RecipeError
from wspace.recipes.run import merge_recipe, merge_recipes

__all__ = [
    "Cost",
    "Output",
    "Outputs",
    "Plan",
    "Problems",
    "Recipe",
    "RecipeError",
    "cost",
    "device_for",
    "merge_outputs",
    "merge_recipe",
    "merge_recipes",
    "parse_recipe",
    "places_of",
    "plan_outputs",
    "plan_recipe",
    "read_outputs",
]
