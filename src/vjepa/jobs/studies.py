"""Studies: grids of jobs declared in YAML, beside the numbers of the paper.

A study says what varies, with how many seeds, on which videos and at which scale: `cpu` for two
cores and at most two hours, `gpu` for one GPU and a night, `paper` for the paper's own recipes.
Every job of it is a usual one (`vjepa pretrain`, `vjepa probe train`, ...) with a usual config.
:class:`Grid` makes the jobs of a declaration; `studies_run` runs them, `studies_report` writes what
came of them.

Texts in a declaration may name what is known only when it is expanded: ``{data}`` the manifest of
the videos (``{data.folder}`` its folder), ``{label}``, ``{seed}``, ``{STEP}`` the folder of another
step of the same variant, ``{VARIANT/STEP}`` of another one, ``{files.NAME}`` a file given by the
user, ``{sets.NAME}`` another set's manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from itertools import product
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vjepa.config import load_config, recipe_names, recipe_path
from vjepa.errors import UserError, suggested
from vjepa.strict_yaml import parse_value, parse_yaml

ScaleName = Literal["cpu", "gpu", "paper"]
Command = Literal[
    "data synth", "pretrain", "probe train", "finetune", "detect train", "decode train"
]
SCALES: tuple[ScaleName, ...] = get_args(ScaleName)
COMMANDS: Mapping[str, tuple[str, str | None]] = {
    "data synth": ("vjepa.demo.synthetic:SyntheticConfig", None),
    "pretrain": ("vjepa.jobs.pretrain:PretrainConfig", "pretrain"),
    "probe train": ("vjepa.jobs.probe.config:ProbeConfig", "probe"),
    "finetune": ("vjepa.jobs.finetune.config:FinetuneConfig", "finetune"),
    "detect train": ("vjepa.jobs.detect.config:DetectConfig", "detect"),
    "decode train": ("vjepa.jobs.decode:DecodeConfig", "decode"),
}
"""What a step may run: ``vjepa COMMAND``, its config class, and its recipes."""
RECIPES = "studies"
COMMON = "common"
"""The packaged file of the steps and sets that the studies share."""
OUT = "{out}"
"""Stands for the study's folder in a job's config, so that the folder may be moved."""
_NAME = re.compile(r"\{([^{}]+)\}")
_MINUTES = ("training.max_cpu_minutes", "training.max_minutes")
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Step:
    """A job that every variant has."""

    job: Command | None = None
    """What is run; None: as `like` says."""
    like: str | None = None
    """A step of ``common.yaml`` that this one starts from."""
    recipes: tuple[str, ...] | str = ()
    """Packaged recipes of the job, in the order of ``--config``; or one."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Dotted names and values on top of them."""
    minutes: float | None = None
    """What it takes, roughly, on one core (cpu) or GPU, where no setting limits the time."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class VideoSet:
    """Videos that a study is run on: a file given by the user, or a set that is made."""

    about: str
    file: str | None = None
    """Name under which the user gives the manifest (``--files NAME=PATH``)."""
    make: dict[str, Any] | None = None
    """Or settings of ``vjepa data synth``."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By job: settings for these videos."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Scale:
    """The grid at one scale."""

    about: str
    """What is run, and how it differs from the paper."""
    sets: dict[str, tuple[str, ...]]
    """Sets of videos and the labels that are measured on each."""
    steps: dict[str, Step]
    """In the order in which they are run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    variants: dict[str, dict[str, dict[str, Any] | None]] | None = None
    """What varies: by variant and step the settings (`recipes` among them replaces the step's),
    null for a step that it does not have; None: as the study says."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Sweep:
    """A chart of a figure over a number that varies."""

    title: str
    x: str
    """Name of the axis."""
    lines: dict[str, dict[str, float]]
    """By line and variant: the number."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Study:
    """A declaration."""

    title: str
    shows: tuple[str, ...] = ()
    """Tables and figures of the paper."""
    question: str
    unit: str = "top-1 %"
    columns: tuple[str, ...] = ()
    """Of the paper's numbers."""
    rows: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    """The paper's numbers by variant."""
    order: tuple[tuple[str, ...], ...] = ()
    """What the paper finds: variants, the better one first."""
    variants: dict[str, dict[str, dict[str, Any] | None]] = field(default_factory=dict)
    """As in :class:`Scale`, for all scales."""
    sweeps: tuple[Sweep, ...] = ()
    pictures: tuple[Literal["masks", "samples"], ...] = ()
    """Pictures in the report: the masks of each variant, or samples of its decoder."""
    scales: dict[ScaleName, Scale]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Common:
    """What studies share."""

    steps: dict[str, Step]
    sets: dict[str, VideoSet]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True))
class Job:
    """One run of a command. Two cells that ask for the same job share it."""

    id: str
    """Name of its folder: the command and a hash of what is declared."""
    command: Command
    config: Any
    """Of the command's class; paths below the study's folder begin with :data:`OUT`."""
    needs: tuple[str, ...]
    """Jobs whose results it reads."""
    minutes: float
    what: str
    """Variant, set, label, step and seed of the first cell that asks for it."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A place in the grid."""

    variant: str
    videos: str
    label: str
    step: str
    seed: int
    job: str


def study_names() -> list[str]:
    """The packaged studies."""
    return [name for name in recipe_names(RECIPES) if name != COMMON]


def load_study(name: str) -> Study:
    """A packaged study by its name, or one of a YAML file by its path.

    Raises:
        UserError: There is none, or its declaration is not right.
    """
    if name.endswith((".yaml", ".yml")):
        return _read(Path(name), Study)
    if name not in study_names():
        near = suggested(name, study_names())
        raise UserError(f"{name}: no such study (`vjepa studies list` names all){near}")
    return _read(recipe_path(RECIPES, name), Study)


def _read(path: Path, kind: type) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a study's YAML file") from error
    try:
        return TypeAdapter(kind).validate_python(parse_yaml(text, str(path)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg'].lower()}; see docs/studies.md") from error


class _NotGivenError(Exception):
    """A file that the user has not named."""


class Grid:
    """The jobs of a study at a scale."""

    def __init__(
        self, study: Study, scale: ScaleName, files: Mapping[str, str], changes: tuple[str, ...]
    ) -> None:
        self.study, self.plan, self.scale = study, study.scales[scale], scale
        self.common: Common = _read(recipe_path(RECIPES, COMMON), Common)
        self._all = study.variants if self.plan.variants is None else self.plan.variants
        self.files, self.changes = files, changes
        self.plan, self.variants, self._by_step = _changed(self.plan, self._all, changes)
        self.jobs: dict[str, Job] = {}
        """By id, each after those that it needs."""
        self.cells: list[Cell] = []
        self.missing: dict[str, str] = {}
        """What is left out, and why."""
        self.known_files = {one.file for one in self.common.sets.values() if one.file is not None}
        """Names of the files that this study asks for, or the sets and steps that all share."""
        self.known_files |= set(re.findall(r"{files\.(.+?)}", f"{study} {self.common}"))
        known = {step for plan in study.scales.values() for step in plan.steps}
        for variant, changed in self._all.items():
            if unknown := [step for step in changed if step not in known]:
                raise UserError(f"{study.title}: {variant}/{unknown[0]}: no such variant or step")
        for seed, videos, variant in product(self.plan.seeds, self.plan.sets, self.variants):
            self._add_cells(videos, variant, seed)

    def _add_cells(self, videos: str, variant: str, seed: int) -> None:
        try:
            self._manifest(videos)
        except _NotGivenError as error:
            about = self.common.sets[videos].about
            self.missing[f"set {videos} ({about})"] = f"give --files {error}=MANIFEST"
            return
        for step in self.plan.steps:
            if self.variants[variant].get(step, {}) is None:
                continue
            declared = json.dumps(self._declared(videos, variant, step))
            for label in self.plan.sets[videos] if "{label}" in declared else ("",):
                try:
                    job = self._job(videos, variant, step, label, seed)
                except _NotGivenError as error:
                    self.missing[f"row {variant}, {step}"] = f"give --files {error}=PATH"
                    continue
                self.cells.append(
                    Cell(variant=variant, videos=videos, label=label, step=step, seed=seed, job=job)
                )

    def _step(self, name: str) -> Step:
        step = self.plan.steps[name]
        base = step if step.like is None else self.common.steps.get(step.like)
        if base is None or (job := step.job or base.job) is None:
            raise UserError(
                f"{self.study.title}: step {name}: give job, or like with a step of {COMMON}.yaml"
            )
        settings, recipes = base.settings | step.settings, step.recipes or base.recipes
        minutes = step.minutes or base.minutes
        return Step(job=job, recipes=recipes, settings=settings, minutes=minutes)

    def _declared(self, videos: str, variant: str, name: str) -> dict[str, Any]:
        """Settings of a step, `recipes` among them, with everything in braces still there.

        A set's go before those of the step that the declared one is like, not before its own.
        """
        step, own = self._step(name), self.plan.steps[name].settings
        assert step.job is not None
        of_set = self.common.sets[videos].settings.get(step.job, {})
        changed = self._all[variant].get(name) or {}
        of_user = self._by_step.get(name, {})
        made = {"recipes": step.recipes} | step.settings | of_set | own | changed | of_user
        names = [made["recipes"]] if isinstance(made["recipes"], str) else made["recipes"] or []
        if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
            raise UserError(f"{self.study.title}: {name}.recipes: {names}: give a list of names")
        return made | {"recipes": list(names)}

    def _job(
        self, videos: str, variant: str, name: str, label: str, seed: int, above: tuple = ()
    ) -> str:
        """The id of a step's job; it and those before it are added; `above` need it."""
        if variant not in self._all or name not in self.plan.steps:
            raise UserError(f"{self.study.title}: {variant}/{name}: no such variant or step")
        if (here := (variant, name)) in above:
            raise UserError(f"{self.study.title}: {variant}/{name}: needs itself")
        needs: list[str] = []

        def filled(text: str) -> Any:
            known = {"out": OUT, "label": label, "seed": seed}
            if text in known:
                return known[text]
            kind, _, rest = text.partition(".")
            if kind == "files":
                if rest not in self.files:
                    raise _NotGivenError(rest)
                return self.files[rest]
            if kind in ("data", "sets"):
                manifest, needed = self._manifest(rest if kind == "sets" else videos)
                needs.extend(needed)
                return str(Path(manifest).parent) if text == "data.folder" else manifest
            other, _, step = text.rpartition("/")
            job = self._job(videos, other or variant, step, label, seed, (*above, here))
            needs.append(job)
            return f"{OUT}/jobs/{job}"

        settings = _filled(self._declared(videos, variant, name), filled)
        step, what = self._step(name), f"{variant}, {name}, {videos} {label}".rstrip()
        assert step.job is not None
        settings.setdefault("seed", seed)
        return self._add(step.job, settings, needs, step.minutes or 1.0, f"{what}, seed {seed}")

    def _manifest(self, name: str) -> tuple[str, list[str]]:
        """A set's manifest, and the job that makes it."""
        if name not in self.common.sets:
            raise UserError(f"{self.study.title}: {name}: no such set in {COMMON}.yaml")
        videos = self.common.sets[name]
        if videos.make is None:
            assert videos.file is not None
            if videos.file not in self.files:
                raise _NotGivenError(videos.file)
            return self.files[videos.file], []
        job = self._add("data synth", dict(videos.make), [], 3.0, f"making the set {name}")
        return f"{OUT}/jobs/{job}/manifest.parquet", [job]

    def _add(
        self,
        command: Command,
        settings: dict[str, Any],
        needs: list[str],
        minutes: float,
        what: str,
    ) -> str:
        """Add a job, unless it is there; its id."""
        declared = json.dumps([command, settings], sort_keys=True)
        digest = hashlib.sha256(declared.encode()).hexdigest()
        job = f"{command.replace(' ', '-')}-{digest[:10]}"
        if job not in self.jobs:
            recipes, cls = settings.pop("recipes", None) or (), config_class(command)
            config = load_config(cls, recipes, settings, COMMANDS[command][1])
            limits = [settings[name] for name in _MINUTES if settings.get(name)]
            self.jobs[job] = Job(
                id=job,
                command=command,
                config=config,
                needs=tuple(dict.fromkeys(needs)),
                minutes=float(min(limits, default=minutes)),
                what=what,
            )
        return job


def config_class(command: str) -> Any:
    """The config class of a command, imported now."""
    return resolve_name(COMMANDS[command][0])


def _changed(
    plan: Scale, variants: dict[str, dict], changes: tuple[str, ...]
) -> tuple[Scale, dict[str, dict], dict[str, dict[str, Any]]]:
    """The user's changes: the grid with its seeds, sets and variants, and settings by step."""
    kept, by_step = list(variants), {}
    for change in changes:
        name, equals, text = change.partition("=")
        step, _, setting = name.partition(".")
        value = parse_value(text)
        if equals and name in ("seeds", "sets"):
            try:
                plan = replace(plan, **{name: value})
            except ValidationError as error:
                message = error.errors(include_url=False)[0]["msg"].lower()
                raise UserError(f"--set {change}: {message}; see docs/studies.md") from error
        elif equals and name == "variants":
            kept = value if isinstance(value, list) else [value]
        elif equals and setting and step in plan.steps:
            by_step.setdefault(step, {})[setting] = value
        else:
            raise UserError(
                f"--set {change}: give STEP.SETTING=VALUE; steps are {', '.join(plan.steps)}; or "
                "seeds, sets or variants of the grid, as seeds=[0, 1]"
            )
    if unknown := [name for name in kept if name not in variants]:
        raise UserError(f"--set variants: {unknown[0]}: they are {', '.join(variants)}")
    if not (kept and plan.seeds and plan.sets):
        raise UserError("--set: nothing is left to run; give a seed, a set and a variant at least")
    return plan, {name: variants[name] for name in kept}, by_step


def _filled(value: Any, fill: Callable[[str], Any]) -> Any:
    """A value with every name in braces replaced; a text that is only a name becomes what it is."""
    if isinstance(value, dict):
        return {name: _filled(item, fill) for name, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, fill) for item in value]
    if not isinstance(value, str):
        return value
    whole = _NAME.fullmatch(value)
    return fill(whole[1]) if whole else _NAME.sub(lambda found: str(fill(found[1])), value)


def with_folder(value: Any, out: Path) -> Any:
    """Plain values of a job's config with the study's folder in its place."""
    return _filled(value, lambda name: str(out) if name == "out" else f"{{{name}}}")
