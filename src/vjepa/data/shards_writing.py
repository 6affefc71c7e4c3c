"""Writing tar shards as the WebDataset convention wants them, byte for byte the same every time."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vjepa.data.shards import BLOCK, Member

_LONGEST_NAME = 100  # what one ustar header holds


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One video to be put into a shard.

    Attributes:
        name: Name in the tar without suffix: letters, digits, ``_`` and ``-``.
        file: The video.
        facts: What readers of the shard alone should know; becomes ``<name>.json``.
    """

    name: str
    file: Path
    facts: Mapping[str, object]


def write_shard(path: Path, entries: Iterable[ShardEntry]) -> list[Member]:
    """Write a shard: aside, synced, then renamed.

    Each video stands beside its facts under the same name, which WebDataset makes one sample of.

    Args:
        path: The tar file.
        entries: The videos.

    Returns:
        Where each video lies.

    Raises:
        OSError: A video cannot be read, or the shard cannot be written.
        ValueError: A name is not safe in a tar.
    """
    aside = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    members: list[Member] = []
    try:
        with aside.open("wb") as out:
            with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for entry in entries:
                    members.append(_add(tar, path, entry))
            out.flush()
            os.fsync(out.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return members


def _add(tar: tarfile.TarFile, path: Path, entry: ShardEntry) -> Member:
    if not entry.name.replace("-", "").replace("_", "").isalnum() or not entry.name.isascii():
        raise ValueError(f"name must consist of letters, digits, _ and -, got {entry.name!r}")
    name = f"{entry.name}{entry.file.suffix}"
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"name must be at most {_LONGEST_NAME} characters long, got {name!r}")
    header = tarfile.TarInfo(name)
    header.mode = 0o644
    with entry.file.open("rb") as file:
        header.size = os.fstat(file.fileno()).st_size
        offset = tar.offset + BLOCK
        tar.addfile(header, file)
    facts = json.dumps(entry.facts, ensure_ascii=False).encode()
    beside = tarfile.TarInfo(f"{entry.name}.json")
    beside.mode, beside.size = 0o644, len(facts)
    tar.addfile(beside, io.BytesIO(facts))
    return Member(str(path), offset, header.size, name)
