"""From a video to what an encoder takes: the one definition of the view that an encoder is given.

It is stored beside the weights. Evaluation, features, predictions and pictures all take it from
there, so that none of them shows an encoder something else than the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.checkpoint import AnyEncoder, Which, described, read_encoder, read_model
from vjepa.config import config_dataclass, from_dict
from vjepa.data.clips.dataset import centre_view
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.errors import UserError
from vjepa.models import VJEPA, EncoderConfig, InputConfig, normalise_clip
from vjepa.paths import as_path

Video = str | os.PathLike[str] | NDArray[np.uint8] | Tensor
"""A video, image or folder of frames by its path, or its frames: uint8 [T, H, W, 3], RGB."""

_MOST_AT_ONCE = 4096


@config_dataclass
class Preprocess:
    """How an encoder's input is made of a video: frames around its middle, short side, centre crop.

    Calling it gives float32 [B, C, T, S, S], normalised, of one video or a sequence of them.
    """

    clip: ClipConfig = field(default_factory=ClipConfig)
    """Which frames: how many, and at which spacing."""
    view: ViewConfig = field(default_factory=ViewConfig)
    """Which part of them, and how it is resized."""
    input: InputConfig = field(default_factory=InputConfig)
    """How its pixels are normalised: the encoder's ``config.input``."""

    def __call__(self, videos: Video | Sequence[Video]) -> Tensor:
        """Read, cut and normalise."""
        one = isinstance(videos, (str, np.ndarray, Tensor)) or not isinstance(videos, Iterable)
        several: list[Any] = [videos] if one else list(videos)
        if not several:
            raise UserError("no video was given; name one")
        if len(several) > _MOST_AT_ONCE:
            raise UserError(
                f"{len(several)} videos at once: each is a video in a list; frames must be one "
                "array uint8 [T, H, W, 3]"
            )
        clips = torch.stack([self.pixels(video) for video in several])
        return normalise_clip(clips, how=self.input)

    def sized(self, *, image_size: int, num_frames: int) -> Preprocess:
        """The same for an encoder of another input size."""
        view = replace(self.view, crop_size=image_size, short_side=None)
        return replace(self, clip=replace(self.clip, num_frames=num_frames), view=view)

    def pixels(self, video: Video) -> Tensor:
        """The view of one video before it is normalised: uint8 [3, T, S, S]."""
        source = video.numpy(force=True) if isinstance(video, Tensor) else video
        return centre_view(source, self.clip, self.view).transpose(0, 1)


def preprocess_of(path: str | os.PathLike[str] | None, encoder: EncoderConfig) -> Preprocess:
    """What a checkpoint says of its encoder's input; the paper's way where it does not say.

    `path` is as for :func:`load_encoder`; an authors' file does not say.
    """
    # An image model has no clip of its own; 16 frames are what a video model would see.
    clip = ClipConfig(num_frames=16 if encoder.is_image_model else encoder.num_frames)
    view = ViewConfig(crop_size=encoder.image_size)
    plain = Preprocess(clip=clip, view=view, input=encoder.input)
    config = None if path is None else described(path)
    if config is None:
        return plain
    if config.preprocess:
        # The encoder's own config says how pixels are normalised.
        stored = {
            key: config.preprocess[key] for key in ("clip", "view") if key in config.preprocess
        }
        return replace(from_dict(Preprocess, stored, f"{path}: preprocess"), input=encoder.input)
    data = config.run.get("data")  # of a checkpoint of before there was a record
    if isinstance(data, dict) and isinstance(data.get("clip"), dict):
        clip = from_dict(ClipConfig, data["clip"], f"{path}: data.clip")
    return replace(plain, clip=replace(clip, clips_per_video=1))


def load_encoder(
    path: str | os.PathLike[str],
    which: Which = "target",
    num_heads: int | None = None,
    *,
    image_size: int | None = None,
    num_frames: int | None = None,
) -> AnyEncoder:
    """Load one encoder, strictly; ``encoder.preprocess`` makes its input of videos.

    Args:
        path: A run folder, a checkpoint folder of ours, the authors' file of V-JEPA, 2 or 2.1, a
            Hugging Face folder of V-JEPA 2, a published file of the models that the paper compares
            with, or the name of weights that come with the package (``demo``) or were downloaded,
            which goes before a file or folder of that name (``./demo``).
        which: ``target``, the moving average, which the paper evaluates, or ``context``.
        num_heads: For an authors' file whose size is no preset.
        image_size: Pixels of its clips, where a file does not say them (V-JEPA 2: 256, or 384).
        num_frames: Frames of its clips, likewise (V-JEPA 2: 64).

    Returns:
        float32, on the CPU, in evaluation mode. An image model takes one frame, and its
        ``preprocess`` makes one, near the middle (:func:`vjepa.extract_features` shows it all).

    Raises:
        UserError: Nothing there, damaged, foreign, or of another shape.
    """
    path = as_path(path)
    encoder, _ = read_encoder(path, which, num_heads, image_size=image_size, num_frames=num_frames)
    encoder.preprocess = _own_preprocess(path, encoder.config)
    return encoder


def load_model(
    path: str | os.PathLike[str], num_heads: int | None = None, **sizes: int | None
) -> VJEPA:
    """The model of :func:`vjepa.checkpoint.read_model`; its encoders have ``preprocess``, too."""
    path = as_path(path)
    model, _ = read_model(path, num_heads, **sizes)
    how = _own_preprocess(path, model.config.encoder)
    model.encoder.preprocess = model.target_encoder.preprocess = how
    return model


def _own_preprocess(path: str | os.PathLike[str], encoder: EncoderConfig) -> Preprocess:
    how = preprocess_of(path, encoder)
    return replace(how, clip=replace(how.clip, num_frames=1)) if encoder.is_image_model else how
