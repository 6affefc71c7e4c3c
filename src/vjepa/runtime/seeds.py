"""Seeding torch as a pure function of (seed, purpose, step)."""

from __future__ import annotations

import torch

from vjepa.counter_random import derive_seed


def seed_torch(seed: int, purpose: str, ordinal: int = 0) -> None:
    """Seed torch's generators of the CPU and of the GPUs in use.

    A training step seeds with its own number, so that dropout and the like depend on the step
    alone and a resumed run draws what the uninterrupted one would have drawn.

    Args:
        seed: The run's seed, any integer.
        purpose: What the draws are for, for example ``"weights"`` or ``"step"``.
        ordinal: Which one, for example the number of the update.
    """
    value = derive_seed(seed, purpose, ordinal)
    torch.default_generator.manual_seed(value)
    # torch.manual_seed would also queue a call, with a formatted stack trace, for each kind of
    # device that is not in use: half a millisecond a step.
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)
