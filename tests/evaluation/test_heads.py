"""Heads that are trained, that remember, and that are fitted in closed form."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vjepa.errors import UserError
from vjepa.evaluation.heads import (
    HeadConfig,
    NearestMean,
    NearestNeighbours,
    ProbeHeads,
    RidgeHead,
    build_head,
    fit_ridge,
    pool_tokens,
    to_compare,
)

FORMS = [
    HeadConfig(),
    HeadConfig(variant="paper"),
    HeadConfig(depth=3),
    HeadConfig(variant="paper", depth=2, num_heads=1),
    HeadConfig(variant="released_2", depth=2),
    HeadConfig(kind="linear"),
    HeadConfig(kind="linear", norm=False),
]


def _heads(config: HeadConfig, count: int) -> ProbeHeads:
    torch.manual_seed(0)
    heads = ProbeHeads([build_head(config, 12, 3, 5) for _ in range(count)])
    with torch.no_grad():  # no parameter at 0 or 1, so that none can be forgotten
        for parameter in heads.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return heads


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels)


@pytest.mark.parametrize("config", FORMS, ids=str)
def test_joint_computation_equals_each_head_alone(config: HeadConfig) -> None:
    heads = _heads(config, 3).double()
    tokens = torch.randn(4, 7, 12, dtype=torch.float64)
    labels = torch.tensor([0, 4, 2, 2])
    joint = heads(tokens)
    assert joint.shape == (3, 4, 5)
    torch.stack([_loss(row, labels) for row in joint]).sum().backward()
    gradients = {name: p.grad for name, p in heads.named_parameters()}
    heads.zero_grad(set_to_none=True)
    for index, head in enumerate(heads.heads):
        alone = head(tokens)
        assert torch.allclose(alone, joint[index], atol=1e-12)
        _loss(alone, labels).backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None
        assert gradients[name] is not None, name
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-12), name
        assert float(parameter.grad.abs().max()) > 0.0, name


def test_features_kept_in_bfloat16_are_read_in_float32() -> None:
    heads = _heads(HeadConfig(), 1)
    tokens = torch.randn(2, 7, 12).to(torch.bfloat16)
    assert heads(tokens).dtype == torch.float32
    assert torch.equal(heads(tokens), heads(tokens.float()))


def test_heads_of_several_forms_are_computed_each_by_its_own_kind() -> None:
    torch.manual_seed(0)
    forms = [HeadConfig(kind="linear"), HeadConfig(), HeadConfig(depth=2)]
    heads = ProbeHeads([build_head(form, 12, 3, 5) for form in forms for _ in range(2)])
    tokens = torch.randn(4, 7, 12)
    for joint, head in zip(heads(tokens), heads.heads, strict=True):
        torch.testing.assert_close(joint, head(tokens), atol=1e-5, rtol=0.0)
    assert list(heads.trainable())[:2] == ["head_00", "head_01"]
    assert len(heads) == 6
    with pytest.raises(ValueError, match="at least one"):
        ProbeHeads([])


def test_number_of_attention_heads_is_the_encoders_by_default() -> None:
    head = build_head(HeadConfig(), 12, 4, 5)
    assert isinstance(head.pooler, nn.Module)
    assert head.pooler.heads == 4
    assert build_head(HeadConfig(num_heads=2), 12, 4, 5).pooler.heads == 2
    with pytest.raises(ValueError, match="heads"):
        build_head(HeadConfig(num_heads=5), 12, 4, 5)


VECTORS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [-1.0, 0.0]])
LABELS = torch.tensor([0, 1, 1, 2])


def _with_mean(vector: list[float]) -> torch.Tensor:
    """[1, 2, D] whose mean is the vector."""
    middle = torch.tensor(vector)
    return torch.stack([middle + 1.0, middle - 1.0])[None]


def test_votes_are_weighted_by_similarity() -> None:
    head = NearestNeighbours(2, 3, neighbours=3, temperature=0.5, num_stored=4)
    head.fit(VECTORS, LABELS)
    shares = head(_with_mean([1.0, 1.0])).exp()[0]
    # Cosines: sqrt(1/2) to the first three, of which two are of class 1.
    assert torch.allclose(shares, torch.tensor([1 / 3, 2 / 3, 0.0]), atol=1e-6)
    nearest = NearestNeighbours(2, 3, neighbours=1, temperature=0.5, num_stored=4)
    nearest.fit(VECTORS, LABELS)
    assert int(nearest(_with_mean([-5.0, 0.1])).argmax()) == 2
    more = NearestNeighbours(2, 3, neighbours=99, temperature=0.1, num_stored=4)
    more.fit(VECTORS, LABELS)  # more neighbours than videos
    weights = torch.tensor([math.exp(10.0), 2.0, math.exp(-10.0)])
    found = more(_with_mean([3.0, 0.0])).exp()[0]
    assert torch.allclose(found, weights / weights.sum(), atol=1e-6)


def test_the_mean_is_of_directions_and_lengths_do_not_matter() -> None:
    head = NearestMean(2, 3, temperature=0.1)
    head.fit(VECTORS, LABELS)
    assert torch.allclose(head.means, torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    logits = head(_with_mean([3.0, 4.0]))
    assert torch.allclose(logits, torch.tensor([[6.0, 8.0, -6.0]]))
    assert torch.allclose(head(_with_mean([30.0, 40.0])), logits)
    head = NearestMean(2, 1, temperature=1.0)
    head.fit(torch.tensor([[100.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    assert torch.allclose(head.means[0], F.normalize(torch.tensor([1.0, 1.0]), dim=0))


def _clusters(count: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.randn(3, 10, generator=torch.Generator().manual_seed(5))
    return centres[labels] + noise * torch.randn(count, 10, generator=generator), labels


def test_weights_solve_the_ridge_equations() -> None:
    features, labels = _clusters(40, 0.5)
    fitted = fit_ridge(features, labels, 3)
    standard = (features.double() - fitted.mean) / fitted.scale
    targets = torch.nn.functional.one_hot(labels, 3).double() - fitted.bias
    gram = standard.T @ standard + 40 * fitted.penalty * torch.eye(10, dtype=torch.float64)
    assert torch.allclose(fitted.weight, torch.linalg.solve(gram, standard.T @ targets), atol=1e-10)


def test_penalty_is_the_one_with_the_least_leave_one_out_error() -> None:
    """Against n explicit refits at neighbouring penalties, mean and scale held."""
    features, labels = _clusters(15, 1.5)
    fitted = fit_ridge(features, labels, 3)
    standard = (features.double() - fitted.mean) / fitted.scale
    targets = torch.nn.functional.one_hot(labels, 3).double()

    def explicit(penalty: float) -> float:
        total = 0.0
        for row in range(15):
            keep = torch.arange(15) != row
            x = torch.cat([standard[keep], torch.ones(14, 1, dtype=torch.float64)], dim=1)
            ridge = 15 * penalty * torch.eye(11, dtype=torch.float64)
            ridge[10, 10] = 0.0
            weight = torch.linalg.solve(x.T @ x + ridge, x.T @ targets[keep])
            guess = torch.cat([standard[row], torch.ones(1, dtype=torch.float64)]) @ weight
            total += float((targets[row] - guess).square().sum())
        return total

    own = explicit(fitted.penalty)
    assert own <= explicit(fitted.penalty * 10**0.5) + 1e-9
    assert own <= explicit(fitted.penalty / 10**0.5) + 1e-9


def test_separable_classes_are_found_and_noise_is_not() -> None:
    features, labels = _clusters(60, 0.2)
    fresh, truth = _clusters(90, 0.2, seed=1)
    fitted = fit_ridge(features, labels, 3)
    assert float((fitted.scores(fresh).argmax(1) == truth).double().mean()) > 0.95
    noise = torch.randn(60, 10, generator=torch.Generator().manual_seed(2))
    guess = fit_ridge(noise, labels, 3).scores(fresh).argmax(1)
    assert float((guess == truth).double().mean()) < 0.7


def test_more_features_than_rows_and_constant_features() -> None:
    features = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    features[:, 0] = 3.0
    fitted = fit_ridge(features, torch.arange(8) % 2, 2)
    assert torch.isfinite(fitted.scores(features)).all()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        fit_ridge(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), 2)
    with pytest.raises(ValueError, match="finite"):
        fit_ridge(torch.full((4, 3), float("nan")), torch.zeros(4, dtype=torch.long), 2)


def test_ridge_in_the_space_of_rows_is_the_same_classifier() -> None:
    """More features than rows; against the solution of the normal equations."""
    torch.manual_seed(0)
    data, labels = torch.randn(30, 50, dtype=torch.float64), torch.arange(30) % 3
    found = fit_ridge(data, labels, 3)
    standard = (data - data.mean(0)) / data.std(0, correction=0)
    targets = F.one_hot(labels, 3).double()
    system = standard.T @ standard + found.penalty * 30 * torch.eye(50, dtype=torch.float64)
    weight = torch.linalg.solve(system, standard.T @ (targets - targets.mean(0)))
    torch.testing.assert_close(found.weight, weight, atol=1e-10, rtol=1e-8)


def test_pooled_tokens_are_means_of_stretches_in_order() -> None:
    tokens = torch.arange(24.0).reshape(1, 6, 4)
    assert torch.equal(pool_tokens(tokens, 1), tokens.mean(1))
    assert torch.equal(pool_tokens(tokens, 6), tokens.flatten(1))
    steps = torch.cat([tokens[:, :3].mean(1), tokens[:, 3:].mean(1)], dim=1)
    assert torch.equal(pool_tokens(tokens, 2), steps)


def test_ridge_on_all_tokens_sees_what_the_mean_hides() -> None:
    """The class is the sign of one token, and another's is its opposite."""
    torch.manual_seed(0)
    labels = torch.arange(80) % 2
    tokens = 0.1 * torch.randn(80, 4, 8)
    tokens[:, 1, 0] += 2 * labels - 1
    tokens[:, 3, 0] -= 2 * labels - 1
    right = {}
    for groups in (1, 2, 4):
        head = build_head(HeadConfig(kind="ridge", pool="all"), 8, 2, 2, groups)
        assert isinstance(head, RidgeHead)
        head.fit(pool_tokens(tokens[:40], groups), labels[:40])
        logits = head(tokens[40:])
        right[groups] = float((logits.argmax(1) == labels[40:]).double().mean())
        if groups == 4:
            assert float(F.cross_entropy(logits, labels[40:])) < 0.1, "sure where it is right"
    assert right[1] < 0.8
    assert right[2] == right[4] == 1.0


def test_ridge_on_too_many_numbers_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vjepa.evaluation.heads.MOST_RIDGE_NUMBERS", 100)
    with pytest.raises(UserError, match=r"use probe\.pool steps or mean"):
        fit_ridge(torch.zeros(3, 50), torch.tensor([0, 1, 0]), 2)


def test_only_ridge_has_a_pool() -> None:
    with pytest.raises(ValueError, match=r"pool: a linear probe has none"):
        HeadConfig(kind="linear", pool="all")


def test_heads_that_differ_in_their_formula_alone_are_kept_apart() -> None:
    """Blocks over the query and blocks over the tokens have the same names and shapes."""
    torch.manual_seed(0)
    forms = [HeadConfig(depth=2), HeadConfig(variant="released_2", depth=2)]
    heads = ProbeHeads([build_head(form, 12, 3, 5) for form in forms])
    heads[1].load_state_dict(heads[0].state_dict())
    tokens = torch.randn(4, 7, 12)
    joint = heads(tokens)
    for index in (0, 1):
        assert torch.allclose(joint[index], heads[index](tokens), atol=1e-6)
    assert float((joint[0] - joint[1]).abs().max().detach()) > 1e-4  # fresh weights are small


def test_what_varies_most_does_not_decide_what_is_alike() -> None:
    """Three numbers vary ten times as much as the two that the class is in."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    angle = labels * math.pi / 2
    told = torch.stack([angle.cos(), angle.sin()], 1) + 0.2 * torch.randn(
        200, 2, generator=generator
    )
    features = torch.cat([10 * torch.randn(200, 3, generator=generator), told], 1) + 3.0

    def same_class(rows: torch.Tensor) -> float:
        unit = F.normalize(rows, dim=1)
        alike = unit @ unit.T - 2 * torch.eye(len(rows))
        return float((labels[alike.argmax(1)] == labels).float().mean())

    mean, weights = to_compare(features)
    assert same_class((features - mean) @ weights) > 0.8
    assert same_class(features - mean) < 0.5
    alone, weights = to_compare(features[:1])
    assert torch.isfinite((features - alone) @ weights).all()
