from __future__ import annotations

import errno
import pickle
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vjepa.data.manifest.manifest as manifest_module
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.info import VideoInfo
from vjepa.errors import UserError


def make_info(path: str, **fields) -> VideoInfo:
    values = {
        "num_frames": 100,
        "fps": 25.0,
        "duration_seconds": 4.0,
        "width": 320,
        "height": 240,
        "codec": "h264",
        "keyframe_pts": np.array([512, 6656]),
        "keyframe_index": np.array([0, 12]),
        "time_base": Fraction(1, 12800),
        "start_pts": 512,
        "bytes": 1234,
        "mtime_ns": 1_700_000_000_123_456_789,
    }
    return VideoInfo(path=path, **(values | fields))


def make_rows(folder: Path) -> list[ManifestRow]:
    names = ("b.mp4", "a.mp4", "sub/c.mp4", "bad.mp4")
    rows = []
    for number, name in enumerate(names):
        is_bad = name == "bad.mp4"
        info = make_info(
            str(folder / name),
            num_frames=10 * number,
            ok=not is_bad,
            reason="truncated" if is_bad else None,
        )
        rows.append(
            ManifestRow(
                info=info,
                split="validation" if number == 1 else "train",
                dataset="k400" if number < 2 else "ssv2",
                weight=0.5 + number,
                labels={"motion": ("10", "9", None, "10")[number], "look": "x"},
            )
        )
    return rows


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    path = tmp_path / "set" / "manifest.parquet"
    Manifest.from_rows(make_rows(tmp_path / "set"), tmp_path / "set").write(path)
    return Manifest.open(path)


def test_rows_come_back_as_they_went_in(manifest, tmp_path):
    expected = [row.info for row in make_rows(tmp_path / "set")]
    assert len(manifest) == 4
    for number, info in enumerate(expected):
        found = manifest.row(number)
        for name in VideoInfo.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(found, name), getattr(info, name), err_msg=name)
        assert found.keyframe_pts.dtype == np.int64
        assert manifest.path(number) == info.path


def test_columns_as_arrays(manifest):
    assert manifest.num_frames.tolist() == [0, 10, 20, 30]
    assert manifest.num_frames.dtype == np.int64
    assert manifest.fps.tolist() == [25.0] * 4
    assert manifest.ok.tolist() == [True, True, True, False]
    assert manifest.weights.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert manifest.numeric("width").tolist() == [320] * 4
    assert manifest.splits == ["train", "validation"]
    assert manifest.categories("dataset").classes == ["k400", "ssv2"]


def test_labels(manifest):
    assert manifest.label_names == ["look", "motion"]
    assert manifest.labels("motion").tolist() == ["10", "9", None, "10"]
    coded = manifest.label_codes("motion")
    assert coded.classes == ["9", "10"]  # whole numbers by value, not by alphabet
    assert coded.codes.tolist() == [1, 0, -1, 1]
    with pytest.raises(UserError, match=r"no label 'colour' \(labels: look, motion\)"):
        manifest.label_codes("colour")


def test_classes_of_a_selection_are_those_that_occur(manifest):
    assert manifest.select("validation").label_codes("motion").classes == ["9"]
    assert manifest.select("validation").splits == ["validation"]


def test_select(manifest):
    train = manifest.select("train")
    assert [Path(train.path(row)).name for row in range(len(train))] == ["b.mp4", "c.mp4"]
    assert len(manifest.select()) == 3
    assert len(manifest.select(ok_only=False)) == 4
    assert train.row(1).num_frames == 20
    with pytest.raises(UserError, match=r"no row of split 'test' \(splits: train, validation\)"):
        manifest.select("test")


def test_all_bad_is_an_error_with_reasons(tmp_path):
    bad = [
        ManifestRow(info=make_info(f"/v/{number}.mp4", ok=False, reason=f"reason {number}"))
        for number in range(5)
    ]
    made = Manifest.from_rows(bad, tmp_path)
    with pytest.raises(UserError, match=r"none of its 5 videos.*/v/0.mp4: reason 0.*reason 2"):
        made.select()


def test_rows_out_of_range(manifest):
    for row in (-1, 4):
        with pytest.raises(IndexError, match="row"):
            manifest.row(row)
        with pytest.raises(IndexError, match="row"):
            manifest.path(row)


def test_paths_are_relative_beneath_the_manifest_and_absolute_elsewhere(tmp_path):
    inside, outside = tmp_path / "set" / "a.mp4", tmp_path / "other" / "b.mp4"
    rows = [ManifestRow(info=make_info(str(path))) for path in (inside, outside)]
    made = Manifest.from_rows(rows, tmp_path / "set")
    file = tmp_path / "set" / "m.parquet"
    made.write(file)
    assert pq.read_table(file).column("path").to_pylist() == ["a.mp4", str(outside)]
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "set", moved)
    again = Manifest.open(moved / "m.parquet")
    assert [again.path(row) for row in range(2)] == [str(moved / "a.mp4"), str(outside)]
    again.write(tmp_path / "up.parquet")
    up = Manifest.open(tmp_path / "up.parquet")
    assert up.table.column("path").to_pylist() == ["moved/a.mp4", "other/b.mp4"]
    assert [up.path(row) for row in range(2)] == [str(moved / "a.mp4"), str(outside)]


def test_content_hash_follows_paths_labels_and_splits_only(tmp_path):
    folder = tmp_path / "set"
    original = Manifest.from_rows(make_rows(folder), folder)
    original.write(folder / "m.parquet")
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert Manifest.open(tmp_path / "elsewhere/m.parquet").content_hash == original.content_hash
    original.write(tmp_path / "up.parquet")
    assert Manifest.open(tmp_path / "up.parquet").content_hash == original.content_hash

    def changed(number: int = 1, **fields) -> str:
        rows = make_rows(folder)
        values = {name: getattr(rows[number], name) for name in ManifestRow.__dataclass_fields__}
        rows[number] = ManifestRow(**(values | fields))
        return Manifest.from_rows(rows, folder).content_hash

    assert changed() == original.content_hash
    assert changed(weight=7.0) == original.content_hash
    assert changed(info=make_info(str(folder / "a.mp4"), fps=9.0)) == original.content_hash
    assert changed(info=make_info(str(folder / "z.mp4"))) != original.content_hash
    assert changed(split="train") != original.content_hash
    assert changed(labels={"motion": "8", "look": "x"}) != original.content_hash
    assert changed(labels={"motion": None, "look": "x"}) != original.content_hash
    rows = make_rows(folder)[::-1]
    assert Manifest.from_rows(rows, folder).content_hash != original.content_hash


def test_the_order_hash_follows_paths_and_weights_only(tmp_path):
    folder = tmp_path / "set"

    def order_hash(**fields) -> str:
        rows = make_rows(folder)
        rows[1] = replace(rows[1], **fields)
        return Manifest.from_rows(rows, folder).order_hash

    assert order_hash(labels={"motion": "8", "look": "x"}, split="train") == order_hash()
    assert order_hash(info=make_info(str(folder / "z.mp4"))) != order_hash()
    assert order_hash(weight=7.0) != order_hash()


def test_a_single_row_has_a_hash(tmp_path):
    hashes = {
        Manifest.from_rows([ManifestRow(info=make_info(f"/v/{name}"))], tmp_path).content_hash
        for name in ("a.mp4", "b.mp4")
    }
    assert len(hashes) == 2


def test_what_is_no_manifest(manifest, tmp_path):
    file = tmp_path / "m.parquet"

    def check(message: str) -> None:
        with pytest.raises(UserError, match=rf"m\.parquet: {message}"):
            Manifest.open(file)

    check("no such file")
    truncated = (tmp_path / "set" / "manifest.parquet").read_bytes()[:-20]
    for data in (b"not Parquet", b"", truncated):
        file.write_bytes(data)
        check("cannot be read")
    pq.write_table(pa.table({"path": ["a"], "num_frames": [1]}), file)
    check("no column 'fps'.*vjepa data index")
    pq.write_table(Manifest.from_rows([], tmp_path).table, file)
    check("has no rows")
    columns = {"path": ["a"], "num_frames": ["many"], "fps": [25.0], "width": [1], "height": [1]}
    pq.write_table(pa.table(columns), file)
    check("cannot be read")


def test_a_manifest_made_by_hand_needs_five_columns(tmp_path):
    columns = {
        "path": ["a.mp4", "b.mp4"],
        "num_frames": [40, 50],
        "fps": [25, 30],
        "width": [64, 64],
        "height": [48, 48],
        "label.class": ["cat", "dog"],
    }
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    made = Manifest.open(tmp_path / "m.parquet")
    info = made.row(1)
    assert info.path == str(tmp_path / "b.mp4")
    assert (info.ok, info.kind, info.num_frames, info.fps) == (True, "video", 50, 30.0)
    assert (info.codec, info.rotation, info.num_keyframes, info.reason) == ("", 0, 0, None)
    assert made.weights.tolist() == [1.0, 1.0]
    assert made.labels("class").tolist() == ["cat", "dog"]
    assert made.splits == []
    assert len(made.select()) == 2


def test_writing_is_all_or_nothing(manifest, tmp_path, monkeypatch):
    path = tmp_path / "set" / "manifest.parquet"
    before = path.read_bytes()

    def full_disk(table, file, **options):
        file.write(b"half a manifest")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest_module.pq, "write_table", full_disk)
    with pytest.raises(UserError, match=r"manifest\.parquet: cannot be written \(No space left"):
        manifest.write(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["manifest.parquet"]


def test_a_place_that_cannot_be_written(manifest, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        manifest.write(tmp_path / "file" / "m.parquet")


def test_a_manifest_can_go_to_another_process(manifest):
    copy = pickle.loads(pickle.dumps(manifest.select("train")))
    assert [copy.path(row) for row in range(2)] == [manifest.path(row) for row in (0, 2)]
    assert copy.content_hash == manifest.select("train").content_hash


def test_memory_is_flat(tmp_path):
    count = 300_000
    columns = {
        "path": [f"folder_{number % 1000:04d}/clip_{number:08d}.mp4" for number in range(count)],
        "num_frames": np.full(count, 250),
        "fps": np.full(count, 25.0),
        "width": np.full(count, 340),
        "height": np.full(count, 256),
        "split": ["train"] * count,
        "label.class": [str(number % 400) for number in range(count)],
        "keyframe_pts": [[0, 128000]] * count,
        "keyframe_index": [[0, 250]] * count,
    }
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    large = Manifest.open(tmp_path / "m.parquet")
    # 33 of path, 48 of key frames, the rest numbers: ten million rows take about 2.3 GB.
    assert large.table.nbytes / count < 250
    assert not any(isinstance(value, (list, dict)) for value in vars(large).values())
    assert large.path(count - 1).endswith("clip_00299999.mp4")
    assert len(large.select("train")) == count
    coded = large.label_codes("class")
    assert len(coded.classes) == 400
    assert coded.codes.dtype == np.int32


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("num_frames", [5, -1], "row 1: num_frames -1 cannot be"),
        ("fps", [25.0, float("nan")], "row 1: fps nan cannot be"),
        ("fps", [None, 25.0], "row 0: no fps"),
        ("time_base_den", [1, 0], "row 1: time_base_den 0 cannot be"),
        ("kind", ["video", "program"], "kind 'program' is unknown"),
        ("keyframe_index", [[0, 12], [5, 12]], "keyframe_index: the key frames of a row do not"),
        ("keyframe_pts", [[0, 12], [12, 12]], "keyframe_pts: the key frames of a row do not"),
        ("keyframe_pts", [[0, None], [0]], "keyframe_pts: an empty place"),
        ("keyframe_pts", [[0, 12], [0]], "row 1: not as many keyframe_pts as keyframe_index"),
        ("height", [48, 0], "row 1: usable, but height 0"),
        ("fps", [25.0, 0.0], "row 1: usable, but fps 0"),
        ("path", ["a.mp4", b"\xff\xfe.mp4"], "Invalid UTF8"),
    ],
)
def test_a_manifest_with_values_that_cannot_be_is_refused(tmp_path, column, values, message):
    columns = {
        "path": ["a.mp4", "b.mp4"],
        "num_frames": [20, 20],
        "fps": [25.0, 25.0],
        "width": [64, 64],
        "height": [48, 48],
        "keyframe_pts": [[0, 12], [0, 12]],
        "keyframe_index": [[0, 12], [0, 12]],
    }
    columns[column] = values
    table = pa.table(columns)
    if column == "path":  # text that is none
        raw = [value if isinstance(value, bytes) else value.encode() for value in values]
        broken = pa.Array.from_buffers(pa.string(), 2, pa.array(raw, pa.binary()).buffers())
        table = table.set_column(0, "path", broken)
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(UserError, match=message):
        Manifest.open(tmp_path / "m.parquet")


def test_a_place_whose_name_is_no_text_is_one_line(manifest, tmp_path):
    """Arrow opens nothing there."""
    manifest.write(tmp_path / "m.parquet")
    odd = (tmp_path / "m.parquet").rename(tmp_path / "caf\udce9.parquet")
    with pytest.raises(UserError, match=r"caf.*\.parquet: cannot be read \(.*surrogates"):
        Manifest.open(odd)
