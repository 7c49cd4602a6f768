"""How every figure looks, and how it is saved: one panel, narrow enough for a phone.

Figures are drawn in one ink on nothing. A file gets white paper under it; in the page the ink
becomes the text's own colour, so that one drawing serves light and dark.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Exactly these in the drawing stand for the page's text and lines.
INK, FAINT = "#1b1f24", "#9aa3ad"
# Of middling lightness: readable on white and on near black.
COLOURS = (
    "#3d7fd6", "#e0762f", "#2f9e6e", "#c8508f", "#8b6fd6", "#b08d1f", "#2f9fb5", "#d4524a",
    "#7a8f2a", "#9a6b4f",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P")
WIDTH = 4.7  # inches
DPI = 150
NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "axes.titlesize": 10.5,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": FAINT, "axes.titlecolor": INK, "xtick.color": FAINT,
    "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.grid": True,
    "grid.color": FAINT, "grid.alpha": 0.3, "grid.linewidth": 0.6, "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False,
    "legend.fontsize": 8.5, "figure.facecolor": "none", "axes.facecolor": "none",
    "svg.fonttype": "path", "lines.linewidth": 1.8,
}  # fmt: skip


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The look, whatever the user's own settings of matplotlib are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for name, value in STYLE.items():
            matplotlib.rcParams[name] = value
        yield


def axes(
    title: str, x: str = "", y: str = "", *, height: float = 3.5, width: float = WIDTH
) -> tuple[Figure, Axes]:
    """An empty panel; no window, and no state outside it."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panel = figure.add_subplot()
    panel.set(title=title, xlabel=x, ylabel=y)
    return figure, panel


def legend_below(figure: Figure, panel: Axes, columns: int = 2, handles: Any = None) -> None:
    """Outside the data, where it hides nothing."""
    given = {} if handles is None else {"handles": handles}
    if handles or panel.get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower left", ncols=columns, handletextpad=0.5,
                      columnspacing=1.2, **given)  # fmt: skip


def looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each name, no two alike."""
    return {
        name: (COLOURS[k % len(COLOURS)], MARKERS[k // len(COLOURS) % len(MARKERS)])
        for k, name in enumerate(names)
    }


def save(figure: Figure, name: str, folder: Path) -> str:
    """``name.svg`` and ``name.png`` in a folder, on white; returns the drawing for the page.

    In the page its ink is the page's, it is as wide as its place, and no id in it is another's.
    """
    text = _svg(figure, name)
    paper = '<rect width="100%" height="100%" fill="white"/>'
    (folder / f"{name}.svg").write_text(re.sub(r"(<svg[^>]*>)", rf"\1{paper}", text, count=1))
    figure.savefig(folder / f"{name}.png", dpi=DPI, facecolor="white")
    text = re.sub(r'<svg[^>]*(viewBox="[^"]*")[^>]*>', rf"<svg {NAMESPACES} \1>", text, count=1)
    return text.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")


def _svg(figure: Figure, name: str) -> str:
    """An svg element that is the same from run to run."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    return re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
