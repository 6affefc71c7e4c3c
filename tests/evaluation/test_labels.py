from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.info import VideoInfo
from vjepa.errors import UserError
from vjepa.evaluation.labels import Labels, check_every_class_has_a_sample, labels_of


def _manifest(values: Sequence[str | None], folder: Path) -> Manifest:
    rows = [
        ManifestRow(
            info=VideoInfo(path=str(folder / f"v{row}.mp4"), num_frames=8, fps=10.0),
            labels={} if value is None else {"motion": value},
            split="train",
        )
        for row, value in enumerate(values)
    ]
    return Manifest.from_rows(rows, folder)


def test_encoding_and_counts(tmp_path: Path) -> None:
    labels = labels_of(_manifest(["b", "a", "b"], tmp_path), "motion")
    assert labels.classes == ("a", "b")
    assert labels.indices.tolist() == [1, 0, 1]
    assert labels.counts().tolist() == [1, 2]
    assert labels.take(np.array([1])).indices.tolist() == [0]


def test_class_numbers_are_ordered_by_value(tmp_path: Path) -> None:
    assert labels_of(_manifest(["10", "9", "0"], tmp_path), "motion").classes == ("0", "9", "10")


def test_given_classes_are_numbered_by_their_own_order(tmp_path: Path) -> None:
    labels = labels_of(_manifest(["b", "b"], tmp_path), "motion", classes=("c", "b", "a"))
    assert labels.indices.tolist() == [1, 1]
    assert labels.counts().tolist() == [0, 2, 0]


def test_empty_is_refused(tmp_path: Path) -> None:
    whole = _manifest(["a"], tmp_path)
    empty = Manifest(whole.table.slice(0, 0), tmp_path, "m.parquet")
    with pytest.raises(UserError, match=r"m\.parquet, split test: no video in it"):
        labels_of(empty, "motion", part="split test")


def test_label_in_only_some_rows_is_refused_and_names_the_video(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing in 2 of 3 rows \(first: .*v1\.mp4\)"):
        labels_of(_manifest(["a", None, None], tmp_path), "motion")


def test_unknown_label_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no label 'colour' \(labels: motion\)"):
        labels_of(_manifest(["a"], tmp_path), "colour")


def test_class_without_training_sample_is_refused(tmp_path: Path) -> None:
    manifest = _manifest(["a", "c"], tmp_path)
    with pytest.raises(UserError, match="class 'c' of label 'motion' has no training sample"):
        labels_of(manifest, "motion", classes=("a", "b"))
    labels = Labels("motion", ("a", "b"), np.zeros(3, dtype=np.int64))
    with pytest.raises(UserError, match=r"class 'b'.*no training sample"):
        check_every_class_has_a_sample(labels, "train.parquet")
    check_every_class_has_a_sample(Labels("motion", ("a", "b"), np.arange(2)), "train.parquet")


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(UserError, match="only the class 'a'"):
        check_every_class_has_a_sample(Labels("motion", ("a",), np.zeros(3, np.int64)), "m")
