"""How far the softmax of each line of a model is from that of the base, in float32 vectors.

``D = sum p ln(p / q)`` over a line, ``p`` and ``q`` the softmax of the model's and of the base's
line, each plus 1e-8. For models that are near their base ``D`` is a small difference of large sums.
As ``p`` and ``q`` have one sum, ``D = sum [p ln(p / q) - p + q]``, of which no term is negative:
float32 is enough for the terms, whose sums are in float64. With ``a = p - q``, ``m = (p + q) / 2``
and ``s = a / 2m`` a term is ``a s [1 + (1 + s) (artanh(s) / s - 1) / s]``.

``a`` comes without cancellation too: ``p / q = exp(d - c)`` (before 1e-8 is added) with the
difference ``d`` of an element, and ``c = ln sum q exp(d)``.
"""

from __future__ import annotations

import math

import numpy as np

from wkernels.cpu.jit import bits_of_float32, float32_from_bits, fma
from wkernels.cpu.parts import inner

SOFTENING = 1e-8
"""Added to the softmax."""

NEAR = 0.5
"""Differences up to this are of models near their base; others are compared in float64."""

SMALL = 40.0
"""Elements up to this need not be shifted: neither their exponentials nor sums of them overflow."""

LANES = 64
"""Of each sum, in float64; they are added at its end."""

TURN = 4 * LANES
"""Elements at a time: a lane's four are added in float32 first."""

_LOG2_E, _LN2_HIGH, _LN2_LOW = (np.float32(x) for x in (1.44269504, 0.693359375, -2.12194440e-4))
_ROUNDS = np.float32(1.5 * 2**23)  # float32 of this size are whole numbers
_ONE, _HALF, _SOFT = np.float32(1), np.float32(0.5), np.float32(SOFTENING)
_23, _MAGNITUDE = np.uint32(23), np.uint32(0x7FFFFFFF)
_SMALL, _NEAR = (np.float32(x).view(np.int32) for x in (SMALL, NEAR))
# (exp(x) - 1 - x) / x**2 up to 1/2, and (artanh(s) - s) / s**3 in s**2 up to tanh(1/2)**2:
# interpolated at the zeros of Chebyshev's polynomials
_E0, _E1, _E2, _E3, _E4, _E5 = (
    np.float32(x)
    for x in (0.5, 0.16666667, 0.04166579, 0.008333236, 0.0013982186, 0.00019944874)
)  # fmt: skip
_A0, _A1, _A2, _A3, _A4, _A5 = (
    np.float32(x)
    for x in (0.33333331, 0.20000193, 0.14275332, 0.11312523, 0.073696, 0.14064811)
)  # fmt: skip


@inner
def exp_less_1(x):
    """``exp(x) - 1`` in float32, for ``|x| <= 1/2``: within 1 unit in the last place."""
    p = fma(fma(fma(fma(fma(_E5, x, _E4), x, _E3), x, _E2), x, _E1), x, _E0)
    return fma(x * x, p, x)


@inner
def exp(x):
    """``exp(x)`` in float32, for ``|x| <= 80``: within 1 unit in the last place."""
    shifted = fma(x, _LOG2_E, _ROUNDS)
    n = shifted - _ROUNDS
    r = fma(n, -_LN2_LOW, fma(n, -_LN2_HIGH, x))
    bits = bits_of_float32(exp_less_1(r) + _ONE)
    return float32_from_bits(bits + (bits_of_float32(shifted) << _23))


@inner
def exponentials(values, base, weights, growths):
    """``values -= base``; ``weights = exp(base)``; ``growths = exp(values) - 1``, in float32.

    Returns whether that is so: not where elements are too large or far apart, or NaN.
    """
    largest, farthest = np.int32(0), np.int32(0)
    for k in range(values.size):
        values[k] -= base[k]
        x, d = np.float32(base[k]), np.float32(values[k])
        weights[k] = exp(x)
        growths[k] = exp_less_1(d)
        largest = max(largest, np.int32(bits_of_float32(x) & _MAGNITUDE))
        farthest = max(farthest, np.int32(bits_of_float32(d) & _MAGNITUDE))
    return (largest <= _SMALL) & (farthest <= _NEAR)


@inner
def _quarters(values, start):
    """Slices, whose elements a loop over ``LANES`` loads as vectors."""
    first, last = values[start : start + LANES], values[start + 3 * LANES : start + TURN]
    second = values[start + LANES : start + 2 * LANES]
    return first, second, values[start + 2 * LANES : start + 3 * LANES], last


@inner
def _add(values, sums):
    for start in range(0, values.size, TURN):
        a, b, c, d = _quarters(values, start)
        for k in range(LANES):
            sums[k] += np.float64((a[k] + b[k]) + (c[k] + d[k]))


@inner
def _add_products(left, right, sums):
    for start in range(0, left.size, TURN):
        a, b, c, d = _quarters(left, start)
        e, f, g, h = _quarters(right, start)
        for k in range(LANES):
            sums[k] += np.float64((a[k] * e[k] + b[k] * f[k]) + (c[k] * g[k] + d[k] * h[k]))


@inner
def _total(sums):
    """Halves onto halves; leaves zeros."""
    half = LANES // 2
    while half:
        for lane in range(half):
            sums[lane] += sums[lane + half]
        half //= 2
    total = sums[0]
    sums[:] = 0
    return total


@inner
def _term(weight, growth, scale, mean_growth, shrink):
    q = weight * scale
    a = q * ((growth - mean_growth) * shrink)
    m = fma(a, _HALF, q + _SOFT)
    s = a / (m + m)
    y = s * s
    p = fma(fma(fma(fma(fma(_A5, y, _A4), y, _A3), y, _A2), y, _A1), y, _A0)
    return (a * s) * fma((s + _ONE) * s, p, _ONE)


@inner
def _add_terms(weights, growths, scale, growth, shrink, sums):
    for start in range(0, weights.size, TURN):
        a, b, c, d = _quarters(weights, start)
        e, f, g, h = _quarters(growths, start)
        for k in range(LANES):
            one = _term(a[k], e[k], scale, growth, shrink)
            two = _term(b[k], f[k], scale, growth, shrink)
            three = _term(c[k], g[k], scale, growth, shrink)
            four = _term(d[k], h[k], scale, growth, shrink)
            sums[k] += np.float64((one + two) + (three + four))


@inner
def near_divergence(weights, growths, sums):
    """``D`` of a line from its :func:`exponentials`, with zeros up to a multiple of ``TURN``.

    ``sums`` (float64 ``[LANES]``): zeros.
    """
    _add(weights, sums)
    whole = _total(sums)
    _add_products(weights, growths, sums)
    growth = _total(sums) / whole  # exp(c) - 1
    shrink = np.float32(1 / (1 + growth))
    _add_terms(weights, growths, np.float32(1 / whole), np.float32(growth), shrink, sums)
    return _total(sums)


@inner
def _softmax(values, weights):
    largest = values[0]
    for k in range(values.size):
        largest = max(largest, values[k])
    total = 0.0
    for k in range(values.size):
        weights[k] = math.exp(np.float64(values[k]) - np.float64(largest))
        total += weights[k]
    for k in range(values.size):
        weights[k] = weights[k] / total + SOFTENING


@inner
def far_divergence(values, base, p, q):
    """``D`` as it is defined, in float64. ``p`` and ``q`` (float64): room for a line."""
    _softmax(values, p)
    _softmax(base, q)
    divergence = 0.0
    for k in range(values.size):
        divergence += p[k] * math.log(p[k] / q[k])
    return divergence
