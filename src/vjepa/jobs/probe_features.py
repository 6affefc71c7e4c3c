"""The videos of a probe: which rows, their labels, and their features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vjepa.config import to_dict
from vjepa.data.clip_sampling import ClipConfig
from vjepa.data.manifest import Manifest
from vjepa.errors import UserError
from vjepa.evaluation.clip_reading import ReadingConfig, ViewConfig
from vjepa.evaluation.clips import EvaluationClips, OnBadVideo
from vjepa.evaluation.feature_cache import FeatureKey, data_hash, extract_features
from vjepa.evaluation.features import BadVideo, FeatureSet
from vjepa.evaluation.labels import Labels
from vjepa.evaluation.probe_file import FeatureSettings
from vjepa.jobs.probe_config import VideosConfig
from vjepa.jobs.probe_encoder import FrozenEncoder
from vjepa.runtime.device import DeviceSetup
from vjepa.runtime.progress import open_progress


@dataclass(frozen=True)
class Videos:
    """Selected rows of a manifest, those included that cannot be read.

    Attributes:
        manifest: The rows.
        split: Name of the split, or None.
        name: What to call them in messages.
    """

    manifest: Manifest
    split: str | None
    name: str

    @property
    def part(self) -> str:
        """The split in words, for messages; empty for all rows."""
        return f"split {self.split}" if self.split else ""


def open_videos(config: VideosConfig, name: str, fallback: Path | None = None) -> Videos:
    """Open the manifest of one part of the data.

    Args:
        config: Manifest and split.
        name: The field in the config, for messages, for example ``data.test``.
        fallback: The manifest where the config names none.

    Raises:
        UserError: No manifest is named, or it is missing, empty, or has no such split.
    """
    path = config.manifest or fallback
    if path is None:
        raise UserError(f"{name}.manifest: not set; make one with `vjepa data index`")
    manifest = Manifest.open(path).select(split=config.split, ok_only=False)
    return Videos(manifest, config.split, name)


@dataclass(frozen=True)
class FeatureMaker:
    """Makes features of one encoder, always in the same way.

    Attributes:
        frozen: The encoder, on the device of `setup`.
        clip, view: What is seen of each video.
        settings: How the encoder is run.
        setup: Where.
        reading: Worker processes.
        on_bad_video: What becomes of videos that cannot be read.
        cache_dir: Where features are kept, if anywhere.
    """

    frozen: FrozenEncoder
    clip: ClipConfig
    view: ViewConfig
    settings: FeatureSettings
    setup: DeviceSetup
    reading: ReadingConfig
    on_bad_video: OnBadVideo
    cache_dir: Path | None = None

    def features(self, videos: Videos, rows: NDArray[np.int64] | None = None) -> FeatureSet:
        """Features of some rows, or of all.

        With a cache all rows are encoded, so that another choice of rows finds them there.

        Args:
            videos: The videos.
            rows: int64, ascending; None takes all.

        Returns:
            Features of at least these rows, less the videos that cannot be read.

        Raises:
            UserError: A video cannot be read and bad ones are not to be listed; or none can.
        """
        wanted = None if self.cache_dir is not None else rows
        with EvaluationClips(
            videos.manifest,
            self.clip,
            self.view,
            self.reading,
            rows=wanted,
            on_bad_video=self.on_bad_video,
        ) as clips:
            key = FeatureKey(
                weights_hash=self.frozen.identity.weights_hash,
                encoder=to_dict(self.frozen.identity.config),
                data_hash=data_hash(videos.manifest, clips.rows),
                clip=to_dict(self.clip),
                view=to_dict(self.view),
                precision=self.settings.precision,
                storage=self.settings.storage,
                batch_size=self.settings.batch_size,
                device=self.setup.device.type,
            )
            encoder = self.frozen.encoder.to(self.setup.device)
            with open_progress(f"features of {videos.name}", len(clips)) as progress:
                return extract_features(
                    encoder,
                    clips,
                    key,
                    cache_dir=self.cache_dir,
                    progress=lambda done, _total: progress.update(done),
                )


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of chosen rows with their labels.

    Attributes:
        features: The feature set; it may hold more rows.
        places: int64 [n], places in it.
        labels: The n labels.
        bad: Chosen rows that could not be read.
    """

    features: FeatureSet
    places: NDArray[np.int64]
    labels: Labels
    bad: tuple[BadVideo, ...]


def choose_rows(features: FeatureSet, labels: Labels, rows: NDArray[np.int64]) -> LabelledFeatures:
    """Take rows out of a feature set, with their labels.

    Args:
        features: Features of at least the readable ones among the rows.
        labels: Labels of all rows of the manifest.
        rows: int64, ascending manifest rows.

    Returns:
        The rows that could be read, and those that could not.
    """
    bad = tuple(video for video in features.bad if video.row in set(rows.tolist()))
    kept = np.setdiff1d(rows, np.array([video.row for video in bad], dtype=np.int64))
    places = np.searchsorted(features.rows, kept).astype(np.int64)
    assert np.array_equal(features.rows[places], kept)
    return LabelledFeatures(features, places, labels.take(kept), bad)
