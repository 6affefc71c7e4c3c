from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from vjepa.masking import TokenMasks
from vjepa.models import Encoder, EncoderConfig, InputConfig
from vjepa.tasks import collapse_alarm
from vjepa.tasks.health import (
    effective_rank,
    mask_counts,
    parameter_distance,
    prediction_health,
    representation_health,
    spread,
)
from vjepa.tasks.masked_prediction import normalise_features

MASK = TokenMasks(
    context=torch.tensor([[0, 1]] * 4),
    target=torch.tensor([[2, 3, 4], [1, 3, 5], [3, 4, 5], [0, 1, 2]]),
)


def _targets(batch: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 6, 8, generator=generator) + torch.randn(6, 8, generator=generator)


def test_spread() -> None:
    features = torch.tensor([[[0.0, 5.0], [2.0, 5.0]], [[0.0, 5.0], [2.0, 5.0]]])
    assert spread(features) == pytest.approx(0.5)
    assert spread(torch.ones(3, 4, 5)) == 0


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_effective_rank_counts_equal_directions(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(10, rank, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(8, rank, generator=generator))
    assert effective_rank(left @ right.T) == pytest.approx(rank, rel=1e-3)


def test_effective_rank_of_nothing_is_one() -> None:
    assert effective_rank(torch.zeros(4, 8)) == 1


def test_collapsed_features() -> None:
    health = representation_health(torch.ones(4, 6, 8))
    assert health["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert health["pairwise_cosine"] == pytest.approx(1, abs=1e-5)
    assert health["target_std_between_clips"] == 0


def test_features_that_only_tell_the_position() -> None:
    features = _targets()[:1].expand(4, -1, -1)
    assert spread(features) > 0.5
    assert representation_health(features)["target_std_between_clips"] == pytest.approx(0, abs=1e-6)


def test_pairwise_cosine_is_the_mean_over_pairs() -> None:
    features = _targets()
    pooled = features.mean(dim=1)
    pairs = [
        torch.cosine_similarity(pooled[i], pooled[j], dim=0)
        for i in range(4)
        for j in range(4)
        if i != j
    ]
    expected = float(torch.stack(pairs).mean())
    assert representation_health(features)["pairwise_cosine"] == pytest.approx(expected, abs=1e-5)


def test_one_clip_compares_with_nothing() -> None:
    assert representation_health(_targets(batch=1)) == {}


def _explained(predict: Tensor, targets: Tensor) -> dict[str, float]:
    health = prediction_health(targets, [(MASK.gather_target(predict), MASK)] * 2)
    return {name: float(value) for name, value in health.items()}


def test_perfect_prediction_explains_all() -> None:
    explained = _explained(_targets(), _targets())
    assert explained["predictor_std"] == pytest.approx(
        float(spread(MASK.gather_target(_targets())))
    )
    assert len(explained) == 5
    assert all(v == 1 for name, v in explained.items() if name.startswith("explained"))


def test_trivial_predictors_explain_nothing() -> None:
    targets = _targets()
    mean_token = targets.mean(dim=(0, 1)).expand(4, 6, -1)
    explained = _explained(mean_token, targets)
    assert explained["explained_vs_mean_token"] == pytest.approx(0, abs=1e-6)
    assert explained["explained_absolute_vs_mean_token"] == pytest.approx(0, abs=1e-6)
    assert explained["explained_vs_position_mean"] < -0.04
    others = (targets.sum(dim=0) - targets) / 3
    explained = _explained(others, targets)
    assert explained["explained_vs_position_mean"] == pytest.approx(0, abs=1e-5)
    assert explained["explained_absolute_vs_position_mean"] == pytest.approx(0, abs=1e-5)


def test_half_the_error_explains_three_quarters_of_the_variance() -> None:
    targets = _targets()
    halfway = (targets + targets.mean(dim=(0, 1))) / 2
    explained = _explained(halfway, targets)
    assert explained["explained_vs_mean_token"] == pytest.approx(0.75)
    assert explained["explained_absolute_vs_mean_token"] == pytest.approx(0.5)


def test_parameter_distance() -> None:
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    teacher.load_state_dict(student.state_dict())
    with torch.no_grad():
        assert parameter_distance(student, teacher) == 0
        for weight in teacher.parameters():
            weight.mul_(1.5)
        assert parameter_distance(student, teacher) == pytest.approx(0.5)


def test_mask_counts() -> None:
    counts = {name: float(value) for name, value in mask_counts([MASK], _targets()).items()}
    assert counts == {
        "context_tokens/mask_0": 2,
        "context_share/mask_0": pytest.approx(1 / 3),
        "target_tokens/mask_0": 3,
        "target_share/mask_0": 0.5,
    }


def _report(**values: float) -> dict[str, float]:
    healthy = {"loss": 0.5, "effective_rank": 20.0, "target_std": 0.8, "pairwise_cosine": 0.4}
    return healthy | values


@pytest.mark.parametrize(
    "run",
    [
        [],
        [_report()],
        [_report(loss=0.5 - 0.01 * step, effective_rank=20 - 0.3 * step) for step in range(30)],
        # A fall with a rising loss is learning.
        [_report(), _report(effective_rank=5.0, loss=0.7)],
        # Features that start alike are not accused.
        [_report(pairwise_cosine=0.99), _report(pairwise_cosine=0.97)],
        # Missing values, and those that are not finite, are passed over.
        [_report(effective_rank=math.nan), {"loss": 0.4, "target_std": 0.7}],
        [_report(), {"loss": 0.4}, _report(effective_rank=math.nan, loss=0.1)],
        [_report(), {"loss": 0.1}],
    ],
)
def test_a_healthy_run_raises_no_alarm(run: list[dict[str, float]]) -> None:
    assert collapse_alarm(run) is None


@pytest.mark.parametrize("name", ["effective_rank", "target_std", "target_std_between_clips"])
def test_a_fall_with_the_loss_raises_the_alarm(name: str) -> None:
    run = [_report(**{name: 2.0}), _report(**{name: 3.0}), _report(**{name: 1.4}, loss=0.4)]
    message = collapse_alarm(run)
    assert message is not None
    assert f"{name} fell from 3 to 1.4 while the loss fell from 0.5 to 0.4" in message
    assert collapse_alarm(run[:2]) is None
    assert collapse_alarm([*run[:2], _report(**{name: 1.6}, loss=0.4)]) is None


def test_features_that_become_alike_raise_the_alarm() -> None:
    alike = {"pairwise_cosine": 0.97, "loss": 0.9}
    message = collapse_alarm([_report(), _report(**alike, effective_rank=3.0)])
    assert message is not None
    assert "mean cosine rose from 0.4 to 0.97" in message
    # One large part in common, and many ways to differ.
    assert collapse_alarm([_report(), _report(**alike, effective_rank=12.0)]) is None


# (target_std, effective_rank) of real runs of the demo recipe: VizDoom clips (32 pixels, mean .20
# .17 .15) every 100 updates under ImageNet's normalisation; the same under the measured one; the
# synthetic set every 200 updates under ImageNet's and the measured one (2026-11-28, docs/log.md).
COLLAPSED_AT_ONCE = [
    *((0.465, 4.4), (0.421, 4.0), (0.455, 3.0), (0.362, 3.0), (0.415, 3.7), (0.328, 3.1)),
    *((0.476, 3.7), (0.404, 3.9), (0.39, 3.7)),
]
HEALTHY = [
    [(0.929, 9.9), (0.937, 10.9), (0.919, 11.0), (0.853, 10.9), (0.737, 10.4), (0.662, 11.0)],
    [(0.849, 10.2), (0.743, 8.6), (0.674, 7.9), (0.653, 8.2), (0.623, 8.3), (0.61, 8.6)],
    [(0.95, 16.1), (0.869, 14.9), (0.828, 14.1), (0.792, 13.7), (0.76, 13.1), (0.752, 12.6)],
]


# (target_std, effective_rank, pairwise_cosine, explained_vs_position_mean) every 500 updates of two
# runs with wider first weights that learnt: the synthetic set (ImageNet's numbers), and garments.
# Last VizDoom under ImageNet's numbers every 100 updates, which is told (2026-11-29, docs/log.md).
WIDE_WEIGHTS = [
    [(0.31, 3.43, 0.992, 0.62), (0.234, 4.09, 0.99, 0.62), (0.269, 5.3, 0.973, 0.72)],
    [(0.414, 3.92, 0.98, 0.67), (0.254, 3.86, 0.987, 0.6), (0.261, 4.68, 0.974, 0.7)],
]
DARK = [(0.395, 4.72, 0.944, -1.95), (0.336, 3.75, 0.94, -0.05), (0.311, 3.88, 0.957, 0.48)]


def _reports(run: list[tuple[float, float, float, float]]) -> list[dict[str, float]]:
    names = ("target_std", "effective_rank", "pairwise_cosine", "explained_vs_position_mean")
    return [_report(**dict(zip(names, report, strict=True))) for report in run]


def test_wider_first_weights_raise_no_alarm_where_the_predictor_explains_much() -> None:
    for run in WIDE_WEIGHTS:
        reports = _reports(run)
        assert not [n for n in range(len(reports)) if collapse_alarm(reports[: n + 1])]
    assert all(collapse_alarm([report]) for report in _reports(DARK))


def test_a_collapse_from_the_first_update_on_is_told_at_the_first_report() -> None:
    for std, rank in COLLAPSED_AT_ONCE:
        message = collapse_alarm([_report(target_std=std, effective_rank=rank)])
        assert message is not None
        assert "data.normalisation measured" in message
    for run in HEALTHY:
        reports = [_report(target_std=std, effective_rank=rank) for std, rank in run]
        assert all(collapse_alarm(reports[: n + 1]) is None for n in range(len(reports)))


@pytest.mark.parametrize("seed", range(3))
def test_dark_clips_need_their_own_normalisation(seed: int) -> None:
    """What the alarm is about: under ImageNet's numbers dark clips are one constant."""
    torch.manual_seed(seed)
    sizes = EncoderConfig(
        width=96, depth=3, heads=3, image_size=32, num_frames=8, patch_size=8, patch_init_std=0.2
    )
    coarse = torch.rand(32, 3, 4, 8, 8)
    clips = (torch.nn.functional.interpolate(coarse, (8, 32, 32)) * 60).to(torch.uint8)
    for how, is_bad in ((InputConfig(), True), (measured_here(clips), False)):
        encoder = Encoder(replace(sizes, input=how)).eval()
        with torch.no_grad():
            targets = normalise_features(encoder(encoder.normalise(clips)))
        report = {**representation_health(targets), "target_std": spread(targets)}
        alarm = collapse_alarm([{name: float(value) for name, value in report.items()}])
        assert (alarm is not None) == is_bad, (how, report)


def measured_here(clips: Tensor) -> InputConfig:
    pixels = clips.float() / 255
    mean, deviation = pixels.mean((0, 2, 3, 4)), pixels.std((0, 2, 3, 4))
    return InputConfig(mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()))
