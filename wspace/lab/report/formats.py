"""Numbers as a reader wants them. A result may be None, or the text of a number not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

NOTHING = "–"

LEVELS = {"same-dataset": "same data set", "same-task": "same family", "general": "all families"}
STARTS = {
    "pretrained": "pretrained model",
    "centroid": "centroid of all others",
    "family_centroid": "centroid of its family",
}
REGIMES = {"paper": "paper-like", "tuned": "tuned"}


def real(value: Any) -> float:
    """A number of a result; NaN where there is none."""
    return math.nan if value is None else float(value)


def number(value: Any, digits: int = 3) -> str:
    """Fixed digits, and an exponent where those would say nothing."""
    it = real(value)
    if not math.isfinite(it):
        return NOTHING if value is None else str(it)
    if it and (abs(it) < 0.5 * 10**-digits or abs(it) >= 1e5):
        return f"{it:.2g}"
    return f"{it:.{digits}f}"


def percent(value: Any, digits: int = 0) -> str:
    return f"{100 * real(value):.{digits}f} %" if value is not None else NOTHING


def points(value: Any) -> str:
    """A difference of accuracies, in points of a hundred."""
    return f"{100 * real(value):+.1f}" if value is not None else NOTHING


def with_spread(mean: Any, sd: Any, digits: int = 3) -> str:
    return number(mean, digits) + ("" if sd is None else f" ± {number(sd, digits)}")


def counted(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def seconds(value: float) -> str:
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"
