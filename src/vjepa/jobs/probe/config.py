"""The root config of `vjepa probe train`: which encoder, which labels, which head, how trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from vjepa.checkpoint.folder import Tokens
from vjepa.config import config_dataclass
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import AugmentConfig, ViewConfig
from vjepa.data.loader.evaluation import OnBadVideo
from vjepa.data.loader.reading import ReadingConfig
from vjepa.evaluation.frozen import EncodingConfig
from vjepa.evaluation.heads import HeadConfig, HeadKind, TrainedKind
from vjepa.models import InputConfig
from vjepa.runtime.device import DeviceName
from vjepa.training.schedules import Count, NotNegative, OptimConfig, Positive


@config_dataclass
class EncoderSourceConfig:
    """The frozen encoder."""

    path: Path | None = None
    """Run folder, checkpoint folder, a released file of V-JEPA or of the models that the paper
    compares with, or the name of one that was downloaded (`vjepa models list`) or comes with
    vjepa (`demo`, `vizdoom`, `vizdoom_hour`, `garments`); must be given, or `timm`."""
    which: Literal["target", "context", "random"] = "target"
    """`target`: the moving average, which the paper evaluates; `context`: the trained one;
    `random`: as `random: true`."""
    random: bool = False
    """Fresh weights instead, untrained: the baseline that every number needs. An image model of
    timm without a file of weights must ask for it."""
    seed: int = 0
    """Of fresh weights."""
    num_heads: int | None = None
    """Attention heads of a released file whose size is no preset (Hiera: of its last stage)."""
    image_size: Annotated[int, Field(gt=0)] | None = None
    """Pixels that its positions are for, where a released file does not say it; null: the usual,
    and results say that it was assumed."""
    num_frames: Annotated[int, Field(gt=0)] | None = None
    """Frames that its positions are for, likewise."""
    tokens: Tokens | None = None
    """Another token map, where a model has one. `before_norm`: not through the last norm (DINOv2,
    OpenCLIP); `two_poolings`: Hiera's with 16 instead of 32 pixels a token. null: the usual."""
    input: InputConfig | None = None
    """How a model of others is shown pixels; null: as it was trained."""
    position_code: Literal["stretched", "computed", "table_stretched"] = "stretched"
    """For clips of another size than the encoder was made for: its code resampled to their grid, or
    `computed` anew for it, as the authors do for another resolution and for an image as two frames.
    The two give different features; a table that is stored with the weights has no formula. That of
    a video model (VideoMAE, MVD, OmniMAE) is cut to fewer frames; frames of another size are
    refused, or with `table_stretched` it is stretched over them bicubically, which nobody has
    trained or proved."""
    timm: str | None = None
    """Instead of `path`: an image model of the timm library by its name, which sees every frame
    alone (needs the extra `baselines`)."""
    timm_weights: Path | None = None
    """File with the weights of `timm`. Nothing is downloaded."""

    def __post_init__(self) -> None:
        if self.timm is not None and self.path is not None:
            raise ValueError("timm: give path or timm, not both")
        said = ("num_heads", "image_size", "num_frames", "tokens", "input", "position_code")
        for name in (*said, "which") if self.timm is not None else ():
            if getattr(self, name) not in (getattr(EncoderSourceConfig, name), "random"):
                raise ValueError(f"{name}: a model of timm says it itself; leave it out")
        if self.timm is None and self.timm_weights is not None:
            raise ValueError("timm_weights: given without the model's name in timm")
        if self.timm is not None and (self.timm_weights is None) != self.is_random:
            raise ValueError(
                "timm_weights: give the file of its weights, or ask for fresh, untrained ones "
                "(encoder.random: true); one of the two"
            )

    @property
    def is_random(self) -> bool:
        """Whether fresh weights are asked for."""
        return self.random or self.which == "random"


@config_dataclass
class VideosConfig:
    """Labelled videos."""

    manifest: Path | None = None
    """Parquet manifest made by `vjepa data index`; null takes that of `data.train`
    (for validation and test videos)."""
    split: str | None = None
    """Only the rows of this split; null takes all."""


@config_dataclass
class LabelledVideosConfig:
    """Labelled videos to train on, perhaps few of them."""

    label: str | None = None
    """Name of the label; must be given."""
    train: VideosConfig = field(default_factory=VideosConfig)
    """Videos to train on."""
    labels_per_class: Annotated[int, Field(ge=1)] | None = None
    """Few labels: so many training rows of each class, for one seed the same ones in every job."""
    label_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Few labels: this share of the training rows of each class (Table 7: 0.05, 0.1, 0.5)."""
    on_bad_video: OnBadVideo = "error"
    """A video that cannot be read stops the job (`error`), or is left out and named in the result
    (`list`), and so do images among videos; fine-tuning replaces one that it trains on."""
    clip: ClipConfig | None = None
    """Which frames are seen; null takes what the encoder was pretrained with."""

    def __post_init__(self) -> None:
        if self.labels_per_class is not None and self.label_fraction is not None:
            raise ValueError("label_fraction: give labels_per_class or label_fraction, not both")


@config_dataclass
class LabelledOptimConfig:
    """AdamW where labels are given: a warm-up, half a cosine, and a constant weight decay."""

    start_lr: NotNegative = 1e-6
    """Learning rate before the first update."""
    peak_lr: Positive = 1e-4
    """Learning rate after the warm-up; used as it stands, whatever the batch."""
    final_lr: NotNegative = 1e-6
    """Learning rate at the last update."""
    weight_decay: NotNegative = 0.05
    """Constant; none for biases and norms."""
    clip_norm: Positive | None = None
    """Largest gradient norm, for each trained module on its own; null: off, as in public
    programs."""
    accumulation_steps: Count = 1
    """Micro-batches that each batch is cut into; the gradient is that of the whole batch."""

    def over(self, steps: int, warmup_steps: int, **others: Any) -> OptimConfig:
        """As the training loop takes it, for so many updates."""
        names = ("start_lr", "peak_lr", "final_lr", "clip_norm", "accumulation_steps")
        return OptimConfig(
            steps=steps,
            warmup_steps=warmup_steps,
            schedule_stretch=1.0,
            start_weight_decay=self.weight_decay,
            final_weight_decay=self.weight_decay,
            **{name: getattr(self, name) for name in names},
            **others,
        )


@config_dataclass
class ProbeDataConfig(LabelledVideosConfig):
    """The labelled videos and what is seen of each."""

    multi_label: bool = False
    """A video may have several classes, written `run|jump`: binary cross-entropy, mean average
    precision."""
    validation: VideosConfig | None = None
    """Videos for choosing among heads; null holds a part of the training rows out for that. Where
    there is one head (and no `max_steps`) nothing is chosen, and they are left alone."""
    test: VideosConfig | None = None
    """Videos that the result is measured on, once; null trains only."""
    num_splits: Annotated[int, Field(ge=1)] = 1
    """Low-shot: so many draws of the training rows, with seeds `seed`, `seed` + 1, ...; the result
    is their mean and standard deviation (Table 7: 3)."""
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training rows that the choice among several heads is made on."""
    view: ViewConfig | None = None
    """Segments and crops; null takes one centre crop of the encoder's image size."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is random about the training clips."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    """Worker processes and frame cache."""

    def __post_init__(self) -> None:
        LabelledVideosConfig.__post_init__(self)
        if self.num_splits > 1 and self.labels_per_class is None and self.label_fraction is None:
            raise ValueError("num_splits: several draws need labels_per_class or label_fraction")


@config_dataclass
class FeatureConfig(EncodingConfig):
    """How features are computed and kept."""

    cache_dir: Path | None = None
    """Keep features here and use them again for the same weights, videos and clips. All training
    rows are then encoded, so that other labels and other low-shot subsets find theirs."""
    passes: Annotated[int, Field(ge=1)] = 1
    """With augmentation: so many passes of random clips are encoded once; epoch e trains on number
    e modulo `passes`."""
    online: bool = False
    """Cut and encode the training clips anew in every epoch, as the paper does, instead of keeping
    passes. With as many passes as epochs both train on the same clips."""

    def __post_init__(self) -> None:
        if self.online and self.passes > 1:
            raise ValueError("online: keeps no passes; give online or passes, not both")
        if self.online and self.cache_dir is not None:
            raise ValueError("online: keeps no training features; leave cache_dir out")


@config_dataclass
class ProbeOptimConfig:
    """AdamW for probe heads, all trained at once. The defaults are the paper's recipe (Table 9)."""

    epochs: Annotated[float, Field(gt=0)] | None = 20.0
    """Passes over the training rows; null when `steps` is given."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Updates, instead of passes."""
    min_steps: Annotated[int, Field(ge=0)] = 300
    """At least so many updates, whatever `epochs` says: with few labels passes are short."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Train anew with twice the updates as long as that is better on the rows held out for the
    choice, up to so many updates; never by the test videos. null: only once."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Training rows per update; at most as many as there are."""
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = (1e-3,)
    """Peak learning rates to try; each falls to 0 along a cosine, without warm-up."""
    weight_decays: tuple[Annotated[float, Field(ge=0)], ...] = (0.01,)
    """Weight decays to try, each with every learning rate."""
    poolings: tuple[TrainedKind, ...] | None = None
    """Forms of head to try (`attentive`, `linear`), each with every learning rate and weight decay;
    null tries `probe.kind` only."""
    weight_decay_end: Annotated[float, Field(ge=0, le=1)] = 1e-4
    """Share of its start to which the weight decay falls along a cosine: from 0.01 to 1e-6 in the
    released code. 1 keeps it fixed, as the paper's text says."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm of a head; null: off."""
    refit: bool = True
    """Train the chosen head anew with the rows that were held out for the choice."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("steps: give exactly one of epochs and steps; the other is null")
        if not self.learning_rates or not self.weight_decays:
            name = "weight_decays" if self.learning_rates else "learning_rates"
            raise ValueError(f"{name}: at least one is needed")
        if self.poolings is not None and not 0 < len(self.poolings) == len(set(self.poolings)):
            raise ValueError(f"poolings: at least one, none twice; got {self.poolings}")


@dataclass(frozen=True)
class HeadSetting:
    """What one head of the grid is: peak learning rate, starting weight decay, form."""

    learning_rate: float
    weight_decay: float
    kind: HeadKind = "attentive"


_READ_BY: Mapping[str, tuple[HeadKind, ...]] = {
    "variant": ("attentive",),
    "num_heads": ("attentive",),
    "norm": ("linear",),
    "neighbours": ("knn",),
    "temperature": ("knn", "nearest_mean"),
}
"""Which kinds of head read a setting."""


@config_dataclass
class ProbeConfig:
    """Everything that `vjepa probe train` needs to know."""

    seed: int = 0
    """Of the low-shot subset, the held-out part, the heads' weights and the order of rows."""
    encoder: EncoderSourceConfig = field(default_factory=EncoderSourceConfig)
    """The frozen encoder."""
    data: ProbeDataConfig = field(default_factory=ProbeDataConfig)
    """The labelled videos."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    """How features are computed and kept."""
    probe: HeadConfig = field(default_factory=HeadConfig)
    """The head's form."""
    optim: ProbeOptimConfig = field(default_factory=ProbeOptimConfig)
    """How heads are trained."""
    device: DeviceName = "auto"
    """Where the encoder and the heads run; `auto` takes a GPU when there is one."""
    num_threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of torch; null: torch's choice. The last bits of a number depend on it."""
    floors: bool = False
    """Measure beside it what needs no trained encoder: the same probe on random weights with the
    same input, and ridge classifiers on the pixels of frames, of their differences and of the size
    of these. About twice the time. Nothing without test videos."""

    def __post_init__(self) -> None:
        if self.data.multi_label and (self.floors or not self.probe.is_trained):
            raise ValueError(
                "data.multi_label: several classes a video go with probe.kind attentive or linear, "
                "and without floors"
            )
        if self.data.augment.policy == "none" and self.features.passes > 1:
            raise ValueError(
                "features.passes: without data.augment.policy all passes would be the same"
            )
        for name, readers in _READ_BY.items():
            is_given = getattr(self.probe, name) != getattr(HeadConfig, name)
            if is_given and all(setting.kind not in readers for setting in self.grid):
                raise ValueError(f"probe.{name}: is of kind {' or '.join(readers)}; leave it out")
        if not self.probe.is_trained:
            named = f"a {self.probe.kind} probe is not trained"
            if self.features.online or self.features.passes > 1:
                raise ValueError(f"features: {named}: leave online and passes out")
            if self.optim.poolings is not None:
                raise ValueError(f"optim.poolings: {named}: leave them out")

    @property
    def grid(self) -> tuple[HeadSetting, ...]:
        """Every form of head with every learning rate and weight decay."""
        if not self.probe.is_trained:
            return (HeadSetting(0.0, 0.0, self.probe.kind),)
        return tuple(
            HeadSetting(rate, decay, kind)
            for kind in self.optim.poolings or (self.probe.kind,)
            for rate in self.optim.learning_rates
            for decay in self.optim.weight_decays
        )

    @property
    def has_choice(self) -> bool:
        """Whether heads, or numbers of updates, are compared on videos kept for that."""
        return self.probe.is_trained and (len(self.grid) > 1 or self.optim.max_steps is not None)

    def form(self, kind: HeadKind) -> HeadConfig:
        """The form of a head of the grid."""
        return replace(self.probe, kind=kind, depth=self.probe.depth if kind == "attentive" else 1)
