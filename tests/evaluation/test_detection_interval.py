"""The interval of the mean average precision, against videos that are really drawn and measured."""

from __future__ import annotations

import numpy as np
import pytest

from vjepa.counter_random import derive_seed
from vjepa.data.boxes import LabelledBoxes
from vjepa.evaluation import detection_metric
from vjepa.evaluation.detection_metric import RULES, detection_metrics

_CLASSES = {1: "walk", 2: "sit", 3: "never", 4: "once"}
_VIDEOS = 12


def _boxes(names: list[str], numbers: list[int], *, is_truth: bool) -> LabelledBoxes:
    """What is true, or found, in videos called `names`: of each the boxes of one of 12 numbers."""
    images, image, box, label, score = [], [], [], [], []
    for name, number in zip(names, numbers, strict=True):
        random = np.random.default_rng(number)
        for second in range(2):
            images.append((name, second))
            for _ in range(3):
                corner = random.uniform(0, 0.6, 2)
                right, shift = random.random() < 0.6, random.uniform(0, 0.05, 4)
                kind = 4 if number == 0 and random.random() < 0.5 else 1 + int(2 * random.random())
                image.append(len(images) - 1)
                box.append(np.concatenate([corner, corner + 0.3]) + (0 if is_truth else shift))
                label.append(kind if is_truth or right else 3 - min(kind, 2))
                score.append(1.0 if is_truth else round(random.random(), 1))  # with ties
    columns = (np.array(image), np.array(box), np.array(label), np.array(score))
    return LabelledBoxes(tuple(images), *columns)


@pytest.mark.parametrize("rules", ["alphaction", "activitynet", "slowfast"])
def test_it_is_that_of_videos_drawn_with_replacement(
    rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(names: list[str], numbers: list[int]) -> float | None:
        pair = (_boxes(names, numbers, is_truth=truth) for truth in (True, False))
        return detection_metrics(*pair, _CLASSES, RULES[rules]).mean_average_precision

    names = [f"{number:02d}" for number in range(_VIDEOS)]
    whole = [_boxes(names, list(range(_VIDEOS)), is_truth=truth) for truth in (True, False)]
    found = detection_metrics(*whole, _CLASSES, RULES[rules])
    monkeypatch.setattr(detection_metric, "_bootstrap", lambda *_: None)  # of those drawn
    generator = np.random.Generator(np.random.PCG64(derive_seed(0, "bootstrap")))
    means = []
    for _ in range(200):
        drawn = generator.integers(0, _VIDEOS, _VIDEOS).tolist()
        means.append(measured([f"{place}" for place in range(_VIDEOS)], drawn))
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.bootstrap is not None
    assert found.bootstrap.low == pytest.approx(low, abs=1e-12)
    assert found.bootstrap.high == pytest.approx(high, abs=1e-12)
    assert found.bootstrap.low < found.mean_average_precision < found.bootstrap.high
    assert (found.videos, found.rare) == (_VIDEOS, 1)  # the class that one video has
    assert "over 12 videos, rough: 1 classes have boxes in fewer than 10" in found.sentence


def test_one_video_has_none() -> None:
    pair = (_boxes(["a"], [0], is_truth=truth) for truth in (True, False))
    found = detection_metrics(*pair, _CLASSES)
    assert found.bootstrap is None
    assert "interval" not in found.sentence
