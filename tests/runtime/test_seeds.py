"""Seeds are pure functions of run, purpose and ordinal."""

from __future__ import annotations

import pytest
import torch

from vjepa.runtime.seeds import seed_torch


def _draw(seed: int, purpose: str, ordinal: int) -> list[float]:
    seed_torch(seed, purpose, ordinal)
    return torch.rand(4).tolist()


def test_draws_depend_on_all_three_and_on_nothing_else() -> None:
    first = _draw(1, "step", 5)
    others = [_draw(2, "step", 5), _draw(1, "weights", 5), _draw(1, "step", 6)]
    assert first not in others
    assert len({tuple(draw) for draw in others}) == 3
    assert _draw(1, "step", 5) == first


def test_gpus_in_use_are_seeded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    seed_torch(1, "step", 5)
    assert seeds == [] or torch.cuda.is_initialized()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    seed_torch(1, "step", 5)
    assert seeds[-1] == torch.initial_seed()
