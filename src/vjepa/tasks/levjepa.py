"""LeVJEPA: one encoder, no teacher, no predictor (arXiv 2608.27395)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from vjepa.config import config_dataclass
from vjepa.counter_random import uniforms
from vjepa.models import Encoder, EncoderConfig
from vjepa.models.attention import init_layer
from vjepa.models.operations import MaskTokens
from vjepa.runtime.device import to_device
from vjepa.runtime.distributed import ProcessGroup
from vjepa.tasks.health import (
    effective_rank,
    first_clips,
    representation_health,
    spread,
)
from vjepa.tasks.masked_prediction import check_grid, normalise_features
from vjepa.tasks.sigreg import NUM_DIRECTIONS, draw_directions, sigreg
from vjepa.tasks.task import Output, Task, slice_of_part

_Count = Annotated[int, Field(gt=0)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_LOG_ASPECT = float(np.log(4 / 3))


@config_dataclass
class LeVJEPAConfig:
    """The views of a clip, and what is asked of their embeddings. The defaults are the paper's."""

    local_views: Annotated[int, Field(ge=1)] = 10
    """Views that show a part of the clip, beside the one that shows all of it."""
    local_size: _Count = 96
    """Height and width of such a view in pixels, in whole patches."""
    local_scale: tuple[float, float] = (0.05, 0.3)
    """Range of its area, as a share of the clip's (the paper's is not known to us)."""
    dropped: _Share = 0.95
    """Share of the tokens of each view that are dropped, drawn anew for each."""
    sigreg_weight: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Weight lambda of SIGReg; that of the agreement of views is 1 - lambda."""
    directions: _Count = NUM_DIRECTIONS
    """Directions in which SIGReg looks, drawn anew for each update."""
    embedding_width: _Count = 256
    """Numbers of an embedding."""

    def __post_init__(self) -> None:
        low, high = self.local_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"local_scale must rise within (0, 1], got {low}, {high}")

    def kept_tokens(self, encoder: EncoderConfig) -> tuple[int, int]:
        """Tokens that are seen of the view of the whole clip, and of each local one."""
        side = self.local_size // encoder.patch_size
        every = encoder.num_tokens, encoder.grid[0] * side * side
        whole, local = (max(1, round(tokens * (1 - self.dropped))) for tokens in every)
        return whole, local

    def seen_tokens(self, encoder: EncoderConfig) -> list[MaskTokens]:
        """What the encoder sees of each view; nothing is filled in."""
        whole, local = self.kept_tokens(encoder)
        return [MaskTokens(whole, 0), *[MaskTokens(local, 0)] * self.local_views]


@dataclass(frozen=True)
class View:
    """A set of views with equally many tokens: one of each clip, or several, one after the other.

    Views of the second kind have V * b rows: those of all b clips, V times.
    """

    clips: Tensor
    """float32 [V * b, C, T, S, S], normalised."""
    kept: Tensor
    """int64 [V * b, K], the tokens that are seen, ascending."""


class LeVJEPA(Task):
    """Let the embeddings of a clip's views agree, and be Gaussian over the batch.

    A view is a part of the clip, of which most tokens are dropped; its embedding z is a projection
    of the encoder's [cls] token. With g the view that shows the whole clip and V views in all::

        loss = (1 - lambda) * mean over clips, views and features of (z - z_g)^2
             + lambda * mean over views of SIGReg(z of all clips)

    (:mod:`vjepa.tasks.sigreg`). Gradients pass through z_g as well. What is evaluated is a moving
    average of the encoder, which takes no part in the loss. Where the paper cuts views out of the
    video, those here are cut out of the clip, so that it is decoded once. Views, dropped tokens
    and directions follow from the seed and the samples' ordinals or the step.
    """

    compares_samples = True

    def __init__(
        self, encoder: EncoderConfig, config: LeVJEPAConfig, seed: int, batch_size: int
    ) -> None:
        super().__init__()
        if not encoder.cls:
            raise ValueError("model.encoder.cls: must be true for LeVJEPA, which reads that token")
        patch, most = encoder.patch_size, encoder.image_size
        if config.local_size % patch or config.local_size > most:
            raise ValueError(
                f"objective.levjepa.local_size: {config.local_size} must be a multiple of "
                f"model.encoder.patch_size {patch}, and at most the clip's size, {most}"
            )
        self.encoder = Encoder(encoder)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(requires_grad=False)
        hidden = encoder.mlp_width
        self.projector = nn.Sequential(
            nn.Linear(encoder.width, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Linear(hidden, config.embedding_width),
        )
        self.projector.apply(init_layer)
        self.has_unused = encoder.modalities or len(encoder.levels) > 1
        self._config, self._seed, self._batch_size = config, seed, batch_size

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """The average follows the encoder."""
        return [(self.encoder, self.target_encoder)]

    def inputs(self, batch: Any, part: int, parts: int) -> tuple[tuple[View, View], Tensor]:
        """The views of the whole clips and of their parts, and SIGReg's directions."""
        check_grid(batch.clips, self.encoder)
        here = slice_of_part(len(batch.ordinals), part, parts)
        ordinals, sizes, config = batch.ordinals[here], self.encoder.config, self._config
        clips = self.encoder.normalise(to_device(batch.clips[here], self.device))
        whole, local = config.kept_tokens(sizes)
        side = config.local_size // sizes.patch_size
        tokens = sizes.grid[0] * side * side
        views = (
            View(clips, self._kept(ordinals, "whole", 1, sizes.num_tokens, whole)),
            View(
                self._parts(ordinals, clips),
                self._kept(ordinals, "part", config.local_views, tokens, local),
            ),
        )
        width, seed = config.embedding_width, self._seed
        directions = draw_directions(config.directions, width, seed, batch.step)
        return views, to_device(directions, self.device)

    def _drawn(
        self, ordinals: NDArray[np.int64], what: str, views: int, count: int
    ) -> NDArray[np.float64]:
        """Uniform numbers for each view of each clip: float64 [views, b, count]."""
        drawn = uniforms(self._seed, f"levjepa {what}", ordinals, views * count)
        return drawn.reshape(len(ordinals), views, count).swapaxes(0, 1)

    def _kept(
        self, ordinals: NDArray[np.int64], what: str, views: int, tokens: int, count: int
    ) -> Tensor:
        """Which of so many tokens are kept in each view: int64 [views * b, count], ascending."""
        keys = self._drawn(ordinals, f"tokens of {what}", views, tokens).reshape(-1, tokens)
        kept = np.argpartition(keys, count - 1, axis=1)[:, :count]
        return to_device(torch.from_numpy(np.sort(kept, axis=1)), self.device)

    def _parts(self, ordinals: NDArray[np.int64], clips: Tensor) -> Tensor:
        """Parts of clips [b, C, T, H, W], each brought to the local size: [V * b, C, T, s, s]."""
        low, high = self._config.local_scale
        # Area, aspect, row and column of each.
        drawn = self._drawn(ordinals, "parts", self._config.local_views, 4)
        area = low + (high - low) * drawn[..., 0]
        aspect = np.exp(_LOG_ASPECT * (2 * drawn[..., 1] - 1))
        sides = np.minimum(1, np.sqrt(area[..., None] * np.stack([aspect, 1 / aspect], -1)))
        centres = (1 - sides) * (2 * drawn[..., :1:-1] - 1)  # of -1 to 1; columns come first
        boxes = np.zeros((*area.shape, 2, 3), dtype=np.float32)
        boxes[..., [0, 1], [0, 1]], boxes[..., 2] = sides, centres
        theta = to_device(torch.from_numpy(boxes), self.device)
        planes, size = clips.flatten(1, 2), self._config.local_size
        shape = [len(clips), planes.shape[1], size, size]
        cut = [
            F.grid_sample(
                planes,
                F.affine_grid(one, shape, align_corners=False),
                padding_mode="border",
                align_corners=False,
            )
            for one in theta
        ]
        return torch.cat(cut).unflatten(1, clips.shape[1:3])

    def embed(self, view: View) -> Tensor:
        """The embeddings of views: float32 [V * b, E]."""
        tokens = self.encoder(view.clips, view.kept, with_cls=True)
        return self.projector(tokens[:, 0]).float()

    def forward(self, views: Sequence[View], directions: Tensor) -> Output:
        """The loss, and as terms its two parts; arguments as :meth:`inputs` gives them."""
        whole = self.embed(views[0])
        embedded = torch.cat([whole, self.embed(views[1])]).unflatten(0, (-1, len(whole)))
        errors = (embedded - whole).square()
        disagreement = errors.sum() / (len(embedded) * self._batch_size * errors.shape[-1])
        irregularity = sigreg(embedded, directions, self.group)
        weight = self._config.sigreg_weight
        terms = {"disagreement": disagreement.detach(), "sigreg": irregularity.detach()}
        return Output((1 - weight) * disagreement + weight * irregularity, terms)

    @torch.no_grad()
    def health(self, batch: Any, count: int, group: ProcessGroup) -> Mapping[str, Tensor]:
        """As of every pretraining task, of the average's features; and of whole clips' embeddings.

        ``embedding_std`` over clips is 1 where SIGReg has its way.
        """
        count = min(count, self._batch_size)
        clips = self.encoder.normalise(first_clips(batch, count, self.device, group))
        features = normalise_features(self.target_encoder(clips))
        tokens = self.encoder(clips, with_cls=True)
        embedded = self.projector(tokens[:, 0]).float()
        return {
            "target_std": spread(features),
            "context_std": spread(normalise_features(tokens[:, 1:])),
            **representation_health(features),
            "embedding_std": spread(embedded),
            "embedding_rank": effective_rank(embedded),
        }
