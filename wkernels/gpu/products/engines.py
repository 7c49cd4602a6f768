"""How the matrix units multiply two tiles of rows: what the operands become, and what is lost.

``FLOAT64`` multiplies and adds in float64. The others multiply 16- or 19-bit operands and add in
float32 within a step of elements, then step by step, rounded to nearest. ``BFLOAT16`` and
``TFLOAT32`` first split each operand in two parts, and multiply all four pairs of parts: leaving
out the smallest, as three-product precisions do, would be a bias on every squared norm.

Errors of ``G[i, j]``, relative to ``|x_i| |x_j|``:

=========  ========================  ==========================================================
engine     operands                  error
=========  ========================  ==========================================================
FLOAT64    the differences           ``n_elements * 2**-53`` at most
WHOLE      16- and 8-bit rows,       that of the sums: ``2**-16`` at most, ``1e-6`` as a rule
           exactly
BFLOAT16   2 x 8 bits                ``2**-15 + 2**-16`` at most, ``1e-6`` as a rule
TFLOAT32   2 x 11 bits               ``2**-21 + 2**-16`` at most, ``1e-6`` as a rule
=========  ========================  ==========================================================

Sums: 256 steps of a block are added in float32, each of at most 64 elements, and the blocks in
float64. "As a rule" is what ``tests/test_fast_products.py`` holds on unkind inputs.
"""

# Triton compiles no choice between values that are of different types
# ruff: noqa: SIM108

from __future__ import annotations

import triton
import triton.language as tl

from wkernels.gpu.elements import BFLOAT16 as BFLOAT16_CODE
from wkernels.gpu.elements import INTERPRETED, decode, encode

NAMES = ("float64", "whole", "bfloat16", "tfloat32")
"""By the engines' codes."""
FLOAT64 = tl.constexpr(0)
WHOLE = tl.constexpr(1)
BFLOAT16 = tl.constexpr(2)
TFLOAT32 = tl.constexpr(3)


@triton.jit
def _opaque(x):
    """``x``, as the sum over an axis of one.

    Triton 3.6 follows the operands of a float64 ``tl.dot`` back to the load, and fails where that
    is narrower than 32 bits; it does not follow them through a reduction.
    """
    return tl.sum(x[None, :, :], axis=0)


@triton.jit
def operand(x, ENGINE: tl.constexpr):
    """Elements of rows, as the engine takes them; a tile that is both sides is made only once."""
    if ENGINE == FLOAT64:
        made = _opaque(x.to(tl.float64))
    else:
        made = x
    return made


@triton.jit
def whole(raw, CODE: tl.constexpr):
    """16- and 8-bit elements as the matrix units take them, exactly."""
    if CODE == BFLOAT16_CODE:
        made = raw.to(tl.bfloat16, bitcast=True)
        if INTERPRETED:  # which multiplies the bits of bfloat16
            made = decode(raw, CODE, tl.float32)
    elif raw.dtype == tl.float16:
        made = raw
    else:  # float16 has a place for every number of both 8-bit types
        made = decode(raw, CODE, tl.float32).to(tl.float16)
    return made


@triton.jit
def _rounded_tfloat32(x):
    """float32 rounded to 11 significant bits, to nearest even."""
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def _split(x, ENGINE: tl.constexpr):
    """``x`` as a high and a low part, each rounded to what the matrix units take."""
    if ENGINE == TFLOAT32:
        high = _rounded_tfloat32(x)
        low = _rounded_tfloat32(x - high)
    else:
        high = encode(x, BFLOAT16_CODE)
        widened = decode(high.to(tl.uint16, bitcast=True), BFLOAT16_CODE, tl.float32)
        low = encode(x - widened, BFLOAT16_CODE)
        if INTERPRETED:  # which multiplies the bits of bfloat16
            high = widened
            low = decode(low.to(tl.uint16, bitcast=True), BFLOAT16_CODE, tl.float32)
    return high, low


@triton.jit
def add_products(total, a, b, ENGINE: tl.constexpr, SAME: tl.constexpr):
    """``total + a @ b.T``, of operands; ``SAME``: ``b`` is ``a``."""
    if ENGINE == FLOAT64:
        total = tl.dot(a, tl.trans(b), total, out_dtype=tl.float64)
    elif ENGINE == WHOLE:
        # a chain of its own for each step: the matrix units' sums are cut off, not rounded
        total += tl.dot(a, tl.trans(b), out_dtype=tl.float32)
    else:
        high, low = _split(a, ENGINE)
        if SAME:
            across, below = tl.trans(high), tl.trans(low)
        else:
            other_high, other_low = _split(b, ENGINE)
            across, below = tl.trans(other_high), tl.trans(other_low)
        step = tl.dot(low, below, input_precision="tf32")  # no bearing on bfloat16
        step = tl.dot(low, across, step, input_precision="tf32")
        step = tl.dot(high, below, step, input_precision="tf32")
        total += tl.dot(high, across, step, input_precision="tf32")
    return total
