"""Is self-supervised training going well? Numbers that a falling loss does not give.

A predictable target can be a poor one: constant features are predicted perfectly. So the tasks
report, on one batch now and then:

* ``target_std``, ``context_std``, ``predictor_std``: standard deviation of a feature over the
  batch's tokens, averaged over features; of the targets, of the context encoder's output (layer
  normalised as the targets are, so at most about 1) and of the predictions. 0 is full collapse.
* ``target_std_between_clips``: the same at one position, over the clips of the batch. It also falls
  when features keep telling where a token is but no longer what it shows.
* ``effective_rank``: exp of the entropy of the singular values of the clips' mean features (RankMe,
  Garrido et al. 2023), from 1 to min(B, D).
* ``pairwise_cosine``: mean cosine between the mean features of different clips. It is high in
  untrained networks; what matters is where it goes.
* ``explained_vs_mean_token``, ``explained_vs_position_mean``: 1 - squared error of the predictor /
  squared error of a trivial one, that is, the share of the target's variance that it explains. The
  trivial ones know the batch's targets: their mean over all tokens, or at each position the mean of
  the *other* clips. 1 is perfect, 0 no better, negative worse. ``explained_absolute_...``: the same
  with absolute errors, as in the loss.
* ``teacher_student_distance``: of encoder and target encoder, by the encoder's norm.
* ``context_share/mask_i``, ``target_tokens/mask_i``, ...: what each mask shows and asks for.

Values that compare clips are left out for a batch of one clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vjepa.masking import TokenMasks
from vjepa.runtime.device import to_device
from vjepa.runtime.distributed import ProcessGroup

_TINY = 1e-12
_LARGEST_FALL, _LARGEST_FALL_EXPLAINED = 0.5, 1 / 3
_HIGH_COSINE = 0.95
_COSINE_RISE = 0.1
_POOR_STD, _POOR_RANK = 0.5, 5.0  # of targets that are nearly the same for all clips and places
_MUCH_EXPLAINED = 0.4
_POOR_RANKS = ((0.55, 3.0), (_MUCH_EXPLAINED, 3.9))  # narrow encoders learn at a rank of 3.4 to 5


def first_clips(batch: Any, count: int, device: torch.device, group: ProcessGroup) -> Tensor:
    """The first `count` clips of the whole batch, uint8 [count, C, T, H, W], in every process."""
    held, clips = len(batch.clips), []
    for rank in range(-(-count // held)):  # the processes that hold them send them to all
        # A clone, since the others' clips are written into what is sent.
        own = to_device(batch.clips[: min(held, count - rank * held)].clone(), device)
        clips.append(group.send_(own, rank))
    return torch.cat(clips)


def spread(features: Tensor) -> Tensor:
    """Standard deviation of a feature over all tokens, averaged: [..., D] -> float32 scalar."""
    return features.float().flatten(0, -2).std(dim=0, correction=0).mean()


def representation_health(features: Tensor) -> dict[str, Tensor]:
    """What the features [B, N, D] of different clips have in common; empty for a single clip."""
    features = features.float()
    batch = features.shape[0]
    if batch < 2:
        return {}
    pooled = features.mean(dim=1)
    directions = F.normalize(pooled, dim=-1)
    # The sum of all pairs' cosines is the squared length of the sum; the diagonal adds B.
    pairs = (directions.sum(dim=0).square().sum() - batch) / (batch * (batch - 1))
    return {
        "target_std_between_clips": features.std(dim=0).mean(),
        "effective_rank": effective_rank(pooled),
        "pairwise_cosine": pairs,
    }


def effective_rank(vectors: Tensor) -> Tensor:
    """Exp of the entropy of the singular values' distribution: float32 [B, D] -> scalar >= 1."""
    values = torch.linalg.svdvals(vectors)
    shares = values / values.sum().clamp(min=_TINY)
    return torch.exp(torch.special.entr(shares).sum())


def prediction_health(
    targets: Tensor, predictions: Iterable[tuple[Tensor, TokenMasks]]
) -> dict[str, Tensor]:
    """How much better a predictor is than trivial ones; masks count equally, as in the loss.

    `targets` are those of all tokens, float32 [B, N, D]; predictions [B, M, D], or packed [U, D].
    """
    batch = targets.shape[0]
    trivial = {"mean_token": targets - targets.mean(dim=(0, 1))}
    if batch > 1:
        # x - mean of the others = (x - mean of all) * B / (B - 1).
        trivial["position_mean"] = (targets - targets.mean(dim=0)) * (batch / (batch - 1))
    spreads, own = [], []
    others: dict[str, list[Tensor]] = {name: [] for name in trivial}
    for predicted, mask in predictions:
        spreads.append(spread(predicted))
        own.append(_errors(predicted - mask.gather_target(targets)))
        for name, residual in trivial.items():
            others[name].append(_errors(mask.gather_target(residual)))
    values = {"predictor_std": torch.stack(spreads).mean()}
    for name, errors in others.items():
        other = torch.stack(errors).mean(dim=0).clamp(min=_TINY)
        squared, absolute = 1 - torch.stack(own).mean(dim=0) / other
        values[f"explained_vs_{name}"] = squared
        values[f"explained_absolute_vs_{name}"] = absolute
    return values


def _errors(difference: Tensor) -> Tensor:
    """Mean squared and mean absolute value: [..., D] -> [2]."""
    return torch.stack([difference.square().mean(), difference.abs().mean()])


def parameter_distance(student: nn.Module, teacher: nn.Module) -> Tensor:
    """Distance of two modules' weights, divided by the norm of the first: float32 scalar."""
    pairs = zip(student.parameters(), teacher.parameters(), strict=True)
    squares = [
        torch.stack([(a - b).float().square().sum(), a.float().square().sum()]) for a, b in pairs
    ]
    difference, norm = torch.stack(squares).sum(dim=0)
    return torch.sqrt(difference / norm.clamp(min=_TINY))


def mask_counts(masks: Sequence[TokenMasks], targets: Tensor) -> dict[str, Tensor]:
    """Mean tokens a clip, and shares of the N tokens, of each mask; `targets` is [B, N, D]."""
    num_tokens = targets.shape[1]
    values = {}
    for kind, mask in enumerate(masks):
        for side, count in (("context", mask.num_context_mean), ("target", mask.num_target_mean)):
            values[f"{side}_tokens/mask_{kind}"] = torch.tensor(count)
            values[f"{side}_share/mask_{kind}"] = torch.tensor(count / num_tokens)
    return values


def collapse_alarm(history: Sequence[Mapping[str, float]]) -> str | None:
    """A warning in words if the newest health report, of all so far, looks like a collapse.

    Three signs, two of them against the run's own past; values missing or not finite are passed
    over:

    1. ``effective_rank``, ``target_std`` or ``target_std_between_clips`` is below half of its
       highest value so far (a third, if much is explained), while the ``loss`` is lower than it
       was then; the rank only if it is poor, since random features of a fresh network are rich.
    2. ``pairwise_cosine`` is above 0.95, and at least 0.1 above its lowest value so far, so that
       a network that starts with similar features is not accused of having become so; and the
       rank is poor, since features with one large common part can still differ in many ways: a
       healthy run of the demo has a cosine of 0.94 and a rank of 9.
    3. ``target_std`` is below 0.5, so that three quarters of what is to be predicted are the same
       for all tokens, and the rank is poor: a collapse from the first update on, which has no
       better past to be told from.

    Much is explained if ``explained_vs_position_mean`` is above 0.4. A rank is poor below 5, or, if
    much is explained, below 3.9, and above 0.55 below 3: encoders 64 and 96 wide were seen to learn
    while it fell from 10 to 4, and to begin at 3.4.
    """
    if not history:
        return None
    newest = history[-1]
    explained = newest.get("explained_vs_position_mean", -math.inf)
    std, rank = newest.get("target_std", math.inf), newest.get("effective_rank", math.inf)
    is_poor = rank < next((poor for much, poor in _POOR_RANKS if explained > much), _POOR_RANK)
    largest_fall = _LARGEST_FALL_EXPLAINED if explained > _MUCH_EXPLAINED else _LARGEST_FALL
    for name in ("effective_rank", "target_std", "target_std_between_clips"):
        known = [report for report in history if math.isfinite(report.get(name, math.nan))]
        if not known or known[-1] is not newest:
            continue
        best = max(known, key=lambda report: report[name])
        fallen = newest[name] < largest_fall * best[name] and (is_poor or name != "effective_rank")
        if fallen and newest.get("loss", math.nan) < best.get("loss", math.nan):
            return (
                f"the features may be collapsing: {name} fell from {best[name]:.3g} to "
                f"{newest[name]:.3g} while the loss fell from {best['loss']:.4g} to "
                f"{newest['loss']:.4g}; a higher EMA momentum or a lower learning rate may help"
            )
    cosine = newest.get("pairwise_cosine", math.nan)
    lowest = min(report.get("pairwise_cosine", math.inf) for report in history)
    if cosine > _HIGH_COSINE and cosine > lowest + _COSINE_RISE and is_poor:
        return (
            f"the features may be collapsing: those of different clips are nearly the same, their "
            f"mean cosine rose from {lowest:.3g} to {cosine:.3g}; a higher EMA momentum or a lower "
            "learning rate may help"
        )
    if std < _POOR_STD and is_poor:
        return (
            f"the features tell little: those of all clips are nearly the same (target_std "
            f"{std:.3g}, effective_rank {rank:.3g}; a healthy run has more than {_POOR_STD:g} and "
            f"{_POOR_RANK:g}); on dark or pale videos begin anew with data.normalisation measured, "
            "else with a lower learning rate or a larger model.encoder.patch_init_std"
        )
    return None


def reports_to_keep(reports: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Those of a run's reports that an alarm can ask for: the newest, and each value's extremes.

    A checkpoint holds them, and must not grow with the length of the run.
    """
    kept = {id(reports[-1])}
    for name in {name for report in reports for name in report}:
        known = [report for report in reports if name in report]
        kept |= {id(choose(known, key=lambda report: report[name])) for choose in (min, max)}
    return [report for report in reports if id(report) in kept]
