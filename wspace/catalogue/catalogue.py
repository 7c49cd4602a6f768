"""A zoo's catalogue: made and kept up to date by one read of each model, asked without any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wspace.catalogue.facts import Facts, read_facts
from wspace.catalogue.finding import Found, find_models, found_at, size_of
from wspace.catalogue.likeness import (
    WITHIN,
    Duplicates,
    Likeness,
    comparable,
    duplicates,
    likeness,
)
from wspace.catalogue.slots import PARTS
from wspace.catalogue.store import Entry, Store
from wspace.derived.models import open_model
from wspace.errors import CheckpointError, MisalignedZooError, NonFiniteError
from wspace.sizes import parse_bytes
from wspace.zoo import open_zoo

if TYPE_CHECKING:
    import numpy as np
    import torch

    from wspace.stream import Progress

FOLDER = ".wspace"
"""Of the store, in the zoo's folder."""


class Changes(NamedTuple):
    """What :func:`index_zoo` found, by path."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()  # LoRA factors, which are no models and were left out
    nbytes: int = 0  # that were read


def index_zoo(
    zoo: str | Path,
    *,
    store: str | Path | None = None,
    memory: int | str = "1GiB",
    progress: Progress | None = None,
) -> Catalogue:
    """Bring the catalogue of all models below a folder up to date; make it if there is none.

    A model is a folder with a checkpoint or a safetensors file by itself, however deep. New and
    changed ones (by the sizes and times of their files) are read, each byte once, and committed one
    by one: what is interrupted goes on with the next call. Of each are kept a fingerprint of its
    header, norm and checksum (xxh3_128) of each tensor, and sketches, 65,536 float32 each, of all
    tensors and of those in numbered layers, which models with other heads have in common. What
    vanished is forgotten. Models that cannot be read, or hold NaN or Inf, are in ``problems``.

    ``store``: the catalogue's folder, ``ZOO/.wspace`` if not given. ``memory`` bounds what is held.
    ``progress(done, total)`` counts bytes. Runs on the CPU. Raises CheckpointError if there is no
    model, OutputError if the store cannot be written or another process is writing it.
    """
    root, folder = _folders(zoo, store)
    budget = parse_bytes(memory)
    found = {model.path: model for model in find_models(root)}
    adapters = [path for path, model in found.items() if model.adapter]
    for path in adapters:
        del found[path]
    if not found:
        raise CheckpointError(f"{root}: no model in this folder or below it")
    with Store(folder, writing=True) as opened:
        known = opened.entries()
        stale = [
            model
            for path, model in found.items()
            if path not in known or known[path].files != model.files
        ]
        removed = [path for path in known if path not in found]
        opened.remove(removed)
        total, done = sum(map(size_of, stale)), 0
        for model in stale:
            _read_into(opened, model, budget, _shifted(progress, done, total))
            done += size_of(model)
    changed = [model.path for model in stale if model.path in known]
    added = [model.path for model in stale if model.path not in known]
    changes = Changes(*map(tuple, (added, changed, removed, adapters)), nbytes=total)
    return Catalogue(root, folder, changes)


def open_catalogue(zoo: str | Path, *, store: str | Path | None = None) -> Catalogue:
    """The catalogue as :func:`index_zoo` left it. Raises CheckpointError if there is none."""
    return Catalogue(*_folders(zoo, store))


def _folders(zoo: str | Path, store: str | Path | None) -> tuple[Path, Path]:
    root = Path(zoo)
    if not root.is_dir():
        raise CheckpointError(f"{root}: no such folder")
    return root, root / FOLDER if store is None else Path(store)


def _read_into(store: Store, model: Found, budget: int, progress: Progress | None) -> None:
    try:
        facts = read_facts(open_model(model.place), budget=budget, progress=progress)
    except NonFiniteError as error:
        store.put_problem(model.path, model.files, str(error).partition(";")[0])
    except (CheckpointError, MisalignedZooError) as error:
        store.put_problem(model.path, model.files, str(error))
    else:
        store.put(model.path, model.files, facts)


def _shifted(progress: Progress | None, start: int, total: int) -> Progress | None:
    """The progress of a part, as one of the whole."""
    return progress and (lambda done, _: progress(start + done, total))


@dataclass(frozen=True)
class Asked:
    """A model as it is compared: of the catalogue, or read for it."""

    entry: Entry
    place: str | Path
    sketches: tuple[np.ndarray, np.ndarray] | None  # if they are not in the store


class Catalogue:
    """What is known of the models of a zoo. Reads no model but one that it does not know."""

    def __init__(self, root: Path, folder: Path, changes: Changes | None = None) -> None:
        self.root, self.folder = root, folder
        self.changes = changes or Changes()
        with Store(folder) as store:
            entries = store.entries()
        self.models = {path: entry for path, entry in entries.items() if entry.problem is None}
        self.problems = {path: entry.problem for path, entry in entries.items() if entry.problem}
        self._files = {path: entry.files for path, entry in entries.items()}

    def __len__(self) -> int:
        return len(self.models)

    def stale(self) -> list[str]:
        """Models that are new, changed or gone since: what :func:`index_zoo` has to do."""
        now = {model.path: model.files for model in find_models(self.root) if not model.adapter}
        paths = sorted(now.keys() | self._files.keys())
        return [path for path in paths if now.get(path) != self._files.get(path)]

    def like(
        self, model: str | Path, *, n: int = 10, within: float = WITHIN,
        memory: int | str = "1GiB",
    ) -> Likeness:  # fmt: skip
        """The nearest ``n`` models to one, and which of them it was made from, by their sketches.

        ``model``: a path, in the zoo or not; one that the catalogue does not know is read, once.
        Compared are the models with the same floating-point tensors, by name and shape; where only
        embeddings or heads differ between some of them, all are compared in their numbered layers.

        - ``identical``: all tensors are the same, bit for bit
        - ``near-duplicate``: not further than ``within`` of the model's norm, or than rounding to
          the coarser of two types moves it
        - ``parent``: of a mix ``sum_i w_i m_i`` with weights that sum to 1, if at most 16 models
          explain 0.95 of the squared distance to the nearest of them; or else the nearest of those
          that are nearer to other models than this one is, as a base is to all that came from it
        - ``child``: the other way round; or a mix that the model is part of
        - ``sibling``: the nearest, if there is no parent

        A model further than half the norm is none of these. Cosines are of differences from the
        nearest parent, or without one from the nearest.

        Distances are estimates with a standard deviation of 0.28 %; :meth:`gram` has exact ones.
        """
        asked = self._asked(model, memory)
        with Store(self.folder) as store:
            return likeness(
                asked.entry, list(self.models.values()), _Sketches(store, asked), n=n, within=within
            )

    def duplicates(self, *, within: float = WITHIN) -> list[Duplicates]:
        """Groups of models that are as near to the first of them as a near-duplicate is."""
        with Store(self.folder) as store:
            return duplicates(list(self.models.values()), store.sketches, within=within)

    def distances(
        self, model: str | Path, others: Sequence[str], *, memory: int | str = "1GiB",
        progress: Progress | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Exact distances of a model from others, and cosines, from one read of all of them.

        The tensors compared are those of :meth:`like`. Cosines are of differences from
        ``others[0]`` (0 for that one). Both float64 ``[n_others]``. Pairs that are much closer to
        each other than to ``others[0]`` are read once more, and measured directly.
        """
        from wspace.geometry import cosines, distances
        from wspace.grams import gram, refine

        asked = self._asked(model, memory)
        chosen = [self.models[path] for path in others]
        compared, _ = comparable(asked.entry, list(self.models.values()))
        layout = asked.entry.layout
        pairs = zip(layout.names, layout.compared[compared], strict=True)
        names = [name.replace("[", "[[]") for name, counts in pairs if counts]
        places = [asked.place, *[self.root / entry.path for entry in chosen[1:]]]
        zoo = open_zoo(
            [open_model(place) for place in places], base=open_model(self.root / chosen[0].path),
            include=names,
        )  # fmt: skip
        products = gram(zoo, per_tensor=False, memory=memory, progress=progress)
        apart = refine(distances(products), products, zoo, memory=memory)[0]
        angles = cosines(products)[0]
        apart[0], angles[0] = products.total[0, 0].sqrt(), 0.0  # from others[0]
        return apart, angles

    def _asked(self, model: str | Path, memory: int | str) -> Asked:
        place, root = Path(model), self.root
        found = None
        if place.absolute().is_relative_to(root.absolute()):
            found = found_at(place.absolute(), root.absolute())
        known = self.models.get(found.path) if found else None
        if found and known and known.files == found.files:
            return Asked(known, model, None)
        facts = read_facts(open_model(model), budget=parse_bytes(memory))
        entry = _entry(found.path if found else str(model), facts)
        return Asked(entry, model, (facts.whole, facts.layers))


def _entry(path: str, facts: Facts) -> Entry:
    """Of a model that is in no store."""
    return Entry(
        path, "", None, facts.layout, facts.content, facts.nbytes, facts.dtype,
        " ".join(facts.dtypes), facts.norms, facts.hashes, -1, "",
    )  # fmt: skip


class _Sketches:
    def __init__(self, store: Store, asked: Asked) -> None:
        self._store, self._asked = store, asked

    def __call__(self, entries: Sequence[Entry], part: str) -> list[np.ndarray]:
        own = self._asked.sketches
        if own is None:
            return self._store.sketches(entries, part)
        asked = self._asked.entry
        found = iter(self._store.sketches([e for e in entries if e is not asked], part))
        return [own[PARTS.index(part)] if e is asked else next(found) for e in entries]
