"""Plain values, as YAML gives them, into frozen dataclasses; what does not fit is named."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from wspace.errors import WspaceError

Kind = TypeVar("Kind")


class SettingsError(WspaceError):
    """A setting that is unknown, or whose value is of the wrong kind."""


def build(kind: type[Kind], value: Any, place: str) -> Kind:
    """A dataclass from a mapping, by its fields' types.

    ``place`` says where the value stands. Raises SettingsError for a key that is no field, with
    the nearest one that is, for a missing one, and for a value of another type.
    """
    if not isinstance(value, Mapping):
        raise SettingsError(f"{place}: expected a mapping of settings, got {value!r}")
    types_of = _types(kind)
    for key in value:
        if key not in types_of:
            raise SettingsError(f"{place}: unknown setting {key!r}{nearest(key, list(types_of))}")
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in value:
            raise SettingsError(f"{place}: the setting {field.name!r} is missing")
    return kind(**{key: _value(types_of[key], value[key], f"{place}: {key}") for key in value})


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of an error's line: the known name that was perhaps meant, or all of them."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


@functools.cache
def _types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _value(kind: Any, value: Any, place: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is types.UnionType:
        return _one_of(arguments, value, place)
    if origin is typing.Literal:
        if isinstance(value, bool):  # YAML 1.1 reads yes and no as that
            value = "yes" if value else "no"
        if value not in arguments:
            raise SettingsError(f"{place}: expected {' or '.join(arguments)}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SettingsError(f"{place}: expected a list, got {value!r}")
        return tuple(_value(arguments[0], item, place) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise SettingsError(f"{place}: expected a mapping, got {value!r}")
        return {str(key): _value(arguments[1], item, place) for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return build(kind, value, place)  # type: ignore[arg-type]
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 5e-5 as a text
        try:
            return float(value)
        except ValueError:
            pass
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise SettingsError(f"{place}: expected {_named(kind)}, got {value!r}")
    return kind(value)


def _one_of(kinds: Sequence[Any], value: Any, place: str) -> Any:
    if value is None:
        if type(None) in kinds:
            return None
        raise SettingsError(f"{place}: expected {_named(kinds[0])}, got null")
    rest = [kind for kind in kinds if kind is not type(None)]
    for kind in rest[:-1]:
        try:
            return _value(kind, value, place)
        except SettingsError:
            continue
    return _value(rest[-1], value, place)


def _named(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(kind, str(kind))
