"""Peak memory over the interpreter's own stays inside the budget, whatever the zoo's size."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

PASS = '''
import sys, threading, time
from wspace.cli.main import main
import wspace as ws, wspace.merging, wspace.stream, wkernels.cpu, concurrent.futures
small, large, out, what, budget = *sys.argv[1:5], int(sys.argv[5])

def resident(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

RECIPE = """
merge_method: {}
base_model: {}
models:
  - {{model: {}, parameters: {{weight: 0.3}}}}
  - {{model: {}, parameters: {{weight: 0.3}}}}
  - {{model: {}, parameters: {{weight: 0.3}}}}
parameters: {{density: {}}}
"""
DENSITIES = {"ties, a sweep": "{sweep: [0.1, 0.3, 0.5, 0.7, 0.9]}"}

def work(root, out):
    if what not in ("merge", "gram"):
        models = [f"{root}/base", *(f"{root}/run-{i}" for i in range(3))]
        method, density = what.split(",")[0], DENSITIES.get(what, "0.5")
        open(out + ".yml", "w").write(RECIPE.format(method, *models, density))
        words = ["merge", out + ".yml", "-o", out, "--quiet", "--memory", str(budget)]
        assert main(words) == 0
        return
    zoo = ws.open_zoo(f"{root}/run-*", base=f"{root}/base")
    n = len(zoo)
    if what == "merge":
        ws.merge(zoo, [[1 / n] * n, [2 / n] * n], [out + "/a", out + "/b"], memory=budget)
    else:
        ws.gram(zoo, memory=budget)

work(small, out + "/small")  # code, threads, compiled kernels
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
before = resident("VmRSS")
work(large, out + "/large")
print(resident("VmHWM") - before)
'''


def make(root, n, numel):
    for name in [*(f"run-{i}" for i in range(n)), "base"]:
        (root / name).mkdir(parents=True)
        tensors = {"a": torch.randn(numel // 500, 500), "b": torch.zeros(9)}
        save_file(tensors, root / name / "model.safetensors")
    return root


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    return {
        # as many models: their number decides which kernels are compiled
        "small 4": make(tmp_path_factory.mktemp("small4"), 4, 100_000),
        "small 16": make(tmp_path_factory.mktemp("small16"), 16, 100_000),
        4: make(tmp_path_factory.mktemp("four"), 4, 8_000_000),
        16: make(tmp_path_factory.mktemp("sixteen"), 16, 8_000_000),
    }


@pytest.mark.parametrize("n", [4, 16])
@pytest.mark.parametrize("what", ["merge", "gram"])
def test_peak_memory_is_inside_the_budget(roots, tmp_path, what, n):
    budget = 48 << 20
    arguments = [roots[f"small {n}"], roots[n], tmp_path, what, budget]
    command = [sys.executable, "-c", PASS, *map(str, arguments)]
    peak = int(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    )
    # each model is 32 MB: the zoo is three to eleven times the budget
    assert peak <= budget, f"{peak / 2**20:.1f} MiB"
    assert peak >= 4 << 20, "this measures something"


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "ties, a sweep"])
def test_peak_memory_of_methods_that_choose_elements(roots, tmp_path, method):
    budget = 48 << 20
    arguments = [roots["small 4"], roots[4], tmp_path, method, budget]
    command = [sys.executable, "-c", PASS, *map(str, arguments)]
    peak = int(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    )
    # the four that are read are 128 MB
    assert 4 << 20 <= peak <= budget, f"{peak / 2**20:.1f} MiB"
