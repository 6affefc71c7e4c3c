"""What a probe's training starts from: encoder, videos, labels, and which rows do what.

All of it is opened and checked before the encoder runs, so that a wrong label or split is found in
a second and not after hours of features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vjepa.errors import UserError
from vjepa.evaluation.labels import (
    Labels,
    SplitRecord,
    check_every_class_has_a_sample,
    hold_out,
    labels_of,
    stratified_subset,
)
from vjepa.evaluation.saved_probe import FeatureSettings
from vjepa.jobs.probe.config import ProbeConfig
from vjepa.jobs.probe.encoder import (
    FrozenEncoder,
    centre_view,
    compile_encoder,
    fit_to_clips,
    open_encoder,
    pretraining_clip,
)
from vjepa.jobs.probe.features import FeatureMaker, Videos, open_videos
from vjepa.runtime.device import set_up_device


@dataclass(frozen=True)
class TrainingRows:
    """The training videos and which of their rows fit the heads and which choose among them.

    Attributes:
        videos: The training videos.
        labels: Labels of all their rows.
        fit: int64, ascending rows that heads are trained on.
        choose: int64, ascending rows held out for the choice; empty where there is none to make or
            where validation videos are given for it.
    """

    videos: Videos
    labels: Labels
    fit: NDArray[np.int64]
    choose: NDArray[np.int64]

    @property
    def used(self) -> NDArray[np.int64]:
        """All rows whose labels are used, ascending."""
        return np.sort(np.concatenate([self.fit, self.choose]))

    def record(self, config: ProbeConfig) -> SplitRecord:
        """What is saved beside the result."""
        manifest = self.videos.manifest
        return SplitRecord(
            label=self.labels.name,
            manifest_hash=manifest.content_hash,
            seed=config.seed,
            labels_per_class=config.data.labels_per_class,
            label_fraction=config.data.label_fraction,
            fit=tuple(self.fit.tolist()),
            choose=tuple(self.choose.tolist()),
            fit_paths=tuple(manifest.path(row) for row in self.fit.tolist()),
            choose_paths=tuple(manifest.path(row) for row in self.choose.tolist()),
        )


@dataclass(frozen=True)
class LabelledVideos:
    """Videos with labels numbered by the training classes."""

    videos: Videos
    labels: Labels


@dataclass(frozen=True)
class ProbeInputs:
    """Everything opened.

    Attributes:
        config: The job's config with every null resolved.
        frozen: The encoder.
        maker: Makes its features of the views that are evaluated.
        training_maker: Makes its features of the clips that are trained on: one crop, and random
            where augmentation is on.
        rows: The training rows.
        validation: Videos for the choice, if given.
        test: Videos for the result, if given.
    """

    config: ProbeConfig
    frozen: FrozenEncoder
    maker: FeatureMaker
    training_maker: FeatureMaker
    rows: TrainingRows
    validation: LabelledVideos | None
    test: LabelledVideos | None


def open_inputs(config: ProbeConfig, cached_rows: NDArray[np.int64] | None = None) -> ProbeInputs:
    """Open and check everything.

    Args:
        config: The job's config.
        cached_rows: int64, ascending: the training rows that a feature cache holds; None: all.

    Raises:
        UserError: Something is not set, missing, unlabelled, or does not fit together.
    """
    rows = _training_rows(config, _label(config), cached_rows)
    validation = _other(config, "validation", rows.labels, rows.videos.kind)
    test = _other(config, "test", rows.labels, rows.videos.kind)
    _refuse_overlap(rows, validation, test)
    frozen = open_encoder(config.encoder)
    encoder = frozen.identity.config
    clip = config.data.clip or pretraining_clip(config.encoder, encoder)
    view = config.data.view or centre_view(encoder)
    if clip.num_frames % encoder.tubelet_size or view.crop_size % encoder.patch_size:
        raise UserError(
            f"data.clip.num_frames {clip.num_frames} and data.view.crop_size {view.crop_size} must "
            f"be multiples of the encoder's tubelet ({encoder.tubelet_size} frames) and patch "
            f"({encoder.patch_size} pixels)"
        )
    frozen = fit_to_clips(frozen, config.encoder, clip.num_frames, view.crop_size)
    setup = set_up_device(config.device, config.features.precision)
    if config.features.compile:
        compile_encoder(frozen.encoder.to(setup.device))
    maker = FeatureMaker(
        frozen=frozen,
        clip=clip,
        view=view,
        settings=FeatureSettings(
            precision=config.features.precision,
            storage=config.features.storage,
            batch_size=config.features.batch_size,
            shard_clips=config.features.shard_clips,
            compile=config.features.compile,
        ),
        setup=setup,
        reading=config.data.reading,
        on_bad_video=config.data.on_bad_video,
        cache_dir=config.features.cache_dir,
    )
    return ProbeInputs(
        config=replace(config, data=replace(config.data, clip=clip, view=view)),
        frozen=frozen,
        maker=maker,
        training_maker=replace(maker, view=replace(view, num_views=1), augment=config.data.augment),
        rows=rows,
        validation=validation,
        test=test,
    )


def rows_of_all_splits(config: ProbeConfig) -> NDArray[np.int64]:
    """The training rows that any of the low-shot splits of a config uses: int64, ascending.

    Raises:
        UserError: As :func:`open_inputs`.
    """
    seeds = range(config.seed, config.seed + config.data.num_splits)
    label = _label(config)
    drawn = [_training_rows(replace(config, seed=seed), label).used for seed in seeds]
    return np.unique(np.concatenate(drawn))


def _label(config: ProbeConfig) -> str:
    if config.data.label is None:
        raise UserError("data.label: not set; name a label of the manifest")
    return config.data.label


def _training_rows(
    config: ProbeConfig, label: str, cached_rows: NDArray[np.int64] | None = None
) -> TrainingRows:
    data = config.data
    videos = replace(open_videos(data.train, "data.train"), cached_rows=cached_rows)
    labels = labels_of(videos.manifest, label, part=videos.part, multi_label=data.multi_label)
    check_every_class_has_a_sample(labels, f"manifest {videos.manifest.source}")
    used = stratified_subset(
        labels, per_class=data.labels_per_class, fraction=data.label_fraction, seed=config.seed
    )
    if len(config.grid) == 1 or data.validation is not None:
        return TrainingRows(videos, labels, used, np.empty(0, dtype=np.int64))
    parts = hold_out(labels, used, data.held_out_fraction, config.seed)
    return TrainingRows(videos, labels, parts.fit, parts.choose)


def _other(
    config: ProbeConfig, name: str, labels: Labels, trained_on: str
) -> LabelledVideos | None:
    """The validation or the test videos; they must be of the kind that is trained on."""
    wanted = config.data.validation if name == "validation" else config.data.test
    if wanted is None:
        return None
    videos = open_videos(wanted, f"data.{name}", config.data.train.manifest)
    if videos.kind != trained_on:
        raise UserError(
            f"data.{name}: its files are {videos.kind}s, those of data.train are {trained_on}s"
        )
    own = labels_of(
        videos.manifest,
        labels.name,
        classes=labels.classes,
        part=videos.part,
        multi_label=labels.multi_label,
    )
    return LabelledVideos(videos, own)


def _refuse_overlap(
    rows: TrainingRows, validation: LabelledVideos | None, test: LabelledVideos | None
) -> None:
    """A video that is measured on must not have been trained or chosen on.

    Raises:
        UserError: The same file stands in two parts.
    """
    manifest = rows.videos.manifest
    owner = {manifest.path(row): rows.videos.name for row in rows.used.tolist()}
    for other in (validation, test):
        if other is None:
            continue
        videos = other.videos
        paths = [videos.manifest.path(row) for row in range(len(videos.manifest))]
        shared = [path for path in paths if path in owner]
        if shared:
            raise UserError(
                f"{videos.name}: {len(shared)} of its {len(paths)} videos are in "
                f"{owner[shared[0]]} too (first: {shared[0]}); set the splits "
                f"({owner[shared[0]]}.split, {videos.name}.split)"
            )
        owner |= dict.fromkeys(paths, videos.name)
