"""The interval of the mean average precision, against videos that are really left out."""

from __future__ import annotations

import numpy as np
import pytest

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
def test_it_is_that_of_each_video_left_out(rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(names: list[str], numbers: list[int]) -> float | None:
        pair = (_boxes(names, numbers, is_truth=truth) for truth in (True, False))
        return detection_metrics(*pair, _CLASSES, RULES[rules]).mean_average_precision

    names = [f"{number:02d}" for number in range(_VIDEOS)]
    numbers = list(range(_VIDEOS))
    whole = [_boxes(names, numbers, is_truth=truth) for truth in (True, False)]
    found = detection_metrics(*whole, _CLASSES, RULES[rules])
    monkeypatch.setattr(detection_metric, "_interval", lambda *_: None)  # of those left
    left = [
        measured(names[:n] + names[n + 1 :], numbers[:n] + numbers[n + 1 :]) for n in range(_VIDEOS)
    ]
    # The jackknife's standard error, and the 97.5 % point of Student's t for 11 degrees of freedom.
    half = 2.201 * np.sqrt((_VIDEOS - 1) / _VIDEOS * np.sum((left - np.mean(left)) ** 2))
    figure = found.mean_average_precision
    assert found.interval is not None
    assert found.interval.low == pytest.approx(max(0.0, figure - half), abs=1e-4)
    assert found.interval.high == pytest.approx(figure + half, abs=1e-4)
    assert 0 <= found.interval.low < figure < found.interval.high < 1
    assert (found.videos, found.rare) == (_VIDEOS, 1)  # the class that one video has
    assert "over 12 videos, rough: 1 classes have boxes in fewer than 10" in found.sentence


def test_one_video_has_none() -> None:
    pair = (_boxes(["a"], [0], is_truth=truth) for truth in (True, False))
    found = detection_metrics(*pair, _CLASSES)
    assert found.interval is None
    assert "interval" not in found.sentence
