"""The Triton kernels of methods that choose elements, behind the pipeline. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from wkernels.gpu import columns, consensus, kept, means, ranks, scores, selection
from wkernels.masks import Joint, Mask
from wspace.cuda import Gpu, rows_of
from wspace.elementwise.choices import Important, Keep, Ranked, Varied
from wspace.elementwise.kernels import N_MODELS, Out
from wspace.elementwise.scores import last_axis, lines
from wspace.elementwise.sources import View
from wspace.stream import Chunk

Rows = list[torch.Tensor]


class OnGpu:
    """See :class:`wspace.elementwise.kernels.Kernels`; statistics wait until they are there."""

    def __init__(self, device: Gpu) -> None:
        self._pipeline = device.pipeline

    def rows(self, chunk: Chunk) -> tuple[Rows, torch.Tensor]:
        rows, base = rows_of(chunk, True)
        assert base is not None
        return rows, base

    def repeated(self, rows: Rows, copies: int) -> Rows:
        return rows * copies

    def of_scores(self, scores: torch.Tensor, copies: int) -> Rows:
        return [scores] * copies

    def scores(
        self, keep: Keep, view: View, shapes: Sequence[tuple[int, ...]], keys: np.ndarray | None
    ) -> torch.Tensor:
        pieces = [shapes[slot] for slot in view.slots]

        def work() -> torch.Tensor:
            like = {"dtype": torch.float32, "device": view.rows[0].device}
            if isinstance(keep, Ranked):
                out = torch.empty((len(keep.densities), view.n), **like)
                sizes = (view.segments[:, 1] - view.segments[:, 0]).tolist()
                ranks.rank_chances(
                    view.rows, view.base, view.segments, [*map(lines, pieces, sizes)],
                    keep.densities, keep.epsilons, out,
                )  # fmt: skip
                return out
            out = torch.empty(view.n, **like)
            if isinstance(keep, Important):
                lengths = np.array([last_axis(shape) for shape in pieces])
                scores.importances(view.rows[0], view.base, view.segments, lengths, out)
            else:
                assert isinstance(keep, Varied)
                scores.variances(view.rows, view.base, out)
            return out

        return self._computed(work)

    def done_with(self, scores: torch.Tensor) -> None:
        """torch keeps its memory itself."""

    def sifted(self, largest: np.ndarray, sizes: np.ndarray, *, quantiles: bool = False) -> None:
        """Digits are counted at the rate of the device's memory."""

    def digit_counts(self, view: View, prefix: np.ndarray, shift: int, width: int) -> np.ndarray:
        def work() -> np.ndarray:
            counts = view.rows[0].new_zeros((*prefix.shape, 1 << width), dtype=torch.int64)
            selection.digit_counts(
                view.rows, view.base, view.segments, prefix, shift, width, counts
            )
            return counts.cpu().numpy()

        return self._computed(work)

    def nth_equal(self, view: View, bits: np.ndarray, left: np.ndarray) -> np.ndarray:
        return self._computed(
            lambda: selection.nth_equal(view.rows, view.base, view.segments, bits, left)
        )

    def kept_sums(
        self, view: View, mask: Mask, sums: np.ndarray, wanted: int, **extra: Any
    ) -> None:
        self._computed(lambda: kept.kept_sums(*_runs(view), mask, sums, **extra))

    def agreements(self, view: View, mask: Mask) -> np.ndarray:
        counts = np.zeros((*mask.keep.shape, 2), np.int64)
        self._computed(lambda: kept.agreements(*_runs(view), mask, counts))
        return counts

    def balance(self, view: View, mask: Mask, joint: Joint) -> float:
        signs = np.zeros(len(view.slots))
        self._computed(lambda: consensus.joined(*_runs(view), mask, joint, None, balance=signs))
        return float(signs.sum())

    def joined(
        self, view: View, mask: Mask, joint: Joint, out: Out, *, unbiased: bool,
        **extra: torch.Tensor,
    ) -> int:  # fmt: skip
        # with chances of a row's own, its factor is divided by them
        unbiased = unbiased and "chances" in extra

        def work(part: View, start: int, stop: int, target: torch.Tensor) -> int:
            own: dict[str, Any] = {name: rows[..., start:stop] for name, rows in extra.items()}
            return consensus.joined(*_runs(part), mask, joint, target, unbiased=unbiased, **own)

        return self._written(view, out, work)

    def pulled(self, view: View, reach: float, out: Out) -> int:
        reaches = np.full(len(view.slots), reach)

        def work(part: View, start: int, stop: int, target: torch.Tensor) -> int:
            return scores.pulled(part.rows[0], part.base, part.segments, reaches, target)

        return self._written(view, out, work)

    def precision_mean(
        self, view: View, weights: Sequence[float], floor: float, out: Out, wrong: np.ndarray
    ) -> int:
        n, n_segments = len(weights), len(view.slots)
        tables = np.tile(np.array(weights), (n_segments, 1)), np.full(n_segments, floor)

        def work(part: View, start: int, stop: int, target: torch.Tensor) -> int:
            rows = [*part.rows, part.base]
            return means.precision_mean(rows[:n], rows[n:], part.segments, *tables, target, wrong)

        return self._written(view, out, work)

    def column_products(self, view: View, grams: Sequence[np.ndarray]) -> None:
        widths = np.array([len(gram) for gram in grams])
        rows, base = _pair(view)
        self._computed(
            lambda: columns.column_products(rows, base, view.segments, view.firsts, widths, grams)
        )

    def column_sums(self, view: View, factors: Sequence[np.ndarray], out: Out) -> int:
        def work(part: View, start: int, stop: int, target: torch.Tensor) -> int:
            rows, base = _pair(part)
            return columns.column_sums(rows, base, part.segments, part.firsts, factors, target)

        return self._written(view, out, work)

    def _computed(self, work: Callable[[], Any]) -> Any:
        found = []
        self._pipeline.compute(lambda: found.append(work()))
        return found[0]

    def _written(
        self, view: View, out: Out, work: Callable[[View, int, int, torch.Tensor], int]
    ) -> int:
        """Slice by slice: one is copied to the host while the next is computed."""
        dtype = getattr(torch, out.name)
        bad = []

        def compute(start: int, stop: int, buffers: Rows) -> None:
            bad.append(work(_part(view, start, stop), start, stop, buffers[0].view(dtype)))

        self._pipeline.results(compute, view.n, [dtype.itemsize], [out.buffer])
        return sum(bad)


def _runs(view: View) -> tuple[Rows, torch.Tensor | None, np.ndarray, np.ndarray]:
    return view.rows, view.base, view.segments, view.firsts


def _pair(view: View) -> tuple[Rows, torch.Tensor | None]:
    """The two models, and the base if there is one: it is the view's last row."""
    rows = [*view.rows, view.base]
    return rows[:N_MODELS], rows[N_MODELS] if len(rows) > N_MODELS else None


def _part(view: View, start: int, stop: int) -> View:
    """Elements ``start`` to ``stop`` of a view; pieces that are not in it have no elements."""
    segments = np.clip(view.segments, start, stop)
    return view._replace(
        rows=[row[start:stop] for row in view.rows],
        base=None if view.base is None else view.base[start:stop],
        segments=segments - start,
        firsts=view.firsts + (segments[:, 0] - view.segments[:, 0]),
        n=stop - start,
    )
