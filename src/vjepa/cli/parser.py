"""An argparse parser that knows config dataclasses: typed help, dotted overrides, clear errors.

A job's own options are few (``--config``, ``--out``, ``--print-config``); everything else that
stands on its command line is a setting of its config, ``--optim.peak_lr 1e-3``. The config class
is imported only when it is needed, so that ``vjepa --help`` does not wait for torch.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from vjepa.config import (
    REQUIRED,
    Setting,
    dump_yaml,
    field_types,
    load_config,
    nearest,
    plain,
    settings,
)
from vjepa.errors import UserError
from vjepa.strict_yaml import write_yaml

_WIDTH = 100


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and whose help lists the settings of a config."""

    recipes: str | None = None
    """The folder of packaged recipes whose bare names ``--config`` accepts."""
    _config_class: Callable[[], type] | None = None
    _known: tuple[str, ...] = ()
    _commands: tuple[str, ...] = ()

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """As argparse's; the names are remembered for suggestions."""
        self._known = (*self._known, *(name for name in names if name.startswith("--")))
        return super().add_argument(*names, **options)

    def take_config(self, config_class: Callable[[], type], recipes: str | None = None) -> None:
        """Let this command take a config.

        Args:
            config_class: Imports and returns the root config dataclass.
            recipes: The folder of packaged recipes whose bare names ``--config`` accepts.
        """
        self._config_class, self.recipes = config_class, recipes
        what = "YAML file or recipe name" if recipes else "YAML file"
        self.add_argument(
            "--config",
            action="append",
            default=[],
            metavar="NAME_OR_FILE" if recipes else "FILE",
            help=f"{what}; may be given several times, later ones win",
        )
        self.add_argument(
            "--print-config", action="store_true", help="print the resolved config and stop"
        )

    def add_commands(self, what: str) -> Callable[[str, str], Parser]:
        """Let this command have subcommands, as in ``vjepa data index``.

        Args:
            what: Names them in the usage line, in capitals.

        Returns:
            A function that adds one: (its name, its help, whose first line is the summary).
        """
        self.set_defaults(parser=self)
        commands = self.add_subparsers(
            metavar=what, title=f"{what.lower()}s", parser_class=type(self)
        )

        def add(name: str, text: str) -> Parser:
            parser: Parser = commands.add_parser(
                name,
                help=text.partition("\n")[0],
                description=text,
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
            parser.set_defaults(parser=parser)
            self._commands = (*self._commands, name)
            return parser

        return add

    def config_class(self) -> type | None:
        """The config class of this command, imported now; None if it takes no config."""
        return self._config_class() if self._config_class else None

    def parse_known_args(  # ty: ignore[incompatible-method-override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's; settings of the config are set aside first, each with its value.

        Otherwise argparse, which does not know them, would take their values for positionals.
        """
        namespace = argparse.Namespace() if namespace is None else namespace
        if self._config_class is None or args is None:
            return super().parse_known_args(args, namespace)
        own: list[str] = []
        aside: list[str] = []
        rest = list(args)
        while rest:
            token = rest.pop(0)
            name, equals, _ = token.partition("=")
            if not name.startswith("--") or name == "--" or name in self._known:
                own.append(token)
                continue
            aside.append(token)
            if not equals and rest and not rest[0].startswith("--"):
                aside.append(rest.pop(0))
        found, extras = super().parse_known_args(own, namespace)
        return found, [*aside, *extras]

    def error(self, message: str) -> NoReturn:
        """Refuse the command line with one line instead of the whole usage."""
        choice = re.search(r"invalid choice: '([^']*)'", message)
        if choice and self._commands:
            near = nearest(choice[1], self._commands)
            suggestion = f"; did you mean {near}?" if near else ""
            message = f"unknown command {choice[1]}{suggestion}"
        raise UserError(f"{message} (see {self.prog} --help)")

    def refuse_unknown(self, extras: Sequence[str]) -> None:
        """Refuse what neither argparse nor a config knows.

        Raises:
            UserError: Something is left; names the nearest option.
        """
        if extras:
            name = extras[0].partition("=")[0]
            near = nearest(name.lstrip("-"), [option[2:] for option in self._known])
            suggestion = f"; did you mean --{near}?" if near and name.startswith("-") else ""
            raise UserError(f"unknown argument {name}{suggestion} (see {self.prog} --help)")

    def overrides(self, extras: Sequence[str]) -> list[str]:
        """What argparse left over, as ``name=value`` overrides of the config.

        Raises:
            UserError: Something is left although this command takes no config, a name without a
                value, or something that is no setting at all.
        """
        if self._config_class is None:
            self.refuse_unknown(extras)
        found: list[str] = []
        rest = list(extras)
        while rest:
            token = rest.pop(0)
            name, equals, value = token.partition("=")
            if not name.startswith("--") or name == "--":
                self.refuse_unknown([token])
            if "." not in name and self._is_misspelt_option(name):
                self.refuse_unknown([token])
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise UserError(f"{name} needs a value, as in {name} VALUE")
                value = rest.pop(0)
            found.append(f"{name[2:]}={value}")
        return found

    def _is_misspelt_option(self, name: str) -> bool:
        """Whether a name without a dot is nearer to an option than to a setting."""
        cls = self.config_class()
        bare = name[2:].replace("-", "_")
        top = list(field_types(cls)) if cls else []
        options = [option[2:].replace("-", "_") for option in self._known]
        return bare not in top and nearest(bare, [*top, *options]) in options

    def format_help(self) -> str:
        """The usual help, then every setting of the config with type, default and meaning."""
        cls = self.config_class()
        text = super().format_help()
        return text if cls is None else f"{text}\n{_settings_help(cls)}"


def resolve_config(args: argparse.Namespace, files: Sequence[str | Path] | None = None) -> Any:
    """The config of a job from its command line.

    Args:
        args: Parsed arguments of a command that takes a config.
        files: Files to use instead of those of ``--config``.

    Returns:
        An instance of the command's config class.

    Raises:
        UserError: A bad file or override.
    """
    parser: Parser = args.parser
    cls = parser.config_class()
    assert cls is not None, "this command takes no config"
    chosen = args.config if files is None else files
    return load_config(cls, chosen, args.overrides, recipes=parser.recipes)


def print_config(config: object) -> None:
    """Print the resolved config as YAML that loads back equal."""
    print(dump_yaml(config), end="")


def _settings_help(cls: type) -> str:
    """The settings of a config as help text, one paragraph per top-level group."""
    lines = ["settings (in a --config file, or here as --NAME VALUE; N counts list items from 0):"]
    group = None
    for setting in settings(cls):
        above = setting.path.rpartition(".")[0].partition(".")[0]
        if above != group:
            group = above
            lines.append("")
        lines.append(f"  --{setting.path}  {setting.kind}{_default(setting)}")
        lines.extend(textwrap.wrap(setting.meaning, _WIDTH - 8, initial_indent="        ",
                                   subsequent_indent="        "))  # fmt: skip
    return "\n".join(lines) + "\n"


def _default(setting: Setting) -> str:
    """The default in words."""
    if setting.default is REQUIRED:
        return " (required)"
    value = plain(setting.default)
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return f" (default: {len(value)} of them)"
    text = write_yaml({"x": value}).removeprefix("x:").strip()
    return f" (default: {text or 'none'})"
