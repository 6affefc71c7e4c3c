"""From pixels to what the encoder expects."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vjepa.models.config import EncoderConfig, InputConfig

_IMAGENET = InputConfig()
_LOOKED_AT = 8
_FAR_MEAN, _FAR_DEVIATION = 1.0, 2.5
FEW_CLIPS, _ALLOWED_TO_FEW = 4, 2.0


def may_look(tensor: Tensor) -> bool:
    """Whether asking for a tensor's values is free: on a GPU the host would wait for it."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, nn.Parameter)  # not one that only pretends to hold numbers
    )


def normalise_clip(
    clips: Tensor, dtype: torch.dtype = torch.float32, how: InputConfig = _IMAGENET
) -> Tensor:
    """Pixels to an encoder's input [.., C, T, H, W]: (x / 255 - mean) / deviation by channel.

    `clips` is uint8 (or another type on the scale 0..255) [B, 3, T, H, W] or [3, T, H, W], RGB; the
    arithmetic is float32, whatever `dtype` the result is to have. `how` is the encoder's
    ``config.input``. ValueError: another layout; or, for numbers on the CPU that are not uint8,
    another scale.
    """
    if not isinstance(clips, Tensor) or clips.ndim not in (4, 5) or clips.shape[-4] != 3:
        got = tuple(clips.shape) if isinstance(clips, Tensor) else type(clips).__name__
        raise ValueError(f"clips must be a tensor [..., 3, T, H, W] in RGB, got {got}")
    if clips.dtype != torch.uint8 and clips.numel() and may_look(clips):
        _require_pixels(*map(float, clips.detach().float().aminmax()))
    means, deviations = how.mean_and_deviation
    shift = [-m / d for m, d in zip(means, deviations, strict=True)]
    scale = [1.0 / (255.0 * d) for d in deviations]
    content = input_content(clips, how)
    return torch.addcmul(_column(shift, clips), content, _column(scale, clips)).to(dtype)


def input_content(clips: Tensor, how: InputConfig) -> Tensor:
    """What is normalised of clips [.., 3, T, H, W]: float32 [.., C, T, H, W], scale 0..255."""
    pixels = clips.to(torch.float32)
    if how.content == "rgb":
        return pixels
    if how.content == "rgb_without_mean":
        return pixels - pixels.mean(dim=-3, keepdim=True)
    change = pixels.diff(dim=-3)
    first = change[..., :1, :, :] if pixels.shape[-3] > 1 else torch.zeros_like(pixels)
    change = torch.cat([first, change], dim=-3)
    return change if how.content == "change" else torch.cat([pixels, change], dim=-4)


def to_pixels(clips: Tensor, how: InputConfig = _IMAGENET) -> Tensor:
    """The inverse of :func:`normalise_clip` for contents that begin with the pixels.

    float [.., 3 or more, T, H, W], normalised as `how` says -> uint8 [.., 3, T, H, W], RGB.
    """
    means, deviations = how.mean_and_deviation
    rgb = clips[..., :3, :, :, :].float()
    scale, shift = ([255.0 * x for x in part[:3]] for part in (deviations, means))
    pixels = torch.addcmul(_column(shift, rgb), rgb, _column(scale, rgb))
    return pixels.round().clamp(0, 255).to(torch.uint8)


def check_video(video: Tensor, config: EncoderConfig, *, is_training: bool) -> None:
    """Refuse an encoder's input that cannot be right; values are looked at where that is free."""
    makes = "encoder.preprocess or encoder.normalise makes it so"
    if not isinstance(video, Tensor) or not video.is_floating_point():
        kind = video.dtype if isinstance(video, Tensor) else type(video).__name__
        raise ValueError(f"video is {kind}, not a float tensor: {makes}")
    if video.ndim == 5 and video.shape[1] != config.channels:
        remedy = ""
        if video.shape[2] == config.channels:
            remedy = "; it looks like [B, T, C, H, W]: give video.transpose(1, 2)"
        elif video.shape[4] == config.channels:
            remedy = "; it looks like [B, T, H, W, C]: give video.permute(0, 4, 1, 2, 3)"
        raise ValueError(
            f"video has {video.shape[1]} channels, the model {config.channels}{remedy}"
        )
    if not is_training and video.numel() and may_look(video):
        low, high = (float(end) for end in video.detach().aminmax())
        if not math.isfinite(high - low):
            raise ValueError("video holds numbers that are not finite")
        white = max((1 - m) / d for m, d in zip(*config.input.mean_and_deviation, strict=True))
        # Twice of white, since filters overshoot and noise may be added; of channels that no input
        # is described for, such as a sensor's, little is known.
        most = 2 * white + 1 if config.channels == config.input.channels else 50.0
        if high > most:
            raise ValueError(f"video holds values up to {high:.0f}, not normalised: {makes}")
        # What is normalised has values below the mean, unless it is all of one brightness.
        if 0 <= low < high <= 1:
            warnings.warn(f"video lies between 0 and 1, not normalised? {makes}", stacklevel=6)


def far_from_input(clips: Tensor, how: InputConfig) -> str | None:
    """In words, with both numbers, that clips are unlike what an encoder's input is made for.

    `clips` are uint8 [B, 3, T, H, W], the first eight of which are looked at. Far means that a
    channel's mean differs by more than one deviation, or its deviation by more than a factor of
    2.5; twice as much of fewer than four clips, since nearly half of a game's own clips are far by
    the stricter rule, taken one by one, and none by four. None: nothing is far.
    """
    clips = clips[:_LOOKED_AT]
    allowed = _ALLOWED_TO_FEW if len(clips) < FEW_CLIPS else 1.0
    most = allowed * _FAR_DEVIATION
    content = input_content(clips, how).transpose(0, 1).flatten(1) / 255
    found = content.mean(dim=1), content.std(dim=1, correction=0)
    mean, deviation = (torch.tensor(part) for part in how.mean_and_deviation)
    ratio = found[1] / deviation
    near = (found[0] - mean).abs() <= allowed * _FAR_MEAN * deviation
    near &= (ratio < most) & (ratio > 1 / most)
    if bool(near.all()):
        return None
    ours, theirs = (
        tuple(" ".join(f"{x:.2f}" for x in part.tolist()) for part in pair)
        for pair in (found, (mean, deviation))
    )
    return (
        f"the first clips ({len(clips)}) have mean {ours[0]} and deviation {ours[1]} (0 to 1), the "
        f"encoder's input is made for {theirs[0]} and {theirs[1]}: on videos so unlike those that "
        "it was trained on its features may say little"
    )


def _require_pixels(low: float, high: float) -> None:
    """Refuse what does not lie on the scale 0 to 255, but for what resizing adds at its ends."""
    remedy = "give pixels on the scale 0 to 255, best as uint8"
    if not math.isfinite(high - low):
        raise ValueError(f"clips hold numbers that are not finite; {remedy}")
    if low >= 0 and 0 < high <= 1:
        raise ValueError(f"clips lie between 0 and 1, so they are nearly black; {remedy} (x * 255)")
    if low < 0 and high < 10:
        raise ValueError(f"clips lie between {low:.2g} and {high:.2g}: normalised before; {remedy}")
    if low < -128 or high > 384:
        raise ValueError(f"clips lie between {low:.0f} and {high:.0f}; {remedy}")


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """Float32 [C, 1, 1, 1] beside a tensor.

    Filled, since a copy to a GPU would stop it, and made anew, since a tensor that is kept would
    be of the mode (inference, export) in which it was first asked for.
    """
    return torch.stack([torch.full((1, 1, 1), value, device=like.device) for value in values])


def still_clip(images: Tensor, num_frames: int) -> Tensor:
    """Still images [B, C, H, W] as clips of repeated frames, a view [B, C, T, H, W].

    The paper's way to encode images; it repeats 16 times.
    """
    return images[:, :, None].expand(-1, -1, num_frames, -1, -1)
