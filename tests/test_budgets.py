"""Commands hold their budgets under a hard limit of memory, with zoos many times as large."""

import re
import shutil

import pytest

from bench.budget_cases import (
    METHODS,
    MIB,
    commands,
    make_zoo,
    recipe,
    shapes,
    sparse_zoo,
    warming,
    within,
    write_sparse,
)
from bench.limited import Limited
from tests.recipes import plan
from wspace.budgets import least
from wspace.recipes.costs import cost

SIZES = {2: 48, 4: 48, 16: 24, 64: 12}
"""MiB of a model, by how many there are; half of them in one tensor."""

EVERY = ["statistics", "distances", "cluster", "merge", "linear", "slerp", "model_stock", "ties",
         "dare_ties", "breadcrumbs", "della", "sce", "arcee_fusion", "index"]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoos")
    for n, size in SIZES.items():
        make_zoo(folder / f"{n}", n, size)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm")
    with Limited(folder, warming(folder)) as limited:
        yield limited


@pytest.mark.parametrize("method", METHODS)
def test_what_a_plan_holds_is_within_its_budget(tmp_path, method):
    zoo = sparse_zoo(tmp_path / "zoo", 3, shapes(32))
    found = plan(recipe(method, zoo, 3))[0]
    budget = least(lambda memory: cost(found, memory=memory), MIB)
    while budget < 512 * MIB:
        assert cost(found, memory=budget).memory_bytes <= budget
        budget += budget // 16


def assert_held(result, budget, least=4 * MIB):
    assert result.status == 0, result.err
    assert least <= result.peak <= budget, f"{result.peak / MIB:.1f} MiB"


@pytest.mark.parametrize("name", EVERY)
def test_every_command_holds_its_budget(root, limited, tmp_path, name):
    budget = 24 * MIB  # half of a model, of which there are five
    command = dict(commands(root / "4", 4, tmp_path))[name]
    assert_held(limited.run(within(command, budget), tmp_path, budget), budget)
    if name == "merge":
        assert_held(limited.run(["verify", "merge"], tmp_path, budget), budget, least=0)


@pytest.mark.parametrize("name", ["distances", "merge", "ties"])
@pytest.mark.parametrize("n", [2, 16, 64])
def test_any_number_of_models(root, limited, tmp_path, name, n):
    budget = 32 * MIB
    command = dict(commands(root / f"{n}", n, tmp_path))[name]
    assert_held(limited.run(within(command, budget), tmp_path, budget), budget)


def test_thresholds_of_values_that_are_all_different(root, limited, tmp_path):
    """A sieve would keep many of them."""
    write_sparse(tmp_path / "base", shapes(SIZES[16]))  # in differences from another they are few
    for k in range(16):
        (tmp_path / f"run-{k}").symlink_to(root / "16" / f"run-{k}")
    budget = 32 * MIB
    command = dict(commands(tmp_path, 16, tmp_path))["breadcrumbs"]
    assert_held(limited.run(within(command, budget), tmp_path, budget), budget)


@pytest.mark.parametrize("name", ["distances", "linear"])
def test_what_is_known_about_many_tensors_counts(limited, tmp_path, name):
    names = [f"model.layers.{k // 100}.experts.{k % 100}.weight" for k in range(10_000)]
    zoo = sparse_zoo(tmp_path / "zoo", 2, dict.fromkeys(names, (8, 8)))
    command = dict(commands(zoo, 2, tmp_path))[name]
    refused = limited.run(within(command, 4 * MIB), tmp_path, 64 * MIB)
    least = int(re.search(r"needs (\d+) bytes$", refused.err)[1])
    assert_held(limited.run(within(command, least), tmp_path, least), least)


def test_an_embedding_of_8_gib(limited, tmp_path):
    budget = 32 * MIB
    model = write_sparse(tmp_path / "m", {"embed.weight": (1 << 20, 4096), "norm.weight": (4096,)})
    command = within(["distances", model], budget)
    assert_held(limited.run(command, tmp_path, budget), budget)


@pytest.mark.parametrize(
    ("n", "name"), [(64, "linear"), (2, "distances"), (2, "model_stock"), (2, "ties")]
)
def test_a_budget_that_is_too_small_is_told_the_least(root, limited, tmp_path, n, name):
    command = dict(commands(root / f"{n}", n, tmp_path))[name]
    refused = limited.run(within(command, MIB // 4), tmp_path, MIB)
    least = int(re.search(r"needs (\d+) bytes$", refused.err)[1])
    assert refused.status == 1 and refused.err.count("\n") == 1
    assert limited.run(within(command, least - 16), tmp_path, least).status == 1
    assert limited.run(within(command, least), tmp_path, least).status == 0


def test_the_limit_is_there(root, limited, tmp_path):
    command = dict(commands(root / "4", 4, tmp_path))["distances"]
    result = limited.run(within(command, 1 << 30), tmp_path, 16 * MIB)
    assert result.status == 1 and "Cannot allocate memory" in result.err
