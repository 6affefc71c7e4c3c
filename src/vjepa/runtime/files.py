"""Files that are whole or not there, logs of JSON lines, and one job and process to a folder.

The only place that writes aside and renames. One rule: the content reaches the disk before the
name does, and the name before the call returns, so that neither a kill nor a power cut leaves half
a file under its final name. What was being written stands in ``NAME.PID.partial``: delete it.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import logging
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self

from vjepa.errors import UserError
from vjepa.runtime.distributed import check_alone

PARTIAL_SUFFIX = ".partial"
_LOGGER = logging.getLogger(__name__)
_SYNC_EVERY_LINES = 100
DISK_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""What the system says when there is no room for a file."""


def unwritable(path: Path | str, error: OSError) -> UserError:
    """What a user is told when the system does not let a file or folder be written."""
    is_full = error.errno in DISK_FULL
    remedy = "free some space and run the same command again" if is_full else "choose another --out"
    is_file = isinstance(error, FileExistsError)
    reason = "a file is where a folder should be" if is_file else error.strerror or str(error)
    return UserError(f"{path}: cannot be written ({reason}); {remedy}")


@contextmanager
def written(path: Path) -> Generator[None]:
    """Turn what the system refuses while `path` is written into a UserError."""
    if str(path) != str(path).encode(errors="replace").decode():  # which many libraries need
        raise UserError(f"{path}: the name is not valid UTF-8; choose another --out")
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


# How files begin that are often found under the name of one that was not fetched.
_STAND_INS = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the file; fetch it (git lfs pull)"),
    (b"<!doctype html", "a web page in place of the file; fetch it again"),
    (b"<html", "a web page in place of the file; fetch it again"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
    (b"PK\x03\x04", "a ZIP archive; unpack it"),
)


def stand_in(path: str | os.PathLike[str]) -> str | None:
    """What a file on the disk is that only has the name of a video or checkpoint, if known."""
    begin = b""
    if os.path.isfile(path):  # noqa: PTH113
        with suppress(OSError), open(path, "rb") as file:  # noqa: PTH123
            begin = file.read(256).lstrip().lower()
    return next((what for sign, what in _STAND_INS if begin.startswith(sign.lower())), None)


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


def write_csv(path: Path, rows: Iterable[Sequence[object]], line_end: str = "\n") -> None:
    """Write rows as a CSV file, whole or not at all; numbers with all their digits."""
    with atomic_path(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator=line_end).writerows(rows)


SAVE_SECONDS = 60.0


def now_and_then(save: Callable[[], object]) -> Callable[[], None]:
    """To be called often: saves once a minute, so that a kill costs no more than that.

    More rarely where saving would take over a twentieth of the time.
    """
    due = time.monotonic() + SAVE_SECONDS

    def call() -> None:
        nonlocal due
        if (begin := time.monotonic()) > due:
            save()
            now = time.monotonic()
            due = now + max(SAVE_SECONDS, 20 * (now - begin))

    return call


def check_writable(path: Path) -> None:
    """Make sure that a file can be written, before the work whose result it shall hold.

    Its folder is made. Raises UserError: it cannot be, or `path` is a folder.
    """
    with written(path):
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file in it")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
        try:
            aside.write_bytes(b" ")
        finally:
            aside.unlink(missing_ok=True)


def check_kind(option: str, path: Path | None, *suffixes: str) -> None:
    """Refuse a file whose name ends in nothing that is written, before the work for it is done."""
    if path is not None and path.suffix not in suffixes:
        raise UserError(f"{option} {path}: must end in {' or '.join(suffixes)}")


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a whole file: bytes, or text as UTF-8, in which what is no text stands in escapes."""
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with atomic_path(path) as aside:
        aside.write_bytes(data)


def save_tensors(path: Path, tensors: Any, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that those may read who may read our other files.

    The library's own are for their owner alone, so colleagues could not open each other's weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # the system's number stands in its words alone
        number = next((n for n in DISK_FULL if f"(os error {n})" in str(error)), errno.EIO)
        raise OSError(number, str(error), str(path)) from error
    path.chmod(mode)


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


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object of ours; UserError with the remedy: the file is missing or holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not written by vjepa: no JSON object")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read as JSON ({reason}); {remedy}") from error
    return content


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
        with written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
            self._file.truncate(_end_of_whole_lines(path))

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line; UserError if the disk is full or gone."""
        with self._closed_on_failure():
            self._file.write(f"{json.dumps(record)}\n".encode("ascii"))
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
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Bring every line to the disk and close the file."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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


_FIRST_LINE = "# vjepa "
"""Begins a `config.yaml`; the name of the job that wrote it follows."""
_OTHER_MARKS: Mapping[str, tuple[str, str]] = {
    "work/settings.json": ("data prepare", '"settings":'),
    "synthetic.json": ("data synth", '"vjepa synthetic set"'),
    "demo.yaml": ("demo", "few_labels_per_class:"),
    "features.json": ("features", '"weights_hash":'),
    "probe.json": ("probe train", '"vjepa-probe-'),
    "split.json": ("probe train", '"manifest_hash":'),
    "splits.json": ("probe train", '"vjepa-probe-splits-'),
    "studies.json": ("studies", '"changes":'),
}
"""What tells a job's folder where no first line does: a file that it writes, and what is in it."""


def job_of(folder: Path) -> str | None:
    """The job that a folder belongs to, as in ``vjepa JOB``; None where nothing tells."""
    from vjepa.config import RESOLVED_CONFIG_FILE  # not for every worker that imports this

    text = _text_of(folder / RESOLVED_CONFIG_FILE)
    if text.startswith(_FIRST_LINE):
        return text.partition("\n")[0].removeprefix(_FIRST_LINE).strip()
    for name, (job, part) in _OTHER_MARKS.items():
        if part in _text_of(folder / name):  # others may have files of these names
            return job
    parts = ("\nmodel:", "\nmasking:", "\nobjective:", "\ntraining:")
    return "pretrain" if all(part in text for part in parts) else None


def _text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


@contextmanager
def claimed_folder(folder: Path, job: str, *, is_shared: bool = False) -> Generator[bool]:
    """Hold the folder that a job writes to: what every job with an ``--out`` does first.

    The folder must be new, empty, or one in which the same job has begun; whether it has is what
    is yielded. The job then compares the config there with its own, and says with
    :func:`begin_folder` that it begins. A folder of another job or of other files is left as it
    is, byte for byte; one that is made here and in which nothing begins goes away again.

    Of several processes of one launcher only the first one of a job that `is_shared` among them
    calls this; any other job runs in one process.

    The lock is the file `.lock` in the folder. It belongs to the process: the system gives it back
    however the process ends, and worker processes do not inherit it.

    Raises:
        UserError: It is another's, another process holds it, it cannot be written, or a launcher
            has started several processes.
    """
    if not is_shared:
        check_alone(job)
    with written(folder):
        is_new, owner = not folder.exists(), job_of(folder)
        if owner not in (None, job):
            raise UserError(f"{folder}: belongs to `vjepa {owner}`; give another --out")
        if owner is None and not is_new and _files_in(folder):
            raise UserError(
                f"{folder}: exists and holds nothing of `vjepa {job}`; give a new or empty --out"
            )
    with hold(folder):
        try:
            with written(folder):  # once more, now that nobody else can begin
                owner = job_of(folder)
            yield owner == job
        finally:
            if is_new:
                with suppress(OSError):
                    if not _files_in(folder):
                        (folder / ".lock").unlink()
                        folder.rmdir()


def _files_in(folder: Path) -> list[str]:
    """Names in a folder but for the lock; a file's own name."""
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else [folder.name]
    return [name for name in names if name != ".lock"]


_HELD: set[str] = set()
"""Folders that this process holds: to open and close their locks again would give them back."""


@contextmanager
def hold(folder: Path) -> Generator[None]:
    """Lock a folder, made if need be, by a file in it; UserError: somebody is at work there."""
    name = os.path.realpath(folder)
    if name in _HELD:
        raise UserError(f"{folder}: this process is at work in this folder; give another --out")
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    with file:
        _lock(file, folder)
        _HELD.add(name)
        try:
            yield
        finally:
            _HELD.discard(name)


def _lock(file: IO[str], folder: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise UserError(
            f"{folder}: another process is at work in this folder; "
            "wait for it, stop it, or give another --out"
        ) from None
    except OSError as error:  # some network drives have no locks
        _LOGGER.warning(
            "%s: cannot be locked (%s): do not start the same command twice",
            *(folder, error.strerror),
        )


def begin_folder(folder: Path, job: str, config: object) -> None:
    """Write a job's `config.yaml`, which marks a claimed folder as its own."""
    from vjepa.config import RESOLVED_CONFIG_FILE, dump_yaml

    text = f"{_FIRST_LINE}{job}\n{dump_yaml(config)}"
    with written(folder):
        atomic_write(folder / RESOLVED_CONFIG_FILE, text)


_FLOCK = "hhqqi"
"""Linux's ``struct flock`` of 64-bit machines: type, whence, start, length, process."""


def holder_of(folder: Path) -> int | None:
    """Process that holds a run folder, without touching the lock.

    Its id, 0 if it runs on another machine; None if nobody holds it, and always where only Linux
    could tell.
    """
    if os.path.realpath(folder) in _HELD:
        return os.getpid()
    file = folder / ".lock"
    if sys.platform != "linux" or not file.is_file():
        return None
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
    with file.open("rb") as handle:
        answer = struct.unpack(_FLOCK, fcntl.fcntl(handle, fcntl.F_GETLK, asked))
    return None if answer[0] == fcntl.F_UNLCK else max(0, answer[4])
