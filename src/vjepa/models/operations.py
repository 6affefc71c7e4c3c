"""What a training update costs: arithmetic operations and memory, counted from the sizes.

Operations are those of matrix products (2 for a multiplication and addition), as in the literature
on "model FLOPs": normalisations, GELU, optimiser and whatever is computed a second time to save
memory are left out. With n tokens of width D and an MLP of width H, a block's forward pass costs

    2 n (4 D^2 + 2 D H)  for its linear layers  +  4 n^2 D  for attention,

and the backward pass twice that.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from vjepa.models import cpu_attention
from vjepa.models.config import EncoderConfig, ModelConfig, PredictorConfig
from vjepa.models.encoder import Encoder
from vjepa.models.predictor import Predictor

# Bytes for each number of a token's width that a block keeps for the backward pass: two float32
# residuals (8), two normalised inputs (4 in bfloat16), q k v (6), the attended (2); and for each
# number of the MLP's width its input and its GELU (4).
_KEPT: Mapping[str, tuple[int, int]] = {"bfloat16": (20, 4), "float32": (32, 8)}
_FLOAT32 = 4
# Weight, gradient and AdamW's two moments.
_TRAINED_COPIES = 4

NO_PREDICTOR = PredictorConfig(width=48, depth=1, heads=1)
"""One narrow block, so nothing beside an encoder's: for what is trained without a predictor."""


@dataclass(frozen=True)
class MaskTokens:
    """Tokens of one clip under one mask kind; means are allowed."""

    context: float
    """What the encoder sees."""
    target: float
    """What the predictor fills in."""


@dataclass(frozen=True)
class UpdateOperations:
    """Operations of one update, forward and backward."""

    target_encoder: float
    """Forward only, all tokens."""
    encoder: float
    """Context tokens of all masks."""
    predictor: float
    """Context and target tokens of all masks."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.target_encoder + self.encoder + self.predictor


def update_operations(
    config: ModelConfig, masks: Sequence[MaskTokens], batch_size: int
) -> UpdateOperations:
    """Count the operations of one update of feature prediction (paper, section 3)."""
    encoder, tokens = config.encoder, config.encoder.num_tokens
    embedding = 2 * encoder.patch_values * encoder.width
    target = tokens * embedding + _encoder_blocks(encoder, tokens)
    context = predicted = 0.0
    width, depth = config.predictor.width, config.predictor.depth
    for mask in masks:
        # The clip takes no gradient, so the embedding's backward pass is one product, not two.
        context += 2 * mask.context * embedding + 3 * _encoder_blocks(encoder, mask.context)
        length = mask.context + mask.target
        ends = 2 * encoder.width * width * length  # in for context, out for target tokens
        blocks = depth * _block(length, width, config.predictor.mlp_width)
        predicted += 3 * (ends + blocks)
    return UpdateOperations(batch_size * target, batch_size * context, batch_size * predicted)


def _encoder_blocks(config: EncoderConfig, tokens: float) -> float:
    return config.depth * _block(tokens, config.width, config.mlp_width)


def _block(tokens: float, width: int, mlp_width: int) -> float:
    return 2 * tokens * (4 * width**2 + 2 * width * mlp_width) + 4 * tokens**2 * width


@functools.cache
def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """Numbers of trained parameters of encoder and predictor; no memory is taken for them."""
    with torch.device("meta"):
        parts = Encoder(config.encoder), Predictor(config.encoder, config.predictor)
    encoder, predictor = (sum(p.numel() for p in part.parameters()) for part in parts)
    return encoder, predictor


@dataclass(frozen=True)
class UpdateMemory:
    """Bytes on the device during an update."""

    states: float
    """Weights, gradients, moments, and the target encoder's weights; all float32."""
    activations: float
    """What the forward pass keeps for the backward pass."""

    @property
    def total(self) -> float:
        """All of it; workspaces and the allocator's waste come on top."""
        return self.states + self.activations


def update_memory(
    config: ModelConfig,
    masks: Sequence[MaskTokens],
    batch_size: int,
    *,
    activation_checkpointing: bool = False,
    precision: str = "bfloat16",
    on_cpu: bool = False,
) -> UpdateMemory:
    """Estimate the memory of one update of `batch_size` clips with fused attention.

    With `activation_checkpointing` each block's input is kept, and one block in full. A CPU in
    bfloat16 keeps probabilities of each attention, too (:mod:`vjepa.models.cpu_attention`).
    """
    encoder, predictor = config.encoder, config.predictor
    in_encoder, in_predictor = count_parameters(config)
    states = _FLOAT32 * (_TRAINED_COPIES * (in_encoder + in_predictor) + in_encoder)
    context = sum(mask.context for mask in masks)
    joint = sum(mask.context + mask.target for mask in masks)
    kept, widest = 0.0, 0.0
    for tokens, width, mlp, depth in (
        (context, encoder.width, encoder.mlp_width, encoder.depth),
        (joint, predictor.width, predictor.mlp_width, predictor.depth),
    ):
        per_width, per_mlp_width = _KEPT[precision]
        block = tokens * (per_width * width + per_mlp_width * mlp)
        widest = max(widest, block)
        kept += depth * (_FLOAT32 * width * tokens if activation_checkpointing else block)
    if on_cpu and precision == "bfloat16" and not activation_checkpointing:
        for mask in masks:
            for tokens, heads, depth in (
                (mask.context, encoder.heads, encoder.depth),
                (mask.context + mask.target, predictor.heads or encoder.heads, predictor.depth),
            ):
                probabilities = min(heads * tokens**2 * batch_size, cpu_attention.MOST_KEPT)
                kept += depth * 2 * probabilities / max(1, batch_size)
    # Targets of all tokens, and predictions with their errors, are float32 of the encoder's width.
    targets = encoder.num_tokens + 3 * sum(mask.target for mask in masks)
    kept += targets * encoder.width * _FLOAT32 + (widest if activation_checkpointing else 0.0)
    return UpdateMemory(float(states), batch_size * kept)
