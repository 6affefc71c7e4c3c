"""What a model sees, as arrays and pictures: masks over a clip, features, prediction errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vjepa.masking import MaskingConfig, MaskSampler, TokenMasks
from vjepa.models import VJEPA, Encoder, normalise_clip
from vjepa.reporting.pictures import (
    Picture,
    filmstrip,
    heat,
    hide_masked,
    pca_colours,
    stack_rows,
    tokens_to_frames,
    upscale,
)

_SHOWN_HEIGHT = 96
_SHOWN_FRAMES = 8


def model_input(frames: Picture) -> Tensor:
    """A clip uint8 [T, H, W, 3] as the model takes it: float32 [1, 3, T, H, W], normalised."""
    clip = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None]
    return normalise_clip(clip)


def _chosen(num_frames: int) -> NDArray[np.int64]:
    """At most eight evenly spaced frames to draw."""
    return np.linspace(0, num_frames - 1, min(num_frames, _SHOWN_FRAMES)).round().astype(np.int64)


def _strip(frames: Picture) -> Picture:
    return filmstrip(upscale(frames[_chosen(len(frames))], _SHOWN_HEIGHT))


def masks_picture(
    frames: Picture,
    masking: MaskingConfig,
    tubelet_size: int,
    patch_size: int,
    seed: int,
    ordinal: int,
) -> Picture:
    """The clip and, below it, what each mask kind leaves visible (Figure 9 of the paper).

    Args:
        frames: uint8 [T, H, W, 3], cropped to the model's input size.
        masking: The mask kinds.
        tubelet_size, patch_size: Of the patch embedding.
        seed, ordinal: Which masks; the same numbers give the same picture.
    """
    steps, height, width = frames.shape[:3]
    grid = (steps // tubelet_size, height // patch_size, width // patch_size)
    sampler = MaskSampler(masking, grid, tubelet_size, seed)
    masked = sampler.full(np.array([ordinal], dtype=np.int64), 0)
    rows = [_strip(frames)] + [_strip(hide_masked(frames, kind[0])) for kind in masked]
    return stack_rows(rows, ["clip", *(f"mask {kind}" for kind in range(len(masked)))])


@torch.no_grad()
def feature_grid(encoder: Encoder, frames: Picture) -> NDArray[np.float32]:
    """Features of one clip as a grid: uint8 [T, H, W, 3] -> float32 [t, h, w, D]."""
    config = encoder.config
    tokens = encoder(model_input(frames))[0]
    grid = (
        len(frames) // config.tubelet_size,
        frames.shape[1] // config.patch_size,
        frames.shape[2] // config.patch_size,
    )
    return tokens.reshape(*grid, -1).float().numpy()


def features_picture(clips: Sequence[Picture], encoders: Mapping[str, Encoder]) -> Picture:
    """For every clip: its frames, then one row of PCA colours for each encoder.

    The principal directions are those of all shown clips together, so one colour means one thing
    over time and over clips. `clips` are uint8 [T, H, W, 3] of one shape.
    """
    colours: dict[str, Picture] = {}
    for name, encoder in encoders.items():
        grids = np.stack([feature_grid(encoder, clip) for clip in clips])
        flat = pca_colours(grids.reshape(-1, *grids.shape[2:]))
        colours[name] = flat.reshape(*grids.shape[:4], 3)
    rows: list[Picture] = []
    labels: list[str] = []
    for number, clip in enumerate(clips):
        rows.append(_strip(clip))
        labels.append("clip")
        for name, grids in colours.items():
            rows.append(_strip(tokens_to_frames(grids[number], *clip.shape[:3])))
            labels.append(name)
    return stack_rows(rows, labels)


@dataclass(frozen=True)
class PredictionError:
    """How wrong the predictor is, token by token.

    Attributes:
        relative: float32 [t, h, w], L1 error divided by the error of predicting the clip's mean
            feature; 1 is no better than that mean, 0 is perfect; 0 where nothing was predicted.
        predicted: bool [t, h, w], tokens that were masked and predicted.
    """

    relative: NDArray[np.float32]
    predicted: NDArray[np.bool_]

    @property
    def mean(self) -> float:
        """Mean relative error over the predicted tokens."""
        return float(self.relative[self.predicted].mean())


@torch.no_grad()
def prediction_error(
    model: VJEPA, frames: Picture, masks: TokenMasks, mask_index: int
) -> PredictionError:
    """The predictor's error on one clip, with layer-normed target features as in the loss.

    Args:
        model: Encoder, target encoder and predictor.
        frames: uint8 [T, H, W, 3].
        masks: Context and target indices of one clip, [1, K] and [1, M].
        mask_index: Which mask token the predictor uses.
    """
    config = model.config.encoder
    clip = model_input(frames)
    grid = (
        len(frames) // config.tubelet_size,
        frames.shape[1] // config.patch_size,
        frames.shape[2] // config.patch_size,
    )
    target = functional.layer_norm(model.target_encoder(clip), (config.width,))[0]
    context = model.encoder(clip, masks.context)
    predicted = model.predictor(context, masks.context, masks.target, mask_index)[0]
    places = masks.target[0]
    error = (predicted - target[places]).abs().mean(-1)
    trivial = (target[places] - target.mean(0)).abs().mean()
    relative = torch.zeros(target.shape[0])
    relative[places] = error / trivial
    where = torch.zeros(target.shape[0], dtype=torch.bool)
    where[places] = True
    return PredictionError(relative.reshape(grid).numpy(), where.reshape(grid).numpy())


def prediction_picture(frames: Picture, error: PredictionError) -> Picture:
    """Three rows: the clip, what the context encoder saw, the error over what was hidden."""
    seen = hide_masked(frames, error.predicted)
    return stack_rows(
        [_strip(frames), _strip(seen), _strip(heat(frames, error.relative, error.predicted, 1.0))],
        ["clip", "shown", "error"],
    )
