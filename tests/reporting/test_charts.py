"""Charts as files: calibration and confusion."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vjepa.evaluation.metrics import CalibrationBin
from vjepa.reporting.charts import (
    Estimate,
    Line,
    draw_calibration,
    draw_confusion,
    estimate_charts,
    line_chart,
)

RANGES = [
    CalibrationBin(low=0.2, high=0.4, count=3, correct=0, confidence=0.3),
    CalibrationBin(low=0.8, high=1.0, count=9, correct=6, confidence=0.95),
]


def test_calibration_as_a_picture(tmp_path: Path) -> None:
    draw_calibration(RANGES, tmp_path / "c.png", "12 answers")
    with Image.open(tmp_path / "c.png") as picture:
        assert 400 < min(picture.size) <= max(picture.size) < 800
        drawn = np.asarray(picture.convert("RGBA"))[..., 3] > 0
    assert 500 < drawn.sum() < drawn.size / 2, "axes, words and points, on the page's own ground"


def test_signs_without_a_font_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    draw_confusion([[3, 1], [0, 2]], ["右右", "\U000f1234 left"], tmp_path / "c.png")
    assert not len(recwarn)
    assert (tmp_path / "c.png").exists()
    assert f"{tmp_path / 'c.png'}: no font for " in caplog.text
    assert caplog.text.count("\U000f1234") == 1


def test_the_same_svg_every_time(tmp_path: Path) -> None:
    draw_calibration(RANGES, tmp_path / "a.svg")
    assert "<dc:date>" not in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize("size", [2, 9, 60])
def test_confusion_as_a_picture_of_any_number_of_classes(tmp_path: Path, size: int) -> None:
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


def test_a_chart_says_how_wide_it_was_drawn() -> None:
    drawn = line_chart([Line("loss", [0.0, 1.0], [1.0, 2.0])], x_label="update", y_label="loss")
    assert drawn.startswith('<svg viewBox="0 0 316')
    assert 'style="--width: 316px"' in drawn


def test_numbers_of_a_level_curve_are_written_out() -> None:
    level = [Line("memory", [1.0, 2.0], [0.949268, 0.949277])]
    words = re.findall(r">([^<>]+)</text>", line_chart(level, x_label="x", y_label="GB"))
    assert any(word.startswith("0.9492") for word in words)
    assert not any("e" in word for word in words), "no factor and no offset above the axis"


def test_a_curve_shows_how_sure_its_points_are() -> None:
    bare = Line("features", [1.0, 2.0], [50.0, 51.0])
    sure = Line("features", [1.0, 2.0], [50.0, 51.0], intervals=[(20.0, 80.0), (21.0, 81.0)])
    drawn = [line_chart([line], x_label="x", y_label="%") for line in (bare, sure)]
    ranges = [[float(n) for n in re.findall(r">([\d.]+)</text>", one)][-2:] for one in drawn]
    assert max(ranges[0]) < 52
    assert max(ranges[1]) >= 80, "the axis holds the intervals"


def test_charts_of_shares_fit_a_phone_and_have_one_scale() -> None:
    shares = [
        Estimate("motion", "mine", 0.7, 0.6, 0.8),
        Estimate("motion", "other", 0.2, 0.1, 0.3),
        Estimate("colour", "mine, of a name as long as one may be", 0.04, 0.03, 0.05),
    ]
    motion, colour = estimate_charts(shares, x_label="right (%)", chance={"motion": 0.1})
    assert all(word in motion for word in (">motion<", ">mine<", ">other<", ">70.0<", ">20.0<"))
    assert ">colour<" in colour
    assert ">other<" not in colour
    for chart in (motion, colour):
        assert int(chart.split("--width: ")[1].split("px")[0]) <= 330
        assert ">80<" in chart, "bars of two charts can be compared"


def test_names_of_lines_stand_above_the_curves_and_all_of_it_has_a_name() -> None:
    lines = [
        Line("a_name_of_a_run_" * 6, [0.0, 1.0], [1.0, 2.0]),
        Line("b", [0.0, 1.0], [2.0, 1.0]),
    ]
    one, two = (line_chart(some, x_label="update", y_label="loss") for some in (lines[1:], lines))
    heights = [
        float(drawn.split('viewBox="0 0 ')[1].split('"')[0].split()[1]) for drawn in (one, two)
    ]
    assert heights[1] > heights[0] + 40, "no curve gives up its place"
    assert "a_name_of_a_run_" * 3 not in re.sub("aria-label=.*", "", two), "it fits the width"
    assert 'aria-label="loss by update: b"' in one
    (drawn,) = estimate_charts([Estimate("a <b>", "mine", 0.7, 0.6, 0.8)], x_label="right (%)")
    assert 'aria-label="a &lt;b&gt;, right (%): mine 70.0"' in drawn


def test_a_class_with_dollars_in_its_name_is_no_formula(tmp_path: Path) -> None:
    names = ["$100 to $200", "a $x_$ b"]
    draw_confusion([[3, 1], [0, 2]], names, tmp_path / "c.svg")
    assert all(name in (tmp_path / "c.svg").read_text() for name in names)
