"""A saved probe on any video: its most probable classes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vjepa.data.index import index_sources
from vjepa.data.manifest import Manifest
from vjepa.data.manifest_schema import ManifestRow
from vjepa.data.media_files import is_media
from vjepa.data.probe_file import probe as probe_media
from vjepa.data.video_info import VideoInfo
from vjepa.errors import UserError
from vjepa.evaluation.clip_reading import ReadingConfig
from vjepa.evaluation.labels import Labels
from vjepa.evaluation.probe_file import ProbeFile, load_probe_file
from vjepa.jobs.probe import feature_maker
from vjepa.jobs.probe_features import FeatureMaker, Videos, choose_rows
from vjepa.jobs.probe_training import CLASSIFY_BATCH, head_probabilities
from vjepa.runtime.device import DeviceName
from vjepa.runtime.threads import set_num_threads

_FEW_VIDEOS = 16
"""Up to so many videos are read in this process: starting workers would take longer."""


@dataclass(frozen=True)
class ClassShare:
    """A class and how probable the probe holds it to be, in [0, 1]."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The answer for one video.

    Attributes:
        path: The video.
        classes: The most probable classes, most probable first; empty when it cannot be read.
        failure: Why it cannot be read, or None.
    """

    path: str
    classes: tuple[ClassShare, ...]
    failure: str | None = None


def predict(
    probe_folder: Path,
    sources: Sequence[Path],
    *,
    top: int = 5,
    split: str | None = None,
    encoder: Path | None = None,
    reading: ReadingConfig | None = None,
    device: DeviceName = "auto",
    num_threads: int | None = None,
) -> list[Prediction]:
    """The most probable classes of videos; no label is needed.

    Args:
        probe_folder: What training a probe wrote.
        sources: Videos, images, folders, lists of files, or Parquet manifests.
        top: How many classes to give of each.
        split: Only this split of the manifests among the sources.
        encoder: Where the probe's encoder lies now, if not where it lay then.
        reading: Worker processes; None takes the defaults, and none for a few videos.
        device: Where to compute.
        num_threads: CPU threads of torch.

    Returns:
        One prediction a video, in the order of the sources; one that cannot be read has `failure`.

    Raises:
        UserError: A source or the probe is missing, the encoder is another than the probe's, or not
            one video can be read.
    """
    if top < 1:
        raise UserError(f"top: must be at least 1, got {top}")
    set_num_threads(num_threads)
    probe = load_probe_file(probe_folder)
    rows = [ManifestRow(info=info) for source in sources for info in _videos_of(source, split)]
    if not rows:
        raise UserError("no video to look at: name a file, a folder, a list or a manifest")
    manifest = Manifest.from_rows(rows, "/")
    few = ReadingConfig(num_workers=0) if len(rows) <= _FEW_VIDEOS else ReadingConfig()
    maker = feature_maker(
        probe,
        encoder=encoder,
        device=device,
        on_bad_video="list",
        reading=reading or few,
        cache_dir=None,
    )
    return _predictions(probe, maker, Videos(manifest, None, "videos"), top)


def _videos_of(source: Path, split: str | None) -> list[VideoInfo]:
    """What a source holds, in its own order."""
    if source.suffix == ".parquet":
        manifest = Manifest.open(source).select(split=split, ok_only=False)
        return [manifest.row(row) for row in range(len(manifest))]
    if source.is_file() and is_media(str(source)):
        return [probe_media(str(source))]
    with tempfile.TemporaryDirectory() as folder:
        manifest = index_sources([source], Path(folder) / "manifest.parquet", names=["videos"])
        return [manifest.row(row) for row in range(len(manifest))]


def _predictions(
    probe: ProbeFile, maker: FeatureMaker, videos: Videos, top: int
) -> list[Prediction]:
    features = maker.features(videos)
    every = np.arange(len(videos.manifest), dtype=np.int64)
    unknown = Labels(probe.label, probe.classes, np.zeros(len(every), dtype=np.int64))
    data = choose_rows(features, unknown, every)
    device = maker.setup.device
    head = probe.head.to(device)
    found = {bad.row: Prediction(bad.path, (), bad.reason) for bad in data.bad}
    for start in range(0, len(data.places), CLASSIFY_BATCH):
        shares = head_probabilities(head, data, start, device)
        best = torch.topk(shares, min(top, len(probe.classes)), dim=1)
        places = data.places[start : start + CLASSIFY_BATCH].tolist()
        for place, values, numbers in zip(
            places, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            classes = tuple(
                ClassShare(probe.classes[number], value)
                for number, value in zip(numbers, values, strict=True)
            )
            row = int(features.rows[place])
            found[row] = Prediction(features.paths[place], classes)
    return [found[row] for row in every.tolist()]
