"""The videos of a probe: which rows, their labels, and their features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vjepa.config import to_dict
from vjepa.data.clips.augment import AugmentConfig
from vjepa.data.clips.dataset import EvaluationClips, OnBadVideo, ReadingConfig
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.data.manifest.manifest import Manifest
from vjepa.errors import UserError
from vjepa.evaluation.frozen import (
    BadVideo,
    EncodedRows,
    FeatureKey,
    FeatureSet,
    data_hash,
    extract_features,
    feature_shards,
)
from vjepa.evaluation.labels import Labels
from vjepa.evaluation.saved_probe import FeatureSettings
from vjepa.jobs.probe.config import VideosConfig
from vjepa.jobs.probe.encoder import FrozenEncoder
from vjepa.runtime.device import DeviceSetup
from vjepa.runtime.progress import open_progress


@dataclass(frozen=True)
class Videos:
    """Selected rows of a manifest, those included that cannot be read.

    Attributes:
        manifest: The rows.
        split: Name of the split, or None.
        name: What to call them in messages.
        cached_rows: int64, ascending: the rows that a feature cache holds; None: all.
    """

    manifest: Manifest
    split: str | None
    name: str
    cached_rows: NDArray[np.int64] | None = None

    @property
    def kind(self) -> str:
        """What the readable rows are: ``video`` or ``image``; all are of one kind."""
        rows = np.flatnonzero(self.manifest.ok)
        if len(rows) == 0:
            return "video"
        kinds = self.manifest.categories("kind")
        return kinds.classes[int(kinds.codes[rows[0]])]

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
        UserError: No manifest is named, or it is missing, empty, or has no such split, or images
            stand among videos.
    """
    path = config.manifest or fallback
    if path is None:
        raise UserError(f"{name}.manifest: not set; make one with `vjepa data index`")
    manifest = Manifest.open(path).select(split=config.split, ok_only=False)
    videos = Videos(manifest, config.split, name)
    _refuse_images_among_videos(videos)
    return videos


def _refuse_images_among_videos(videos: Videos) -> None:
    """A still clip's label would be told from its stillness; so a set is of one kind.

    Raises:
        UserError: Both kinds are there.
    """
    kinds = videos.manifest.categories("kind")
    ok = videos.manifest.ok
    codes = kinds.codes[ok]
    images = codes == (kinds.classes.index("image") if "image" in kinds.classes else -1)
    if not images.any() or images.all():
        return
    first = int(np.flatnonzero(ok)[np.flatnonzero(images)[0]])
    where = f", {videos.part}" if videos.part else ""
    raise UserError(
        f"manifest {videos.manifest.source}{where}: {int(images.sum())} of its {len(codes)} files "
        f"are images among videos (first image: {videos.manifest.path(first)}); index them apart"
    )


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
        augment: What is random about the clips; None: nothing.
    """

    frozen: FrozenEncoder
    clip: ClipConfig
    view: ViewConfig
    settings: FeatureSettings
    setup: DeviceSetup
    reading: ReadingConfig
    on_bad_video: OnBadVideo
    cache_dir: Path | None = None
    augment: AugmentConfig | None = None

    @property
    def is_random(self) -> bool:
        """Whether another pass gives other features."""
        return self.augment is not None and self.augment.policy != "none"

    def open_clips(
        self, videos: Videos, rows: NDArray[np.int64] | None, pass_index: int = 0
    ) -> EvaluationClips:
        """The clips of some rows; with a cache of those that the cache holds.

        Args:
            videos: The videos.
            rows: int64, ascending; None takes all.
            pass_index: Number of the pass, for random clips.
        """
        return EvaluationClips(
            videos.manifest,
            self.clip,
            self.view,
            self.reading,
            rows=rows if self.cache_dir is None else videos.cached_rows,
            on_bad_video=self.on_bad_video,
            augment=self.augment,
            pass_index=pass_index,
        )

    def features(
        self, videos: Videos, rows: NDArray[np.int64] | None = None, pass_index: int = 0
    ) -> FeatureSet:
        """Features of some rows, or of all.

        With a cache more rows are encoded, so that another choice of rows finds them there.

        Args:
            videos: The videos.
            rows: int64, ascending; None takes all.
            pass_index: Number of the pass, for random clips.

        Returns:
            Features of at least these rows, less the videos that cannot be read.

        Raises:
            UserError: A video cannot be read and bad ones are not to be listed; or none can.
        """
        with self.open_clips(videos, rows, pass_index) as clips:
            what = f"features of {videos.name}"
            with open_progress(
                f"{what}, pass {pass_index + 1}" if self.is_random else what, len(clips)
            ) as progress:
                return extract_features(
                    self.frozen.encoder.to(self.setup.device),
                    clips,
                    self._key(videos, clips, pass_index),
                    cache_dir=self.cache_dir,
                    progress=lambda done, _total: progress.update(done),
                )

    def shards(
        self,
        videos: Videos,
        rows: NDArray[np.int64] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[EncodedRows]:
        """The same as :meth:`features` one shard at a time: a large set is never in memory.

        Args:
            videos, rows: As there.
            share: (rank, world size): every world-size-th shard.

        Yields:
            Features of a span of rows, in manifest order.
        """
        with self.open_clips(videos, rows) as clips:
            size = len(clips) // share[1]
            with open_progress(f"features of {videos.name}", max(1, size)) as progress:
                yield from feature_shards(
                    self.frozen.encoder.to(self.setup.device),
                    clips,
                    self._key(videos, clips, 0),
                    cache_dir=self.cache_dir,
                    progress=lambda done, _total: progress.update(min(done, max(1, size))),
                    share=share,
                )

    def _key(self, videos: Videos, clips: EvaluationClips, pass_index: int) -> FeatureKey:
        random = None
        if self.augment is not None and self.is_random:
            random = {**to_dict(self.augment), "pass": pass_index}
        # How segments are joined comes after the features.
        view = {name: value for name, value in to_dict(self.view).items() if name != "join"}
        return FeatureKey(
            weights_hash=self.frozen.identity.weights_hash,
            encoder=to_dict(self.frozen.identity.config),
            data_hash=data_hash(videos.manifest, clips.rows),
            clip=to_dict(self.clip),
            view=view,
            precision=self.settings.precision,
            storage=self.settings.storage,
            batch_size=self.settings.batch_size,
            shard_clips=self.settings.shard_clips,
            compile=self.settings.compile,
            device=self.setup.device.type,
            augment=random,
        )


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of chosen rows with their labels.

    Attributes:
        passes: K feature sets of the same videos; they may hold more rows.
        places: int64 [K, n], places in each.
        labels: The n labels.
        bad: Chosen rows that could not be read, in some pass.
    """

    passes: tuple[FeatureSet, ...]
    places: NDArray[np.int64]
    labels: Labels
    bad: tuple[BadVideo, ...]

    def __len__(self) -> int:
        """Number of rows n."""
        return self.places.shape[1]

    def parts(self, size: int = 64) -> Iterator[EncodedRows]:
        """The rows of the first pass, some at a time."""
        features = self.passes[0]
        for start in range(0, len(self), size):
            places = self.places[0, start : start + size]
            yield EncodedRows(features.gather(places), features.rows[places], ())


def choose_rows(
    passes: Sequence[FeatureSet], labels: Labels, rows: NDArray[np.int64]
) -> LabelledFeatures:
    """Take rows out of feature sets, with their labels.

    Args:
        passes: Features of at least the readable ones among the rows.
        labels: Labels of all rows of the manifest.
        rows: int64, ascending manifest rows.

    Returns:
        The rows that could be read in every pass, and those that could not.
    """
    wanted = set(rows.tolist())
    found = {video.row: video for part in passes for video in part.bad if video.row in wanted}
    bad = tuple(found[row] for row in sorted(found))
    kept = np.setdiff1d(rows, np.array([video.row for video in bad], dtype=np.int64))
    places = np.stack([np.searchsorted(part.rows, kept).astype(np.int64) for part in passes])
    for part, own in zip(passes, places, strict=True):
        assert np.array_equal(part.rows[own], kept)
    return LabelledFeatures(tuple(passes), places, labels.take(kept), bad)


@dataclass(frozen=True)
class LabelledClipRows:
    """Rows whose clips are cut and encoded while a probe is trained on them.

    Attributes:
        maker: Cuts and encodes.
        videos: The videos.
        rows: int64 [n], manifest rows.
        labels: Their labels.
    """

    maker: FeatureMaker
    videos: Videos
    rows: NDArray[np.int64]
    labels: Labels

    def __len__(self) -> int:
        """Number of rows n."""
        return len(self.rows)


TrainingPart = LabelledFeatures | LabelledClipRows
