"""A family's launch configurations as the text of its module in ``tables``."""

from __future__ import annotations

from collections.abc import Mapping

from wkernels.gpu.configs.families import FAMILIES

HEADER = '''\
"""Launch configurations for {chips}: printed by ``python -m bench.tune``.

Keys: bytes of an element, and models up to (0: any); bytes of an element; kernel, and bytes of an
element; engine, bytes of an element, and rows of a tile.
"""

from __future__ import annotations

from wkernels.gpu.configs.shapes import Choose, Mix, Read, Tile

ORIGIN = "{origin}"
'''


def as_text(family: str, table: Mapping[str, Mapping], origin: str) -> str:
    """Python source, as ruff formats it."""
    lines = [HEADER.format(chips=FAMILIES[family].chip, origin=origin)]
    for operation, entries in table.items():
        lines.append(f"{operation} = {{")
        lines += [f"    {_literal(key)}: {_literal(entry)}," for key, entry in entries.items()]
        lines += ["}", ""]
    return "\n".join(lines[:-1]) + "\n"


def _literal(value) -> str:
    if hasattr(value, "_fields"):
        fields = (f"{name}={number}" for name, number in value._asdict().items())
        return f"{type(value).__name__}({', '.join(fields)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))})"
    return f'"{value}"' if isinstance(value, str) else str(value)
