"""mergekit's YAML recipes: read, checked and planned from headers alone, then run.

    plan = read_plan("recipe.yml", Problems("recipe.yml"))
    merge_recipe(plan, "merged")

Inputs are never rounded: ``dtype`` and ``out_dtype`` choose the type that is written, and nothing
else; mergekit rounds inputs to ``dtype`` when it loads them.
"""

from wspace.recipes.grammar import Recipe, parse_recipe
from wspace.recipes.parts import Cost, cost
from wspace.recipes.plan import Plan, plan_recipe, read_plan
from wspace.recipes.problems import Problems, RecipeError
from wspace.recipes.run import merge_recipe, merge_recipes

__all__ = [
    "Cost",
    "Plan",
    "Problems",
    "Recipe",
    "RecipeError",
    "cost",
    "merge_recipe",
    "merge_recipes",
    "parse_recipe",
    "plan_recipe",
    "read_plan",
]
