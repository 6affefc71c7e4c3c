from __future__ import annotations

import numpy as np
import pytest
import torch

from vjepa.counter_random import uniforms
from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.dataset import ClipViews, TrainingClips
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.source import FrameSource, Source, VideoSource
from vjepa.data.clips.views import (
    OPERATIONS,
    RAND_UNIFORMS,
    AugmentConfig,
    TrainingAugmentConfig,
    ViewConfig,
    auto_augment,
    erase_box,
    operate,
    plan_augmented,
    plan_repeated,
    rand_augment,
)


def _frames(count: int = 3, height: int = 20, width: int = 30) -> np.ndarray:
    generator = np.random.default_rng(0)
    frame = generator.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    return np.repeat(frame, count, axis=0)  # a still clip: whatever differs came from us


def _read(views: ClipViews, source: Source, row: int = 0, pass_index: int = 0) -> torch.Tensor:
    out = torch.empty(views.clips_per_video, *views.shape, dtype=torch.uint8)
    views.cut(source, (row, pass_index), out)
    return out


def _clip(config: AugmentConfig, row: int = 0, pass_index: int = 0) -> torch.Tensor:
    views = ClipViews(ClipConfig(num_frames=3, stride=1), ViewConfig(crop_size=16), config)
    return _read(views, FrameSource(_frames()), row, pass_index)[0]


@pytest.mark.parametrize("policy", ["paper", "released"])
def test_a_clip_is_a_pure_function_of_seed_row_and_pass(policy: str) -> None:
    config = AugmentConfig(policy=policy)
    first = _clip(config)
    assert first.shape == (3, 3, 16, 16)
    assert first.dtype == torch.uint8
    assert torch.equal(first, _clip(config))
    others = [_clip(config, row=1), _clip(config, pass_index=1)]
    others.append(_clip(AugmentConfig(policy=policy, seed=1)))
    assert not any(torch.equal(first, other) for other in others)


def test_every_segment_has_its_own_window_crop_and_noise() -> None:
    clip, source = ClipConfig(num_frames=3, stride=1), FrameSource(_frames(90))
    augment = AugmentConfig(policy="released")
    plans = plan_augmented(clip, ViewConfig(crop_size=16, num_segments=3), augment, source, 7, 2)
    assert len({plan.box for plan in plans}) == 3
    assert [int(plan.frames[0]) // 30 for plan in plans] == [0, 1, 2]
    assert len({int(plan.frames[0]) % 30 for plan in plans}) == 3
    assert len({plan.after[0].keywords["noise_seed"] for plan in plans}) == 3
    # The first segment's numbers stand whatever the number of segments.
    (alone,) = plan_augmented(clip, ViewConfig(crop_size=16), augment, source, 7, 2)
    assert alone.box == plans[0].box


def test_frames_of_a_clip_stay_alike() -> None:
    for row in range(20):
        paper = _clip(AugmentConfig(policy="paper"), row)
        assert torch.equal(paper[:, 0], paper[:, 2])


def test_flips_are_half_of_the_papers_clips_and_none_of_the_released() -> None:
    assert AugmentConfig(policy="paper").flips
    assert not AugmentConfig(policy="released").flips
    assert AugmentConfig(policy="released", horizontal_flip=True).flips
    whole = AugmentConfig(policy="paper", crop_scale=(1.0, 1.0), crop_aspect=(1.5, 1.5))
    still = AugmentConfig(
        policy="paper", crop_scale=(1.0, 1.0), crop_aspect=(1.5, 1.5), horizontal_flip=False
    )
    flipped = 0
    for row in range(200):
        clip, plain = _clip(whole, row), _clip(still, row)
        same = torch.equal(clip, plain)
        assert same or torch.equal(clip, plain.flip(-1))
        flipped += not same
    assert 70 < flipped < 130


def test_a_quarter_of_the_clips_lose_one_box_to_noise() -> None:
    erased, shares = 0, []
    for row in range(400):
        frames = torch.full((2, 3, 32, 32), 7, dtype=torch.uint8)
        clip = erase_box(frames, uniforms(0, "test", row, 23), row).transpose(0, 1)
        assert (frames == 7).all()
        changed = (clip != 7).any(dim=0)
        if not changed.any():
            continue
        erased += 1
        places = changed.any(dim=0).nonzero()
        low, high = places.min(dim=0).values, places.max(dim=0).values + 1
        box = clip[:, :, low[0] : high[0], low[1] : high[1]]
        assert (box != 7).float().mean() > 0.9
        assert not torch.equal(box[:, 0], box[:, 1])  # other noise in each frame
        shares.append(float((high - low).prod()) / 32**2)
    assert 60 < erased < 140
    assert 0.015 < min(shares)  # noqa: SIM300
    assert max(shares) < 0.38
    assert 0.12 < np.mean(shares) < 0.22


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_changes_all_frames_alike(name: str) -> None:
    frames = torch.from_numpy(_frames(2)).permute(0, 3, 1, 2).contiguous()
    if name == "AutoContrast":
        frames = frames // 2  # at full contrast it changes nothing
    changed = operate(name, frames, 0.7, 1.0)
    assert changed.dtype == torch.uint8
    assert changed.shape == frames.shape
    assert not torch.equal(changed, frames)
    assert torch.equal(changed[0], changed[1])


def test_strengths_at_level_seven() -> None:
    grey = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    brighter = operate("Brightness", grey, 0.7, 1.0)
    darker = operate("Brightness", grey, 0.7, -1.0)
    assert int(brighter[0, 0, 0, 0]) == 163  # 1 + 0.9 * 0.7
    assert int(darker[0, 0, 0, 0]) == 37
    assert int(operate("SolarizeAdd", grey, 0.7, 1.0)[0, 0, 0, 0]) == 177  # 100 + int(77)
    assert int(operate("Posterize", grey, 0.7, 1.0)[0, 0, 0, 0]) == 64  # two bits
    assert int(operate("Solarize", grey, 0.7, 1.0)[0, 0, 0, 0]) == 155  # above 77: inverted
    ramp = torch.arange(100, dtype=torch.uint8).expand(1, 3, 4, 100).contiguous()
    moved = operate("TranslateX", ramp, 0.7, 1.0)
    assert int(moved[0, 0, 0, 90]) in (58, 59)  # 31.5 pixels to the right
    assert int(moved[0, 0, 0, 0]) == 124  # the mean colour comes in


def test_half_of_the_operations_are_done() -> None:
    frames = torch.from_numpy(_frames(1)).permute(0, 3, 1, 2).contiguous()
    same = sum(
        torch.equal(rand_augment(frames, uniforms(0, "ra", row, RAND_UNIFORMS)), frames)
        for row in range(200)
    )
    assert 3 < same < 35  # none of four: 1 / 16; auto contrast alone changes nothing here


def _image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, 24, 24), generator=generator, dtype=torch.uint8)


def test_operations_are_torchvisions() -> None:
    from torchvision.transforms.v2 import functional as tv

    image = _image()

    def run(pair: int, first: bool, second: bool) -> torch.Tensor:
        u = [(pair + 0.5) / 25, 0.0 if first else 0.999, 0.0 if second else 0.999, 0.9, 0.9]
        return auto_augment(image, np.array(u))

    assert torch.equal(run(0, True, False), tv.posterize(image, 4))
    assert torch.equal(run(4, True, False), tv.equalize(image))
    colourful = tv.adjust_saturation(image, 1 + 0.9 * 4 / 9)
    strong = tv.adjust_contrast(colourful, 1 + 0.9 * 8 / 9)
    assert torch.equal(run(23, True, False), strong)  # the contrast's probability is 1
    assert torch.equal(run(13, True, False), tv.equalize(tv.invert(image)))  # 1.0: always
    assert torch.equal(run(12, True, False), image)  # 0.0: never


@pytest.mark.parametrize("policy", ["image_paper", "image_released"])
def test_the_image_policies_crop_flip_and_augment(policy: str) -> None:
    frames = _image().permute(0, 2, 3, 1).numpy()
    config = AugmentConfig(policy=policy)
    assert config.flips
    views = ClipViews(ClipConfig(num_frames=1), ViewConfig(crop_size=16), config)
    seen = [_read(views, FrameSource(frames), row).numpy().tobytes() for row in range(40)]
    assert len(seen[0]) == 3 * 16 * 16
    assert seen == [_read(views, FrameSource(frames), row).numpy().tobytes() for row in range(40)]
    assert len(set(seen)) == 40


def test_a_still_clip_is_one_picture_repeated(tmp_path) -> None:
    from PIL import Image

    from vjepa.data.video.inspect import inspect_file

    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    info = inspect_file(str(tmp_path / "a.png"))
    for policy in ("none", "image_released"):
        for count in (16, 2):
            augment, view = AugmentConfig(policy=policy), ViewConfig(crop_size=32)
            views = ClipViews(ClipConfig(num_frames=count), view, augment)
            clip = _read(views, VideoSource(info), row=3).numpy()
            assert clip.shape == (1, 3, count, 32, 32)
            assert np.array_equal(clip, np.repeat(clip[:, :, :1], count, axis=2))


def test_repeated_clips_show_the_same_frames_each_in_its_own_way() -> None:
    clip = ClipConfig(num_frames=3, stride=2, clips_per_video=2)
    transform, augment = TransformConfig(crop_size=16), TrainingAugmentConfig(erasing=1.0)
    source, ordinals = FrameSource(_frames(90)), np.arange(4, 8)
    plans = plan_repeated(clip, transform, augment, source, 0, ordinals)
    starts = [plan.frames.tolist() for plan in plans]
    assert starts[0] == starts[1] != starts[2] == starts[3]
    assert len({plan.box for plan in plans}) == 4
    assert len({plan.before[0].keywords["u"].tobytes() for plan in plans}) == 4
    assert len({plan.after[0].keywords["noise_seed"] for plan in plans}) == 4
    # A pure function of the sample's number, whoever asks with it.
    (alone,) = plan_repeated(clip, transform, augment, source, 0, ordinals[1:2])
    assert (alone.box, alone.flip, alone.frames.tolist()) == (
        plans[1].box,
        plans[1].flip,
        starts[1],
    )
    plain = TrainingAugmentConfig(rand_augment=False, erasing=0.0)
    for plan in plan_repeated(clip, transform, plain, source, 0, ordinals):
        assert (plan.before, plan.after) == ((), ())


def test_repeated_clips_are_decoded_once() -> None:
    reads = []

    class Counted(FrameSource):
        def read(self, parts):
            reads.extend(numbers.tolist() for numbers, _ in parts)
            return super().read(parts)

    clip = ClipConfig(num_frames=3, stride=2, clips_per_video=2)
    training = TrainingClips(clip, TransformConfig(crop_size=16), 0, 1.0, TrainingAugmentConfig())
    out = torch.empty(2, *training.shape, dtype=torch.uint8)
    training.cut(Counted(_frames(90)), np.arange(2), out)
    assert reads[0] == reads[1], "one call for both, of the same frames"
    assert not torch.equal(out[0], out[1])
