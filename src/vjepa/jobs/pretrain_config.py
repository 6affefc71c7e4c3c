"""The root config of pretraining: rooms' configs composed, and the combinations checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vjepa.data.clip_sampling import ClipConfig
from vjepa.data.loader import LoaderConfig
from vjepa.data.transforms import TransformConfig
from vjepa.evaluation.online import OnlineProbeConfig
from vjepa.masking import MaskingConfig
from vjepa.models import EncoderConfig, ModelConfig, PredictorConfig
from vjepa.training.config import TrainingConfig
from vjepa.training.parallel import DistributedConfig
from vjepa.training.schedules import EmaConfig, OptimConfig


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is predicted at the masked tokens."""

    name: Literal["vjepa", "pixel"] = "vjepa"
    """`vjepa`: features of the EMA target encoder (section 3); `pixel`: normalised pixels
    (Table 1)."""
    loss_exponent: float = 1.0
    """Exponent p of the feature loss mean(|error|^p) / p; the paper uses 1 (L1)."""
    variance_coefficient: float = 0.0
    """Weight of the penalty on predictions that vary too little over tokens; the paper has none."""

    def __post_init__(self) -> None:
        if self.loss_exponent <= 0:
            raise ValueError(f"loss_exponent must be above 0, got {self.loss_exponent}")
        if self.variance_coefficient < 0:
            raise ValueError(
                f"variance_coefficient must not be negative, got {self.variance_coefficient}"
            )


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One data set of the mixture."""

    manifest: Path
    """Parquet manifest made by `vjepa data index`."""
    weight: float | None = None
    """Relative share of the samples; null means by number of videos, as the paper mixes."""
    split: str | None = None
    """Only the rows of this split; null takes all."""

    def __post_init__(self) -> None:
        if self.weight is not None and self.weight <= 0:
            raise ValueError(
                f"weight must be above 0, got {self.weight}: leave the source out instead"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where clips come from and how they are cut."""

    sources: tuple[SourceConfig, ...] = ()
    """The data sets; at least one."""
    batch_size: int = 3072
    """Clips per optimiser step, over all processes and accumulation steps together."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    """Which frames a clip takes."""
    transform: TransformConfig = field(default_factory=TransformConfig)
    """Crop, resize and flip."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Worker processes, prefetching, limits for bad videos."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


@dataclass(frozen=True, kw_only=True)
class ContinueConfig:
    """Start from another run's or the authors' checkpoint instead of random weights."""

    path: Path
    """Checkpoint or run folder of ours, or a released `.pth.tar` file."""
    keep_optimizer: bool = True
    """Take over optimiser state and step, as if training had never stopped; false: weights only."""
    step: int | None = None
    """Number of updates behind the weights, which is where the schedules go on; null: as the
    optimiser's own count in the file says. Only together with `keep_optimizer`."""

    def __post_init__(self) -> None:
        if self.step is not None and not self.keep_optimizer:
            raise ValueError("step: needs keep_optimizer true; weights alone start at update 0")
        if self.step is not None and self.step < 0:
            raise ValueError(f"step: must not be negative, got {self.step}")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that `vjepa pretrain` needs to know."""

    seed: int = 0
    """Of weights, sample order, crops and masks."""
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(encoder=EncoderConfig(), predictor=PredictorConfig())
    )
    """Encoder and predictor."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """What is hidden."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is predicted."""
    data: DataConfig = field(default_factory=DataConfig)
    """The videos."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """AdamW and its schedules."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """Momentum of the target encoder."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Device, precision, intervals."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """How several processes share the work, when a launcher such as torchrun starts them."""
    online_probe: OnlineProbeConfig | None = None
    """A probe that is fitted now and then while training, where labels are given."""
    continue_from: ContinueConfig | None = None
    """Another run or released weights to start from."""

    def __post_init__(self) -> None:
        encoder, clip = self.model.encoder, self.data.clip
        if encoder.num_frames != clip.num_frames:
            raise ValueError(
                f"data.clip.num_frames is {clip.num_frames} but model.encoder.num_frames is "
                f"{encoder.num_frames}: they must be equal"
            )
        if encoder.image_size != self.data.transform.crop_size:
            raise ValueError(
                f"data.transform.crop_size is {self.data.transform.crop_size} but "
                f"model.encoder.image_size is {encoder.image_size}: they must be equal"
            )
        tokens, kinds = self.model.predictor.num_mask_tokens, len(self.masking.masks)
        if tokens != 1 and tokens < kinds:
            raise ValueError(
                f"model.predictor.num_mask_tokens is {tokens} but masking.masks has {kinds} kinds: "
                "use 1 (shared) or one for each kind"
            )
        if self.data.batch_size % self.optim.accumulation_steps:
            raise ValueError(
                f"data.batch_size {self.data.batch_size} is not a multiple of "
                f"optim.accumulation_steps {self.optim.accumulation_steps}"
            )
