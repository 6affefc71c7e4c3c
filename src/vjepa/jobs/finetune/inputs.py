"""What fine-tuning starts from: videos, labels, the encoder, and the task made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.data.loader.evaluation import refuse_bad
from vjepa.data.manifest.manifest import Manifest
from vjepa.errors import UserError, needs_extra
from vjepa.evaluation.frozen import EncoderIdentity
from vjepa.evaluation.labels import Split, SplitRecord, check_every_class_has_a_sample
from vjepa.evaluation.preprocess import preprocess_of, with_assumed_spacing
from vjepa.jobs.finetune.config import FinetuneConfig, TrainedConfig
from vjepa.jobs.probe.encoder import fit_to_clips, open_encoder
from vjepa.jobs.probe.inputs import draw_labelled, open_others, open_training, record_of
from vjepa.models import Encoder, LinearClassifier
from vjepa.models.encoder import NORM_EPS
from vjepa.runtime.device import seed_torch
from vjepa.tasks import FineTuning

_LORA_LAYERS = r"(attn\.(qkv|proj)|mlp\.(fc1|fc2))"


@dataclass(frozen=True)
class FinetuneInputs:
    """Everything opened and checked.

    `videos` are those that are trained on, `clip` is how they are cut, `test_clip` and `view` how
    a tested video is seen. `identity` is that of the encoder as it was found.
    """

    encoder: Encoder
    identity: EncoderIdentity
    videos: Manifest
    classes: tuple[str, ...]
    kind: str
    record: SplitRecord
    validation: Split | None
    test: Split | None
    clip: ClipConfig
    test_clip: ClipConfig
    view: ViewConfig


def open_inputs(config: FinetuneConfig) -> FinetuneInputs:
    """Open and check everything; UserError for bad input of any kind."""
    data = config.data
    train = open_training(data)
    rows = draw_labelled(data, train.labels, config.seed)
    usable = rows[train.manifest.ok[rows]]
    source = f"manifest {train.manifest.source}, videos that can be used"
    check_every_class_has_a_sample(train.labels.take(usable), source)
    others = open_others(data, train, rows, test=data.test, validation=data.validation)
    validation = others.get("validation")
    if "test" in others:  # which is read after the training alone
        refuse_bad(others["test"].manifest, None, data.on_bad_video)
    record = record_of(data, config.seed, train, rows, rows[:0], validation)
    frozen = open_encoder(config.encoder)
    if data.clip is None and data.sampling != "uniform":
        frozen = with_assumed_spacing(frozen, config.encoder.path)
    sizes = frozen.identity.config
    clip = data.clip or preprocess_of(config.encoder.path, sizes).clip
    if data.sampling == "uniform":
        stride = clip.stride or 4  # it does not count
        clip = replace(clip, stride=stride, fps=None, clip_seconds=None, sampling="uniform")
    size = data.size or sizes.image_size
    if clip.num_frames % sizes.tubelet_size or size % sizes.patch_size:
        raise UserError(
            f"data.clip.num_frames {clip.num_frames} and data.size {size} must be multiples of the "
            f"encoder's tubelet ({sizes.tubelet_size} frames) and patch ({sizes.patch_size} pixels)"
        )
    fitted = fit_to_clips(frozen, config.encoder, clip.num_frames, size)
    if not isinstance(fitted.encoder, Encoder):
        raise UserError(
            f"encoder.path: {config.encoder.path} is an image model, which sees frames alone, or "
            "one that another library computes (Hiera); fine-tuning takes a video encoder of ours, "
            "also of VideoMAE, MVD or OmniMAE"
        )
    spread = "strided" if clip.stride is not None else "even"
    view = ViewConfig(
        crop_size=size,
        num_segments=data.test_segments,
        num_views=data.test_crops,
        join="average",
        placement="centre" if data.test_segments == 1 else spread,
        resize=data.resize,
    )
    return FinetuneInputs(
        encoder=fitted.encoder,
        identity=frozen.identity,
        videos=train.manifest.take(usable),
        classes=train.labels.classes,
        kind=train.kind,
        record=record,
        validation=validation,
        test=others.get("test"),
        clip=replace(clip, clips_per_video=data.repeats),
        test_clip=replace(clip, clips_per_video=1),
        view=view,
    )


def build_task(config: FinetuneConfig, encoder: Encoder, num_classes: int) -> FineTuning:
    """The task on an encoder, whose parameters are marked as trained or not, in place."""
    readout, trained = config.classifier.readout, config.trained
    seed_torch(config.seed, "weights")
    has_norm = readout != "final_norm_then_mean"
    head = LinearClassifier(encoder.config.width, num_classes, norm=has_norm, norm_eps=NORM_EPS)
    torch.nn.init.normal_(head.linear.weight, std=config.classifier.init_std)
    if readout == "mean_then_final_norm":
        assert isinstance(head.norm, torch.nn.LayerNorm)
        head.norm.load_state_dict(encoder.norm.state_dict())
    mark_trained(encoder, trained)
    if has_norm or trained.last_blocks == 0 or trained.lora_rank is not None:
        encoder.norm.requires_grad_(False)
    return FineTuning(
        encoder,
        head,
        seed=config.seed,
        batch_size=config.data.batch_size * config.data.repeats,
        mix=config.mix,
        final_norm=not has_norm,
        drop_path=0.0 if trained.last_blocks == 0 else trained.drop_path,
        head_dropout=config.classifier.dropout,
        layer_decay=trained.layer_decay,
        averaged=config.ema is not None,
    )


def mark_trained(encoder: Encoder, trained: TrainedConfig) -> None:
    """Let those parameters of an encoder take gradients that are to be trained, in place.

    With a LoRA rank the linear layers of the trained blocks get their small matrices, drawn from
    torch's generator.
    """
    depth, last = encoder.config.depth, trained.last_blocks
    if last is not None and last > depth:
        raise UserError(f"trained.last_blocks: {last}, use at most the encoder's {depth}")
    first = 0 if last is None else depth - last
    encoder.requires_grad_(trained.lora_rank is None and last is None)
    if trained.lora_rank is None:
        encoder.norm.requires_grad_(True)
        for block in encoder.blocks[first:]:
            block.requires_grad_(True)
    elif first < depth:
        with needs_extra("trained.lora_rank", "lora"):
            from peft import LoraConfig, inject_adapter_in_model
        numbers = "|".join(map(str, range(first, depth)))
        layers = rf"blocks\.({numbers})\.{_LORA_LAYERS}"
        rank, alpha = trained.lora_rank, trained.lora_alpha or 2 * trained.lora_rank
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers), encoder
        )


def merged(tensors: Mapping[str, Tensor], lora_scale: float) -> dict[str, Tensor]:
    """Weights without LoRA's small matrices, their product added to the layers beside them."""
    small = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    plain = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in tensors.items()
        if name not in small
    }
    for name, down in small.items():
        layer = re.fullmatch(r"(.*)\.lora_A\.default\.weight", name)
        if layer is not None:
            up = small[f"{layer[1]}.lora_B.default.weight"]
            key = f"{layer[1]}.weight"
            plain[key] = plain[key] + lora_scale * (up @ down)
    return plain
