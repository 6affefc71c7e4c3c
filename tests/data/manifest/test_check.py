from __future__ import annotations

from dataclasses import replace

from PIL import Image
from tests.data.video_files import SPECS, Spec, damage, write_image_folder, write_video

from vjepa.data.manifest.index import check_manifest, index_sources


def test_check(tmp_path, capsys):
    root = tmp_path / "set"
    (root / "train").mkdir(parents=True)
    gone = write_video(root / "train" / "gone.mp4", Spec(num_frames=10))
    one_group = replace(SPECS["h264.avi"], gop=250, options={"x264-params": "scenecut=0"})
    write_video(root / "train" / "h264.avi", one_group)
    write_video(root / "vfr.mkv", SPECS["h264_vfr.mkv"])
    changed = write_video(root / "vp9.webm", SPECS["vp9.webm"])
    write_image_folder(root / "clip", 30)
    (root / "text.mp4").write_text("no video")
    manifest = index_sources([root], tmp_path / "m.parquet")

    report = check_manifest(manifest)
    assert (report.num_rows, report.num_ok, report.num_changed) == (6, 5, 0)
    assert [(bad.row, bad.path) for bad in report.bad] == [(0, str(root / "text.mp4"))]
    assert "not a video" in report.bad[0].reason
    assert report.num_frames == 10 + 60 + 60 + 60 + 30
    assert report.by_codec == {"h264": 3, "vp9": 1, "png": 1}
    assert report.by_split == {"": 3, "train": 2}
    assert (report.num_variable_rate, report.num_unindexed) == (1, 1)
    assert report.duration_hours * 3600 > 0.4 + 2.4 + 2.4 + 1
    assert report.num_bytes == sum(manifest.row(row).bytes for row in range(6) if manifest.ok[row])

    gone.unlink()
    write_video(changed, Spec(codec="libvpx-vp9", b_frames=0, num_frames=3))
    capsys.readouterr()
    report = check_manifest(manifest)
    assert (report.num_ok, report.num_changed) == (4, 2)
    assert [bad.reason for bad in report.bad][1:] == ["No such file or directory"]
    assert capsys.readouterr().err == "check: 6/6 (100 %), 2 bad\n"


def test_unusual_files_are_named_where_they_lie(tmp_path):
    path = tmp_path / "below" / "two.tif"
    path.parent.mkdir()
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    manifest = index_sources([path], tmp_path / "m.parquet")
    assert manifest.table.column("path").to_pylist() == ["below/two.tif"]
    for deep in (False, True):
        assert [name for name, _ in check_manifest(manifest, deep=deep).notes] == [str(path)]


def test_deep_check_finds_damage_that_a_look_at_the_packets_cannot(tmp_path):
    path = write_video(tmp_path / "set.mp4", Spec(num_frames=60, b_frames=0, gop=12))
    damage(path, 3, 4)
    manifest = index_sources([path], tmp_path / "m.parquet")
    assert check_manifest(manifest).num_ok == 1
    report = check_manifest(manifest, deep=True)
    assert report.num_ok == 0
    assert "of 60 frames damaged" in report.bad[0].reason
