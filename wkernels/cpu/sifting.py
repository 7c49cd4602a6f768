"""The loops of a sieve: a sample, the limits it gives, and what is beyond and between them."""

from __future__ import annotations

import numpy as np

from wkernels.cpu.blocks import BLOCK
from wkernels.cpu.elements import BFLOAT16, FLOAT16, FLOAT32, WIDTHS, read
from wkernels.cpu.jit import bare_kernel, kernel
from wkernels.cpu.masks import magnitudes, read_base, subtract
from wkernels.cpu.parts import inlined, inner
from wkernels.cpu.sifts import SIFTS
from wkernels.cpu.vectors import LANES, TURN
from wkernels.selection import ALL

COLUMNS = 2048

_ABOVE, _AT_HIGH, _AT_LOW, _BETWEEN = range(4)
_TOP = np.int64((1 << 31) - 1)
_BINS = 2048


@kernel
def gather(addresses, codes, base_address, base_code, segments, steps, starts, ends, run, taken):
    values = np.empty(run, np.float32)
    base = np.zeros(run, np.float32)
    for block in range(segments.shape[0]):
        place = segments[block, 0]
        at = starts[block]
        while at < ends[block]:
            n = min(run, ends[block] - at)
            if base_address.size == 1:
                read(base_code[0], base_address[0], place, base[:n], 0)
            for i in range(addresses.size):
                read(codes[i], addresses[i], place, values[:n], 0)
                subtract(values[:n], base[:n])
                magnitudes(values[:n], taken[i, at : at + n].view(np.float32))
            place += steps[block]
            at += n


@inner
def _count(number, first, span, shift, table):
    offset = np.uint64(number) - np.uint64(first)  # of less than the first: a large one
    if offset < np.uint64(span):
        table[offset >> np.uint64(shift)] += np.int32(1)


@inner
def _tally(bits, first, span, shift, counts):
    """Counts of ``bits - first`` without the last ``shift`` bits, of those below ``span``."""
    n_bins = ((span - 1) >> shift) + 1
    # four tables: neighbours that are alike need not wait for each other
    a, b, c, d = counts[0, :n_bins], counts[1, :n_bins], counts[2, :n_bins], counts[3, :n_bins]
    a[:] = 0
    b[:] = 0
    c[:] = 0
    d[:] = 0
    n = bits.size
    whole = n - n % 4
    for k in range(0, whole, 4):
        _count(bits[k], first, span, shift, a)
        _count(bits[k + 1], first, span, shift, b)
        _count(bits[k + 2], first, span, shift, c)
        _count(bits[k + 3], first, span, shift, d)
    for k in range(whole, n):
        _count(bits[k], first, span, shift, a)
    for k in range(n_bins):
        a[k] += b[k] + c[k] + d[k]


@inner
def _nth_largest(bits, nth, low, high, counts):
    """The ``nth``-th (from 1) of magnitudes' bits, which is ``low`` to ``high``, its place among
    equal ones, and how many those are."""
    first = np.int64(low)
    span = np.int64(high) - first + 1
    equal = np.int64(bits.size)
    while span > 1:
        shift = 0
        while (span - 1) >> shift >= counts.shape[1]:
            shift += 1
        _tally(bits, first, span, shift, counts)
        digit = (span - 1) >> shift
        while counts[0, digit] < nth:
            nth -= counts[0, digit]
            digit -= 1
        equal = np.int64(counts[0, digit])
        first += digit << shift
        span = min(span - (digit << shift), 1 << shift)
    return np.int32(first), nth, equal


@kernel
def bracket(taken, edges, sizes, largest, wanted, spread, limits):
    counts = np.empty((4, _BINS), np.int32)
    for slot in range(sizes.size):
        for i in range(taken.shape[0]):
            if not wanted[slot, i]:
                continue
            bits = taken[i, edges[slot] : edges[slot + 1]]
            n = bits.size
            share = largest[slot, i] / sizes[slot]
            away = 0.0
            if n < sizes[slot]:
                away = spread * np.sqrt(n * share * (1 - share)) + 4
            first = np.int64(np.floor(share * n - away))
            last = np.int64(np.ceil(share * n + away))
            if n == sizes[slot]:
                first = last = largest[slot, i]
            low, high = np.int32(-1), np.int32(_TOP)
            if last <= n:
                low = _nth_largest(bits, last, 0, _TOP, counts)[0]
            if first >= 1:
                high = _nth_largest(bits, first, max(low, 0), _TOP, counts)[0]
            limits[slot, i, 0], limits[slot, i, 1] = low, high


_sift_bfloat16, _sift_float16, _sift_float32 = (
    SIFTS[name] for name in ("bfloat16", "float16", "float32")
)


@inlined
def _sift_row(code, address, start, n, base, values, limits, out, tally):
    """Returns how many magnitudes are between the limits; those are at the start of ``out``."""
    whole = n - n % TURN
    row = address + start * WIDTHS[code]
    place = out.ctypes.data
    count = np.int64(0)
    origin, edges, counts = base.ctypes.data, limits.ctypes.data, tally.ctypes.data
    area = values.ctypes.data
    if code == BFLOAT16:
        count = _sift_bfloat16(row, whole, origin, edges, area, place, counts, COLUMNS)
    elif code == FLOAT32:
        count = _sift_float32(row, whole, origin, edges, area, place, counts, COLUMNS)
    elif code == FLOAT16:
        count = _sift_float16(row, whole, origin, edges, area, place, counts, COLUMNS)
    else:
        whole = 0
    if whole < n:
        rest = values[: n - whole]
        read(code, address, start + whole, rest, 0)
        subtract(rest, base[whole:n])
        magnitudes(rest, rest)
        bits = rest.view(np.int32)
        for k in range(bits.size):
            tally[0] += np.int64(bits[k] > limits[1])
            tally[1] += np.int64(bits[k] == limits[1])
            tally[2] += np.int64(bits[k] == limits[0])
            if limits[0] < bits[k] < limits[1]:
                out[count] = bits[k]
                count += 1
    return count


@bare_kernel
def sift(
    rows, based, ranges, owners, first, last, limits, wanted, base, values, filled, kept, counts
):
    """``base``, ``values`` (float32 ``[COLUMNS]``), ``filled`` (int64 ``[n_rows]``): zeros."""
    for block in range(first, last):
        slot = owners[block]
        for start in range(ranges[block, 0], ranges[block, 1], COLUMNS):
            n = min(COLUMNS, ranges[block, 1] - start)
            read_base(based, start, n, base)
            for i in range(rows.codes.size):
                if wanted[slot, i]:
                    counts[block, i, _BETWEEN] += _sift_row(
                        rows.codes[i], rows.addresses[i], start, n, base, values, limits[slot, i],
                        kept[i, filled[i] + counts[block, i, _BETWEEN] :], counts[block, i],
                    )  # fmt: skip
        for i in range(rows.codes.size):
            if filled[i] + counts[block, i, _BETWEEN] + BLOCK + LANES > kept.shape[1]:
                counts[block, i, _BETWEEN] = -1  # the next block might not have room
            else:
                filled[i] += counts[block, i, _BETWEEN]


@kernel
def resolve(edges, counts, places, kept, limits, largest, open_, bits, before, block, nth):
    digits = np.empty((4, _BINS), np.int32)
    for slot in range(largest.shape[0]):
        first, last = edges[slot], edges[slot + 1]
        for i in range(largest.shape[1]):
            if not open_[slot, i]:
                continue
            above, at_high, at_low, between = 0, 0, 0, 0
            whole = True
            for b in range(first, last):
                above += counts[b, i, _ABOVE]
                at_high += counts[b, i, _AT_HIGH]
                at_low += counts[b, i, _AT_LOW]
                between += counts[b, i, _BETWEEN]
                whole &= counts[b, i, _BETWEEN] >= 0
            low, high = limits[slot, i, 0], limits[slot, i, 1]
            left = largest[slot, i] - above
            column = _AT_HIGH
            value = high
            equal = at_high
            if not whole or left <= 0:
                continue
            if left > at_high:
                left -= at_high
                if left <= between:
                    inside = np.empty(between, np.int32)
                    at = 0
                    for b in range(first, last):
                        n = counts[b, i, _BETWEEN]
                        inside[at : at + n] = kept[places[b, i] : places[b, i] + n]
                        at += n
                    column = _BETWEEN
                    value, left, equal = _nth_largest(inside, left, low + 1, high - 1, digits)
                else:
                    left -= between
                    column, value, equal = _AT_LOW, low, at_low
                    if left > at_low or low == high:
                        continue
            open_[slot, i] = False
            bits[slot, i] = value
            before[slot, i] = ALL
            if left == equal:
                continue
            b = first
            while True:
                n = counts[b, i, column]
                if column == _BETWEEN:
                    inside = kept[places[b, i] : places[b, i] + n]
                    n = 0
                    for k in range(inside.size):
                        n += inside[k] == value
                if left <= n:
                    break
                left -= n
                b += 1
            block[slot, i] = b - first
            nth[slot, i] = left


@kernel
def place(addresses, codes, base_address, base_code, segments, which, bits, nths, places):
    """``places``: after the ``nths`` element of row ``which`` with these bits, in each segment."""
    for j in range(which.size):
        start, i, nth = segments[j, 0], which[j], nths[j]
        n = segments[j, 1] - start
        values = np.empty(n, np.float32)
        base = np.zeros(n, np.float32)
        read(codes[i], addresses[i], start, values, 0)
        if base_address.size == 1:
            read(base_code[0], base_address[0], start, base, 0)
        subtract(values, base)
        magnitudes(values, values)
        found = values.view(np.int32)
        k = 0
        while k < n and nth > 0:
            nth -= found[k] == bits[j]
            k += 1
        places[j] = k
