"""What an elementwise method has to do, how it is cut into chunks, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wkernels import cpu
from wkernels.bands import rows_of_a_band
from wspace.devices import Device, processors
from wspace.elementwise.choices import (
    Choice,
    ColumnSums,
    Drawn,
    FisherMean,
    Important,
    Largest,
    Pull,
    Ranked,
    Varied,
)
from wspace.elementwise.columns import held_bytes
from wspace.elementwise.kernels import worker_for
from wspace.elementwise.scores import unit_of
from wspace.elementwise.sources import Layout, lay_out
from wspace.storage.headers import BITS
from wspace.stream import CUT, OUTPUTS, SLOTS, chunk_elements, reading_workspace
from wspace.zoo import Zoo, ZooTensor

MOST = 512
"""Tensors in a chunk: each has counts of its digits."""


@dataclass(frozen=True)
class Work:
    """Tensors of one set of models, the base last, that are written in one type.

    Of a FisherMean: first the models, then the diagonals of each, the last in the base's place.
    """

    zoo: Zoo  # with a base
    choices: tuple[Choice, ...]  # of each tensor; tensors that share one share the object
    models: tuple[int, ...]  # the members' numbers, for the draws
    dtype: str  # safetensors name
    seed: int = 0

    @property
    def rows(self) -> range:
        return range(len(self.zoo.checkpoints))


class Cost(NamedTuple):
    read_bytes: int  # from files
    held_bytes: int


def cost_of(work: Work, worker: Device, budget: int) -> Cost:
    """What a work costs. Raises BudgetError."""
    worker = worker_for(worker)
    layout = layout_of(work, worker, budget)
    zoo = work.zoo
    read = {k: sum(s.read_bytes for s in tensor.stored) for k, tensor in enumerate(zoo.tensors)}
    for plans in layout.cut:
        tensor = plans[0].pieces[0].tensor
        read[tensor] *= times_read(work, tensor, worker)
    plans = layout.plans
    width = BITS[work.dtype] // 8
    held = max((SLOTS * plan.nbytes + OUTPUTS * width * plan.n for plan in plans), default=0)
    scores = _extra_bytes(work, worker)
    scores *= max((plan.n for plan in plans), default=0)
    return Cost(sum(read.values()), held + scores)


def layout_of(work: Work, worker: Device, budget: int) -> Layout:
    """Chunks of whole tensors where they fit into the budget. Raises BudgetError."""
    zoo, n_models = work.zoo, len(work.zoo)
    tables = 3 * 8 * 2048 * 2 * n_models  # of a tensor, while digits are counted
    most = int(max(1, min(MOST, budget // 8 // tables)))
    scores = _extra_bytes(work, worker)
    room = (
        budget - most * tables - reading_workspace(zoo.checkpoints, (t.stored for t in zoo.tensors))
    )
    if worker.name == "cpu":
        pairs = zip(work.choices, zoo.tensors, strict=True)
        room -= processors() * max((_thread_bytes(*pair, n_models) for pair in pairs), default=0)
    out_bytes = BITS[work.dtype] // 8
    choice_of = {
        id(tensor): choice for tensor, choice in zip(zoo.tensors, work.choices, strict=True)
    }

    def fitting(dtypes: Sequence[str]) -> int:
        # scores are held once, beside the buffers
        return chunk_elements(room, room, dtypes, out_bytes + -(-scores // OUTPUTS), "merge")

    def target(dtypes: Sequence[str]) -> int:
        return worker.chunk_bytes // max(1, sum(BITS[dtype] for dtype in dtypes) // 8)

    def unit(tensor: ZooTensor) -> int:
        choice = choice_of[id(tensor)]
        step = unit_of(choice, tensor.shape) or CUT
        if isinstance(choice.join, ColumnSums) and worker.name != "cpu":
            step *= rows_of_a_band(step) or 1  # where additions are in bands
        return step

    return lay_out(zoo, work.rows, fitting, target, unit, most)


def _extra_bytes(work: Work, worker: Device) -> int:
    """Held for each element beside the buffers, at most."""
    converted = 0
    if worker.name != "cpu":  # where kernels have all models in one type
        groups = {tensor.dtypes for tensor in work.zoo.tensors}
        mixed = [dtypes for dtypes in groups if len(set(dtypes[:-1])) > 1]
        converted = max((8 if "F64" in dtypes else 4 for dtypes in mixed), default=0)
    tensors = zip(work.choices, work.zoo.tensors, strict=True)
    pairs = {(choice, tensor.shape) for choice, tensor in tensors if tensor.numel}
    here = worker.name == "cpu"
    scores = max((_score_bytes_of(*pair, len(work.zoo), here) for pair in pairs), default=0)
    return scores + converted * len(work.zoo)


def _score_bytes_of(choice: Choice, shape: tuple[int, ...], n_models: int, on_cpu: bool) -> int:
    if isinstance(choice.join, ColumnSums):
        return held_bytes(shape, bands=not on_cpu)
    if isinstance(choice.keep, Ranked):
        return 4 * n_models + (0 if on_cpu else 16)  # keys of one model, of lines that are long
    if isinstance(choice.keep, Largest):
        n_rows = n_models * (2 if choice.keep.outliers else 1)
        return on_cpu * _kept_bytes(n_rows)
    if isinstance(choice.keep, Varied | Important):
        return 4 + on_cpu * _kept_bytes(3 if isinstance(choice.keep, Important) else 1)
    return 0 if isinstance(choice.keep, Drawn) else 4


def _kept_bytes(n_rows: int) -> int:
    """Of each element, while thresholds are found by a sieve."""
    return -(-4 * n_rows // cpu.ROOM)


def _thread_bytes(choice: Choice, tensor: ZooTensor, n_models: int) -> int:
    """What a thread holds while it ranks a line, or the lines that lie between each other, or fills
    a sieve: a block of each row may be kept whole."""
    if isinstance(choice.keep, Ranked):
        return 42 * unit_of(choice, tensor.shape)
    if isinstance(choice.keep, Largest):
        return 4 * CUT * n_models * (2 if choice.keep.outliers else 1)
    n_rows = {Varied: 1, Important: 3}.get(type(choice.keep), 0)
    return 4 * CUT * n_rows


def times_read(work: Work, tensor: int, worker: Device) -> int:
    """How often one is read that does not fit into a chunk, the writing one included."""
    wide = "F64" in work.zoo.tensors[tensor].dtypes
    return passes_of(work.choices[tensor], sifted=worker.name == "cpu" and not wide)


def passes_of(choice: Choice, *, sifted: bool = True) -> int:
    """Passes over a tensor; ``sifted``: thresholds are found as on the CPU, in float32."""
    selection = 1 if sifted else 4  # or digits are counted, and equal magnitudes
    keep, join = choice.keep, choice.join
    if isinstance(join, Pull | FisherMean):
        return 1
    if isinstance(join, ColumnSums):
        return 2
    count = 1
    name = type(keep).__name__
    digits_alone = min(selection, 3)
    count += {"Largest": selection, "Varied": 1 + selection, "Important": digits_alone}.get(name, 0)
    if join.rescale == "sums" or join.by_square is not None or join.alone:
        count += 1
    return count
