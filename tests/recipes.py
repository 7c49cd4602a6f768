"""Recipes in tests: written to a file, planned, run."""

import torch
from safetensors.torch import load_file

from wspace.budgets import least
from wspace.devices import device_named
from wspace.elementwise.work import layout_of
from wspace.recipes import Problems, merge_recipe, parse_recipe, plan_recipe


def plan(text, *, strict=False, **patterns):
    """The plan of a recipe's text, and what was said about it."""
    problems = Problems("r.yml", strict=strict)
    return plan_recipe(parse_recipe(text, problems), problems, **patterns), problems


def merged(text, out, **options):
    """The tensors that a recipe makes."""
    merge_recipe(plan(text)[0], out, **options)
    return {k: t for file in sorted(out.glob("*.safetensors")) for k, t in load_file(file).items()}


def numbers(found, name):
    """Effective numbers of one tensor: those of each model by parameter, and those of all."""
    (step,) = (tensor.step for tensor in found.tensors if tensor.name == name)
    return step.numbers


def weights(found, name):
    return numbers(found, name).each["weight"]


def ulps(tensor, truth):
    """Distance of a 16-bit tensor from a float64 one, in units of its last place."""
    info = torch.finfo(tensor.dtype)
    spacing = info.eps * 2.0 ** truth.abs().clamp_min(info.smallest_normal).log2().floor()
    return float(((tensor.double() - truth).abs() / spacing).max()) if truth.numel() else 0.0


def least_memory(work):
    """The least budget that chunks of a work's tensors fit into on this machine."""
    return least(lambda memory: layout_of(work, device_named("cpu"), memory), 1)
