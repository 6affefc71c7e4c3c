"""The root config of `vjepa finetune`: which encoder, which labels, what is trained, and how."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from vjepa.config import config_dataclass
from vjepa.data.clips.crops import Resize, check_crop_ranges
from vjepa.data.clips.views import TrainingAugmentConfig
from vjepa.data.loader.loader import LoaderConfig
from vjepa.jobs.probe.config import (
    EncoderSourceConfig,
    LabelledOptimConfig,
    LabelledVideosConfig,
    VideosConfig,
)
from vjepa.tasks import MixConfig
from vjepa.training import DistributedConfig, EmaConfig, OptimConfig, TrainingConfig
from vjepa.training.schedules import Count, NotNegative, Positive

_Rate = Annotated[float, Field(ge=0, lt=1)]


@config_dataclass
class FinetuneDataConfig(LabelledVideosConfig):
    """The labelled videos and what is seen of each."""

    validation: VideosConfig | None = None
    """Videos that are looked at while training, one centre clip of each; nothing is chosen by them.
    They must not be those of `data.test`."""
    test: VideosConfig | None = None
    """Videos that the last weights are measured on, once; null trains only."""
    batch_size: Count = 32
    """Videos of an update, over all processes and accumulation steps together."""
    repeats: Count = 2
    """Clips of each of them: the same frames, decoded once, cut and augmented anew for each."""
    sampling: Literal["dense", "uniform"] = "dense"
    """`dense`: neighbouring frames, as `clip` says; `uniform`: the whole video in equal parts, one
    frame of each, as public programs do for Something-Something."""
    size: Count | None = None
    """Height and width of a clip in pixels; null: the encoder's image size."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Range of a training crop's area, as a share of the frame's."""
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    """Range of its width / height, drawn evenly on a logarithmic scale."""
    horizontal_flip: bool = True
    """Mirror every second training clip; turn it off where left and right carry meaning."""
    resize: Resize = "antialias"
    """`antialias`: bilinear with antialias; `reference`: without it."""
    augment: TrainingAugmentConfig = field(default_factory=TrainingAugmentConfig)
    """What else is changed in a training clip."""
    test_segments: Count = 1
    """Clips of a tested video, spread over it (Kinetics: 5, Something-Something: 2)."""
    test_crops: Count = 1
    """Crops of each, along the long side (3); the mean of all probabilities is the answer."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Worker processes, prefetching, limits for bad videos."""

    def __post_init__(self) -> None:
        LabelledVideosConfig.__post_init__(self)
        check_crop_ranges(self.crop_scale, self.crop_aspect)


@config_dataclass
class ClassifierConfig:
    """The classifier on top: mean of all tokens, norm, linear layer."""

    readout: Literal["mean_then_fresh_norm", "final_norm_then_mean", "mean_then_final_norm"] = (
        "mean_then_fresh_norm"
    )
    """`mean_then_fresh_norm`: without the encoder's final norm, a new one after the mean, as public
    programs do; `final_norm_then_mean`: the encoder's norm, then the mean; `mean_then_final_norm`:
    the mean, then a copy of that norm."""
    init_std: NotNegative = 2e-5
    """Standard deviation of the linear layer's fresh weights."""
    dropout: _Rate = 0.0
    """Of what enters the linear layer."""


@config_dataclass
class TrainedConfig:
    """Which part of the encoder is trained; the classifier always is."""

    last_blocks: Annotated[int, Field(ge=0)] | None = None
    """Only so many of the last blocks; 0: the classifier alone; null: everything."""
    lora_rank: Count | None = None
    """Small matrices of this rank beside each linear layer of those blocks are trained instead of
    its weights (LoRA; needs the extra `lora`); null: the weights."""
    lora_alpha: Count | None = None
    """Their product is scaled by this over the rank; null: twice the rank."""
    drop_path: _Rate = 0.1
    """How often the last block's attention or MLP is left out for a clip, while training; from the
    first block, which never is, this rises evenly."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Learning rate of a block over that of the block after it."""

    def __post_init__(self) -> None:
        if self.lora_rank is None and self.lora_alpha is not None:
            raise ValueError("lora_alpha: given without lora_rank")
        if self.lora_rank is not None and self.last_blocks == 0:
            raise ValueError("lora_rank: last_blocks 0 trains no layer; leave one of them out")

    @property
    def lora_scale(self) -> float:
        """Factor of the product of a layer's two small matrices."""
        rank = self.lora_rank
        return 0.0 if rank is None else (self.lora_alpha or 2 * rank) / rank


@config_dataclass
class FinetuneOptimConfig(LabelledOptimConfig):
    """AdamW: linear warm-up, then half a cosine, by the update."""

    epochs: Positive | None = 30.0
    """Passes over the training videos; null when `steps` is given."""
    steps: Count | None = None
    """Updates, instead of passes."""
    min_steps: Annotated[int, Field(ge=0)] = 0
    """At least so many updates, whatever `epochs` says: with few labels passes are short."""
    warmup: _Rate = 0.15
    """Share of all updates over which the learning rate rises."""
    peak_lr: Positive = 1e-3
    """Learning rate after the warm-up, as it is used: the programs behind Table 11 give it for 256
    videos and multiply by batch / 256."""
    betas: tuple[_Rate, _Rate] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("steps: give exactly one of epochs and steps; the other is null")

    def schedules(self, videos: int, batch_size: int) -> OptimConfig:
        """As the training loop takes it, for so many training videos."""
        steps = self.steps
        if steps is None:
            assert self.epochs is not None
            steps = max(self.min_steps, math.ceil(self.epochs * videos / batch_size))
        warmup = round(self.warmup * steps)
        return self.over(steps, warmup, betas=self.betas, eps=self.eps)


@config_dataclass
class FinetuneConfig:
    """Everything that `vjepa finetune` needs to know."""

    seed: int = 0
    """Of the classifier's weights, the few labels, the order of videos, and all that is random
    about clips."""
    encoder: EncoderSourceConfig = field(default_factory=EncoderSourceConfig)
    """What training starts from."""
    trained: TrainedConfig = field(default_factory=TrainedConfig)
    """Which part of it is trained."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """What stands on top."""
    data: FinetuneDataConfig = field(default_factory=FinetuneDataConfig)
    """The labelled videos."""
    mix: MixConfig = field(default_factory=MixConfig)
    """Clips mixed with each other, and softened labels."""
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    """How it is trained."""
    ema: EmaConfig | None = None
    """Keep a moving average of all weights, and measure that; null: the weights themselves."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(health_every_steps=None, evaluate_every_steps=500)
    )
    """Device, precision, intervals."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """How several processes share the work, when a launcher such as torchrun starts them."""

    def __post_init__(self) -> None:
        if self.encoder.timm is not None:
            raise ValueError("encoder.timm: an encoder of ours is fine-tuned; give encoder.path")
        check_batch(self, 1)


def check_batch(config: FinetuneConfig, processes: int) -> None:
    """Refuse a batch that cannot be divided (ValueError, which begins with the field's name)."""
    videos, parts = config.data.batch_size, config.optim.accumulation_steps * processes
    shared = f"{config.optim.accumulation_steps} accumulation steps"
    if processes > 1:
        shared += f" in {processes} processes"
    if videos % parts:
        near = max(1, round(videos / parts)) * parts
        raise ValueError(
            f"data.batch_size: {videos} videos cannot be divided into {shared}; use a multiple of "
            f"{parts}, for example {near}"
        )
    clips = videos // parts * config.data.repeats
    if config.mix.is_on and clips % config.mix.group:
        raise ValueError(
            f"mix.group: {config.mix.group} does not divide the {clips} clips of a micro-batch "
            f"({videos} videos x {config.data.repeats} repeats, {shared}); use a divisor of {clips}"
        )
