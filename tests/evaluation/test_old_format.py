"""What version 0.1 wrote is still read: probes, results, feature caches.

The folder `old_format` was made by that version: a model of random weights, 17 images of 16 x 16
pixels (those of the test split are there), three probes, a cache of the test split's features, and
in `expected.json` what the probes answered.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vjepa.data.loader.reading import ReadingConfig
from vjepa.evaluation.labels import load_split
from vjepa.evaluation.metrics import ClassificationMetrics, MultiLabelMetrics
from vjepa.evaluation.results import load_result
from vjepa.jobs.probe.config import VideosConfig
from vjepa.jobs.probe.predict import load_probe
from vjepa.jobs.probe.probe import evaluate

KEPT = Path(__file__).parent / "old_format"
PROBES = ("attentive", "several", "neighbours")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy, so that nothing can be written into what is kept."""
    return shutil.copytree(KEPT, tmp_path / "old")


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_answers_as_it_did(old: Path, name: str) -> None:
    images = [old / "images" / f"{number}.png" for number in (12, 13)]
    probe = load_probe(old / name, encoder=old / "model", device="cpu", num_threads=1)
    found = probe.predict(images, top=3)
    expected = json.loads((old / "expected.json").read_text())[name]["predictions"]
    for answer, wanted in zip(found, expected, strict=True):
        assert [share.name for share in answer.classes] == [entry[0] for entry in wanted]
        shares = [share.probability for share in answer.classes]
        assert shares == pytest.approx([entry[1] for entry in wanted], abs=1e-5)


@pytest.mark.parametrize("name", PROBES)
def test_results_and_features_are_read(old: Path, name: str) -> None:
    result = load_result(old / name)
    assert result.test is not None
    kind = MultiLabelMetrics if name == "several" else ClassificationMetrics
    assert isinstance(result.test.metrics, kind)
    assert result.test.metrics.count == 5
    assert len(result.test.metrics.per_class) == 3
    assert len(load_split(old / name / "split.json").fit) in (9, 12)
    shutil.rmtree(old / "images")  # every feature comes from the cache
    again = evaluate(
        old / name,
        VideosConfig(manifest=old / "manifest.parquet", split="test"),
        encoder=old / "model",
        cache_dir=old / "cache",
        reading=ReadingConfig(num_workers=0),
        device="cpu",
        num_threads=1,
    )
    assert again.metrics.count == 5
    assert again.metrics.score == pytest.approx(result.test.metrics.score, abs=1e-9)
    assert again.metrics.loss == pytest.approx(result.test.metrics.loss, rel=1e-5)
    result.save(old)  # and is written in today's format
    assert load_result(old) == result
