"""Masked differences joined with a sign election and a division, on the CPU."""

from __future__ import annotations

import numpy as np

from wkernels.cpu.blocks import add_in_order, blocks_of
from wkernels.cpu.differences import JOINS
from wkernels.cpu.elements import read, write
from wkernels.cpu.jit import fma, inner, kernel
from wkernels.cpu.kept import count_kept
from wkernels.cpu.masks import COLUMNS, NONE, masked, tables_of
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.pointers import Pointers
from wkernels.cpu.selection import BITS, compute_type
from wkernels.cpu.vectors import TURN
from wkernels.masks import ELECT, Joint, Mask


def joined(
    rows: Pointers,
    base: Pointers,
    segments: np.ndarray,
    firsts: np.ndarray,
    mask: Mask,
    joint: Joint,
    out: Pointers,
    *,
    scores: Pointers = NONE,
    chances: Pointers = NONE,
    unbiased: bool = False,
    balance: np.ndarray | None = None,
    threads: int,
) -> int:
    """See ``ops.joined``. ``out`` has one row, or none: then only ``balance`` is found.

    ``balance`` (float64 ``[S]``): the sum of the elected signs is added to it. Returns how many
    differences and outputs are NaN or Inf.
    """
    compute = compute_type(rows, base)  # whatever is written: thresholds are in this type's bits
    like, bits = np.empty(0, compute), np.empty(0, BITS[compute])
    blocks = blocks_of(segments)
    positions = firsts - segments[:, 0]
    tables = tables_of(mask, compute)
    factor, vote, share = (
        np.ascontiguousarray(table, compute) for table in (joint.factor, joint.vote, joint.share)
    )
    lone = np.empty((0, 0), compute) if joint.lone is None else joint.lone.astype(compute)
    scale = np.ascontiguousarray(joint.scale, compute)
    partial = np.zeros((len(blocks.ranges), 1, 1))
    options = np.array([joint.least, joint.undecided, 1], compute)

    def work(start: int, stop: int) -> int:
        return _join(
            *rows, *base, *scores, *chances, blocks.ranges, blocks.segments, positions, start, stop,
            *tables, factor, vote, share, lone, scale, options, ELECT[joint.elect], joint.divide,
            unbiased, balance is not None, *out, like, bits, partial,
        )  # fmt: skip

    bad = sum(over_ranges(work, len(blocks.ranges), step=1, threads=threads, least=4))
    if balance is not None:
        add_in_order(partial, blocks.segments, balance.reshape(-1, 1, 1))
    return bad


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


_join_all, _join_all_divided, _join_elected, _join_elected_divided = (
    JOINS[elect, divide] for elect in (False, True) for divide in (False, True)
)


@inner
def _join_fast(values, n, base, factor, vote, share, options, elect, divide, total):
    """What follows the masks, for rows of float32; past ``n``, ``total`` is anything."""
    rows, row_bytes, n_rows = values.ctypes.data, values.strides[0], values.shape[0]
    tables = (factor.ctypes.data, vote.ctypes.data, share.ctypes.data)
    more, origin, out = options.ctypes.data, base.ctypes.data, total.ctypes.data
    n = -(-n // TURN) * TURN
    if elect and divide:
        _join_elected_divided(rows, row_bytes, n_rows, n, origin, tables, more, out)
    elif elect:
        _join_elected(rows, row_bytes, n_rows, n, origin, tables, more, out)
    elif divide:
        _join_all_divided(rows, row_bytes, n_rows, n, origin, tables, more, out)
    else:
        _join_all(rows, row_bytes, n_rows, n, origin, tables, more, out)


@kernel
def _join(
    addresses, codes, base_address, base_code, scores, score_codes, chances, chance_codes, ranges,
    owners, positions, first, last, trims, keep, keep_before, drop, drop_before, key, chance,
    factor, vote, share, lone, scale, options, elect, divide, unbiased, balanced, out_address,
    out_code, like, bits_like, partial,
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
    fast = like.itemsize == 4 and lone.size == 0 and elect < 2 and not balanced and n_rows > 0
    settings = options.copy()
    bad = np.int64(0)
    for block in range(first, last):
        segment = owners[block]
        settings[2] = scale[segment]
        for start in range(ranges[block, 0], ranges[block, 1], COLUMNS):
            n = min(COLUMNS, ranges[block, 1] - start)
            if base_address.size == 1:
                read(base_code[0], base_address[0], start, base[:n], COLUMNS)
            poll[:n] = 0
            for i in range(n_rows):
                bad += masked(
                    i, segment, start, positions[segment] + start, n, addresses, codes, scores,
                    score_codes, chances, chance_codes, trims, keep, keep_before, drop, drop_before,
                    key, chance, base[:n], bits[:n], sizes[:n], limits, unbiased, values[i, :n],
                )  # fmt: skip
                if elect and not fast:
                    _vote(values[i, :n], vote[segment, i], elect == 2, poll[:n])
            if fast:
                _join_fast(
                    values, n, base, factor[segment], vote[segment], share[segment], settings,
                    elect, divide, total,
                )  # fmt: skip
                bad += write(out_code[0], out_address[0], start, total[:n], False)
                continue
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
                    count_kept(values[i, :n], kept[:n])
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
