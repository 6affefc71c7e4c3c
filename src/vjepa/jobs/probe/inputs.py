"""What a probe's training starts from: encoder, videos, labels, and which rows do what.

All of it is opened and checked before the encoder runs, so that a wrong label or split is found in
a second and not after hours of features.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vjepa.data.loader.evaluation import OnBadVideo, refuse_bad
from vjepa.data.manifest.manifest import Manifest
from vjepa.errors import UserError
from vjepa.evaluation.frozen import ClipSettings, FeatureExtractor
from vjepa.evaluation.labels import (
    Labels,
    Split,
    SplitRecord,
    check_every_class_has_a_sample,
    hold_out,
    labelled_split,
    paths_and_sizes,
    refuse_known,
    stratified_subset,
)
from vjepa.evaluation.preprocess import preprocess_of, with_assumed_spacing
from vjepa.jobs.probe.config import LabelledVideosConfig, ProbeConfig, VideosConfig
from vjepa.jobs.probe.encoder import compile_encoder, fit_to_clips, open_encoder
from vjepa.runtime.device import set_up_device

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeInputs:
    """Everything opened, and the config with every null resolved.

    `training_extractor` makes features of the clips that are trained on: one crop, and random where
    augmentation is on; `extractor` those of the views that are evaluated. `fit` and `choose` int64
    are ascending rows of `train`; `choose`, held out for the choice, is empty where there is none
    to make or where validation videos are given for it.
    """

    config: ProbeConfig
    extractor: FeatureExtractor
    training_extractor: FeatureExtractor
    train: Split
    fit: NDArray[np.int64]
    choose: NDArray[np.int64]
    validation: Split | None
    test: Split | None

    @property
    def labels(self) -> Labels:
        """Of all rows of `train`."""
        return self.train.labels

    @property
    def used(self) -> NDArray[np.int64]:
        """All rows whose labels are used, ascending."""
        return np.sort(np.concatenate([self.fit, self.choose]))

    def record(self) -> SplitRecord:
        """What is saved beside the result."""
        data, seed = self.config.data, self.config.seed
        return record_of(data, seed, self.train, self.fit, self.choose, self.validation)


def record_of(
    data: LabelledVideosConfig,
    seed: int,
    train: Split,
    fit: NDArray[np.int64],
    choose: NDArray[np.int64],
    validation: Split | None,
) -> SplitRecord:
    """What a training starts from: rows of `train` to fit on and to choose on, and other videos."""
    manifest, rows = train.manifest, np.concatenate([fit, choose])
    paths = tuple(itertools.chain.from_iterable(manifest.paths(rows)))
    seen = {} if validation is None else paths_and_sizes(validation.manifest)
    return SplitRecord(
        label=train.labels.name,
        manifest_hash=manifest.content_hash,
        seed=seed,
        labels_per_class=data.labels_per_class,
        label_fraction=data.label_fraction,
        fit=tuple(fit.tolist()),
        choose=tuple(choose.tolist()),
        fit_paths=paths[: len(fit)],
        choose_paths=paths[len(fit) :],
        validation_paths=tuple(seen),
        sizes=(*manifest.numeric("bytes")[rows].tolist(), *seen.values()),
    )


def open_inputs(config: ProbeConfig, cached_rows: NDArray[np.int64] | None = None) -> ProbeInputs:
    """Open and check everything.

    `cached_rows` (int64, ascending) are the training rows that a feature cache holds; None: all.
    """
    data = config.data
    validation = data.validation if config.has_choice else None
    if validation != data.validation:
        _LOGGER.info("data.validation: not used: with one head there is nothing to choose")
    train = replace(open_training(data, data.multi_label), cached_rows=cached_rows)
    fit, choose = _choose_rows(config, train.labels)
    used = np.concatenate([fit, choose])
    others = open_others(data, train, used, validation=validation, test=data.test)
    refuse_bad(train.manifest, used, data.on_bad_video)
    for other in others.values():
        refuse_bad(other.manifest, None, data.on_bad_video)
    frozen = open_encoder(config.encoder)
    if data.clip is None:
        frozen = with_assumed_spacing(frozen, config.encoder.path)
    encoder = frozen.identity.config
    usual = preprocess_of(config.encoder.path, encoder)
    clip, view = usual.unless_given(data.clip, data.view, "data.")
    if clip.num_frames % encoder.tubelet_size or view.crop_size % encoder.patch_size:
        raise UserError(
            f"data.clip.num_frames {clip.num_frames} and data.view.crop_size {view.crop_size} must "
            f"be multiples of the encoder's tubelet ({encoder.tubelet_size} frames) and patch "
            f"({encoder.patch_size} pixels)"
        )
    heads = config.probe.num_heads or encoder.heads
    if encoder.width % heads and any(setting.kind == "attentive" for setting in config.grid):
        raise UserError(f"probe.num_heads: {heads} must divide the encoder's width {encoder.width}")
    frozen = fit_to_clips(frozen, config.encoder, clip.num_frames, view.crop_size)
    setup = set_up_device(config.device, config.features.precision)
    if config.features.compile:
        compile_encoder(frozen.encoder.to(setup.device))
    settings = ClipSettings(clip=clip, view=view, features=config.features.encoding)
    extractor = FeatureExtractor(
        frozen, settings, setup, data.reading, data.on_bad_video, config.features.cache_dir
    )
    one_view = replace(settings, view=replace(view, num_views=1))
    return ProbeInputs(
        config=replace(config, data=replace(data, clip=clip, view=view)),
        extractor=extractor,
        training_extractor=replace(extractor, settings=one_view, augment=data.augment),
        train=train,
        fit=fit,
        choose=choose,
        validation=others.get("validation"),
        test=others.get("test"),
    )


def open_split(
    config: VideosConfig,
    name: str,
    label: str,
    *,
    classes: tuple[str, ...] | None = None,
    multi_label: bool = False,
    fallback: Path | None = None,
    on_bad_video: OnBadVideo = "error",
) -> Split:
    """Open one part of the data, as :func:`labelled_split` makes it.

    `name` is the field in the config; `fallback` the manifest where the config names none. With
    ``on_bad_video: list`` images among videos are left out, too.
    """
    path = config.manifest or fallback
    if path is None:
        raise UserError(f"{name}.manifest: not set; make one with `vjepa data index`")
    manifest = Manifest.open(path)
    return labelled_split(
        *(manifest, config.split, name, label),
        classes=classes,
        multi_label=multi_label,
        images="drop" if on_bad_video == "list" else "error",
    )


def open_training(data: LabelledVideosConfig, multi_label: bool = False) -> Split:
    """Open the videos to train on; each class of the label has some."""
    if data.label is None:
        raise UserError("data.label: not set; name a label of the manifest")
    named = (data.train, "data.train", data.label)
    train = open_split(*named, multi_label=multi_label, on_bad_video=data.on_bad_video)
    check_every_class_has_a_sample(train.labels, f"manifest {train.manifest.source}")
    return train


def open_others(
    data: LabelledVideosConfig,
    train: Split,
    used: NDArray[np.int64],
    **wanted: VideosConfig | None,
) -> dict[str, Split]:
    """Open the parts that are wanted beside `train`: of its label, classes and kind of files.

    No file may be in two of them, nor be one of the rows of `train` that are used.
    """
    opened: dict[str, Split] = {}
    labels, known = train.labels, {train.name: paths_and_sizes(train.manifest, used)}
    for key, videos in wanted.items():
        if videos is None:
            continue
        name = f"data.{key}"
        split = open_split(
            videos,
            name,
            labels.name,
            classes=labels.classes,
            multi_label=labels.multi_label,
            fallback=data.train.manifest,
            on_bad_video=data.on_bad_video,
        )
        if split.kind != train.kind:
            raise UserError(
                f"{name}: its files are {split.kind}s, those of data.train are {train.kind}s"
            )
        for other, files in known.items():
            remedy = f"set the splits ({other}.split, {name}.split)"
            split = refuse_known(split, files, f"in {other} too", remedy)
        known[name] = paths_and_sizes(split.manifest)
        opened[key] = split
    return opened


def draw_labelled(data: LabelledVideosConfig, labels: Labels, seed: int) -> NDArray[np.int64]:
    """The training rows whose labels are used: all, or the few that the config asks for."""
    return stratified_subset(
        labels, per_class=data.labels_per_class, fraction=data.label_fraction, seed=seed
    )


def rows_of_all_splits(config: ProbeConfig) -> NDArray[np.int64]:
    """The training rows that any of the low-shot splits of a config uses: int64, ascending."""
    seeds = range(config.seed, config.seed + config.data.num_splits)
    labels = open_training(config.data, config.data.multi_label).labels
    drawn = [part for seed in seeds for part in _choose_rows(replace(config, seed=seed), labels)]
    return np.unique(np.concatenate(drawn))


def _choose_rows(
    config: ProbeConfig, labels: Labels
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    data = config.data
    used = draw_labelled(data, labels, config.seed)
    if not config.has_choice or data.validation is not None:
        return used, np.empty(0, dtype=np.int64)
    return hold_out(labels, used, data.held_out_fraction, config.seed)
