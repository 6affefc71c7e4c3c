"""Fine-tuning: encoder and linear classifier trained together (Tables 11 and 15).

All that is random follows from the seed and the samples' numbers, so that neither gradient
accumulation nor the number of processes changes what is dropped or mixed.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from vjepa.config import config_dataclass
from vjepa.counter_random import derive_seed, uniforms
from vjepa.models import Encoder, LinearClassifier
from vjepa.runtime.device import to_device
from vjepa.tasks.task import Output, Task, slice_of_part

_Alpha = Annotated[float, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]


@config_dataclass
class MixConfig:
    """Clips mixed with each other, and softened labels. The defaults are the paper's (Table 11)."""

    mixup: _Alpha = 0.8
    """A clip and another are averaged, with a weight drawn from Beta(a, a) of this a; 0: never."""
    cutmix: _Alpha = 1.0
    """A box of another clip is put into a clip, its area drawn by Beta(a, a); 0: never."""
    probability: _Share = 1.0
    """How often one of the two is done."""
    cutmix_share: _Share = 0.5
    """How often it is cutmix, where both are on."""
    group: Annotated[int, Field(ge=1)] = 4
    """Clips that share one draw: the first is mixed with the last, and so on. It must divide what
    a process takes of a batch at once, and so the number of processes changes nothing."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of a label that is spread evenly over all classes."""

    @property
    def is_on(self) -> bool:
        """Whether clips are mixed at all."""
        return self.probability > 0 and self.mixup + self.cutmix > 0


@dataclass(frozen=True)
class Mixture:
    """What is done to a group of clips: the share of a clip's own pixels and label, and the box.

    `box` (first row, end row, first column, end column) comes from the partner; None: mixup.
    """

    share: float
    box: tuple[int, int, int, int] | None = None

    def clips(self, group: Tensor) -> Tensor:
        """Mix clips float [G, ..., H, W], each with its partner: the first with the last."""
        other = group.flip(0)
        if self.box is None:
            return self.share * group + (1 - self.share) * other
        mixed, (top, bottom, left, right) = group.clone(), self.box
        mixed[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        return mixed

    def targets(self, group: Tensor) -> Tensor:
        """Mix their labels float [G, classes] likewise."""
        return self.share * group + (1 - self.share) * group.flip(0)


def cutmix(height: int, width: int, share: float, row: int, column: int) -> Mixture:
    """A box of 1 - share of the area around a place, cut at the borders; the share is corrected."""
    half_h, half_w = (int(side * math.sqrt(1 - share)) // 2 for side in (height, width))
    top, bottom = max(row - half_h, 0), min(row + half_h, height)
    left, right = max(column - half_w, 0), min(column + half_w, width)
    taken = (bottom - top) * (right - left) / (height * width)
    return Mixture(1 - taken, (top, bottom, left, right))


def draw_mixture(config: MixConfig, seed: int, group: int, height: int, width: int) -> Mixture:
    """What is done to the group of this number, counted over the whole run."""
    draws = np.random.default_rng(derive_seed(seed, "mix", group))
    whether, which, row, column = draws.random(4).tolist()
    if not config.is_on or whether >= config.probability:
        return Mixture(1.0)
    is_cutmix = config.mixup == 0 or (config.cutmix > 0 and which < config.cutmix_share)
    alpha = config.cutmix if is_cutmix else config.mixup
    share = float(draws.beta(alpha, alpha))
    if not is_cutmix:
        return Mixture(share)
    return cutmix(height, width, share, int(row * height), int(column * width))


def smoothed(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Targets float32 [B, classes] of class numbers int64 [B]."""
    return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def keep_factors(
    seed: int, stream: str, ordinals: NDArray[np.int64], rates: NDArray[np.float64]
) -> Tensor:
    """For each sample and rate 0, that often, or else 1 / (1 - rate): float32 [B, n]."""
    kept = uniforms(seed, stream, ordinals, len(rates)) >= rates
    return torch.from_numpy(kept / (1 - rates)).float()


def drop_path(seed: int, ordinals: NDArray[np.int64], depth: int, rate: float) -> Tensor:
    """An encoder's ``branch_scale``, float32 [depth, 2, B]: block i is dropped at rate i/(depth-1).

    So the first never, the last at the full `rate`; attention and MLP by draws of their own.
    """
    rates = np.linspace(0.0, rate, depth).repeat(2)
    return keep_factors(seed, "drop path", ordinals, rates).T.unflatten(0, (depth, 2)).contiguous()


def layer_scale(name: str, depth: int, decay: float) -> float:
    """Layer-wise learning rates: the factor of a parameter by its full name, of `depth` blocks.

    decay^(depth + 1 - k) with k = 0 for patch embedding and [cls] token, i + 1 for block i, and
    depth + 1, so 1, for all that comes after the blocks.
    """
    found = re.match(r"encoder\.(patch_embed\.|cls_token|blocks\.(\d+)\.)", name)
    layer = depth + 1 if found is None else int(found[2] or -1) + 1
    return decay ** (depth + 1 - layer)


class FineTuning(Task):
    """Cross-entropy of a linear classifier on the mean token, the encoder trained with it.

    Args:
        encoder, head: What is trained, where a parameter takes gradients. The head's norm stands
            between the mean and the linear layer.
        final_norm: Whether tokens pass the encoder's own final norm before the mean.
        seed, batch_size: Of all draws; clips of the whole batch, over all processes.
        drop_path, head_dropout: Rates; see :func:`drop_path`.
        layer_decay: See :func:`layer_scale`.
        averaged: Keep moving averages of the weights, ``target_encoder`` and ``target_head``.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: LinearClassifier,
        *,
        seed: int = 0,
        batch_size: int = 0,
        mix: MixConfig | None = None,
        final_norm: bool = False,
        drop_path: float = 0.0,
        head_dropout: float = 0.0,
        layer_decay: float = 1.0,
        averaged: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.has_unused = encoder.config.has_spare
        if averaged:
            self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
            self.target_head = copy.deepcopy(head).requires_grad_(False)
        self.final_norm = final_norm
        self._averaged, self._seed, self._batch_size = averaged, seed, batch_size
        self._mix, self._layer_decay = mix or MixConfig(), layer_decay
        self._drop_path, self._head_dropout = drop_path, head_dropout
        self._width, self._depth = encoder.config.width, encoder.config.depth
        self._num_classes = head.linear.out_features

    def inputs(
        self, batch: Any, part: int, parts: int
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, int]:
        """Mixed clips, their targets, what is dropped, and the number of clips of the whole batch.

        A batch has ``clips`` (uint8 [B, C, T, H, W]), ``labels`` (int64 [B]) and ``ordinals``.
        """
        here = slice_of_part(len(batch.ordinals), part, parts)
        ordinals, device = batch.ordinals[here], self.device
        clips = self.encoder.normalise(to_device(batch.clips[here], device))
        labels = to_device(batch.labels[here], device)
        targets = smoothed(labels, self._num_classes, self._mix.label_smoothing)
        if self._mix.is_on:
            size, sides = self._mix.group, clips.shape[-2:]
            groups = ordinals[::size] // size
            mixtures = [draw_mixture(self._mix, self._seed, int(g), *sides) for g in groups]
            clips, targets = mixed(clips, targets, mixtures, size)
        dropped = kept = None
        if self._drop_path:
            factors = drop_path(self._seed, ordinals, self._depth, self._drop_path)
            dropped = to_device(factors, device)
        if self._head_dropout:
            rates = np.full(self._width, self._head_dropout)
            kept = to_device(keep_factors(self._seed, "head dropout", ordinals, rates), device)
        return clips, targets, dropped, kept, self._batch_size

    def forward(
        self,
        clips: Tensor,
        targets: Tensor,
        dropped: Tensor | None = None,
        kept: Tensor | None = None,
        count: int | None = None,
    ) -> Output:
        """The loss; as a term how often the class with the largest share is found.

        Args:
            clips: float [B, C, T, H, W], normalised.
            targets: float32 [B, classes], each row of sum 1.
            dropped: The encoder's ``branch_scale``, [depth, 2, B].
            kept: Factors of what enters the linear layer, [B, D].
            count: Clips of the batch that these are a part of; None: they are all of it.
        """
        count = count or len(clips)
        tokens = self.encoder(clips, branch_scale=dropped, final_norm=self.final_norm)
        logits = self.head(tokens, kept).float()
        loss = F.cross_entropy(logits, targets, reduction="sum") / count
        right = logits.detach().argmax(dim=1) == targets.argmax(dim=1)
        return Output(loss, {"top1": right.float().sum() / count})

    def lr_scale(self, name: str) -> float:
        """By layer."""
        return layer_scale(name, self._depth, self._layer_decay)

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Encoder and head, where averages are kept."""
        if not self._averaged:
            return []
        return [(self.encoder, self.target_encoder), (self.head, self.target_head)]


def mixed(
    clips: Tensor, targets: Tensor, mixtures: Sequence[Mixture], size: int
) -> tuple[Tensor, Tensor]:
    """Clips [B, ...] and targets [B, classes], each group of `size` mixed as its mixture says."""
    pairs = zip(mixtures, clips.split(size), targets.split(size), strict=True)
    parts = [(how.clips(some), how.targets(truth)) for how, some, truth in pairs]
    first, second = zip(*parts, strict=True)
    return torch.cat(first), torch.cat(second)
