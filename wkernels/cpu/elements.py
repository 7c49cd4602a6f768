"""Reading any element type into a block of floats, and writing a block with one rounding."""

from __future__ import annotations

import numpy as np

from wkernels.cpu.jit import (
    array_at,
    bits_of_float32,
    float32_from_bits,
    float32_from_half,
    half_from_float32,
)
from wkernels.cpu.parts import inner
from wkernels.cpu.stores import STORES
from wkernels.cpu.vectors import READS, TURN
from wkernels.dtypes import CODES, FLOATS

FLOAT64, FLOAT32, FLOAT16, BFLOAT16 = (
    CODES[name] for name in ("float64", "float32", "float16", "bfloat16")
)
WIDTHS = np.array(list(FLOATS.values()))
E4M3, E5M2 = CODES["float8_e4m3fn"], CODES["float8_e5m2"]


def _table_e4m3() -> np.ndarray:
    bits = np.arange(256)
    exponent, fraction = (bits >> 3) & 15, bits & 7
    value = np.where(
        exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent.astype(float) - 10)
    )
    value[(bits & 127) == 127] = np.nan  # no infinities in this type
    return np.where(bits < 128, value, -value).astype(np.float32)


_E4M3 = _table_e4m3()
_E5M2 = (np.arange(256) << 8).astype(np.uint16).view(np.float16).astype(np.float32)


@inner
def _read_slowly(code, address, start, values):
    """``read`` for any type, one element after another; compilers vectorise most of it."""
    n = values.size
    if code == BFLOAT16:
        halves = array_at(address + 2 * start, n, np.uint16)
        for k in range(n):
            values[k] = float32_from_bits(np.uint32(halves[k]) << np.uint32(16))
    elif code == FLOAT32:
        floats = array_at(address + 4 * start, n, np.float32)
        for k in range(n):
            values[k] = floats[k]
    elif code == FLOAT16:
        halves = array_at(address + 2 * start, n, np.uint16)
        for k in range(n):
            values[k] = float32_from_half(halves[k])
    elif code == FLOAT64:
        doubles = array_at(address + 8 * start, n, np.float64)
        for k in range(n):
            values[k] = doubles[k]
    else:
        table = _E4M3 if code == E4M3 else _E5M2
        octets = array_at(address + start, n, np.uint8)
        for k in range(n):
            values[k] = table[octets[k]]


def _vectorised(action):
    """``function(code, row, n, base, out, ahead)``: how many of ``n`` elements it did.

    The fast loops know the three types that checkpoints are made of; for the others the answer is
    0, and the caller does everything.
    """
    bfloat16, float16, float32 = (
        READS[name, action] for name in ("bfloat16", "float16", "float32")
    )

    @inner
    def run(code, row, n, base, out, ahead):
        n -= n % TURN
        if code == BFLOAT16:
            bfloat16(row, n, base, out, ahead)
        elif code == FLOAT32:
            float32(row, n, base, out, ahead)
        elif code == FLOAT16:
            float16(row, n, base, out, ahead)
        else:
            return 0
        return n

    return run


_fast_read = _vectorised("read")
_fast_centre = _vectorised("centre")
_fast_widen = _vectorised("widen")
_store_bfloat16, _store_float16, _store_float32 = (
    STORES[name, False] for name in ("bfloat16", "float16", "float32")
)
_bypass_bfloat16, _bypass_float16, _bypass_float32 = (
    STORES[name, True] for name in ("bfloat16", "float16", "float32")
)


@inner
def _element(code, address, start):
    return address + start * WIDTHS[code]


@inner
def read(code, address, start, values, ahead):
    """``values[k] = element start + k`` of the row at ``address``, exactly (float32 or float64).

    ``ahead``: how many elements further along the same row the next call will read.
    """
    done = 0
    if values.itemsize == 4:
        row = _element(code, address, start)
        done = _fast_read(code, row, values.size, 0, values.ctypes.data, ahead)
    _read_slowly(code, address, start + done, values[done:])


@inner
def read_widened(code, address, start, base, based, values, widened, ahead):
    """``widened[k] = element start + k``, less ``base[k]`` if ``based``, in float64.

    The difference is taken in the type of ``values``, a work area, like ``base``, of equal length.
    """
    done = 0
    n = values.size
    if values.itemsize == 4:
        row, out = _element(code, address, start), widened.ctypes.data
        if based:
            done = _fast_centre(code, row, n, base.ctypes.data, out, ahead)
        else:
            done = _fast_widen(code, row, n, 0, out, ahead)
    _read_slowly(code, address, start + done, values[done:])
    for k in range(done, n):
        widened[k] = np.float64(values[k] - base[k]) if based else np.float64(values[k])


@inner
def _odd_float32(value):
    """A float32 that a second rounding turns into what one rounding of ``value`` gives.

    Rounding to odd: an inexact value keeps its last bit set, so it is never mistaken for a tie.
    A float32 comes back as it is.
    """
    near = np.float32(value)
    if np.float64(near) != np.float64(value) and value == value:
        bits = bits_of_float32(near)
        if abs(np.float64(near)) > abs(np.float64(value)):
            bits -= np.uint32(1)
        near = float32_from_bits(bits | np.uint32(1))
    return near


@inner
def _bfloat16(value):
    bits = bits_of_float32(value)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    if value != value:
        rounded = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.uint16(rounded)


@inner
def write(code, address, start, values, bypass):
    """Round ``values`` once, to nearest even; returns how many came out NaN or Inf.

    ``bypass``: past the caches where the place allows it, for rows that do not fit there; the
    caller ends with ``vectors.fence``.
    """
    done = 0
    if values.itemsize == 4:
        out = _element(code, address, start)
        whole = values.size - values.size % TURN
        finite = False  # what is not is counted slowly
        if bypass and out % 64 == 0:
            if code == BFLOAT16:
                finite = _bypass_bfloat16(values.ctypes.data, whole, out)
            elif code == FLOAT16:
                finite = _bypass_float16(values.ctypes.data, whole, out)
            elif code == FLOAT32:
                finite = _bypass_float32(values.ctypes.data, whole, out)
        elif code == BFLOAT16:
            finite = _store_bfloat16(values.ctypes.data, whole, out)
        elif code == FLOAT16:
            finite = _store_float16(values.ctypes.data, whole, out)
        elif code == FLOAT32:
            finite = _store_float32(values.ctypes.data, whole, out)
        done = whole if finite else 0
    return _write_slowly(code, address, start + done, values[done:])


@inner
def _write_slowly(code, address, start, values):
    n = values.size
    bad = 0
    if code == BFLOAT16:
        halves = array_at(address + 2 * start, n, np.uint16)
        for k in range(n):
            halves[k] = _bfloat16(_odd_float32(values[k]))
            bad += (halves[k] & np.uint16(0x7F80)) == np.uint16(0x7F80)
    elif code == FLOAT16:
        halves = array_at(address + 2 * start, n, np.uint16)
        for k in range(n):
            halves[k] = half_from_float32(_odd_float32(values[k]))
            bad += (halves[k] & np.uint16(0x7C00)) == np.uint16(0x7C00)
    elif code == FLOAT32:
        floats = array_at(address + 4 * start, n, np.float32)
        for k in range(n):
            floats[k] = np.float32(values[k])
            bad += not abs(floats[k]) < np.inf
    else:
        doubles = array_at(address + 8 * start, n, np.float64)
        for k in range(n):
            doubles[k] = np.float64(values[k])
            bad += not abs(doubles[k]) < np.inf
    return bad
