"""Reading and writing elements of every supported type inside a kernel.

Reading is exact. 16-bit and 8-bit types are loaded as integers and widened by their bits: the same
instructions on every chip, subnormals and NaN included, and the interpreter (whose own bfloat16
arithmetic is wrong) runs what the GPU runs. Writing rounds once, to nearest even.
"""

# Triton compiles neither starred tuples nor, in every version, a choice between loads
# ruff: noqa: SIM108

from __future__ import annotations

import triton
import triton.language as tl

from wkernels.dtypes import CODES

NONE = tl.constexpr(-1)
"""The code of an input that is absent."""
FLOAT64 = tl.constexpr(CODES["float64"])
FLOAT32 = tl.constexpr(CODES["float32"])
FLOAT16 = tl.constexpr(CODES["float16"])
BFLOAT16 = tl.constexpr(CODES["bfloat16"])
FLOAT8_E4M3FN = tl.constexpr(CODES["float8_e4m3fn"])
FLOAT8_E5M2 = tl.constexpr(CODES["float8_e5m2"])

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

FLOAT_TYPES = {"float64": tl.float64, "float32": tl.float32}
"""Types that kernels compute in, by the names of ``wkernels.dtypes``."""


@triton.jit
def row_pointer(address, start, CODE: tl.constexpr, ALIGNED: tl.constexpr):
    """Where element ``start`` of the row at an address is loaded from (or of rows at a tensor of
    addresses)."""
    if CODE == FLOAT64:
        pointer = address.to(tl.pointer_type(tl.float64))
    elif CODE == FLOAT32:
        pointer = address.to(tl.pointer_type(tl.float32))
    elif CODE == FLOAT16:
        pointer = address.to(tl.pointer_type(tl.float16))
    elif CODE == BFLOAT16:
        pointer = address.to(tl.pointer_type(tl.uint16))
    else:
        pointer = address.to(tl.pointer_type(tl.uint8))
    # bytes; a promise, checked by the launcher: without it loads are one element wide
    return tl.multiple_of(pointer + start, ALIGNED)


@triton.jit
def base_pointer(base, start, CODE: tl.constexpr, ALIGNED: tl.constexpr):
    """That of the base; what was given, where there is none."""
    pointer = base
    if CODE != NONE:
        pointer = row_pointer(base, start, CODE, ALIGNED)
    return pointer


@triton.jit
def load(pointers, inside, MASKED: tl.constexpr):
    """Elements as they lie in memory; where not ``inside``, zero."""
    if MASKED:
        raw = tl.load(pointers, mask=inside, other=0)
    else:
        raw = tl.load(pointers)
    return raw


@triton.jit
def decode(raw, CODE: tl.constexpr, COMPUTE: tl.constexpr):
    """Loaded elements as ``COMPUTE`` (float32 or float64), exactly."""
    if CODE == BFLOAT16:
        x = (raw.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif CODE == FLOAT8_E5M2:  # the upper half of a float16
        x = (raw.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(tl.float32)
    elif CODE == FLOAT8_E4M3FN:
        bits = raw.to(tl.uint16)
        # as float16 bits the exponent's bias is 15, not 7: the value is 2**-8 of what it means
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        x = half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        x = tl.where((bits & 0x7F) == 0x7F, float("nan"), x)
    else:
        x = raw
    return x.to(COMPUTE)


@triton.jit
def round_to_odd(x):
    """float64 to float32 such that a second rounding, to 16 bits, rounds as if it were the first.

    Truncates, and sets the last bit if anything was lost (Boldo and Melquiond, 2008).
    """
    nearest = x.to(tl.float32)
    back = nearest.to(tl.float64)
    bits = nearest.to(tl.uint32, bitcast=True)
    bits = tl.where(tl.abs(back) > tl.abs(x), bits - 1, bits)
    return tl.where(back != x, bits | 1, bits).to(tl.float32, bitcast=True)


@triton.jit
def encode(x, CODE: tl.constexpr):
    """``x`` (float32 or float64) rounded once to the type with this code."""
    if CODE == FLOAT64:
        rounded = x.to(tl.float64)
    elif CODE == FLOAT32:
        rounded = x.to(tl.float32)
    else:
        single = x
        if x.dtype == tl.float64:
            single = round_to_odd(x)
        if CODE == FLOAT16:
            rounded = single.to(tl.float16)
        elif INTERPRETED:  # the interpreter truncates where cvt.rn.bf16 rounds
            bits = single.to(tl.uint32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            bits = tl.where(single == single, bits, 0x7FC0).to(tl.uint16)
            rounded = bits.to(tl.bfloat16, bitcast=True)
        else:
            rounded = single.to(tl.bfloat16)
    return rounded


@triton.jit
def store(address, start, offsets, x, inside, CODE: tl.constexpr, ALIGNED: tl.constexpr,
          MASKED: tl.constexpr):  # fmt: skip
    """Round ``x`` and write it ``offsets`` past element ``start`` of the row at an address."""
    if CODE == FLOAT64:
        pointer = address.to(tl.pointer_type(tl.float64))
    elif CODE == FLOAT32:
        pointer = address.to(tl.pointer_type(tl.float32))
    elif CODE == FLOAT16:
        pointer = address.to(tl.pointer_type(tl.float16))
    else:
        pointer = address.to(tl.pointer_type(tl.bfloat16))
    pointer = tl.multiple_of(pointer + start, ALIGNED)
    if MASKED:
        tl.store(pointer + offsets, encode(x, CODE), mask=inside)
    else:
        tl.store(pointer + offsets, encode(x, CODE))
