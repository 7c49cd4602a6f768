"""Masked differences joined with a sign election and a division, on the CPU."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wkernels.cpu.blocks import add_in_order, blocks_of
from wkernels.cpu.differences import JOINS
from wkernels.cpu.elements import write
from wkernels.cpu.jit import bare_kernel, fma
from wkernels.cpu.kept import count_kept
from wkernels.cpu.masks import COLUMNS, NONE, areas_of, masked, read_base, tables_of
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.parts import inlined, inner
from wkernels.cpu.pointers import Pointers
from wkernels.cpu.selection import compute_type
from wkernels.cpu.vectors import TURN
from wkernels.masks import ELECT, Joint, Mask


class Terms(NamedTuple):
    """A ``Joint`` as the kernels take it, in the type that they compute in."""

    factor: np.ndarray
    vote: np.ndarray
    share: np.ndarray
    lone: np.ndarray  # [0, 0]: none
    scale: np.ndarray


class Sums(NamedTuple):
    """What a thread adds up in, ``COLUMNS`` elements of each."""

    total: np.ndarray
    shares: np.ndarray
    elected: np.ndarray
    poll: np.ndarray  # float64
    kept: np.ndarray  # int32


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
    ``chances``: of each element of each row, float32; or ``masks.KEPT``: whether it is kept.

    ``balance`` (float64 ``[S]``): the sum of the elected signs is added to it. Returns how many
    differences and outputs are NaN or Inf.
    """
    compute = compute_type(rows, base)  # whatever is written: thresholds are in this type's bits
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
        sums = Sums(
            *np.empty((3, COLUMNS), compute), np.empty(COLUMNS), np.empty(COLUMNS, np.int32)
        )
        return _join(
            rows, base, scores, chances, *blocks, positions, start, stop, tables,
            Terms(factor, vote, share, lone, scale), options.copy(), ELECT[joint.elect],
            joint.divide, unbiased, balance is not None, out, areas_of(len(rows), compute), sums,
            partial,
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


@inlined
def _join_fast(values, n, base, terms, segment, options, elect, divide, total):
    """What follows the masks, for rows of float32; past ``n``, ``total`` is anything."""
    rows, row_bytes, n_rows = values.ctypes.data, values.strides[0], values.shape[0]
    tables = (
        terms.factor[segment].ctypes.data,
        terms.vote[segment].ctypes.data,
        terms.share[segment].ctypes.data,
    )
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


@inlined
def _join_slowly(values, n, base, terms, segment, options, elect, divide, sums):
    """The same for any type, with what ``_join_fast`` has not: ``poll`` has been added up."""
    total, shares, elected, kept = sums.total[:n], sums.shares[:n], sums.elected, sums.kept[:n]
    total[:] = 0
    shares[:] = 0
    kept[:] = 0
    n_rows = values.shape[0]
    for i in range(n_rows):
        if elect:
            _silence(values[i, :n], terms.vote[segment, i], elected)
        if terms.lone.size:
            count_kept(values[i, :n], kept)
        else:
            _add(values[i, :n], terms.factor[segment, i], total)
        if divide:
            _add_share(values[i, :n], terms.share[segment, i], shares)
    if terms.lone.size:
        for i in range(n_rows):
            _add_lone(values[i, :n], terms.lone[segment, i], kept, total)
    if divide:
        _divide(total, shares, options[0])
    _finish(total, base, terms.scale[segment])


@bare_kernel
def _join(
    rows, base, scores, chances, ranges, owners, positions, first, last, tables, terms, options,
    elect, divide, unbiased, balanced, out, areas, sums, partial,
):  # fmt: skip
    values, n_rows = areas.values, rows.codes.size
    fast = values.itemsize == 4 and terms.lone.size == 0 and elect < 2 and not balanced
    fast &= n_rows > 0
    bad = np.int64(0)
    for block in range(first, last):
        segment = owners[block]
        options[2] = terms.scale[segment]
        for start in range(ranges[block, 0], ranges[block, 1], COLUMNS):
            n = min(COLUMNS, ranges[block, 1] - start)
            read_base(base, start, n, areas.base)
            place = positions[segment] + start
            for i in range(n_rows):
                bad += masked(
                    i, segment, start, place, n, rows, scores, chances, tables, areas, unbiased
                )
            if fast:
                _join_fast(
                    values, n, areas.base, terms, segment, options, elect, divide, sums.total
                )
            elif elect:
                sums.poll[:n] = 0
                for i in range(n_rows):
                    _vote(values[i, :n], terms.vote[segment, i], elect == 2, sums.poll)
                partial[block, 0, 0] += _elect(sums.poll[:n], options[1], sums.elected)
            if out.codes.size == 0:
                continue
            if not fast:
                _join_slowly(values, n, areas.base, terms, segment, options, elect, divide, sums)
            bad += write(out.codes[0], out.addresses[0], start, sums.total[:n], False)
    return bad
