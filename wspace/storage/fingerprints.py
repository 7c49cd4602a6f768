"""What the bytes of an output follow from: its fingerprint, which a second run must meet.

Memory, threads and device are no part of it where the bits do not depend on them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wspace.storage.checkpoints import Checkpoint
from wspace.storage.checksums import checksum
from wspace.storage.remote import Location
from wspace.storage.stamps import Stamp, difference, stamp_of
from wspace.version import VERSION

FORMAT = 1
"""Of the journal and of the folder that it is in."""

_CONFIGS = ("config.json", "adapter_config.json")
"""Beside weights: what those are scaled by, where they are quantised or adapters."""

Fingerprint = dict[str, Any]
"""Plain JSON."""


def fingerprint(
    made: Mapping[str, Any],
    inputs: Iterable[Checkpoint],
    *,
    also: Iterable[Location] = (),
    **settings: Any,
) -> Fingerprint:
    """``made``: how the output is made. ``also``: more files that it follows from.

    Files have the names that the user gave them: an output that is published tells nothing of the
    machine. Which file it was, its stamp says.
    """
    stamps: dict[str, Stamp] = {}
    others = list(also)
    for checkpoint in inputs:
        for file, stamp in zip(checkpoint.files, checkpoint.stamps, strict=True):
            stamps[str(file)] = stamp
        folders = {file.parent for file in checkpoint.files}
        others += [folder / name for folder in sorted(folders, key=str) for name in _CONFIGS]
    for path in others:
        name = str(path)
        if name not in stamps and path.is_file():
            stamps[name] = stamp_of(path)
    found = {
        "format": FORMAT,
        "wspace": VERSION,
        "made": dict(made),
        "settings": settings,
        "inputs": {path: stamp.as_json() for path, stamp in sorted(stamps.items())},
    }
    return json.loads(json.dumps(found))  # as it comes back from a file


def digest_of(job: Fingerprint) -> str:
    return checksum(json.dumps(job, sort_keys=True).encode())


def stamps_of(job: Fingerprint) -> dict[str, Stamp]:
    return {path: Stamp(**stamp) for path, stamp in job["inputs"].items()}


def differences(before: Fingerprint, now: Fingerprint) -> list[str]:
    """What changed from one to the other, each in a few words."""
    try:
        stamps = stamps_of(before)
        parts = {key: dict(before[key]) for key in ("made", "settings")}
    except (KeyError, TypeError, ValueError, AttributeError):
        return ["its job.json is damaged"]
    found = []
    for key, what in (("wspace", "wspace"), ("format", "the journal's format")):
        if before.get(key) != now[key]:
            found.append(f"{what} was {before.get(key)}, is {now[key]}")
    for part, values in parts.items():
        for key in dict.fromkeys([*values, *now[part]]):
            was, is_now = values.get(key), now[part].get(key)
            if was != is_now:
                found.append(f"{key} {_change(was, is_now)}")
    for path, stamp in stamps_of(now).items():
        if path not in stamps:
            found.append(f"{path} is read now")
        elif stamps[path] != stamp:
            found.append(f"{path} has changed ({difference(stamps[path], stamp)})")
    return found + [f"{path} was read" for path in stamps if path not in now["inputs"]]


def _change(was: Any, now: Any) -> str:
    texts = [json.dumps(value, ensure_ascii=False) for value in (was, now)]
    if max(map(len, texts)) > 30:
        return "changed"
    return f"was {texts[0]}, is {texts[1]}"


def in_words(changes: Sequence[str]) -> str:
    more = f", and {len(changes) - 3} more" if len(changes) > 3 else ""
    return ", ".join(changes[:3]) + more
