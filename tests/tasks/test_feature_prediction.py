from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.models.tiny import ENCODER, MODEL, clips, shaken
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from vjepa.masking import LONG_RANGE, SHORT_RANGE, MaskingConfig, MaskSampler, TokenMasks
from vjepa.models import VJEPA, Encoder, InputConfig
from vjepa.tasks import FeaturePrediction
from vjepa.tasks.feature_prediction import lacking_variance

COUNTS = ("prefix", "fixed", "packed")


def _model() -> VJEPA:
    torch.manual_seed(0)
    return shaken(VJEPA(MODEL))


def _masks(count: str, batch: int = 3, seed: int = 0) -> tuple[TokenMasks, ...]:
    config = MaskingConfig(masks=(SHORT_RANGE, LONG_RANGE), count=count)
    return MaskSampler(config, ENCODER.grid, 2, seed).sample(np.arange(batch), 0)


def _one_by_one(model: VJEPA, clip: Tensor, mask: TokenMasks, kind: int) -> list[Tensor]:
    """Predictions [1, M, D] of each clip, computed alone."""
    alone = [mask.sample(row) for row in range(mask.batch_size)]
    return [
        model.predictor(model.encoder(clip[row : row + 1], m.context), m.context, m.target, kind)
        for row, m in enumerate(alone)
    ]


@pytest.mark.parametrize("count", COUNTS)
def test_each_clip_is_as_if_computed_alone(count: str) -> None:
    model, clip = _model(), clips(batch=4)
    task = FeaturePrediction(model)
    lengths = set()
    with torch.no_grad():
        for kind, mask in enumerate(_masks(count, batch=4)):
            together = task.predict(task.encode(clip, mask), mask, kind)
            alone = _one_by_one(model, clip, mask, kind)
            joined = torch.cat([part[0] for part in alone])
            assert_close(together.reshape(joined.shape), joined, atol=2e-5, rtol=1e-5)
            assert mask.is_packed == (count == "packed")
            lengths |= {(kind, part.shape[1]) for part in alone}
    assert (len(lengths) > 2) == (count == "packed"), "packed lengths must differ"


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("exponent", [1.0, 2.0, 1.5])
def test_loss_is_that_of_the_clips_alone(count: str, exponent: float) -> None:
    """Packed: the mean over all masked tokens, so a clip weighs as much as it has of them.

    Masks weigh equally whatever their token counts.
    """
    model, clip, masks = _model(), clips(), _masks(count)
    assert masks[0].target.numel() != masks[1].target.numel()
    output = FeaturePrediction(model, loss_exponent=exponent)(clip, masks)
    losses = []
    for kind, mask in enumerate(masks):
        sums, number = 0.0, 0
        for row, predicted in enumerate(_one_by_one(model, clip, mask, kind)):
            target = F.layer_norm(model.target_encoder(clip[row : row + 1]), (24,), eps=1e-5)
            error = (predicted - target[:, mask.sample(row).target[0]]).abs() ** exponent
            sums, number = sums + error.sum() / exponent, number + error.numel()
        losses.append(sums / number)
        assert_close(output.terms[f"loss/mask_{kind}"], losses[-1].detach(), atol=1e-5, rtol=1e-5)
    assert_close(output.loss, torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)


def test_packed_and_dense_masks_of_equal_counts_have_equal_gradients() -> None:
    masks = _masks("prefix")
    rising = torch.arange(4)
    packed = [
        TokenMasks(
            context=mask.context.flatten(),
            target=mask.target.flatten(),
            context_offsets=rising * mask.context.shape[1],
            target_offsets=rising * mask.target.shape[1],
        )
        for mask in masks
    ]
    gradients = []
    for form in (masks, packed):
        task = FeaturePrediction(_model(), variance_coefficient=0.5)
        task(clips(), form).loss.backward()
        gradients.append([p.grad for p in task.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for dense, flat in zip(*gradients, strict=True):
        assert_close(dense, flat, atol=1e-5, rtol=1e-4)


def test_gradient_reaches_encoder_and_predictor_and_never_the_target() -> None:
    task = FeaturePrediction(_model())
    encoded = []
    task.target_encoder.register_forward_hook(lambda *_: encoded.append(1))
    output = task(clips(), _masks("prefix"))
    assert len(encoded) == 1, "the target is encoded once for all masks"
    output.loss.backward()
    trained = task.trainable()
    assert list(trained) == ["encoder", "predictor"]
    for module in trained.values():
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    assert all(p.grad is None for p in task.target_encoder.parameters())
    assert not any(value.requires_grad for value in output.terms.values())
    assert task.ema_pairs() == [(task.encoder, task.target_encoder)]
    assert task.encoder_for_evaluation is task.target_encoder
    assert task.config is MODEL


def test_each_mask_kind_has_its_own_mask_token() -> None:
    task = FeaturePrediction(_model())
    mask = _masks("prefix")[0]
    with torch.no_grad():
        context = task.encode(clips(), mask)
        first, second = (task.predict(context, mask, kind) for kind in (0, 1))
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("count", ["fixed", "packed"])
def test_variance_penalty(count: str) -> None:
    mask = _masks(count)[0]
    generator = torch.Generator().manual_seed(0)
    lengths = [mask.sample(row).target.shape[1] for row in range(3)]
    parts = [0.3 * torch.randn(1, n, 24, generator=generator) for n in lengths]
    predicted = torch.cat([part[0] for part in parts])
    if count == "fixed":
        predicted = predicted.unflatten(0, (3, -1))
    alone = [F.relu(1 - torch.sqrt(part.var(dim=1) + 1e-4)).mean() for part in parts]
    assert_close(lacking_variance(predicted, mask).mean(), torch.stack(alone).mean())


def test_variance_penalty_of_single_tokens_is_finite() -> None:
    dense = TokenMasks(context=torch.tensor([[0], [0]]), target=torch.tensor([[1], [2]]))
    packed = TokenMasks(
        context=torch.tensor([0, 0]),
        target=torch.tensor([1, 2]),
        context_offsets=torch.tensor([0, 1, 2]),
        target_offsets=torch.tensor([0, 1, 2]),
    )
    values = torch.randn(2, 1, 5)
    assert lacking_variance(values, dense).mean() == pytest.approx(0.99)
    assert lacking_variance(values.flatten(0, 1), packed).mean() == pytest.approx(0.99)


def test_variance_penalty_is_added_with_its_weight() -> None:
    model, clip, masks = _model(), clips(), _masks("prefix")
    plain = FeaturePrediction(model)(clip, masks)
    penalised = FeaturePrediction(model, variance_coefficient=0.25)(clip, masks)
    assert "variance_penalty" not in plain.terms
    penalty = penalised.terms["variance_penalty"]
    assert penalty > 0
    assert_close(penalised.loss, plain.loss + 0.25 * penalty)


def test_bfloat16_keeps_the_loss_in_float32() -> None:
    model, clip, masks = _model(), clips(), _masks("prefix")
    exact = FeaturePrediction(model)(clip, masks).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = FeaturePrediction(model)(clip, masks)
    assert output.loss.dtype == torch.float32
    assert_close(output.loss, exact, atol=0.05, rtol=0.05)


def test_no_value_is_read_from_the_device() -> None:
    """On the meta device any such read fails."""
    task = FeaturePrediction(VJEPA(MODEL), variance_coefficient=0.1).to("meta")
    masks = tuple(mask.to("meta") for mask in _masks("fixed"))
    output = task(clips().to("meta"), masks)
    output.loss.backward()
    assert output.loss.shape == ()


def test_health_has_the_values_to_watch() -> None:
    task = FeaturePrediction(_model())
    for count in COUNTS:
        health = task.health_of(clips(), _masks(count))
        wanted = (
            "target_std target_std_between_clips context_std predictor_std effective_rank "
            "pairwise_cosine explained_vs_mean_token explained_vs_position_mean "
            "explained_absolute_vs_mean_token explained_absolute_vs_position_mean "
            "teacher_student_distance context_tokens/mask_0 target_share/mask_1"
        )
        assert set(wanted.split()) <= set(health)
        assert all(torch.isfinite(value) and value.ndim == 0 for value in health.values())
        assert not any(value.requires_grad for value in health.values())
    assert health["teacher_student_distance"] > 0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rough = task.health_of(clips(), _masks("packed"))
    assert rough["target_std"] == pytest.approx(float(health["target_std"]), rel=0.1)


def test_health_of_one_clip_leaves_out_what_compares_clips() -> None:
    health = FeaturePrediction(_model()).health_of(clips(batch=1), _masks("prefix", batch=1))
    assert "effective_rank" not in health
    assert "explained_vs_position_mean" not in health
    assert all(torch.isfinite(value) for value in health.values())


def test_micro_batches_have_the_gradient_of_the_batch() -> None:
    clip, masks = clips(batch=4), _masks("fixed", batch=4)
    whole, parts = (FeaturePrediction(_model()) for _ in range(2))
    whole(clip, masks).loss.backward()
    for start in (0, 2):
        part = tuple(mask.slice(start, start + 2) for mask in masks)
        (parts(clip[start : start + 2], part).loss / 2).backward()
    for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
        if one.grad is not None:
            assert_close(one.grad, two.grad, atol=1e-5, rtol=1e-4)


def _teacher(**changes: object) -> Encoder:
    return shaken(Encoder(replace(ENCODER, **changes)), seed=7)


def test_a_frozen_teacher_gives_the_targets_and_is_not_trained() -> None:
    """It may be wider and deeper than the student, which is then what is evaluated."""
    teacher, clip, masks = _teacher(width=36, depth=3), clips(), _masks("prefix")
    task = FeaturePrediction(_model(), loss_exponent=2.0, teacher=teacher)
    output = task(clip, masks)
    with torch.no_grad():
        features = F.layer_norm(teacher(clip), (36,))
        errors = [
            task.predict(task.encode(clip, mask), mask, kind) - mask.gather_target(features)
            for kind, mask in enumerate(masks)
        ]
    assert_close(output.loss, torch.stack([e.square().mean() / 2 for e in errors]).mean())
    output.loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert list(task.trainable()) == ["encoder", "predictor"]
    assert list(task.saved_modules()) == ["encoder", "predictor", "teacher"]
    assert task.ema_pairs() == []
    assert task.encoder_for_evaluation is task.encoder
    health = task.health_of(clip, masks)
    assert "teacher_student_distance" not in health
    with torch.no_grad():
        task.encoder.patch_embed.proj.weight.zero_()
    assert task.health_of(clip, masks)["effective_rank"] != health["effective_rank"]


def test_a_teacher_with_another_grid_or_input_is_refused() -> None:
    for changes in ({"patch_size": 8}, {"input": InputConfig(mean=(0.0, 0.0, 0.0))}):
        with pytest.raises(ValueError, match="they must be the same"):
            FeaturePrediction(_model(), teacher=_teacher(**changes))
