"""Writing a synthetic set: one mp4 per clip, a table of labels, and the settings it came from.

```
out/
  synthetic.json            the settings; the set in a folder never changes them
  train/000000.mp4 ...      H.264, yuv420p
  validation/...
  test/...
  labels.csv                path,split,motion,appearance; written last: its presence means complete
```
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from vjepa.data.synthetic.clips import clip_labels, render_clip
from vjepa.data.synthetic.config import SPLITS, SyntheticConfig
from vjepa.errors import UserError

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

_Task = tuple[SyntheticConfig, Path, str, range]


def write_synthetic_set(
    config: SyntheticConfig,
    out: Path,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the whole set into the folder `out`; a set that was cut short is continued.

    Files appear under their final name only when they are complete, so those found are kept.

    Args:
        config: what to draw.
        out: folder to write into; made if it is not there.
        workers: processes to draw with; 1 draws in this process. With more, a script that calls
            this needs the usual `if __name__ == "__main__":` guard.
        progress: called with (clips done, clips in all), also for clips found complete.

    Returns:
        The path of `labels.csv`.

    Raises:
        UserError: `out` holds a set of other settings, or something that is not such a set.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}, must be at least 1")
    _claim_folder(config, out)
    tasks = list(_tasks(config, out))
    total = sum(len(indices) for *_, indices in tasks)
    done = 0
    for count in _run_tasks(tasks, min(workers, len(tasks))):
        done += count
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
    _write_atomically(settings, (json.dumps(wanted, indent=2) + "\n").encode())


def _difference(found: object, wanted: Mapping[str, object]) -> str:
    """Name the fields that differ, as 'seed is 1 there, 0 here'."""
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


def _tasks(config: SyntheticConfig, out: Path) -> Iterator[_Task]:
    for split in SPLITS:
        count = config.num_clips(split)
        if count:
            (out / split).mkdir(exist_ok=True)
        for start in range(0, count, _CLIPS_PER_TASK):
            yield config, out, split, range(start, min(start + _CLIPS_PER_TASK, count))


def _run_tasks(tasks: list[_Task], workers: int) -> Iterator[int]:
    """Run the tasks; yield each one's number of clips as it ends."""
    if workers <= 1:
        yield from map(_write_clips, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(_write_clips, tasks)


def _write_clips(task: _Task) -> int:
    """Draw and encode the clips of one task that are not there yet; return how many it has."""
    config, out, split, indices = task
    for index in indices:
        path = out / clip_path(split, index)
        if not (path.exists() and path.stat().st_size > 0):
            frames = render_clip(config, split, index).frames
            _write_atomically(path, _encode(frames, config.fps))
    return len(indices)


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
    _write_atomically(out / _LABELS_FILE, table.getvalue().encode())
    return out / _LABELS_FILE


def _write_atomically(path: Path, content: bytes) -> None:
    """Write `content` aside, then rename, so that `path` is never there in part."""
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(content)
    aside.replace(path)
