"""One vocabulary for models that have several: their embeddings' rows put in its order.

The output has the tokens of one tokenizer, or of all. Each model's embeddings and head are read as
if they had one row for each of them: its own; or, for a token that it lacks, the row that the
recipe names, else that of the only model that has it, else the base's, else the mean over those
that have it, and zeros if none does. Then the models are merged as ever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wspace.derived.operands import Operand
from wspace.derived.rows import FILL, MEAN, ZERO, GatheredRows, Rows
from wspace.errors import WspaceError
from wspace.recipes.configs import read_config
from wspace.recipes.problems import Problems
from wspace.recipes.references import ModelReference, Models
from wspace.recipes.tokenizers import OLDER, Tokenizer, read_tokenizer, with_tokens
from wspace.recipes.tokens import TokenizerKey
from wspace.storage.checkpoints import Checkpoint, StoredTensor
from wspace.storage.headers import KERNEL_NAMES

_NAMES = re.compile(
    r"emb|wte|shared|lm_head|predictions|final_logits_bias|"
    r"(^|\.)(output|head|decoder|proj_out)\.(weight|bias)$"
)
_OTHERS = re.compile(
    r"norm|(^|[._])ln|pos|wpe|type|segment|rotary|patch|vision|audio|image|relative|mapping", re.I
)
_HEAD = re.compile(r"(lm_head|embed_out|decoder|output|head|proj_out)\.weight$")


@dataclass(frozen=True)
class Vocabulary:
    """The output's tokens, and the models as if each had them."""

    models: dict[ModelReference, Checkpoint]
    ids: dict[str, int]
    n_rows: int
    owner: Checkpoint  # whose tokenizer files the output has
    files: dict[str, str | None]  # of those, the ones that differ; None: not there
    untied: bool  # whether a model has a head now that it had only as its embeddings


class _Model:
    """A model with its tokenizer."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
        self.checkpoint, self.tokenizer = checkpoint, tokenizer
        self.n_rows = _rows_of(checkpoint, tokenizer)
        self.names = [
            name
            for name, tensor in checkpoint.tensors.items()
            if self.n_rows and _axis(name, tensor, self.n_rows) is not None
        ]
        self.tied = (read_config(checkpoint.folder) or {}).get("tie_word_embeddings") is not False
        self.ids = {token: k for token, k in tokenizer.ids.items() if 0 <= k < self.n_rows}

    def operand(self, name: str) -> Operand | None:
        """The tensor; of a head that is not stored, the embeddings that it is."""
        found = self.checkpoint.find(name)
        if found is None and _HEAD.search(name) and self.tied:
            embedding = next((n for n in self.names if not _HEAD.search(n)), None)
            found = self.checkpoint.find(embedding) if embedding else None
        return None if found is None else Operand.of(self.checkpoint, found)


def _axis(name: str, tensor: StoredTensor, n_rows: int) -> int | None:
    """Which axis of a tensor counts tokens."""
    shape = tensor.record.shape
    if tensor.record.dtype not in KERNEL_NAMES or not _NAMES.search(name) or _OTHERS.search(name):
        return None
    if len(shape) == 1 and not name.endswith("bias"):
        return None
    if shape[:1] == (n_rows,):
        return 0
    return 1 if shape == (1, n_rows) and name.endswith("bias") else None


def _rows_of(checkpoint: Checkpoint, tokenizer: Tokenizer) -> int:
    """How many rows a model's embeddings have: as its config says, or the tensors themselves."""
    config = read_config(checkpoint.folder) or {}
    text = config.get("text_config")
    said = [part.get("vocab_size") for part in (config, text) if isinstance(part, dict)]
    sizes = [
        tensor.record.shape[0]
        for name, tensor in checkpoint.tensors.items()
        if len(tensor.record.shape) == 2 and _NAMES.search(name) and not _OTHERS.search(name)
    ]
    fitting = [size for size in said if size in sizes]
    least = len(tokenizer.ids) // 2
    return (fitting or [size for size in sizes if size >= least] or [0])[0]


def realign(
    key: TokenizerKey,
    models: Mapping[ModelReference, Checkpoint],
    opener: Models,
    base: ModelReference | None,
    problems: Problems,
) -> Vocabulary | None:
    """Read every tokenizer and plan every row; None, with the problems told, if it cannot be."""
    read: dict[ModelReference, _Model] = {}
    named = [(reference, key.line) for reference in models] + key.models
    for reference, line in named:
        if reference in read:
            continue
        try:
            checkpoint = models.get(reference) or opener.open(reference)
            read[reference] = _Model(checkpoint, read_tokenizer(checkpoint.folder))
        except WspaceError as error:
            problems.error(line, str(error))
            continue
        if not read[reference].n_rows:
            problems.error(line, f"{reference}: no tensor is known as its embeddings")
    if len(read) < len({reference for reference, _ in named}) or problems.errors:
        return None
    first = base or next(iter(models))
    owner = key.source if isinstance(key.source, ModelReference) else first
    others = [read[r] for r in models if r != owner] if key.source == "union" else []
    ids = _tokens_of(read[owner], others)
    kept = len(ids)
    for token in key.tokens:
        if token not in ids:
            ids[token] = max(ids.values(), default=-1) + 1
    n_tokens = max(ids.values(), default=-1) + 1
    n_rows = -(-n_tokens // key.multiple) * key.multiple
    planner = _Planner(key, read, len(models), base, ids, n_rows, problems)
    aligned = {reference: planner.aligned(reference) for reference in models}
    if problems.errors:
        return None
    files: dict[str, str | None] = {}
    if ids != read[owner].tokenizer.ids:
        donors = [read[r].tokenizer for r in read if r != owner]
        files = dict.fromkeys(OLDER) | with_tokens(read[owner].tokenizer, ids, donors)
    added = len(ids) - len(read[owner].ids)
    problems.note(
        f"vocabulary: {len(ids)} tokens in {n_rows} rows: {len(read[owner].ids)} of {owner}, "
        f"{added} more" + (f", {len(ids) - kept} named in the recipe" if len(ids) > kept else "")
    )
    untied = any(
        set(aligned[r].tensors) - set(checkpoint.tensors) for r, checkpoint in models.items()
    )
    return Vocabulary(aligned, ids, n_rows, read[owner].checkpoint, files, untied)


def _tokens_of(owner: _Model, others: Sequence[_Model]) -> dict[str, int]:
    """The owner's tokens with their ids, then those that only others have, added ones last."""
    ids = dict(sorted(owner.ids.items(), key=lambda item: item[1]))
    added: dict[str, None] = {}
    fresh: dict[str, None] = {}
    for other in others:
        for token in sorted(other.ids, key=other.ids.__getitem__):
            if token not in ids:
                (added if token in other.tokenizer.added else fresh).setdefault(token)
    end = max(ids.values(), default=-1) + 1
    for token in (*(t for t in fresh if t not in added), *added):
        ids[token], end = end, end + 1
    return ids


class _Planner:
    """Rows of the models' embeddings, as index vectors."""

    def __init__(
        self,
        key: TokenizerKey,
        models: Mapping[ModelReference, _Model],
        n_merged: int,  # of the models, the first; the others only give rows
        base: ModelReference | None,
        ids: Mapping[str, int],
        n_rows: int,
        problems: Problems,
    ) -> None:
        self._models, self._problems = models, problems
        self._references = list(models)
        self._shared: dict[tuple[ModelReference, tuple[bool, ...]], Rows] = {}
        self._n_rows = n_rows
        merged = list(models.values())[:n_merged]
        self._heads = {name: None for m in merged for name in m.names if _HEAD.search(name)}
        self._has = np.full((len(models), n_rows), -1, np.int64)  # each model's own rows
        for k, model in enumerate(merged):
            pairs = [(ids[token], row) for token, row in model.ids.items() if token in ids]
            if pairs:
                to, row = np.array(pairs).T
                self._has[k, to] = row
        self._real = np.zeros(n_rows, bool)
        self._real[list(ids.values())] = True
        self._base = self._references.index(base) if base else None
        self._forced = np.zeros(n_rows, bool)
        self._given: dict[int, tuple[int, int]] = {}  # token -> model, row; or ZERO
        for token, source in key.tokens.items():
            at = ids[token]
            self._forced[at] = source.force
            if source.kind == "zero":
                self._given[at] = (ZERO, 0)
            elif source.model:
                model = models[source.model]
                row = source.token_id
                if row is None:
                    row = model.ids.get(source.token or token)
                if row is None or row >= model.n_rows:
                    wanted = source.token or token if source.token_id is None else source.token_id
                    problems.error(
                        source.line,
                        f"token {token!r}: {source.model} has no row for {wanted!r}; its "
                        f"vocabulary has {model.n_rows}",
                    )
                    continue
                self._given[at] = (self._references.index(source.model), row)

    def aligned(self, reference: ModelReference) -> Checkpoint:
        """The model as if its embeddings had the output's rows."""
        model = self._models[reference]
        own = self._references.index(reference)
        tensors = dict(model.checkpoint.tensors)
        files = model.checkpoint.files
        heads = [name for name in self._heads if name not in tensors and model.operand(name)]
        for name in (*model.names, *heads):
            operands = [m.operand(name) for m in self._models.values()]
            mine = operands[own]
            assert mine is not None
            stored = mine.tensor
            self._check(name, operands, own)
            rows = self._rows(reference, tuple(bool(operand) for operand in operands))
            shape = tuple(
                self._n_rows if axis == _axis(name, stored, model.n_rows) else size
                for axis, size in enumerate(stored.record.shape)
            )
            if rows.identity(own) and self._n_rows <= model.n_rows:
                record = stored.record
                nbytes = record.nbytes // max(1, model.n_rows) * self._n_rows
                record = record._replace(shape=shape, nbytes=nbytes)
                tensors[name] = stored._replace(record=record)
            elif not self._problems.errors:
                made = GatheredRows(rows, operands, own, shape)
                tensors[name] = StoredTensor(made.record, stored.file, None, made)
        return replace(model.checkpoint, files=files, tensors=tensors, title=str(reference))

    def _check(self, name: str, operands: Sequence[Operand | None], own: int) -> None:
        """Rows of one length: one model's can stand in for another's."""
        mine = operands[own]
        assert mine is not None
        for k, operand in enumerate(operands):
            if operand and operand.shape[1:] != mine.shape[1:] and len(mine.shape) > 1:
                if 1 in (mine.shape[0], operand.shape[0]):
                    continue
                self._problems.error(
                    None,
                    f"tensor {name!r} has rows of {list(mine.shape[1:])} in "
                    f"{self._references[own]} and {list(operand.shape[1:])} in "
                    f"{self._references[k]}: they cannot be merged",
                )

    def _rows(self, reference: ModelReference, present: tuple[bool, ...]) -> Rows:
        """Where each row comes from; ``present``: which models have the tensor at all."""
        key = (reference, present)
        if key not in self._shared:
            own = self._references.index(reference)
            has = np.where(np.array(present)[:, None], self._has, -1)
            counts = (has >= 0).sum(axis=0)
            source = np.full(self._n_rows, MEAN)
            source[counts == 0] = ZERO
            only = counts == 1
            source[only] = (has >= 0).argmax(axis=0)[only]
            if self._base is not None:
                source[(counts > 1) & (has[self._base] >= 0)] = self._base
            given = {at: g for at, g in self._given.items() if g[0] == ZERO or present[g[0]]}
            for at, (model, _) in given.items():
                source[at] = model
            mine = (has[own] >= 0) & ~self._forced
            source[mine] = own
            source[~self._real] = FILL
            row = np.where(source >= 0, has[np.maximum(source, 0), np.arange(self._n_rows)], 0)
            for at, (_, its_row) in given.items():
                if not mine[at]:
                    row[at] = its_row
            self._shared[key] = Rows(source, row, has)
        return self._shared[key]
