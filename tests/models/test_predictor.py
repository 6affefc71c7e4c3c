from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models.tiny import ENCODER, MODEL, shaken
from torch.testing import assert_close

from vjepa.models import Predictor, PredictorConfig


@pytest.fixture
def predictor() -> Predictor:
    return shaken(Predictor(MODEL.encoder, MODEL.predictor))


def _draw(lengths: list[int]) -> list[torch.Tensor]:
    return [torch.randperm(32)[:n] for n in lengths]


def test_predictions_have_the_encoders_width(predictor: Predictor) -> None:
    context = torch.stack(_draw([5, 5]))
    target = torch.stack(_draw([9, 9]))
    assert predictor(torch.randn(2, 5, 24), context, target).shape == (2, 9, 24)


def test_a_prediction_does_not_depend_on_the_order_of_the_tokens(predictor: Predictor) -> None:
    tokens = torch.randn(1, 6, 24)
    context, target = torch.randperm(32)[:6][None], torch.randperm(32)[:8][None]
    out = predictor(tokens, context, target)
    a, b = torch.randperm(6), torch.randperm(8)
    assert_close(predictor(tokens[:, a], context[:, a], target[:, b]), out[:, b], atol=1e-5, rtol=0)


def test_packed_clips_equal_one_clip_at_a_time(predictor: Predictor) -> None:
    contexts, targets = _draw([4, 11, 1]), _draw([7, 2, 20])
    tokens = torch.randn(16, 24, requires_grad=True)
    offsets = torch.tensor([0, 4, 15, 16])
    packed = predictor(
        tokens,
        torch.cat(contexts),
        torch.cat(targets),
        1,
        context_offsets=offsets,
        target_offsets=torch.tensor([0, 7, 9, 29]),
    )
    assert packed.shape == (29, 24)
    weights = torch.randn_like(packed)
    (packed * weights).sum().backward()
    ours = {name: p.grad for name, p in predictor.named_parameters()}
    ours_tokens, tokens.grad = tokens.grad, None
    predictor.zero_grad(set_to_none=True)
    parts = [
        predictor(part[None], contexts[b][None], targets[b][None], 1)[0]
        for b, part in enumerate(tokens.split([4, 11, 1]))
    ]
    single = torch.cat(parts)
    assert_close(packed, single, atol=1e-5, rtol=0)
    (single * weights).sum().backward()
    assert_close(ours_tokens, tokens.grad, atol=1e-4, rtol=1e-4)
    for name, parameter in predictor.named_parameters():
        if parameter.grad is None:
            assert ours[name] is None
            assert name == "mask_tokens.0"
        else:
            assert_close(ours[name], parameter.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_each_kind_of_mask_has_its_own_token(predictor: Predictor) -> None:
    args = torch.randn(1, 3, 24), torch.tensor([[0, 1, 2]]), torch.tensor([[8, 9]])
    assert not torch.allclose(predictor(*args, 0), predictor(*args, 1), atol=1e-4)
    for index in (2, -1):
        with pytest.raises(ValueError, match="mask_index"):
            predictor(*args, index)


def test_one_shared_token_serves_every_kind_of_mask() -> None:
    shared = shaken(Predictor(ENCODER, replace(MODEL.predictor, num_mask_tokens=1)))
    args = torch.randn(1, 3, 24), torch.tensor([[0, 1, 2]]), torch.tensor([[8, 9]])
    assert torch.equal(shared(*args, 0), shared(*args, 5))


def test_mask_tokens_start_at_zero_and_heads_can_differ() -> None:
    fresh = Predictor(ENCODER, PredictorConfig(width=16, depth=1, heads=4, num_mask_tokens=3))
    assert [name for name, _ in fresh.named_parameters() if "mask" in name] == [
        "mask_tokens.0",
        "mask_tokens.1",
        "mask_tokens.2",
    ]
    assert not any(token.any() for token in fresh.mask_tokens)
    assert fresh.predictor_blocks[0].attn.heads == 4
    shaken(fresh).init_weights()
    assert not any(token.any() for token in fresh.mask_tokens)


def test_pixel_predictor_has_its_own_output_width() -> None:
    pixels = Predictor(ENCODER, MODEL.predictor, out_width=ENCODER.patch_values)
    out = pixels(torch.randn(1, 3, 24), torch.tensor([[0, 1, 2]]), torch.tensor([[8, 9]]))
    assert out.shape == (1, 2, 3 * 2 * 4 * 4)


def test_one_sort_of_offsets_alone_is_refused(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="together"):
        predictor(
            torch.randn(3, 24),
            torch.arange(3),
            torch.arange(2),
            context_offsets=torch.tensor([0, 3]),
        )


def test_a_width_without_a_code_or_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="heads"):
        Predictor(ENCODER, PredictorConfig(width=16))
    halves = replace(ENCODER, position_split="half")
    with pytest.raises(ValueError, match="position_split"):
        Predictor(halves, PredictorConfig(width=12))
