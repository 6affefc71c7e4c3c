"""SIGReg: its value where it is known, its gradient, and what it does to a collapse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.models.tiny import ENCODER, MODEL, clips, shaken
from torch.testing import assert_close

from vjepa.masking import MaskingConfig, MaskSampler
from vjepa.models import VJEPA
from vjepa.runtime.distributed import ProcessGroup
from vjepa.tasks import BatchSize, FeaturePrediction
from vjepa.tasks.sigreg import draw_directions, sigreg

ALONE = ProcessGroup()
EXPECTED = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)
"""Of a Gaussian sample: the integral of (1 - exp(-t^2)) exp(-t^2 / 2)."""


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_directions_are_unit_vectors_that_follow_from_seed_and_step() -> None:
    drawn = draw_directions(2000, 8, seed=3, step=5)
    assert_close(drawn.norm(dim=1), torch.ones(2000))
    assert drawn.mean(dim=0).abs().max() < 0.05  # standard error .008
    assert_close(drawn.T @ drawn / 2000, torch.eye(8) / 8, atol=0.02, rtol=0)
    assert torch.equal(drawn, draw_directions(2000, 8, 3, 5))
    for other in ((4, 5), (3, 6)):
        assert not torch.equal(drawn, draw_directions(2000, 8, *other))


@pytest.mark.parametrize("count", [20, 200])
def test_of_gaussian_samples_it_is_what_is_expected_at_any_number(count: int) -> None:
    directions = draw_directions(64, 16, 0, 0).double()
    values = [sigreg(_normal(count, 16, seed=n), directions, ALONE).item() for n in range(100)]
    error = np.std(values) / math.sqrt(len(values))
    assert error < 0.05
    assert np.mean(values) == pytest.approx(EXPECTED, abs=4 * error)


def test_what_is_not_gaussian_is_far_and_farther_with_more_samples() -> None:
    directions = draw_directions(64, 16, 0, 0).double()
    few, many = (
        {
            "collapsed": torch.zeros(count, 16).double(),
            "one direction": _normal(count, 1) @ _normal(1, 16, seed=1),
            "shifted": _normal(count, 16) + 1,
            "narrow": 0.5 * _normal(count, 16),
            "two clusters": _normal(count, 16).sign() * 1.0,
        }
        for count in (100, 1000)
    )
    for name in few:
        small, large = (sigreg(x[name], directions, ALONE).item() for x in (few, many))
        if name != "two clusters":  # of 16 signs the sum is nearly Gaussian: by the axes it is not
            assert small > 2 * EXPECTED, name
            assert large == pytest.approx(10 * small, rel=0.35), name
    axes = torch.eye(16).double()
    assert sigreg(few["two clusters"], axes, ALONE) > 5 * EXPECTED
    # Constant samples at 0: the integral of (1 - exp(-t^2 / 2))^2 exp(-t^2 / 2), times N.
    integral = math.sqrt(2 * math.pi) * (1 - 2 / math.sqrt(2) + 1 / math.sqrt(3))
    found = sigreg(few["collapsed"], directions, ALONE).item()
    assert found == pytest.approx(100 * integral, rel=1e-3)


def test_the_trapezoid_rule_has_17_points_from_minus_5_to_5() -> None:
    samples, directions = _normal(7, 3), draw_directions(5, 3, 0, 0).double()
    t = torch.linspace(-5, 5, 17, dtype=torch.float64)
    found = torch.exp(1j * t * (samples @ directions.T)[..., None]).mean(dim=0)
    error = (found - torch.exp(-t.square() / 2)).abs().square() * torch.exp(-t.square() / 2)
    assert_close(sigreg(samples, directions, ALONE), 7 * torch.trapezoid(error, t).mean())


def test_sets_of_samples_are_averaged_and_autocast_leaves_it_alone() -> None:
    samples, directions = _normal(3, 20, 4), draw_directions(6, 4, 0, 0).double()
    alone = torch.stack([sigreg(one, directions, ALONE) for one in samples])
    assert_close(sigreg(samples, directions, ALONE), alone.mean())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(sigreg(samples, directions, ALONE), alone.mean())


def test_gradient_against_finite_differences() -> None:
    samples, directions = _normal(6, 3).requires_grad_(), draw_directions(5, 3, 0, 0).double()
    assert torch.autograd.gradcheck(lambda x: sigreg(x, directions, ALONE), (samples,))


def test_following_the_gradient_makes_collapsed_samples_gaussian() -> None:
    samples = (0.01 * _normal(100, 4)).requires_grad_()
    optimizer = torch.optim.Adam([samples], lr=0.1)
    for step in range(200):
        optimizer.zero_grad()
        sigreg(samples, draw_directions(32, 4, 0, step).double(), ALONE).backward()
        optimizer.step()
    found = samples.detach()
    assert_close(torch.cov(found.T), torch.eye(4).double(), atol=0.15, rtol=0)
    assert sigreg(found, draw_directions(200, 4, 1, 0).double(), ALONE) < EXPECTED


@pytest.mark.parametrize("count", ["fixed", "packed"])
def test_as_a_penalty_of_feature_prediction_it_is_that_of_all_visible_tokens(count: str) -> None:
    model = shaken(VJEPA(MODEL))
    task = FeaturePrediction(model, sigreg_coefficient=0.5, seed=3)
    plain = FeaturePrediction(model)
    masks = MaskSampler(MaskingConfig(count=count), ENCODER.grid, 2, 0).sample(np.arange(3), 0)
    directions = draw_directions(256, ENCODER.width, 3, 0)
    size = BatchSize.of(masks)
    sketched = replace(size, directions=directions)
    found, without = task(clips(), masks, sketched), plain(clips(), masks)
    tokens = [task.encode(clips(), mask).reshape(-1, ENCODER.width) for mask in masks]
    wanted = torch.stack([sigreg(x, directions, ALONE) for x in tokens]).mean()
    assert_close(found.terms["sigreg"], wanted.detach())
    assert_close(found.loss, without.loss + 0.5 * wanted)
    assert task.compares_samples
    assert not plain.compares_samples
