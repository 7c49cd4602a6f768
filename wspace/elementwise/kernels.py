"""The kernels of methods that choose elements, on a device's rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from wkernels import cpu
from wkernels.dtypes import CODES
from wkernels.masks import Joint, Mask
from wspace.devices import Cpu, Device
from wspace.elementwise.choices import Keep
from wspace.elementwise.scores import scores_of
from wspace.elementwise.sources import Step, Steps, View
from wspace.stream import Chunk

N_MODELS = 2
"""Of which columns are summed."""


class Out(NamedTuple):
    """A host row for a view's elements, and the kernels' name of its type."""

    buffer: np.ndarray  # uint8
    name: str


class Kernels(Protocol):
    """What masks and joints are made with. Rows are a device's, results the host's.

    The bits are the same on all devices, but where something else is said. ``scores`` and
    ``chances``: of :meth:`scores`, where the choice has any.
    """

    def rows(self, chunk: Chunk) -> tuple[Any, Any]:
        """A chunk's rows, and the last of them: the base."""
        ...

    def repeated(self, rows: Any, copies: int) -> Any:
        """All rows, one after the other, so many times."""
        ...

    def of_scores(self, scores: Any, copies: int) -> Any:
        """A row of scores, so many times, as rows."""
        ...

    def scores(
        self, keep: Keep, view: View, shapes: Sequence[tuple[int, ...]], keys: np.ndarray | None
    ) -> Any:
        """See :func:`wspace.elementwise.scores.scores_of`. Importances are a device's own to 1e-6
        of each: the CPU's exponentials are of float32, a GPU's of float64. Of ranks, chances; where
        there are ``keys``, whose draws alone are wanted, a device may give what is drawn."""
        ...

    def done_with(self, scores: Any) -> None:
        """They are not needed any more: others may take their place."""
        ...

    def sifted(
        self, largest: np.ndarray, sizes: np.ndarray, *, quantiles: bool = False
    ) -> Steps[tuple[np.ndarray, np.ndarray] | None] | None:
        """``(bits, before)`` of a ``Mask``, for the ``largest`` of some differences in float32, of
        ``sizes`` elements; None, before or after: digits have to be counted.

        ``quantiles``: the bits alone, of the smallest too where all are asked for."""
        ...

    def digit_counts(self, view: View, prefix: np.ndarray, shift: int, width: int) -> np.ndarray:
        """int64 ``[pieces, rows, 2**width]``; see ``wkernels.cpu.digit_counts``."""
        ...

    def nth_equal(self, view: View, bits: np.ndarray, left: np.ndarray) -> np.ndarray:
        """See ``wkernels.cpu.nth_equal``; reduces ``left``."""
        ...

    def kept_sums(
        self, view: View, mask: Mask, sums: np.ndarray, wanted: int, **extra: Any
    ) -> None:
        """Adds what is ``wanted`` to ``sums``, float64 ``[pieces, rows, 4]``, and may add the rest;
        see ``wkernels.cpu.kept_sums``."""
        ...

    def agreements(self, view: View, mask: Mask) -> np.ndarray:
        """int64 ``[pieces, rows, 2]``; see ``wkernels.cpu.agreements``."""
        ...

    def balance(self, view: View, mask: Mask, joint: Joint) -> float:
        """The sum of the elected signs."""
        ...

    def joined(
        self, view: View, mask: Mask, joint: Joint, out: Out, *, unbiased: bool, **extra: Any
    ) -> int:
        """Writes a view's elements; returns how many differences and outputs are NaN or Inf."""
        ...

    def pulled(self, view: View, reach: float, out: Out) -> int:
        """Writes the one row, pulled towards the base; returns how many are NaN or Inf."""
        ...

    def precision_mean(
        self, view: View, weights: Sequence[float], floor: float, out: Out, wrong: np.ndarray
    ) -> int:
        """Of a view whose rows are the models, then their diagonals; the base is the last of them.
        Adds to ``wrong``, int64 ``[pieces, models]``; see ``wkernels.cpu.precision_mean``."""
        ...

    def column_products(self, view: View, grams: Sequence[np.ndarray]) -> None:
        """Adds to ``grams[piece]``, float64 ``[width, 2, 2]``, the products of its columns.

        Of a view of two models, the second of which is its base, or of two models and the base.
        The order of additions is a device's own, so their last bits are.
        """
        ...

    def column_sums(self, view: View, factors: Sequence[np.ndarray], out: Out) -> int:
        """Writes the sums of such a view's columns, ``factors[piece]`` float64 ``[width, 2]``;
        returns how many are NaN or Inf."""
        ...


def kernels_of(worker: Device) -> Kernels:
    if isinstance(worker, Cpu):
        return OnCpu(worker.threads)
    from wspace.cuda import Gpu  # torch: only where a GPU is asked for
    from wspace.elementwise.gpu import OnGpu

    assert isinstance(worker, Gpu)
    return OnGpu(worker)


class OnCpu:
    """The numba kernels, on host buffers."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._rooms: list[np.ndarray] = []  # of sieves
        self._scores: list[np.ndarray] = []  # their places: new ones would have to be zeroed first

    def rows(self, chunk: Chunk) -> tuple[cpu.Pointers, cpu.Pointers]:
        address = chunk.buffer.ctypes.data
        rows = cpu.Pointers.of([address + start for start in chunk.starts], chunk.names)
        return split(rows, len(rows) - 1)

    def repeated(self, rows: cpu.Pointers, copies: int) -> cpu.Pointers:
        return cpu.Pointers(np.tile(rows.addresses, copies), np.tile(rows.codes, copies))

    def of_scores(self, scores: np.ndarray, copies: int) -> cpu.Pointers:
        return cpu.Pointers.of([scores.ctypes.data] * copies, ["float32"] * copies)

    def scores(
        self, keep: Keep, view: View, shapes: Sequence[tuple[int, ...]], keys: np.ndarray | None
    ) -> np.ndarray:
        room = self._scores.pop() if self._scores else np.empty(0, np.uint8)
        return scores_of(keep, view, shapes, keys, room, threads=self._threads)

    def done_with(self, scores: np.ndarray) -> None:
        assert scores.base is not None  # they are a part of it
        self._scores.append(scores.base)

    def sifted(
        self, largest: np.ndarray, sizes: np.ndarray, *, quantiles: bool = False
    ) -> Steps[tuple[np.ndarray, np.ndarray] | None]:
        sieve = cpu.Sieve(largest, sizes, self._rooms, quantiles=quantiles)

        def sample(view: View) -> None:
            sieve.sample(view.rows, _base(view), view.segments, view.slots)

        def sift(view: View) -> None:
            sieve.sift(view.rows, _base(view), view.segments, view.slots, threads=self._threads)

        blocks = sieve.samples()
        if blocks:
            yield Step(sample, blocks)
            yield Step(sift)
        divided = sieve.settle()
        if divided and not quantiles:
            left = iter(divided)

            def locate(view: View) -> None:
                wanted = list(islice(left, len(view.segments)))
                sieve.locate(wanted, view.rows, _base(view), view.segments)

            yield Step(locate, [(wanted.slot, wanted.start) for wanted in divided])
        return None if sieve.open.any() else (sieve.bits, sieve.before)

    def digit_counts(self, view: View, prefix: np.ndarray, shift: int, width: int) -> np.ndarray:
        counts = np.zeros((*prefix.shape, 1 << width), np.int64)
        cpu.digit_counts(
            view.rows,
            _base(view),
            view.segments,
            prefix,
            shift,
            width,
            counts,
            threads=self._threads,
        )
        return counts

    def nth_equal(self, view: View, bits: np.ndarray, left: np.ndarray) -> np.ndarray:
        return cpu.nth_equal(
            view.rows, _base(view), view.segments, bits, left, threads=self._threads
        )

    def kept_sums(
        self, view: View, mask: Mask, sums: np.ndarray, wanted: int, **extra: np.ndarray
    ) -> None:
        cpu.kept_sums(
            *_runs(view), mask, sums, wanted=wanted, **_pointers(extra), threads=self._threads
        )

    def agreements(self, view: View, mask: Mask) -> np.ndarray:
        counts = np.zeros((*mask.keep.shape, 2), np.int64)
        cpu.agreements(*_runs(view), mask, counts, threads=self._threads)
        return counts

    def balance(self, view: View, mask: Mask, joint: Joint) -> float:
        signs = np.zeros(len(view.slots))
        nowhere = cpu.Pointers.of([], [])
        cpu.joined(*_runs(view), mask, joint, nowhere, balance=signs, threads=self._threads)
        return float(signs.sum())

    def joined(
        self, view: View, mask: Mask, joint: Joint, out: Out, *, unbiased: bool, **extra: np.ndarray
    ) -> int:
        return cpu.joined(
            *_runs(view), mask, joint, pointer_to(out), unbiased=unbiased, **_pointers(extra),
            threads=self._threads,
        )  # fmt: skip

    def pulled(self, view: View, reach: float, out: Out) -> int:
        reaches = np.full(len(view.slots), reach)
        return cpu.pulled(
            view.rows, view.base, view.segments, reaches, pointer_to(out), threads=self._threads
        )

    def precision_mean(
        self, view: View, weights: Sequence[float], floor: float, out: Out, wrong: np.ndarray
    ) -> int:
        n_segments = len(view.slots)
        rows, diagonals = split(all_rows(view), len(weights))
        return cpu.precision_mean(
            rows, diagonals, view.segments, np.tile(np.array(weights), (n_segments, 1)),
            np.full(n_segments, floor), pointer_to(out), wrong, threads=self._threads,
        )  # fmt: skip

    def column_products(self, view: View, grams: Sequence[np.ndarray]) -> None:
        rows, base = split(all_rows(view), N_MODELS)
        for (start, stop), gram in zip(view.segments.tolist(), grams, strict=True):
            cpu.column_products(rows, base, start, stop, gram, threads=self._threads)

    def column_sums(self, view: View, factors: Sequence[np.ndarray], out: Out) -> int:
        rows, base = split(all_rows(view), N_MODELS)
        return sum(
            cpu.column_sums(rows, base, start, stop, table, pointer_to(out), threads=self._threads)
            for (start, stop), table in zip(view.segments.tolist(), factors, strict=True)
        )


def all_rows(view: View) -> cpu.Pointers:
    """A view's rows and its base, on the CPU."""
    return cpu.Pointers(*map(np.concatenate, zip(view.rows, _base(view), strict=True)))


def split(rows: cpu.Pointers, n: int) -> tuple[cpu.Pointers, cpu.Pointers]:
    return (
        cpu.Pointers(rows.addresses[:n], rows.codes[:n]),
        cpu.Pointers(rows.addresses[n:], rows.codes[n:]),
    )


def _base(view: View) -> cpu.Pointers:
    return cpu.Pointers.of([], []) if view.base is None else view.base


def _runs(view: View) -> tuple[cpu.Pointers, cpu.Pointers, np.ndarray, np.ndarray]:
    return view.rows, _base(view), view.segments, view.firsts


def pointer_to(out: Out) -> cpu.Pointers:
    return cpu.Pointers.of([out.buffer.ctypes.data], [out.name])


def _pointers(extra: dict[str, np.ndarray]) -> dict[str, Any]:
    """Scores ``[n]``, or chances or what is drawn ``[models, n]``, as rows."""
    found = {}
    for name, table in extra.items():
        rows = np.atleast_2d(table)
        addresses = np.array([row.ctypes.data for row in rows], np.int64)
        code = cpu.KEPT if rows.dtype == np.uint8 else CODES["float32"]
        found[name] = cpu.Pointers(addresses, np.full(len(rows), code, np.int64))
    return found
