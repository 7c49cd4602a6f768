"""From a choice to a mask and a joint: the statistics of tensors that they are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from wkernels import cpu
from wkernels.masks import BEYOND, Joint, Mask, no_mask
from wkernels.selection import ALL, Selection
from wspace.elementwise.choices import (
    Above,
    Choice,
    ColumnSums,
    Drawn,
    Important,
    Join,
    Largest,
    Ranked,
    Varied,
)
from wspace.elementwise.columns import column_factors
from wspace.elementwise.kernels import Kernels
from wspace.elementwise.scores import unit_of
from wspace.elementwise.sources import Source, View

SMALL = 1e-7
"""A sum of magnitudes below which differences are not rescaled, as in mergekit."""


def draw_key(seed: int, model: int, name: str) -> int:
    """The key of the draws for one tensor of one model: 64 bits of SHA-256 of all three."""
    digest = hashlib.sha256(f"{seed}/{model}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


class Tables:
    """Masks and joints of some tensors (the slots), which all have one choice."""

    def __init__(
        self,
        choice: Choice,
        shapes: Sequence[tuple[int, ...]],
        keys: np.ndarray,
        *,
        wide: bool,
        kernels: Kernels,
        thresholds: np.ndarray | None = None,
        undecided: float = 1.0,
    ) -> None:
        """``keys``: uint64 ``[slots, models]``; ``wide``: whether differences are in float64.

        ``thresholds`` (bits, of each model) and ``undecided``: of whole models, if asked for.
        """
        self.choice, self._shapes, self._kernels = choice, shapes, kernels
        self._wide = wide
        self.sizes = np.array([int(np.prod(shape)) for shape in shapes], np.int64)
        self.mask = no_mask(len(shapes), keys.shape[1])
        self.mask.key[:] = keys
        self._n = keys.shape[1]
        self._scored: tuple[Any, Any] = None, None  # the base of a view, and its scores
        self._thresholds, self._undecided = thresholds, undecided
        self.joint: Joint | None = None
        self.columns: list[np.ndarray] = []  # factors of each slot's, if the choice has any

    def prepare(self, source: Source, *, keep_scores: bool) -> None:
        """Reads the source as often as the choice needs it.

        ``keep_scores``: whether the source gives the same memory each time.
        """
        self._keep_scores = keep_scores
        self._choose(source)
        if isinstance(self.choice.join, Join):
            self.joint = self._joint(self.choice.join, source)
        elif isinstance(self.choice.join, ColumnSums):
            self.columns = column_factors(self.choice.join, source, self._shapes, self._kernels)

    # the mask

    def _choose(self, source: Source) -> None:
        keep, mask = self.choice.keep, self.mask
        if isinstance(keep, Largest) and keep.whole:
            assert self._thresholds is not None
            mask.keep[:], mask.keep_before[:] = self._thresholds, ALL
        elif isinstance(keep, Largest):
            counts = [keep.counts(int(n)) for n in self.sizes]
            taken = np.stack([t for t, _ in counts])
            dropped = np.stack([d for _, d in counts])
            if dropped.any():
                both = np.concatenate([taken, dropped], axis=1)
                bits, before = self.largest(
                    source.mapped(lambda view: self._repeated(view, 2)), both, wide=self._wide
                )
                mask.drop[:], mask.drop_before[:] = bits[:, self._n :], before[:, self._n :]
                bits, before = bits[:, : self._n], before[:, : self._n]
            else:
                bits, before = self.largest(source, taken, wide=self._wide)
            mask.keep[:], mask.keep_before[:] = bits, before
        elif isinstance(keep, Drawn):
            mask.chance[:] = keep.densities
        elif isinstance(keep, Above):
            size = np.array([keep.size], np.float64 if self._wide else np.float32)
            mask.keep[:] = size.view(np.int64 if self._wide else np.int32)
        elif isinstance(keep, Varied) and keep.share < 1:
            self._choose_varied(source, keep.share)
        elif isinstance(keep, Important):
            self._choose_important(source)

    def _choose_varied(self, source: Source, share: float) -> None:
        scored = source.mapped(self._of_scores)
        everything = no_mask(len(self.sizes), 1)
        sums = self._sums(scored, everything, cpu.COUNTS, ranked=False)
        # the product is taken in float32, as it decides the count
        counts = (np.float32(share) * sums[:, :, 3].astype(np.float32)).astype(np.int64)
        bits, before = self.largest(scored, counts, wide=False)
        self.mask.keep[:], self.mask.keep_before[:] = self._widened(bits), before

    def _choose_important(self, source: Source) -> None:
        places = [[n - int(share * (n - 1)) for share in (0.5, 0.75, 0.25)] for n in self.sizes]
        if self._keep_scores:  # of all its lines, before blocks of them are sampled
            for view in source.views():
                self._score(view)
        scored = source.mapped(lambda view: self._of_scores(view, 3))
        middle, upper, lower = self._values(scored, np.array(places, np.int64)).T
        threshold = middle + np.float32(1.5) * (upper - lower)
        bits = threshold.astype(np.float32).view(np.int32).astype(np.int64)
        self.mask.keep[:] = self._widened(bits)[:, None]
        self.mask.keep_before[:] = ALL

    def _widened(self, bits: np.ndarray) -> np.ndarray:
        """The bits of float32 scores, as those of the type that kernels compare them in."""
        if not self._wide:
            return bits
        known = (bits >= 0) & (bits < BEYOND["float32"])
        values = np.where(known, bits, 0).astype(np.int32).view(np.float32)
        return np.where(known, values.astype(np.float64).view(np.int64), bits)

    def largest(
        self, source: Source, counts: np.ndarray, *, wide: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """``(bits, before)`` of the ``counts[slot, row]`` largest magnitudes."""
        if not wide:
            sifted = self._kernels.sifted(source, counts, self.sizes)
            if sifted is not None:
                return sifted
        found = self._select(source, counts, wide=wide)
        bits, before = found.settle()
        for view in source.views() if found.left.any() else ():
            left = found.left[view.slots]
            place = self._kernels.nth_equal(view, bits[view.slots], left)
            before[view.slots] = np.where(
                place >= 0, place + view.firsts[:, None], before[view.slots]
            )
            found.left[view.slots] = left
            if not found.left.any():
                break
        return bits, before

    def _values(self, source: Source, counts: np.ndarray) -> np.ndarray:
        """The magnitudes themselves that are the ``counts``-th largest, of float32 rows."""
        sifted = self._kernels.sifted(source, counts, self.sizes, quantiles=True)
        bits = self._select(source, counts, every=True).prefix if sifted is None else sifted[0]
        return bits.astype(np.int32).view(np.float32)

    def _select(
        self, source: Source, counts: np.ndarray, *, wide: bool = False, every: bool = False
    ) -> Selection:
        found = Selection(counts, self.sizes + every, wide=wide)
        for shift, width in found.digits():
            table = np.zeros((*counts.shape, 1 << width), np.int64)
            for view in source.views():
                part = self._kernels.digit_counts(view, found.prefix[view.slots], shift, width)
                np.add.at(table, view.slots, part)
            found.narrow(table, width)
        return found

    # scores

    def extra(self, view: View) -> dict[str, Any]:
        """What a mask of this choice needs besides its tables, as arguments of the kernels."""
        keep = self.choice.keep
        if isinstance(keep, Ranked):
            return {"chances": self._score(view)}
        if (isinstance(keep, Varied) and keep.share < 1) or isinstance(keep, Important):
            return {"scores": self._score(view)}
        return {}

    def forget(self) -> None:
        """Drops the scores of a view that was written."""
        scores = self._scored[1]
        self._scored = None, None
        if scores is not None:
            self._kernels.done_with(scores)

    def _score(self, view: View) -> Any:
        base, scores = self._scored
        if not self._keep_scores or base is not view.base:
            self.forget()  # before others are made: they are counted once
            scores = self._kernels.scores(self.choice.keep, view, self._shapes)
            self._scored = view.base, scores  # live as long as kernels have their address
        return scores

    def _of_scores(self, view: View, copies: int = 1) -> View:
        """The same places of a row of scores."""
        rows = self._kernels.of_scores(self._score(view), copies)
        return view._replace(rows=rows, base=None)

    def _repeated(self, view: View, copies: int) -> View:
        return view._replace(rows=self._kernels.repeated(view.rows, copies))

    # the joint

    def _sums(self, source: Source, mask: Mask, wanted: int, *, ranked: bool) -> np.ndarray:
        """The wanted ``kept_sums`` of each slot, float64 ``[slots, rows, 4]``."""
        sums = np.zeros((len(self.sizes), mask.keep.shape[1], cpu.N_SUMS))
        for view in source.views():
            extra = {} if view.base is None else self.extra(view)
            if ranked:  # cut at rows: their sums have the same bits wherever a chunk ends
                units = np.array([unit_of(self.choice, self._shapes[s]) for s in view.slots])
                view = view.split(units)
                part = np.zeros((len(view.slots), *sums.shape[1:]))
            else:
                part = sums[view.slots]
            self._kernels.kept_sums(view, mask.of(view.slots), part, wanted, **extra)
            del extra  # the scores of two views are never held at once
            if ranked:
                np.add.at(sums, view.slots, part)
            else:
                sums[view.slots] = part
        return sums

    def _joint(self, join: Join, source: Source) -> Joint:
        n_slots, n = len(self.sizes), self._n
        keep = self.choice.keep
        weights = np.broadcast_to(np.array(join.weights, np.float64), (n_slots, n))
        scales, lone = np.ones((n_slots, n)), None
        if join.rescale == "sums" or join.by_square is not None:
            wanted = cpu.SIZES if join.by_square is None else cpu.SQUARES
            sums = self._sums(source, self.mask, wanted, ranked=isinstance(keep, Ranked))
            if join.by_square is not None:
                weights = _shares(
                    sums[:, :, 2] / np.maximum(self.sizes, 1)[:, None], join.by_square
                )
            else:
                whole, kept = sums[:, :, 0], sums[:, :, 1]
                small = (whole < SMALL) | (kept < SMALL)
                scales = np.where(small, 1.0, whole / np.where(small, 1.0, kept))
        elif join.rescale == "chances" and isinstance(keep, Drawn):
            densities = np.array(keep.densities)
            scales = scales / np.where(densities > 0, densities, 1)
        if join.alone:
            lone = self._lone(source, *join.alone)
        divisor = 1.0
        if join.divide == "total":
            total = sum(join.weights)
            divisor = total if abs(total) >= 1e-8 else 1.0
        factor = weights * scales
        return Joint(
            factor=factor,
            vote=factor if join.weighted_votes else scales,
            share=np.ones((n_slots, n)) if join.divide == "count" else weights,
            scale=np.full(n_slots, join.scale / divisor),
            lone=lone,
            elect=join.elect,
            divide=join.divide in ("weights", "count"),
            least=join.least,
            undecided=self._undecided,
        )

    def _lone(self, source: Source, r: float, alpha: float, epsilon: float) -> np.ndarray:
        counts = np.zeros((len(self.sizes), self._n, 2), np.int64)
        for view in source.views():
            part = self._kernels.agreements(view, self.mask.of(view.slots))
            np.add.at(counts, view.slots, part)
        shared, unique = counts[:, :, 0], counts[:, :, 1]
        return 1 + r * np.clip(shared / np.maximum(unique, epsilon), 0, alpha)


def _shares(squares: np.ndarray, least: float) -> np.ndarray:
    """Mean squares as weights that sum to 1; equal where their sum is not above ``least``."""
    total = squares.sum(axis=1, keepdims=True)
    small = (total < least) | (total == 0)
    return np.where(small, 1 / squares.shape[1], squares / np.where(small, 1, total))
