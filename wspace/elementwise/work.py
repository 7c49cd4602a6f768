"""What elementwise methods have to do, how it is cut into chunks, and what it costs."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from wkernels import cpu
from wkernels.bands import rows_of_a_band
from wkernels.masks import DIGITS
from wspace.devices import Cpu, Device
from wspace.elementwise.choices import (
    Choice,
    ColumnSums,
    Drawn,
    Everything,
    FisherMean,
    Important,
    Keep,
    Largest,
    Pull,
    Ranked,
    Varied,
)
from wspace.elementwise.columns import held_bytes
from wspace.elementwise.scores import lines_together, unit_of
from wspace.elementwise.sources import Layout, lay_out, lines_around
from wspace.storage.headers import BITS
from wspace.stream import CUT, OUTPUTS, SLOTS, chunk_elements, for_buffers, reading_workspace
from wspace.zoo import Zoo, ZooTensor

MOST = 512
"""Tensors in a chunk: each has counts of its digits."""

KEPT = 16
"""Of so many elements, a sieve keeps one at the most, where a tensor is cut: one of 25, as far as
its sample tells."""

KEPT_OF_LINES = 8
"""The same of importances, whose limits are further apart: one of 17."""


@dataclass(frozen=True)
class Use:
    """What one output is of a work's tensors; all of it is written in one type.

    Of a FisherMean, ``which`` are first the models, then the diagonals of each, the last in the
    base's place.
    """

    output: int  # its number
    which: tuple[int, ...]  # of the zoo's checkpoints, the base last
    choices: tuple[Choice, ...]  # of each tensor; tensors that share one share the object
    models: tuple[int, ...]  # the members' numbers, for the draws
    names: tuple[str, ...]  # of the output's tensors
    dtype: str  # safetensors name


@dataclass(frozen=True)
class Work:
    """Tensors of one set of checkpoints, which are read once for several outputs."""

    zoo: Zoo
    uses: tuple[Use, ...]
    seed: int = 0

    @property
    def rows(self) -> range:
        return range(len(self.zoo.checkpoints))

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Of all uses, each once."""
        found = {id(choice): choice for use in self.uses for choice in use.choices}
        return tuple(found.values())

    @property
    def width(self) -> int:
        """Bytes of an element that is written, at most."""
        return max(BITS[use.dtype] // 8 for use in self.uses)

    @cached_property
    def alike(self) -> tuple[int, ...]:
        """For each use, the first one whose masks are the same where their choices keep the same:
        one of the same models and names."""
        first: dict[Hashable, int] = {}
        return tuple(
            [
                first.setdefault((use.which, use.models, use.names), k)
                for k, use in enumerate(self.uses)
            ]
        )

    @cached_property
    def kinds(self) -> list[tuple[Choice, tuple[int, ...], int]]:
        """Each choice, shape and number of models that there is, once."""
        found = {}
        for use in self.uses:
            n_models = len(use.which) - 1
            for choice, tensor in zip(use.choices, self.zoo.tensors, strict=True):
                found[id(choice), tensor.shape, n_models] = choice
        return [(choice, shape, n) for (_, shape, n), choice in found.items() if 0 not in shape]

    def sharing(self, tensor: int) -> dict[tuple[int, Keep], list[int]]:
        """Uses of a tensor, by those that have the same mask."""
        found: dict[tuple[int, Keep], list[int]] = {}
        for k, use in enumerate(self.uses):
            found.setdefault((self.alike[k], use.choices[tensor].keep), []).append(k)
        return found

    def wide(self, use: Use, tensor: int) -> bool:
        """Whether its differences are in float64."""
        stored = self.zoo.tensors[tensor].stored
        return any(stored[row].record.dtype == "F64" for row in use.which)

    def whole_reads(self, use: Use) -> int:
        """How often all tensors are read for the statistics of whole models."""
        if not of_whole_model(use.choices[0]):
            return 0
        wide = any(self.wide(use, tensor) for tensor in range(len(self.zoo.tensors)))
        return len(DIGITS["float64" if wide else "float32"]) + 1  # and once for the signs


def of_whole_model(choice: Choice) -> bool:
    return isinstance(choice.keep, Largest) and choice.keep.whole


class Cost(NamedTuple):
    read_bytes: int  # from files
    held_bytes: int


def cost_of(work: Work, worker: Device, budget: int) -> Cost:
    """What a work costs. Raises BudgetError."""
    layout = layout_of(work, worker, budget)
    read = [sum([stored.read_bytes for stored in t.stored]) for t in work.zoo.tensors]
    total = sum(read) * (1 + max(map(work.whole_reads, work.uses)))
    kept = 0
    for plans, rounds, sifted in layout.cut_tensors:
        tensor = plans[0].pieces[0].tensor
        total += read[tensor] * (times_read(work, tensor, rounds, sifted) - 1)
        sampled = _sampled(work, tensor, rounds, sifted)
        total += read[tensor] * sampled // work.zoo.tensors[tensor].numel
        kept = max(kept, *(_kept_at_once(work, tensor, uses, sifted) for uses in rounds))
    return Cost(total, _buffer_bytes(work, worker, layout) + kept)


def layout_of(work: Work, worker: Device, budget: int) -> Layout:
    """Chunks of whole tensors where they fit into the budget. Raises BudgetError."""
    zoo = work.zoo
    n_models = max(len(use.which) - 1 for use in work.uses)
    tables = 3 * 8 * 2048 * 2 * n_models  # of a tensor, while digits are counted
    most = int(max(1, min(MOST, budget // 8 // tables)))
    scores = _extra_bytes(work, worker)
    room = (
        budget - most * tables - reading_workspace(zoo.checkpoints, (t.stored for t in zoo.tensors))
    )
    if isinstance(worker, Cpu):
        room -= worker.threads * max([_thread_bytes(*kind) for kind in work.kinds], default=0)
    choice_of = {
        id(tensor): choice for tensor, choice in zip(zoo.tensors, work.uses[0].choices, strict=True)
    }  # those of the other uses have the same units

    def fitting(dtypes: Sequence[str]) -> int:
        # scores are held once, beside the buffers
        return chunk_elements(room, room, dtypes, work.width + -(-scores // OUTPUTS))

    def target(dtypes: Sequence[str]) -> int:
        return worker.chunk_bytes // max(1, sum(BITS[dtype] for dtype in dtypes) // 8)

    def unit(tensor: ZooTensor) -> int:
        choice = choice_of[id(tensor)]
        step = unit_of(choice, tensor.shape) or CUT
        if isinstance(choice.join, ColumnSums) and worker.name != "cpu":
            step *= rows_of_a_band(step) or 1  # where additions are in bands
        return step

    layout = lay_out(zoo, work.rows, fitting, target, unit, most)
    room = for_buffers(room) - _buffer_bytes(work, worker, layout)
    tensors = [plans[0].pieces[0].tensor for plans in layout.cut]
    sifted = [_sifted(work, tensor, worker, room) for tensor in tensors]
    rounds = [_rounds(work, t, own, room) for t, own in zip(tensors, sifted, strict=True)]
    return replace(layout, rounds=rounds, sifted=sifted)


def _sifted(work: Work, tensor: int, worker: Device, room: int) -> frozenset[int]:
    """Uses of a tensor that is cut whose thresholds a sieve finds, which needs room of its own."""
    uses = range(len(work.uses) if worker.name == "cpu" else 0)
    fitting = [use for use in uses if _kept_bytes_of(work, tensor, use) <= room]
    return frozenset([use for use in fitting if not work.wide(work.uses[use], tensor)])


def _rounds(work: Work, tensor: int, sifted: Collection[int], room: int) -> list[list[int]]:
    """Uses of a tensor whose statistics are found in the same reads: as many as fit."""
    rounds: list[list[int]] = [[]]
    filled = 0
    for uses in work.sharing(tensor).values():
        kept = _kept_bytes_of(work, tensor, uses[0]) if uses[0] in sifted else 0
        if rounds[-1] and filled + kept > room:
            rounds.append([])
            filled = 0
        rounds[-1] += uses
        filled += kept
    return rounds


def _kept_bytes_of(work: Work, tensor: int, use: int) -> int:
    """By a sieve that finds the thresholds of one use, of all of a tensor that is cut."""
    choice, of = work.uses[use].choices[tensor], work.zoo.tensors[tensor]
    if isinstance(choice.join, ColumnSums):
        return 0
    n_rows = _sifted_rows(choice.keep, len(work.uses[use].which) - 1)
    kept = KEPT_OF_LINES if isinstance(choice.keep, Important) else KEPT
    return 4 * n_rows * of.numel // kept


def _kept_at_once(work: Work, tensor: int, uses: Collection[int], sifted: Collection[int]) -> int:
    """What sieves keep that work in the same reads."""
    found = [of[0] for of in work.sharing(tensor).values() if of[0] in uses and of[0] in sifted]
    return sum([_kept_bytes_of(work, tensor, use) for use in found])


def _buffer_bytes(work: Work, worker: Device, layout: Layout) -> int:
    """With what is held for each element beside them."""
    plans = layout.plans
    buffers = max(
        (SLOTS * plan.nbytes + OUTPUTS * work.width * plan.n for plan in plans), default=0
    )
    return buffers + _extra_bytes(work, worker) * max((plan.n for plan in plans), default=0)


def _extra_bytes(work: Work, worker: Device) -> int:
    """Held for each element beside the buffers, at most."""
    converted = 0
    if worker.name != "cpu":  # where kernels have all models in one type
        groups = {tensor.dtypes for tensor in work.zoo.tensors}
        models = [[dtypes[row] for row in u.which[:-1]] for dtypes in groups for u in work.uses]
        each = [len(of) * (8 if "F64" in of else 4) for of in models if len(set(of)) > 1]
        converted = max(each, default=0)
    scores = max((_score_bytes_of(*kind, worker.name == "cpu") for kind in work.kinds), default=0)
    columns = sum(isinstance(use.choices[0].join, ColumnSums) for use in work.uses)
    return scores * max(columns, 1) + converted


def _score_bytes_of(choice: Choice, shape: tuple[int, ...], n_models: int, on_cpu: bool) -> int:
    if isinstance(choice.join, ColumnSums):
        return held_bytes(shape, bands=not on_cpu)
    if isinstance(choice.keep, Ranked):
        each = 4 if choice.needs_chances or not on_cpu else 1
        return each * n_models + (0 if on_cpu else 16)  # keys of one model, of lines that are long
    kept = on_cpu * -(-4 * _sifted_rows(choice.keep, n_models) // cpu.ROOM)  # by a sieve
    return kept if isinstance(choice.keep, Largest | Drawn) else kept + 4


def _thread_bytes(choice: Choice, shape: tuple[int, ...], n_models: int) -> int:
    """What a thread holds while it ranks a line, or the lines that lie between each other, or fills
    a sieve: a block of each row may be kept whole."""
    if isinstance(choice.keep, Ranked):
        return cpu.AREA_BYTES * lines_together(shape)
    return 4 * CUT * _sifted_rows(choice.keep, n_models)


def _sifted_rows(keep: Keep, n_models: int) -> int:
    """On which a sieve works to find thresholds."""
    if isinstance(keep, Largest):
        return n_models * (2 if keep.outliers else 1)
    return {Varied: 1, Important: 3}.get(type(keep), 0)


def times_read(
    work: Work, tensor: int, rounds: Sequence[Sequence[int]], sifted: Collection[int]
) -> int:
    """How often one is read that does not fit into a chunk, the writing one included."""

    def before(use: int) -> int:
        choice = work.uses[use].choices[tensor]
        if of_whole_model(choice):
            choice = replace(choice, keep=Everything())
        return passes_of(choice, sifted=use in sifted) - 1

    return 1 + sum(max(map(before, uses)) for uses in rounds)


def _sampled(
    work: Work, tensor: int, rounds: Sequence[Sequence[int]], sifted: Collection[int]
) -> int:
    """Elements that are read besides, in blocks from which limits of thresholds are estimated."""
    n, shape = work.zoo.tensors[tensor].numel, work.zoo.tensors[tensor].shape
    unit = unit_of(work.uses[0].choices[tensor], shape) or CUT
    count = 0
    for uses in rounds:
        keeps = [work.uses[k].choices[tensor].keep for k in uses if k in sifted]
        for kind in {type(keep) for keep in keeps if _divides(keep)}:
            starts = cpu.sampled_blocks(n, cpu.LINES if kind is Important else cpu.ELEMENTS)
            lines = [lines_around(start, unit, n) for start in starts]
            count += sum(stop - start for start, stop in lines)
    return count


def _divides(keep: Keep) -> bool:
    if isinstance(keep, Varied):
        return keep.share < 1
    if isinstance(keep, Largest):
        return not keep.whole and min(keep.densities) < 1
    return isinstance(keep, Important)


def passes_of(choice: Choice, *, sifted: bool = True) -> int:
    """Passes over a tensor; ``sifted``: thresholds are found as on the CPU, in float32."""
    selection = 1 if sifted else 4  # or digits are counted, and equal magnitudes
    keep, join = choice.keep, choice.join
    if isinstance(join, Pull | FisherMean):
        return 1
    if isinstance(join, ColumnSums):
        return 2
    count = 1
    if isinstance(keep, Largest):
        count += selection
    elif isinstance(keep, Varied):
        count += 1 + selection
    elif isinstance(keep, Important):
        count += 1 if sifted else 3
    if join.rescale == "sums" or join.by_square is not None or join.alone:
        count += 1
    return count
