"""Seeds are pure functions of run, purpose and ordinal."""

from __future__ import annotations

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
