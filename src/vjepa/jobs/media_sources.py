"""What a user means by "these files": videos, images, folders, lists, manifests."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from vjepa.data.index import index_sources
from vjepa.data.manifest import Manifest
from vjepa.data.media_files import is_media
from vjepa.data.probe_file import probe
from vjepa.data.video_info import VideoInfo
from vjepa.errors import UserError


def files_of(sources: Sequence[Path], split: str | None = None) -> list[VideoInfo]:
    """Every file of the sources, each once, in the order of the sources.

    Args:
        sources: Videos, images, folders, lists of files, or Parquet manifests.
        split: Only this split of the manifests among the sources.

    Returns:
        What probing has found, also of files that cannot be read.

    Raises:
        UserError: A source is missing, or there is no file in any.
    """
    found: dict[str, VideoInfo] = {}
    for source in sources:
        found |= {info.path: info for info in _files_of(source, split) if info.path not in found}
    if not found:
        raise UserError("no video to look at: name a file, a folder, a list or a manifest")
    return list(found.values())


def _files_of(source: Path, split: str | None) -> list[VideoInfo]:
    if source.suffix == ".parquet":
        manifest = Manifest.open(source).select(split=split, ok_only=False)
        return [manifest.row(row) for row in range(len(manifest))]
    if source.is_file() and is_media(str(source)):
        return [probe(str(source))]
    with tempfile.TemporaryDirectory() as folder:
        manifest = index_sources([source], Path(folder) / "manifest.parquet", names=["videos"])
        return [manifest.row(row) for row in range(len(manifest))]
