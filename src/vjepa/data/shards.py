"""Videos inside tar files, read where they lie: nothing is unpacked.

A video in a shard has an address, which stands wherever a path can stand::

    shards/train-000003.tar!1536+48213/kinetics-abc.mp4

the tar file, the place of the first byte and the number of bytes, and the member's name, by which
its format is known and errors are understood. So decoding, probing, checking and caching are the
same for plain files and for shards. The tar itself is an ordinary one (POSIX ustar), laid out as
the WebDataset convention wants it.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from vjepa.data.storage import FileStatus, absolute, is_address, open_range, status_of

_ADDRESS = re.compile(r"(?P<shard>.+\.tar)!(?P<offset>\d+)\+(?P<length>\d+)/(?P<name>[^/]+)", re.S)

BLOCK = 512
"""Size of a tar header, and what members are padded to, in bytes."""


@dataclass(frozen=True, slots=True)
class Member:
    """Where one file lies in a shard.

    Attributes:
        shard: Path or address of the tar file.
        offset: Its first byte.
        length: Its size in bytes.
        name: Its name in the tar.
    """

    shard: str
    offset: int
    length: int
    name: str

    @property
    def address(self) -> str:
        """What stands for it in a manifest's `path` column."""
        return f"{self.shard}!{self.offset}+{self.length}/{self.name}"


def member_at(path: str) -> Member | None:
    """The member that a path names, or None for a plain file."""
    match = _ADDRESS.fullmatch(path) if ".tar!" in path else None
    if match is None:
        return None
    return Member(match["shard"], int(match["offset"]), int(match["length"]), match["name"])


def open_member(member: Member) -> IO[bytes]:
    """A member as a file of its own that ends where the member ends.

    Raises:
        OSError: The shard cannot be read.
    """
    return open_range(member.shard, member.offset, member.length)


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
    with open_range(name) if member is None else open_member(member) as file:
        yield file
