"""The format of our checkpoint folders: names, configuration, integrity, search, writing, reading.

``model.safetensors`` holds ``encoder.*``, ``target_encoder.*`` and ``predictor.*``; position codes
are computed, never stored. ``config.json`` holds `format`, `version`, `step`, `objective`, `model`
and `run`. A training run adds the folder ``state`` and ``manifest.json`` with size and SHA-256 of
every file, so that a truncated or altered checkpoint is refused instead of half-loaded.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from os import PathLike
from pathlib import Path
from shutil import disk_usage
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vjepa.checkpoint.catalogue import MODELS, downloaded
from vjepa.checkpoint.strict import compare, plain_name, plain_names, shapes
from vjepa.config import from_dict, to_dict
from vjepa.errors import UserError
from vjepa.models import VJEPA, EncoderConfig, ModelConfig, PredictorConfig
from vjepa.paths import as_path
from vjepa.runtime import files as runtime_files
from vjepa.runtime.files import atomic_folder, save_tensors, stand_in
from vjepa.version import __version__

WEIGHTS_FILE = "model.safetensors"
MODEL_TYPE = "vjepa2"
"""Of the Hugging Face folders that are read."""
CONFIG_FILE = "config.json"
STATE_FOLDER = "state"
TRAINER_FILE = f"{STATE_FOLDER}/trainer.json"
MANIFEST_FILE = "manifest.json"
CHECKPOINTS_FOLDER = "checkpoints"
"""In a run folder; holds one folder for each step that is kept."""
FORMAT = "vjepa"
MANIFEST_FORMAT = "vjepa-checkpoint"
SHIPPED = Path(str(resources.files("vjepa"))) / "weights"
_LOGGER = logging.getLogger(__name__)
_STEP_FOLDER = re.compile(r"step_(\d+)")
_MAX_JSON_BYTES = 1 << 24
_MAX_SIZE = 1 << 20
"""No width, depth or grid of a model comes near this."""
_MAX_RATIO = 1000

Which = Literal["target", "context"]
"""The two encoders of a model: the moving average, which is evaluated, and the trained one."""
_WITHOUT_FEATURES = ("pixel", "levjepa", "frozen-teacher")
"""Objectives of ours whose checkpoints hold no model that predicts its own features."""
ENCODER_KEYS: dict[Which, str] = {"target": "target_encoder", "context": "encoder"}


def locate(path: str | PathLike[str]) -> Path:
    """What a path means, the name of weights that come with the package, or of a known model.

    A bare name that is known is that, whatever lies here; ``./NAME``, or any other path, is a path.

    Raises:
        UserError: A known model that was not downloaded, or a configuration in place of weights.
    """
    place, known = as_path(path), {*shipped_names(), *MODELS}
    if place.suffix in (".json", ".yaml"):
        raise UserError(f"{place}: a configuration, no weights; give the folder that it lies in")
    if place.name == WEIGHTS_FILE and hub_config(place).get("model_type") == MODEL_TYPE:
        return place.parent
    if str(place) not in known:
        return place
    if place.exists():
        _say_taken(str(place))
    return SHIPPED / place if place.name in shipped_names() else downloaded(place.name)


@cache
def _say_taken(name: str) -> None:
    _LOGGER.warning("%s: the model of that name is taken; what lies here is ./%s", name, name)


def hub_config(path: Path) -> dict[str, Any]:
    """``config.json`` of a Hugging Face folder, or of that around a file; empty: it is none."""
    file = (path if path.is_dir() else path.parent) / CONFIG_FILE
    content = read_json(file) if file.is_file() else {}
    is_ours = content.get("format") == FORMAT or not isinstance(content.get("model_type"), str)
    return {} if is_ours else content


def shipped_names() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir())


@contextmanager
def explained_version(source: str, version: object) -> Generator[None]:
    """Where reading fails and a newer version wrote the file, that is said."""
    try:
        yield
    except UserError as error:
        ours, theirs = (re.findall(r"\d+", str(of)) for of in (__version__, version))
        if [int(n) for n in theirs] <= [int(n) for n in ours]:
            raise
        raise UserError(
            f"{source}: written by vjepa {version}, which is newer than this {__version__}: "
            f"upgrade vjepa to read it ({error})"
        ) from error


@dataclass(frozen=True)
class CheckpointConfig:
    """What ``config.json`` says."""

    step: int  # updates done
    objective: str
    """"vjepa" (feature prediction), "pixel" (pixel prediction), or the name of another task."""
    model: ModelConfig
    run: dict[str, Any]
    """The resolved config of the run that wrote it, in plain values; empty if there was none."""
    preprocess: dict[str, Any]
    """How the encoder's input is made of a video; empty where that was not recorded."""
    version: str  # of vjepa, that wrote it

    @property
    def clip(self) -> dict[str, Any] | None:
        """Which frames its clips take, in plain values; of before there was a record, the run's."""
        data = self.run.get("data")
        clip = self.preprocess.get("clip") or (data.get("clip") if isinstance(data, dict) else None)
        return clip if isinstance(clip, dict) else None


def step_folders(checkpoints: Path) -> dict[int, Path]:
    """The complete checkpoints of a run by step, ascending; loading checks that they are intact."""
    found = {
        int(name[1]): path
        for path in (checkpoints.iterdir() if checkpoints.is_dir() else ())
        if (name := _STEP_FOLDER.fullmatch(path.name))
        and any((path / file).is_file() for file in (MANIFEST_FILE, WEIGHTS_FILE))
    }
    return dict(sorted(found.items()))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that a path means: itself, or the newest of a run, or of `learn`'s."""
    path = locate(path)
    folder = path.parent if path.name == WEIGHTS_FILE else path
    files = (CONFIG_FILE, WEIGHTS_FILE)
    inner = folder / "run" / CHECKPOINTS_FOLDER  # of `vjepa learn`
    if inner.is_dir() and not any((folder / name).exists() for name in files):
        folder = inner.parent
    if (folder / CHECKPOINTS_FOLDER).is_dir() and not (folder / WEIGHTS_FILE).exists():
        found = step_folders(folder / CHECKPOINTS_FOLDER)
        if not found:
            raise UserError(f"{path}: the run has no checkpoint yet")
        folder = found[max(found)]
    for name in files:
        if not (folder / name).is_file():
            raise UserError(
                f"{path}: not a checkpoint folder: {name} is missing; give a folder with "
                f"{CONFIG_FILE} and {WEIGHTS_FILE}, or a run folder"
            )
    return folder


def read_config(folder: Path) -> CheckpointConfig:
    """Read ``config.json`` of a checkpoint folder; what is not ours or cannot be is refused."""
    path = folder / CONFIG_FILE
    content = read_json(path)
    if content.get("format") != FORMAT:
        kind = content.get("model_type")
        said = f" (model_type {kind})" if kind else ""
        raise UserError(
            f"{path}: not written by vjepa{said}; give a checkpoint or run folder of ours"
        )
    if not isinstance(content.get("model"), dict):
        if content.get("objective") == "detection":
            raise UserError(
                f"{path}: of a detector, whose encoder is not in it; give that (encoder.path in "
                "the detector's config.yaml)"
            )
        raise UserError(f"{path}: has no group 'model' with its sizes; copy it again")
    version = str(content.get("version", ""))
    with explained_version(str(path), version):
        model = from_dict(ModelConfig, content["model"], source=f"{path} (model)")
    step, objective = content.get("step", 0), content.get("objective")
    if not isinstance(step, int) or not isinstance(objective, str):
        raise UserError(
            f"{path}: step {step!r} or objective {objective!r} cannot be; copy the file again"
        )
    groups = (content.get(name) for name in ("run", "preprocess"))
    run, preprocess = (group if isinstance(group, dict) else {} for group in groups)
    return CheckpointConfig(step, objective, model, run, preprocess, version)


def described(path: str | PathLike[str]) -> CheckpointConfig | None:
    """What a path or name says of itself; None for files of others, which say nothing."""
    found = locate(path)
    ours = (found.is_dir() or found.name == WEIGHTS_FILE) and not hub_config(found)
    return read_config(find_checkpoint(found)) if ours else None


Tokens = Literal["before_norm", "two_poolings"]
"""Another token map than the usual one, where a published model of others has one."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which encoder of a file is wanted, and what its file does not say; None: the usual."""

    which: Which | None = None
    num_heads: int | None = None
    image_size: int | None = None  # pixels that its positions are for
    num_frames: int | None = None  # frames that its positions are for
    tokens: Tokens | None = None

    def __post_init__(self) -> None:
        for name in ("num_heads", "image_size", "num_frames"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise UserError(f"{name}: must be at least 1, got {value}; or leave it out")


def require_unasked(asked: Asked, path: Path, *names: str) -> None:
    """Refuse what was said of a file that says it itself."""
    for name in names or ("image_size", "num_frames", "tokens"):
        if getattr(asked, name) is not None:
            raise UserError(f"{path}: encoder.{name}: such a file says it itself; leave it out")


@dataclass(frozen=True)
class Held:
    """What a folder or file holds of a model or an encoder, recognised but not yet compared."""

    source: str
    kind: str
    encoder: EncoderConfig
    predictor: PredictorConfig | None
    tensors: dict[str, Tensor]  # by their name in the module
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # the last two as in the report of loading
    version: str = ""  # of vjepa, that wrote it
    title: str = ""  # which published model of others it is; empty: V-JEPA
    assumed: tuple[str, ...] = ()
    """What the file does not say and the caller did not either, each with the option that does."""
    build: Callable[[EncoderConfig], nn.Module] | None = None
    """Makes the module where it is not an :class:`vjepa.models.Encoder`."""


def open_folder(folder: Path, which: Which | None, num_heads: int | None) -> Held:
    """What a checkpoint folder holds of a model, or of one encoder; the rest is not read.

    A checkpoint of another task without a target encoder gives its one encoder for either `which`;
    `num_heads`, if given, must be what the folder says.
    """
    config, weights = read_config(folder), folder / WEIGHTS_FILE
    if config.objective == "decoder":
        raise UserError(
            f"{folder}: holds a decoder and no model (`vjepa decode sample` uses it); give the "
            f"model that it was trained for: {config.run.get('model')}"
        )
    encoder, predictor = config.model.encoder, config.model.predictor
    if num_heads is not None and num_heads != encoder.heads:
        raise UserError(
            f"{folder}: has {encoder.heads} heads, not {num_heads}; leave num_heads out"
        )
    # Before a model of sizes that the weights cannot have is built.
    for name, value in [*to_dict(encoder).items(), *to_dict(predictor).items()]:
        limit = _MAX_RATIO if name == "mlp_ratio" else _MAX_SIZE
        if isinstance(value, int | float) and value > limit:
            raise UserError(f"{folder / CONFIG_FILE}: {name} {value} cannot be")
    with opened_weights(weights) as file:
        names = plain_names(file.keys(), str(weights))
    if any(".lora_" in name for name in names):
        raise UserError(
            f"{folder}: holds layers and LoRA's small matrices apart, for a fine-tuning that goes "
            "on; give the plain model that it writes at its end (the folder model of its run)"
        )
    depth = max(encoder.depth, predictor.depth)
    if depth > len(names):
        raise UserError(
            f"{folder / CONFIG_FILE}: depth {depth}, but {weights.name} holds {len(names)} tensors"
        )
    of = "" if config.objective == "vjepa" else f" of {config.objective} prediction"
    kind = f"a vjepa checkpoint{of}, step {config.step}"
    parts = ("encoder", "target_encoder", "predictor")
    if which is None:
        has_all = {*parts} <= {name.partition(".")[0] for name in names}
        if of and (config.objective in _WITHOUT_FEATURES or not has_all):
            raise UserError(
                f"{folder}: holds a model of {config.objective!r}, which predicts no features; "
                "give one of feature prediction, or take its encoder alone (load_encoder)"
            )
        tensors = read_weights(weights)
        # A task of somebody's own, as a subclass of feature prediction, may have more.
        more = tuple(name for name in tensors if of and name.partition(".")[0] not in parts)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in more}
        return Held(str(folder), kind, encoder, predictor, tensors, more, version=config.version)
    key = ENCODER_KEYS[which]
    if of and not any(name.startswith(f"{key}.") for name in names):
        key = "encoder"
    kind += f", its {key.replace('_', ' ')}"
    tensors = read_weights(weights, prefix=f"{key}.")
    return Held(str(folder), kind, encoder, predictor, tensors, version=config.version)


@contextmanager
def opened_weights(path: Path) -> Generator[safe_open]:
    """A safetensors file for reading."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        what = stand_in(path) or f"truncated or not a safetensors file ({error}); copy it again"
        raise UserError(f"{path}: {what}") from error


def read_weights(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a safetensors file whose plain name begins with `prefix`, without it."""
    with opened_weights(path) as file:
        return {
            name.removeprefix(prefix): file.get_tensor(stored)
            for name, stored in plain_names(file.keys(), str(path)).items()
            if name.startswith(prefix)
        }


def write_weights(
    folder: Path, tensors: Mapping[str, Tensor], step: int, config: Mapping[str, Any]
) -> None:
    """Write the two files that every checkpoint has into a folder that nobody reads yet.

    Tensors have full names, and keep their dtype; `config` holds ``objective``, ``model`` and
    ``run`` as plain JSON types.
    """
    names = plain_names(tensors, str(folder))
    plain: dict[str, Tensor] = {}
    held = set[int]()
    for name, full in names.items():
        tensor = tensors[full].detach().cpu().contiguous()
        # One tensor under two names is written twice: the format knows no shared ones.
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in held else tensor
        held.add(storage)
    save_tensors(folder / WEIGHTS_FILE, plain, {"format": "pt"})
    header = {"format": FORMAT, "version": __version__, "step": step}
    write_json(folder / CONFIG_FILE, header | dict(config))


def save_model(
    folder: str | Path,
    model: nn.Module,
    *,
    step: int = 0,
    run: Mapping[str, Any] | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model as a checkpoint folder, in its dtype; whoever sees the folder sees all of it.

    `model` is a :class:`vjepa.models.VJEPA`; it, or parts of it, may be compiled or wrapped by
    ``DistributedDataParallel``. `preprocess` None: as `run` says, or as its target encoder has it.

    Raises:
        UserError: The folder exists, or cannot be written (full disk, no permission); or the model
            has other tensors than its config says, which no reader would take.
    """
    folder = Path(folder)
    require_absent(folder)
    inner = model
    while not isinstance(inner, VJEPA):
        wrapped = getattr(inner, "_orig_mod", getattr(inner, "module", None))
        if wrapped is None:
            raise UserError(f"{folder}: a {type(model).__name__} is no whole model: give the VJEPA")
        inner = wrapped
    tensors = {plain_name(name): tensor for name, tensor in inner.state_dict().items()}
    with torch.device("meta"):
        wanted = shapes(VJEPA(inner.config).state_dict())
    compare(str(folder), "", shapes(tensors), wanted).require_complete(
        "nothing was written: merge or remove adapters and other changes first"
    )
    config = {"objective": "vjepa", "model": to_dict(inner.config), "run": dict(run or {})}
    if preprocess is None and not run:  # of a model that was loaded
        how = getattr(inner.target_encoder, "preprocess", None)
        preprocess = {} if how is None else {"clip": to_dict(how.clip), "view": to_dict(how.view)}
    if preprocess:
        config["preprocess"] = dict(preprocess)
    with explained_writing(folder, also=RuntimeError), atomic_folder(folder) as aside:
        write_weights(aside, tensors, step, config)
    return folder


def require_absent(destination: Path) -> None:
    """Refuse to write where something is."""
    if destination.exists():
        raise UserError(f"{destination}: exists already; give another name or remove it")


def _checkpoint_exception() -> tuple[type[BaseException], ...]:
    """What DCP raises, where it was loaded: no Exception, and it hides the OSError behind it."""
    loaded = sys.modules.get("torch.distributed.checkpoint.api")
    return () if loaded is None else (loaded.CheckpointException,)


@contextmanager
def explained_writing(
    destination: Path,
    remedy: str = "choose another place",
    what: str = "",
    also: type[Exception] = OSError,
) -> Generator[None]:
    """Turn what goes wrong while a file or folder is written into one line for people.

    `also`: RuntimeError is what torch and safetensors raise, but lost connections are that as well.
    """
    try:
        yield
    except (OSError, also, *_checkpoint_exception()) as error:
        full = (
            getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            # The libraries below wrap or lose the error number; text and free space are left.
            or "No space left" in str(error)
            or (destination.parent.is_dir() and disk_usage(destination.parent).free < 2**20)
        )
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{destination}: {what}could not be written: {'the disk is full' if full else said}; "
            f"{remedy}"
        ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object, indented."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read an object of a checkpoint; a file that is too large or holds none is refused."""
    if path.is_file() and path.stat().st_size > _MAX_JSON_BYTES:
        raise UserError(f"{path}: larger than any file of ours; give a checkpoint or run folder")
    return runtime_files.read_json(path, "give a complete checkpoint or run folder of ours")


def write_manifest(folder: Path) -> None:
    """List every file of a completely written folder with its size and SHA-256."""
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_json(folder / MANIFEST_FILE, {"format": MANIFEST_FORMAT, "files": files})


def verify_checkpoint(folder: Path) -> None:
    """Refuse a training run's checkpoint of which a file is not as its manifest says."""
    path = folder / MANIFEST_FILE
    manifest = read_json(path)
    files = manifest.get("files")
    if manifest.get("format") != MANIFEST_FORMAT or not isinstance(files, dict):
        raise UserError(f"{path}: is not the integrity file of a checkpoint; copy it again")
    for name in (WEIGHTS_FILE, CONFIG_FILE, TRAINER_FILE):
        if name not in files:
            raise UserError(f"{path}: does not list {name}; copy the checkpoint again")
    for name, recorded in files.items():
        file = folder / name
        if not (isinstance(recorded, dict) and {"bytes", "sha256"} <= recorded.keys()):
            raise UserError(f"{path}: its entry of {name} is damaged; copy it again")
        if not file.is_file():
            raise UserError(f"{file}: is missing from the checkpoint")
        size = file.stat().st_size
        if size != recorded["bytes"]:
            raise UserError(f"{file}: has {size} bytes instead of {recorded['bytes']} (truncated?)")
        if file_sha256(file) != recorded["sha256"]:
            raise UserError(f"{file}: content was altered or damaged (SHA-256 differs)")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
