"""Clips around key frames, moved boxes, the head on a frozen encoder: the recorded numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.golden.golden_files import tensors, tiny_model
from torch import Tensor, nn
from torch.testing import assert_close

from vjepa.data.clips.key_frames import moved_boxes
from vjepa.data.clips.plan import ClipConfig, ClipPlan, frames_around
from vjepa.models import Encoder, RegionConfig, region_features
from vjepa.tasks import Detection
from vjepa.training import OptimConfig, TrainingConfig, build_learner, train_step

_POOLED = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def cases(golden_dir: Path) -> dict:
    return json.loads((golden_dir / "ava" / "clips_and_boxes.json").read_text())


@pytest.fixture(scope="module")
def recorded(golden_dir: Path) -> dict[str, Tensor]:
    return tensors(golden_dir / "ava", "roi_align")


@pytest.fixture(scope="module")
def encoder(golden_dir: Path) -> Encoder:
    return tiny_model(golden_dir).target_encoder.eval()


@pytest.fixture(scope="module")
def clip(golden_dir: Path) -> Tensor:
    return tensors(golden_dir, "pretrain_forward")["input/clip"]


def test_frames_around_a_key_frame(cases: dict) -> None:
    config = ClipConfig(num_frames=16, stride=4, sampling="exact")
    for case in cases["frames_slowfast_16x4"]:
        found = frames_around(config, case["video_frames"], 30.0, case["second"] - 900)
        assert found.tolist() == case["indices"], case["second"]


def test_a_key_frame_is_found_by_time() -> None:
    """At uneven rates the frame shown then, not the one that a mean rate would give."""
    config = ClipConfig(num_frames=4, stride=1, sampling="exact")
    times = np.concatenate([np.arange(10) * 0.1, 1 + np.arange(10) * 0.3])
    assert frames_around(config, 20, 20 / times[-1], 1.35, times).tolist() == [9, 10, 11, 12]
    by_time = ClipConfig(num_frames=4, stride=None, fps=2.0)
    assert frames_around(by_time, 20, 20 / times[-1], 1.35, times).tolist() == [3, 8, 11, 12]


def test_boxes_move_with_the_frames(cases: dict) -> None:
    """As recorded but for the reference's pixel at borders and flips, and its one scale for both
    axes (297/340, where the height is scaled by 224/256).
    """
    case = cases["slowfast_boxes"]
    (height, width), boxes = case["image_hw"], np.array(case["relative"])
    frames = np.zeros(16, dtype=np.int64)
    plan = ClipPlan(frames=frames, resize_to=(224, 297), resize="antialias")
    found, wanted = moved_boxes(plan, boxes, height, width), np.array(case["scaled_short_side_224"])
    assert np.abs(found - wanted)[0, [0, 2]].max() < 1e-9
    assert np.abs(found - wanted).max() <= 1
    crop = ClipPlan(
        frames=frames, resize_to=(256, 340), resize="antialias", crop=(10, 40, 224, 224)
    )
    flip = ClipPlan(frames=frames, resize_to=(256, 340), resize="antialias", flip=True)
    shares = np.array(case["pixels_clipped"]) / [width, height, width, height]
    found = moved_boxes(crop, shares, height, width)
    assert np.abs(found - case["crop_offset_x40_y10_224"]).max() <= 1
    other = cases["alphaction_boxes"]
    size = np.array(other["image_wh"] * 2)
    whole = ClipPlan(frames=frames, resize_to=(256, 340), resize="antialias")
    pixel = np.array([0, 0, 1, 1])  # theirs end with one
    shares = (np.array(other["input_xyxy"]) + pixel) / size
    found = moved_boxes(whole, shares, height, width, enlarge=(0.1, 0.05)) - pixel
    assert np.abs(found - other["extended_0.1_0.05"]).max() < 0.13
    found = moved_boxes(flip, boxes, height, width)
    assert np.abs(found[0] - case["flipped"][0]).max() <= 1
    back = moved_boxes(flip, found / [width, height, width, height], height, width)
    assert np.abs(back - boxes * [width, height, width, height]).max() < 1e-9


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("default", RegionConfig(layers=(0, 1, 2))),
        ("mean_pool", RegionConfig(layers=(0, 1, 2), pool="mean")),
        ("unaligned", RegionConfig(layers=(0, 1, 2), aligned=False)),
        ("last_layer_only", RegionConfig(layers=(2,))),
    ],
)
def test_vectors_of_boxes(
    encoder: Encoder, clip: Tensor, recorded: dict[str, Tensor], name: str, how: RegionConfig
) -> None:
    with torch.no_grad():
        found = region_features(encoder, clip, recorded["head/boxes"], how)
    assert_close(found, recorded[f"head/pooled/{name}"], **_POOLED)


def test_ten_updates_of_the_head(recorded: dict[str, Tensor]) -> None:
    pooled, labels = recorded["head/pooled/default"], recorded["head/labels"].float()
    head = nn.Linear(144, 6)
    with torch.no_grad():
        head.weight.copy_(recorded["head/initial/weight"])
        head.bias.copy_(recorded["head/initial/bias"])
    optim = OptimConfig(
        steps=10,
        warmup_steps=0,
        peak_lr=1e-3,
        final_lr=1e-3,
        schedule_stretch=1.0,
        start_weight_decay=0.05,
        final_weight_decay=0.05,
        clip_norm=None,
    )
    learner = build_learner(Detection(head), optim, None, TrainingConfig(device="cpu"))
    batch = SimpleNamespace(
        ordinals=np.arange(1), boxes=torch.zeros(5, 5), labels=labels, count=5, vectors=pooled
    )
    losses = []
    for update in range(1, 11):
        inputs = learner.task.inputs(batch, 0, 1)
        losses.append(train_step(learner, [inputs], update).values["loss"])
        if update == 1:
            for name in ("weight", "bias"):
                gradient = head.get_parameter(name).grad
                assert_close(gradient, recorded[f"head/grad/{name}"], atol=1e-6, rtol=0)
    assert_close(torch.stack(losses), recorded["head/loss"], atol=1e-6, rtol=0)
    for name in ("weight", "bias"):
        found = head.get_parameter(name).detach()
        assert_close(found, recorded[f"head/after_10/{name}"], atol=1e-5, rtol=0)


def test_encoder_and_head_from_clips_in_parts(
    encoder: Encoder, clip: Tensor, recorded: dict[str, Tensor]
) -> None:
    """The loss from clips is that from their vectors, and parts of a batch add up to it."""
    head, how = nn.Linear(144, 6), RegionConfig(layers=(0, 1, 2))
    boxes, labels = recorded["head/boxes"], recorded["head/labels"].float()
    whole = Detection(head)(recorded["head/pooled/default"], boxes, labels).loss
    task = Detection(head, encoder, how)
    assert_close(task(clip, boxes, labels).loss, whole, atol=1e-6, rtol=0)
    pixels = torch.randint(0, 256, clip.shape, dtype=torch.uint8)
    batch = SimpleNamespace(
        ordinals=np.arange(len(clip)), clips=pixels, boxes=boxes, labels=labels, count=len(boxes)
    )
    alone = task(*task.inputs(batch, 0, 1)).loss
    summed = sum(task(*task.inputs(batch, part, 2)).loss for part in range(2))
    assert_close(summed, alone, atol=1e-6, rtol=0)
