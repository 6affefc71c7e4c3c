"""Bytes of files: on this disk, in object storage, inside tar shards; and writing such shards."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from vjepa.errors import UserError
from vjepa.paths import local_path
from vjepa.runtime.files import atomic_path

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem


class UnreadableAddressError(UserError, OSError):
    """An address that cannot be read from here.

    It stops a command that was given it, as any bad input; as a row of a manifest it costs that
    row, as any file that cannot be opened.
    """


_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://")

_NAMES = "file local memory s3 s3a gs gcs az abfs abfss adl oss hdfs"
_PROTOCOLS = frozenset(_NAMES.split())  # storage systems whose addresses are accepted

# A range of at most this many bytes is fetched in one request; a longer one is read in blocks.
_ONE_REQUEST = 64 << 20
_BLOCK = 4 << 20


@dataclass(frozen=True, slots=True)
class FileStatus:
    """Size in bytes and time of the last change in ns (0: the storage does not tell)."""

    bytes: int
    mtime_ns: int


def is_address(path: str) -> bool:
    """Whether this is an address of a storage system and not a path on the local disk."""
    return _ADDRESS.match(path) is not None


def absolute(path: str | os.PathLike[str], folder: str = "") -> str:
    """The absolute path, cleaned of ``..``, from `folder` on; an address is left as it is."""
    path = local_path(path)
    if is_address(path):
        return path
    return os.path.abspath(os.path.join(folder, path))  # noqa: PTH100, PTH118 (Path keeps "..")


def status_of(path: str) -> FileStatus:
    """Look at a file without opening it.

    Raises:
        OSError: There is no such file, or it cannot be looked at.
        UserError: The address names no storage system that can be read here.
    """
    if not is_address(path):
        status = os.stat(path)  # noqa: PTH116 (called for every row of a large index)
        return FileStatus(status.st_size, status.st_mtime_ns)
    with _as_os_error():
        info = _storage_of(path).info(path)
    if info.get("type") == "directory":
        raise IsADirectoryError(f"{path} is a folder, not a file")
    # The time of the last change as the storage's listing gives it, under any of its names.
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        changed = info.get(name)
        if isinstance(changed, datetime):
            changed = changed.timestamp()
        if isinstance(changed, int | float):
            return FileStatus(int(info["size"]), int(changed * 1e9))
    return FileStatus(int(info["size"]), 0)


def files_beneath(
    address: str, on_unreadable: Callable[[str, OSError], None] | None = None
) -> list[str]:
    """Addresses of all files of a stored folder and its folders, by alphabet.

    Folders in it that cannot be listed are left out; `on_unreadable` is told of each.

    Raises:
        OSError: It cannot be listed itself.
        UserError: The address names no storage system that can be read here.
    """
    storage = _storage_of(address)
    protocol = address.partition("://")[0]
    root = storage._strip_protocol(address)
    beneath = address.rstrip("/").partition("://")[2]

    def named(path: str) -> str:
        return f"{protocol}://{beneath}{path.removeprefix(root)}"

    from fsspec.spec import AbstractFileSystem

    if type(storage).find is not AbstractFileSystem.find:  # one request for many folders
        with suppress(PermissionError), _as_os_error():
            return [named(path) for path in sorted(storage.find(root))]
    found, folders, seen = [], [root], {root}
    while folders:
        folder = folders.pop()
        try:
            with _as_os_error():
                entries = storage.ls(folder, detail=True)
        except OSError as error:
            if folder == root:
                raise
            if on_unreadable is not None:
                on_unreadable(named(folder), error)
            continue
        for entry in entries:
            name = entry["name"].rstrip("/")
            if entry["type"] != "directory":
                found.append(name)
            elif name not in seen:  # some list a folder in itself
                seen.add(name)
                folders.append(name)
    return [named(path) for path in sorted(found)]


def open_range(path: str, offset: int = 0, length: int | None = None) -> IO[bytes]:
    """Bytes `offset` to `offset + length` (None: to the end) of a file, as a file of their own.

    Raises:
        OSError: It cannot be opened.
        UserError: The address names no storage system that can be read here.
    """
    file: IO[bytes]
    if is_address(path):
        storage = _storage_of(path)
        with _as_os_error():
            # What is asked for by its length needs no look at the object, which is a request.
            known = length is not None and length <= _ONE_REQUEST
            size = offset + (length or 0) if known else int(storage.info(path)["size"])
            end = size if length is None else min(size, offset + length)
            if end - offset <= _ONE_REQUEST:
                return io.BytesIO(storage.cat_file(path, start=offset, end=end))
            file = storage.open(path, "rb", block_size=_BLOCK, cache_type="readahead")
    else:
        file = cast("IO[bytes]", open(path, "rb", buffering=0))  # noqa: PTH123, SIM115
        size = os.fstat(file.fileno()).st_size
    left = max(0, size - offset)
    return cast("IO[bytes]", ByteRange(file, offset, left if length is None else min(left, length)))


class ByteRange(io.RawIOBase):
    """`length` bytes from `offset` on of an open file, taken over, as a file of their own."""

    def __init__(self, file: IO[bytes], offset: int, length: int) -> None:
        super().__init__()
        self._file, self._offset, self._length = file, offset, length
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The place, counted from the part's first byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, never before the part's first byte; behind its end nothing is read."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """At most `size` bytes (all that are left, if negative), none beyond the part's end."""
        left = max(0, self._length - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        with _as_os_error():
            self._file.seek(self._offset + self._at)
            found = self._file.read(wanted) if wanted else b""
        self._at += len(found)
        return found

    def close(self) -> None:
        """Close the file; twice does no harm."""
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _as_os_error() -> Generator[None]:
    """Make OSErrors of the storage packages' own errors: no key, no connection, no such region."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UnreadableAddressError(f"cannot be read ({said})") from error


def _storage_of(path: str) -> AbstractFileSystem:
    """The file system behind an address."""
    match = _ADDRESS.match(path)
    protocol = match[1] if match else ""
    if protocol not in _PROTOCOLS or "::" in path:
        known = ", ".join(sorted(_PROTOCOLS))
        raise UnreadableAddressError(
            f"{path}: no storage system that is read from here (these are: {known}); fetch it first"
        )
    try:
        import fsspec
    except ImportError as error:
        raise UnreadableAddressError(
            f"{path}: reading object storage needs fsspec: pip install 'open-vjepa[storage]'"
        ) from error
    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        raise UnreadableAddressError(f"{path}: {error}") from error


_IN_SHARD = re.compile(r"(?P<shard>.+\.tar)!(?P<offset>\d+)\+(?P<length>\d+)/(?P<name>[^/]+)", re.S)

BLOCK = 512
"""Size of a tar header, and what members are padded to, in bytes."""


@dataclass(frozen=True, slots=True)
class Member:
    """Where one file lies in a shard."""

    shard: str  # path or address of the tar file
    offset: int  # its first byte
    length: int  # its size in bytes
    name: str  # its name in the tar

    @property
    def address(self) -> str:
        """What stands for it in a manifest's `path` column."""
        return f"{self.shard}!{self.offset}+{self.length}/{self.name}"


def member_at(path: str) -> Member | None:
    """The member that a path names, or None for a plain file."""
    match = _IN_SHARD.fullmatch(path) if ".tar!" in path else None
    if match is None:
        return None
    return Member(match["shard"], int(match["offset"]), int(match["length"]), match["name"])


def member_status(member: Member) -> FileStatus:
    """The member's size and the shard's time of change.

    Raises:
        OSError: There is no such shard, or another file lies at that place of it.
    """
    status = status_of(member.shard)
    if status.bytes < member.offset + member.length:
        raise OSError(f"the shard {member.shard} is shorter than the index says")
    with open_range(member.shard, member.offset - BLOCK, BLOCK) as file:
        header = file.read(BLOCK)
    name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
    if name != member.name or header[124:136].rstrip(b"\0 ") != b"%011o" % member.length:
        raise OSError(f"the shard {member.shard} holds another file at this place")
    return FileStatus(member.length, status.mtime_ns)


@contextmanager
def opened(path: str) -> Generator[str | IO[bytes]]:
    """What a reader opens: the absolute path; or the bytes of a shard's member or stored object.

    Raises:
        OSError: The shard or the object cannot be opened.
    """
    name = absolute(path)  # a leading slash keeps "a:b.mp4" from being taken for a protocol
    member = member_at(name)
    if member is None and not is_address(name):
        yield name
        return
    where = (name,) if member is None else (member.shard, member.offset, member.length)
    with open_range(*where) as file:
        yield file


_LONGEST_NAME = 100  # what one ustar header holds
_SAFE_NAME = re.compile(r"[-_]*[A-Za-z0-9][-_A-Za-z0-9]*")


def write_shard(
    path: Path, entries: Iterable[tuple[str, Path, Mapping[str, object]]]
) -> list[Member]:
    """Write a whole shard (a tar file); says where each video lies in it.

    Of each video: its name in the tar without suffix (letters, digits, ``_`` and ``-``), its file,
    and the facts that readers of the shard alone should know. These stand beside it under the same
    name as JSON, which WebDataset makes one sample of. The same videos give the same bytes.

    Raises:
        OSError: A video cannot be read, or the shard cannot be written.
        ValueError: A name is not safe in a tar.
    """
    members = []
    with (
        atomic_path(path) as aside,
        tarfile.open(aside, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, video, known in entries:
            if not _SAFE_NAME.fullmatch(name):
                raise ValueError(f"name must be of letters, digits, _ and -, got {name!r}")
            header = tarfile.TarInfo(f"{name}{video.suffix}")
            if len(header.name) > _LONGEST_NAME:
                raise ValueError(
                    f"name must be of at most {_LONGEST_NAME} characters: {header.name!r}"
                )
            header.mode = 0o644
            with video.open("rb") as file:
                header.size = os.fstat(file.fileno()).st_size
                members.append(Member(str(path), tar.offset + BLOCK, header.size, header.name))
                tar.addfile(header, file)
            facts = json.dumps(known, ensure_ascii=False).encode()
            beside = tarfile.TarInfo(f"{name}.json")
            beside.mode, beside.size = 0o644, len(facts)
            tar.addfile(beside, io.BytesIO(facts))
    return members
