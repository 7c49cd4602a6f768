"""What inputs are called in an output that others get: models of the Hub by id and revision, not by
the folder of a cache that has them."""

from __future__ import annotations

import re
from typing import NamedTuple

from wspace.storage.remote import Location

_SNAPSHOT = re.compile(
    r"([^+]*/)?models--(?P<id>[^/+]+)/snapshots/(?P<revision>[^/+]+)(/(?P<file>.+))?/?"
)
_URL = re.compile(
    r"hf://(?P<id>(?!datasets/|spaces/)[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<file>.+))?/?"
)


class HubPlace(NamedTuple):
    """A model of the Hub, or something in it."""

    id: str  # owner/name
    revision: str | None
    file: str | None  # below it; None for all of the model


def hub_place(place: Location | str) -> HubPlace | None:
    """What a path in the Hub's cache, or an ``hf://`` URL, stands for; None for other places."""
    found = _SNAPSHOT.fullmatch(str(place)) or _URL.fullmatch(str(place))
    if found is None:
        return None
    return HubPlace(found["id"].replace("--", "/"), found["revision"], found["file"])


def public_name(place: Location | str) -> str:
    """Of a path in the Hub's cache: ``owner/name@revision``, or a file's URL; others as they are.

    ``place`` may be a model and an adapter, with ``+`` between.
    """
    text = str(place)
    model, plus, adapter = text.partition("+")
    if plus and (adapter.startswith("/") or hub_place(model)):  # else it may be part of a name
        return f"{public_name(model)}+{public_name(adapter)}"
    found = hub_place(text)
    if found is None or text.startswith("hf://"):
        return text
    name = f"{found.id}@{found.revision}"
    return f"hf://{name}/{found.file}" if found.file else name
