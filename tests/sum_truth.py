"""Weighted sums as they are defined, bit for bit, and rows to sum."""

import numpy as np
import torch


def fma32(x, weight, total):
    """``x * weight + total`` in float32, rounded once."""
    product = x.astype(np.float64) * np.float64(weight)  # exact
    total = total.astype(np.float64)
    rounded = product + total
    recovered = rounded - product
    lost = (product - (rounded - recovered)) + (total - recovered)  # exact
    # to odd in float64, so that the rounding to float32 is as if it were the only one
    even = (rounded.view(np.int64) & 1) == 0
    towards = np.where(lost > 0, np.inf, -np.inf)
    odd = np.where((lost != 0) & even, np.nextafter(rounded, towards), rounded)
    return odd.astype(np.float32)


def chain(rows, weights, out_dtype, base=None):
    """The definition of the bits: one fma a model, from zero, in order; one rounding."""
    rows = [row.float().numpy() for row in rows]
    origin = None if base is None else base.float().numpy()
    mixes = []
    for mix in weights.float().numpy():
        total = np.zeros_like(rows[0])
        for row, weight in zip(rows, mix, strict=True):
            total = fma32(row if origin is None else row - origin, weight, total)
        total = total if origin is None else origin + total
        mixes.append(torch.from_numpy(total).to(out_dtype))
    return torch.stack(mixes)


def make(n_models, n, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, generator=generator, dtype=torch.float64).to(dtype) for _ in range(n_models)
    ]


def weights_for(n_mixes, n_models, seed=1):
    return torch.randn(n_mixes, n_models, generator=torch.Generator().manual_seed(seed))


def poisoned(n_mixes, n, dtype):
    return torch.full((n_mixes, n), torch.nan, dtype=dtype)


def same_bits(a, b):
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
