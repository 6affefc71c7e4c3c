"""Training and evaluation crops against the reference implementation's pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from vjepa.counter_random import uniforms
from vjepa.data.clips.crops import NUM_UNIFORMS, TransformConfig, draw_crops, resize_frames
from vjepa.data.clips.cut import cut
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.source import FrameSource
from vjepa.data.clips.views import ViewConfig, plan_views

MEAN = torch.tensor((0.485, 0.456, 0.406)).reshape(3, 1, 1, 1) * 255
STD = torch.tensor((0.229, 0.224, 0.225)).reshape(3, 1, 1, 1) * 255


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, Tensor]:
    with safe_open(golden_dir / "transforms.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _normalised(clip: Tensor) -> Tensor:
    return (clip.float() - MEAN) / STD


@pytest.mark.parametrize("number", [0, 1, 2])
def test_training_crop_in_reference_mode(golden: dict[str, Tensor], number: int) -> None:
    video = golden["input/video_u8"].permute(0, 3, 1, 2)
    ((top, left, height, width),) = golden[f"pretrain_crop_{number}/boxes"].tolist()
    box = video[..., top : top + height, left : left + width]
    crop = resize_frames(box, 64, 64, "reference", rounded=False)
    if golden[f"pretrain_crop_{number}/flipped"].item():
        crop = crop.flip(-1)
    expected = golden[f"pretrain_crop_{number}/output"]
    torch.testing.assert_close(_normalised(crop.transpose(0, 1)), expected, rtol=0, atol=1e-5)
    antialiased = resize_frames(box, 64, 64, "antialias")
    assert (_normalised(antialiased.transpose(0, 1)) - expected).abs().max() > 1e-3


def _views(video: Tensor, num_views: int) -> Tensor:
    """The crops of all frames of uint8 [T, H, W, C], each uint8 [C, T, 64, 64]."""
    source = FrameSource(video.numpy())
    clip = ClipConfig(num_frames=len(video), stride=1, sampling="exact")
    view = ViewConfig(crop_size=64, resize="reference", num_views=num_views)
    out = torch.empty(num_views, 3, len(video), 64, 64, dtype=torch.uint8)
    cut(source, plan_views(clip, view, source), out)
    return out


@pytest.mark.parametrize("shape", ["wide", "tall"])
def test_evaluation_crops_within_one_grey_level(golden: dict[str, Tensor], shape: str) -> None:
    video = golden["input/video_u8"]
    if shape == "tall":
        video = video.transpose(1, 2)
    tolerance = 1.1 / STD.min().item()
    views = _views(video, 3)
    for number in range(3):
        expected = golden[f"eval_3_views_{shape}/view{number}"]
        torch.testing.assert_close(_normalised(views[number]), expected, rtol=0, atol=tolerance)
    (center,) = _views(video, 1)
    expected = golden[f"eval_center_{shape}/view0"]
    torch.testing.assert_close(_normalised(center), expected, rtol=0, atol=tolerance)


def test_training_boxes_have_the_reference_moments(golden_dir: Path) -> None:
    with safe_open(golden_dir / "transforms.safetensors", "pt") as file:
        reference = json.loads(file.metadata()["crop_box_statistics"])
    count = 20_000
    height, width = reference["source"]
    config = TransformConfig(
        crop_scale=tuple(reference["scale"]), crop_aspect=tuple(reference["ratio"])
    )
    u = uniforms(7, "crop", np.arange(count), NUM_UNIFORMS)
    boxes = np.array(draw_crops(height, width, config, u)[0])
    area = boxes[:, 2] * boxes[:, 3] / (height * width)
    log_aspect = np.log(boxes[:, 3] / boxes[:, 2])
    for values, name in ((area, "area"), (log_aspect, "log_aspect")):
        # Two samples of 20 000: their means differ by less than 4 standard errors of the
        # difference.
        error = 4 * reference[f"{name}_std"] * np.sqrt(2 / count)
        assert abs(values.mean() - reference[f"{name}_mean"]) < error
        assert abs(values.std() / reference[f"{name}_std"] - 1) < 0.03
