"""The files of any sources, and a manifest in words."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

import numpy as np

from vjepa.data.ava import build_table
from vjepa.data.manifest.index import check_manifest, index_sources
from vjepa.data.manifest.manifest import Manifest
from vjepa.data.manifest.storage import absolute, is_address, member_at
from vjepa.data.video.info import VideoInfo, is_media
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError
from vjepa.paths import as_path, as_paths
from vjepa.runtime.process import usable_cpus

__all__ = [
    "Manifest",
    "build_table",
    "check_manifest",
    "checked_workers",
    "counted",
    "describe",
    "files_of",
    "gone_from",
    "index_sources",
    "is_gone",
    "named_files",
]

_MOST_NAMED = 12


def describe(manifest: Manifest) -> str:
    """A manifest in one line: how many videos and images, how long, which splits and labels."""
    good = manifest.ok
    hours = float(manifest.numeric("duration_seconds")[good].sum()) / 3600
    images = manifest.categories("kind").counts().get("image", 0)
    videos = len(manifest) - images
    parts = [f"{videos} video{'s' * (videos != 1)}"] if videos or not images else []
    parts += [f"{images} image{'s' * (images != 1)}"] if images else []
    if not good.all():
        first = manifest.row(int(np.argmin(good)))
        count = int((~good).sum())
        others = "; the others: `vjepa data check`" * (count > 1)
        found = f"{'first: ' * (count > 1)}{first.path}: {first.reason}{others}"
        parts.append(f"{count} of them bad ({found})")
    notes = manifest.table.column("note").to_numpy()
    if (noted := np.flatnonzero(notes != "")).size:
        first = f"{manifest.path(int(noted[0]))}: {notes[noted[0]]}"
        parts.append(f"{len(noted)} of them unusual (first: {first}; all: column `note`)")
    if videos or not images:
        parts.append(f"{hours:.2f} hours")
    datasets = manifest.categories("dataset")
    if len(datasets.classes) > _MOST_NAMED:
        parts.append(f"{len(datasets.classes)} sources")
    elif len(datasets.classes) > 1:
        parts.append(f"sources {counted(datasets.counts())}")
    if manifest.splits:
        found = counted(manifest.categories("split").counts())
        parts.append(f"splits {found}{_twins(manifest.splits)}")
    if names := manifest.label_names:
        classes = [manifest.label_codes(name).classes for name in names]
        of = [f"{n} ({len(c)} values{_twins(c)})" for n, c in zip(names, classes, strict=True)]
        parts.append("labels " + ", ".join(of))
    return ", ".join(parts)


def _twins(names: Sequence[str]) -> str:
    """What to say where two names are the same but for capital letters, or one number."""
    seen: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"^(\d+)\.0+$", r"\1", name.casefold())  # as pandas writes a number
        if (other := seen.setdefault(plain, name)) != name:
            return f" ({other!r} and {name!r} count as two)"
    return ""


def counted(counts: Mapping[str, int]) -> str:
    """Numbers by name in words; "" stands for none."""
    return ", ".join(f"{name or 'none'} {count}" for name, count in counts.items()) or "none"


def checked_workers(workers: int | None) -> int:
    """The number of worker processes, at least 1; None takes one for each CPU core."""
    if workers is not None and workers < 1:
        raise UserError(f"--workers must be at least 1, got {workers}")
    return workers or usable_cpus()


def files_of(sources: Sequence[str | Path], split: str | None = None) -> list[VideoInfo]:
    """Every file of the sources, each once, in their order, also those that cannot be read.

    Sources are videos, images, folders, lists of files, or Parquet manifests; of all but single
    files `split` may choose a split.

    Raises:
        UserError: A source is missing, or there is no file in any.
    """
    found: dict[str, VideoInfo] = {}
    for info in named_files(sources, split):
        found.setdefault(info.path, info)
    return list(found.values())


def is_gone(path: str) -> bool:
    """Whether a file of this disk, or the shard that it lies in, is surely there no more."""
    try:
        return not is_address(path) and not Path(getattr(member_at(path), "shard", path)).exists()
    except OSError:  # a folder that may not be read, say
        return False


def gone_from(sources: Sequence[str | Path], paths: Set[str]) -> set[str]:
    """Of some paths those that lay below one of the sources and are gone.

    Not those below a link that leads nowhere, as to a disk that is not there today.
    """
    folders = [absolute(str(source)) for source in sources if as_path(source).is_dir()]
    below = (path for path in paths if any(Path(path).is_relative_to(one) for one in folders))
    gone = {path for path in below if is_gone(path)}
    parents = {parent for path in gone for parent in Path(path).parents}
    away = {parent for parent in parents if parent.is_symlink() and not parent.exists()}
    return {path for path in gone if away.isdisjoint(Path(path).parents)}


def named_files(
    sources: str | Path | Iterable[str | Path], split: str | None = None
) -> list[VideoInfo]:
    """As :func:`files_of`, but a file as often as it is named."""
    found = [info for source in as_paths(sources) for info in _files_of(source, split)]
    if not found:
        raise UserError("no video to look at: name a file, a folder, a list or a manifest")
    return found


def _files_of(source: Path, split: str | None) -> list[VideoInfo]:
    if source.suffix == ".parquet":
        manifest = Manifest.open(source).select(split=split, ok_only=False)
        return [manifest.row(row) for row in range(len(manifest))]
    is_text = not re.search("[\ud800-\udfff]", str(source.absolute()))  # else it is refused below
    if source.is_file() and is_media(str(source)) and is_text:
        return [inspect_file(str(source))]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "manifest.parquet"
        manifest = index_sources([source], target, names=["videos"], all_may_be_bad=True)
        if split is not None and split not in manifest.splits:
            found = ", ".join(manifest.splits) or "none"
            raise UserError(f"{source}: no file of split {split!r} (splits: {found})")
        manifest = manifest.select(split=split, ok_only=False)
        return [manifest.row(row) for row in range(len(manifest))]
