"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

import re

from wspace.errors import WspaceError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def parse_bytes(size: int | str) -> int:
    """``"5GB"`` is 5 * 10**9 bytes and ``"1GiB"`` is 2**30, as on the Hub; a number is bytes."""
    if isinstance(size, int) and size > 0:
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?B|)\s*", str(size).upper())
    number = float(match[1]) * _UNITS[match[2]] if match else 0
    if not 1 <= number < 1 << 63:
        raise WspaceError(f"size {size!r}: expected bytes, such as 2GiB, 500MB or 1000000")
    return int(number)


def format_bytes(size: float) -> str:
    """``1234567890`` -> ``1.23 GB``."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{size:.0f} bytes"
        size /= 1000
    return f"{size:.3g} TB"
