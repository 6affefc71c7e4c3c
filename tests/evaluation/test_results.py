from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vjepa.errors import UserError
from vjepa.evaluation.frozen import BadVideo
from vjepa.evaluation.metrics import Accuracy
from vjepa.evaluation.results import (
    Evaluation,
    HeadResult,
    ProbeResult,
    compare,
    load_result,
    over_seeds,
)


def _result(*, tested: bool = True) -> ProbeResult:
    sums = Accuracy(("left", "right"))
    sums.add(
        np.arange(3), torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]), torch.tensor([0, 1, 1])
    )
    test = Evaluation(
        manifest="m.parquet",
        manifest_hash="abc",
        split="test",
        metrics=sums.metrics(),
        bad_videos=(BadVideo(3, "v3.mp4", "truncated"),),
    )
    head = HeadResult(
        learning_rate=1e-3, weight_decay=0.01, count=4, correct=3, top1=0.75, loss=0.5, chosen=True
    )
    return ProbeResult(
        label="motion",
        encoder="runs/x, target encoder (weights 000000000000)",
        steps=300,
        which="target",
        weights_hash="0" * 64,
        num_train=20,
        num_classes=2,
        test=test if tested else None,
        selection=(head,),
        train_manifest_hash="def",
        train_bad_videos=(BadVideo(1, "v1.mp4", "zero bytes"),),
        config={"seed": 0},
        versions={"vjepa": "0"},
        date="2026-01-01T00:00:00+00:00",
        seconds={"train": 1.5},
        folder="out",
    )


@pytest.mark.parametrize("tested", [True, False])
def test_result_survives_the_disk(tmp_path: Path, tested: bool) -> None:
    result = _result(tested=tested)
    result.save(tmp_path)
    assert load_result(tmp_path) == result


def test_markdown_has_number_interval_heads_and_bad_videos() -> None:
    text = _result().markdown()
    assert "| target | motion | 20 | 66.7 | 20.8 to 93.9 | 3 | 0.511 |\n" in text
    assert "Encoder: runs/x, target" in text
    assert "Head: 300 updates on 20 labelled videos" in text
    assert "| attentive | 300 | 0.001 | 0.01 | 75.0 % (3/4) | 0.500 | yes |" in text
    assert "| right | 2 | 50.0 |" in text
    assert "Not evaluated: v3.mp4: truncated" in text
    assert "1 of the training videos (first: v1.mp4: zero bytes)\n\n" in text
    odd = replace(_result(), label="run|jump\nhigh").markdown()
    assert r"| target | run\|jump high | 20 | 66.7 |" in odd, "a row has as many cells as its head"


def test_comparison_has_a_row_for_each() -> None:
    lines = compare({"pretrained": _result(), "random": _result(tested=False)}).splitlines()
    assert lines[0].endswith("| top-1 % | 95 % interval | videos | loss |")
    assert lines[2].startswith("| pretrained | motion | 20 | 66.7 |")
    assert lines[3:] == ["Not measured, without test videos: random, motion, 20 labels used"]
    untested = _result(tested=False).markdown()
    assert " - " not in untested
    assert "Not measured" in untested


def test_calibration_is_shown_from_a_hundred_answers_on() -> None:
    for count in (99, 100):
        sums = Accuracy(("a", "b", "never"))
        shares = torch.tensor([[0.8, 0.1, 0.1]]).repeat(count, 1)
        sums.add(np.arange(count), shares, torch.arange(count) % 2)
        metrics = sums.metrics()
        assert ("ECE" in metrics.cells()) == (count == 100)
        assert [entry.figure for entry in metrics.per_class] == ["100.0", "0.0", None]
    shown = Evaluation(manifest="m", manifest_hash="", split=None, metrics=metrics, trained_on=3)
    assert shown.lines()[0] == "No video of class: never"
    assert shown.lines()[1].startswith("3 of these videos")


def test_foreign_results_are_refused(tmp_path: Path) -> None:
    contents = {
        None: "no such file; train the probe again",
        "{": "cannot be read as JSON",
        '{"format": "other"}': "format 'other'",
        '{"format": "vjepa-probe-result-2"}': "not a probe result .label",
    }
    for content, why in contents.items():
        if content is not None:
            (tmp_path / "result.json").write_text(content)
        with pytest.raises(UserError, match=why):
            load_result(tmp_path)


def test_over_seeds() -> None:
    summary = over_seeds([0.4, 0.5, 0.6])
    assert summary.mean == pytest.approx(0.5)
    assert summary.deviation == pytest.approx(0.1)
    assert summary.interval.low == pytest.approx(0.5 - 4.303 * 0.1 / math.sqrt(3))
    assert over_seeds([0.4]).interval.high == math.inf
    many = over_seeds([0.0, 1.0] * 6)  # t of 11 degrees of freedom is 2.201, not the normal's 1.96
    assert many.interval.high == pytest.approx(0.5 + 2.201 * many.deviation / 12**0.5, rel=2e-3)
    with pytest.raises(ValueError, match="values"):
        over_seeds([])
