"""Files and overrides -> one typed config, with the source of every value kept for errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from vjepa.config import schema
from vjepa.config.conversion import from_sources, plain, show
from vjepa.config.yaml_text import OverrideText, parse_yaml
from vjepa.errors import UserError

Config = TypeVar("Config")
COMMAND_LINE = "command line"
_RECIPES = Path(__file__).resolve().parents[1] / "configs"


def recipe_names(recipes: str) -> list[str]:
    """Names of the packaged recipes of a job, for example those of ``pretrain``."""
    return sorted(path.stem for path in (_RECIPES / recipes).glob("*.yaml"))


def recipe_path(recipes: str, name: str) -> Path:
    """The file of a packaged recipe.

    Raises:
        UserError: There is none of that name; the nearest and all valid names are given.
    """
    if name in recipe_names(recipes):
        return _RECIPES / recipes / f"{name}.yaml"
    raise _no_such_recipe(recipes, name)


def _no_such_recipe(recipes: str, asked: str) -> UserError:
    names = recipe_names(recipes)
    near = schema.nearest(asked.removesuffix(".yaml"), names)
    suggestion = f"did you mean {near}? " if near else ""
    listed = ", ".join(names) or "none"
    return UserError(
        f"{asked}: no such config file or recipe; {suggestion}recipes of {recipes}: {listed}"
    )


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
    sources = _Sources(cls)
    for file in files:
        path, name = _find(file, recipes)
        sources.merge(_read(path, name), name)
    if isinstance(overrides, Mapping):
        for dotted, value in overrides.items():
            sources.set(dotted, value, "overrides")
    else:
        for override in overrides:
            dotted, equals, text = override.partition("=")
            if not equals:
                raise UserError(f"{COMMAND_LINE}: {dotted}: expected NAME=VALUE")
            sources.set(dotted, OverrideText.parse(text), COMMAND_LINE)
    return from_sources(cls, sources.data, sources.source_of)


def _find(file: str | Path, recipes: str | None) -> tuple[Path, str]:
    """The path of a config file or recipe, and what to call it in an error."""
    path = Path(file)
    bare = isinstance(file, str) and path.name == file and not path.suffix
    if bare and recipes is not None and file in recipe_names(recipes):
        return recipe_path(recipes, str(file)), f"recipe {file}"
    if path.is_file():
        return path, str(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; --config takes a YAML file or the name of a recipe")
    if recipes is not None and path.name == str(file):
        raise _no_such_recipe(recipes, path.name)
    raise UserError(f"{path}: no such config file")


def _read(path: Path, name: str) -> dict[str, object]:
    """The settings of a YAML file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not a YAML text file (not UTF-8)") from error
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}") from error
    return parse_yaml(text, name)


class _Sources:
    """Settings merged so far, and which source set each of them."""

    def __init__(self, cls: type) -> None:
        self._cls = cls
        self._origin: dict[str, str] = {}
        self.data: dict[str, object] = {}

    def merge(self, settings: Mapping[str, object], source: str) -> None:
        """Lay the settings of one file over those before."""
        self._merge_into(self.data, settings, "", source)

    def _merge_into(
        self, target: dict[str, object], settings: Mapping[str, object], path: str, source: str
    ) -> None:
        for name, value in settings.items():
            below = f"{path}.{name}" if path else name
            if isinstance(value, Mapping):
                present = target.get(name)
                inner = present if isinstance(present, dict) else {}
                if not isinstance(present, dict):
                    self._claim(below, source)
                target[name] = inner
                self._merge_into(inner, value, below, source)
            else:
                target[name] = value
                self._claim(below, source)

    def _claim(self, path: str, source: str) -> None:
        """`source` has set `path`, and with it everything below."""
        for known in [known for known in self._origin if known.startswith(f"{path}.")]:
            del self._origin[known]
        self._origin[path] = source

    def set(self, dotted: str, value: object, source: str) -> None:
        """Set one field by its dotted name; a number steps into a list or adds its next item."""
        parts = dotted.replace("-", "_").split(".")
        if not all(parts):
            raise UserError(f"{source}: {dotted!r} is not the name of a setting")
        if isinstance(value, OverrideText) and isinstance(value.parsed, Mapping):
            value = value.parsed  # a group given as YAML merges like one in a file
        nested: object = value
        numbers = [place for place, part in enumerate(parts) if part.isdigit()]
        stop = numbers[0] if numbers else len(parts)
        if numbers:
            nested = self._changed_list(parts[:stop], parts[stop:], value, source)
        for part in reversed(parts[:stop]):
            nested = {part: nested}
        origin = dict(self._origin)
        self.merge(nested if isinstance(nested, dict) else {}, source)
        if numbers:
            # Only the one item is new: the rest of the list keeps the source that it had.
            self._origin = {**origin, ".".join(parts): source}

    def _changed_list(
        self, path: list[str], rest: list[str], value: object, source: str
    ) -> list[object]:
        """A copy of the list at `path` in which the item that `rest` names is `value`."""
        name = ".".join(path)
        items = self._current(path)
        if not isinstance(items, (list, tuple)):
            raise UserError(
                f"{source}: {'.'.join([*path, *rest])}: {name or 'the config'} is not a list"
                f" (value {show(value)})"
            )
        items, index = list(items), int(rest[0])
        if index > len(items):
            raise UserError(
                f"{source}: {name}.{index}: there is no such item (value {show(value)}): the list"
                f" has {len(items)}, counted from 0, and {len(items)} would add one"
            )
        if index == len(items):
            items.append({})
        if len(rest) == 1:
            items[index] = value
            return items
        nested: object = value
        for part in reversed(rest[1:]):
            nested = {part: nested}
        item = plain(items[index])
        merged = _Sources(self._cls)
        merged.merge(item if isinstance(item, dict) else {}, source)
        merged.merge(nested if isinstance(nested, dict) else {}, source)
        items[index] = merged.data
        return items

    def _current(self, path: list[str]) -> object:
        """The value at `path`: as set so far, else the default of the config class."""
        value: object = self.data
        for part in path:
            value = value.get(part, schema.REQUIRED) if isinstance(value, dict) else schema.REQUIRED
        return schema.default_at(self._cls, path) if value is schema.REQUIRED else value

    def source_of(self, path: str) -> str:
        """The source that set `path`, or the nearest thing around it that was set."""
        parts = path.split(".")
        for length in range(len(parts), 0, -1):
            source = self._origin.get(".".join(parts[:length]))
            if source is not None:
                return source
        below = [source for known, source in self._origin.items() if known.startswith(path)]
        return below[-1] if below else "defaults"
