"""From a video to what an encoder takes: the one definition of the view that an encoder is given.

It is stored beside the weights. Evaluation, features, predictions and pictures all take it from
there, so that none of them shows an encoder something else than the others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.checkpoint import (
    AnyEncoder,
    Which,
    described,
    locate,
    read_encoder,
    read_model,
)
from vjepa.checkpoint.huggingface import read_framing
from vjepa.checkpoint.inference import SECOND_FPS
from vjepa.checkpoint.load import is_hub
from vjepa.config import config_dataclass, from_dict
from vjepa.data.clips.crops import usual_short_side
from vjepa.data.clips.dataset import centre_view
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.errors import UserError
from vjepa.evaluation.frozen import FrozenEncoder
from vjepa.models import VJEPA, EncoderConfig, InputConfig, normalise_clip
from vjepa.paths import as_path

Video = str | os.PathLike[str] | NDArray[np.uint8] | Tensor
"""A video, image or folder of frames by its path, or its frames: uint8 [T, H, W, 3], RGB."""

_MOST_AT_ONCE = 4096
_LOGGER = logging.getLogger(__name__)


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
        one = isinstance(videos, (str, bytes, np.ndarray, Tensor)) or not isinstance(
            videos, Iterable
        )
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

    def unless_given(
        self, clip: ClipConfig | None, view: ViewConfig | None, group: str = ""
    ) -> tuple[ClipConfig, ViewConfig]:
        """What a job was given, or else this encoder's own.

        A group that is given at all is the job's as a whole: fields of it that were left at their
        defaults, where the encoder has others, are named in a warning.
        """
        for name, given, own in (("clip", clip, self.clip), ("view", view, self.view)):
            other = [
                f"{each.name} {getattr(given, each.name)} (the encoder's: {value})"
                for each in fields(own)
                if given
                and getattr(given, each.name) == each.default != (value := getattr(own, each.name))
            ]
            if other:
                said = "has defaults where the encoder has something else"
                _LOGGER.warning(
                    "%s%s: %s: %s; give the encoder's, unless these are meant",
                    *(group, name, said, ", ".join(other)),
                )
        return clip or self.clip, view or self.view

    def pixels(self, video: Video) -> Tensor:
        """The view of one video before it is normalised: uint8 [3, T, S, S]."""
        source = video.numpy(force=True) if isinstance(video, Tensor) else video
        return centre_view(source, self.clip, self.view).transpose(0, 1)


def preprocess_of(path: str | os.PathLike[str] | None, encoder: EncoderConfig) -> Preprocess:
    """What a checkpoint says of its encoder's input; the paper's way where it does not say.

    `path` is as for :func:`load_encoder`; an authors' file does not say. V-JEPA 2 and 2.1 were
    trained on frames by time, 4 a second.
    """
    # An image model has no clip of its own; 16 frames are what a video model would see.
    clip = ClipConfig(num_frames=16 if encoder.is_image_model else encoder.num_frames)
    if encoder.is_rotary:
        clip = replace(clip, stride=None, fps=SECOND_FPS)
    view = ViewConfig(crop_size=encoder.image_size)
    if path is not None and is_hub(as_path(path)):
        view = _hub_view(locate(path), view)
    plain = Preprocess(clip=clip, view=view, input=encoder.input)
    config = None if path is None else described(path)
    if config is None:
        return plain
    if config.preprocess:
        # The encoder's own config says how pixels are normalised.
        stored = {
            key: config.preprocess[key] for key in ("clip", "view") if key in config.preprocess
        }
        own = from_dict(Preprocess, stored, f"{path}: preprocess")
        # Of a fine-tuned model they are the views that its classes were measured with.
        one = replace(own.view, num_segments=1, num_views=1, join="tokens", placement="centre")
        return replace(own, view=one, input=encoder.input)
    if config.clip is not None:
        clip = from_dict(ClipConfig, config.clip, f"{path}: data.clip")
    return replace(plain, clip=replace(clip, clips_per_video=1))


@cache  # which says once what is not followed
def _hub_view(folder: Path, usual: ViewConfig) -> ViewConfig:
    """The view that a Hugging Face folder asks for, at the size of `usual`, as far as one can."""
    size, said = usual.crop_size, read_framing(folder)
    short = usual_short_side(size)
    if said.short_side is not None and said.short_side != usual_short_side(said.crop_size or size):
        short = said.short_side * size // (said.crop_size or size)  # in proportion, at other sizes
        usual = replace(usual, short_side=short)
    if said.other:
        _LOGGER.warning(
            "%s: not done here: %s; the short side is brought to %d pixels (bilinear, with "
            "antialias) and the centre of %d x %d cut out",
            *(said.file, ", ".join(said.other), short, size, size),
        )
    return usual


def with_assumed_spacing(
    frozen: FrozenEncoder, path: str | os.PathLike[str] | None
) -> FrozenEncoder:
    """The encoder, its identity saying that the spacing of its clips was assumed, if it was.

    For those who take :func:`preprocess_of`'s clip and were not told one.
    """
    identity = frozen.identity
    config = None if path is None else described(path)
    is_said = config is not None and (config.preprocess or config.clip)
    if is_said or not identity.config.is_rotary:
        return frozen
    assumed = (*identity.assumed, f"{SECOND_FPS:g} frames a second (data.clip, window.fps)")
    return replace(frozen, identity=replace(identity, assumed=assumed))


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
