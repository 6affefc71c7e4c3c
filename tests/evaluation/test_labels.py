"""Labels of a manifest, low-shot subsets and the part held out for choosing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.info import VideoInfo
from vjepa.errors import UserError
from vjepa.evaluation.labels import (
    Labels,
    SplitRecord,
    check_every_class_has_a_sample,
    hold_out,
    labels_of,
    load_split,
    stratified_subset,
)


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


def test_classes_are_numbered_by_value_or_as_given(tmp_path: Path) -> None:
    manifest = _manifest(["b", "a", "b"], tmp_path)
    labels = labels_of(manifest, "motion")
    assert labels.classes == ("a", "b")
    assert labels.indices.tolist() == [1, 0, 1]
    assert labels.counts().tolist() == [1, 2]
    assert labels.take(np.array([1])).indices.tolist() == [0]
    for names in (
        ("0", "9", "10"),
        ("-10", "-9", "+1", "02"),
        ("0.5", "1.0", "10.0"),
        ("-1", "1.x"),
    ):
        for multi_label in (False, True):
            found = labels_of(_manifest(names[::-1], tmp_path), "motion", multi_label=multi_label)
            assert found.classes == names
    given = labels_of(manifest, "motion", classes=("c", "b", "a"))
    assert given.indices.tolist() == [1, 2, 1]
    assert given.counts().tolist() == [0, 2, 1]


def test_a_video_of_several_classes_may_have_none(tmp_path: Path) -> None:
    labels = labels_of(_manifest(["a", "a|b", "|", "b"], tmp_path), "motion", multi_label=True)
    assert labels.counts().tolist() == [2, 2]
    assert labels.targets.tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]
    with pytest.raises(UserError, match=r"label them \(a video of no class has the label \|\)"):
        labels_of(_manifest(["a|b", None], tmp_path), "motion", multi_label=True)


def test_classes_that_look_like_several_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = _manifest(["a", "a|b", "b"], tmp_path)
    labels_of(manifest, "motion", classes=("a", "a|b", "b"))
    labels_of(manifest, "motion", multi_label=True)
    assert not caplog.text
    assert labels_of(manifest, "motion").classes == ("a", "a|b", "b")
    assert "'a|b' counts as one class of label 'motion'; where a video has several" in caplog.text


def test_what_has_no_such_label_is_refused_and_named(tmp_path: Path) -> None:
    whole = _manifest(["a"], tmp_path)
    empty = Manifest(whole.table.slice(0, 0), tmp_path, "m.parquet")
    with pytest.raises(UserError, match=r"m\.parquet, split test: no video in it"):
        labels_of(empty, "motion", part="split test")
    with pytest.raises(UserError, match=r"missing in 2 of 3 rows \(first: .*v1\.mp4\)"):
        labels_of(_manifest(["a", None, None], tmp_path), "motion")
    with pytest.raises(UserError, match=r"no label 'colour' \(labels: motion\)"):
        labels_of(whole, "colour")


def test_class_without_training_sample_is_refused(tmp_path: Path) -> None:
    manifest = _manifest(["a", "c"], tmp_path)
    with pytest.raises(UserError, match=r"'c' of label 'motion' has no training .*with one: a"):
        labels_of(manifest, "motion", classes=("a", "b"))
    labels = Labels("motion", ("a", "b"), np.zeros(3, dtype=np.int64))
    with pytest.raises(UserError, match=r"class 'b'.*no training sample"):
        check_every_class_has_a_sample(labels, "train.parquet")
    check_every_class_has_a_sample(Labels("motion", ("a", "b"), np.arange(2)), "train.parquet")
    with pytest.raises(UserError, match="only the class 'a'"):
        check_every_class_has_a_sample(Labels("motion", ("a",), np.zeros(3, np.int64)), "m")


def _labels(counts: list[int]) -> Labels:
    indices = np.concatenate([np.full(count, i) for i, count in enumerate(counts)]).astype(np.int64)
    np.random.default_rng(0).shuffle(indices)
    return Labels("motion", tuple(f"c{i}" for i in range(len(counts))), indices)


def test_per_class_takes_exactly_k_of_every_class() -> None:
    labels = _labels([30, 12, 7])
    rows = stratified_subset(labels, per_class=5, seed=1)
    assert labels.take(rows).counts().tolist() == [5, 5, 5]
    assert np.all(np.diff(rows) > 0)
    assert np.array_equal(rows, stratified_subset(labels, per_class=5, seed=1))
    assert not np.array_equal(rows, stratified_subset(labels, per_class=5, seed=2))


def test_fraction_is_of_every_class_and_at_least_one() -> None:
    labels = _labels([100, 40, 3])
    rows = stratified_subset(labels, fraction=0.1, seed=0)
    assert labels.take(rows).counts().tolist() == [10, 4, 1]
    assert len(stratified_subset(labels, fraction=1.0, seed=0)) == 143
    assert len(stratified_subset(labels, seed=0)) == 143


def test_subsets_of_one_seed_are_nested() -> None:
    labels = _labels([50, 50, 7])
    small = stratified_subset(labels, per_class=5, seed=4)
    large = stratified_subset(labels, per_class=7, seed=4)
    assert set(small) < set(large)
    with pytest.raises(UserError, match="'c2' of label 'motion' has 7"):
        stratified_subset(labels, per_class=8, seed=4)


def test_hold_out_is_a_partition_and_stratified() -> None:
    labels = _labels([40, 20, 2, 1])
    rows = stratified_subset(labels, seed=0)
    fit, choose = hold_out(labels, rows, 0.25, seed=3)
    assert sorted([*fit, *choose]) == rows.tolist()
    assert labels.take(choose).counts().tolist() == [10, 5, 1, 0]
    assert labels.take(fit).counts().min() >= 1


def test_a_share_of_a_class_that_a_part_has_none_of_is_none() -> None:
    """As the validation part of a set split by place, which the online probe takes a share of."""
    labels = Labels("level", ("a", "b", "c"), np.array([0] * 10 + [2] * 6))
    rows = stratified_subset(labels, fraction=0.5, seed=0)
    assert np.bincount(labels.indices[rows], minlength=3).tolist() == [5, 0, 3]
    with pytest.raises(UserError, match="class 'b' of label 'level' has 0 training rows"):
        stratified_subset(labels, per_class=1, seed=0)


def test_hold_out_of_a_subset_stays_inside_it() -> None:
    labels = _labels([40, 40])
    rows = stratified_subset(labels, per_class=10, seed=0)
    fit, choose = hold_out(labels, rows, 0.2, seed=0)
    assert set(fit) | set(choose) == set(rows)
    assert labels.take(choose).counts().tolist() == [2, 2]


def test_nothing_to_hold_out() -> None:
    labels = _labels([1, 1])
    with pytest.raises(UserError, match="nothing can be held out"):
        hold_out(labels, np.arange(2), 0.2, seed=0)


def test_record_survives_the_disk(tmp_path: Path) -> None:
    record = SplitRecord(
        label="motion",
        manifest_hash="abc",
        seed=3,
        labels_per_class=20,
        label_fraction=None,
        fit=(1, 4),
        choose=(2,),
        fit_paths=("a.mp4", "d.mp4"),
        choose_paths=("b.mp4",),
    )
    record.save(tmp_path / "split.json")
    assert load_split(tmp_path / "split.json") == record
    assert record.files == {"a.mp4": 0, "d.mp4": 0, "b.mp4": 0}  # as versions before wrote it
    sized = replace(record, sizes=(7, 8, 9))
    sized.save(tmp_path / "split.json")
    assert load_split(tmp_path / "split.json").files == {"a.mp4": 7, "d.mp4": 8, "b.mp4": 9}
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "missing.json"):
        with pytest.raises(UserError, match="not a split file"):
            load_split(tmp_path / name)
