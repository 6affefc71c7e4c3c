"""Models from anything that holds one, and conversion between the authors' layout and ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from vjepa.checkpoint.catalogue import MODELS
from vjepa.checkpoint.folder import (
    CONFIG_FILE,
    ENCODER_KEYS,
    MODEL_TYPE,
    SHIPPED,
    WEIGHTS_FILE,
    Asked,
    Held,
    Tokens,
    Which,
    described,
    explained_version,
    explained_writing,
    find_checkpoint,
    hub_config,
    locate,
    open_folder,
    require_absent,
    require_unasked,
    save_model,
    shipped_names,
)
from vjepa.checkpoint.foreign import open_foreign
from vjepa.checkpoint.foreign_models import require_named, require_sizes
from vjepa.checkpoint.huggingface import open_hub, require_hub_model, write_hub
from vjepa.checkpoint.inference import buildable
from vjepa.checkpoint.released import (
    open_released,
    released_layout,
    released_step,
    released_training_state,
)
from vjepa.checkpoint.state import load_optimizer_state, load_whole
from vjepa.checkpoint.store import has_state, load_checkpoint
from vjepa.checkpoint.strict import LoadReport, load_strictly
from vjepa.checkpoint.timm_models import TimmEncoder
from vjepa.config import recipe_names, to_dict
from vjepa.errors import UserError, suggested
from vjepa.models import PRESETS, VJEPA, Encoder, ModelConfig
from vjepa.paths import as_path
from vjepa.runtime.distributed import ProcessGroup
from vjepa.runtime.files import atomic_folder, atomic_path


def shipped_weights() -> Path:
    """The checkpoint folder that comes with the package; `README.md` in it is the model card."""
    return find_checkpoint(SHIPPED / "demo")


@torch.inference_mode(mode=False)  # weights that were made in it could never be trained
def read_model(
    path: str | Path, num_heads: int | None = None, **sizes: int | None
) -> tuple[VJEPA, LoadReport]:
    """Load encoder, target encoder and predictor, strictly: float32, CPU, evaluation mode.

    `path` is a checkpoint folder of ours, a run folder (its latest checkpoint), the name of weights
    that come with the package (``demo``), or the authors' ``.pth.tar`` file, which needs
    `num_heads` where its size is no preset, and perhaps the `sizes` `image_size` and `num_frames`.

    Raises:
        UserError: Nothing there, damaged, foreign, or of another shape.
    """
    held = _open(path, _sized(Asked(num_heads=num_heads), sizes))
    assert held.predictor is not None
    with buildable("model", held.source), torch.device("meta"):
        model = VJEPA(ModelConfig(encoder=held.encoder, predictor=held.predictor))
    report = _fill(model, held)
    model.reset_position_codes()
    return model.eval(), report


AnyEncoder = Encoder | TimmEncoder
"""An encoder of ours, or of others in an architecture of its own, which `timm` computes."""


@torch.inference_mode(mode=False)
def read_encoder(
    path: str | Path,
    which: Which = "target",
    num_heads: int | None = None,
    *,
    tokens: Tokens | None = None,
    **sizes: int | None,
) -> tuple[AnyEncoder, LoadReport]:
    """Load one encoder as :func:`read_model`; the rest of the file is not needed and not read.

    `path` may also be a published file of the models in :mod:`vjepa.checkpoint.catalogue`, or the
    name of one that was downloaded.

    Args:
        which: "target" (the moving average, which the paper evaluates) or "context"; there is no
            falling back from one to the other. A pixel-prediction checkpoint has one encoder for
            either, as most models of others.
        tokens: Another token map than the usual one, where the model has one.
        sizes: `image_size` and `num_frames`, the pixels and frames that its positions are for,
            where the file does not say them.

    Raises:
        UserError: As :func:`read_model`, or there is no such encoder.
    """
    if which not in ("target", "context"):
        raise UserError(f"which: {which!r} must be 'target' or 'context'")
    asked = Asked(which=which, num_heads=num_heads, tokens=tokens)
    held = _open(path, _sized(asked, sizes))
    with torch.device("meta"):
        encoder = Encoder(held.encoder) if held.build is None else held.build(held.encoder)
    assert isinstance(encoder, Encoder | TimmEncoder)
    report = _fill(encoder, held)
    if isinstance(encoder, Encoder):
        encoder.reset_position_code()
    return encoder.eval(), report


def _sized(asked: Asked, sizes: Mapping[str, int | None]) -> Asked:
    known = ("image_size", "num_frames")
    if unknown := [name for name in sizes if name not in known]:
        raise UserError(f"{unknown[0]}: no such size; give {' or '.join(known)}")
    return replace(asked, **sizes)


def _open(path: str | Path, asked: Asked) -> Held:
    """What a path or name holds of a model, or of one encoder."""
    found = locate(path)
    held = open_foreign(found, asked)
    if held is not None:
        if asked.which is None:
            raise UserError(
                f"{path}: {held.title}, an encoder without a predictor; give a model that has one"
            )
        if str(path) in MODELS:
            require_named(held, str(path))
        return held
    if is_hub(found):
        return open_hub(found, asked)
    if _is_ours(path):
        require_unasked(asked, Path(path))
        return open_folder(find_checkpoint(found), asked.which, asked.num_heads)
    held = open_released(found, asked)
    if str(path) in MODELS:
        require_sizes(held, str(path))
    return held


def is_hub(path: str | Path) -> bool:
    """Whether it is a Hugging Face folder of V-JEPA 2."""
    path = locate(path)
    return path.is_dir() and hub_config(path).get("model_type") == MODEL_TYPE


def _fill(module: nn.Module, held: Held) -> LoadReport:
    with explained_version(held.source, held.version):
        report = load_strictly(
            module, held.tensors, held.source, held.kind, dropped=held.dropped, notes=held.notes
        )
        return replace(report, title=held.title, assumed=held.assumed)


def _is_ours(path: str | Path) -> bool:
    """Whether to read a path or name as a folder of ours; otherwise it is a file of torch."""
    path = locate(path)
    if path.is_dir() or path.name == WEIGHTS_FILE:
        return True
    if not path.exists():
        known = str(path) in (*PRESETS, *recipe_names("pretrain"))
        what = "names a recipe or size, not weights" if known else "no such file or folder"
        raise UserError(
            f"{path}: {what}; give a run, a checkpoint folder, an authors' file, or the name of "
            f"weights that come with vjepa ({', '.join(shipped_names())}) or were downloaded"
            f"{suggested(str(path), MODELS)}"
        )
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path}: weights without their configuration, and not those of a known model; give "
            f"the folder that holds {WEIGHTS_FILE} and {CONFIG_FILE}"
        )
    return False


def read_sizes(path: str | Path, num_heads: int | None = None) -> ModelConfig:
    """The sizes of the model that :func:`read_model` would read."""
    about = described(path) if not is_hub(path) and _is_ours(path) else None
    if about is not None and num_heads in (None, about.model.encoder.heads):
        return about.model
    held = _open(path, Asked(num_heads=num_heads))
    assert held.predictor is not None
    return ModelConfig(encoder=held.encoder, predictor=held.predictor)


def start_training(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    keep: bool | None,
    group: ProcessGroup,
) -> tuple[int | None, str]:
    """Load what :func:`read_model` reads into a training: weights, and the optimiser's state.

    `keep` says whether that is taken over; None: where there is one. `modules` are those of
    :class:`vjepa.tasks.Task`, perhaps sharded. Returned are the updates behind the state, None
    without it, and what was read, in words.

    Raises:
        UserError: As :func:`read_model`; or no state is there that must be.
    """
    if not is_hub(path) and _is_ours(path):
        folder = find_checkpoint(path)
        keep = has_state(folder) if keep is None else keep
        step, _ = load_checkpoint(folder, modules, optimizer if keep else None, group)
        return (step if keep else None), str(folder)
    path = locate(path)
    # Heads change no tensor; any number that the widths allow will do to look at them.
    held = open_hub(path, Asked()) if is_hub(path) else open_released(path, Asked(num_heads=1))
    report = load_whole(modules, held.tensors, held.source, "nothing was loaded", held.dropped)
    if keep and is_hub(path):
        raise UserError(f"{path}: holds no optimiser state; start with keep_optimizer false")
    keep = not is_hub(path) and released_step(path) > 0 if keep is None else keep
    if not keep:
        return None, str(report)
    state = released_training_state(path)
    trained = {name: modules[name] for name in ("encoder", "predictor")}
    load_optimizer_state(optimizer, trained, state.moments, str(path))
    return state.step, str(report)


Layout = Literal["ours", "authors", "huggingface"]


def convert(
    src: str | Path,
    dst: str | Path,
    num_heads: int | None = None,
    *,
    layout: Layout | None = None,
    which: Which = "target",
    **sizes: int | None,
) -> LoadReport:
    """Read what :func:`read_model` reads, write it in one of the layouts, compare what is there.

    `dst` must not exist. `layout` None: ending in .tar, .pth or .pt it gets the authors' layout,
    otherwise it becomes a checkpoint folder of ours. A Hugging Face folder has one encoder: `which`
    it is. The report is that of reading `src`.

    Raises:
        UserError: `src` cannot be read, `dst` exists or cannot be written, or they differ.
    """
    src, dst = as_path(src), Path(dst)
    require_absent(dst)
    found, about = locate(src), described(src)
    model, report = read_model(src, num_heads, **sizes)
    if layout is None:
        layout = "authors" if dst.suffix in (".tar", ".pth", ".pt") else "ours"
    if layout not in get_args(Layout):
        raise UserError(f"layout: {layout!r} is none of {', '.join(get_args(Layout))}")
    if which != "target" and layout != "huggingface":
        raise UserError(
            f"which: {which!r} is for the layout huggingface, which has one encoder; {dst} gets "
            "both: leave it out"
        )
    if layout == "authors":
        with explained_writing(dst, also=RuntimeError), atomic_path(dst) as aside:
            torch.save(released_layout(model), aside)
            _require_place(aside, src, layout, model.config)
    elif layout == "huggingface":
        require_hub_model(dst, model)
        with explained_writing(dst, also=RuntimeError), atomic_folder(dst) as aside:
            write_hub(aside, model, ENCODER_KEYS[which])
            _require_place(aside, src, layout, model.config)
    elif about is None:
        save_model(dst, model, step=0 if found.is_dir() else released_step(found))
    else:
        save_model(dst, model, step=about.step, run=about.run, preprocess=about.preprocess)
    if layout != "ours" and about is not None and (clip := about.clip):
        names = ("stride", "fps", "clip_seconds")
        spacing = ", ".join(f"{name} {clip[name]:g}" for name in names if clip.get(name))
        lost = f"left out    how its frames are spaced ({spacing}): this layout does not hold it"
        where = "say it wherever the result is read (data.clip, window)"
        report = replace(report, notes=(*report.notes, f"{lost}; {where}"))
    written = read_model(dst.absolute(), model.config.encoder.heads)[0].state_dict()
    for name, tensor in written.items():
        part, _, inner = name.partition(".")
        if layout == "huggingface" and part != "predictor":
            name = f"{ENCODER_KEYS[which]}.{inner}"
        if not torch.equal(tensor, model.state_dict()[name]):
            raise UserError(f"{dst}: {name} differs from {src} after writing; the disk may be bad")
    return report


def _require_place(written: Path, src: Path, layout: Layout, config: ModelConfig) -> None:
    """Refuse a layout in which the model of this config is read as one that computes otherwise."""
    found, meant = _computed(read_sizes(written, config.encoder.heads)), _computed(config)
    if lost := [name for name, value in meant.items() if found[name] != value]:
        raise UserError(
            f"{src}: the layout {layout} has no place for {', '.join(lost)}: as a file of that "
            "layout it would be another model; convert it to a folder of ours"
        )


def _computed(config: ModelConfig) -> dict[str, Any]:
    """What decides what a model computes, by name, with its defaults put in."""
    encoder, predictor = config.encoder, config.predictor
    reference = encoder.position_reference if encoder.is_rotary else None
    several = predictor.num_mask_tokens > 1
    values = {f"{p}.{name}": v for p, part in to_dict(config).items() for name, v in part.items()}
    unseen = ("encoder.image_size", "encoder.num_frames", "encoder.patch_init_std")
    return values | {
        **dict.fromkeys((*unseen, "encoder.init_std", "predictor.init_std")),
        "encoder.mlp_ratio": encoder.mlp_width,
        "encoder.position_split": encoder.is_rotary or encoder.position_split,
        "encoder.position_reference": reference,
        "encoder.input": (encoder.input.content, encoder.input.mean_and_deviation),
        "predictor.heads": predictor.heads or encoder.heads,
        "predictor.mlp_ratio": predictor.mlp_width,
        "predictor.shared_mask_token": predictor.shared_mask_token if several else None,
        "predictor.out_width": predictor.out_width or predictor.levels * encoder.width,
        "predictor.stretch_positions": reference is None or predictor.stretch_positions,
    }
