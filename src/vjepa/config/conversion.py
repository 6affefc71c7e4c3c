"""Plain values -> typed config, and back. Strict: everything is checked, nothing is guessed."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from vjepa.config import schema
from vjepa.config.yaml_text import OverrideText, write_yaml
from vjepa.errors import UserError

Config = TypeVar("Config")
_LONGEST_VALUE = 80


def from_dict(cls: type[Config], mapping: Mapping[str, object], source: str = "config") -> Config:
    """Build a config dataclass from plain values.

    Fields that `mapping` leaves out keep their default; a nested mapping changes only the fields
    that it names.

    Args:
        cls: A frozen config dataclass.
        mapping: Plain values as YAML gives them; tuples, paths and ready config objects are
            accepted too.
        source: What to call the mapping in an error, usually a file.

    Raises:
        UserError: Unknown field, wrong type, bad choice or refused value, on one line with
            source, dotted field, value and, for a name, the nearest valid one.
    """
    return _Converter(cls, lambda _path: source).build(cls, mapping, "", None)


def from_sources(
    cls: type[Config], mapping: Mapping[str, object], source_of: Callable[[str], str]
) -> Config:
    """As :func:`from_dict`, with a function that tells which source set a dotted field."""
    return _Converter(cls, source_of).build(cls, mapping, "", None)


def to_dict(config: object) -> dict[str, typing.Any]:
    """Plain values (dict, list, str, int, float, bool, None) of a config; loads back equal."""
    if not dataclasses.is_dataclass(config):
        raise TypeError(f"a config dataclass was expected, not {type(config).__name__}")
    return {
        field.name: plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.init
    }


def plain(value: object) -> object:
    """One config value as YAML and JSON know it."""
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def dump_yaml(config: object) -> str:
    """The config as YAML text, every field written out; loads back equal."""
    return write_yaml(to_dict(config))


def diff(a: object, b: object) -> list[str]:
    """Settings in which two configs differ, as ``optim.peak_lr: 0.001 -> 0.002``."""
    left, right = dict(_leaves(to_dict(a), "")), dict(_leaves(to_dict(b), ""))
    names = [*left, *(name for name in right if name not in left)]
    absent = "(absent)"
    return [
        f"{name}: {left.get(name, absent)} -> {right.get(name, absent)}"
        for name in names
        if name not in left or name not in right or left[name] != right[name]
    ]


def _leaves(value: object, path: str) -> typing.Iterator[tuple[str, object]]:
    """Dotted names and values below a plain value; lists of plain values are one leaf."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}.{index}")
    else:
        yield path, value


def show(value: object) -> str:
    """A value for an error message: short, on one line, as the user wrote it."""
    text = value.text if isinstance(value, OverrideText) else repr(plain(value))
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


class _Converter:
    """Converts one tree of plain values; knows the root type and where each value came from."""

    def __init__(self, root: type, source_of: Callable[[str], str]) -> None:
        self._root = root
        self._source_of = source_of

    def build(self, cls: type[Config], mapping: object, path: str, base: Config | None) -> Config:
        """An instance of `cls`: the values of `base` or the defaults, changed by `mapping`."""
        if isinstance(mapping, OverrideText):
            mapping = mapping.parsed
        if isinstance(mapping, cls):
            return mapping
        if not isinstance(mapping, Mapping):
            raise self._wrong(path, mapping, f"a group of settings ({_names(cls)})")
        hints = schema.field_types(cls)
        for name in mapping:
            if name not in hints:
                raise self._unknown(cls, path, str(name), mapping[name])
        values: dict[str, object] = {}
        for name, hint in hints.items():
            below = f"{path}.{name}" if path else name
            inherited = schema.default_of(cls, name) if base is None else getattr(base, name)
            if name in mapping:
                values[name] = self.convert(mapping[name], hint, below, inherited)
            elif inherited is not schema.REQUIRED:
                values[name] = inherited
            else:
                values[name] = self._fill_required(hint, below)
        try:
            return cls(**values)
        except (ValueError, UserError) as error:
            raise self._refused(cls, path, values, str(error)) from error

    def _fill_required(self, hint: object, path: str) -> object:
        """A nested config without a default is built from its own defaults, if it has them all."""
        if schema.is_config(hint):
            return self.build(typing.cast("type", hint), {}, path, None)
        raise UserError(
            f"{path}: missing; it has no default, so set it in a --config file or with"
            f" --{path} ({schema.describe_type(hint)})"
        )

    def convert(self, value: object, hint: object, path: str, inherited: object) -> object:
        """One value in the type of its field."""
        alternatives = schema.arms(hint)
        if len(alternatives) == 1:
            return self._convert_one(value, hint, path, inherited)
        parsed = value.parsed if isinstance(value, OverrideText) else value
        if parsed is None and type(None) in alternatives:
            return None
        alternatives = tuple(arm for arm in alternatives if arm is not type(None))
        if len(alternatives) == 1:
            return self._convert_one(value, alternatives[0], path, inherited)
        # A text from the command line fits every text type: those come last.
        for arm in sorted(alternatives, key=lambda arm: arm in (str, Path)):
            try:
                return self._convert_one(value, arm, path, inherited)
            except UserError:
                continue
        raise self._wrong(path, value, schema.describe_type(hint))

    def _convert_one(self, value: object, hint: object, path: str, inherited: object) -> object:
        origin = typing.get_origin(hint)
        if schema.is_config(hint):
            cls = typing.cast("type", hint)
            return self.build(cls, value, path, inherited if isinstance(inherited, cls) else None)
        if origin is tuple:
            return self._convert_tuple(value, hint, path)
        if origin is typing.Literal:
            return self._convert_choice(value, hint, path)
        if hint in (str, Path) and isinstance(value, OverrideText):
            value = value.parsed if isinstance(value.parsed, str) else value.text
        parsed = value.parsed if isinstance(value, OverrideText) else value
        if hint is float and isinstance(parsed, (int, float)) and not isinstance(parsed, bool):
            if not math.isfinite(parsed):
                raise self._wrong(path, value, "a finite number")
            return float(parsed)
        if hint is Path and isinstance(parsed, (str, Path)) and str(parsed):
            return Path(parsed).expanduser()
        if hint in (bool, int, str) and type(parsed) is hint:
            return parsed
        raise self._wrong(path, value, schema.describe_type(hint))

    def _convert_tuple(self, value: object, hint: object, path: str) -> tuple[object, ...]:
        items = value.parsed if isinstance(value, OverrideText) else value
        if not isinstance(items, (list, tuple)):
            raise self._wrong(path, value, schema.describe_type(hint))
        arguments = typing.get_args(hint)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            arguments = (arguments[0],) * len(items)
        if len(items) != len(arguments):
            raise self._wrong(path, value, schema.describe_type(hint))
        return tuple(
            self.convert(item, argument, f"{path}.{index}", None)
            for index, (item, argument) in enumerate(zip(items, arguments, strict=True))
        )

    def _convert_choice(self, value: object, hint: object, path: str) -> object:
        choices = typing.get_args(hint)
        parsed = value.parsed if isinstance(value, OverrideText) else value
        text = value.text if isinstance(value, OverrideText) else None
        for choice in choices:
            if (type(parsed) is type(choice) and parsed == choice) or text == choice:
                return choice
        near = schema.nearest(str(parsed), [str(choice) for choice in choices])
        hint_text = f"; did you mean {near}?" if near else ""
        raise self._wrong(path, value, f"{schema.describe_type(hint)}{hint_text}")

    def _wrong(self, path: str, value: object, expected: str) -> UserError:
        where = f"{self._source_of(path)}: {path}" if path else self._source_of(path)
        return UserError(f"{where}: {show(value)} is not valid here: expected {expected}")

    def _unknown(self, cls: type, path: str, name: str, value: object) -> UserError:
        full = f"{path}.{name}" if path else name
        near = self._suggest(cls, path, name)
        remedy = f"did you mean {near}?" if near else f"known here: {_names(cls)}"
        return UserError(
            f"{self._source_of(full)}: {full}: unknown setting (value {show(value)}); {remedy}"
        )

    def _suggest(self, cls: type, path: str, name: str) -> str | None:
        """The nearest valid dotted name: a sibling first, then the same leaf anywhere."""
        sibling = schema.nearest(name, schema.field_types(cls))
        if sibling is not None:
            return f"{path}.{sibling}" if path else sibling
        everywhere = [setting.path for setting in schema.settings(self._root)]
        leaves = {dotted.rpartition(".")[2]: dotted for dotted in reversed(everywhere)}
        leaf = schema.nearest(name, leaves)
        return leaves[leaf] if leaf else None

    def _refused(
        self, cls: type, path: str, values: Mapping[str, object], message: str
    ) -> UserError:
        """The error of a ``__post_init__``: its message begins with the name of a field.

        The name may be dotted where a config refuses a combination of what it is made of.
        """
        message = " ".join(message.split())
        name, _, rest = message.partition(" ")
        colon = ":" if name.endswith(":") else ""
        first, *inner = re.sub(r"\[(\d+)\]", r".\1", name.rstrip(":")).split(".")
        if first not in schema.field_types(cls):
            where = f"{path}: " if path else ""
            return UserError(f"{self._source_of(path)}: {where}{message}")
        value = values[first]
        for part in inner:
            items = isinstance(value, tuple) and part.isdigit()
            value = value[int(part)] if items else getattr(value, part, None)
        full = ".".join(filter(None, [path, first, *inner]))
        got = "" if show(value) in rest else f" (value {show(value)})"
        return UserError(f"{self._source_of(full)}: {full}{colon} {rest}{got}")


def _names(cls: type) -> str:
    return ", ".join(schema.field_types(cls))
