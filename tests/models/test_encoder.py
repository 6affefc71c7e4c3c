from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.models.tiny import ENCODER, IMAGE_ENCODER, clips, shaken
from torch.testing import assert_close

from vjepa.models import VJEPA, Encoder, EncoderConfig, InputConfig, ModelConfig, PredictorConfig
from vjepa.models.config import Position
from vjepa.models.encoder import FrameEncoder
from vjepa.models.predictor import Predictor
from vjepa.models.rotary import Rotation, rotate, rotation

PAIRS = torch.tensor([0, 4, 8])


@pytest.fixture
def encoder() -> Encoder:
    return shaken(Encoder(ENCODER))


def test_all_tokens_in_any_order_give_the_same_features(encoder: Encoder) -> None:
    video = clips(2)
    everything = encoder(video)
    assert everything.shape == (2, 32, 24)
    order = torch.stack([torch.randperm(32), torch.randperm(32)])
    shuffled = encoder(video, order)
    assert_close(shuffled, everything[torch.arange(2)[:, None], order], atol=1e-5, rtol=0)


def test_dropped_tokens_are_not_seen(encoder: Encoder) -> None:
    video = clips(1)
    kept = torch.tensor([[0, 1, 4, 5]])  # the upper left quarter of the first two frames
    changed = video.clone()
    changed[:, :, 2:] += 1
    changed[:, :, :, 8:] -= 1
    assert torch.equal(encoder(video, kept), encoder(changed, kept))
    assert not torch.equal(encoder(video), encoder(changed))


def test_packed_clips_equal_one_clip_at_a_time(encoder: Encoder) -> None:
    video = clips(3)
    lists = [torch.randperm(32)[:n].sort().values for n in (9, 1, 20)]
    offsets = torch.tensor([0, 9, 10, 30])
    packed = encoder(video, torch.cat(lists), offsets=offsets)
    weights = torch.randn_like(packed)
    (packed * weights).sum().backward()
    ours = {name: p.grad.clone() for name, p in encoder.named_parameters()}
    encoder.zero_grad()
    single = torch.cat([encoder(video[b : b + 1], lists[b][None])[0] for b in range(3)])
    assert_close(packed, single, atol=1e-5, rtol=0)
    (single * weights).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert_close(ours[name], parameter.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_intermediate_layers(encoder: Encoder) -> None:
    video = clips(2)
    last, first, again = encoder(video, layers=(1, 0, 1))
    assert_close(last, encoder(video), atol=1e-6, rtol=0)
    assert torch.equal(last, again)
    tokens = encoder.patch_embed(video) + encoder.pos_embed
    assert_close(first, encoder.norm(encoder.blocks[0](tokens)), atol=1e-6, rtol=0)
    # Blocks after the last wanted one are not run.
    encoder.blocks[1].register_forward_hook(lambda *_: pytest.fail("block 1 was run"))
    (only,) = encoder(clips(1), layers=[0])
    assert only.shape == (1, 32, 24)
    for wrong in ([], [2], [-1], 1):
        with pytest.raises(ValueError, match=r"layers: .* must be among 0 \.\. 1, in a list"):
            encoder(video, layers=wrong)
    encoder.blocks[1]._forward_hooks.clear()
    assert torch.equal(encoder(video, layers=(n for n in (0, 1)))[1], last)


def test_other_sizes_resample_and_rebuilt_recomputes(encoder: Encoder) -> None:
    big = clips(1, frames=2, size=24)
    resampled = encoder(big)
    rebuilt = encoder.rebuilt_for(image_size=24, num_frames=2)
    assert resampled.shape == rebuilt(big).shape == (1, 36, 24)
    assert not torch.allclose(resampled, rebuilt(big), atol=1e-3)
    assert rebuilt.pos_embed.shape == (1, 36, 24)
    assert encoder.pos_embed.shape == (1, 32, 24)
    shared = {id(p) for p in encoder.parameters()}
    assert {id(p) for p in rebuilt.parameters()} == shared
    fresh = Encoder(rebuilt.config)
    fresh.load_state_dict(encoder.state_dict())
    assert torch.equal(fresh(big), rebuilt(big))


def test_image_model_takes_single_frames_of_any_size() -> None:
    encoder = shaken(Encoder(IMAGE_ENCODER))
    assert encoder(clips(2, frames=1)).shape == (2, 16, 24)
    assert encoder(clips(2, frames=1, size=24)).shape == (2, 36, 24)
    with pytest.raises(ValueError, match="one frame"):
        encoder(clips(2, frames=2))
    with pytest.raises(ValueError, match="num_frames"):
        encoder.rebuilt_for(image_size=16, num_frames=2)


@pytest.mark.parametrize(
    ("num_clips", "indices", "message"),
    [
        (0, None, r"none of them 0, got shape \(0, 3,"),
        (2, torch.zeros(2, 0, dtype=torch.int64), r"token_indices names no token: shape \(2, 0\)"),
        (1, torch.arange(6).view(3, 2), "token_indices: 3 rows for 1 clips"),
        (2, torch.arange(6)[None], "token_indices: 1 rows for 2 clips"),
    ],
)
def test_nothing_to_encode_and_other_numbers_of_clips(encoder, num_clips, indices, message):
    with pytest.raises(ValueError, match=message):
        encoder(clips(2)[:num_clips], indices)


def test_misuse_is_refused(encoder: Encoder) -> None:
    video = clips(2)
    with pytest.raises(ValueError, match="channels"):
        encoder(video[:, :1])
    with pytest.raises(ValueError, match=r"encoder\.preprocess"):
        encoder(video.to(torch.uint8))
    deep = torch.zeros(2, 2, 5).long()
    for indices, offsets in (
        (torch.arange(4), None),
        (torch.zeros(2, 4).long(), PAIRS),
        (deep, None),
        (deep, PAIRS),
    ):
        with pytest.raises(ValueError, match="token_indices"):
            encoder(video, indices, offsets=offsets)
    with pytest.raises(ValueError, match="offsets"):
        encoder(video, offsets=PAIRS)
    for wrong in (torch.full((2, 1), 32), torch.full((2, 1), -1)):
        with pytest.raises(ValueError, match="numbered 0 to 31"):
            encoder(video, wrong)
    for no_tensor in ([0, 2, 5], None):
        with pytest.raises(ValueError, match=r"offsets must be .* got list|must be \[B, K\]"):
            encoder(video, torch.arange(5), offsets=no_tensor)
    for mask in (torch.ones(2, 32).bool(), torch.ones(2, 32).byte(), torch.zeros(2, 4)):
        with pytest.raises(ValueError, match=r"token_indices is torch\..*int64"):
            encoder(video, mask)
    for array in (video.numpy(), video.tolist()):
        with pytest.raises(ValueError, match="not a float tensor"):
            encoder(array)
    with pytest.raises(ValueError, match="token_indices is list"):
        encoder(video, [[0], [1]])
    packed = torch.arange(5)
    for offsets, says in (
        ([0, 5], "1 lists for 2 clips"),
        ([0, 2, 4], "5 packed tokens"),
        ([0, 6, 5], "must rise"),
        ([1, 2, 5], "must rise"),
        ([0.0, 2.0, 5.0], "float32"),
    ):
        with pytest.raises(ValueError, match=says):
            encoder(video, packed, offsets=torch.tensor(offsets))


def test_position_code_is_neither_trained_nor_saved(encoder: Encoder) -> None:
    assert "pos_embed" not in encoder.state_dict() | dict(encoder.named_parameters())


def test_fresh_weights_and_rebirth_from_the_meta_device() -> None:
    with torch.device("meta"):
        encoder = Encoder(ENCODER)
    encoder.to_empty(device="cpu")
    encoder.init_weights()
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name
            assert abs(parameter.mean().item()) < 0.003, name
    assert torch.equal(encoder.pos_embed, Encoder(ENCODER).pos_embed)


@pytest.mark.parametrize("position", ["sincos", "rotary", "rotary_pairs"])
def test_what_blocks_add_starts_smaller_with_depth_where_positions_rotate(
    position: Position,
) -> None:
    """V-JEPA 2's rule; V-JEPA's code overwrites it."""
    encoder = replace(ENCODER, width=96, heads=3, depth=4, position=position)
    predictor = PredictorConfig(width=48, depth=3, heads=3)
    model = VJEPA(ModelConfig(encoder=encoder, predictor=predictor))
    for part in (model.encoder, model.target_encoder, model.predictor):
        blocks = part.predictor_blocks if isinstance(part, Predictor) else part.blocks
        for level, block in enumerate(blocks, start=1):
            wanted = 0.02 if position == "sincos" else 0.02 / math.sqrt(2 * level)
            for layer in (block.attn.proj, block.mlp.fc2):
                assert layer.weight.std().item() == pytest.approx(wanted, rel=0.1)
            for layer in (block.attn.qkv, block.mlp.fc1):
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("position", ["sincos", "rotary"])
def test_bfloat16_autocast_keeps_the_residual_stream_in_float32(position: Position) -> None:
    video, config = clips(2), replace(ENCODER, position=position)
    encoder = shaken(Encoder(config))
    predictor = shaken(Predictor(config, PredictorConfig(width=24, depth=2)))
    seen: list[torch.dtype] = []
    for block in (encoder.blocks[1], predictor.predictor_blocks[1]):
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = encoder(video)
        few = encoder(video, PAIRS.expand(2, -1))
        predictor(few, PAIRS.expand(2, -1), PAIRS.expand(2, -1) + 1)
    assert seen == [torch.float32] * 3
    assert_close(out.float(), encoder(video), atol=0.2, rtol=0)


def test_half_precision_copy(encoder: Encoder) -> None:
    video = clips(2)
    exact = encoder(video)
    small = encoder.to(torch.bfloat16)
    assert small.pos_embed.dtype == torch.bfloat16
    out = small(video.bfloat16())
    assert out.dtype == torch.bfloat16
    assert_close(out.float(), exact, atol=0.2, rtol=0)
    assert torch.equal(small(video), out), "input comes to the type of the weights"


def test_values_that_are_not_normalised_are_told(encoder: Encoder) -> None:
    encoder.eval()
    pixels = torch.rand(1, 3, 4, 16, 16)
    with pytest.raises(ValueError, match=r"up to 2.*not normalised"):
        encoder(255 * pixels)
    with pytest.warns(UserWarning, match="between 0 and 1"):
        encoder(pixels)
    with pytest.warns(UserWarning, match="between 0 and 1"):
        encoder(0.1 + pixels / 3)  # neither black nor white
    measured = InputConfig(mean=(0.1, 0.2, 0.3), deviation=(0.1, 0.1, 0.2))
    own = Encoder(replace(ENCODER, input=measured)).eval()
    with pytest.warns(UserWarning, match="between 0 and 1"):
        own(pixels)
    dark = 40 * pixels
    for model in (encoder, own):
        with pytest.raises(ValueError, match="up to 40, not normalised"):
            model(dark)
    for wrong in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="not finite"):
            encoder(torch.where(pixels > 0.9, wrong, clips(1)))


@pytest.mark.filterwarnings("error")
def test_what_is_normalised_is_taken_without_a_word(encoder: Encoder) -> None:
    encoder.eval()
    dark = replace(ENCODER, input=InputConfig(mean=(0.1,) * 3, deviation=(0.05,) * 3))
    for model in (encoder, Encoder(dark).eval(), Encoder(replace(ENCODER, channels=1)).eval()):
        pixels = torch.randint(0, 256, (1, 3, 4, 16, 16), dtype=torch.uint8)
        model(model.normalise(pixels)[:, : model.config.channels])
        model(torch.zeros(1, model.config.channels, 4, 16, 16))
    Encoder(replace(ENCODER, channels=1)).eval()(40 * torch.rand(1, 1, 4, 16, 16) - 1)  # a sensor's
    video = encoder.normalise(pixels.float().requires_grad_()).requires_grad_()
    encoder(video).sum().backward()  # a map of what matters to the features


def test_compiles_without_graph_breaks(encoder: Encoder) -> None:
    video, some = clips(2), torch.tensor([[3, 1, 30], [7, 2, 0]])
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    assert_close(compiled(video), encoder(video), atol=1e-6, rtol=0)
    assert_close(compiled(video, some), encoder(video, some), atol=1e-6, rtol=0)


def test_patch_embedding_starts_with_its_own_deviation() -> None:
    torch.manual_seed(0)
    config = EncoderConfig(
        width=96, depth=1, heads=3, image_size=32, num_frames=4, patch_size=8, patch_init_std=0.2
    )
    encoder = Encoder(config)
    assert abs(float(encoder.patch_embed.proj.weight.detach().std()) - 0.2) < 0.01
    assert abs(float(encoder.blocks[0].attn.qkv.weight.detach().std()) - 0.02) < 0.002


def test_weights_start_with_the_deviation_asked_for() -> None:
    torch.manual_seed(0)
    encoder_config = replace(ENCODER, init_std=0.1, patch_init_std=0.3)
    encoder = Encoder(encoder_config)
    predictor = Predictor(
        encoder_config, PredictorConfig(width=48, depth=1, heads=3, init_std=0.05)
    )
    for module, wanted in (
        (encoder.blocks[0].attn.qkv, 0.1),
        (encoder.blocks[0].mlp.fc2, 0.1),
        (encoder.patch_embed.proj, 0.3),
        (predictor.predictor_blocks[0].mlp.fc1, 0.05),
        (predictor.predictor_proj, 0.05),
    ):
        assert abs(float(module.weight.detach().std()) / wanted - 1) < 0.1
        assert torch.count_nonzero(module.bias) == 0


IMAGE_32 = EncoderConfig(
    width=24, depth=2, heads=2, image_size=32, num_frames=1, patch_size=16, tubelet_size=1
)


def _image_encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(IMAGE_32).eval()


@pytest.mark.parametrize("at_once", [1, 4, 256])
def test_every_frame_is_encoded_alone_and_maps_are_joined_in_time(at_once: int) -> None:
    encoder = _image_encoder()
    video = torch.randn(2, 3, 5, 32, 32)
    with torch.no_grad():
        tokens = FrameEncoder(encoder, IMAGE_32, at_once)(video)
        assert tokens.shape == (2, 5 * 4, 24)
        for clip in range(2):
            for frame in range(5):
                alone = encoder(video[clip : clip + 1, :, frame : frame + 1])[0]
                torch.testing.assert_close(tokens[clip, frame * 4 : frame * 4 + 4], alone)


@torch.no_grad()
def test_blocks_of_an_image_model_are_asked_for_by_number() -> None:
    encoder = Encoder(replace(IMAGE_32, depth=3)).eval()
    frames, video = FrameEncoder(encoder, encoder.config, 4), torch.randn(2, 3, 5, 32, 32)
    inner, last = frames(video, layers=(0, 2))
    assert torch.equal(last, frames(video))
    alone = encoder(video[1:, :, 3:4], layers=(0,))[0][0]
    torch.testing.assert_close(inner[1, 12:16], alone)


def test_a_video_model_is_refused() -> None:
    with pytest.raises(ValueError, match="image model"):
        FrameEncoder(_image_encoder(), EncoderConfig(width=24, depth=1, heads=2))


def test_dropped_branches_are_those_of_whole_clips_packed_too(encoder: Encoder) -> None:
    video, scale = clips(3), torch.ones(2, 2, 3)
    everything = encoder(video)
    assert torch.equal(encoder(video, branch_scale=scale), everything)
    scale[:, :, 1] = 0  # nothing is added to the second clip
    scale[1, 1, 2] = 2
    dropped = encoder(video, branch_scale=scale)
    for wrong in (scale[:1], torch.cat([scale, scale]), scale[..., :1]):
        with pytest.raises(ValueError, match=r"branch_scale: must be \[depth, 2, B\] = "):
            encoder(video, branch_scale=wrong)
    assert torch.equal(dropped[0], everything[0])
    embedded = encoder.patch_embed(video) + encoder.pos_embed
    assert_close(dropped[1], encoder.norm(embedded[1]), atol=1e-6, rtol=0)
    assert not torch.equal(dropped[2], everything[2])
    bare = encoder(video, branch_scale=scale, final_norm=False)
    assert_close(bare[1], embedded[1], atol=1e-6, rtol=0)
    assert_close(encoder.norm(bare), dropped, atol=1e-6, rtol=0)
    (last,) = encoder(video, layers=[1], branch_scale=scale)
    assert_close(last, dropped, atol=1e-6, rtol=0)
    offsets = torch.tensor([0, 32, 64, 96])
    packed = encoder(video, torch.arange(32).repeat(3), offsets=offsets, branch_scale=scale)
    assert_close(packed, dropped.flatten(0, 1), atol=1e-5, rtol=0)


POSITIONS = (("sincos", 24), ("rotary", 36), ("rotary_pairs", 36))


def _causal(position: str, width: int, *, cls: bool) -> Encoder:
    sizes = {"width": width, "position": position, "cls": cls, "attention": "block_causal"}
    return shaken(Encoder(replace(ENCODER, **sizes))).double()


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize(("position", "width"), POSITIONS)
def test_block_causal_features_do_not_know_what_comes_later(
    position: str, width: int, *, cls: bool
) -> None:
    """All tokens, some, and packed ones; with the gradients of later frames."""
    encoder, video = _causal(position, width, cls=cls), clips(2).double().requires_grad_()
    changed = video.detach().clone()
    changed[:, :, 2:] += torch.randn(changed[:, :, 2:].shape)
    some = torch.tensor([[2, 9, 15, 16, 30], [5, 7, 8, 20, 31]])
    early = some < 16  # the first of two time steps
    packed, offsets = some.flatten()[:-2], torch.tensor([0, 5, 8])
    for is_early, given in (
        (torch.arange(32).expand(2, -1) < 16, {}),
        (early, {"token_indices": some}),
        (early.flatten()[:-2], {"token_indices": packed, "offsets": offsets}),
    ):
        before, after = encoder(video, **given), encoder(changed, **given)
        assert torch.equal(before[is_early], after[is_early])
        apart = (before - after)[~is_early].abs().amax(dim=-1)
        assert (apart > 1e-3).all() if len(apart) else True
        (gradient,) = torch.autograd.grad(before[is_early].square().sum(), video)
        assert gradient[:, :, :2].abs().sum() > 0
        assert gradient[:, :, 2:].abs().max() == 0


@pytest.mark.parametrize(("position", "width"), POSITIONS)
@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_packed_clips_equal_one_at_a_time_with_a_cls_token(
    position: str, width: int, attention: str
) -> None:
    sizes = {"width": width, "position": position, "attention": attention, "cls": True}
    encoder = shaken(Encoder(replace(ENCODER, **sizes))).double()
    video, lists = clips(3).double(), [torch.randperm(32)[:n].sort().values for n in (9, 1, 20)]
    scale = 0.5 + torch.rand(ENCODER.depth, 2, 3, dtype=torch.float64)
    packed = encoder(
        video, torch.cat(lists), offsets=torch.tensor([0, 9, 10, 30]), branch_scale=scale
    )
    for b, part in enumerate(packed.split([9, 1, 20])):
        own = scale[:, :, b : b + 1]
        alone = encoder(video[b : b + 1], lists[b][None], branch_scale=own)
        assert_close(part, alone[0], atol=1e-11, rtol=0)


@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_the_cls_token_is_a_feature_only_where_it_is_asked_for(attention: str) -> None:
    encoder = shaken(Encoder(replace(ENCODER, cls=True, attention=attention)))
    video, some = clips(2), torch.tensor([[0, 3, 17], [5, 9, 31]])
    for given in ({}, {"token_indices": some}):
        tokens, both = encoder(video, **given), encoder(video, with_cls=True, **given)
        assert both.shape[1] == tokens.shape[1] + 1
        assert_close(both[:, 1:], tokens, atol=1e-5, rtol=0)
        first, last = encoder(video, layers=(0, 1), with_cls=True, **given)
        assert_close(last, both, atol=1e-6, rtol=0)
        assert first.shape == both.shape
    # It reads the whole clip; whether others read it depends on the kind of attention.
    cls = encoder(video, with_cls=True)[:, 0]
    changed = video.clone()
    changed[:, :, 2:] += 1
    assert (encoder(changed, with_cls=True)[:, 0] - cls).abs().amax() > 1e-3
    other = encoder(video, with_cls=False)
    with torch.no_grad():
        encoder.cls_token.add_(1.0)
    assert torch.equal(encoder(video), other) == (attention == "block_causal")
    # Reusing the weights at another size takes it along.
    assert encoder.rebuilt_for(image_size=32, num_frames=4).cls_token is encoder.cls_token


def test_asking_for_a_cls_token_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="with_cls: this model has none; leave it out"):
        Encoder(ENCODER)(clips(), with_cls=True)
    encoder = Encoder(replace(ENCODER, cls=True))
    with pytest.raises(ValueError, match="with_cls: packed tokens have none"):
        encoder(clips(1), torch.arange(3), offsets=torch.tensor([0, 3]), with_cls=True)
    assert "cls_token" in encoder.state_dict()
    assert "cls_token" not in Encoder(ENCODER).state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_tokens_are_rotated_as_few(dtype: torch.dtype) -> None:
    """On a CPU many are taken in pieces: each must be turned, forward and back, as if alone."""
    config = EncoderConfig(width=384, depth=1, heads=6, position="rotary", image_size=320)
    by = rotation(config, (1, 20, 20), None, torch.zeros(1))
    assert by is not None
    many = torch.randn(2, 400, 3, 6, 64, dtype=dtype, requires_grad=True)
    wanted = torch.randn(2, 400, 3, 6, 64, dtype=dtype)
    together = rotate(many, by)
    (gradient,) = torch.autograd.grad(together, many, wanted)
    for first in range(0, 400, 50):
        some = slice(first, first + 50)
        few = many[:, some].detach().requires_grad_()
        alone = rotate(few, Rotation(by.cos[some], by.sin[some]))
        assert torch.equal(together[:, some], alone)
        assert torch.equal(gradient[:, some], torch.autograd.grad(alone, few, wanted[:, some])[0])
    assert torch.equal(together[:, :, 2], many[:, :, 2])
    assert not torch.equal(together[:, :, 1], many[:, :, 1])
    overwritten = many.detach().clone()
    rotate(overwritten, by, in_place=True)
    assert torch.equal(overwritten, together)
