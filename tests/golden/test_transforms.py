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
from vjepa.data.clips.crops import (
    NUM_UNIFORMS,
    TransformConfig,
    center_crop_clip,
    crop_and_resize,
    draw_crops,
    long_side_crops,
)

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
    (box,) = golden[f"pretrain_crop_{number}/boxes"].numpy()
    crop = crop_and_resize(video, box, 64, "reference")
    if golden[f"pretrain_crop_{number}/flipped"].item():
        crop = crop.flip(-1)
    expected = golden[f"pretrain_crop_{number}/output"]
    torch.testing.assert_close(_normalised(crop.transpose(0, 1)), expected, rtol=0, atol=1e-5)
    antialiased = crop_and_resize(video, box, 64, "antialias")
    assert (_normalised(antialiased.transpose(0, 1)) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("shape", ["wide", "tall"])
def test_evaluation_crops_within_one_grey_level(golden: dict[str, Tensor], shape: str) -> None:
    video = golden["input/video_u8"]
    if shape == "tall":
        video = video.transpose(1, 2)
    tolerance = 1.1 / STD.min().item()
    views = long_side_crops(video, 64, 3, "reference")
    assert views.shape == (3, 3, 4, 64, 64)
    for number in range(3):
        expected = golden[f"eval_3_views_{shape}/view{number}"]
        torch.testing.assert_close(_normalised(views[number]), expected, rtol=0, atol=tolerance)
    center = center_crop_clip(video, 64, "reference")
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
    boxes = draw_crops(np.full(count, height), np.full(count, width), config, u).boxes
    area = boxes[:, 2] * boxes[:, 3] / (height * width)
    log_aspect = np.log(boxes[:, 3] / boxes[:, 2])
    for values, name in ((area, "area"), (log_aspect, "log_aspect")):
        # Two samples of 20 000: their means differ by less than 4 standard errors of the
        # difference.
        error = 4 * reference[f"{name}_std"] * np.sqrt(2 / count)
        assert abs(values.mean() - reference[f"{name}_mean"]) < error
        assert abs(values.std() / reference[f"{name}_std"] - 1) < 0.03
