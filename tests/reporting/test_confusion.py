from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vjepa.reporting.charts import draw_confusion


@pytest.mark.parametrize("size", [2, 9, 60])
def test_a_picture_of_any_number_of_classes(tmp_path: Path, size: int) -> None:
    counts = np.eye(size, dtype=int) * 5
    counts[0, 1] = 2
    names = [f"class number {index}" for index in range(size)]
    draw_confusion(counts.tolist(), names, tmp_path / "c.png", "5 of 7 right")
    with Image.open(tmp_path / "c.png") as picture:
        assert min(picture.size) > 300
        assert max(picture.size) < 2200


def test_svg_names_classes_and_counts(tmp_path: Path) -> None:
    draw_confusion([[3, 1], [0, 0]], ["walks", "runs"], tmp_path / "c.svg")
    assert (tmp_path / "c.svg").read_text().startswith("<?xml")
