"""What a config dataclass says about itself: its settings, their types, defaults and meaning."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REQUIRED = object()
"""Stands for the default of a field that has none."""

_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    Path: "a path",
    types.NoneType: "null",
}


@dataclass(frozen=True)
class Setting:
    """One setting of a config, as the command line's help shows it."""

    path: str
    """Dotted name, for example ``optim.peak_lr``; ``masks.N.kind`` for the items of a list."""
    kind: str
    """Its type in words."""
    default: object
    """The default as plain value, or :data:`REQUIRED`."""
    meaning: str
    """The docstring that stands under the field, on one line."""


def _fields(cls: typing.Any) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(cls)


@cache
def field_types(cls: type) -> dict[str, object]:
    """Names and types of the fields of a config dataclass, in their order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in _fields(cls) if field.init}


def is_config(hint: object) -> bool:
    """Whether a type is a config dataclass."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def arms(hint: object) -> tuple[object, ...]:
    """The alternatives of a union, or the type alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def default_of(cls: type, name: str) -> object:
    """The default of a field: a value, a fresh product of its factory, or :data:`REQUIRED`."""
    field = next(field for field in _fields(cls) if field.name == name)
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED


def group_of(hint: object) -> type | None:
    """The config dataclass among the alternatives of a type, if there is one."""
    found = next((arm for arm in arms(hint) if is_config(arm)), None)
    return typing.cast("type | None", found)


def default_at(cls: type, path: Iterable[str]) -> object:
    """The default of a setting by its path, or :data:`REQUIRED` where there is none.

    A group without a default (or with the default null) stands for the defaults of its class.
    """
    node: object = cls
    for part in path:
        owner = node if isinstance(node, type) else type(node)
        if not is_config(owner) or part not in field_types(owner):
            return REQUIRED
        value = default_of(owner, part) if isinstance(node, type) else getattr(node, part)
        if value is REQUIRED or value is None:
            value = group_of(field_types(owner)[part]) or value
        node = value
    return node


def describe_type(hint: object) -> str:
    """A type in the words of a user: ``an integer or null``, ``one of vjepa, pixel``."""
    alternatives = arms(hint)
    if len(alternatives) > 1:
        return " or ".join(describe_type(arm) for arm in alternatives)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        choices = ", ".join(str(choice) for choice in arguments)
        return choices if len(arguments) == 1 else f"one of {choices}"
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        one = describe_type(arguments[0]).removeprefix("a ").removeprefix("an ")
        return "a list of groups" if is_config(arguments[0]) else f"a list of {one}s"
    if origin is tuple:
        return f"a list of {len(arguments)} values"
    if is_config(hint):
        return "a group of settings"
    name = _NAMES.get(typing.cast("type", hint))
    if name is None:
        raise TypeError(f"a config field cannot have the type {hint!r}")
    return name


@cache
def meanings(cls: type) -> dict[str, str]:
    """What each field of a config dataclass means, in one line each.

    The text is the docstring under the field or, where that is missing, the field's entry in the
    ``Attributes:`` section of the class docstring.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        found |= _attributes_section(inspect.getdoc(base) or "")
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, text in itertools.pairwise(statements):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[field.target.id] = _one_line(text.value.value)
    return found


def _attributes_section(docstring: str) -> dict[str, str]:
    """Entries of the ``Attributes:`` section of a Google docstring."""
    _, _, section = docstring.partition("\nAttributes:\n")
    entries = re.findall(
        r"^ {4}(\w+)(?: \([^)]*\))?:((?:.*)(?:\n {5,}.*)*)", section, flags=re.MULTILINE
    )
    return {name: _one_line(text) for name, text in entries}


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("``", "")


def settings(cls: type) -> Iterator[Setting]:
    """All settings of a config dataclass in their order, depth first."""
    yield from _settings_below(cls, cls, ())


def _settings_below(root: type, cls: type, path: tuple[str, ...]) -> Iterator[Setting]:
    for name, hint in field_types(cls).items():
        full = (*path, name)
        group = group_of(hint)
        items = next((_item_config(arm) for arm in arms(hint) if _item_config(arm)), None)
        if group is None or len(arms(hint)) > 1:
            default = default_at(root, full)
            if default is group and group is not None:
                default = default_of(cls, name)
            meaning = meanings(cls).get(name, "")
            yield Setting(".".join(full), describe_type(hint), default, meaning)
        if group is not None:
            yield from _settings_below(root, group, full)
        if items is not None:
            for setting in settings(items):
                path_in_list = ".".join((*full, "N", setting.path))
                yield dataclasses.replace(setting, path=path_in_list)


def _item_config(hint: object) -> type | None:
    """The config dataclass whose items a tuple type holds, if it does."""
    first = next(iter(typing.get_args(hint)), None) if typing.get_origin(hint) is tuple else None
    return typing.cast("type", first) if is_config(first) else None


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` most probably meant, or None.

    A slip of the fingers counts first, then a name that lacks a word: ``lr`` for ``peak_lr``.
    """
    lowered = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    if not close:
        words = set(name.lower().split("_"))
        close = sorted((text for text in lowered if words <= set(text.split("_"))), key=len)
    return lowered[close[0]] if close else None
