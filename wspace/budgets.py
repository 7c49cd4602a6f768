"""Budgets of memory: plans that fit into them, and the least that is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from wspace.errors import BudgetError
from wspace.storage.checkpoints import Checkpoint
from wspace.storage.checksums import BLOCK

T = TypeVar("T")

# bytes of Python's objects at their peak, as measured with names of 40 to 140 letters
PARSED = 900
"""Of a tensor in a header, while that is parsed."""
KNOWN = 500
"""Of a tensor in a header, afterwards."""
PLANNED = 1100
"""Of a tensor of an output."""
NOTED = 80
"""Of a block of an output, for its checksum."""
FEW = 256 << 10
"""Bytes of these that are counted elsewhere (``wspace.stream.BESIDES``): two hundred tensors'."""


def recorded(checkpoints: Iterable[Checkpoint], written: Sequence[int] = ()) -> int:
    """Bytes of what is known about tensors: those of checkpoints, and those of outputs.

    ``written``: bytes of each tensor of the outputs. What checkpoints share counts once.
    """
    headers = [len(tensors) for tensors in {id(c.tensors): c.tensors for c in checkpoints}.values()]
    known = PARSED * max(headers, default=0) + KNOWN * sum(headers)
    blocks = sum([-(-nbytes // BLOCK) for nbytes in written])
    return max(0, known + PLANNED * len(written) + NOTED * blocks - FEW)


def enough(plan: Callable[[int], T], budget: int, what: str, taken: int = 0) -> T:
    """``plan(budget - taken)``, which raises BudgetError, saying what does not fit, if it is too
    little.

    Then the error names the work, which ``what`` is, and the least budget that is enough.
    """

    def beside(budget: int) -> T:
        if budget <= taken:
            raise BudgetError("what is known about its tensors alone")
        return plan(budget - taken)

    try:
        return beside(budget)
    except BudgetError as error:
        raise BudgetError(
            f"{what}: a memory budget of {budget} bytes is too small; {error} needs "
            f"{least(beside, budget)} bytes"
        ) from None


def least(plan: Callable[[int], object], lacking: int) -> int:
    """The least budget, of more than ``lacking``, for which ``plan`` raises no BudgetError.

    By planning anew, as plans divide a budget in more ways than one.
    """
    lacking = max(lacking, 0)
    more = max(1, 2 * lacking)
    while not _fits(plan, more):
        lacking, more = more, 2 * more
        assert more < 1 << 64, "no budget is enough"
    while more - lacking > 1:
        middle = (lacking + more) // 2
        lacking, more = (lacking, middle) if _fits(plan, middle) else (middle, more)
    return more


def _fits(plan: Callable[[int], object], budget: int) -> bool:
    try:
        plan(budget)
    except BudgetError:
        return False
    return True
