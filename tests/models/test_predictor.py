"""The predictor, and the whole model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models.tiny import ENCODER, MODEL, clips, shaken
from torch.nn import functional as F
from torch.testing import assert_close

from vjepa.models import VJEPA, Predictor, PredictorConfig


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
    clips_alone = zip(tokens.split([4, 11, 1]), contexts, targets, strict=True)
    single = torch.cat([predictor(*(part[None] for part in clip), 1)[0] for clip in clips_alone])
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
    names = [name for name, _ in fresh.named_parameters() if "mask" in name]
    assert names == ["mask_tokens.0", "mask_tokens.1", "mask_tokens.2"]
    assert not any(token.any() for token in fresh.mask_tokens)
    assert fresh.predictor_blocks[0].attn.heads == 4
    shaken(fresh).init_weights()
    assert not any(token.any() for token in fresh.mask_tokens)


def test_pixel_predictor_has_its_own_output_width() -> None:
    pixels = Predictor(ENCODER, MODEL.predictor, out_width=ENCODER.patch_values)
    out = pixels(torch.randn(1, 3, 24), torch.tensor([[0, 1, 2]]), torch.tensor([[8, 9]]))
    assert out.shape == (1, 2, 3 * 2 * 4 * 4)


@pytest.mark.parametrize("grid", [(2, 2, 8), (1, 2, 2), (3, 4, 6), (2, 4, 4)])
def test_clips_of_another_grid_are_predicted_at_their_places(
    predictor: Predictor, grid: tuple[int, int, int]
) -> None:
    """The code of the places is that which an encoder of the predictor's width would take."""
    count = grid[0] * grid[1] * grid[2]
    context, target = torch.arange(count // 2)[None], torch.arange(count // 2, count)[None]
    tokens = torch.randn(1, count // 2, 24)
    found = predictor(tokens, context, target, grid=grid)
    offsets = torch.tensor([0, count // 2])
    packed = predictor(
        tokens[0], context[0], target[0], grid=grid, context_offsets=offsets, target_offsets=offsets
    )
    assert_close(packed, found[0], atol=1e-5, rtol=0)
    code = predictor.predictor_pos_embed
    stretched = F.interpolate(code.reshape(1, 2, 4, 4, 12).movedim(-1, 1), grid, mode="trilinear")
    predictor.predictor_pos_embed = stretched.flatten(2).transpose(1, 2)
    assert_close(predictor(tokens, context, target), found, atol=1e-5, rtol=0)


def test_misuse_is_refused(predictor: Predictor) -> None:
    packed = torch.randn(3, 24), torch.arange(3), torch.arange(2)
    with pytest.raises(ValueError, match="together"):
        predictor(*packed, context_offsets=torch.tensor([0, 3]))
    three, two = torch.tensor([0, 2, 3]), torch.tensor([0, 2])
    with pytest.raises(ValueError, match="same clips"):
        predictor(*packed, context_offsets=three, target_offsets=two)
    with pytest.raises(ValueError, match="to the 2 packed tokens"):
        predictor(*packed, context_offsets=three, target_offsets=three)
    tokens, context, target = torch.randn(1, 3, 24), torch.arange(3)[None], torch.arange(2)[None]
    for wrong in (target + 31, target - 1):
        with pytest.raises(ValueError, match=r"target_indices .* numbered 0 to 31.*grid"):
            predictor(tokens, context, wrong)
    with pytest.raises(ValueError, match=r"target_indices .* numbered 0 to 3"):
        predictor(tokens, context, target + 3, grid=(1, 2, 2))
    with pytest.raises(ValueError, match=r"context_indices is torch\.bool"):
        predictor(tokens, torch.ones(1, 32).bool(), target)
    with pytest.raises(ValueError, match="same tokens"):
        predictor(tokens, context[:, :2], target)
    with pytest.raises(ValueError, match="25 wide; give 24"):
        predictor(torch.randn(1, 3, 25), context, target)
    with pytest.raises(ValueError, match=r"grid: \(0, 4, 4\) has no token"):
        predictor(tokens, context, target, grid=(0, 4, 4))
    for other in (target.expand(2, -1), target[0], target[None]):
        with pytest.raises(ValueError, match=r"context_indices \[1, 3\] and target_indices .*same"):
            predictor(tokens, context, other)
    with pytest.raises(ValueError, match="together with offsets"):
        predictor(tokens[0], context[0], target[0])


def test_tokens_of_any_float_type_are_computed_in_the_type_of_the_weights(
    predictor: Predictor,
) -> None:
    tokens, context, target = torch.randn(1, 3, 24), torch.arange(3)[None], torch.arange(2)[None]
    for dtype in (torch.bfloat16, torch.float64):
        found = predictor(tokens.to(dtype), context, target)
        assert torch.equal(found, predictor(tokens.to(dtype).float(), context, target))


def test_a_width_without_a_code_or_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="heads"):
        Predictor(ENCODER, PredictorConfig(width=16))
    halves = replace(ENCODER, position_split="half")
    with pytest.raises(ValueError, match="position_split"):
        Predictor(halves, PredictorConfig(width=12))


def test_target_starts_as_a_copy_without_gradient() -> None:
    model = VJEPA(MODEL)
    assert not any(p.requires_grad for p in model.target_encoder.parameters())
    assert all(p.requires_grad for p in model.encoder.parameters())
    pairs = zip(model.encoder.parameters(), model.target_encoder.parameters(), strict=True)
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)


def test_state_has_the_three_parts_and_no_position_codes() -> None:
    names = VJEPA(MODEL).state_dict()
    assert {name.split(".")[0] for name in names} == {"encoder", "target_encoder", "predictor"}
    assert not any("pos_embed" in name for name in names)


def test_meta_model_comes_to_life() -> None:
    with torch.device("meta"):
        model = VJEPA(MODEL)
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    model.to_empty(device="cpu")
    model.init_weights()
    video = clips(1)
    assert torch.equal(model.encoder(video), model.target_encoder(video))
    assert torch.isfinite(model.encoder(video)).all()
    born = VJEPA(MODEL)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, born.get_buffer(name)), name


def test_reset_position_codes_mends_all_three() -> None:
    model = shaken(VJEPA(MODEL))
    wanted = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert len(wanted) == 3
    for buffer in model.buffers():
        buffer.zero_()
    model.reset_position_codes()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, wanted[name]), name
