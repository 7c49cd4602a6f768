"""The specialisations worth looking at: launches of tiny tensors that choose what large ones do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import numpy as np
import torch

from wkernels import masks, moments
from wkernels.gpu import (
    columns,
    consensus,
    kept,
    means,
    products,
    ranks,
    scores,
    selection,
    statistics,
    weighted_sum,
)  # fmt: skip

N = 4096
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def _rows(n_rows: int, dtype: torch.dtype, *, arena: bool = True) -> list[torch.Tensor]:
    rows = list(torch.zeros((n_rows + 1, N), dtype=dtype))
    return rows[:n_rows] if arena else [rows[0], *rows[2:]]


def _mix(n_models, n_mixes=1, dtype=BF16, *, out=None, base=None, arena=True, types=()):
    rows = _rows(n_models, dtype, arena=arena)
    for i, other in enumerate(types):
        rows[i] = torch.zeros(N, dtype=other)
    outs = _rows(n_mixes, out or dtype)
    origin = None if base is None else torch.zeros(N, dtype=base)
    names = {tensor.dtype for tensor in [*rows, *outs, *([] if origin is None else [origin])]}
    weights = torch.zeros((n_mixes, n_models), dtype=F64 if F64 in names else F32)
    weighted_sum.launch(rows, weights, outs, origin)


def _mix_tensors(n_models, n_mixes, dtype):
    tensors = [torch.zeros(N, dtype=dtype), torch.zeros(7, dtype=dtype)]
    weights = torch.zeros((n_mixes, n_models))
    weighted_sum.launch_tensors([tensors] * n_models, weights, [tensors] * n_mixes, tensors)


def _products(op, n_rows, n_columns=None, dtype=BF16, base=None, *, fast=False):
    columns = None if n_columns is None else _rows(n_columns, dtype)
    out = torch.zeros((1, n_rows, n_columns or n_rows), dtype=F64)
    origin = None if base is None else torch.zeros(N, dtype=base)
    products.launch(op, _rows(n_rows, dtype), columns, origin, np.array([[0, N]]), out, fast=fast)


def _statistics(dtype, base=None):
    origin = None if base is None else torch.zeros(N, dtype=base)
    sums = torch.zeros((1, 3, moments.N), dtype=F64)
    statistics.launch(_rows(3, dtype), origin, np.array([[0, N]]), sums)


def _based(n_rows, dtype, base):
    """Rows, a base or none, and their one segment."""
    origin = None if base is None else torch.zeros(N, dtype=base)
    return _rows(n_rows, dtype), origin, np.array([[0, N]])


def _count(width, shift, dtype, base=None):
    counts = torch.zeros((1, 3, 1 << width), dtype=torch.int64)
    selection.digit_counts(*_based(3, dtype, base), np.zeros((1, 3)), shift, width, counts)


def _nth_equal(dtype, base=None):
    bits, wanted = np.zeros((1, 3), np.int64), np.ones((1, 3), int)
    # nothing runs: there is one element in each run, that it may be looked for
    with patch.object(torch.Tensor, "new_empty", torch.Tensor.new_ones):
        selection.nth_equal(*_based(3, dtype, base), bits, wanted)


def _mask(n_rows, drawn):
    mask = masks.no_mask(1, n_rows)
    if drawn:
        mask.chance[:] = 0.5
    return mask


def _kept(dtype, base=None, *, drawn=False):
    sums = np.zeros((1, 3, kept.N_SUMS))
    kept.kept_sums(*_based(3, dtype, base), np.zeros(1, int), _mask(3, drawn), sums)


def _agreements(dtype, base=None):
    counts = np.zeros((1, 8, 2), np.int64)
    kept.agreements(*_based(8, dtype, base), np.zeros(1, int), _mask(8, False), counts)


def _join(n_rows, dtype, *, elect="sum", drawn=False, lone=False, scored=False, ranked=False):
    table = np.ones((1, n_rows))
    joint = masks.Joint(
        table, table, table, np.ones(1), elect=elect, divide=True, lone=table if lone else None
    )
    consensus.joined(
        *_based(n_rows, dtype, dtype), np.zeros(1, int), _mask(n_rows, drawn), joint,
        torch.zeros(N, dtype=dtype), scores=torch.zeros(N) if scored else None,
        chances=torch.zeros((n_rows, N)) if ranked else None,
    )  # fmt: skip


def _variances(dtype):
    rows, base, _ = _based(8, dtype, dtype)
    scores.variances(rows, base, torch.zeros(N))


def _importances(dtype):
    (row,), base, segments = _based(1, dtype, dtype)
    scores.importances(row, base, segments, np.array([N]), torch.zeros(N))


def _ranks(dtype, shape):
    n = shape[0] * shape[1] * shape[2]
    row, base = torch.zeros((2, n), dtype=dtype)
    ranks.rank_chances([row], base, np.array([[0, n]]), [shape], [0.5], [0.1], torch.zeros((1, n)))


def _columns(dtype, base=None, *, sums=False):
    rows, origin, segments = _based(2, dtype, base)
    width, firsts = N // 4, np.zeros(1, int)
    if sums:
        factors = [np.zeros((width, 2))]
        columns.column_sums(rows, origin, segments, firsts, factors, torch.zeros(N, dtype=dtype))
    else:
        grams = [np.zeros((width, 2, 2))]
        columns.column_products(rows, origin, segments, firsts, np.array([width]), grams)


def _pull(dtype):
    (row,), base, segments = _based(1, dtype, dtype)
    scores.pulled(row, base, segments, np.ones(1), torch.zeros(N, dtype=dtype))


def _precision_mean(dtype, precision):
    tables = np.ones((1, 4)), np.zeros(1)
    means.precision_mean(
        _rows(4, dtype), _rows(4, precision), np.array([[0, N]]), *tables,
        torch.zeros(N, dtype=dtype), np.zeros((1, 4), np.int64),
    )  # fmt: skip


CASES: dict[str, Callable[[], None]] = {
    "mix 1 bf16": partial(_mix, 1),
    "mix 2 bf16": partial(_mix, 2),
    "mix 8 bf16": partial(_mix, 8),
    "mix 8 bf16, base": partial(_mix, 8, base=BF16),
    "mix 8 bf16, table": partial(_mix, 8, arena=False),
    "mix 8 bf16, float32 base, 8 mixes": partial(_mix, 8, 8, base=F32),
    "mix 8 bf16 -> float32": partial(_mix, 8, out=F32),
    "mix 8 bf16 -> float64": partial(_mix, 8, out=F64),
    "mix 3 bf16 + 1 float32": partial(_mix, 4, types=(F32,)),
    "mix 16 float16, 8 mixes": partial(_mix, 16, 8, F16),
    "mix 40 bf16": partial(_mix, 40),
    "mix 40 bf16, 8 mixes, base, table": partial(_mix, 40, 8, base=BF16, arena=False),
    "mix 40 float64, 8 mixes": partial(_mix, 40, 8, F64),
    "mix 40 of two types": partial(_mix, 40, types=(F16,)),
    "mix 8 float32": partial(_mix, 8, dtype=F32),
    "mix 8 float64 -> bf16": partial(_mix, 8, dtype=F64, out=BF16),
    "mix 8 float8_e4m3fn -> bf16": partial(_mix, 8, dtype=E4M3, out=BF16),
    "mix 8 float8_e5m2 -> float16": partial(_mix, 8, dtype=E5M2, out=F16),
    "mix 8 state dicts bf16, base": partial(_mix_tensors, 8, 1, BF16),
    "mix 4 state dicts float32, 2 mixes": partial(_mix_tensors, 4, 2, F32),
    "dot 8 bf16, base": partial(_products, "dot", 8, base=BF16),
    "dot 8 float32": partial(_products, "dot", 8, dtype=F32),
    "dot 16 bf16, base": partial(_products, "dot", 16, base=BF16),
    "dot 32 bf16, base": partial(_products, "dot", 32, base=BF16),
    "dot 64 bf16, base": partial(_products, "dot", 64, base=BF16),
    "dot 256 bf16, base": partial(_products, "dot", 256, base=BF16),
    "dot 40 x 20 float64": partial(_products, "dot", 40, 20, F64),
    "dot 16 float8_e4m3fn": partial(_products, "dot", 16, dtype=E4M3),
    "fast dot 8 bf16": partial(_products, "dot", 8, fast=True),
    "fast dot 16 float8_e4m3fn": partial(_products, "dot", 16, dtype=E4M3, fast=True),
    "fast dot 32 bf16": partial(_products, "dot", 32, fast=True),
    "fast dot 256 bf16": partial(_products, "dot", 256, fast=True),
    "fast dot 16 bf16, base": partial(_products, "dot", 16, base=BF16, fast=True),
    "fast dot 32 bf16, base": partial(_products, "dot", 32, base=BF16, fast=True),
    "fast dot 64 float16, base": partial(_products, "dot", 64, dtype=F16, base=F16, fast=True),
    "fast dot 256 bf16, base": partial(_products, "dot", 256, base=BF16, fast=True),
    "fast dot 32 float32, base": partial(_products, "dot", 32, dtype=F32, base=F32, fast=True),
    "fast dot 256 float32, base": partial(_products, "dot", 256, dtype=F32, base=F32, fast=True),
    "l2 8 bf16": partial(_products, "l2", 8),
    "l2 16 bf16": partial(_products, "l2", 16),
    "l1 16 float32": partial(_products, "l1", 16, dtype=F32),
    "statistics bf16, base": partial(_statistics, BF16, BF16),
    "statistics float32, base": partial(_statistics, F32, F32),
    "statistics float64": partial(_statistics, F64),
    "statistics float8_e5m2": partial(_statistics, E5M2),
    "digits bf16, base": partial(_count, 11, 20, BF16, BF16),
    "digits float32": partial(_count, 10, 10, F32),
    "digits float64, base": partial(_count, 11, 52, F64, F64),
    "places bf16, base": partial(_nth_equal, BF16, BF16),
    "places float32": partial(_nth_equal, F32),
    "kept sums bf16, base": partial(_kept, BF16, BF16),
    "kept sums float32, base, drawn": partial(_kept, F32, F32, drawn=True),
    "kept sums float64": partial(_kept, F64),
    "agreements bf16, base": partial(_agreements, BF16, BF16),
    "variances bf16, base": partial(_variances, BF16),
    "variances float32, base": partial(_variances, F32),
    "importances bf16": partial(_importances, BF16),
    "importances float32": partial(_importances, F32),
    "ranks bf16, base": partial(_ranks, BF16, (1, 4096, 1)),
    "ranks in long lines, bf16, base": partial(_ranks, BF16, (1, 8192, 1)),
    "columns bf16, base": partial(_columns, BF16, BF16),
    "columns float32": partial(_columns, F32),
    "sums of columns bf16, base": partial(_columns, BF16, BF16, sums=True),
    "sums of columns float32": partial(_columns, F32, sums=True),
    "pull bf16": partial(_pull, BF16),
    "pull float32": partial(_pull, F32),
    "precision mean bf16, float32": partial(_precision_mean, BF16, F32),
    "precision mean float32": partial(_precision_mean, F32, F32),
    "join bf16, elected": partial(_join, 8, BF16),
    "join bf16, elected, lone": partial(_join, 8, BF16, lone=True),
    "join bf16, elected, scored": partial(_join, 8, BF16, scored=True),
    "join bf16, drawn": partial(_join, 8, BF16, elect="none", drawn=True),
    "join bf16, elected, ranked": partial(_join, 8, BF16, ranked=True),
    "join float32, signs, drawn": partial(_join, 8, F32, elect="signs", drawn=True),
    "join float64, elected": partial(_join, 8, F64),
}
