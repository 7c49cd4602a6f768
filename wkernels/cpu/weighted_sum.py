"""Weighted sums on the CPU: every row once, block by block, for all mixes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wkernels.cpu.alike import add_rows, stand_in, store_rows
from wkernels.cpu.digests import NO_DIGESTS, Digests, digest_written, take_digests
from wkernels.cpu.elements import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, read, write
from wkernels.cpu.jit import START, STOP, fma, kernel
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.parts import inner
from wkernels.cpu.pointers import Pointers
from wkernels.cpu.row_sums import GROUPS, MIXES, SIDE
from wkernels.cpu.stores import fence
from wkernels.cpu.vectors import TURN
from wkernels.mixes import MIXED

BLOCK = 2048
"""Elements at a time: the sums, the base and a row fit in first-level cache, and what was fetched
ahead in the second."""

BYPASS = 1 << 24
"""Elements from which outputs go past the caches, which they would only fill; a chunk of a stream,
written to a file next, is shorter."""

AHEAD = 512
"""Elements ahead of their use at which rows that are read together are fetched; a row that is read
alone is fetched a block ahead, as others come between."""

PARALLEL = 1 << 16
"""Elements below which a second thread costs more than it gives."""


def weighted_sum(
    rows: Pointers,
    weights: np.ndarray,
    copied: np.ndarray,
    base: Pointers,
    outs: Pointers,
    n: int,
    *,
    threads: int,
    digests: Digests = NO_DIGESTS,
) -> int:
    """See ``ops.weighted_sum``; ``copied`` is ``mixes.copied_rows``; ``base`` has 0 or 1 rows.

    ``digests``: of blocks of the outputs; those are taken that one thread writes.

    Returns how many elements of the outputs are NaN or Inf: as products with zero are NaN too, 0
    means that every row that any mix computes with is finite.
    """
    codes = {*rows.codes.tolist(), *base.codes.tolist(), *outs.codes.tolist()}
    compute = np.float64 if FLOAT64 in codes else np.float32
    sources = copied.tolist()
    mixed = [j for j, source in enumerate(sources) if source == MIXED]
    factors = np.ascontiguousarray(weights[mixed], dtype=compute)
    bypass = n >= BYPASS
    # one mix, of one type
    stored = stand_in(codes) if len(outs) == len(mixed) == 1 else None
    if stored is not None:
        origin = base.addresses[0] if len(base) else None
        summed = _sum_alike.over(
            stored, rows.addresses, factors, origin, outs.addresses[0], START, STOP, bypass, digests
        )
    else:
        summed = None

    def work(start: int, stop: int) -> int:
        done = summed(start, stop) if summed else start
        if done == stop:
            return 0
        used = rows if mixed else Pointers(rows.addresses[:0], rows.codes[:0])
        places = (outs.addresses[mixed], outs.codes[mixed])
        copies = _copies(sources, rows, base, outs)
        bad = _range(*used, factors, *base, *places, copies, done, stop, bypass)
        if len(digests.runs):
            digest_written(digests, start, stop)
        return bad

    near = digests.borders
    return sum(over_ranges(work, n, step=BLOCK, threads=threads, least=PARALLEL, near=near))


def _copies(sources: Sequence[int], rows: Pointers, base: Pointers, outs: Pointers) -> np.ndarray:
    """What outputs are copies of, and those: type and address of both, int64 ``[n, 4]``."""
    found = []
    for j, source in enumerate(sources):
        if source != MIXED:
            part, i = (rows, source) if source >= 0 else (base, 0)
            found.append((part.codes[i], part.addresses[i], outs.codes[j], outs.addresses[j]))
    return np.array(found, np.int64).reshape(-1, 4)


@kernel
def _sum_alike(like, addresses, factors, base, out, start, stop, bypass, digests):
    """One mix of rows, all of one type; ``base`` is an address or None.

    Returns where it stopped: before what is less than a turn, or a block with NaN or Inf.
    """
    sums = np.zeros(BLOCK, np.float32)
    rows, scales, totals = addresses.ctypes.data, factors.ctypes.data, sums.ctypes.data
    n_models, size = addresses.size, like.itemsize
    bypass = bypass and (out + start * size) % 64 == 0
    stop -= (stop - start) % TURN
    origin = base
    first, due = start, start
    while start < stop:
        n = min(BLOCK, stop - start)
        if base is not None:
            origin = base + start * size
        i, group = 0, _group(n_models)
        if group < n_models:
            _fill(sums, 0)
        while i + group < n_models:
            _add_alike(like, group, rows + 8 * i, start, n, origin, scales + 4 * i, totals)
            i, group = i + group, _group(n_models - i - group)
        target = out + start * size
        if not _store_alike(
            like, group, bypass, rows + 8 * i, start, n, origin, scales + 4 * i, totals, target
        ):
            break
        start += n
        if start >= due:
            due = take_digests(digests, first, start, due)
    if bypass:
        fence()
    return start


@inner
def _group(n):
    """How many of ``n`` rows to take together."""
    for size in GROUPS:
        if size <= n:
            return size
    return 1


@inner
def _add_alike(like, group, rows, first, n, base, scales, sums):
    if group == 8:
        add_rows(like, 8, rows, first, n, base, scales, sums, AHEAD)
    elif group == 4:
        add_rows(like, 4, rows, first, n, base, scales, sums, AHEAD)
    elif group == 2:
        add_rows(like, 2, rows, first, n, base, scales, sums, AHEAD)


@inner
def _store_alike(like, group, bypass, rows, first, n, base, scales, sums, out):
    if bypass:
        return _store_group(like, group, True, rows, first, n, base, scales, sums, out)
    return _store_group(like, group, False, rows, first, n, base, scales, sums, out)


@inner
def _store_group(like, group, bypass, rows, first, n, base, scales, sums, out):
    if group == 8:
        return store_rows(like, 8, bypass, rows, first, n, base, scales, sums, out, AHEAD)
    if group == 4:
        return store_rows(like, 4, bypass, rows, first, n, base, scales, sums, out, AHEAD)
    if group == 2:
        return store_rows(like, 2, bypass, rows, first, n, base, scales, sums, out, AHEAD)
    return store_rows(like, 1, bypass, rows, first, n, base, scales, sums, out, AHEAD)


@kernel
def _range(
    addresses, codes, factors, base_address, base_code, out_addresses, out_codes, copies,
    start, stop, bypass,
):  # fmt: skip
    n_mixes = factors.shape[0]
    based = base_address.size == 1
    sums = np.empty((n_mixes, BLOCK), factors.dtype)
    values = np.empty(BLOCK, factors.dtype)
    base = np.zeros(BLOCK, factors.dtype)
    bad = 0
    for first in range(start, stop, BLOCK):
        n = min(BLOCK, stop - first)
        if based:
            read(base_code[0], base_address[0], first, base[:n], BLOCK)
        for j in range(n_mixes):
            _fill(sums[j, :n], 0)
        i = 0
        while i < addresses.size:
            together = _of_one_type(codes, i)
            done = 0
            if values.itemsize == 4 and _has_vectors(codes[i]):
                done = n - n % TURN
                _add_models(codes, addresses, i, together, first, done, base, factors, sums)
            for model in range(i, i + together):
                if done < n:
                    read(codes[model], addresses[model], first + done, values[done:n], 0)
                    _add_model(values[done:n], base[done:n], factors[:, model], sums[:, done:n])
            i += together
        for j in range(n_mixes):
            if based:
                _add(sums[j, :n], base[:n])
            bad += write(out_codes[j], out_addresses[j], first, sums[j, :n], bypass)
        for j in range(copies.shape[0]):
            read(copies[j, 0], copies[j, 1], first, values[:n], BLOCK)
            bad += write(copies[j, 2], copies[j, 3], first, values[:n], bypass)
    if bypass:
        fence()
    return bad


@inner
def _fill(sums, number):
    for k in range(sums.size):
        sums[k] = number


@inner
def _add(sums, base):
    for k in range(sums.size):
        sums[k] += base[k]


@inner
def _of_one_type(codes, i):
    """How many rows from ``i`` on to take together: the largest of GROUPS that have one type."""
    alike = 1
    while alike < GROUPS[0] and i + alike < codes.size and codes[i + alike] == codes[i]:
        alike += 1
    return _group(alike)


@inner
def _has_vectors(code):
    return code in (BFLOAT16, FLOAT16, FLOAT32)


@inner
def _add_model(values, base, scales, sums):
    """Adds one model to every mix: what the vector loops do, for any type."""
    for j in range(scales.size):
        for k in range(values.size):
            sums[j, k] = fma(values[k] - base[k], scales[j], sums[j, k])


def _typed(n_models, n_mixes):
    bfloat16, float16, float32 = (
        MIXES[name, n_models, n_mixes] for name in ("bfloat16", "float16", "float32")
    )

    @inner
    def run(code, rows, first, n, base, scales, sums, row_bytes, ahead):
        if code == BFLOAT16:
            bfloat16(rows, first, n, base, scales, sums, row_bytes, ahead)
        elif code == FLOAT16:
            float16(rows, first, n, base, scales, sums, row_bytes, ahead)
        elif code == FLOAT32:
            float32(rows, first, n, base, scales, sums, row_bytes, ahead)

    return run


def _grouped(n_mixes):
    eight, four, two, one = (_typed(n_models, n_mixes) for n_models in GROUPS)

    @inner
    def run(n_models, code, rows, first, n, base, scales, sums, row_bytes, ahead):
        if n_models == 8:
            eight(code, rows, first, n, base, scales, sums, row_bytes, ahead)
        elif n_models == 4:
            four(code, rows, first, n, base, scales, sums, row_bytes, ahead)
        elif n_models == 2:
            two(code, rows, first, n, base, scales, sums, row_bytes, ahead)
        else:
            one(code, rows, first, n, base, scales, sums, row_bytes, ahead)

    return run


_to_one = _grouped(1)
_to_side = _grouped(SIDE)


@inner
def _add_models(codes, addresses, i, n_models, first, n, base, factors, sums):
    """Adds models ``i .. i + n_models``, of one type, to every mix; ``n`` is whole turns."""
    row_bytes = (factors.strides[0], sums.strides[0])
    code, origin, rows = codes[i], base.ctypes.data, addresses.ctypes.data + 8 * i
    ahead = AHEAD if n_models > 1 else BLOCK
    j = 0
    while j < factors.shape[0]:
        scales = factors.ctypes.data + j * factors.strides[0] + 4 * i
        out = sums.ctypes.data + j * sums.strides[0]
        if j + SIDE <= factors.shape[0]:
            _to_side(n_models, code, rows, first, n, origin, scales, out, row_bytes, ahead)
            j += SIDE
        else:
            _to_one(n_models, code, rows, first, n, origin, scales, out, row_bytes, ahead)
            j += 1
        ahead = 0  # fetched once for all mixes
