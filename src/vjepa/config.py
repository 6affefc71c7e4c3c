"""The configuration mechanism: strict YAML -> typed frozen dataclasses, overrides, dump.

It knows no other room: a config dataclass stands beside the class that it builds, and the jobs
compose them. :func:`config_dataclass` makes one, of fields of type int, float, bool, str, Path,
Literal, ``X | None``, tuple, another config dataclass or a tuple of them. A range is part of the
type, ``Annotated[int, Field(ge=1)]`` with pydantic's ``Field``; a docstring under each field tells
its meaning; ``__post_init__`` refuses bad combinations with a ``ValueError`` whose message begins
with the field's name. With ``TEXT_MEANS = "path"`` a text for the whole group is that field.

Pydantic checks types and ranges. What users trip over is a wrong setting that is silently ignored,
so the messages decide, and those are made here: one line with the file that holds the mistake, the
dotted field, the value and the nearest valid name; the same for a file and for the command line.
Pydantic is imported where a config class is made, PyYAML where text is: no help waits for either.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vjepa.errors import UserError, nearest, suggested
from vjepa.paths import as_path

if typing.TYPE_CHECKING:
    from pydantic import ValidationError

Config = TypeVar("Config")

REQUIRED = object()
"""Stands for the default of a field that has none."""
RESOLVED_CONFIG_FILE = "config.yaml"
"""In the folder that a job writes: its whole config, as :func:`dump_yaml` writes it."""

_RECIPES = Path(__file__).with_name("configs")
_COMMAND_LINE = "command line"
_LONGEST_VALUE = 80
_STRICT: Any = {"strict": True, "allow_inf_nan": False, "extra": "forbid", "defer_build": True}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_TYPES: dict[object, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    Path: "a path",
    types.NoneType: "null",
}


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def config_dataclass(cls: type[Config]) -> type[Config]:
    """Make a frozen, keyword-only dataclass that refuses what its fields do not allow.

    Lists become tuples. A value of a wrong type or out of its range raises a ``ValueError`` of one
    line that begins with the field's name, as those of ``__post_init__`` do.
    """
    from pydantic import ValidationError
    from pydantic.dataclasses import dataclass

    made: Any = dataclass(frozen=True, kw_only=True, config=_STRICT)(cls)
    check = made.__init__

    @functools.wraps(check)
    def init(self: Any, **values: Any) -> None:
        values = {name: _without_lists(value) for name, value in values.items()}
        try:
            check(self, **values)
        except ValidationError as error:
            raise _refusal(made, values, error) from None
        finally:
            made.__init__ = init  # pydantic builds its check at first use, and sets its own then

    made.__init__ = init
    return made


def _without_lists(value: Any) -> Any:
    return tuple(map(_without_lists, value)) if isinstance(value, (list, tuple)) else value


def _refusal(cls: type, values: Mapping[str, Any], error: ValidationError) -> Exception:
    """The first mistake that pydantic found, in one line that begins with the field's name."""
    found = error.errors(include_url=False)
    first, name = found[0], str(found[0]["loc"][0]) if found[0]["loc"] else ""
    if first["type"] == "value_error":
        return first["ctx"]["error"]  # raised by __post_init__, which has its own words
    if name not in values or name not in field_types(cls):
        return TypeError(f"{cls.__name__}: {name}: {first['msg'].lower()}")
    # A union is refused by each of its alternatives: a bound says more than a wrong type.
    bounded = (item for item in found if _BOUNDS.keys() & item.get("ctx", {}).keys())
    first = next((item for item in bounded if item["loc"][0] == name), first)
    path, value, hint, kind = name, values[name], field_types(cls)[name], first["type"]
    for part in first["loc"][1:]:
        if not isinstance(part, int):
            break
        kinds = _item_types(hint, len(value)) if isinstance(value, tuple) else ()
        if not kinds:
            kind = "too_long"  # or too short: then its items do not matter
            break
        path, value, hint = f"{path}.{part}", value[part], kinds[part]
    for bound in _BOUNDS.keys() & first.get("ctx", {}).keys():
        if kind == first["type"]:
            rule = f"be {_BOUNDS[bound]} {first['ctx'][bound]:.12g}"
            rule = "not be negative" if rule == "be at least 0" else rule
            return ValueError(f"{path} must {rule}, got {_show(value)}")
    hint = next((arm for arm in _arms(hint) if _arms(hint) == (arm, types.NoneType)), hint)
    expected = "a finite number" if kind == "finite_number" else describe_type(hint)
    if typing.get_origin(hint) is typing.Literal:
        expected += suggested(str(value), map(str, typing.get_args(hint)))
    elif hint is Path and isinstance(value, str) and value:
        expected += ", pathlib.Path(...)"
    elif (group := group_of(hint)) and isinstance(value, Mapping):
        expected += f", {group.__name__}(...); vjepa.config.from_dict takes plain values"
    return ValueError(f"{path}: {_show(value)} is not valid here: expected {expected}")


# What a config dataclass says about itself.


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a config, as the command line's help shows it."""

    path: str
    """Dotted name, for example ``optim.peak_lr``; ``masks.N.kind`` for the items of a list."""
    kind: str
    """Its type in words."""
    default: object
    """The default, or :data:`REQUIRED`."""
    meaning: str
    """The docstring that stands under the field, on one line."""


def settings(cls: type) -> Iterator[Setting]:
    """All settings of a config dataclass in their order, depth first."""
    for path, owner, default in _walk(cls, None, ""):
        name = path.rpartition(".")[2]
        kind = describe_type(field_types(owner)[name])
        yield Setting(path, kind, default, meanings(owner).get(name, ""))


def _walk(cls: type, base: object, path: str) -> Iterator[tuple[str, type, object]]:
    """Each setting's dotted name, the class that holds it and its default.

    A group without a default (or with the default null) stands for the defaults of its class.
    """
    for name, hint in field_types(cls).items():
        default = _defaults(cls)[name] if base is None else getattr(base, name)
        group = group_of(hint)
        if group is None or len(_arms(hint)) > 1:
            yield f"{path}{name}", cls, default
        if group is not None:
            inner = default if isinstance(default, group) else None
            yield from _walk(group, inner, f"{path}{name}.")
        for item in filter(None, map(group_of, _item_types(hint, 1))):
            yield from _walk(item, None, f"{path}{name}.N.")


@functools.cache
def field_types(cls: type) -> dict[str, object]:
    """Names and types of the fields of a config dataclass, in their order, without ranges."""
    hints = typing.get_type_hints(cls)
    return {name: hints[name] for name in _defaults(cls)}


@functools.cache
def _defaults(cls: type) -> dict[str, object]:
    """The default of every field of a config dataclass: a value or :data:`REQUIRED`."""
    found: dict[str, object] = {}
    for field in (each for each in dataclasses.fields(typing.cast("Any", cls)) if each.init):
        found[field.name] = REQUIRED if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def _arms(hint: object) -> tuple[object, ...]:
    """The alternatives of a union, or the type alone."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def group_of(hint: object) -> type | None:
    """The config dataclass among the alternatives of a type, if there is one."""
    found = (arm for arm in _arms(hint) if isinstance(arm, type) and dataclasses.is_dataclass(arm))
    return next(found, None)


def _item_types(hint: object, length: int) -> tuple[object, ...]:
    """The types of the items of a list of this length; () if the field takes no such list."""
    for arm in _arms(hint):
        items = typing.get_args(arm) if typing.get_origin(arm) is tuple else ()
        if items[1:] == (Ellipsis,):
            return items[:1] * length
        if len(items) == length:
            return items
    return ()


def describe_type(hint: object) -> str:
    """A type in the words of a user: ``an integer or null``, ``one of vjepa, pixel``."""
    if len(_arms(hint)) > 1:
        return " or ".join(map(describe_type, _arms(hint)))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        choices = ", ".join(map(str, arguments))
        return choices if len(arguments) == 1 else f"one of {choices}"
    if origin is tuple and arguments[1:] == (Ellipsis,):
        one = describe_type(arguments[0]).removeprefix("a ").removeprefix("an ")
        if one.startswith("one of "):
            return f"a list of some of {one.removeprefix('one of ')}"
        return "a list of groups" if group_of(arguments[0]) else f"a list of {one}s"
    if origin is tuple:
        return f"a list of {len(arguments)} values"
    if group_of(hint):
        return "a group of settings"
    if hint not in _TYPES:
        raise TypeError(f"a config field cannot have the type {hint!r}")
    return _TYPES[hint]


@functools.cache
def meanings(cls: type) -> dict[str, str]:
    """The docstring under each field of a config dataclass, on one line."""
    base = cls.__base__
    found = dict(meanings(base)) if base is not None and dataclasses.is_dataclass(base) else {}
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    for field, text in itertools.pairwise(getattr(body, "body", [])):
        docstring = getattr(getattr(text, "value", None), "value", None)
        if isinstance(field, ast.AnnAssign) and isinstance(docstring, str):
            found[ast.unparse(field.target)] = " ".join(docstring.split()).replace("``", "")
    return found


# A config as plain values.


def to_dict(config: object) -> dict[str, Any]:
    """Plain values (dict, list, str, int, float, bool, None) of a config; loads back equal."""
    return {name: plain(getattr(config, name)) for name in _defaults(type(config))}


def plain(value: object) -> Any:
    """One config value as YAML and JSON know it."""
    if isinstance(value, _Given):
        value = value.value
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def dump_yaml(config: object) -> str:
    """The config as YAML text, every field written out; loads back equal."""
    from vjepa.strict_yaml import write_yaml

    return write_yaml(to_dict(config))


def diff(a: object, b: object) -> list[str]:
    """Settings in which two configs differ, as ``optim.peak_lr: 0.001 -> 0.002``."""
    left, right = dict(_leaves(to_dict(a), "")), dict(_leaves(to_dict(b), ""))
    return [
        f"{name}: {left.get(name, '(absent)')} -> {right.get(name, '(absent)')}"
        for name in left | right
        if name not in left or name not in right or left[name] != right[name]
    ]


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Dotted names and values below a plain value; lists of plain values are one leaf."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        yield path, value
        return
    for name, item in value.items():
        yield from _leaves(item, _join(path, str(name)))


def _show(value: object) -> str:
    """A value for an error message: short, on one line, as the user wrote it."""
    typed = value.text if isinstance(value, _Given) else None
    text = " ".join((typed or repr(plain(value))).split())
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


# Files, overrides and plain values -> one typed config.


def recipe_names(recipes: str) -> list[str]:
    """Names of the packaged recipes of a job, for example those of ``pretrain``."""
    return sorted(path.stem for path in (_RECIPES / recipes).glob("*.yaml"))


def recipe_path(recipes: str, name: str) -> Path:
    """The file of a packaged recipe; UserError, with the nearest and all names: there is none."""
    names = recipe_names(recipes)
    if name in names:
        return _RECIPES / recipes / f"{name}.yaml"
    raise UserError(
        f"{name}: no such config file or recipe (recipes of {recipes}: "
        f"{', '.join(names) or 'none'}){suggested(name.removesuffix('.yaml'), names)}"
    )


def from_dict(
    cls: type[Config], mapping: Mapping[str, object] | Config, source: str = "config"
) -> Config:
    """Build a config from plain values; what `mapping` leaves out keeps its default.

    Tuples, paths and config objects are taken, too; a whole config stays as it is. UserError, which
    begins with `source`, usually a file: unknown field, wrong type, bad choice or refused value.
    """
    layers = _Layers(cls, source)
    layers.add(mapping, source)
    return layers.build(cls, layers.data, "", None)


def load_config(
    cls: type[Config],
    files: Sequence[str | Path] = (),
    overrides: Mapping[str, object] | Sequence[str] = (),
    recipes: str | None = None,
) -> Config:
    """Build a config from files, merged in order, and overrides on top.

    Groups merge field by field; lists are replaced whole.

    Args:
        cls: The root config dataclass.
        files: YAML files. A bare name such as ``vitl16_224`` is a packaged recipe.
        overrides: ``["optim.peak_lr=1e-3", "masking.masks.0.num_blocks=4"]`` as the command line
            gives them, or a mapping of dotted names (or nested groups) to values.
        recipes: The job whose packaged recipes bare names mean; None means that there are none.

    Raises:
        UserError: A file that is missing or no YAML, an unknown field, a wrong or refused value.
    """
    from vjepa.strict_yaml import parse_value, parse_yaml

    layers = _Layers(cls, "defaults")
    for file in files:
        path, name = _find(file, recipes)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{name}: not a YAML text file (not UTF-8)") from error
        except OSError as error:
            raise UserError(f"{name}: cannot be read: {error.strerror}") from error
        layers.add(parse_yaml(text, name), name)
    if isinstance(overrides, Mapping):
        for dotted, value in overrides.items():
            layers.set(dotted, _Given(value, "overrides"))
        return layers.build(cls, layers.data, "", None)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{_COMMAND_LINE}: {dotted}: expected NAME=VALUE")
        # 2024 is a number for one field and a name for another: both readings are kept until then.
        layers.set(dotted, _Given(parse_value(text), _COMMAND_LINE, text))
    return layers.build(cls, layers.data, "", None)


def _find(file: str | Path, recipes: str | None) -> tuple[Path, str]:
    """The path of a config file or recipe, and what to call it in an error."""
    path = Path(file)
    is_bare = isinstance(file, str) and path.name == file and not path.suffix
    if is_bare and recipes is not None and file in recipe_names(recipes):
        return recipe_path(recipes, str(file)), f"recipe {file}"
    if path.is_file():
        return path, str(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; --config takes a YAML file or the name of a recipe")
    if recipes is not None and path.name == str(file):
        return recipe_path(recipes, path.name), path.name
    raise UserError(f"{path}: no such config file; --config takes a YAML file or a recipe")


@dataclasses.dataclass(frozen=True)
class _Given:
    """A value, which source gave it and, on the command line, how it was typed."""

    value: Any
    source: str
    text: str | None = None


class _Layers:
    """Settings laid over each other, each with its source, and the config that they make.

    `data` is a tree of groups (dict), down to :class:`_Given`; a list is one of these, whose items
    may have been changed one by one.
    """

    def __init__(self, root: type, source: str) -> None:
        self._root, self._source = root, source
        self.data: dict[str, Any] = {}

    def add(self, mapping: object, source: str) -> None:
        """Lay the settings of one source over those before."""
        self.data = _laid_over(self.data, _Given(mapping, source))

    def set(self, dotted: str, given: _Given) -> None:
        """Set one field by its dotted name; a number steps into a list or adds its next item."""
        names = dotted.replace("-", "_").split(".")
        if not all(names):
            raise UserError(f"{given.source}: {dotted!r} is not the name of a setting")
        self.data = self._with(self.data, names, given, "")

    def _with(self, present: Any, names: list[str], given: _Given, path: str) -> Any:
        """What stands at `path`, with the setting that `names` names below it changed."""
        if not names:
            return _laid_over(present, given)
        name, *below = names
        full = _join(path, name)
        if not name.isdigit():
            group = present if isinstance(present, dict) else {}
            if isinstance(present, _Given) and isinstance(present.value, (str, Path)):
                group = {"": present}
            return group | {name: self._with(group.get(name), below, given, full)}
        if present is None:
            defaults = {known: default for known, _, default in _walk(self._root, None, "")}
            present = _Given(defaults.get(re.sub(r"\b\d+\b", "N", path)), self._source)
        items, index = present.value if isinstance(present, _Given) else present, int(name)
        if not isinstance(items, (list, tuple)):
            problem = f"{path or 'the config'} is not a list (value {_show(given)})"
            raise UserError(f"{given.source}: {_join(path, *names)}: {problem}")
        if index > len(items):
            raise UserError(
                f"{given.source}: {full}: there is no such item (value {_show(given)}): the list"
                f" has {len(items)}, counted from 0, and {len(items)} would add one"
            )
        items = [*items, {}] if index == len(items) else list(items)
        items[index] = self._with(plain(items[index]), below, given, full)
        return dataclasses.replace(present, value=items)

    def _place(self, path: str) -> str:
        """A setting for an error, after the source that set it or the nearest thing around it."""
        node, source = self.data, self._source
        for part in path.split("."):
            if isinstance(node, _Given):
                node, source = node.value, node.source
            if isinstance(node, (list, tuple)) and part.isdigit():
                node = node[int(part)]
            elif isinstance(node, Mapping) and part in node:
                node = node[part]
            else:
                break
        while isinstance(node, Mapping) and node:
            node = list(node.values())[-1]
        source = node.source if isinstance(node, _Given) else source
        return f"{source}: {path}" if path else source

    def build(self, cls: type[Config], node: object, path: str, base: Config | None) -> Config:
        """An instance of `cls`: the values of `base` or the defaults, changed by `node`."""
        given = node.value if isinstance(node, _Given) else node
        if isinstance(given, cls):
            return given
        text_means = getattr(cls, "TEXT_MEANS", None)
        if isinstance(given, Mapping) and "" in given:
            node = given = dict(given)
            whole = given.pop("")
            if text_means is None:
                node, given = whole, whole.value
            else:
                given[text_means] = whole
        elif isinstance(given, (str, Path)) and text_means is not None:
            node = given = {text_means: node}
        known = ", ".join(field_types(cls))
        if not isinstance(given, Mapping):
            expected = f"expected a group of settings ({known})"
            if not path and isinstance(given, (str, Path)):
                expected = f"vjepa.config.load_config({cls.__name__}, ...) reads files and recipes"
            raise UserError(f"{self._place(path)}: {_show(node)} is not valid here: {expected}")
        for name in given:
            if name not in field_types(cls):
                near = self._nearest_setting(cls, path, str(name), given[name])
                remedy = f"did you mean {near}?" if near else f"known here: {known}"
                where = f"{self._place(_join(path, name))}: unknown setting"
                raise UserError(f"{where} (value {_show(given[name])}); {remedy}")
        values: dict[str, Any] = {}
        for name, hint in field_types(cls).items():
            below = _join(path, name)
            values[name] = _defaults(cls)[name] if base is None else getattr(base, name)
            if name in given:
                values[name] = self._value(given[name], hint, below, values[name])
            elif values[name] is REQUIRED and (group := group_of(hint)):
                values[name] = self.build(group, {}, below, None)
            elif values[name] is REQUIRED:
                raise UserError(
                    f"{below}: missing; it has no default, so set it in a --config file or with"
                    f" --{below} ({describe_type(hint)})"
                )
        try:
            return cls(**values)
        except (ValueError, UserError) as error:
            raise self._refused(path, given, values, str(error)) from error

    def _value(self, node: object, hint: object, path: str, inherited: object) -> Any:
        """One value in the form that its field wants; the class that it is for checks it."""
        value, text = (node.value, node.text) if isinstance(node, _Given) else (node, None)
        arms, group = _arms(hint), group_of(hint)
        if value is None and types.NoneType in arms:
            return None
        if group is not None:
            base = inherited if isinstance(inherited, group) else None
            return self.build(group, node, path, base)
        if text is not None and {str, Path}.intersection(arms) and not isinstance(value, str):
            value = text
        if isinstance(value, (list, tuple)):
            kinds = _item_types(hint, len(value)) or (object,) * len(value)
            return tuple(
                self._value(item, kind, f"{path}.{place}", None)
                for place, (item, kind) in enumerate(zip(value, kinds, strict=True))
            )
        if Path in arms and isinstance(value, (str, Path)) and str(value):
            try:
                return as_path(value).expanduser()
            except RuntimeError as error:
                problem = "no such user on this machine; write the folder out"
                raise UserError(f"{self._place(path)}: {_show(node)}: {problem}") from error
            except UserError as error:
                raise UserError(f"{self._place(path)}: {error}") from error
        return value

    def _nearest_setting(self, cls: type, path: str, name: str, value: object) -> str | None:
        """The nearest valid dotted name: by what a group holds, a sibling, or a leaf anywhere."""
        everywhere = [setting for setting, _, _ in _walk(self._root, None, "")]
        leaves = {dotted.rpartition(".")[2]: dotted for dotted in reversed(everywhere)}
        held = value if isinstance(value, Mapping) else ()
        if same := [dotted for dotted in everywhere if dotted.rpartition(".")[2] in held]:
            near = difflib.get_close_matches(_join(path, name), same, n=1, cutoff=0)[0]
            return near.rpartition(".")[0] or near
        if (sibling := nearest(name, field_types(cls))) is not None:
            return _join(path, sibling)
        return leaves.get(nearest(name, leaves) or "")

    def _refused(
        self, path: str, given: Mapping[str, Any], values: Mapping[str, Any], message: str
    ) -> UserError:
        """The error of a config class, whose message begins with a field's name, dotted or not."""
        name, _, rest = " ".join(message.split()).partition(" ")
        first, *inner = re.sub(r"\[(\d+)\]", r".\1", name.rstrip(":")).split(".")
        if first not in values:
            return UserError(f"{self._place(path)}: {name} {rest}")
        value = values[first]
        for part in inner:
            items = isinstance(value, tuple) and part.isdigit()
            value = value[int(part)] if items else getattr(value, part, None)
        got = "" if _show(value) in rest else f" (value {_show(value)})"
        if not inner and rest.startswith(f"{_show(value)} is not valid"):
            rest = _show(given.get(first, value)) + rest.removeprefix(_show(value))
        colon = ":" if name.endswith(":") else ""
        return UserError(f"{self._place(_join(path, first, *inner))}{colon} {rest}{got}")


def _laid_over(present: Any, given: _Given) -> Any:
    """`present` changed by what was given: groups field by field, everything else as a whole."""
    if isinstance(given.value, (str, Path)) and isinstance(present, dict) and present:
        return present | {"": given}  # a text for a group: some say what it means
    if not isinstance(given.value, Mapping):
        return given
    group = dict(present) if isinstance(present, dict) else {}
    for name, item in given.value.items():
        group[name] = _laid_over(group.get(name), _Given(item, given.source))
    return group


def _join(*names: str) -> str:
    return ".".join(filter(None, names))
