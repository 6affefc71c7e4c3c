"""An argparse parser that knows config dataclasses: typed help, dotted overrides, clear errors.

A job's own options are few (``--config``, ``--out``, ``--print-config``); everything else that
stands on its command line is a setting of its config, ``--optim.peak_lr 1e-3``. The config class
is imported only when it is needed, so that ``vjepa --help`` does not wait for torch.
"""

from __future__ import annotations

import argparse
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn

from vjepa.config import (
    REQUIRED,
    RESOLVED_CONFIG_FILE,
    diff,
    dump_yaml,
    field_types,
    load_config,
    plain,
    recipe_names,
    settings,
)
from vjepa.errors import UserError, nearest, suggested
from vjepa.paths import as_path
from vjepa.runtime.distributed import world
from vjepa.runtime.files import check_writable, job_of

EXIT_LOST_PROCESS = 1
"""Another process of the same job ended or hung; its own message says why."""
EXIT_BAD_INPUT = 2
"""The input was bad; one line on stderr says what and what to do."""
EXIT_REQUEUE = 75
"""The system asked for an end (SIGTERM, SIGHUP, SIGUSR1), the state is saved: start the job again.

The number is that of EX_TEMPFAIL in sysexits.h."""
EXIT_INTERRUPTED = 130
"""The user stopped the work before it was done (Ctrl-C)."""


_REDRAWN = (".html", ".png", ".svg", ".csv")
"""Kinds of files that are written anew also in a job's folder; all others there are its own."""


class Answered(Exception):  # noqa: N818 (it is no error)
    """The command line only asked for something to be printed, and that is done: exit code 0."""


def _writable(text: str) -> Path:
    path = as_path(text)
    check_writable(path)
    if path.is_file() and path.suffix not in _REDRAWN and (job := job_of(path.parent)):
        raise UserError(f"{path}: is a file of `vjepa {job}`; give another name")
    return path


def number(text: str) -> float:
    """A finite number; what is none would pass every comparison that should refuse it."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and whose help lists the settings of a config.

    Commands find in their arguments the parser that read them as ``parser`` and the settings, to
    be given to :func:`resolve_config`, as ``overrides``.
    """

    recipes: str | None = None
    """The folder of packaged recipes whose bare names ``--config`` accepts."""
    _config_class: str = ""
    _known: tuple[str, ...] = ()
    _lists: tuple[str, ...] = ()  # options that take all words behind them
    _commands: tuple[str, ...] = ()
    _written: tuple[str, ...] = ()
    needed: tuple[tuple[str, str], ...] = ()
    """Names of what a command with a config cannot do without, and what to say where it lacks."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """As argparse's; the names are remembered for suggestions."""
        added = tuple(name for name in names if name.startswith("--"))
        self._known += added
        self._lists += added if options.get("nargs") == "+" else ()
        return super().add_argument(*names, **options)

    def add_path(
        self, name: str, metavar: str, text: str, *, needed: bool = False, **options: Any
    ) -> None:
        """An argument that is a path, with its help; an option FILE is one that is written.

        Whether it can be is known before the work whose result it shall hold. One that is `needed`
        may lack where the config is only to be printed.
        """
        is_option = name.startswith("--")
        if needed:
            shown = f"{name} {metavar}" if is_option else metavar
            self.needed = (*self.needed, (name.strip("-"), f"{shown}: {text}"))
        kind = _writable if is_option and metavar == "FILE" else as_path
        action = self.add_argument(name, metavar=metavar, help=text, **{"type": kind} | options)
        self._written += (action.dest,) if kind is _writable else ()

    def add_number(
        self, name: str, kind: type, metavar: str, text: str, default: float | None = None
    ) -> None:
        """An option that is a number, int or float; its default is told in the help."""
        told = "" if default is None else f" (default: {default})"
        read = number if kind is float else kind
        self.add_argument(name, type=read, metavar=metavar, help=text + told, default=default)

    def add_choice(
        self, name: str, choices: tuple[str, ...], text: str, default: str | None = None
    ) -> None:
        """An option that is one of several words; its default is told in the help."""
        told = "" if default is None else f" (default: {default})"
        self.add_argument(name, choices=choices, help=text + told, default=default)

    def add_device(self) -> None:
        """Where a command computes."""
        self.add_choice("--device", ("auto", "cpu", "cuda"), "where to compute", default="auto")

    def add_sizes(self) -> None:
        """What a file of weights may not say of itself: num_heads, image_size and num_frames."""
        self.add_number("--num-heads", int, "H", "attention heads, where no preset tells them")
        for name, metavar in (("--image-size", "PIXELS"), ("--num-frames", "FRAMES")):
            text = f"{metavar.lower()} of its clips, where a file does not say them (V-JEPA 2)"
            self.add_number(name, int, metavar, text)

    def add_on_bad_video(self, what: str) -> None:
        """What becomes of a figure when a `what` cannot be read."""
        text = f"stop at a {what} that cannot be read, or name it in the result"
        self.add_choice("--on-bad-video", ("error", "list"), text, default="error")

    def add_flag(self, name: str, text: str) -> None:
        """An option without a value."""
        self.add_argument(name, action="store_true", help=text)

    def take_config(self, config_class: str, recipes: str | None = None) -> None:
        """Let this command take a config, of the class ``package.module:Class``."""
        self._config_class, self.recipes = config_class, recipes
        what = "YAML file or recipe name" if recipes else "YAML file"
        self.add_argument(
            "--config",
            action="append",
            default=[],
            metavar="NAME_OR_FILE" if recipes else "FILE",
            help=f"{what}; may be given several times, later ones win",
        )
        self.add_flag("--print-config", "print the resolved config and stop")

    def config_class(self) -> type | None:
        """The config class of this command, imported now; None if it takes no config."""
        return resolve_name(self._config_class) if self._config_class else None

    def add_commands(self, what: str) -> Callable[..., Parser]:
        """Let this command have subcommands, called `what` (in capitals) in the usage line.

        The function that is returned adds one: (its name, its help, whose first line is the
        summary, and the function that does the work, unless options say which).
        """
        self.set_defaults(parser=self)
        commands = self.add_subparsers(
            metavar=what, title=f"{what.lower()}s", parser_class=type(self)
        )

        def add(name: str, text: str, run: Callable[..., int] | None = None) -> Parser:
            parser: Parser = commands.add_parser(
                name,
                help=text.partition("\n")[0],
                description=text,
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
            parser.set_defaults(parser=parser, **({"run": run} if run else {}))
            self._commands = (*self._commands, name)
            return parser

        return add

    def parse_known_args(  # ty: ignore[incompatible-method-override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's; settings of the config become ``overrides``, as ``name=value``.

        They are set aside first: argparse, which does not know them, would take their values for
        positionals.

        Raises:
            UserError: A setting without a value, or something that is neither option nor setting.
        """
        namespace = argparse.Namespace() if namespace is None else namespace
        # A command with a config of its own may have subcommands, which take none of it.
        if not self._config_class or args is None or (args and args[0] in self._commands):
            return super().parse_known_args(args, namespace)
        own: list[str] = []
        aside: list[tuple[str, str | None]] = []
        rest, before = list(args), 0
        while rest:
            token = rest.pop(0)
            name, equals, value = token.partition("=")
            if not name.startswith("--") or name == "--" or name in self._known:
                last = next((one for one in reversed(own) if one.startswith("--")), "")
                if last in self._lists and len(aside) > before and not name.startswith("--"):
                    where = f"before the setting if it is for {last}, else before {last}"
                    raise UserError(f"{token}: put it {where}")
                before = len(aside)
                own.append(token)
            elif equals or not rest or rest[0].startswith("--"):
                aside.append((name, value if equals else None))
            else:
                aside.append((name, rest.pop(0)))
        found, extras = super().parse_known_args(own, namespace)
        if found.parser is not self:  # whose options would be lost
            raise UserError(f"{found.parser.prog}: its options stand behind it (see --help)")
        for name, value in aside:
            if "." not in name and self._is_misspelt_option(name):
                self.refuse_unknown([name])
            if value is None:
                raise UserError(f"{name} needs a value, as in {name} VALUE")
        self.refuse_unknown(extras)
        # As with options, a dash is as good as an underscore.
        found.overrides = [f"{name[2:].replace('-', '_')}={value}" for name, value in aside]
        return found, []

    def _is_misspelt_option(self, name: str) -> bool:
        """Whether a name without a dot is nearer to an option than to a setting."""
        cls = self.config_class()
        bare = name[2:].replace("-", "_")
        top = list(field_types(cls)) if cls else []
        options = [option[2:].replace("-", "_") for option in self._known]
        return bare not in top and nearest(bare, [*top, *options]) in options

    def refuse_unknown(self, extras: Sequence[str]) -> None:
        """Refuse what neither argparse nor a config knows, and name the nearest option."""
        if extras:
            name = extras[0].partition("=")[0]
            near = nearest(name.lstrip("-"), [option[2:] for option in self._known])
            suggestion = f"; did you mean --{near}?" if near and name.startswith("-") else ""
            lists = [a.metavar for a in self._get_positional_actions() if a.nargs in ("*", "+")]
            if lists and not name.startswith("-"):
                suggestion = f"; give all {lists[0]} together, with no option in between"
            raise UserError(f"unknown argument {name}{suggestion} (see {self.prog} --help)")

    def refuse_lost(self, args: argparse.Namespace) -> None:
        """Refuse to write over a file that the same command reads."""
        named = [value for name, value in vars(args).items() if name not in self._written]
        listed = (value if isinstance(value, list) else [value] for value in named)
        read = {one.resolve() for value in listed for one in value if isinstance(one, Path)}
        for name in self._written:
            path = getattr(args, name)
            if path is not None and path.resolve() in read:
                raise UserError(f"--{name} {path}: is to be read and would be lost; name another")

    def error(self, message: str) -> NoReturn:
        """Refuse the command line with one line instead of the whole usage."""
        choice = re.search(r"invalid choice: '([^']*)'", message)
        if choice and self._commands:
            message = f"unknown command {choice[1]}{suggested(choice[1], self._commands)}"
        raise UserError(f"{message} (see {self.prog} --help)")

    def format_help(self) -> str:
        """The usual help, then every setting of the config with type, default and meaning."""
        text, cls = super().format_help(), self.config_class()
        if cls is None:
            return text
        from vjepa.strict_yaml import write_yaml

        lines = [
            text,
            "settings (in a --config file, or here as --NAME VALUE; N counts list items from 0):",
        ]
        group = None
        for setting in settings(cls):
            above = setting.path.rpartition(".")[0].partition(".")[0]
            if above != group:
                group = above
                lines.append("")
            told = "required"
            if setting.default is not REQUIRED:
                value = plain(setting.default)
                shown = write_yaml({"x": value}).removeprefix("x:").strip() or "none"
                if isinstance(value, list) and any(isinstance(item, dict) for item in value):
                    shown = f"{len(value)} of them"
                told = f"default: {shown}"
            lines.append(f"  --{setting.path}  {setting.kind} ({told})")
            lines += textwrap.wrap(
                setting.meaning, 92, initial_indent=" " * 8, subsequent_indent=" " * 8
            )
        return "\n".join(lines) + "\n"


def prints(what: str, *options: str) -> Callable[[argparse.Namespace], int]:
    """A command that prints what a function gives, which takes these options by their names.

    And before them the config, if the command has one.
    """

    def run(args: argparse.Namespace) -> int:
        config = [resolve_config(args)] if args.parser.config_class() else []
        said = resolve_name(what)(*config, **given(args, *options))
        print(*(said if isinstance(said, list) else [said]), sep="\n")
        return 0

    return run


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the named options that the command has, by name."""
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def print_config(args: argparse.Namespace, config: Any) -> None:
    """Print what a job's config changes in its recipes, a setting a line, and where the rest is.

    Or in the config in the folder that it goes on with, or in the defaults.
    """
    if not world().is_main:
        return
    parser: Parser = args.parser
    known = recipe_names(parser.recipes) if parser.recipes else []
    names = [name for name in args.config if name in known]
    title = f"recipe {' and '.join(names)}" if names else str(args.stored or "the defaults")
    files = names or [path for path in (args.stored,) if path is not None]
    base = load_config(type(config), files, recipes=parser.recipes)
    # An item that is new or gone is said by what it holds.
    changed = [
        f"  {line.replace(': (absent) -> ', ': ')}"
        for line in diff(base, config)
        if not line.endswith(("(absent) -> None", "-> (absent)"))
    ]
    print(f"config: {title}{', with' if changed else ''}", *changed, sep="\n")
    print(f"  all settings, once it has begun: {args.out / RESOLVED_CONFIG_FILE}")


def resolve_config(
    args: argparse.Namespace,
    amend: Callable[[Any], Any] = lambda config: config,
    *,
    resumes: bool = False,
) -> Any:
    """The config of a job from its command line; ``--print-config`` prints it and ends here.

    `amend` makes the changes that other options ask for. A job that `resumes` takes the config in
    its folder where none is named.

    Raises:
        UserError: A bad file or override, or something needed that is missing.
        Answered: It was only to be printed.
    """
    parser: Parser = args.parser
    cls = parser.config_class()
    assert cls is not None, "this command takes no config"
    args.stored = None
    if resumes and args.out is not None and not args.config:
        stored, owner = args.out / RESOLVED_CONFIG_FILE, job_of(args.out)
        if owner not in (None, parser.prog.removeprefix("vjepa ")):
            raise UserError(f"{args.out}: belongs to `vjepa {owner}`; give another --out")
        args.stored = stored if stored.is_file() else None
    files = args.config if args.stored is None else [args.stored]
    config = amend(load_config(cls, files, args.overrides, recipes=parser.recipes))
    if args.print_config:
        print(dump_yaml(config), end="")
        raise Answered
    for name, said in parser.needed:
        if not getattr(args, name):
            command = parser.prog.removeprefix("vjepa ")
            took = [name for name in parser._lists if getattr(args, name[2:].replace("-", "_"))]
            hint = f"; words behind {took[0]} are its own" if took else ""
            raise UserError(f"{command} needs {said}{hint} (see {parser.prog} --help)")
    return config
