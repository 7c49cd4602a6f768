"""Imports point one way. The list is the architecture, lowest first."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = [
    "wkernels.dtypes",
    "wkernels.mixes",
    "wkernels.moments",
    "wkernels.masks",
    "wkernels.selection",
    "wkernels.bands",
    "wkernels.sketches",
    "wkernels.cpu.parts",
    "wkernels.cpu.machine_code",
    "wkernels.cpu.jit",
    "wkernels.cpu.compiling",
    "wkernels.cpu.vectors",
    "wkernels.cpu.stores",
    "wkernels.cpu.row_sums",
    "wkernels.cpu.alike",
    "wkernels.cpu.tiles",
    "wkernels.cpu.differences",
    "wkernels.cpu.draws",
    "wkernels.cpu.sifts",
    "wkernels.cpu.elements",
    "wkernels.cpu.pointers",
    "wkernels.cpu.parallel",
    "wkernels.cpu.blocks",
    "wkernels.cpu.digests",
    "wkernels.cpu.weighted_sum",
    "wkernels.cpu.products",
    "wkernels.cpu.against",
    "wkernels.cpu.statistics",
    "wkernels.cpu.derived",
    "wkernels.cpu.masks",
    "wkernels.cpu.selection",
    "wkernels.cpu.sifting",
    "wkernels.cpu.sieve",
    "wkernels.cpu.kept",
    "wkernels.cpu.consensus",
    "wkernels.cpu.ranking",
    "wkernels.cpu.ranks",
    "wkernels.cpu.divergences",
    "wkernels.cpu.scores",
    "wkernels.cpu.means",
    "wkernels.cpu.columns",
    "wkernels.cpu.sketch",
    "wkernels.cpu",
    "wkernels.gpu",
    "wkernels.arguments",
    "wkernels.ops",
    "wkernels.elementwise",
    "wkernels",
    "wspace.version",
    "wspace.errors",
    "wspace.sizes",
    "wspace.shares",
    "wspace.team",
    "wspace.profiling",
    "wspace.weights",
    "wspace.storage.checksums",
    "wspace.storage.digests",
    "wspace.storage.residence",
    "wspace.storage.pace",
    "wspace.storage.local",
    "wspace.storage.asking",
    "wspace.storage.folders",
    "wspace.storage.remote",
    "wspace.storage.naming",
    "wspace.storage.opening",
    "wspace.storage.stamps",
    "wspace.storage.entries",
    "wspace.storage.headers",
    "wspace.storage.archives",
    "wspace.storage.pickles",
    "wspace.storage.checkpoints",
    "wspace.storage.reading",
    "wspace.storage.files",
    "wspace.storage.fingerprints",
    "wspace.storage.journal",
    "wspace.storage.partial",
    "wspace.storage.blocks",
    "wspace.storage.commits",
    "wspace.storage.outputs",
    "wspace.storage.companions",
    "wspace.storage.writing",
    "wspace.storage.writers",
    "wspace.storage.verifying",
    "wspace.derived.operands",
    "wspace.derived.quantised",
    "wspace.derived.lowrank",
    "wspace.derived.rows",
    "wspace.derived.adapters",
    "wspace.derived.models",
    "wspace.zoo",
    "wspace.budgets",
    "wspace.devices",
    "wspace.stream",
    "wspace.dividing",
    "wspace.visits",
    "wspace.pipeline",
    "wspace.cuda",
    "wspace.several",
    "wspace.placement",
    "wspace.passes",
    "wspace.watching",
    "wspace.ranks",
    "wspace.sinks",
    "wspace.jobs",
    "wspace.lora",
    "wspace.elementwise",
    "wspace.merging",
    "wspace.grams",
    "wspace.sums",
    "wspace.geometry",
    "wspace.mixing",
    "wspace.catalogue.layouts",
    "wspace.catalogue.facts",
    "wspace.catalogue.finding",
    "wspace.catalogue.slots",
    "wspace.catalogue.store",
    "wspace.catalogue.estimates",
    "wspace.catalogue.likeness",
    "wspace.catalogue",
    "wspace.modules",
    "wspace.recipes",
    "wspace.lab.schema",
    "wspace.lab.settings",
    "wspace.lab.records",
    "wspace.lab.tables",
    "wspace.lab.data",
    "wspace.lab.encoders",
    "wspace.lab.training",
    "wspace.lab.finetune",
    "wspace.lab.statistics",
    "wspace.lab.points",
    "wspace.lab.probe",
    "wspace.lab.evaluation",
    "wspace.lab.experiments",
    "wspace.lab.laboratory",
    "wspace.lab.report.formats",
    "wspace.lab.report.words",
    "wspace.lab.report.comparison",
    "wspace.lab.report.headlines",
    "wspace.lab.report.tables",
    "wspace.lab.report.style",
    "wspace.lab.report.drawing",
    "wspace.lab.report.clusters",
    "wspace.lab.report.walks",
    "wspace.lab.report.starts",
    "wspace.lab.report.page",
    "wspace.lab.report",
    "wspace.lab.stages",
    "wspace.lab.planning",
    "wspace.lab.demo",
    "wspace.cli.tables",
    "wspace.cli.options",
    "wspace.cli.products",
    "wspace.cli.inspect",
    "wspace.cli.index",
    "wspace.cli.distances",
    "wspace.cli.cluster",
    "wspace.cli.check",
    "wspace.cli.merge",
    "wspace.cli.verify",
    "wspace.cli.steps",
    "wspace.cli.demo",
    "wspace.cli.experiment",
    "wspace.cli.interrupts",
    "wspace.cli.main",
    "wspace",
    "wkernels.reference",  # last: only tests and benchmarks may use it
]

# a device is asked for by its name, a chunk is made of what a device holds,
# and kernels are compiled when they are called
EXCEPTIONS = {
    ("wkernels.cpu.jit", "wkernels.cpu.compiling"),  # where machine code is missing
    ("wspace.devices", "wspace.stream"),  # a type only
    ("wspace.devices", "wspace.cuda"),  # where a GPU is asked for
    ("wspace.devices", "wspace.several"),  # where several are
}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in ("wkernels", "wspace")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
}


def layer(name):
    """The longest entry of LAYERS that is ``name`` or a package above it."""
    known = [entry for entry in LAYERS if f"{name}.".startswith(f"{entry}.")]
    return max(known, key=len, default=None)


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_back(module):
    here = layer(module)
    assert here not in (None, "wkernels", "wspace"), f"add {module} to LAYERS"
    for name in imported_names(MODULES[module]):
        there = layer(name)
        if there not in (None, here) and (here, there) not in EXCEPTIONS:
            assert LAYERS.index(there) < LAYERS.index(here), f"{module} must not import {name}"


def test_kernels_know_nothing_of_files():
    for module, path in MODULES.items():
        if module.startswith("wkernels."):
            names = {name.split(".")[0] for name in imported_names(path)}
            assert not names & {"wspace", "safetensors", "transformers", "json"}, module


@pytest.mark.parametrize("module", [*MODULES, "wkernels", "wspace"])
def test_modules_are_short(module):
    if module in MODULES:
        assert len(MODULES[module].read_text().splitlines()) <= 330, f"{module}: a package by now?"


def in_fresh_process(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()


@pytest.mark.parametrize(
    "module", ["wspace", "wspace.cli.main", "wspace.merging", "wspace.catalogue", "wkernels.cpu"]
)
def test_importing_it_imports_neither_torch_nor_triton(module):
    code = f"import sys, {module}; print({{'torch', 'triton'}} & set(sys.modules))"
    assert in_fresh_process(code) == "set()"


def test_public_operations_import_no_triton():
    code = "import sys, wkernels.ops, wspace.grams; print('triton' in sys.modules)"
    assert in_fresh_process(code) == "False"


def test_help_imports_no_numpy():
    code = """
import sys
from wspace.cli.main import main
try:
    main(["--help"])
except SystemExit:
    pass
print({"numpy", "torch", "numba", "rich"} & set(sys.modules))
"""
    assert in_fresh_process(code).splitlines()[-1] == "set()"


def test_public_names_exist():
    import wkernels
    import wspace

    for package in (wkernels, wspace):
        for name in package.__all__:
            assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = wspace.nothing
