from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from tests.data.video_files import (
    Spec,
    numbers_of,
    write_image,
    write_image_folder,
    write_truncated,
    write_video,
)
from tests.runtime.hanging_worker import hanging_order

import vjepa.data.manifest.index as index_module
from vjepa.data.manifest.index import IndexConfig, index_sources
from vjepa.data.manifest.lists import LeftOut, read_source
from vjepa.data.manifest.manifest import Manifest
from vjepa.data.video import inspect as inspect_module
from vjepa.data.video.decode import decode_frames
from vjepa.data.video.info import LimitsConfig
from vjepa.data.video.inspect import inspect_file, inspect_files
from vjepa.errors import UserError
from vjepa.runtime.progress import Progress


@pytest.fixture
def probed(monkeypatch) -> list[str]:
    """Paths that were really looked into."""
    paths: list[str] = []

    def recording(orders, *args):
        def recorded():
            for order in orders:
                paths.append(order.path)
                yield order

        return inspect_files(recorded(), *args)

    monkeypatch.setattr(index_module, "inspect_files", recording)
    return paths


def make_videos(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    original = write_video(folder / ".original.mp4", Spec(num_frames=10, b_frames=0))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, folder / name)
    original.unlink()
    return folder


def test_a_folder_of_everything(tmp_path, capsys):
    root = make_videos(tmp_path / "set", "train/run/a.mp4", "train/walk/b.mp4", "val/run/c.mp4")
    write_image(root / "train" / "walk" / "still.png", 7)
    write_image_folder(root / "val" / "walk" / "clip", 6)
    write_truncated(root / "val" / "run" / "cut.mp4", keep=0.8)
    how = IndexConfig(label_from_folder=True, image_folder_fps=12.0)
    manifest = index_sources([root], tmp_path / "out" / "m.parquet", config=how)
    assert capsys.readouterr().err == "index: 6/6 (100 %), 1 bad\n"
    found = {os.path.relpath(manifest.path(row), root): row for row in range(len(manifest))}
    assert list(found) == [
        "train/run/a.mp4",
        "train/walk/b.mp4",
        "train/walk/still.png",
        "val/run/c.mp4",
        "val/run/cut.mp4",
        "val/walk/clip",
    ]
    assert manifest.labels("label").tolist() == ["run", "walk", "walk", "run", "run", "walk"]
    assert manifest.splits == ["train", "validation"]
    assert manifest.categories("dataset").classes == ["set"]
    assert manifest.ok.tolist() == [True, True, True, True, False, True]
    assert "truncated" in (manifest.row(found["val/run/cut.mp4"]).reason or "")
    clip = manifest.row(found["val/walk/clip"])
    assert (clip.kind, clip.num_frames, clip.fps) == ("image_folder", 6, 12.0)
    good = manifest.select("validation")
    assert numbers_of(decode_frames(good.row(0), [9, 4])) == [9, 4]
    assert numbers_of(decode_frames(good.row(1), [5, 0])) == [5, 0]
    assert manifest.weights.tolist() == [1.0] * 6


def test_a_list_with_labels_and_missing_files(tmp_path):
    make_videos(tmp_path, "a b.mp4")
    (tmp_path / "list.txt").write_text("a b.mp4 3\nmissing.mp4 4\n")
    manifest = index_sources([tmp_path / "list.txt"], tmp_path / "m.parquet")
    assert manifest.labels("label").tolist() == ["3", "4"]
    assert manifest.ok.tolist() == [True, False]
    assert manifest.row(1).reason == "No such file or directory"


def test_several_sources_with_weights(tmp_path):
    large = make_videos(tmp_path / "large", "1.mp4", "2.mp4", "3.mp4")
    small = make_videos(tmp_path / "small", "4.mp4")
    (small / "bad.mp4").write_text("no video")
    (tmp_path / "list.csv").write_text("path,colour\nlarge/1.mp4,red\nlarge/2.mp4,blue\n")
    sources = [large, small, tmp_path / "list.csv"]
    plain = index_sources(sources, tmp_path / "m.parquet")
    assert plain.categories("dataset").classes == ["large", "list", "small"]
    assert plain.weights.tolist() == [1.0] * 7
    assert plain.labels("colour").tolist() == [None] * 5 + ["red", "blue"]
    manifest = index_sources(
        sources, tmp_path / "m.parquet", names=["A", "B", "C"], weights=[1.0, 3.0, 0.5]
    )
    datasets = manifest.categories("dataset")
    assert datasets.classes == ["A", "B", "C"]
    shares = [manifest.weights[manifest.ok & (datasets.codes == code)].sum() for code in range(3)]
    np.testing.assert_allclose(np.array(shares) / sum(shares), np.array([1, 3, 0.5]) / 4.5)
    assert manifest.weights[manifest.ok].mean() == pytest.approx(1.0)


def test_sources_of_one_name_are_numbered(tmp_path):
    for folder in ("a", "b"):
        make_videos(tmp_path / folder / "k400", "1.mp4")
    sources = [tmp_path / "a" / "k400", tmp_path / "b" / "k400", tmp_path / "a" / "k400" / "1.mp4"]
    manifest = index_sources(sources, tmp_path / "m.parquet")
    assert manifest.categories("dataset").classes == ["1", "k400-1", "k400-2"]
    other = make_videos(tmp_path, "k400-1.mp4") / "k400-1.mp4"
    manifest = index_sources([*sources[:2], other], tmp_path / "m.parquet")
    assert manifest.categories("dataset").classes == ["k400-1", "k400-2", "k400-3"]


def test_row_weights_keep_their_ratio_within_a_source(tmp_path):
    make_videos(tmp_path, "1.mp4", "2.mp4", "3.mp4")
    (tmp_path / "a.csv").write_text("path,weight\n1.mp4,1\n2.mp4,3\n")
    (tmp_path / "b.csv").write_text("path\n3.mp4\n")
    manifest = index_sources(
        [tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "m.parquet", weights=[1, 1]
    )
    np.testing.assert_allclose(manifest.weights, [0.375, 1.125, 1.5])


def test_unchanged_files_are_not_probed_again(tmp_path, probed):
    root = make_videos(tmp_path / "set", "a.mp4", "b.mp4", "c.mp4")
    write_image_folder(root / "frames", 3)
    (root / "bad.mp4").write_text("no video")
    out = tmp_path / "m.parquet"
    first = index_sources([root], out)
    assert len(probed) == 5
    probed.clear()
    write_video(root / "b.mp4", Spec(num_frames=7, b_frames=0))
    write_image(root / "frames" / "frame_3.png", 3)
    make_videos(root, "new.mp4")
    (root / "c.mp4").unlink()
    second = index_sources([root], out)
    # Bad files are tried again: what was wrong may have been mended.
    assert sorted(Path(path).name for path in probed) == ["b.mp4", "bad.mp4", "frames", "new.mp4"]
    frames = {Path(second.path(row)).name: second.num_frames[row] for row in range(5)}
    assert frames == {"a.mp4": 10, "b.mp4": 7, "bad.mp4": 0, "new.mp4": 10, "frames": 4}
    kept = second.row(0)
    assert kept.mtime_ns == first.row(0).mtime_ns
    np.testing.assert_array_equal(kept.keyframe_pts, first.row(0).keyframe_pts)


def test_a_long_comparison_with_the_index_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    """A server takes milliseconds for each file: an hour without a word for a million of them."""
    root, out = make_videos(tmp_path / "set", "a.mp4", "b.mp4"), tmp_path / "m.parquet"
    index_sources([root], out)
    capsys.readouterr()
    index_sources([root], out)
    assert capsys.readouterr().err == "index: 2/2 (100 %)\n"
    monkeypatch.setattr(index_module, "_MANY", 2)
    index_sources([root], out)
    assert capsys.readouterr().err == "comparing files: 2/2 (100 %)\nindex: 2/2 (100 %)\n"


def test_other_limits_probe_everything_again(tmp_path, probed):
    root = make_videos(tmp_path / "set", "a.mp4")
    (root / "b.mp4").write_bytes(write_video(tmp_path / "b.mp4", Spec(num_frames=3)).read_bytes())
    out = tmp_path / "m.parquet"
    index_sources([root], out)
    probed.clear()
    strict = IndexConfig(limits=LimitsConfig(max_frames=5))
    assert index_sources([root], out, config=strict).ok.tolist() == [False, True]
    assert len(probed) == 2


def test_rows_of_an_older_way_of_probing_are_not_reused(tmp_path, probed, monkeypatch):
    root, out = make_videos(tmp_path / "set", "a.mp4"), tmp_path / "m.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(index_module, "_PROBE_VERSION", 2)
        for _ in range(2):
            index_sources([root], out, workers=1)
    assert len(probed) == 1
    index_sources([root], out, workers=1)
    assert len(probed) == 2


def test_an_interrupted_index_goes_on_where_it_was(tmp_path, probed, monkeypatch):
    root = make_videos(tmp_path / "set", *(f"{number}.mp4" for number in range(6)))
    out = tmp_path / "m.parquet"

    def interrupt(self, done: int, note: str | None = None) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            index_sources([root], out, workers=1)
    assert not out.exists()
    probed.clear()
    manifest = index_sources([root], out, workers=1)
    assert sorted(Path(path).name for path in probed) == ["4.mp4", "5.mp4"]
    assert manifest.ok.all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.parquet", "set"]


_STOPPED = """
import signal, sys
from vjepa.cli.main import main
from vjepa.runtime.progress import Progress

def stop(self, done, note=None):
    if done == 4:
        signal.raise_signal(getattr(signal, sys.argv[1]))

Progress.update = stop
sys.exit(main(["data", "index", sys.argv[2], "--out", sys.argv[3], "--workers", "1"]))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_an_index_that_the_system_stops_keeps_what_it_has(tmp_path, probed, name):
    root = make_videos(tmp_path / "set", *(f"{number}.mp4" for number in range(6)))
    out = tmp_path / "m.parquet"
    words = [sys.executable, "-c", _STOPPED, name, str(root), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 75
    assert "interrupted: stopped by the system" in done.stderr
    assert index_sources([root], out, workers=1).ok.all()
    assert sorted(Path(path).name for path in probed) == ["4.mp4", "5.mp4"]


def test_a_killed_index_loses_little(tmp_path, probed):
    root = make_videos(tmp_path / "set", *(f"{number}.mp4" for number in range(6)))
    out = tmp_path / "m.parquet"
    often = "import vjepa.runtime.files as files\nfiles.SAVE_SECONDS = 0.0\n"
    words = [sys.executable, "-c", often + _STOPPED, "SIGKILL", str(root), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert index_sources([root], out, workers=1).ok.all()
    names = sorted(Path(path).name for path in probed)
    assert "0.mp4" not in names
    assert {"4.mp4", "5.mp4"} <= set(names)


def test_a_weight_that_no_file_can_bear_costs_no_probing(tmp_path, probed):
    good, bad = make_videos(tmp_path / "good", "a.mp4", "b.mp4"), tmp_path / "bad"
    bad.mkdir()
    (bad / "x.mp4").write_text("no video")
    out = tmp_path / "m.parquet"
    with pytest.raises(UserError, match="data set bad: has a weight, but no file of it"):
        index_sources([good, bad], out, weights=[1, 2])
    probed.clear()
    assert len(index_sources([good, bad], out)) == 3
    assert [Path(path).name for path in probed] == ["x.mp4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "good", "m.parquet"]


def test_a_file_that_hangs_or_crashes_the_decoder(tmp_path, monkeypatch):
    root = make_videos(tmp_path / "set", "a.mp4", "crash.mp4", "hang.mp4", "z.mp4")
    monkeypatch.setattr(inspect_module, "inspect_order", hanging_order)
    manifest = index_sources(
        [root], tmp_path / "m.parquet", config=IndexConfig(timeout_seconds=2.0)
    )
    assert manifest.ok.tolist() == [True, False, False, True]
    assert "crashed" in (manifest.row(1).reason or "")
    assert "stood still for 2 s" in (manifest.row(2).reason or "")


def test_all_bad_is_an_error_and_leaves_the_old_manifest(tmp_path):
    root = make_videos(tmp_path / "set", "good.mp4")
    out = tmp_path / "m.parquet"
    index_sources([root], out)
    before = out.read_bytes()
    bad = tmp_path / "bad"
    bad.mkdir()
    for number in range(5):
        (bad / f"{number}.mp4").write_text("no video")
    with pytest.raises(
        UserError, match=r"none of the 5 files of .*bad can be used.*0\.mp4: not.*2\.mp4: not"
    ) as error:
        index_sources([bad], out)
    assert "3.mp4" not in str(error.value)
    assert out.read_bytes() == before
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["good.mp4"]
    assert "list" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('\ufeff\n [{"path": "a.mp4"},\n{"path": "b.mp4"}]', "a JSON array"),
        ('{"path": "a.mp4"}\n{"path": "b.mp4"}', "JSON lines"),
        ("path\na.mp4\nb.mp4", "a list"),
        ("[a] b.mp4 1\n{c} d.mp4 2", "a list"),
    ],
)
def test_a_list_of_files_that_are_not_there_says_as_what_it_was_read(tmp_path, text, form):
    (tmp_path / "set.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"2 files of .*set.txt can be used .read as {form}; rel"):
        index_sources([tmp_path / "set.txt"], tmp_path / "m.parquet")


def test_a_mistake_in_a_source_costs_no_probing(tmp_path, probed):
    make_videos(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list.txt").write_text("a.mp4 1\nb.mp4\n")
    with pytest.raises(UserError, match="row 2: has no label"):
        index_sources([tmp_path / "list.txt"], tmp_path / "m.parquet")
    assert probed == []


def test_what_is_asked_must_make_sense(tmp_path):
    root = make_videos(tmp_path / "set", "a.mp4")
    out = tmp_path / "m.parquet"
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "x.mp4").write_text("no video")
    for sources, options, message in (
        ([], {}, "no source to index"),
        ([root], {"weights": [1, 2]}, "weights: 2 given for 1 sources"),
        ([root, root], {"names": ["A", "A"]}, "names: the same name twice"),
        ([root], {"weights": [0]}, "weights: must be above 0, got 0"),
        ([root], {"workers": 0}, "workers: must be at least 1"),
        ([root, bad], {"weights": [1, 1]}, "data set bad: has a weight, but no file of it"),
    ):
        with pytest.raises(UserError, match=message):
            index_sources(sources, out, **options)


def test_out_is_tried_before_the_work(tmp_path, probed):
    root = make_videos(tmp_path / "set", "a.mp4")
    out = tmp_path / "thesis.txt"
    out.write_text("years of work")
    for target, message in (
        (out, r"thesis\.txt: exists and is no manifest"),
        (out / "m.parquet", r"m\.parquet: cannot be written \(\w+.*choose another --out"),
        (root, r"set: exists and is no manifest"),
        (Path("/proc/m.parquet"), r"/proc/m\.parquet: cannot be written"),
        (tmp_path / ("x" * 300), r"cannot be written \(File name too long\)"),
    ):
        with pytest.raises(UserError, match=message):
            index_sources([root], target)
    assert probed == []
    assert out.read_text() == "years of work"


def test_the_manifest_says_where_things_are_relative_to_itself(tmp_path):
    root = make_videos(tmp_path / "set", "a.mp4")
    index_sources([root], root / "m.parquet")
    shutil.move(root, tmp_path / "moved")
    manifest = Manifest.open(tmp_path / "moved" / "m.parquet")
    assert numbers_of(decode_frames(manifest.row(0), [3])) == [3]


def test_dots_in_the_names_of_folders_are_none_of_a_path(tmp_path, monkeypatch):
    root = make_videos(tmp_path / "set", "a.mp4", "sub/b.mp4")
    monkeypatch.chdir(root / "sub")
    manifest = index_sources([".."], "../m.parquet")
    assert [manifest.path(row) for row in (0, 1)] == [f"{root}/a.mp4", f"{root}/sub/b.mp4"]
    assert manifest.table.column("path").to_pylist() == ["a.mp4", "sub/b.mp4"]


def test_a_file_url_and_a_home_folder_are_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In lists and as sources, whether a program wrote %20 for a space or not."""
    monkeypatch.setenv("HOME", str(tmp_path))
    videos = make_videos(tmp_path / "my set", "a.mp4", "100%20.mp4")
    written = ["~/my set/a.mp4", f"file://{tmp_path}/my set/a.mp4"]
    written += [f"file://{host}{tmp_path}/my%20set/a.mp4" for host in ("", "localhost")]
    written += [f"file://{videos}/100%20.mp4", f"{(videos / '100%20.mp4').as_uri()}"]
    expected = [str(videos / "a.mp4")] * 4 + [str(videos / "100%20.mp4")] * 2
    lists = {
        "list.csv": "path,label\n" + "".join(f"{path},x\n" for path in written),
        "list.txt": "".join(f"{path} x\n" for path in written),
        "list.jsonl": "".join(json.dumps({"path": path, "label": "x"}) + "\n" for path in written),
    }
    for name, text in lists.items():
        source = tmp_path / name
        source.write_text(text)
        manifest = index_sources([f"~/{name}"], tmp_path / "m.parquet", workers=1)
        assert [manifest.path(row) for row in range(len(manifest))] == expected
        assert manifest.ok.all()
        assert [row.path for row in read_source(str(source), IndexConfig())] == expected
    for source in ("~/my set", videos.as_uri()):
        assert len(index_sources([source], tmp_path / "m.parquet", workers=1)) == 2
    assert inspect_file("~/my set/a.mp4").path == inspect_file(written[2]).path == expected[0]


def test_object_storage(tmp_path: Path) -> None:
    """A stored folder, a stored file and a list of addresses: the same rows."""
    source = write_video(tmp_path / "a.mp4", Spec(num_frames=10, b_frames=0))
    base = f"memory://{tmp_path.name}"
    for name in ("train/run/a.mp4", "val/walk/b.mp4"):
        with fsspec.open(f"{base}/{name}", "wb") as file:
            file.write(source.read_bytes())
    listed = tmp_path / "list.csv"
    listed.write_text(f"path,label\n{base}/train/run/a.mp4,run\n{base}/val/walk/b.mp4,walk\n")
    config = IndexConfig(label_from_folder=True)
    rows = list(read_source(base, config))
    assert [row.path for row in rows] == [f"{base}/train/run/a.mp4", f"{base}/val/walk/b.mp4"]
    assert [row.split for row in rows] == ["train", "validation"]
    assert [row.labels for row in rows] == [row.labels for row in read_source(str(listed), config)]
    assert [row.path for row in read_source(f"{base}/val/walk/b.mp4", config)] == [rows[1].path]
    for number in range(10):
        with fsspec.open(f"{base}/val/frames/f_{number}.jpg", "wb") as file:
            file.write(b"1")
    left_out = LeftOut()
    assert len(list(read_source(base, config, left_out))) == 12
    assert left_out == {"its images are taken as stills: a clip is a folder on a disk": 1}
    # Reader processes do not share memory:// with this one, but local:// they see.
    manifest = index_sources([f"local://{source}"], tmp_path / "m.parquet", workers=1)
    assert manifest.path(0) == f"local://{source}"
    assert manifest.row(0).num_frames == inspect_file(str(source)).num_frames
    assert len(manifest.content_hash) == 64
