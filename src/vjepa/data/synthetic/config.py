"""Settings and class names of the synthetic labelled video set."""

from __future__ import annotations

from dataclasses import dataclass

from vjepa.errors import UserError

MOTION_CLASSES: tuple[str, ...] = (
    "move_left",
    "move_right",
    "move_up",
    "move_down",
    "rotate_clockwise",
    "rotate_counterclockwise",
    "approach",
    "recede",
    "pass_in_front",
    "stop_at",
    "turn_back",
)
"""What object A does; the last three relate it to the bystander B."""

APPEARANCE_CLASSES: tuple[str, ...] = tuple(f"digit_{digit}" for digit in range(10))
"""Which handwritten digit object A is."""

SPLITS: tuple[str, ...] = ("train", "validation", "test")
"""Splits share no digit image: a test digit was never seen in training."""


@dataclass(frozen=True)
class SyntheticConfig:
    """Everything that decides the pixels and the labels of a synthetic set.

    The defaults are the setting of the demo. Lengths and speeds are fractions of the frame's
    side, so that the same clip can be drawn at any size.

    Attributes:
        num_clips_train: clips in the training split.
        num_clips_validation: clips in the validation split.
        num_clips_test: clips in the test split.
        num_frames: frames in a clip.
        size: height and width of a frame in pixels; even, since yuv420p demands it.
        fps: frames per second written into the files.
        seed: clip `index` of a split is a pure function of this seed, the split and the index.
        num_distractors: coloured discs that drift across the frame without meaning anything.
        object_size: mean side of the digits A and B.
        travel: mean distance that A covers in a clip in which it moves.
        rotation_degrees: mean angle by which A turns in a clip in which it rotates.
        zoom: mean ratio of A's largest to its smallest size in a clip in which it approaches.
        background_contrast: standard deviation of the background's texture, of a range of 0 to 1.
        background_speed: largest distance by which the background pans in a clip.
        background_grain: cells of the background's finer texture along the frame's side.
        flicker: standard deviation of smooth texture that is new in every frame, like light on
            water: it cannot be predicted, and it covers everything.
        noise: standard deviation of a camera's grain, new in every pixel of every frame.
    """

    num_clips_train: int = 12000
    num_clips_validation: int = 500
    num_clips_test: int = 1500
    num_frames: int = 8
    size: int = 40
    fps: int = 8
    seed: int = 0
    num_distractors: int = 2
    object_size: float = 0.36
    travel: float = 0.42
    rotation_degrees: float = 130.0
    zoom: float = 2.0
    background_contrast: float = 0.15
    background_speed: float = 0.3
    background_grain: int = 10
    flicker: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Refuse impossible settings before any clip is drawn."""
        for name in ("num_clips_train", "num_clips_validation", "num_clips_test"):
            _check(self, name, getattr(self, name) >= 0, "at least 0")
        _check(self, "num_frames", self.num_frames >= 2, "at least 2, or nothing could move")
        _check(self, "size", self.size >= 16 and self.size % 2 == 0, "even and at least 16")
        _check(self, "fps", self.fps >= 1, "at least 1")
        _check(self, "seed", self.seed >= 0, "at least 0")
        _check(self, "num_distractors", self.num_distractors >= 0, "at least 0")
        _check(self, "object_size", 0.1 <= self.object_size <= 0.5, "between 0.1 and 0.5")
        _check(self, "travel", 0.1 <= self.travel <= 0.6, "between 0.1 and 0.6")
        _check(self, "rotation_degrees", 10 <= self.rotation_degrees <= 360, "between 10 and 360")
        _check(self, "zoom", 1.1 <= self.zoom <= 4, "between 1.1 and 4")
        _check(self, "background_contrast", 0 <= self.background_contrast <= 0.5, "0 to 0.5")
        _check(self, "background_speed", 0 <= self.background_speed <= 2, "between 0 and 2")
        _check(self, "background_grain", self.background_grain >= 2, "at least 2")
        _check(self, "flicker", 0 <= self.flicker <= 0.5, "between 0 and 0.5")
        _check(self, "noise", 0 <= self.noise <= 0.5, "between 0 and 0.5")

    def num_clips(self, split: str) -> int:
        """Number of clips of one split."""
        counts = {
            "train": self.num_clips_train,
            "validation": self.num_clips_validation,
            "test": self.num_clips_test,
        }
        if split not in counts:
            raise UserError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
        return counts[split]


def _check(config: SyntheticConfig, name: str, holds: bool, demand: str) -> None:
    if not holds:
        raise UserError(f"synthetic set: {name} is {getattr(config, name)!r}, must be {demand}")
