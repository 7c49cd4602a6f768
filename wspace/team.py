"""The processes that do one job together, as one of them sees them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wspace.shares import WHOLE, Share

if TYPE_CHECKING:
    import numpy as np


class Team:
    """A process that does the job alone; base of those in which several do.

    Each works on its share of the parameters and writes its own byte ranges of the output. There
    is nothing that one process does for another, so that the bits do not depend on how many they
    are; what is summed over all parameters is added up in the order of the shares.
    """

    share = WHOLE
    leads = True
    """Whether this process may publish what all have finished."""
    patience = 0.0
    """Seconds that the others, once they are told to stop, may take for it."""
    meets = True
    """Whether the others are there at the same time."""

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first does this before the others; all go on when all have done it."""
        yield

    def wait(self) -> None:
        """Return when all have come here."""

    def agree(self, what: str, value: str) -> None:
        """Raises WspaceError unless ``what`` is the same for all."""

    def added(self, pair: np.ndarray) -> np.ndarray:
        """Sums in twice float64's precision, ``[2, ...]``, added up over all shares in order."""
        return pair

    def gathered(self, rows: np.ndarray) -> np.ndarray:
        """Rows of all shares, in order."""
        return rows

    def device(self, name: str) -> str:
        """Which device this process is to use, where ``name`` was asked for or chosen."""
        return name

    def stop(self, error: BaseException) -> None:
        """This process has failed: the others are to stop too."""


ALONE = Team()


def torchrun_rank() -> int | None:
    """This process's rank, where ``torchrun`` (or what sets the same variables) started several."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    return int(os.environ["RANK"])


ADAPTERS_ALONE = "adapters alone are small: one process does them, without torchrun and --range"


class OneOfMany(Team):
    """One share of a job whose others are done by processes that know nothing of each other.

    They may run at the same time, on any machines that share the disk, or one after the other;
    whichever finds that all is finished publishes.
    """

    meets = False

    def __init__(self, share: Share) -> None:
        self.share = share
