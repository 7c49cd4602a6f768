"""Budgets of memory: plans that fit into them, and the least that is enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from wspace.errors import BudgetError

T = TypeVar("T")


def enough(plan: Callable[[int], T], budget: int, what: str) -> T:
    """``plan(budget)``, which raises BudgetError, saying what does not fit, if it is too little.

    Then the error names the work, which ``what`` is, and the least budget that is enough.
    """
    try:
        return plan(budget)
    except BudgetError as error:
        raise BudgetError(
            f"{what}: a memory budget of {budget} bytes is too small; {error} needs "
            f"{least(plan, budget)} bytes"
        ) from None


def least(plan: Callable[[int], object], lacking: int) -> int:
    """The least budget, of more than ``lacking``, for which ``plan`` raises no BudgetError.

    By planning anew, as plans divide a budget in more ways than one.
    """
    more = 2 * lacking
    while not _fits(plan, more):
        lacking, more = more, 2 * more
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
