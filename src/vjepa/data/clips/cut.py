"""The pixels of clips: nothing else cuts, resizes or mirrors them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.data.clips.crops import resize_frames
from vjepa.data.clips.plan import ClipPlan
from vjepa.data.clips.source import Source
from vjepa.data.video.info import Box, Part, enter_stage, within_memory


def parts_of(plans: Sequence[ClipPlan]) -> list[tuple[list[int], Part]]:
    """What is read for n clips of one video, and the numbers of the clips that each is for."""
    # Views of one clip that differ in their crop alone share its frames, read and resized once.
    groups: dict[object, list[int]] = {}
    for number, plan in enumerate(plans):
        key = (plan.frames.tobytes(), plan.box, plan.before, plan.resize_to, plan.resize)
        groups.setdefault(key, []).append(number)
    return [
        # Of a still clip one frame is read.
        (who, (x.frames[: 1 if np.ptp(x.frames) == 0 else None], None if x.before else x.box))
        for who, x in ((members, plans[members[0]]) for members in groups.values())
    ]


def read_pixels(source: Source, plans: Sequence[ClipPlan]) -> int:
    """How many pixels :func:`cut` holds for n clips of a video: whole frames once, parts each."""
    parts = [part for _, part in parts_of(plans)]
    whole = source.height * source.width
    if all(box is None for _, box in parts):
        return whole * len(np.unique(np.concatenate([numbers for numbers, _ in parts])))
    return sum(len(numbers) * (box[2] * box[3] if box else whole) for numbers, box in parts)


def cut(source: Source, plans: Sequence[ClipPlan], out: Tensor) -> None:
    """Read what n clips of one video need, once, and write them to `out`: uint8 [n, C, T, S, S].

    DecodeError: the video cannot give its frames.
    """
    groups = parts_of(plans)
    with within_memory(source.path):
        for (members, _), part in zip(groups, source.read([p for _, p in groups]), strict=True):
            enter_stage("crop")
            cut_part(part, [plans[n] for n in members], [out[n] for n in members])
    enter_stage("rest")


def cut_part(part: NDArray[np.uint8], plans: Sequence[ClipPlan], out: Sequence[Tensor]) -> None:
    """Make clips, which differ in crop, flip and what is done after alone, of their frames.

    `part` is uint8 [T, h, w, C]: the box of every frame, all of it where frames are changed first;
    of a still clip one frame. `out` holds for each plan uint8 [C, T, S, S], overwritten.
    """
    first = plans[0]
    pixels = torch.from_numpy(part).movedim(-1, -3)
    if first.before:
        pixels = pixels.contiguous()
        for change in first.before:
            pixels = change(pixels)
        if first.box is not None:
            pixels = _part_of(pixels, first.box)
    pixels = resize_frames(pixels, *first.resize_to, first.resize)
    for plan, target in zip(plans, out, strict=True):
        seen, flip = pixels, plan.flip
        if plan.crop is not None:
            seen = _part_of(seen, plan.crop)
        if plan.after:
            seen = (seen.flip(-1) if flip else seen).contiguous()
            flip = False
            for change in plan.after:
                seen = change(seen)
        # NumPy takes channels apart about twice as fast as torch does.
        images, clip = seen.numpy(), target.numpy()
        for channel in range(images.shape[1]):
            clip[channel] = images[:, channel, :, :: -1 if flip else 1]


def _part_of(pixels: Tensor, box: Box) -> Tensor:
    top, left, height, width = box
    return pixels[..., top : top + height, left : left + width]
