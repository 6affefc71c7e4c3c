"""Counted operations and memory against torch's own counters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models.tiny import ENCODER, MODEL, clips
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vjepa.masking import MaskingConfig, MaskSampler, TokenMasks
from vjepa.models import PRESETS, VJEPA, EncoderConfig, ModelConfig, PredictorConfig, cpu_attention
from vjepa.models.operations import MaskTokens, count_parameters, update_memory, update_operations
from vjepa.tasks import FeaturePrediction

BATCH = 3


def _masks() -> tuple[TokenMasks, ...]:
    sampler = MaskSampler(MaskingConfig(count="fixed"), ENCODER.grid, 2, seed=0)
    return sampler.sample(np.arange(BATCH), 0)


def _tokens(masks: tuple[TokenMasks, ...]) -> list[MaskTokens]:
    return [MaskTokens(mask.num_context_mean, mask.num_target_mean) for mask in masks]


def test_operations_are_those_that_torch_counts() -> None:
    objective, masks = FeaturePrediction(VJEPA(MODEL)), _masks()
    counted = update_operations(MODEL, _tokens(masks), BATCH)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(clips(BATCH), masks).loss.backward()
        assert counter.get_total_flops() == counted.total
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective.targets(clips(BATCH))
        assert counter.get_total_flops() == counted.target_encoder


def test_the_cost_of_the_paper_s_model() -> None:
    """ViT-L/16 at 224 pixels with the reference's counts at 24 clips: about 2.5 TFLOP a clip."""
    config = ModelConfig(encoder=PRESETS["vitl16"], predictor=PredictorConfig())
    counted = update_operations(config, [MaskTokens(366, 754), MaskTokens(105, 1098)], 1)
    assert counted.target_encoder == pytest.approx(1.19e12, rel=0.02)
    assert counted.encoder == pytest.approx(0.90e12, rel=0.03)
    assert counted.predictor == pytest.approx(0.44e12, rel=0.05)


def _kept_bytes(objective: FeaturePrediction, masks: tuple[TokenMasks, ...]) -> int:
    """Bytes of distinct tensors kept for the backward pass, the weights left out."""
    own = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own:
            kept[pointer] = tensor
        return tensor

    clip = clips(BATCH, size=32)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        objective(clip, masks)
    own_size = clip.untyped_storage().nbytes()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) - own_size


@pytest.fixture
def wide() -> ModelConfig:
    """Deep and wide enough that weights' bfloat16 copies and ends are small beside the blocks."""
    encoder = EncoderConfig(width=32, depth=4, heads=2, image_size=32, num_frames=4, patch_size=4)
    return ModelConfig(encoder=encoder, predictor=PredictorConfig(width=16, depth=4))


def test_memory_is_about_what_autograd_keeps(
    wide: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The estimate is of fused attention; a CPU keeps probabilities beside that.
    monkeypatch.setattr(cpu_attention, "MOST_KEPT", 0)
    sampler = MaskSampler(MaskingConfig(count="fixed"), wide.encoder.grid, 2, seed=0)
    masks = sampler.sample(np.arange(BATCH), 0)
    objective = FeaturePrediction(VJEPA(wide))
    estimate = update_memory(wide, _tokens(masks), BATCH)
    assert _kept_bytes(objective, masks) == pytest.approx(estimate.activations, rel=0.35)
    encoder, predictor = count_parameters(wide)
    assert encoder + predictor == sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert estimate.states == 4 * (4 * (encoder + predictor) + encoder)
    assert estimate.total == estimate.states + estimate.activations


def test_checkpointing_needs_less_memory(wide: ModelConfig) -> None:
    tokens = [MaskTokens(50, 60)]
    full = update_memory(wide, tokens, 8)
    less = update_memory(wide, tokens, 8, activation_checkpointing=True)
    assert less.activations < 0.6 * full.activations
    assert less.states == full.states
