"""Products by 16-bit matrix units, in the interpreter: each engine keeps the error it states.

The interpreter adds in float32, rounded to nearest; what matrix units cut off is not tested here.
"""

import itertools

import numpy as np
import pytest
import torch

from wkernels import arguments, ops, reference
from wkernels.gpu import blocks, products
from wkernels.gpu.configs.derive import ENGINES
from wkernels.gpu.products import engines

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2

WORST = {"whole": 2**-16, "bfloat16": 2**-15 + 2**-16, "tfloat32": 2**-21 + 2**-16}
"""What ``engines`` states."""


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch):
    monkeypatch.setattr(arguments, "on_gpu", lambda rows: True)


def make(n_rows, n, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator, dtype=F64).to(dtype) for _ in range(n_rows)]


def tuned(n_rows, n, dtype, *, step, close=(), apart=0.01):
    """A base of 0.02 and rows a relative ``step`` away; ``close`` ones, ``apart`` of that."""
    base = 0.02 * make(1, n, F64)[0]
    deltas = [0.02 * step * delta for delta in make(n_rows, n, F64, seed=1)]
    for i in close:
        deltas[i] = deltas[0] + apart * (deltas[i] - deltas[0])
    return [(base + delta).to(dtype) for delta in deltas], base.to(dtype)


def errors(gram, x, base=None, other=None):
    """Of each entry, relative to its rows' norms; rows as the kernel centres them, in float32."""

    def centred(rows):
        if base is None:
            return reference.rows_in_float64(rows)
        return torch.stack([(row.float() - base.float()).double() for row in rows])

    rows = centred(x)
    columns = rows if other is None else centred(other)
    scale = torch.outer(rows.norm(dim=1), columns.norm(dim=1))
    return (gram - rows @ columns.T).abs() / scale


@pytest.mark.parametrize(
    ("dtype", "base_dtype", "engine"),
    [
        (BF16, None, "whole"), (F16, None, "whole"), (E4M3, None, "whole"), (E5M2, None, "whole"),
        (BF16, BF16, "bfloat16"), (F16, F16, "bfloat16"), (E4M3, BF16, "bfloat16"),
        (F32, None, "tfloat32"), (F32, F32, "tfloat32"), (BF16, F32, "tfloat32"),
    ],
    ids=str,
)  # fmt: skip
def test_each_engine_keeps_its_error(dtype, base_dtype, engine):
    x, other = make(9, 300, dtype), make(5, 300, dtype, seed=3)
    base = None if base_dtype is None else make(1, 300, base_dtype, seed=2)[0]
    assert products.engine_for(x, base, fast=True) == engine
    square = ops.gram(x, base, fast=True)
    assert torch.equal(square, square.T)
    found = torch.cat([
        errors(square, x, base).flatten(),
        errors(ops.gram(x, base, other=other, fast=True), x, base, other).flatten(),
    ])  # fmt: skip
    assert found.max() <= WORST[engine]
    assert found.max() <= ops.FAST_ERROR


def test_float64_rows_are_never_multiplied_as_less():
    assert products.engine_for(make(2, 3, F64), None, fast=True) == "float64"
    assert products.engine_for(make(2, 3, BF16), make(1, 3, F64)[0], fast=True) == "float64"
    assert products.engine_for(make(2, 3, BF16), None, fast=False) == "float64"


@pytest.mark.parametrize("n_rows", [3, 20, 40, 130])
def test_every_tile(n_rows):
    x, base = make(n_rows, 70, BF16), make(1, 70, BF16, seed=2)[0]
    for origin in (None, base):
        assert errors(ops.gram(x, origin, fast=True), x, origin).max() <= ops.FAST_ERROR


@pytest.mark.parametrize("step", [1e-4, 1e-2])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_small_steps_from_the_base(dtype, step):
    """Raw products would have lost these; centred ones keep four digits and more."""
    x, base = tuned(4, 6000, dtype, step=step)
    distances = ops.squared_distances(x, base, fast=True)
    truth = reference.pairwise_distances(x)
    assert ((distances - truth).abs() <= 1e-5 * truth).all()


@pytest.mark.parametrize("apart", [0.05, 0.001])
def test_near_duplicates_are_measured_directly(apart):
    """A product cannot tell them apart: the four products are right, their difference is not."""
    x, base = tuned(6, 3000, F32, step=1e-2, close=(2, 5), apart=apart)
    truth = reference.pairwise_distances(x)
    gram = ops.gram(x, base, fast=True)
    close = ops.close_pairs(gram)
    assert close.nonzero().tolist() == [[0, 2], [0, 5], [2, 0], [2, 5], [5, 0], [5, 2]]
    found = ops.squared_distances(x, base, fast=True)
    assert torch.equal(found, found.T)
    assert ((found - truth).abs() <= 1e-4 * truth).all()
    if apart == 0.001:
        norms = gram.diagonal()
        unrefined = norms[0] + norms[2] - 2 * gram[0, 2]
        assert (unrefined - truth[0, 2]).abs() > 1e-4 * truth[0, 2]


def test_exact_distances_refine_only_what_is_closer():
    x, base = tuned(4, 3000, F32, step=1e-2, close=(3,), apart=1e-4)
    assert not ops.close_pairs(ops.gram(x, base), error=1e-14).any()
    truth = reference.pairwise_distances(x)
    # differences to the base are rounded to float32, which the close pair shows most
    assert ((ops.squared_distances(x, base) - truth).abs() <= 1e-4 * truth).all()


def test_identical_rows_have_no_distance():
    row = make(1, 3000, BF16)[0]
    found = ops.squared_distances([row, row.clone(), make(1, 3000, BF16, seed=5)[0]], fast=True)
    assert found[0, 1] == 0
    assert found.diagonal().eq(0).all()


def test_small_parts_are_not_left_out():
    """All parts of the same sign: three products of four would lose 2**-17 of each square."""
    x = [torch.full((4096,), 1 + 2**-8 + 2**-9 - 2**-16)]
    base = torch.zeros(4096)
    for rows, origin in ((x, base), ([x[0].half()], base.half())):
        assert errors(ops.gram(rows, origin, fast=True), rows, origin).max() <= 2**-19


def test_bits_do_not_depend_on_how_a_segment_is_cut(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 128)
    x, base = make(9, 300, BF16), make(1, 300, BF16, seed=1)[0]
    grams = []
    for cuts in ((0, 300), (0, 128, 300), (0, 256, 300)):
        out = torch.zeros((1, 9, 9), dtype=F64)
        for start, stop in itertools.pairwise(cuts):
            segments = np.array([[start, stop]])
            products.launch("dot", x, None, base, segments, out, fast=True)
        grams.append(out)
    assert torch.equal(grams[0], grams[1])
    assert torch.equal(grams[0], grams[2])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with numpy
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_non_finite_rows_spoil_only_their_own_pairs(dtype):
    x = make(5, 300, dtype)
    x[3][299], x[4][0] = torch.nan, torch.inf
    gram = ops.gram(x, torch.zeros(300, dtype=dtype), fast=True)
    assert errors(gram[:3, :3], x[:3]).max() <= ops.FAST_ERROR
    assert not gram[3:].isfinite().any()


def test_engines_have_configurations():
    assert set(ENGINES) == set(engines.NAMES)
