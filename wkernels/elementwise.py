"""The public operations of merge methods that choose elements: thresholds, draws, elections.

Rows, dtypes, devices and errors are those of ``wkernels.ops``; a row is one tensor, flattened.
Which elements count is a ``masks.Mask``, and how those that count are joined a ``masks.Joint``,
both for one segment (the whole row) here; ``wkernels.cpu`` and ``wkernels.gpu`` take many at
once.
"""

from __future__ import annotations

import numpy as np
import torch

from wkernels import arguments, dtypes
from wkernels.arguments import Rows, base_of, name_of, output_dtype, pointers_to, rows_of, whole
from wkernels.masks import Joint, Mask, no_mask
from wkernels.selection import Selection


def largest(
    x: Rows, count: int | list[int], *, base: torch.Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds of the ``count`` largest ``|x[i] - base|`` of each row: a mask's tables.

    Returns ``(bits, before)``, int64 ``[1, n_models]``: an element ``k`` is among the largest if
    the bits of its magnitude (an integer without the sign) are above ``bits``, or equal to it and
    ``k < before``. Exactly ``count`` elements are: equal magnitudes go by their place. Put them
    into ``Mask.keep`` and ``keep_before``, or ``drop`` and ``drop_before``.

    Numerics: differences in float32 (float64 if a row is float64). Nothing is sorted: in float32
    one read counts what is beyond limits that a sample gives, and looks at what is between. Where
    that does not tell, digits of the bits are counted, in three reads of the rows (six in
    float64), and one more where a threshold divides equal magnitudes.
    """
    rows, based = _inputs(x, base)
    wide = dtypes.compute_type(*map(name_of, [*rows, *based])) == "float64"
    n = rows[0].numel()
    counts = np.broadcast_to(np.asarray(count, np.int64), (1, len(rows)))
    found = Selection(counts, np.array([n]), wide=wide)
    if arguments.on_gpu(rows):
        return _largest_on_gpu(rows, base, found)
    pointers, origin = _pointers(rows, based)
    from wkernels import cpu

    threads = torch.get_num_threads()
    if not wide:
        sieve = cpu.sieved(pointers, origin, whole(n), counts, threads=threads)
        if not sieve.open.any():
            return sieve.bits, sieve.before
    for shift, width in found.digits():
        table = np.zeros((1, len(rows), 1 << width), np.int64)
        cpu.digit_counts(
            pointers, origin, whole(n), found.prefix, shift, width, table, threads=threads
        )
        found.narrow(table, width)
    bits, before = found.settle()
    if found.left.any():
        place = cpu.nth_equal(pointers, origin, whole(n), bits, found.left, threads=threads)
        before = np.where(place >= 0, place, before)
    return bits, before


def _largest_on_gpu(
    rows: list[torch.Tensor], base: torch.Tensor | None, found: Selection
) -> tuple[np.ndarray, np.ndarray]:
    from wkernels.gpu import selection as gpu

    segments = whole(rows[0].numel())
    for shift, width in found.digits():
        shape = (1, len(rows), 1 << width)
        table = torch.zeros(shape, dtype=torch.int64, device=rows[0].device)
        gpu.digit_counts(rows, base, segments, found.prefix, shift, width, table)
        found.narrow(table.cpu().numpy(), width)
    bits, before = found.settle()
    place = gpu.nth_equal(rows, base, segments, bits, found.left)
    return bits, np.where(place >= 0, place, before)


def kept_sums(x: Rows, mask: Mask, *, base: torch.Tensor | None = None) -> np.ndarray:
    """Of each row's differences: ``sum |d|``, and of those kept ``sum |d|``, ``sum d**2``, count.

    Returns float64 ``[n_models, 4]``; sums in float64, in blocks of a fixed size added in order.
    """
    rows, based = _inputs(x, base)
    segments, firsts = whole(rows[0].numel()), np.zeros(1, np.int64)
    if arguments.on_gpu(rows):
        from wkernels.gpu import kept as gpu

        sums = np.zeros((1, len(rows), gpu.N_SUMS))
        gpu.kept_sums(rows, base, segments, firsts, mask, sums)
        return sums[0]
    from wkernels import cpu

    sums = np.zeros((1, len(rows), cpu.N_SUMS))
    cpu.kept_sums(
        *_pointers(rows, based), segments, firsts, mask, sums, threads=torch.get_num_threads()
    )
    return sums[0]


def joined(
    x: Rows,
    mask: Mask,
    joint: Joint,
    *,
    base: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``base + scale * sum_i factor_i d_i / shares``, over the kept differences that agree.

    ``d_i = x[i] - base`` where ``mask`` keeps it, else 0; the election and the division are those
    of ``masks.Joint``. Returns ``out`` ``[n]``, made in the type of the first 16- or 32-bit row.

    Numerics: differences and sums in float32 with one fused multiply-add for each row, in order
    (float64 if a row or the base is float64); the votes are added in float64, so that
    sums of equal and opposite numbers are 0; one rounding at the store. NaN comes through.
    Bytes: each row, the base and the output once.
    """
    rows, based = _inputs(x, base)
    if out is None:
        out = rows[0].new_empty(rows[0].numel(), dtype=output_dtype(rows))
    rows_of([out], "out", like=rows, types=dtypes.OUTPUTS)
    segments, firsts = whole(rows[0].numel()), np.zeros(1, np.int64)
    if arguments.on_gpu(rows):
        from wkernels.gpu import consensus as gpu

        gpu.joined(rows, base, segments, firsts, mask, joint, out)
        return out
    from wkernels import cpu

    cpu.joined(
        *_pointers(rows, based), segments, firsts, mask, joint, pointers_to([out]),
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return out


def _inputs(x: Rows, base: torch.Tensor | None) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    rows = rows_of(x, "x")
    return rows, base_of(base, like=rows)


def _pointers(rows: list, based: list):
    return pointers_to(rows), pointers_to(based)


__all__ = ["Joint", "Mask", "joined", "kept_sums", "largest", "no_mask"]
