"""A config with every kind of field that the mechanism knows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vjepa.config import config_dataclass


@config_dataclass
class Optim:
    """Optimiser."""

    steps: int
    """Number of updates."""
    peak_lr: float = 1e-3
    """Largest learning rate,
    reached after warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    fused: bool = False

    def __post_init__(self) -> None:
        if self.peak_lr <= 0:
            raise ValueError(f"peak_lr must be positive, got {self.peak_lr}")
        if self.betas[0] > self.betas[1]:
            raise ValueError("betas must ascend")
        if self.steps == 13:
            raise ValueError("an unlucky choice")


@config_dataclass
class Mask:
    """One mask kind."""

    TEXT_MEANS = "kind"

    kind: Literal["multiblock", "tube"] = "multiblock"
    """shape of the mask,
    in two lines."""
    num_blocks: int = 8
    """how many blocks."""


@config_dataclass
class Masking:
    """Masks."""

    masks: tuple[Mask, ...] = (Mask(), Mask(num_blocks=2))
    count: Literal["prefix", "fixed"] = "prefix"


@config_dataclass
class Root:
    """The root."""

    optim: Optim
    masking: Masking = Masking(count="fixed")
    probe: Mask | None = None
    """The probe, if any."""
    name: str | None = None
    folder: Path = Path("out")
    device: Literal["auto", "cpu"] | int = "auto"
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name == "bad" and self.optim.fused:
            raise ValueError("optim.fused: cannot go with this name")
        if self.name == "tubes" and self.masking.masks[1].kind != "tube":
            raise ValueError("masking.masks[1].kind must be tube for this name")
