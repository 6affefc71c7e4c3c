"""The picture and the figures of masks.md: ``python docs/make_mask_picture.py``.

Writes docs/images/masks.png and prints the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from numpy.typing import NDArray

from vjepa.masking import MaskingConfig, MaskSampler, TokenMasks
from vjepa.masking.config import CountMode
from vjepa.reporting.pictures import MIDDLE_GREY

GRID = (8, 14, 14)
STEPS, PLACES = GRID[0], GRID[1] * GRID[2]
BATCH, BATCHES = 24, 400
KINDS = ("short-range", "long-range")
MODES: tuple[CountMode, ...] = ("packed", "prefix", "fixed")
ROW_NAMES: dict[CountMode, str] = {
    "packed": "blocks alone\n(packed)",
    "prefix": "prefix",
    "fixed": "fixed",
}
UNUSED, CONTEXT, TARGET = "#88888840", "#3f6fb5", "#e8a33d"
LINES: dict[CountMode, str] = {"prefix": "#b5493f", "fixed": "#2f8f6b"}
PICTURE = Path(__file__).parent / "images" / "masks.png"


def sampler(mode: CountMode) -> MaskSampler:
    """The paper's two masks at 224 px."""
    return MaskSampler(MaskingConfig(count=mode), GRID, 2, seed=0)


def token_roles(masks: TokenMasks, clip: int) -> NDArray[np.int64]:
    """0 unused, 1 context, 2 target, for each token of a clip: int64 [t, h, w]."""
    roles = np.zeros(STEPS * PLACES, dtype=np.int64)
    own = masks.sample(clip)
    roles[own.context[0].numpy()] = 1
    roles[own.target[0].numpy()] = 2
    return roles.reshape(GRID)


def per_step(masks: TokenMasks) -> NDArray[np.int64]:
    """Context and target tokens of a batch in each time step: int64 [2, t]."""
    sides = (masks.context, masks.target)
    return np.stack([np.bincount(s.numpy().ravel() // PLACES, minlength=STEPS) for s in sides])


def measure(mode: CountMode) -> NDArray[np.int64]:
    """Tokens over all batches: int64 [kinds, 2, t]."""
    masks, total = sampler(mode), np.zeros((len(KINDS), 2, STEPS), dtype=np.int64)
    for batch in range(BATCHES):
        ordinals = np.arange(batch * BATCH, (batch + 1) * BATCH)
        total += np.stack([per_step(kind) for kind in masks.sample(ordinals, batch)])
    return total


def left_by_blocks(mode: CountMode) -> NDArray[np.int64]:
    """What the blocks of this mode leave and hide, before counting: int64 [kinds, 2, t]."""
    masks, hidden = sampler(mode), np.zeros((len(KINDS), STEPS), dtype=np.int64)
    for batch in range(BATCHES):
        ordinals = np.arange(batch * BATCH, (batch + 1) * BATCH)
        hidden += masks.full(ordinals, batch).sum(axis=(1, 3, 4))
    return np.stack([BATCHES * BATCH * PLACES - hidden, hidden], axis=1)


def print_tables(survival: Mapping[CountMode, NDArray[np.float64]]) -> None:
    """Shares of all tokens, and survival by time step, as Markdown."""
    for mode in MODES:
        shares = measure(mode).sum(axis=-1) / (BATCHES * BATCH * STEPS * PLACES)
        for kind, (context, target) in zip(KINDS, shares, strict=True):
            print(f"| {mode} | {kind} | {context:.3f} | {target:.3f} |")
    for mode, shares in survival.items():
        for kind, sides in zip(KINDS, shares, strict=True):
            for side, values in zip(("context", "target"), sides, strict=True):
                print(
                    f"| {mode} | {kind} | {side} | " + " | ".join(f"{v:.2f}" for v in values) + " |"
                )


def draw(survival: Mapping[CountMode, NDArray[np.float64]]) -> None:
    """One clip's masks on the left, survival curves on the right."""
    mpl.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    inks = ("text.", "axes.label", "axes.edge", "xtick.", "ytick.")
    mpl.rcParams.update({f"{ink}color": MIDDLE_GREY for ink in inks})
    figure = plt.figure(figsize=(10.5, 5.6), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[2.1, 1])[0]
    axes = left.subplots(len(KINDS) * len(MODES), STEPS)
    colours = ListedColormap([UNUSED, CONTEXT, TARGET])
    batches = {mode: sampler(mode).sample(np.arange(BATCH), 1) for mode in MODES}
    for row, (kind, mode) in enumerate((k, m) for k in range(len(KINDS)) for m in MODES):
        roles = token_roles(batches[mode][kind], 5)
        for step in range(STEPS):
            axis = axes[row, step]
            axis.imshow(roles[step], cmap=colours, vmin=0, vmax=2, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if row == 0:
                axis.set_title(f"step {step}", fontsize=8)
        axes[row, 0].set_ylabel(
            f"{KINDS[kind]}\n{ROW_NAMES[mode]}", rotation=0, ha="right", va="center"
        )
    patches = [Patch(color=TARGET, label="target"), Patch(color=CONTEXT, label="context")]
    patches.append(Patch(color=UNUSED, label="thrown away"))
    left.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False)
    panels = right.subplots(2, 1, sharex=True, sharey=True)
    for kind, axis in enumerate(panels):
        for mode, shares in survival.items():
            for side, style in ((0, "-"), (1, "--")):
                label = f"{mode}, {'context' if side == 0 else 'target'}"
                axis.plot(shares[kind, side], style, color=LINES[mode], label=label)
        axis.set(title=f"{KINDS[kind]}: share kept, by time step", ylim=(0, 1.05))
        axis.grid(color="#88888840")
    panels[0].legend(frameon=False, fontsize=7)
    panels[1].set_xlabel("time step of the token (0 = earliest)")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110, transparent=True)


def main() -> None:
    """Measure, print, draw."""
    modes: tuple[CountMode, ...] = ("prefix", "fixed")
    survival: dict[CountMode, NDArray[np.float64]] = {
        mode: measure(mode) / left_by_blocks(mode) for mode in modes
    }
    print_tables(survival)
    draw(survival)


if __name__ == "__main__":
    main()
