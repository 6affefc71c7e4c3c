from __future__ import annotations

import pytest

from vjepa.errors import UserError
from vjepa.evaluation.labels import (
    check_every_class_has_a_sample,
    check_label_name,
    class_names,
    encode_labels,
)


def test_class_order() -> None:
    assert class_names(["b", "a", None, "b"]) == ("a", "b")
    assert class_names(["10", "9", "0"]) == ("0", "9", "10")
    assert class_names(["10", "9", "x"]) == ("10", "9", "x")


def test_encoding_and_counts() -> None:
    labels = encode_labels(["b", "a", "b"], "motion", source="train")
    assert labels.classes == ("a", "b")
    assert labels.indices.tolist() == [1, 0, 1]
    assert labels.counts().tolist() == [1, 2]


def test_empty_is_refused() -> None:
    with pytest.raises(UserError, match="no video"):
        encode_labels([], "motion", source="train.parquet")


def test_label_in_only_some_rows_is_refused_and_names_the_video() -> None:
    with pytest.raises(UserError, match=r"missing in 2 of 3 rows \(first: v1.mp4\)"):
        encode_labels(
            ["a", None, None],
            "motion",
            source="train.parquet",
            paths=["v0.mp4", "v1.mp4", "v2.mp4"],
        )


def test_class_without_training_sample_is_refused() -> None:
    with pytest.raises(UserError, match="class 'c' of label 'motion' has no training sample"):
        encode_labels(["a", "c"], "motion", classes=("a", "b"), source="test.parquet")
    labels = encode_labels(["a", "a"], "motion", classes=("a", "b"), source="train.parquet")
    with pytest.raises(UserError, match="class 'b'.*no training sample"):
        check_every_class_has_a_sample(labels, "train.parquet")


def test_unknown_label_name_suggests_the_nearest() -> None:
    check_label_name("motion", ["appearance", "motion"], "m.parquet")
    with pytest.raises(UserError, match="did you mean 'motion'"):
        check_label_name("moton", ["appearance", "motion"], "m.parquet")
    with pytest.raises(UserError, match="has no labels"):
        check_label_name("motion", [], "m.parquet")
