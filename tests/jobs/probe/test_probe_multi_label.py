from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from tests.jobs.probe.tiny_probe import evaluate_here, probe_config, relabelled, train_probe

from vjepa.errors import UserError
from vjepa.evaluation.metrics import MultiLabelMetrics
from vjepa.evaluation.results import load_result
from vjepa.jobs.probe.probe import train

# What a video of each colour is said to show: `warm` for two of them.
SHOWS = {"red": "red|warm", "green": "cold", "blue": "warm | cold"}
MULTI = {"data.label": "shows", "data.multi_label": True, "optim.epochs": 20}


@pytest.fixture(scope="module")
def several(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny videos with a column of several classes each."""
    target = tmp_path_factory.mktemp("several") / "m.parquet"
    return relabelled(videos, target, lambda colour, *_: {"shows": SHOWS[colour]})


def test_a_probe_of_several_classes(several: Path, checkpoint: Path, tmp_path: Path) -> None:
    result, measured = train_probe(several, checkpoint, tmp_path / "p", **MULTI)
    assert isinstance(measured.metrics, MultiLabelMetrics)
    assert measured.metrics.count == 11
    assert measured.metrics.mean_average_precision > 0.8
    assert [(entry.name, entry.count) for entry in measured.metrics.per_class] == [
        ("cold", 7),
        ("red", 4),
        ("warm", 7),
    ]
    chosen = next(head for head in result.selection if head.chosen)
    assert chosen.mean_average_precision == max(
        head.mean_average_precision or 0.0 for head in result.selection
    )
    assert chosen.top1 is None
    assert asdict(evaluate_here(tmp_path / "p", several)) == asdict(measured)
    assert load_result(tmp_path / "p") == result
    assert "mAP" in (tmp_path / "p/result.md").read_text()


def test_a_share_of_the_labels(several: Path, checkpoint: Path, tmp_path: Path) -> None:
    changes = {**MULTI, "data.label_fraction": 0.5, "optim.epochs": 2}
    result = train(probe_config(several, checkpoint, **changes), tmp_path / "p")
    assert result.num_train == 12
    changes = {**MULTI, "data.labels_per_class": 2}
    with pytest.raises(UserError, match="labels_per_class: videos have several classes"):
        train(probe_config(several, checkpoint, **changes), tmp_path / "q")


def test_one_class_too_many(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    def relabel(_: str, split: str, __: int) -> dict[str, str | None]:
        return {"shows": "red|mauve" if split == "test" else "red|warm"}

    other = relabelled(videos, tmp_path / "m.parquet", relabel)
    with pytest.raises(UserError, match="class 'mauve' of label 'shows' has no training sample"):
        train(probe_config(other, checkpoint, **MULTI), tmp_path / "p")
