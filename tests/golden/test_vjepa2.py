"""V-JEPA 2 and 2.1 against what their authors' code computed, tensor by tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.golden.golden_files import FEATURES, GRADIENTS, LOSSES, tensors
from tests.golden.vjepa2_files import TWO_ONE, encoder_of_two_one, predictor_of_two_one, read, two
from torch import Tensor
from torch.testing import assert_close

from vjepa.masking import TokenMasks
from vjepa.models import VJEPA, Encoder, EncoderConfig, Predictor
from vjepa.models.rotary import rotate, rotation
from vjepa.tasks import FeaturePrediction
from vjepa.tasks.masked_prediction import normalise_features

Recorded = dict[str, Tensor]
EXACT = {"atol": 1e-6, "rtol": 0.0}


def sized(clip: Tensor, size: str) -> Tensor:
    """The recorded clip cut or repeated to T x H x W."""
    t, h, w = (int(n) for n in size.split("x"))
    frames = clip[:1, :, torch.arange(t) % 8]
    return frames[:, :, :, torch.arange(h) % 64][..., torch.arange(w) % 64]


@pytest.fixture(scope="module")
def model(golden_dir: Path) -> VJEPA:
    return two(golden_dir)


@pytest.fixture(scope="module")
def recorded(golden_dir: Path) -> Recorded:
    return tensors(golden_dir / "vjepa2", "v2_forward")


@pytest.fixture(scope="module")
def later(golden_dir: Path) -> Recorded:
    return tensors(golden_dir / "vjepa2", "v2_1_forward")


@pytest.fixture(scope="module")
def encoder(golden_dir: Path) -> Encoder:
    stored = read(golden_dir, "v2_1_pretrain_tiny.pt")["target_encoder"]
    return encoder_of_two_one(stored, TWO_ONE.encoder)


@pytest.fixture(scope="module")
def context_encoder(golden_dir: Path) -> Encoder:
    stored = read(golden_dir, "v2_1_pretrain_tiny.pt")["encoder"]
    return encoder_of_two_one(stored, TWO_ONE.encoder)


@pytest.fixture(scope="module")
def predictor(golden_dir: Path) -> Predictor:
    stored = read(golden_dir, "v2_1_pretrain_tiny.pt")["predictor"]
    return predictor_of_two_one(stored, TWO_ONE)


def test_rotation_alone(recorded: Recorded, later: Recorded) -> None:
    for values, kind, found, reference in (
        (recorded, "rotary", "output", None),
        (later, "rotary_pairs", "output_plain", None),
        (later, "rotary_pairs", "output_interpolated", 16),
    ):
        q = values["debug/rope/input"].transpose(1, 2)[:, :, None]  # [1, 64, 1, 2, width]
        width = q.shape[-1]
        sizes = EncoderConfig(width=width, heads=1, position=kind, position_reference=reference)
        table = rotation(sizes, (4, 4, 4), None, q)
        assert table is not None
        rotated = rotate(q.expand(-1, -1, 2, -1, -1), table)
        wanted = values[f"debug/rope/{found}"].transpose(1, 2)
        for of in rotated.unbind(2):
            assert_close(of, wanted, **EXACT)


@torch.no_grad()
def test_encoder_levels_and_sizes(model: VJEPA, recorded: Recorded) -> None:
    clip, target = recorded["input/clip"], model.target_encoder
    assert_close(target(clip), recorded["target/full"], **FEATURES)
    assert_close(model.encoder(clip), recorded["encoder/full"], **FEATURES)
    normed = normalise_features(recorded["target/full"])
    assert_close(normed, recorded["target/full_normed"], **FEATURES)
    for level, tokens in enumerate(target(clip, layers=[0, 1, 2])):
        assert_close(tokens, recorded[f"layers/out_layers_{level}"], **FEATURES)
    for size in ("8x96x96", "4x64x64", "16x64x64", "8x64x96", "8x96x64", "2x32x80"):
        tokens = target(sized(clip, size))
        assert_close(tokens, recorded[f"sizes/{size}/target"], **FEATURES)
    for count in (2, 8):
        still = clip[:, :, :1].expand(-1, -1, count, -1, -1)
        assert_close(target(still), recorded[f"image/repeat_{count}"], **FEATURES)


@torch.no_grad()
def test_masks_and_predictor(model: VJEPA, recorded: Recorded) -> None:
    clip, predict = recorded["input/clip"], model.predictor
    for kind in ("short", "long"):
        context, target = (recorded[f"masks/{kind}/{of}"] for of in ("context", "target"))
        tokens = model.encoder(clip, context)
        assert_close(tokens, recorded[f"encoder/{kind}"], **FEATURES)
        found = [name for name in recorded if name.startswith(f"predictor/{kind}/token")]
        assert found
        for name in found:
            predicted = predict(tokens, context, target, int(name.rpartition("token")[2]))
            assert_close(predicted, recorded[name], **FEATURES)
        if kind == "short":  # the authors' function takes token 1 if not told
            default = predict(tokens, context, target, 1)
            assert_close(default, recorded["predictor/short/default_index"], **FEATURES)
    full, every = recorded["target/full"], torch.arange(64).expand(2, -1)
    predicted = predict(full, every, every, 1)
    assert_close(predicted, recorded["predictor/all_from_all/default_index"], **FEATURES)


@torch.no_grad()
def test_predictor_of_another_size_and_of_the_future(model: VJEPA, recorded: Recorded) -> None:
    clip, name = sized(recorded["input/clip"], "8x96x96"), "sizes/8x96x96"
    context, target = recorded[f"{name}/context"], recorded[f"{name}/target_ids"]
    tokens = model.encoder(clip, context)
    assert_close(tokens, recorded[f"{name}/encoder_context"], **FEATURES)
    right = model.predictor(tokens, context, target, 0, grid=(4, 6, 6))
    assert_close(right, recorded[f"{name}/predictor_rebuilt"], **FEATURES)
    # The authors' predictor reads the places in the grid that it was made for.
    quirk = model.predictor(tokens, context, target, 0, grid=(16, 4, 4))
    assert_close(quirk, recorded[f"{name}/predictor_of_64px_model"], **FEATURES)
    future = recorded["future/target_ids"]
    every = torch.arange(64).expand(2, -1)
    steps = 1 + int(future.max()) // 16
    ahead = model.predictor(recorded["target/full"], every, future, grid=(steps, 4, 4))
    assert_close(ahead, recorded["future/prediction"], **FEATURES)


def test_loss_and_gradients(model: VJEPA, recorded: Recorded) -> None:
    masks = [
        TokenMasks(*(recorded[f"masks/{kind}/{of}"] for of in ("context", "target")))
        for kind in ("short", "long")
    ]
    model.zero_grad(set_to_none=True)
    out = FeaturePrediction(model)(recorded["input/clip"], masks)
    assert_close(out.loss, recorded["loss/total"], **LOSSES)
    for kind, name in enumerate(("short", "long")):
        assert_close(out.terms[f"loss/mask_{kind}"], recorded[f"loss/{name}"], **LOSSES)
    out.loss.backward()
    grads = [name for name in recorded if name.startswith("grad/")]
    assert len(grads) > 60
    for name in grads:
        found = model.get_parameter(name.removeprefix("grad/").replace("/", ".")).grad
        assert found is not None, name
        assert_close(found, recorded[name], **GRADIENTS)
    assert model.predictor.mask_tokens[1].grad is None


@torch.no_grad()
def test_packed_is_the_whole_batch(model: VJEPA, recorded: Recorded) -> None:
    clip, context = recorded["input/clip"], recorded["masks/unsorted/context"]
    tokens = model.encoder(clip, context)
    assert_close(tokens, recorded["encoder/unsorted"], **FEATURES)
    offsets = torch.tensor([0, context.shape[1], 2 * context.shape[1]])
    packed = model.encoder(clip, context.flatten(), offsets=offsets)
    assert_close(packed, tokens.flatten(0, 1), **FEATURES)
    predicted = model.predictor(tokens, context, recorded["masks/unsorted/target"])
    assert_close(predicted, recorded["predictor/unsorted/token0"], **FEATURES)
    context, target = (recorded[f"masks/long/{of}"] for of in ("context", "target"))
    whole = model.predictor(recorded["encoder/long"], context, target)
    flat = model.predictor(
        recorded["encoder/long"].flatten(0, 1),
        context.flatten(),
        target.flatten(),
        context_offsets=torch.arange(3) * context.shape[1],
        target_offsets=torch.arange(3) * target.shape[1],
    )
    assert_close(flat, whole.flatten(0, 1), **FEATURES)


@torch.no_grad()
def test_two_one_encoder(encoder: Encoder, recorded: Recorded, later: Recorded) -> None:
    clip, levels = recorded["input/clip"], TWO_ONE.encoder.levels
    assert_close(encoder(clip), later["target/full"], **FEATURES)
    side_by_side = torch.cat(encoder(clip, layers=levels), dim=-1)
    assert_close(side_by_side, later["target/levels"], **FEATURES)
    for level in levels:
        (tokens,) = encoder(clip, layers=[level])
        assert_close(tokens, later[f"layers/out_layers_{level}"], **FEATURES)
    with pytest.raises(ValueError, match="must be among 2, 5, 8, 11"):
        encoder(clip, layers=[0])
    image = clip[:, :, :1]
    assert_close(encoder(image), later["image/t1"], **FEATURES)
    levels_of_image = torch.cat(encoder(image, layers=levels), dim=-1)
    assert_close(levels_of_image, later["image/t1_levels"], **FEATURES)
    twice = image.expand(-1, -1, 2, -1, -1)
    assert_close(encoder(twice), later["image/repeat_2"], **FEATURES)
    sizes = [name.split("/")[1] for name in later if name.startswith("sizes/")]
    assert sizes
    for size in sizes:
        assert_close(encoder(sized(clip, size)), later[f"sizes/{size}/target"], **FEATURES)
    plain = Encoder(replace(encoder.config, position_reference=None))
    plain.load_state_dict(encoder.state_dict())
    assert_close(plain(clip), later["target/full_no_interpolation"], **FEATURES)


@torch.no_grad()
def test_two_one_predictor(
    context_encoder: Encoder, predictor: Predictor, recorded: Recorded, later: Recorded
) -> None:
    clip, levels = recorded["input/clip"], TWO_ONE.encoder.levels
    raw = Predictor(TWO_ONE.encoder, replace(TWO_ONE.predictor, stretch_positions=False))
    raw.load_state_dict(predictor.state_dict())
    for kind in ("short", "long"):
        context, target = (later[f"masks/{kind}/{of}"] for of in ("context", "target"))
        seen = context_encoder(clip, context, layers=levels)
        assert_close(seen[-1], later[f"encoder/{kind}"], **FEATURES)
        tokens = torch.cat(seen, dim=-1)
        assert_close(tokens, later[f"encoder/{kind}_levels"], **FEATURES)
        for name, made in (("hub", raw), ("training", predictor)):
            both = made(tokens, context, target, with_context=True)
            known, hidden = both.split([context.shape[1], target.shape[1]], dim=1)
            assert_close(hidden, later[f"predictor/{name}/{kind}/targets"], **FEATURES)
            assert_close(known, later[f"predictor/{name}/{kind}/context"], **FEATURES)
            assert_close(made(tokens, context, target), hidden, **EXACT)
    context, target = later["image/context"], later["image/target_ids"]
    tokens = torch.cat(context_encoder(clip[:, :, :1], context, layers=levels), dim=-1)
    assert_close(tokens, later["image/encoder_levels"], **FEATURES)
    both = predictor(tokens, context, target, grid=(1, 4, 4), is_image=True, with_context=True)
    known, hidden = both.split([context.shape[1], target.shape[1]], dim=1)
    assert_close(hidden, later["image/predictor/training/targets"], **FEATURES)
    assert_close(known, later["image/predictor/training/context"], **FEATURES)


@torch.no_grad()
def test_two_one_distilled(golden_dir: Path, recorded: Recorded, later: Recorded) -> None:
    content = read(golden_dir, "v2_1_distilled_tiny.pt")
    one = replace(TWO_ONE.predictor, levels=1, out_width=48, stretch_positions=False)
    config = replace(TWO_ONE, predictor=one)
    encoder = encoder_of_two_one(content["ema_encoder"], config.encoder)
    predictor = predictor_of_two_one(content["predictor"], config)
    clip = recorded["input/clip"]
    context, target = (later[f"masks/short/{of}"] for of in ("context", "target"))
    assert_close(encoder(clip), later["distilled/encoder"], **FEATURES)
    tokens = encoder(clip, context)
    assert_close(tokens, later["distilled/encoder_short"], **FEATURES)
    both = predictor(tokens, context, target, with_context=True)
    known, hidden = both.split([context.shape[1], target.shape[1]], dim=1)
    assert_close(hidden, later["distilled/predictor/hub/targets"], **FEATURES)
    assert_close(known, later["distilled/predictor/hub/context"], **FEATURES)
