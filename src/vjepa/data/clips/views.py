"""The views of a video: segments in time and crops in space, fixed or drawn at random.

Random ones train probes, as the paper's text says or as the released code does it. Every number is
a pure function of (seed, row of the manifest, pass), so that a pass can be computed again, cached,
or drawn anew in each epoch with the same clips. Pixels stay uint8; the operations are
torchvision's.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from vjepa.config import config_dataclass
from vjepa.counter_random import derive_seed, uniforms
from vjepa.data.clips.crops import (
    NUM_UNIFORMS,
    Resize,
    TransformConfig,
    centre_of,
    check_crop_ranges,
    draw_crops,
    short_side_size,
    usual_short_side,
)
from vjepa.data.clips.plan import Change, ClipConfig, ClipPlan, plan_training
from vjepa.data.clips.segments import Placement, segment_indices
from vjepa.data.clips.source import Source
from vjepa.data.video.info import Box, DecodeError

JoinSegments = Literal["tokens", "average"]


@config_dataclass
class ViewConfig:
    """The views of a video: S segments in time, V crops in space (the paper's 16 x S x V)."""

    crop_size: Annotated[int, Field(ge=1)] = 224
    """Height and width of the crop, in pixels."""
    short_side: int | None = None
    """Length that the frame's short side is brought to first, in pixels; null, as in the paper's
    evaluation: 256/224 of `crop_size` with one view, `crop_size` itself with several."""
    resize: Resize = "antialias"
    """`antialias`: bilinear with antialias; `reference`: without it, as the released code."""
    num_segments: Annotated[int, Field(ge=1)] = 1
    """S: the video is cut into so many equal segments, each gives a clip. Clips overlap where a
    video is shorter than S clips; one shorter than a clip follows `data.clip.short_video`."""
    num_views: Annotated[int, Field(ge=1)] = 1
    """V: crops of each clip. 1: the centre; more: evenly spaced along the long side. Training sees
    one crop."""
    join: JoinSegments = "tokens"
    """`tokens`: the token maps of a view's segments are given to the probe together, as in the
    paper; `average`: the probe sees each alone and its probabilities are averaged. Over crops
    probabilities are always averaged."""
    placement: Literal["centre", "even", "strided", "reference", "reference_random"] = "centre"
    """Where the clips of an evaluation are. `centre`: in the middle of each segment; `even`: from
    the video's first frame to its last; `strided`: so along every stride-th frame, as public
    fine-tuning programs test; `reference`: at the start of each segment, as the released
    code with its random numbers at 0; `reference_random`: at a random place of each segment, which
    is what the released code does, here drawn once for each file name. The last three have a way of
    their own with a short video; of `data.clip.short_video` only `error` counts there."""

    def __post_init__(self) -> None:
        if self.short_side is not None and self.short_side < self.crop_size:
            raise ValueError(
                f"short_side: {self.short_side} is smaller than crop_size {self.crop_size}"
            )

    @property
    def clips_per_video(self) -> int:
        """Clips of an evaluated video: R = V * S; number r = v * S + s."""
        return self.num_views * self.num_segments


def segments_of(
    clip: ClipConfig, view: ViewConfig, source: Source, u: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """Frames of the segments' clips: int64 [S, T], at random places where `u` [S] is given.

    DecodeError: the video is too short, without frames, or of an unknown rate.
    """
    placement: Placement = "random" if u is not None else "centre"
    if view.placement in ("even", "strided") and u is None:
        placement = view.placement
    elif view.placement.startswith("reference"):
        placement = "reference"
        if u is None and view.placement == "reference_random":
            u = uniforms(0, f"evaluation/{Path(source.path).name}", 0, view.num_segments)
    times = source.times if clip.is_by_time else None
    try:
        return segment_indices(
            clip, source.num_frames, source.fps, view.num_segments, placement, u, times
        )
    except ValueError as error:
        raise DecodeError(source.path, str(error)) from error


def plan_views(clip: ClipConfig, view: ViewConfig, source: Source) -> list[ClipPlan]:
    """Plans of the R = V * S clips of an evaluated video; clip r = v * S + s."""
    size = view.crop_size
    short = view.short_side or (usual_short_side(size) if view.num_views == 1 else size)
    resized = short_side_size(source.height, source.width, short)
    segments = segments_of(clip, view, source)
    return [
        ClipPlan(frames=frames, resize_to=resized, resize=view.resize, crop=crop)
        for crop in _crops(*resized, size, view.num_views)
        for frames in segments
    ]


def _crops(height: int, width: int, size: int, num_views: int) -> list[Box]:
    """The centre, or crops at 0, s, 2s, ... pixels along the long side, in the middle of the other.

    s = floor((long - S) / (V - 1)), as in the released code for V = 3.
    """
    if num_views == 1:
        return [centre_of(height, width, size)]
    step = (max(height, width) - size) // (num_views - 1)
    middle = round((min(height, width) - size) / 2)
    starts = [number * step for number in range(num_views)]
    if height > width:
        return [(start, middle, size, size) for start in starts]
    return [(middle, start, size, size) for start in starts]


AugmentPolicy = Literal["none", "paper", "released", "image_paper", "image_released"]

NUM_OPERATIONS = 4
_LEVEL_MEAN, _LEVEL_DEVIATION, _LEVEL_MAX = 7.0, 0.5, 10.0
_PROBABILITY = 0.5
_UNIFORMS_EACH = 5  # which, whether, two for the level, sign
RAND_UNIFORMS = NUM_OPERATIONS * _UNIFORMS_EACH
AUTO_UNIFORMS = 5  # which pair, whether and sign of each operation
_LARGEST_MAGNITUDE = 9.0  # of AutoAugment, from 0

_ERASE_PROBABILITY = 0.25
_ERASE_AREA = (0.02, 1 / 3)
_ERASE_ASPECT = (0.3, 1 / 0.3)
_ERASE_TRIES = 10
_ERASE_UNIFORMS = 1 + 2 * _ERASE_TRIES + 2
# ImageNet's mean and standard deviation in grey levels: what pixels are normalised with.
_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_DEVIATION = (0.229 * 255, 0.224 * 255, 0.225 * 255)
_FILL = [124.0, 116.0, 104.0]  # the mean colour, in grey levels


@config_dataclass
class AugmentConfig:
    """What is random about the clips that a probe is trained on."""

    policy: AugmentPolicy = "none"
    """`none`: the evaluation's segments, centre crop; `paper`: a random window in each segment,
    random resized crop and flip; `released`: the window, RandAugment (rand-m7-n4-mstd0.5-inc1), the
    crop, random erasing with probability 0.25, no flip, as the authors' code does for video.
    `image_paper`: crop, flip, AutoAugment; `image_released`: and random erasing, as their code does
    for images."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's area, as a share of the frame's (Table 9)."""
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    """Range of the crop's width / height, drawn evenly on a logarithmic scale."""
    horizontal_flip: bool | None = None
    """Mirror every second clip; null: as the policy does. Turn it off where left and right carry
    meaning (Something-Something)."""
    seed: int = 0
    """Of all that is random here; apart from the job's seed, so that cached passes serve several
    draws of few labels."""

    def __post_init__(self) -> None:
        check_crop_ranges(self.crop_scale, self.crop_aspect)

    @property
    def flips(self) -> bool:
        """Whether clips are mirrored at random."""
        return self.policy != "released" if self.horizontal_flip is None else self.horizontal_flip


def plan_augmented(
    clip: ClipConfig,
    view: ViewConfig,
    augment: AugmentConfig,
    source: Source,
    row: int,
    pass_index: int,
) -> list[ClipPlan]:
    """Plans of one random clip for each of the S segments; the policy is not ``none``.

    What is random follows from the config's seed, the row of the manifest and the pass.
    DecodeError: no clip can be cut from such a video.
    """
    stream, count = f"augment/{pass_index}", view.num_segments
    each = 1 + NUM_UNIFORMS + RAND_UNIFORMS + _ERASE_UNIFORMS
    drawn = uniforms(augment.seed, stream, row, count * each).reshape(count, each)
    ends = np.cumsum([1, NUM_UNIFORMS, RAND_UNIFORMS])
    windows, crop_u, rand_u, erase_u = np.split(drawn, ends, axis=1)
    segments = segments_of(clip, view, source, windows[:, 0])
    crop = TransformConfig(
        crop_size=view.crop_size,
        crop_scale=augment.crop_scale,
        crop_aspect=augment.crop_aspect,
        horizontal_flip=augment.flips,
        resize=view.resize,
    )
    boxes, flips = draw_crops(source.height, source.width, crop, crop_u)
    size, plans = (view.crop_size, view.crop_size), []
    for number, (frames, box, flip) in enumerate(zip(segments, boxes, flips, strict=True)):
        plan = ClipPlan(frames=frames, box=box, resize_to=size, resize=view.resize, flip=flip)
        before: tuple[Change, ...] = ()
        after: tuple[Change, ...] = ()
        if augment.policy == "released":
            before = (partial(rand_augment, u=rand_u[number]),)
        if augment.policy in ("image_paper", "image_released"):
            after = (partial(auto_augment, u=rand_u[number, :AUTO_UNIFORMS]),)
        if augment.policy in ("released", "image_released"):
            seed = derive_seed(augment.seed, f"{stream}/noise/{number}", row)
            after = (*after, partial(erase_box, u=erase_u[number], noise_seed=seed))
        plans.append(replace(plan, before=before, after=after))
    return plans


@config_dataclass
class TrainingAugmentConfig:
    """What changes the colours and shapes of training clips, besides crop and flip (Table 11)."""

    rand_augment: bool = True
    """Four random operations on a clip's frames before the crop (rand-m7-n4-mstd0.5-inc1)."""
    erasing: Annotated[float, Field(ge=0, le=1)] = 0.25
    """How often a box of a clip is put under noise."""


def plan_repeated(
    clip: ClipConfig,
    transform: TransformConfig,
    augment: TrainingAugmentConfig,
    source: Source,
    seed: int,
    ordinals: NDArray[np.int64],
) -> list[ClipPlan]:
    """Plans of n clips of one video that show the same frames, each cut and augmented anew.

    What is random follows from the seed and the samples' numbers, `ordinals` int64 [n].
    DecodeError: no clip can be cut from such a video.
    """
    plans = plan_training(clip, transform, source, seed, ordinals, same_frames=True)
    rand_u = uniforms(seed, "rand augment", ordinals, RAND_UNIFORMS)
    erase_u = uniforms(seed, "erasing", ordinals, _ERASE_UNIFORMS)
    augmented = []
    for number, plan in enumerate(plans):
        noise = derive_seed(seed, "erasing noise", int(ordinals[number]))
        erase = partial(erase_box, u=erase_u[number], noise_seed=noise, probability=augment.erasing)
        before = (partial(rand_augment, u=rand_u[number]),) if augment.rand_augment else ()
        augmented.append(replace(plan, before=before, after=(erase,) if augment.erasing else ()))
    return augmented


_ADJUSTED = {"Color": "saturation"} | {
    name: name.lower() for name in ("Contrast", "Brightness", "Sharpness")
}
OPERATIONS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd"),
    *_ADJUSTED,
    *("ShearX", "ShearY", "TranslateX", "TranslateY"),
)
"""Fifteen, with torchvision's names; the order matters."""


def operate(
    name: str, frames: Tensor, amount: float, sign: float, *, bicubic: bool = False
) -> Tensor:
    """One of the `OPERATIONS` on frames uint8 [T, C, H, W], on all alike.

    `amount` is its level / 10 in [0, 1], `sign` -1 or 1. Geometry is bilinear and fills with the
    mean colour, as AutoAugment of images has it; or `bicubic` and fills with grey 128, as the
    released code has RandAugment.
    """
    from torchvision.transforms.v2 import functional

    if name in ("AutoContrast", "Equalize", "Invert"):
        return getattr(functional, name.lower())(frames)
    if name == "Posterize":
        return functional.posterize(frames, max(1, 4 - int(4 * amount)))
    if name == "Solarize":
        return functional.solarize(frames, 256 - min(256, int(256 * amount)))
    if name == "SolarizeAdd":
        added = (frames.to(torch.int16) + min(128, int(110 * amount))).clamp_(max=255)
        return torch.where(frames < 128, added.to(torch.uint8), frames)
    if name in _ADJUSTED:  # factor 1 leaves the frame as it is
        factor = max(0.1, 1.0 + sign * 0.9 * amount)
        return getattr(functional, f"adjust_{_ADJUSTED[name]}")(frames, factor)
    degrees, shear = sign * 30.0 * amount, sign * 0.3 * amount
    is_across, is_shear = name.endswith("X"), name.startswith("Shear")
    shift = sign * 0.45 * amount * frames.shape[-1 if is_across else -2]
    if bicubic:
        return _moved_by_pillow(name, frames, degrees, shear if is_shear else shift)
    bilinear = functional.InterpolationMode.BILINEAR
    if name == "Rotate":
        return functional.rotate(frames, degrees, interpolation=bilinear, fill=_FILL)
    tilt = math.degrees(math.atan(shear)) if is_shear else 0.0
    move = 0.0 if is_shear else shift
    return functional.affine(
        frames,
        angle=0.0,
        translate=[move, 0.0] if is_across else [0.0, move],
        scale=1.0,
        shear=[tilt, 0.0] if is_across else [0.0, tilt],
        interpolation=bilinear,
        fill=_FILL,
        center=[0.0, 0.0],
    )


def _moved_by_pillow(name: str, frames: Tensor, degrees: float, by: float) -> Tensor:
    """Bicubic as in Pillow: the kernel with a = -1, a hard edge, grey 128 outside."""
    from PIL import Image

    how, grey = Image.Resampling.BICUBIC, (128, 128, 128)
    # a, b, c, d, e, f: the pixel at (x, y) is that at (ax + by + c, dx + ey + f).
    rows = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    if name != "Rotate":
        rows[{"ShearX": 1, "TranslateX": 2, "ShearY": 3, "TranslateY": 5}[name]] = -by
    changed = []
    for frame in frames.permute(0, 2, 3, 1).contiguous().numpy():
        image = Image.fromarray(frame)
        if name == "Rotate":
            image = image.rotate(degrees, how, fillcolor=grey)
        else:
            image = image.transform(
                image.size, Image.Transform.AFFINE, tuple(rows), how, fillcolor=grey
            )
        changed.append(np.asarray(image))
    return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).contiguous()


def rand_augment(frames: Tensor, u: NDArray[np.float64]) -> Tensor:
    """RandAugment: four random operations on one clip, the same on all its frames.

    The policy ``rand-m7-n4-mstd0.5-inc1`` that the released evaluation trains its video probes with
    (the paper's text does not name it): each operation is done with probability 0.5, its level
    drawn from a normal distribution of mean 7 and deviation 0.5 in 0..10. All grow with the level.

    `frames` are uint8 [T, C, H, W], `u` [`RAND_UNIFORMS`] uniform in [0, 1).
    """
    for which, whether, radius, angle, side in u.reshape(NUM_OPERATIONS, _UNIFORMS_EACH):
        if whether >= _PROBABILITY:
            continue
        normal = math.sqrt(-2.0 * math.log(1.0 - radius)) * math.cos(2.0 * math.pi * angle)
        level = min(max(_LEVEL_MEAN + _LEVEL_DEVIATION * normal, 0.0), _LEVEL_MAX)
        name, sign = OPERATIONS[int(which * len(OPERATIONS))], -1.0 if side < 0.5 else 1.0
        frames = operate(name, frames, level / 10.0, sign, bicubic=True)
    return frames


def auto_augment(frames: Tensor, u: NDArray[np.float64]) -> Tensor:
    """AutoAugment: one of 25 pairs of operations that were found on ImageNet, on all frames alike.

    The paper (Table 9) uses it for image tasks only. Pairs, probabilities and magnitudes (0 .. 9)
    are torchvision's, from arXiv 1805.09501. `u` [`AUTO_UNIFORMS`] is uniform in [0, 1).
    """
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy
    from torchvision.transforms.v2 import functional

    pairs = AutoAugment(AutoAugmentPolicy.IMAGENET).policies
    pair = pairs[int(u[0] * len(pairs))]
    for (name, probability, magnitude), whether, side in zip(pair, u[1:3], u[3:5], strict=True):
        if whether >= probability:
            continue
        if name == "Posterize":
            # The one operation that is milder here than in RandAugment: 4 to 8 bits stay.
            bits = 8 - round((magnitude or 0) / (_LARGEST_MAGNITUDE / 4))
            frames = functional.posterize(frames, bits)
        else:
            amount = (magnitude or 0) / _LARGEST_MAGNITUDE
            frames = operate(name, frames, amount, -1.0 if side < 0.5 else 1.0)
    return frames


def erase_box(
    frames: Tensor, u: NDArray[np.float64], noise_seed: int, probability: float = _ERASE_PROBABILITY
) -> Tensor:
    """Random erasing: with the probability one box of the clip [T, C, S, S] becomes noise.

    The box is the same in all frames, the noise another in each. In the released code it is
    normal noise after normalisation; here it is put into grey levels, so that its tails (beyond
    about two standard deviations) are cut off at 0 and 255.
    """
    if u[0] >= probability:
        return frames
    size = frames.shape[-1]
    low, high = math.log(_ERASE_ASPECT[0]), math.log(_ERASE_ASPECT[1])
    for area_u, aspect_u in u[1:-2].reshape(_ERASE_TRIES, 2):
        area = size * size * (_ERASE_AREA[0] + (_ERASE_AREA[1] - _ERASE_AREA[0]) * area_u)
        aspect = math.exp(low + (high - low) * aspect_u)
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < size and 0 < width < size:
            top, left = int(u[-2] * (size - height + 1)), int(u[-1] * (size - width + 1))
            frames = frames.clone()
            box = frames.transpose(0, 1)[:, :, top : top + height, left : left + width]
            generator = torch.Generator().manual_seed(noise_seed)
            noise = torch.randn(box.shape, generator=generator)
            shape = (-1, 1, 1, 1)
            levels = noise * torch.tensor(_DEVIATION).view(shape) + torch.tensor(_MEAN).view(shape)
            box.copy_(levels.round_().clamp_(0, 255).to(torch.uint8))
            break
    return frames
