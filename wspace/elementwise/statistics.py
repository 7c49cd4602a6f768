"""From choices to masks and joints: the statistics of tensors that they are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
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
    Keep,
    Largest,
    Ranked,
    Varied,
)
from wspace.elementwise.columns import column_factors, column_products
from wspace.elementwise.kernels import Kernels
from wspace.elementwise.scores import unit_of
from wspace.elementwise.sources import Step, Steps, Take, View, changed

SMALL = 1e-7
"""A sum of magnitudes below which differences are not rescaled, as in mergekit."""


def draw_key(seed: int, model: int, name: str) -> int:
    """The key of the draws for one tensor of one model: 64 bits of SHA-256 of all three."""
    digest = hashlib.sha256(f"{seed}/{model}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


class Tables:
    """Masks of some tensors (the slots) of which the same is kept, and what joints of it need."""

    def __init__(
        self,
        keep: Keep,
        shapes: Sequence[tuple[int, ...]],
        keys: np.ndarray,
        *,
        wide: bool,
        kernels: Kernels,
        thresholds: np.ndarray | None = None,
        sifted: bool = True,
    ) -> None:
        """``keys``: uint64 ``[slots, models]``; ``wide``: whether differences are in float64.

        ``thresholds`` (bits, of each model): of whole models, if asked for. ``sifted``: whether
        there is room for what a sieve keeps.
        """
        self.keep, self._shapes, self._kernels = keep, shapes, kernels
        self._wide, self._sifted = wide, sifted
        self.sizes = np.array([int(np.prod(shape)) for shape in shapes], np.int64)
        self.mask = no_mask(len(shapes), keys.shape[1])
        self.mask.key[:] = keys
        self._n = keys.shape[1]
        self._scored: tuple[Any, Any] = None, None  # the base of a view, and its scores
        self._thresholds = thresholds
        self._choices: list[Choice] = []
        self._keep_scores = False
        self._sums = np.zeros((len(shapes), self._n, cpu.N_SUMS))  # of what is kept
        self._agreements = np.zeros((len(shapes), self._n, 2), np.int64)
        self._columns: list[np.ndarray] = []

    def add(self, choice: Choice) -> None:
        """One that keeps this, and is to be joined; before the steps are taken."""
        self._choices.append(choice)

    def steps(self, *, keep_scores: bool) -> Steps[None]:
        """Those of all statistics.

        ``keep_scores``: of the last view, for it may be the next one too.
        """
        self._keep_scores = keep_scores
        yield from (
            self._statistics()
            if keep_scores
            else changed(self._statistics(), self._take_and_forget)
        )

    def _take_and_forget(self, take: Take, view: View) -> None:
        take(view)
        self.forget()

    def _statistics(self) -> Steps[None]:
        yield from self._choose()
        joins = [choice.join for choice in self._choices if isinstance(choice.join, Join)]
        wanted = 0
        if any(join.rescale == "sums" for join in joins):
            wanted += cpu.SIZES
        if any(join.by_square is not None for join in joins):
            wanted += cpu.SQUARES
        alone = any(join.alone for join in joins)
        if wanted or alone:

            def take(view: View) -> None:
                if wanted:
                    self._add_sums(view, self.mask, self._sums, wanted)
                if alone:
                    part = self._kernels.agreements(view, self.mask.of(view.slots))
                    np.add.at(self._agreements, view.slots, part)

            yield Step(take)
        if any(isinstance(choice.join, ColumnSums) for choice in self._choices):
            self._columns = yield from column_products(self._shapes, self._kernels)

    # the mask

    def _choose(self) -> Steps[None]:
        keep, mask = self.keep, self.mask
        if isinstance(keep, Largest) and keep.whole:
            assert self._thresholds is not None
            mask.keep[:], mask.keep_before[:] = self._thresholds, ALL
        elif isinstance(keep, Largest):
            counts = [keep.counts(int(n)) for n in self.sizes]
            taken = np.stack([t for t, _ in counts])
            dropped = np.stack([d for _, d in counts])
            if dropped.any():
                both = np.concatenate([taken, dropped], axis=1)
                bits, before = yield from changed(
                    self.largest(both, wide=self._wide),
                    lambda take, view: take(self._repeated(view, 2)),
                )
                mask.drop[:], mask.drop_before[:] = bits[:, self._n :], before[:, self._n :]
                bits, before = bits[:, : self._n], before[:, : self._n]
            else:
                bits, before = yield from self.largest(taken, wide=self._wide)
            mask.keep[:], mask.keep_before[:] = bits, before
        elif isinstance(keep, Drawn):
            mask.chance[:] = keep.densities
        elif isinstance(keep, Above):
            size = np.array([keep.size], np.float64 if self._wide else np.float32)
            mask.keep[:] = size.view(np.int64 if self._wide else np.int32)
        elif isinstance(keep, Varied) and keep.share < 1:
            steps = self._choose_varied(keep.share)
            yield from changed(steps, lambda take, view: take(self._of_scores(view)))
        elif isinstance(keep, Important):
            steps = self._choose_important()
            yield from changed(steps, lambda take, view: take(self._of_scores(view, 3)))

    def _choose_varied(self, share: float) -> Steps[None]:
        everything = no_mask(len(self.sizes), 1)
        sums = np.zeros((len(self.sizes), 1, cpu.N_SUMS))
        yield Step(lambda view: self._add_sums(view, everything, sums, cpu.COUNTS))
        # the product is taken in float32, as it decides the count
        counts = (np.float32(share) * sums[:, :, 3].astype(np.float32)).astype(np.int64)
        bits, before = yield from self.largest(counts, wide=False)
        self.mask.keep[:], self.mask.keep_before[:] = self._widened(bits), before

    def _choose_important(self) -> Steps[None]:
        places = [[n - int(share * (n - 1)) for share in (0.5, 0.75, 0.25)] for n in self.sizes]
        counts = np.array(places, np.int64)
        steps = None
        if self._sifted:
            steps = self._kernels.sifted(counts, self.sizes, quantiles=True)
        if self._keep_scores:
            yield Step(lambda view: None)  # scores of all lines, before blocks of them are sampled
        sifted = (yield from steps) if steps is not None else None
        if sifted is None:
            found = yield from self._select(counts, wide=False, every=True)
            sifted = found.prefix, None
        # the magnitudes themselves
        middle, upper, lower = sifted[0].astype(np.int32).view(np.float32).T
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

    def largest(self, counts: np.ndarray, *, wide: bool) -> Steps[tuple[np.ndarray, np.ndarray]]:
        """``(bits, before)`` of the ``counts[slot, row]`` largest magnitudes."""
        steps = self._kernels.sifted(counts, self.sizes) if self._sifted and not wide else None
        if steps is not None:
            sifted = yield from steps
            if sifted is not None:
                return sifted
        found = yield from self._select(counts, wide=wide)
        bits, before = found.settle()

        def place(view: View) -> None:
            left = found.left[view.slots]
            if not left.any():
                return
            places = self._kernels.nth_equal(view, bits[view.slots], left)
            before[view.slots] = np.where(
                places >= 0, places + view.firsts[:, None], before[view.slots]
            )
            found.left[view.slots] = left

        if found.left.any():
            yield Step(place)
        return bits, before

    def _select(self, counts: np.ndarray, *, wide: bool, every: bool = False) -> Steps[Selection]:
        found = Selection(counts, self.sizes + every, wide=wide)
        for shift, width in found.digits():
            table = np.zeros((*counts.shape, 1 << width), np.int64)
            yield Step(partial(self._count, found, shift, width, table))
            found.narrow(table, width)
        return found

    def _count(
        self, found: Selection, shift: int, width: int, table: np.ndarray, view: View
    ) -> None:
        part = self._kernels.digit_counts(view, found.prefix[view.slots], shift, width)
        np.add.at(table, view.slots, part)

    # scores

    def extra(self, view: View) -> dict[str, Any]:
        """What a mask of this choice needs besides its tables, as arguments of the kernels."""
        keep = self.keep
        if isinstance(keep, Ranked):
            return {"chances": self._score(view)}
        if (isinstance(keep, Varied) and keep.share < 1) or isinstance(keep, Important):
            return {"scores": self._score(view)}
        return {}

    def forget(self) -> None:
        """Drops the scores of the last view."""
        scores = self._scored[1]
        self._scored = None, None
        if scores is not None:
            self._kernels.done_with(scores)

    def _score(self, view: View) -> Any:
        base, scores = self._scored
        if base is not view.base:
            self.forget()  # before others are made: they are counted once
            divided = any(choice.needs_chances for choice in self._choices)
            keys = None if divided else self.mask.key
            scores = self._kernels.scores(self.keep, view, self._shapes, keys)
            self._scored = view.base, scores  # live as long as kernels have their address
        return scores

    def _of_scores(self, view: View, copies: int = 1) -> View:
        """The same places of a row of scores."""
        rows = self._kernels.of_scores(self._score(view), copies)
        return view._replace(rows=rows, base=None)

    def _repeated(self, view: View, copies: int) -> View:
        return view._replace(rows=self._kernels.repeated(view.rows, copies))

    # the joint

    def _add_sums(self, view: View, mask: Mask, sums: np.ndarray, wanted: int) -> None:
        """Adds the wanted ``kept_sums`` of each slot, float64 ``[slots, rows, 4]``."""
        extra = {} if view.base is None else self.extra(view)
        ranked = isinstance(self.keep, Ranked)
        if ranked:  # cut where chunks may be: sums have the same bits wherever one ends
            units = [unit_of(self._choices[0], self._shapes[slot]) for slot in view.slots]
            view = view.split(np.array(units))
        part = np.zeros((len(view.slots), *sums.shape[1:])) if ranked else sums[view.slots]
        self._kernels.kept_sums(view, mask.of(view.slots), part, wanted, **extra)
        if ranked:
            np.add.at(sums, view.slots, part)
        else:
            sums[view.slots] = part

    def columns(self, join: ColumnSums) -> list[np.ndarray]:
        """Factors of each slot's columns; see :func:`column_factors`."""
        return column_factors(join, self._columns)

    def joint(self, join: Join, undecided: float = 1.0) -> Joint:
        """Of a join that was added; ``undecided``: the sign where no other is elected."""
        n_slots, n = len(self.sizes), self._n
        weights = np.broadcast_to(np.array(join.weights, np.float64), (n_slots, n))
        scales, lone = np.ones((n_slots, n)), None
        if join.by_square is not None:
            means = self._sums[:, :, 2] / np.maximum(self.sizes, 1)[:, None]
            weights = _shares(means, join.by_square)
        elif join.rescale == "sums":
            whole, kept = self._sums[:, :, 0], self._sums[:, :, 1]
            small = (whole < SMALL) | (kept < SMALL)
            scales = np.where(small, 1.0, whole / np.where(small, 1.0, kept))
        elif join.rescale == "chances" and isinstance(self.keep, Drawn):
            densities = np.array(self.keep.densities)
            scales = scales / np.where(densities > 0, densities, 1)
        if join.alone:
            r, alpha, epsilon = join.alone
            shared, unique = self._agreements[:, :, 0], self._agreements[:, :, 1]
            lone = 1 + r * np.clip(shared / np.maximum(unique, epsilon), 0, alpha)
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
            undecided=undecided,
        )


def _shares(squares: np.ndarray, least: float) -> np.ndarray:
    """Mean squares as weights that sum to 1; equal where their sum is not above ``least``."""
    total = squares.sum(axis=1, keepdims=True)
    small = (total < least) | (total == 0)
    return np.where(small, 1 / squares.shape[1], squares / np.where(small, 1, total))
