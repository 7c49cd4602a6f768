"""What is wrong with a recipe: collected, so that all of it is said at once."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from wspace.errors import WspaceError

LONGEST = 1000
"""Characters of a problem's line."""


class RecipeError(WspaceError):
    """A recipe that cannot be run. ``problems``: a line for each, with its place in the file."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class Problem(NamedTuple):
    line: int  # 0: of no one line
    text: str


@dataclass
class Problems:
    """Errors refuse the recipe; warnings and notes do not. Each is told once."""

    file: str
    strict: bool = False
    _errors: list[Problem] = field(default_factory=list)
    _warnings: list[Problem] = field(default_factory=list)
    _notes: list[Problem] = field(default_factory=list)
    _kinds: set[tuple[int, str]] = field(default_factory=set)

    def error(self, line: int | None, text: str, kind: str = "") -> None:
        """``kind``: the same kind of error in one line is told for its first tensor only."""
        if kind and (line or 0, kind) in self._kinds:
            return
        self._kinds.add((line or 0, kind))
        _add(self._errors, line, text)

    def warn(self, line: int | None, text: str) -> None:
        _add(self._warnings, line, text)

    def note(self, text: str) -> None:
        _add(self._notes, None, text)

    @property
    def errors(self) -> list[str]:
        """``file:line: text``, in the file's order, those of no one line last."""
        return self._lines(self._errors)

    @property
    def warnings(self) -> list[str]:
        return self._lines(self._warnings)

    @property
    def notes(self) -> list[str]:
        return [note.text for note in self._notes]

    def unknown(self, line: int, what: str, name: str, known: Iterable[str]) -> None:
        """A name that means nothing: a warning, or an error if ``strict``."""
        near = nearest(name, known)
        hint = f"; did you mean {near}?" if near else f"; known: {', '.join(known)}"
        (self.error if self.strict else self.warn)(line, f"{what} {name!r} is unknown{hint}")

    def raise_errors(self) -> None:
        if self._errors:
            raise RecipeError(self.errors)

    def _lines(self, problems: list[Problem]) -> list[str]:
        placed = sorted(problems, key=lambda problem: problem.line or math.inf)
        return [
            f"{self.file}:{line}: {text}" if line else f"{self.file}: {text}"
            for line, text in placed
        ]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` is probably a slip of."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def _add(problems: list[Problem], line: int | None, text: str) -> None:
    text = " ".join(text.splitlines())  # of a name that has several
    problem = Problem(line or 0, text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")
    if problem not in problems:
        problems.append(problem)
