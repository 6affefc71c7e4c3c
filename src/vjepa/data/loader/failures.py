"""What becomes of videos that cannot be read: recorded once, replaced, and a limit to it.

A bad video costs one sample, never a run. Each path is written once to ``bad_videos.jsonl`` with
the reason and the step; when too many of the recent samples needed a replacement, the run stops
with the commonest reason, because then the fault lies with the disk or the manifest and not with a
video.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from vjepa.errors import UserError

_LOGGER = logging.getLogger(__name__)

FailureKind = Literal["decode", "hang", "crash"]
WINDOW = 1000  # videos over which the share of bad ones is taken


@dataclass(frozen=True)
class FailedVideo:
    """A video that could not be read; also a line of ``bad_videos.jsonl``.

    `kind`: the decoder refused it, it did not end in time, or it took the worker with it; the last
    two twice.
    """

    path: str
    reason: str
    step: int  # of the batch that wanted it
    kind: FailureKind = "decode"


@dataclass(frozen=True)
class BadVideo:
    """A row of a manifest that gives no frames, listed and never replaced by another."""

    row: int
    path: str
    reason: str
    kind: FailureKind = "decode"


class BadVideoLog:
    """The bad videos of a run folder, each once, over restarts and all processes of the run."""

    def __init__(self, file: Path | None) -> None:
        """Read what was recorded in ``bad_videos.jsonl``; None keeps the record in memory only."""
        self._file = file
        self._read_to = 0
        self._paths: set[str] = set()
        self._dangerous: set[str] = set()
        self._read_new_lines()

    def __len__(self) -> int:
        return len(self._paths)

    def is_dangerous(self, path: str) -> bool:
        """Whether a video made a worker hang or die before; it is not opened a second time.

        That saves the wait at every pass, and a resumed run decides as the first one did.
        """
        return path in self._dangerous

    def add(self, video: FailedVideo) -> None:
        """Record a video unless its path stands there already."""
        self._read_new_lines()
        is_new = video.path not in self._paths
        self._note(video.path, video.kind)
        if not is_new:
            return
        # A file name need not be valid UTF-8, but what goes to a log has to be.
        path = video.path.encode("utf-8", "backslashreplace").decode()
        _LOGGER.warning("bad video at step %d: %s: %s", video.step, path, video.reason)
        if self._file is None:
            return
        text = json.dumps(asdict(video)) + "\n"
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab+") as out:
                if out.tell():
                    out.seek(-1, os.SEEK_END)
                    if out.read(1) != b"\n":  # the last writer was killed in the middle of its line
                        text = "\n" + text
                # One write of one whole line: processes that share the file never mix theirs.
                out.write(text.encode("ascii"))
        except OSError as error:
            raise UserError(
                f"{self._file}: cannot be written ({error.strerror or error}): free space or fix "
                "the folder"
            ) from error

    def _note(self, path: str, kind: str) -> None:
        self._paths.add(path)
        if kind in ("hang", "crash"):
            self._dangerous.add(path)

    def _read_new_lines(self) -> None:
        """Take in complete lines that were added since the last look, by whichever process."""
        if self._file is None or not self._file.is_file():
            return
        with self._file.open("rb") as lines:
            lines.seek(self._read_to)
            text = lines.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._read_to += len(complete)
        for line in complete.decode("utf-8", "replace").splitlines():
            try:
                entry = json.loads(line)
                self._note(entry["path"], entry.get("kind", "decode"))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a torn line: its video will be met and recorded again


class BadVideoLimit:
    """Stops a run when too large a share of its recent videos had to be replaced."""

    def __init__(self, max_fraction: float, min_bad: int) -> None:
        """Allow `max_fraction` of the last `WINDOW` videos, and fewer than `min_bad` always."""
        self._max_fraction = max_fraction
        self._min_bad = min_bad
        self._recent: deque[str | None] = deque(maxlen=WINDOW)

    def count(self, good: int, bad_reasons: list[str]) -> None:
        """Count a batch; UserError when the limit is passed.

        `good` videos were read at the first attempt; each other has one of `bad_reasons`, however
        often it was replaced.
        """
        self._recent.extend([None] * good)
        self._recent.extend(bad_reasons)
        reasons = [reason for reason in self._recent if reason is not None]
        if len(reasons) < self._min_bad or len(reasons) <= self._max_fraction * len(self._recent):
            return
        worst, times = Counter(reasons).most_common(1)[0]
        raise UserError(
            f"loader.max_bad_fraction {self._max_fraction:g} passed: {len(reasons)} of the last "
            f"{len(self._recent)} videos could not be read, {times} of them because: {worst}; see "
            "bad_videos.jsonl, mend the data (`vjepa data check --deep`) or raise the limit"
        )
