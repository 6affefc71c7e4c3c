"""What opens a text, manifest, config or checkpoint in ``fuzz_inputs.py``; runs in workers."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import traceback
import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vjepa.checkpoint import read_config, read_encoder, read_model
from vjepa.cli.main import main
from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.dataset import TrainingClips
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.source import VideoSource
from vjepa.data.loader.sampler import VideoSources
from vjepa.data.manifest.lists import IndexConfig, read_source
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError
from vjepa.reporting.runs import read_run, state_lines, status_of


def _open_list(file: Path) -> None:
    for _ in read_source(str(file), IndexConfig()):
        pass


def _open_manifest(file: Path) -> None:
    manifest = Manifest.open(file)
    _ = manifest.content_hash
    usable = manifest.select()
    sources = VideoSources([usable], None)
    order = sources.order(0, 1)
    for row in range(min(4, len(usable))):
        sources.manifests[0].row(sources.row_of(0, row))
    order.replacement(0, 0, 1)


def _open_row(file: Path) -> None:
    """A good video under a row that says other things of it; the file's bytes are the dice."""
    rng = np.random.default_rng(zlib.crc32(file.read_bytes()))
    samples = file.parents[1] / "samples"
    names = [name for name in ("h264.mp4", "vp9.webm", "a.png") if (samples / name).exists()]
    info = inspect_file(str(samples / str(rng.choice(names))))
    for _ in range(int(rng.integers(1, 4))):
        info = replace(info, **_other_value(info, rng))
    path = file.with_suffix(".parquet")
    Manifest.from_rows([ManifestRow(info=info)], file.parent).write(path)
    row = Manifest.open(path).row(0)
    recipe = TrainingClips(
        ClipConfig(num_frames=4, stride=2), TransformConfig(crop_size=32), 0, 0.5
    )
    try:
        recipe.cut(VideoSource(row), np.arange(1), torch.empty(1, 3, 4, 32, 32, dtype=torch.uint8))
    except DecodeError as error:
        raise UserError(error.reason) from error


def _other_value(info: VideoInfo, rng: np.random.Generator) -> dict[str, Any]:
    """One field of a row with a value that is not true."""
    numbers = [-1, 0, 1, 2, 7, 1000, 2**31 - 1, 2**40]
    number = int(rng.choice(numbers))
    keys = np.sort(rng.integers(-5, 100, size=int(rng.integers(0, 5))))
    choices: list[dict[str, Any]] = [
        {"num_frames": number},
        {"fps": float(rng.choice([0.0, 1e-300, 1e300, 25.0, -1.0]))},
        {"width": min(number, 2**31 - 1)},
        {"height": min(number, 2**31 - 1)},
        {"rotation": int(rng.choice([90, 45, -1]))},
        {"keyframe_pts": keys},
        {"keyframe_index": keys - keys[:1].sum()},
        {"keyframe_index": np.zeros(len(info.keyframe_index), np.int64)},
        {"time_base": Fraction(number, max(1, int(rng.choice(numbers))))},
        {"start_pts": number},
        {"kind": str(rng.choice(["video", "image", "image_folder"]))},
        {"bytes": 0},
    ]
    return choices[int(rng.integers(len(choices)))]


def _open_config(file: Path) -> None:
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main(["pretrain", "--config", str(file), "--print-config"])
    if code == 2:
        raise UserError(errors.getvalue().removeprefix("error: ").strip())


def _open_metrics(file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(file, Path(folder, "metrics.jsonl"))
        shutil.copy(file, Path(folder, "bad_videos.jsonl"))
        Path(folder, "config.yaml").write_text("optim: {steps: 100}\n")
        run = read_run(Path(folder))
        state_lines(run, status_of(run))


def _open_checkpoint(file: Path) -> None:
    model = Path(file).parents[1] / "samples" / "model"
    is_config = file.name.endswith("config.json")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(file if is_config else model / "config.json", Path(folder, "config.json"))
        weights = model / "model.safetensors" if is_config else file
        shutil.copy(weights, Path(folder, "model.safetensors"))
        read_config(Path(folder))
        read_model(folder)


def _open_released(file: Path) -> None:
    read_encoder(file, "context", num_heads=2)


_OPENERS = {
    "list.csv": _open_list,
    "list.jsonl": _open_list,
    "list.txt": _open_list,
    "row.txt": _open_row,
    "rows.parquet": _open_manifest,
    "plain.parquet": _open_manifest,
    "config.yaml": _open_config,
    "metrics.jsonl": _open_metrics,
    "config.json": _open_checkpoint,
    "weights.safetensors": _open_checkpoint,
    "plain.safetensors": _open_checkpoint,
    "released.tar": _open_released,
}


def open_input(path: str) -> tuple[str, str]:
    """Open one input.

    Returns:
        ``read``, ``refused`` (with the message) or ``exception`` (with where it came from).
    """
    file = Path(path)
    try:
        _OPENERS[file.name.split("_", 1)[1]](file)
    except UserError as error:
        return "refused", str(error).replace(str(file), "FILE")[:300]
    except Exception as error:  # noqa: BLE001 - whatever escapes is what this looks for
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "vjepa" in f.filename]
        return (
            "exception",
            f"{type(error).__name__}: {str(error)[:200]} at {' < '.join(ours[::-1])}",
        )
    return "read", ""
