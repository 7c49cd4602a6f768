"""Masked differences joined with a sign election and a division, and their sums, on the CPU."""

from __future__ import annotations

import numpy as np

from wkernels.cpu.blocks import add_in_order, blocks_of
from wkernels.cpu.elements import read, write
from wkernels.cpu.jit import fma, inner, kernel
from wkernels.cpu.masks import draw, draw_each, magnitudes, subtract, trim
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.pointers import Pointers
from wkernels.cpu.selection import _BITS, compute_type
from wkernels.masks import BEYOND, ELECT, NOTHING, Joint, Mask

COLUMNS = 1024

N_SUMS = 4
"""Of a row: sum of |d| of all elements, of those kept, of their squares, and how many are kept."""

_NONE = Pointers(np.empty(0, np.int64), np.empty(0, np.int64))


def _tables(mask: Mask, compute) -> tuple:
    """As the kernels take them; places past the bits of a float32 are those of its infinity."""
    beyond = BEYOND["float32" if compute is np.float32 else "float64"]
    keep, drop = np.minimum(mask.keep, beyond), np.minimum(mask.drop, beyond)
    trims = (keep != NOTHING) | (drop != beyond)
    return trims, keep, mask.keep_before, drop, mask.drop_before, mask.key, mask.chance


def kept_sums(
    rows: Pointers,
    base: Pointers,
    segments: np.ndarray,
    firsts: np.ndarray,
    mask: Mask,
    sums: np.ndarray,
    *,
    scores: Pointers = _NONE,
    chances: Pointers = _NONE,
    threads: int,
) -> None:
    """Adds to ``sums[s, i]`` the ``N_SUMS`` sums of row ``i`` in segment ``s``, in float64.

    ``firsts`` int64 ``[S]``: each segment's first element, counted from its tensor's start. The
    other arguments are those of :func:`joined`.
    """
    compute = compute_type(rows, base)
    like, bits = np.empty(0, compute), np.empty(0, _BITS[compute])
    blocks = blocks_of(segments)
    partial = np.zeros((len(blocks.ranges), len(rows), N_SUMS))
    positions = firsts - segments[:, 0]
    tables = _tables(mask, compute)

    def work(start: int, stop: int) -> None:
        _sum_kept(
            *rows, *base, *scores, *chances, blocks.ranges, blocks.segments, positions, start, stop,
            *tables, like, bits, partial,
        )  # fmt: skip

    over_ranges(work, len(blocks.ranges), step=1, threads=threads, least=4)
    add_in_order(partial, blocks.segments, sums)


def agreements(
    rows: Pointers,
    base: Pointers,
    segments: np.ndarray,
    firsts: np.ndarray,
    mask: Mask,
    counts: np.ndarray,
    *,
    threads: int,
) -> None:
    """Adds to ``counts[s, i]`` (int64 ``[S, N, 2]``) how many kept differences of row ``i`` are
    not 0 where other rows have such ones too, and where none has."""
    compute = compute_type(rows, base)
    like, bits = np.empty(0, compute), np.empty(0, _BITS[compute])
    blocks = blocks_of(segments)
    partial = np.zeros((len(blocks.ranges), len(rows), 2), np.int64)
    positions = firsts - segments[:, 0]
    tables = _tables(mask, compute)

    def work(start: int, stop: int) -> None:
        _count_agreements(
            *rows, *base, *_NONE, *_NONE, blocks.ranges, blocks.segments, positions, start, stop,
            *tables, like, bits, partial,
        )  # fmt: skip

    over_ranges(work, len(blocks.ranges), step=1, threads=threads, least=4)
    add_in_order(partial, blocks.segments, counts)


def joined(
    rows: Pointers,
    base: Pointers,
    segments: np.ndarray,
    firsts: np.ndarray,
    mask: Mask,
    joint: Joint,
    out: Pointers,
    *,
    scores: Pointers = _NONE,
    chances: Pointers = _NONE,
    unbiased: bool = False,
    balance: np.ndarray | None = None,
    threads: int,
) -> int:
    """See ``ops.joined``. ``out`` has one row, or none: then only ``balance`` is found.

    ``balance`` (float64 ``[S]``): the sum of the elected signs is added to it. Returns how many
    differences and outputs are NaN or Inf.
    """
    compute = compute_type(rows, base)  # whatever is written: thresholds are in this type's bits
    like, bits = np.empty(0, compute), np.empty(0, _BITS[compute])
    blocks = blocks_of(segments)
    positions = firsts - segments[:, 0]
    tables = _tables(mask, compute)
    factor, vote, share = (
        np.ascontiguousarray(table, compute) for table in (joint.factor, joint.vote, joint.share)
    )
    lone = np.empty((0, 0), compute) if joint.lone is None else joint.lone.astype(compute)
    scale = np.ascontiguousarray(joint.scale, compute)
    partial = np.zeros((len(blocks.ranges), 1, 1))
    options = np.array([joint.least, joint.undecided], compute)

    def work(start: int, stop: int) -> int:
        return _join(
            *rows, *base, *scores, *chances, blocks.ranges, blocks.segments, positions, start, stop,
            *tables, factor, vote, share, lone, scale, options, ELECT[joint.elect], joint.divide,
            unbiased, *out, like, bits, partial,
        )  # fmt: skip

    bad = sum(over_ranges(work, len(blocks.ranges), step=1, threads=threads, least=4))
    if balance is not None:
        add_in_order(partial, blocks.segments, balance.reshape(-1, 1, 1))
    return bad


@inner
def _masked(
    i, segment, start, position, n, addresses, codes, scores, score_codes, chances, chance_codes,
    trims, keep, keep_before, drop, drop_before, key, chance, base, bits, sizes, limits, unbiased,
    values,
):  # fmt: skip
    """Row ``i``'s masked difference in ``values``; returns how many are NaN or Inf before."""
    read(codes[i], addresses[i], start, values, COLUMNS)
    bad = subtract(values, base)
    if trims[segment, i]:
        if scores.size:
            j = i if scores.size > 1 else 0
            read(score_codes[j], scores[j], start, sizes, COLUMNS)
            magnitudes(sizes, sizes)
        else:
            magnitudes(values, sizes)
        trim(
            values, bits, limits, position, keep[segment, i], keep_before[segment, i],
            drop[segment, i], drop_before[segment, i],
        )  # fmt: skip
    if chances.size:
        read(chance_codes[i], chances[i], start, sizes, COLUMNS)
        draw_each(values, position, key[segment, i], sizes, unbiased)
    elif chance[segment, i] < 1:
        draw(values, position, key[segment, i], chance[segment, i])
    return bad


@inner
def _add_sizes(values, absolute):
    for k in range(values.size):
        absolute[k] += np.float64(abs(values[k]))


@inner
def _add_kept(values, absolute, square, count):
    for k in range(values.size):
        size = np.float64(abs(values[k]))
        absolute[k] += size
        square[k] += size * size
        count[k] += np.float64(values[k] != 0)


@inner
def _halved(columns):
    """The sum of ``COLUMNS`` numbers, halves onto halves."""
    half = columns.size // 2
    while half:
        for k in range(half):
            columns[k] += columns[k + half]
        half //= 2
    return columns[0]


@kernel
def _sum_kept(
    addresses, codes, base_address, base_code, scores, score_codes, chances, chance_codes, ranges,
    owners, positions, first, last, trims, keep, keep_before, drop, drop_before, key, chance, like,
    bits_like, partial,
):  # fmt: skip
    values = np.empty(COLUMNS, like.dtype)
    base = np.zeros(COLUMNS, like.dtype)
    bits = np.empty(COLUMNS, bits_like.dtype)
    limits = np.empty(2, bits_like.dtype)
    sizes = bits.view(like.dtype)
    columns = np.zeros((addresses.size, N_SUMS, COLUMNS))
    for block in range(first, last):
        segment = owners[block]
        columns[:] = 0
        for start in range(ranges[block, 0], ranges[block, 1], COLUMNS):
            n = min(COLUMNS, ranges[block, 1] - start)
            if base_address.size == 1:
                read(base_code[0], base_address[0], start, base[:n], COLUMNS)
            for i in range(addresses.size):
                read(codes[i], addresses[i], start, values[:n], COLUMNS)
                subtract(values[:n], base[:n])
                _add_sizes(values[:n], columns[i, 0, :n])
                _masked(
                    i, segment, start, positions[segment] + start, n, addresses, codes, scores,
                    score_codes, chances, chance_codes, trims, keep, keep_before, drop, drop_before,
                    key, chance, base[:n], bits[:n], sizes[:n], limits, False, values[:n],
                )  # fmt: skip
                _add_kept(values[:n], columns[i, 1, :n], columns[i, 2, :n], columns[i, 3, :n])
        for i in range(addresses.size):
            for j in range(N_SUMS):
                partial[block, i, j] = _halved(columns[i, j])


@inner
def _count_kept(values, kept):
    for k in range(values.size):
        kept[k] += np.int32(values[k] != 0)


@inner
def _split_kept(values, kept, totals):
    shared = np.int64(0)
    alone = np.int64(0)
    for k in range(values.size):
        shared += np.int64((values[k] != 0) & (kept[k] > 1))
        alone += np.int64((values[k] != 0) & (kept[k] == 1))
    totals[0] += shared
    totals[1] += alone


@kernel
def _count_agreements(
    addresses, codes, base_address, base_code, scores, score_codes, chances, chance_codes, ranges,
    owners, positions, first, last, trims, keep, keep_before, drop, drop_before, key, chance, like,
    bits_like, partial,
):  # fmt: skip
    n_rows = addresses.size
    values = np.empty((n_rows, COLUMNS), like.dtype)
    base = np.zeros(COLUMNS, like.dtype)
    bits = np.empty(COLUMNS, bits_like.dtype)
    limits = np.empty(2, bits_like.dtype)
    kept = np.empty(COLUMNS, np.int32)
    sizes = bits.view(like.dtype)
    for block in range(first, last):
        segment = owners[block]
        for start in range(ranges[block, 0], ranges[block, 1], COLUMNS):
            n = min(COLUMNS, ranges[block, 1] - start)
            if base_address.size == 1:
                read(base_code[0], base_address[0], start, base[:n], COLUMNS)
            kept[:n] = 0
            for i in range(n_rows):
                _masked(
                    i, segment, start, positions[segment] + start, n, addresses, codes, scores,
                    score_codes, chances, chance_codes, trims, keep, keep_before, drop, drop_before,
                    key, chance, base[:n], bits[:n], sizes[:n], limits, False, values[i, :n],
                )  # fmt: skip
                _count_kept(values[i, :n], kept[:n])
            for i in range(n_rows):
                _split_kept(values[i, :n], kept[:n], partial[block, i])


@inner
def _vote(values, weight, signs, poll):
    """In float64: products of float32 numbers are exact there, and so are sums that cancel."""
    factor = np.float64(weight)
    if signs:
        for k in range(values.size):
            vote = factor * np.float64(values[k])
            poll[k] += np.float64(vote > 0) - np.float64(vote < 0)
    else:
        for k in range(values.size):
            poll[k] += factor * np.float64(values[k])


@inner
def _elect(poll, undecided, elected):
    """Returns the sum of the signs, in which what is undecided does not count."""
    total = np.int64(0)
    for k in range(poll.size):
        up, down = poll[k] > 0, poll[k] < 0
        total += np.int64(up) - np.int64(down)
        elected[k] = 1 if up else (-1 if down else undecided)
    return total


@inner
def _silence(values, weight, elected):
    """Zeros where a row's vote is not for the elected sign; a NaN stays."""
    zero = values.dtype.type(0)
    sign = values.dtype.type((weight > 0) - (weight < 0))
    for k in range(values.size):
        against = values[k] * (sign * elected[k]) <= zero
        values[k] = zero if against else values[k]


@inner
def _add(values, factor, total):
    for k in range(values.size):
        total[k] = fma(values[k], factor, total[k])


@inner
def _add_share(values, share, shares):
    zero = values.dtype.type(0)
    for k in range(values.size):
        shares[k] += share if values[k] != zero else zero


@inner
def _add_lone(values, factor, kept, total):
    one = values.dtype.type(1)
    for k in range(values.size):
        total[k] = fma(values[k], factor if kept[k] == 1 else one, total[k])


@inner
def _divide(total, shares, least):
    zero, one = total.dtype.type(0), total.dtype.type(1)
    for k in range(total.size):
        share = least if (least > zero) & (shares[k] < least) else shares[k]
        total[k] /= share if share != zero else one


@inner
def _finish(total, base, scale):
    for k in range(total.size):
        total[k] = fma(total[k], scale, base[k])


@kernel
def _join(
    addresses, codes, base_address, base_code, scores, score_codes, chances, chance_codes, ranges,
    owners, positions, first, last, trims, keep, keep_before, drop, drop_before, key, chance,
    factor, vote, share, lone, scale, options, elect, divide, unbiased, out_address, out_code, like,
    bits_like, partial,
):  # fmt: skip
    n_rows = addresses.size
    values = np.empty((n_rows, COLUMNS), like.dtype)
    base = np.zeros(COLUMNS, like.dtype)
    total = np.empty(COLUMNS, like.dtype)
    shares = np.empty(COLUMNS, like.dtype)
    elected = np.empty(COLUMNS, like.dtype)
    poll = np.empty(COLUMNS)
    kept = np.empty(COLUMNS, np.int32)
    bits = np.empty(COLUMNS, bits_like.dtype)
    limits = np.empty(2, bits_like.dtype)
    sizes = bits.view(like.dtype)
    bad = np.int64(0)
    for block in range(first, last):
        segment = owners[block]
        for start in range(ranges[block, 0], ranges[block, 1], COLUMNS):
            n = min(COLUMNS, ranges[block, 1] - start)
            if base_address.size == 1:
                read(base_code[0], base_address[0], start, base[:n], COLUMNS)
            poll[:n] = 0
            for i in range(n_rows):
                bad += _masked(
                    i, segment, start, positions[segment] + start, n, addresses, codes, scores,
                    score_codes, chances, chance_codes, trims, keep, keep_before, drop, drop_before,
                    key, chance, base[:n], bits[:n], sizes[:n], limits, unbiased, values[i, :n],
                )  # fmt: skip
                if elect:
                    _vote(values[i, :n], vote[segment, i], elect == 2, poll[:n])
            if elect:
                partial[block, 0, 0] += _elect(poll[:n], options[1], elected[:n])
            if out_address.size == 0:
                continue
            total[:n] = 0
            shares[:n] = 0
            kept[:n] = 0
            for i in range(n_rows):
                if elect:
                    _silence(values[i, :n], vote[segment, i], elected[:n])
                if lone.size:
                    _count_kept(values[i, :n], kept[:n])
                else:
                    _add(values[i, :n], factor[segment, i], total[:n])
                if divide:
                    _add_share(values[i, :n], share[segment, i], shares[:n])
            if lone.size:
                for i in range(n_rows):
                    _add_lone(values[i, :n], lone[segment, i], kept[:n], total[:n])
            if divide:
                _divide(total[:n], shares[:n], options[0])
            _finish(total[:n], base[:n], scale[segment])
            bad += write(out_code[0], out_address[0], start, total[:n], False)
    return bad
