"""The test on pairs of answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from vjepa.errors import UserError
from vjepa.jobs.probe.compare import PairedDifference, compare_answers


def _answers(path: Path, lines: list[tuple[str, str, str]]) -> Path:
    text = "".join(f"{video},{truth},{answer},0.5,0.5\n" for video, truth, answer in lines)
    path.write_text("path,class,answer,share,confidence\n" + text)
    return path


def test_only_videos_that_one_alone_names_rightly_count(tmp_path: Path) -> None:
    first = _answers(
        tmp_path / "a.csv",
        [("1", "x", "x"), ("2", "x", "x"), ("3", "y", "y"), ("4", "y", "x"), ("5", "y", "y")],
    )
    second = _answers(
        tmp_path / "b.csv",
        [("2", "x", "y"), ("1", "x", "x"), ("3", "y", "x"), ("4", "y", "y"), ("6", "y", "y")],
    )
    found = compare_answers(first, second)
    assert found == PairedDifference(count=4, first_only=2, second_only=1, not_shared=2)
    assert found.difference == 0.25
    assert found.p_value == 1.0
    assert "+25.0 points" in str(found)
    assert "2 that one did not answer left out" in str(found)


def test_figures_of_a_known_table() -> None:
    """By hand: 2 * (1 + 10 + 45) / 2^10; 6 / 102 +- 1.96 * sqrt(8.5 + 2.5 - 36 / 102) / 102."""
    found = PairedDifference(count=100, first_only=8, second_only=2)
    assert found.p_value == pytest.approx(112 / 1024)
    assert found.interval.low == pytest.approx(-0.00388, abs=1e-4)
    assert found.interval.high == pytest.approx(0.12152, abs=1e-4)
    assert PairedDifference(10, 0, 0).p_value == 1.0


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    one = _answers(tmp_path / "a.csv", [("1", "x", "x")])
    with pytest.raises(UserError, match="no video in common"):
        compare_answers(one, _answers(tmp_path / "b.csv", [("2", "x", "x")]))
    with pytest.raises(UserError, match="compare probes of one label"):
        compare_answers(one, _answers(tmp_path / "c.csv", [("1", "z", "x")]))
    with pytest.raises(UserError, match=r"answers\.csv: no such file; `vjepa probe train`"):
        compare_answers(one, tmp_path)
    several = tmp_path / "several.csv"
    several.write_text("path,classes,share x\n1,x|y,0.5\n")
    with pytest.raises(UserError, match=r"one class a video \(no column 'class'\); those w"):
        compare_answers(one, several)
