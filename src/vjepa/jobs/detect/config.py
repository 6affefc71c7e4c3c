"""The root config of `vjepa detect train`: which encoder, which boxes, how trained and measured."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vjepa.config import config_dataclass
from vjepa.data.clips.key_frames import KeyFrameViewConfig
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.loader.evaluation import OnBadVideo
from vjepa.data.loader.reading import ReadingConfig
from vjepa.evaluation.box_features import ScoreKind
from vjepa.evaluation.detection_metric import RulesName
from vjepa.evaluation.frozen import EncodingConfig
from vjepa.jobs.probe.config import EncoderSourceConfig, LabelledOptimConfig
from vjepa.models import RegionConfig
from vjepa.training import DistributedConfig, TrainingConfig
from vjepa.training.schedules import NotNegative, Positive

TestOn = Literal["auto", "truth", "predicted"]


@config_dataclass
class DetectDataConfig:
    """The boxes, and what is seen around them."""

    train: Path | None = None
    """Table of boxes to train on, made by `vjepa data ava`; must be given."""
    test: Path | None = None
    """Table that the figure is measured on, once; null trains only."""
    videos: Path | None = None
    """Manifest of the videos; null: as the tables say."""
    train_on: Literal["known", "truth"] = "known"
    """`known`: the true boxes, and people found of whom it is known what they do (negatives
    included); `truth`: the true boxes alone."""
    test_on: TestOn = "auto"
    """Boxes that are given classes in the test: the people found, as the paper does, or the true
    boxes, which is easier; `auto`: those found where the table has any. The figure says which."""
    num_videos: Annotated[int, Field(ge=1)] | None = None
    """Few labels: train on the boxes of so many videos, drawn by the seed; null: all."""
    clip: ClipConfig | None = None
    """Which frames around a key frame are seen; null takes the encoder's own number and spacing."""
    view: KeyFrameViewConfig = field(default_factory=KeyFrameViewConfig)
    """Sizes, and what is random about training clips."""
    on_bad_video: OnBadVideo = "error"
    """A key frame that cannot be read stops the job, or is left out of the training and named;
    in the test its people then count as not found. With `end_to_end` it is always `error`."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    """Worker processes that decode."""


@config_dataclass
class BoxFeatureConfig(EncodingConfig):
    """How vectors of boxes are computed and kept."""

    cache_dir: Path | None = None
    """Keep them here, and use them again for the same weights, boxes and clips."""
    passes: Annotated[int, Field(ge=1)] = 1
    """So many passes of random clips are encoded once; epoch e trains on number e modulo this."""


@config_dataclass
class EndToEndConfig:
    """The encoder trained with the head, instead of frozen."""

    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Rate at which the last block is skipped; the first never is."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Each layer's learning rate as a share of the next one's."""


@config_dataclass
class DetectOptimConfig(LabelledOptimConfig):
    """AdamW. The defaults are the paper's (Table 10)."""

    epochs: Positive = 30.0
    """Passes over the key frames."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Key frames of an update, each with all its boxes."""
    warmup_epochs: NotNegative = 2.0
    """Passes over which the learning rate rises."""


@config_dataclass
class DetectConfig:
    """Everything that `vjepa detect train` needs to know."""

    seed: int = 0
    """Of the head's weights, the order of key frames and all that is random about clips."""
    encoder: EncoderSourceConfig = field(default_factory=EncoderSourceConfig)
    """The encoder."""
    data: DetectDataConfig = field(default_factory=DetectDataConfig)
    """The boxes and their videos."""
    regions: RegionConfig = field(default_factory=RegionConfig)
    """How a box becomes a vector."""
    features: BoxFeatureConfig = field(default_factory=BoxFeatureConfig)
    """How the encoder is run where it is frozen, and in the test."""
    end_to_end: EndToEndConfig | None = None
    """Train the encoder, too; null: it stays frozen, as in the paper."""
    optim: DetectOptimConfig = field(default_factory=DetectOptimConfig)
    """How head (and encoder) are trained."""
    rules: RulesName = "alphaction"
    """By which program's rules the figure is computed; see docs/detection.md."""
    scores: ScoreKind = "class"
    """A detection's score: the share of its class, or that times the person's score."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(health_every_steps=None)
    )
    """Device, precision, intervals."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """How several processes share the work, when a launcher such as torchrun starts them."""

    def __post_init__(self) -> None:
        view = self.data.view
        if self.end_to_end is not None and (self.features.passes > 1 or not view.augment):
            raise ValueError(
                "end_to_end: cuts its clips anew, all of one size: set data.view.augment true and "
                "features.passes 1"
            )
        if self.features.passes > 1 and not view.augment:
            raise ValueError("features.passes: without data.view.augment all would be the same")
