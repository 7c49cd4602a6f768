"""What is worth a warning where models have several vocabularies."""

from __future__ import annotations

from collections.abc import Mapping

from wspace.errors import WspaceError
from wspace.recipes.problems import Problems
from wspace.recipes.references import ModelReference
from wspace.recipes.tokenizers import FILE, read_json, read_tokenizer
from wspace.recipes.vocabulary import Vocabulary
from wspace.storage.checkpoints import Checkpoint


def warn_of_tokenizers(models: Mapping[ModelReference, Checkpoint], problems: Problems) -> None:
    """Warn of models whose tokens differ, where nothing was asked for."""
    references = list(models)
    texts: dict[bytes, ModelReference] = {}
    for reference in references:
        file = models[reference].folder / FILE
        if file.is_file():
            texts.setdefault(file.read_bytes(), reference)
    try:
        found = [(r, read_tokenizer(models[r].folder).ids) for r in texts.values()]
    except (WspaceError, ValueError, OSError):
        return
    for reference, ids in found[1:]:
        first, others = found[0]
        n = sum(others.get(token) != number for token, number in ids.items())
        n += sum(token not in ids for token in others)
        if n:
            problems.warn(
                None,
                f"vocabularies differ: {n} tokens of {first} and {reference} are not the same, and "
                "rows of embeddings are merged as they are; add tokenizer_source: union (or base) "
                "to bring them into one order",
            )


def check_special(
    donor: Checkpoint, vocabulary: Vocabulary, reference: ModelReference, problems: Problems
) -> None:
    """Warn of ids in the configs (bos, eos, pad and the like) that name other tokens now."""
    try:
        before = read_tokenizer(donor.folder).ids
    except WspaceError:
        return
    tokens = {number: token for token, number in before.items()}
    now = {number: token for token, number in vocabulary.ids.items()}
    for file in ("config.json", "generation_config.json"):
        for name, value in read_json(donor.folder / file).items():
            if not name.endswith("_token_id"):
                continue
            for number in value if isinstance(value, list) else [value]:
                token = tokens.get(number) if type(number) is int else None
                if token is not None and now.get(number) != token:
                    place = vocabulary.ids.get(token)
                    then = "it has no id" if place is None else f"its id is {place}"
                    problems.warn(
                        None,
                        f"{file} of {reference}: {name} {number} was {token!r}; in the output that "
                        f"is {now.get(number)!r}, and {then}: set it yourself",
                    )
