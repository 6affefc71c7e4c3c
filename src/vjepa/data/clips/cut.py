"""The pixels of clips: nothing else cuts, resizes or mirrors them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vjepa.data.clips.crops import resize_frames
from vjepa.data.clips.plan import ClipPlan
from vjepa.data.clips.source import Source
from vjepa.data.stage_clock import NO_CLOCK, StageClock


def cut(
    source: Source, plans: Sequence[ClipPlan], out: Tensor, clock: StageClock = NO_CLOCK
) -> None:
    """Read what the clips of one video need, once, and write the clips.

    Args:
        source: The video.
        plans: n clips, all of one size.
        out: uint8 [n, C, T, S, S], overwritten.
        clock: Told where the time goes.

    Raises:
        DecodeError: The video cannot give its frames.
    """
    # Views of one clip that differ in their crop alone share its frames, read and resized once.
    groups: dict[object, list[int]] = {}
    for number, plan in enumerate(plans):
        key = (plan.frames.tobytes(), plan.box, plan.before, plan.resize_to, plan.resize)
        groups.setdefault(key, []).append(number)
    firsts = [plans[members[0]] for members in groups.values()]
    parts = [(plan.distinct_frames, None if plan.before else plan.box) for plan in firsts]
    for members, plan, part in zip(groups.values(), firsts, source.read(parts, clock), strict=True):
        clock.enter("crop")
        pixels = torch.from_numpy(part).movedim(-1, -3)
        if plan.before:
            pixels = pixels.contiguous()
            for change in plan.before:
                pixels = change(pixels)
            if plan.box is not None:
                top, left, height, width = plan.box
                pixels = pixels[..., top : top + height, left : left + width]
        pixels = resize_frames(pixels, *plan.resize_to, plan.resize)
        for number in members:
            _finish(pixels, plans[number], out[number])
    clock.enter("rest")


def _finish(pixels: Tensor, plan: ClipPlan, out: Tensor) -> None:
    """Frames uint8 [T, C, h, w], or one still frame, as the clip uint8 [C, T, S, S]."""
    if plan.crop is not None:
        top, left, height, width = plan.crop
        pixels = pixels[..., top : top + height, left : left + width]
    flip = plan.flip
    if plan.after:
        pixels = (pixels.flip(-1) if flip else pixels).contiguous()
        flip = False
        for change in plan.after:
            pixels = change(pixels)
    # NumPy takes channels apart about twice as fast as torch does.
    images, target = pixels.numpy(), out.numpy()
    for channel in range(images.shape[1]):
        target[channel] = images[:, channel, :, :: -1 if flip else 1]
