"""An encoder, alone or with a probe, as one file that other programs compute: `vjepa export`."""

from __future__ import annotations

import json
import logging
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vjepa.checkpoint import described
from vjepa.config import to_dict
from vjepa.data.clips.views import ViewConfig
from vjepa.errors import UserError, needs_extra
from vjepa.evaluation.evaluate import join_clips
from vjepa.evaluation.frozen import FrozenEncoder
from vjepa.evaluation.preprocess import Preprocess, preprocess_of
from vjepa.evaluation.saved_probe import CONFIG_FILE, SavedProbe, refuse_draws
from vjepa.jobs.bench_encode import time_calls
from vjepa.jobs.finetune.saved import MODEL_FOLDER
from vjepa.jobs.probe.config import EncoderSourceConfig
from vjepa.jobs.probe.encoder import fit_to_clips, open_encoder
from vjepa.jobs.probe.predict import load_probe
from vjepa.models import normalise_clip
from vjepa.models.encoder import FrameEncoder
from vjepa.paths import as_path
from vjepa.runtime.files import check_writable, sync, written

_LOGGER = logging.getLogger(__name__)
Format = Literal["torch-export", "onnx"]
META = "vjepa"
"""Name of the JSON that describes the model, among the file's own metadata."""
_LARGEST_DIFFERENCE = 1e-3
"""Of the largest number that comes out: more than float32 in another order makes of any size."""
_MOST_CLIPS, _TIMED_CALLS = 1 << 16, 3


class _Exported(nn.Module):
    """Pixels uint8 [B, 3, T, S, S] (with R clips of a video: [B, R, 3, T, S, S]) -> what is asked.

    That is tokens [B, N, D], or with a probe the shares of its classes [B, classes]; float32.
    """

    def __init__(self, frozen: FrozenEncoder, probe: SavedProbe | None) -> None:
        super().__init__()
        encoder = frozen.encoder.cpu()
        # Of an image model every frame is seen alone, all of them in one call.
        self.is_frames = isinstance(encoder, FrameEncoder)
        self.encoder = encoder.image_encoder if isinstance(encoder, FrameEncoder) else encoder
        self.input = frozen.identity.config.input
        self.view = ViewConfig() if probe is None else probe.settings.view
        self.head = None if probe is None else probe.head
        self.is_multi_label = probe is not None and probe.multi_label

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode, and classify."""
        if self.head is None:
            return self._tokens(pixels)
        clips = pixels if pixels.ndim == 6 else pixels[:, None]
        count = clips.shape[1]
        tokens = self._tokens(clips.flatten(0, 1)).unflatten(0, (-1, count))
        inputs = join_clips(tokens, self.view.num_segments, self.view.join)
        logits = self.head(inputs.flatten(0, 1)).float()
        shares = logits.sigmoid() if self.is_multi_label else logits.softmax(dim=-1)
        return shares.unflatten(0, (-1, inputs.shape[1])).mean(dim=1)

    def _tokens(self, clips: Tensor) -> Tensor:
        video = normalise_clip(clips, how=self.input)
        if not self.is_frames:
            return self.encoder(video)
        frames = video.shape[2]
        tokens = self.encoder(video.transpose(1, 2).flatten(0, 1)[:, :, None])
        return tokens.unflatten(0, (-1, frames)).flatten(1, 2)


@dataclass(frozen=True)
class ExportReport:
    """What was written, how near it is to the original, and how fast both are on this CPU.

    `shape` is that of the input, `result` says what comes out; `difference` is the largest one from
    the original, `scale` the largest number that comes out; seconds are of a clip.
    """

    file: Path
    shape: tuple[int | str, ...]
    result: str
    difference: float
    scale: float
    seconds: float
    seconds_before: float

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.shape))
        return (
            f"input   pixels, uint8 [{shape}], RGB\n"
            f"output  {self.result}\n"
            f"checked differs from the original by {self.difference:.1e} of {self.scale:.3g}\n"
            f"timed   {1e3 * self.seconds:.3g} ms a clip (the original "
            f"{1e3 * self.seconds_before:.3g}), on this CPU\n"
            f"done: {self.file}"
        )


def export(
    path: str | Path,
    out: str | Path,
    kind: Format = "onnx",
    *,
    batch: int | None = None,
    encoder: str | Path | None = None,
    source: EncoderSourceConfig | None = None,
) -> ExportReport:
    """Write an encoder, or a probe with its encoder, as one file; compared before it has its name.

    Args:
        path: Anything that holds an encoder, or the folder of a probe or of a fine-tuning's run.
        out: The file; must not exist. With ``onnx``, weights above 2 GB lie in ``<out>.data``,
            which must not exist either.
        kind: ``onnx``, or ``torch-export`` (:func:`torch.export.load`).
        batch: Clips (videos, with a probe) of a call; None: any number.
        encoder: Where a probe's encoder lies now, if not where it lay then.
        source: How the encoder of `path` is opened; its own `path` is not looked at.

    Raises:
        UserError: It cannot be opened or exported, `out` exists, an extra is missing, or what was
            exported computes something else.
    """
    path, out = as_path(path), as_path(out)
    encoder = None if encoder is None else as_path(encoder)
    if kind not in (known := get_args(Format)):
        raise UserError(f"kind: {kind!r} must be one of {', '.join(known)}")
    if kind == "onnx":
        with needs_extra("--format onnx", "export", ", or use --format torch-export"):
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    for file in (out, out.with_name(f"{out.name}.data"))[: 1 + (kind == "onnx")]:
        if file.exists():
            raise UserError(f"{file}: exists already; give another --out")
    check_writable(out)
    frozen, preprocess, probe = _open(path, encoder, source or EncoderSourceConfig())
    module = _Exported(frozen, probe).eval().requires_grad_(False)
    view, sizes = preprocess.view, frozen.identity.config
    clips = 1 if probe is None else view.num_segments * view.num_views
    clip = (preprocess.clip.num_frames, view.crop_size, view.crop_size)
    shape = (3, *clip) if clips == 1 else (clips, 3, *clip)
    if probe is None:
        with torch.inference_mode():
            count = module(_pixels(shape, 1, 0)).shape[1]
        result = f"tokens, float32 [batch, {count}, {sizes.width}]"
    else:
        result = f"shares of {len(probe.classes)} classes, float32 [batch, {len(probe.classes)}]"
    about = {
        "encoder": frozen.identity.sentence,
        "input": f"pixels: uint8 [batch, {', '.join(map(str, shape))}], RGB",
        "output": result,
        "preprocess": to_dict(preprocess),
        "classes": None if probe is None else list(probe.classes),
    }
    _LOGGER.info("exporting %s", frozen.identity.sentence)
    program = _traced(module, shape, batch, kind)
    with written(out), tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        aside = Path(folder) / out.name
        write = _write_onnx if kind == "onnx" else _write_torch
        compute = write(program, aside, json.dumps(about))
        difference, scale = _compare(module, compute, shape, batch)
        times = [_seconds_a_clip(call, shape, batch or 1) for call in (compute, _plain(module))]
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == aside):
            sync(file)
            file.replace(out.parent / file.name)
        sync(out.parent)
    return ExportReport(out, (batch or "batch", *shape), result, difference, scale, *times)


def _open(
    path: Path, encoder: Path | None, source: EncoderSourceConfig
) -> tuple[FrozenEncoder, Preprocess, SavedProbe | None]:
    """The encoder, how its input is made, and the probe on it, if it is one."""
    refuse_draws(path)
    is_probe = (path / CONFIG_FILE).is_file()
    # Of a fine-tuned model's run; its folder `model` stands for the encoder alone.
    told = described(path) if (path / MODEL_FOLDER).is_dir() and not is_probe else None
    if encoder is not None and not is_probe:
        raise UserError(f"--encoder: {path} is no probe; leave it out")
    if is_probe or (told is not None and told.objective == "class"):
        if source != EncoderSourceConfig():
            raise UserError(
                f"{path}: a probe says itself how its encoder is opened; leave --which, "
                "--num-heads, --image-size, --num-frames and --tokens out"
            )
        loaded = load_probe(path, encoder=encoder, device="cpu")
        saved, frozen = loaded.saved, loaded.extractor.frozen
        how = Preprocess(
            clip=saved.settings.clip, view=saved.settings.view, input=frozen.identity.config.input
        )
        return frozen, how, saved
    frozen = open_encoder(replace(source, path=path))
    sizes = frozen.identity.config
    how = preprocess_of(path, sizes)
    frozen = fit_to_clips(frozen, source, how.clip.num_frames, how.view.crop_size)
    return frozen, how, None


def _pixels(shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)


def _traced(
    module: nn.Module, shape: tuple[int, ...], batch: int | None, kind: Format
) -> torch.export.ExportedProgram:
    # Of one clip torch would take the batch for fixed.
    pixels = _pixels(shape, batch or 2, 0)
    any_number = torch.export.Dim("batch", min=1, max=_MOST_CLIPS)
    sizes = None if batch else {"pixels": {0: any_number}}
    # timm's Hiera attends in five dimensions, for which ONNX has no fused operator.
    fused: list[Any] = [part for part in module.modules() if getattr(part, "fused_attn", False)]
    for part in fused:
        part.fused_attn = kind != "onnx"
    try:
        return torch.export.export(module, (pixels,), dynamic_shapes=sizes)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"it cannot be exported: {reason}; with a dynamic batch, try a fixed one (--batch 1)"
        ) from error
    finally:
        for part in fused:
            part.fused_attn = True


Compute = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def _plain(module: nn.Module) -> Compute:
    def compute(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return module(torch.from_numpy(pixels)).numpy()

    return compute


def _write_torch(program: torch.export.ExportedProgram, file: Path, about: str) -> Compute:
    with file.open("wb") as stream:
        torch.export.save(program, stream, extra_files={META: about})
    with file.open("rb") as stream:
        return _plain(torch.export.load(stream).module())


def _write_onnx(program: torch.export.ExportedProgram, file: Path, about: str) -> Compute:
    import onnxruntime

    names: Any = {"input_names": ["pixels"], "output_names": ["output"]}
    if program.range_constraints:  # any number of clips
        names["dynamic_shapes"] = {"pixels": {0: "batch"}}
    try:
        made: Any = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    except torch.onnx.errors.OnnxExporterError as error:
        causes: list[BaseException] = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        reason = str(causes[-1]).strip().partition("\n")[0]
        raise UserError(
            f"torch cannot write it as ONNX: {reason}; use --format torch-export"
        ) from error
    made.model.metadata_props[META] = about
    made.save(file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda pixels: np.asarray(session.run(None, {"pixels": pixels})[0])


def _compare(
    module: nn.Module, compute: Compute, shape: tuple[int, ...], batch: int | None
) -> tuple[float, float]:
    """The largest difference and the largest number; refused where they are no neighbours."""
    plain, difference, scale = _plain(module), 0.0, 0.0
    for seed, count in enumerate((batch,) if batch else (1, 3), start=1):
        pixels = _pixels(shape, count, seed).numpy()
        wanted, found = plain(pixels), compute(pixels)
        if wanted.shape != found.shape:
            raise UserError(f"the exported model gives {found.shape}, the original {wanted.shape}")
        difference = max(difference, float(np.abs(wanted - found).max()))
        scale = max(scale, float(np.abs(wanted).max()))
    if not math.isfinite(difference) or difference > _LARGEST_DIFFERENCE * scale:
        raise UserError(
            f"the exported model differs by {difference:.3g} of {scale:.3g} from the original, and "
            "was not kept; try the other --format, and report it with what `vjepa doctor` says"
        )
    return difference, scale


def _seconds_a_clip(compute: Compute, shape: tuple[int, ...], count: int) -> float:
    pixels = _pixels(shape, count, 0).numpy()
    times, _ = time_calls(lambda _: compute(pixels), torch.device("cpu"), _TIMED_CALLS, 1)
    return statistics.median(times) / count
