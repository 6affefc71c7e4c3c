"""The moving average against its closed form."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vjepa.training import EmaPairs, update_ema


def _pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    target = copy.deepcopy(online).requires_grad_(False)
    return online, target


@settings(deadline=None, max_examples=30)
@given(momenta=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8))
def test_closed_form(momenta: list[float]) -> None:
    """After n updates: sum of each online state times (1 - m) times all later m."""
    online, target = _pair()
    pairs = EmaPairs.of([(online, target)])
    history = [[p.detach().clone() for p in target.parameters()]]
    weights = [1.0]
    for momentum in momenta:
        with torch.no_grad():
            for parameter in online.parameters():
                parameter.add_(torch.randn_like(parameter))
        history.append([p.detach().clone() for p in online.parameters()])
        weights = [weight * momentum for weight in weights] + [1.0 - momentum]
        update_ema(pairs, momentum)
    for index, found in enumerate(target.parameters()):
        states = zip(weights, history, strict=True)
        expected = sum(weight * state[index] for weight, state in states)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)


def test_constant_online_is_approached_geometrically() -> None:
    online, target = _pair()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(1.0)
    for _ in range(5):
        update_ema(EmaPairs.of([(online, target)]), 0.9)
    for o, t in zip(online.parameters(), target.parameters(), strict=True):
        torch.testing.assert_close(t - o, torch.full_like(t, 0.9**5))


def test_pairs_survive_wrapping_of_the_online_module() -> None:
    """A wrapper that prefixes names must not detach the average from its weights."""
    online, target = _pair()
    pairs = EmaPairs.of([(online, target)])
    wrapped = nn.ModuleDict({"_orig_mod": online})
    with torch.no_grad():
        for parameter in wrapped.parameters():
            parameter.zero_()
    update_ema(pairs, 0.0)
    assert all(not parameter.any() for parameter in target.parameters())


def test_online_weights_and_gradients_are_untouched() -> None:
    online, target = _pair()
    before = copy.deepcopy(online.state_dict())
    update_ema(EmaPairs.of([(online, target)]), 0.5)
    assert all(torch.equal(value, before[name]) for name, value in online.state_dict().items())
    assert all(parameter.requires_grad for parameter in online.parameters())


def test_no_pairs_is_no_work() -> None:
    update_ema(EmaPairs.of([]), 0.9)


def test_unequal_modules_are_refused() -> None:
    with pytest.raises(ValueError, match="differ"):
        EmaPairs.of([(nn.Linear(2, 3), nn.Linear(3, 2).requires_grad_(False))])


def test_target_with_gradients_is_refused() -> None:
    with pytest.raises(ValueError, match="must not take gradients"):
        EmaPairs.of([(nn.Linear(2, 3), nn.Linear(2, 3))])
