from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vjepa.reporting.charts import ConfidenceRange, draw_calibration

RANGES = [
    ConfidenceRange(low=0.2, high=0.4, count=3, accuracy=0.0, confidence=0.3),
    ConfidenceRange(low=0.8, high=1.0, count=9, accuracy=0.7, confidence=0.95),
]


def test_a_picture(tmp_path: Path) -> None:
    draw_calibration(RANGES, tmp_path / "c.png", "12 answers")
    with Image.open(tmp_path / "c.png") as picture:
        assert 400 < min(picture.size) <= max(picture.size) < 800
        dark = np.asarray(picture.convert("L")) < 128
    assert dark.sum() > 500  # axes, words and points


def test_the_same_svg_every_time(tmp_path: Path) -> None:
    draw_calibration(RANGES, tmp_path / "a.svg")
    assert "<dc:date>" not in (tmp_path / "a.svg").read_text()
