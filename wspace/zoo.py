"""A zoo: checkpoints of one architecture, aligned tensor by tensor, from headers alone."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wspace.errors import CheckpointError, MisalignedZooError
from wspace.storage.checkpoints import Checkpoint, StoredTensor
from wspace.storage.headers import KERNEL_NAMES
from wspace.storage.opening import real_path
from wspace.storage.remote import Location, is_remote, matching

if TYPE_CHECKING:
    from wspace.derived.adapters import Adapter


class ZooTensor(NamedTuple):
    """One tensor across the zoo."""

    name: str
    shape: tuple[int, ...]
    numel: int
    stored: tuple[StoredTensor, ...]  # one for each of Zoo.checkpoints

    @property
    def dtypes(self) -> tuple[str, ...]:
        return tuple([stored.record.dtype for stored in self.stored])

    @property
    def group(self) -> tuple[str, ...]:
        """Tensors of one group can be in one chunk: they are read and written in the same types."""
        if any(stored.derived for stored in self.stored):
            return (*self.dtypes, *[stored.written for stored in self.stored])
        return self.dtypes


@dataclass(frozen=True)
class Zoo:
    """Aligned checkpoints: row ``i`` of X is ``members[i]``, and the base is its origin."""

    members: tuple[Checkpoint, ...]
    base: Checkpoint | None
    tensors: tuple[ZooTensor, ...]  # floating point: these are mixed. By group, file order
    copied: tuple[ZooTensor, ...]  # integers and the like: copied where equal
    left_out: dict[str, str]  # tensor -> why it takes no part
    adapters: tuple[Adapter, ...] = ()  # the members, where they are LoRA adapters alone

    @property
    def has_origin(self) -> bool:
        """Whether rows are differences: from the base, or what adapters add to theirs."""
        return self.base is not None or bool(self.adapters)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The members and then the base, if there is one."""
        return (*self.members, *([self.base] if self.base else []))

    @property
    def donor(self) -> Checkpoint:
        """Whose dtypes and order the output follows: the base, or the first member."""
        return self.base or self.members[0]

    @cached_property
    def numel(self) -> int:
        """Columns of X."""
        return sum(tensor.numel for tensor in self.tensors)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The members' names: their paths without what all of them share."""
        return short_names([str(member) for member in self.members])

    def __len__(self) -> int:
        return len(self.members)


def short_names(paths: Sequence[str]) -> tuple[str, ...]:
    """Paths without their common folders; a path given twice is numbered."""
    parts = [Path(path).parts for path in paths]
    shared = 0
    shortest = min(map(len, parts))  # of each at least the last part stays
    while shared < shortest - 1 and len({part[shared] for part in parts}) == 1:
        shared += 1
    names, seen = [], {}
    for part in parts:
        name = "/".join(part[shared:]) or "."
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(names)


def open_zoo(
    members: str | Path | Checkpoint | Iterable[str | Path | Checkpoint],
    *,
    base: str | Path | Checkpoint | None = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
) -> Zoo:
    """Open checkpoints of one architecture as the rows of a matrix. Reads headers only.

    ``members``: a glob (``"runs/*"``), a path, or a list of paths, globs, Hub ids, checkpoints and
    URLs (``hf://owner/model``, ``s3://bucket/runs/*``: see :func:`open_checkpoint`);
    the same model may be given twice, and counts twice. A glob takes the folders and weight files
    that hold a checkpoint, in natural order (``run-2`` before ``run-10``), without the base. A Hub
    id is fetched by ``huggingface_hub`` where that is installed. ``base``: what the members were
    tuned from. ``include`` / ``exclude``: patterns of tensor names (``"*.bias"``); excluded tensors
    take no part, and are named in ``left_out``.

    LoRA adapters are members too: with a base, ``base+adapter``; without one, what each adds to its
    model, and a mix of them is an adapter.

    A name that some checkpoints store once for two (tied tensors) is counted once. Dtypes may
    differ between checkpoints; names and shapes may not: MisalignedZooError names the tensor.
    Raises CheckpointError for what cannot be opened.
    """
    from wspace.derived.adapters import alone  # numpy: not for --help
    from wspace.derived.models import open_model

    opened_base = base if base is None or isinstance(base, Checkpoint) else open_model(base)
    chosen = [members] if isinstance(members, str | Path | Checkpoint) else list(members)
    opened = [checkpoint for item in chosen for checkpoint in _expand(item, opened_base)]
    if not opened:
        raise CheckpointError("no models: give at least one checkpoint")
    include = [include] if isinstance(include, str) else list(include)
    exclude = [exclude] if isinstance(exclude, str) else list(exclude)
    models = tuple([item for item in opened if isinstance(item, Checkpoint)])
    adapters = tuple([item for item in opened if not isinstance(item, Checkpoint)])
    if not adapters:
        return _align(models, opened_base, include, exclude)
    if models:
        raise MisalignedZooError(
            f"{adapters[0]} is a LoRA adapter and {models[0]} is not: give adapters alone, or with "
            "the base that they belong to"
        )
    zoo = _align(alone(adapters), None, include, exclude)
    why = "a whole tensor, not an update"
    left_out = zoo.left_out | {name: why for adapter in adapters for name in adapter.replaced}
    return replace(zoo, left_out=left_out, adapters=adapters)


def _expand(
    item: str | Path | Checkpoint, base: Checkpoint | None
) -> Sequence[Checkpoint | Adapter]:
    from wspace.derived.models import open_member

    if isinstance(item, Checkpoint):
        return [item]
    if not glob.has_magic(str(item)) or (not is_remote(item) and Path(item).exists()):
        return [open_member(item, base)]
    found = matching(str(item)) if is_remote(item) else map(Path, glob.glob(str(item)))
    paths = sorted((path for path in found if _holds_weights(path)), key=_natural)
    if base is not None:
        paths = [path for path in paths if _place(path) != _place(base.path)]
    if not paths:
        raise CheckpointError(f"{item}: matches no checkpoint")
    return [open_member(path, base) for path in paths]


def _place(path: Location) -> Location:
    return real_path(path) if isinstance(path, Path) else path


def _natural(path: Location) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(int(part) if part.isdecimal() else -1, part) for part in parts]


def _holds_weights(path: Location) -> bool:
    suffixes = (".safetensors", ".bin", ".pt", ".pth")
    if path.is_dir():
        return any(file.suffix in suffixes for file in path.iterdir())
    return path.suffix in suffixes


def _align(
    members: tuple[Checkpoint, ...],
    base: Checkpoint | None,
    include: list[str],
    exclude: list[str],
) -> Zoo:
    checkpoints = (*members, *([base] if base else []))
    donor = base or members[0]
    names = list(donor.tensors)
    known = set(names)
    for checkpoint in checkpoints:  # names that only others have; all must have them
        names += [name for name in checkpoint.tensors if name not in known]
        known.update(checkpoint.tensors)
    left_out = {}
    for name in names:
        if include and not _matches(name, include):
            left_out[name] = "not included by " + " ".join(include)
        elif _matches(name, exclude):
            left_out[name] = "excluded by " + " ".join(exclude)
    for pattern in [*include, *exclude]:
        if not any(_matches(name, [pattern]) for name in names):
            raise MisalignedZooError(
                f"pattern {pattern!r} matches no tensor; the first of {len(names)} names is "
                f"{next(iter(names), None)!r}"
            )
    aligned = [_across(name, checkpoints, donor) for name in names if name not in left_out]
    kinds = [{dtype in KERNEL_NAMES for dtype in tensor.dtypes} for tensor in aligned]
    for tensor in aligned:
        # floats of all types go together, others must be of one type
        alike = ["float" if dtype in KERNEL_NAMES else dtype for dtype in tensor.dtypes]
        if len(set(alike)) > 1:
            other = next(k for k, dtype in enumerate(alike) if dtype != alike[0])
            raise MisalignedZooError(
                f"tensor {tensor.name!r} is {tensor.dtypes[0]} in {checkpoints[0].path} and "
                f"{tensor.dtypes[other]} in {checkpoints[other].path}; leave it out with "
                f"--exclude '{tensor.name}'"
            )
    # one kind of chunk for each combination of dtypes, in file order inside it
    mixed = [tensor for tensor, kind in zip(aligned, kinds, strict=True) if kind == {True}]
    first = {tensor.group: k for k, tensor in reversed(list(enumerate(mixed)))}
    mixed.sort(key=lambda tensor: first[tensor.group])
    if not mixed:
        raise MisalignedZooError("no floating-point tensor is left to work on")
    copied = [tensor for tensor, kind in zip(aligned, kinds, strict=True) if kind == {False}]
    return Zoo(members, base, tuple(mixed), tuple(copied), left_out)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _across(name: str, checkpoints: Sequence[Checkpoint], donor: Checkpoint) -> ZooTensor:
    stored = []
    for checkpoint in checkpoints:
        tensor = checkpoint.find(name)
        if tensor is None:
            owner = next(other for other in checkpoints if other.find(name))
            raise MisalignedZooError(
                f"{checkpoint.path} has no tensor {name!r}, which {owner.path} has; leave it out "
                f"with --exclude '{name}'"
            )
        stored.append(tensor)
    reference = donor.find(name) or stored[0]
    for checkpoint, tensor in zip(checkpoints, stored, strict=True):
        if tensor.record.shape != reference.record.shape:
            raise MisalignedZooError(
                f"tensor {name!r} has shape {list(tensor.record.shape)} in {checkpoint.path} and "
                f"{list(reference.record.shape)} in {donor.path}; leave it out with "
                f"--exclude '{name}'"
            )
    return ZooTensor(name, reference.record.shape, reference.record.numel, tuple(stored))
