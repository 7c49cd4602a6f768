"""A catalogue of a zoo of any models: near-duplicates and parents among thousands, in a second."""

from wspace.catalogue.catalogue import Catalogue, Changes, index_zoo, open_catalogue
from wspace.catalogue.likeness import Duplicates, Likeness, Relative

__all__ = [
    "Catalogue",
    "Changes",
    "Duplicates",
    "Likeness",
    "Relative",
    "index_zoo",
    "open_catalogue",
]
