"""What a choice ranks elements by, where it is not their own magnitude."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wkernels import cpu
from wkernels.cpu.elements import WIDTHS
from wspace.elementwise.choices import Choice, ColumnSums, Important, Keep, Ranked, Varied
from wspace.elementwise.sources import View


def scores_of(
    keep: Keep, view: View, shapes: Sequence[tuple[int, ...]], keys: np.ndarray | None,
    room: np.ndarray, *, threads: int,
) -> np.ndarray:  # fmt: skip
    """Float32 ``[n]``: variances or importances; of ranks, chances ``[models, n]``, or, given the
    ``keys`` of draws (uint64 ``[slots, models]``), uint8: what is drawn by them.

    ``shapes``: of the tensors in the view's slots. ``room``, uint8: where they go, if they fit.
    """
    n_rows = len(keep.densities) if isinstance(keep, Ranked) else 1
    drawn = isinstance(keep, Ranked) and keys is not None
    nbytes = n_rows * view.n * (1 if drawn else 4)
    if room.size < nbytes:
        room = np.empty(nbytes, np.uint8)
    table = room[:nbytes] if drawn else room[:nbytes].view(np.float32)
    scores = table[: view.n]
    if isinstance(keep, Varied):
        cpu.variances(view.rows, view.base, view.n, scores, threads=threads)
        return scores
    if isinstance(keep, Important):
        for piece, slot in enumerate(view.slots):
            start, stop = view.segments[piece]
            shape = shapes[slot]
            cpu.importances(
                _run(view.rows, int(start)), _run(view.base, int(start)),
                last_axis(shape), int(stop - start), scores[start:stop],
                threads=threads,
            )  # fmt: skip
        return scores
    assert isinstance(keep, Ranked)
    chances = table.reshape(n_rows, view.n)
    for piece, slot in enumerate(view.slots):
        start, stop = view.segments[piece]
        shape = lines(shapes[slot], int(stop - start))
        base = _run(view.base, int(start))
        for i, (density, epsilon) in enumerate(zip(keep.densities, keep.epsilons, strict=True)):
            out = chances[i, start:stop]
            if density >= 1 or density <= 0:
                out[:] = density if keys is None else density > 0
                continue
            row = cpu.Pointers(view.rows.addresses[i : i + 1], view.rows.codes[i : i + 1])
            line = _run(row, int(start)), base, int(stop - start), shape, density, epsilon
            if keys is None:
                cpu.rank_chances(*line, out, threads=threads)
            else:
                first = int(view.firsts[piece])
                cpu.drawn_by_rank(*line, keys[slot, i], first, out, threads=threads)
    return chances


def unit_of(choice: Choice, shape: tuple[int, ...]) -> int:
    """Elements at whose multiples a tensor may be cut; 0: anywhere that a stream cuts."""
    if isinstance(choice.join, ColumnSums):
        return int(np.prod(shape[1:]))
    if isinstance(choice.keep, Important):
        return last_axis(shape)
    if isinstance(choice.keep, Ranked):
        lines = lines_together(shape)
        return lines * max(1, cpu.BLOCK // max(lines, 1))
    return 0


def lines_together(shape: tuple[int, ...]) -> int:
    """Elements of the lines along axis 1 that lie between each other; of a line, mostly."""
    return int(np.prod(shape[1:])) if len(shape) > 1 else int(np.prod(shape))


def last_axis(shape: tuple[int, ...]) -> int:
    """Elements of a line, of which the softmax is taken."""
    return int(shape[-1]) if shape else 1


def lines(shape: tuple[int, ...], n: int) -> tuple[int, int, int]:
    """A run of ``n`` elements of a tensor as (outer, length, inner): lines along axis 1."""
    if len(shape) < 2:
        return 1, n, 1
    inner = int(np.prod(shape[2:]))
    return n // max(shape[1] * inner, 1), shape[1], inner


def _run(rows: cpu.Pointers, start: int) -> cpu.Pointers:
    return cpu.Pointers(rows.addresses + start * WIDTHS[rows.codes], rows.codes)
