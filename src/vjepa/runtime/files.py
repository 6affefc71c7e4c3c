"""Files that are whole or not there, logs of JSON lines, and one process to a folder.

The only place that writes aside and renames. One rule: the content reaches the disk before the
name does, and the name before the call returns, so that neither a kill nor a power cut leaves half
a file under its final name. What was being written stands in ``NAME.PID.partial``: delete it.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from vjepa.errors import UserError

PARTIAL_SUFFIX = ".partial"
_SYNC_EVERY_LINES = 100


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Generator[Path]:
    """A place to write a file to that becomes `path`, whole, when the block ends without an error.

    An older file at `path` stays until then, and stays if the block fails. The folder is made. Not
    to wait for the disk (`durable`) is for one of thousands of small files that can be made again:
    whole after a kill, but perhaps empty after a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    aside.unlink(missing_ok=True)  # of a killed process that had the same number
    try:
        yield aside
        if durable:
            sync(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


def atomic_write(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a whole file: text as UTF-8, or bytes; `durable` as in :func:`atomic_path`."""
    with atomic_path(path, durable=durable) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """A new folder to write to that becomes `path`, whole, when the block ends without an error."""
    if path.exists():
        raise FileExistsError(f"{path} exists")
    aside = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for below in (*aside.rglob("*"), aside):
            sync(below)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync(path.parent)


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Numbers (from 1) and objects of a file of JSON lines; None for a line that is no object.

    A last line without its end was being written when its writer died: it is left out.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                return
            try:
                values = json.loads(raw)
            except (ValueError, RecursionError):
                values = None
            yield number, values if isinstance(values, dict) else None


class JsonLines:
    """A file of JSON objects, one a line, that only grows; a context manager.

    A line outlives the process as soon as `append` returns, a power cut after a hundred more or at
    the end. A torn last line, left by a kill, is cut off when the file is opened. Lines are ASCII,
    so that a file name whose bytes are no text comes back as it was.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file, and its folder."""
        self.path = path
        self._unsynced = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
            self._file.truncate(_end_of_whole_lines(path))
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror or error}); choose another --out"
            ) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line; UserError if the disk is full or gone."""
        line = json.dumps(record) + "\n"
        with self._closed_on_failure():
            self._file.write(line.encode("ascii"))
            self._file.flush()
        self._unsynced += 1
        if self._unsynced >= _SYNC_EVERY_LINES:
            self.sync()

    def sync(self) -> None:
        """Bring every line to the disk."""
        with self._closed_on_failure():
            os.fsync(self._file.fileno())
        self._unsynced = 0

    @contextmanager
    def _closed_on_failure(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            # Closing later would try to write the rest once more and hide this error.
            with suppress(OSError):
                self._file.close()
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror or error}); free some space and "
                "run the same command again"
            ) from error

    def close(self) -> None:
        """Bring every line to the disk and close the file."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def _end_of_whole_lines(path: Path) -> int:
    """Bytes up to the end of the last complete line, looked for from the end."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - 2**16)
            file.seek(begin)
            found = file.read(end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
    return 0


@contextmanager
def locked_folder(folder: Path) -> Generator[None]:
    """Hold a folder for this process, so that the same command started twice spoils nothing.

    The lock is the file `.lock` in the folder. It belongs to the process: the system gives it back
    however the process ends, and worker processes do not inherit it. Nothing is locked on Windows.

    Raises:
        UserError: Another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process is at work in this folder; "
                "wait for it, stop it, or give another --out"
            ) from None
        yield


_FLOCK = "hhqqi"
"""Linux's ``struct flock`` of 64-bit machines: type, whence, start, length, process."""


def holder_of(folder: Path) -> int | None:
    """Process that holds a run folder, without touching the lock.

    Its id, 0 if it runs on another machine; None if nobody holds it, and always where only Linux
    could tell.
    """
    file = folder / ".lock"
    if sys.platform != "linux" or not file.is_file():
        return None
    import fcntl

    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
    with file.open("rb") as handle:
        answer = struct.unpack(_FLOCK, fcntl.fcntl(handle, fcntl.F_GETLK, asked))
    return None if answer[0] == fcntl.F_UNLCK else max(0, answer[4])
