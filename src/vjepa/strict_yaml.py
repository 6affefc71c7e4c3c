"""Strict YAML text <-> plain Python values.

PyYAML reads YAML 1.1, in which ``1e-3`` is a text, ``no`` is false and a key that stands twice
silently keeps its last value. Each of these has cost somebody a training run, so the loader here
reads scalars as YAML 1.2 does and refuses duplicate keys; the dumper uses the same rules, so that
what it writes loads back equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from vjepa.errors import UserError

_MAX_DEPTH = 50
"""Configs nest a handful of levels; deeper ones would only exhaust the parser's stack."""

_SCALARS: tuple[tuple[str, str, str], ...] = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+(?:_[0-9]+)*", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
"""Tag, pattern and possible first characters of the plain scalars that are not texts."""


class _Loader(yaml.SafeLoader):
    """Reads scalars as YAML 1.2 does and refuses a key that stands twice.

    It also refuses what makes a small file a large one in memory: references to other places of the
    file, which multiply what they stand for, and endless nesting.
    """

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own class attribute)
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        """As PyYAML's, within the limits."""
        problem = None
        if self.check_event(yaml.AliasEvent):
            problem = "references (*name) are not read; write the value out"
        elif self._depth >= _MAX_DEPTH:
            problem = f"nested more than {_MAX_DEPTH} levels deep"
        if problem is not None:
            raise ComposerError(None, None, problem, self.peek_event().start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """As PyYAML's, with every key a text that stands once."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            is_name = key is not None and key_node.tag == "tag:yaml.org,2002:str"
            if not is_name or key in seen:
                problem = f"the key {key!r} {'stands twice' if is_name else 'is not a name'}"
                raise ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(str(key))
        return super().construct_mapping(node, deep=deep)

    def construct_decimal_int(self, node: yaml.ScalarNode) -> int:
        """A decimal integer: ``010`` is ten here, not eight as in YAML 1.1."""
        try:
            return int(node.value)
        except ValueError as error:  # Python reads no more than 4300 digits
            problem = f"a number of {len(node.value)} digits"
            raise ConstructorError(None, None, problem, node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """Writes with the loader's rules, so that a text such as ``1e-3`` gets its quotes."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own class attribute)

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 (PyYAML's signature)
        """Write repeated values out in full."""
        return True

    def represent_scalar(self, tag: str, value: str, style: str | None = None) -> yaml.ScalarNode:
        """As PyYAML's; U+0085, which would be read as the end of a line, escaped in quotes."""
        return super().represent_scalar(tag, value, '"' if "\x85" in value else style)

    def represent_list(self, data: list) -> yaml.Node:
        """A list of plain values on one line."""
        is_short = not any(isinstance(item, (dict, list)) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=is_short)


for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), ["", *_first])
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal_int)
_Dumper.add_representer(list, _Dumper.represent_list)


def parse_value(text: str) -> object:
    """One value of any kind, as it is typed; text that is no YAML stays a text."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text
    # A name may hold " #" or ": ", which only in a file begin a comment or a group.
    is_plain = not text.lstrip().startswith(("[", "{", '"', "'"))
    is_changed = "#" in text or (isinstance(value, (str, dict)) and value != text.strip())
    return text if is_plain and is_changed else value


def parse_yaml(text: str, source: str) -> dict[str, object]:
    """The mapping that a YAML text holds; an empty text is an empty mapping.

    UserError, which begins with `source`: it is no YAML, holds a key twice, or is not a mapping.
    """
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        problem = getattr(error, "problem", None) or getattr(error, "context", None) or error
        raise UserError(f"{place}: not valid YAML: {' '.join(str(problem).split())}") from error
    if data is not None and not isinstance(data, Mapping):
        kind = "a list" if isinstance(data, list) else f"the value {data!r}"
        raise UserError(f"{source}: expected settings as 'name: value' lines, found {kind}")
    return dict(data or {})


def write_yaml(data: Mapping[str, object]) -> str:
    """YAML text of plain values, in their order; short lists stand on one line."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
