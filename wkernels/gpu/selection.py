"""Counts of the digits of magnitudes, from which thresholds follow: see ``wkernels.selection``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from wkernels import dtypes
from wkernels.gpu import addresses, chips, elements
from wkernels.gpu.elements import NONE, decode, load, row_pointer

BLOCK = 32768
"""Elements of one program: its counts, which all programs add to, are then a small part."""


@triton.jit
def magnitude_bits(row, base, here, inside, CODE: tl.constexpr, BASE_CODE: tl.constexpr,
                   COMPUTE: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """The difference to the base, and its bits without the sign."""
    x = decode(load(row + here, inside, MASKED), CODE, COMPUTE)
    if BASE_CODE != NONE:
        x = x - decode(load(base + here, inside, MASKED), BASE_CODE, COMPUTE)
    if tl.float64 == COMPUTE:
        bits = x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return x, bits


@triton.jit
def _count(counts, row, base, here, length, prefix, shift, above, CODE: tl.constexpr,
           BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, WIDTH: tl.constexpr,
           MASKED: tl.constexpr):  # fmt: skip
    inside = here < length
    _, bits = magnitude_bits(row, base, here, inside, CODE, BASE_CODE, COMPUTE, MASKED)
    counted = (bits >> above).to(tl.int64) == prefix
    if MASKED:
        counted = counted & inside
    digit = ((bits >> shift) & ((1 << WIDTH) - 1)).to(tl.int32)
    return counts + tl.histogram(digit, 1 << WIDTH, mask=counted)


@triton.jit(do_not_specialize=["base", "n_rows", "n", "shift"])
def count_digits(
    rows, base, prefixes, counts, n_rows, n, shift,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    WIDTH: tl.constexpr, STEP: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """One program: ``LENGTH`` elements of one row. Whole numbers are added up in any order."""
    row_index = tl.program_id(0) % n_rows
    start = (tl.program_id(0) // n_rows).to(tl.int64) * LENGTH
    length = tl.minimum(n.to(tl.int64) - start, LENGTH).to(tl.int32)
    row = row_pointer(tl.load(rows + row_index), start, CODE, ALIGNED)
    origin = row
    if BASE_CODE != NONE:
        origin = row_pointer(base, start, BASE_CODE, ALIGNED)
    prefix = tl.load(prefixes + row_index)
    offsets = tl.arange(0, STEP)
    found = tl.zeros((1 << WIDTH,), tl.int32)
    full = length // STEP * STEP
    for step in range(0, full, STEP):
        found = _count(
            found, row, origin, step + offsets, length, prefix, shift, shift + WIDTH,
            CODE, BASE_CODE, COMPUTE, WIDTH, False,
        )  # fmt: skip
    for step in range(full, length, STEP):
        found = _count(
            found, row, origin, step + offsets, length, prefix, shift, shift + WIDTH,
            CODE, BASE_CODE, COMPUTE, WIDTH, True,
        )  # fmt: skip
    bins = tl.arange(0, 1 << WIDTH)
    target = counts + row_index.to(tl.int64) * (1 << WIDTH) + bins
    tl.atomic_add(target, found.to(tl.int64), mask=found > 0)


def digit_counts(
    rows: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    prefix: np.ndarray,
    shift: int,
    width: int,
    counts: torch.Tensor,
) -> None:
    """Adds to ``counts[i, digit]``, int64 ``[n_rows, 2**width]``, the elements with that digit.

    The digit is ``(bits >> shift) % 2**width`` of the magnitude of ``row - base``, in float32
    (float64 if a row or the base is); only elements whose bits above it are ``prefix[i]`` count.
    Counts are whole numbers, which atomic additions sum to the same in any order.
    Bytes: each row once, and the base once a row, from the cache but for the first.
    """
    n = rows[0].numel()
    if not n:
        return
    based = [] if base is None else [base]
    compute = dtypes.compute_type(*map(addresses.type_name, [*rows, *based]))
    lanes = chips.current().lanes
    prefixes = addresses.to_device(np.asarray(prefix, np.int64).ravel(), counts.device)
    by_type: dict[int, list[int]] = {}
    for i, code in enumerate(addresses.codes_of(rows)):
        by_type.setdefault(code, []).append(i)
    for code, members in by_type.items():
        part = [rows[i] for i in members]
        itemsize = min(tensor.element_size() for tensor in [*part, *based])
        here = counts if len(by_type) == 1 else counts[members].contiguous()
        own = prefixes if len(by_type) == 1 else prefixes[members].contiguous()
        table = addresses.to_device(np.asarray(addresses.addresses_of(part)), counts.device)
        with addresses.on_device_of(counts):
            count_digits[(triton.cdiv(n, BLOCK) * len(part),)](
                table, 0 if base is None else base.data_ptr(), own, here, len(part), n, shift,
                CODE=code,
                BASE_CODE=addresses.codes_of(based)[0] if based else elements.NONE.value,
                COMPUTE=elements.FLOAT_TYPES[compute],
                ALIGNED=addresses.alignment(addresses.addresses_of([*part, *based])),
                WIDTH=width, STEP=16 // itemsize * lanes * 4, LENGTH=BLOCK, num_warps=4,
                enable_fp_fusion=False,
            )  # fmt: skip
        if len(by_type) > 1:
            counts[members] = here


def nth_equal(
    rows: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    bits: np.ndarray,
    nth: np.ndarray,
) -> np.ndarray:
    """One past the place of the ``nth[i]``-th element of row ``i`` whose magnitude has ``bits[i]``;
    -1 where ``nth`` is 0. Rows that have one are read once more, in chunks, by torch.
    """
    found = np.full(len(rows), -1, np.int64)
    based = [] if base is None else [base]
    name = dtypes.compute_type(*map(addresses.type_name, [*rows, *based]))
    compute, integer = getattr(torch, name), torch.int64 if name == "float64" else torch.int32
    for i in np.flatnonzero(nth):
        left = int(nth[i])
        for start in range(0, rows[i].numel(), _CHUNK):
            here = slice(start, start + _CHUNK)
            x = rows[i][here].to(compute)
            if base is not None:
                x = x - base[here].to(compute)
            places = (x.abs().view(integer) == int(bits[i])).nonzero().flatten()
            if len(places) >= left:
                found[i] = start + int(places[left - 1]) + 1
                break
            left -= len(places)
    return found


_CHUNK = 1 << 26
