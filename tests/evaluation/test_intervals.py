from __future__ import annotations

import pytest

from vjepa.evaluation.metrics import ConfidenceInterval, bootstrap_interval, wilson_interval


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: method 3 (score).
    got = wilson_interval(81, 263)
    assert (round(got.low, 4), round(got.high, 4)) == (0.2553, 0.3662)
    got = wilson_interval(15, 148)
    assert (round(got.low, 4), round(got.high, 4)) == (0.0624, 0.1605)
    got = wilson_interval(0, 20)
    assert (got.low, round(got.high, 4)) == (0.0, 0.1611)
    got = wilson_interval(1, 29)
    assert (round(got.low, 4), round(got.high, 4)) == (0.0061, 0.1718)


def test_ends_stay_in_the_unit_interval() -> None:
    assert wilson_interval(7, 7).high == 1.0
    assert wilson_interval(0, 0) == ConfidenceInterval(0.0, 1.0)
    assert bootstrap_interval(0, 0) == ConfidenceInterval(0.0, 1.0)
    assert bootstrap_interval(5, 5) == ConfidenceInterval(1.0, 1.0)


def test_bootstrap_is_seeded_and_near_wilson() -> None:
    first = bootstrap_interval(600, 1000, seed=3)
    assert first == bootstrap_interval(600, 1000, seed=3)
    wilson = wilson_interval(600, 1000)
    assert first.low == pytest.approx(wilson.low, abs=0.004)
    assert first.high == pytest.approx(wilson.high, abs=0.004)
    assert first.low < 0.6 < first.high


def test_impossible_counts() -> None:
    for function in (wilson_interval, bootstrap_interval):
        with pytest.raises(ValueError, match="correct"):
            function(5, 4)


def test_overlap() -> None:
    assert ConfidenceInterval(0.1, 0.3).overlaps(ConfidenceInterval(0.3, 0.5))
    assert not ConfidenceInterval(0.1, 0.3).overlaps(ConfidenceInterval(0.31, 0.5))
