"""Synthetic sets as true videos, resumable, one set per folder."""

import csv
from dataclasses import replace

import av
import numpy as np
import pytest

from vjepa.demo import synthetic_files
from vjepa.demo.synthetic import SyntheticConfig, render_clip
from vjepa.demo.synthetic_files import clip_path, write_synthetic_set
from vjepa.errors import UserError

CONFIG = SyntheticConfig(num_clips_train=20, num_clips_validation=3, num_clips_test=4, size=32)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("set")
    write_synthetic_set(CONFIG, out)
    return out


def test_labels_name_every_file(written):
    with (written / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "split", "motion", "appearance"]
    assert len(rows) == 27
    videos = {p.relative_to(written).as_posix() for p in written.rglob("*.mp4")}
    assert {row["path"] for row in rows} == videos
    clip = render_clip(CONFIG, "test", 2)
    row = next(row for row in rows if row["path"] == clip_path("test", 2).as_posix())
    assert list(row.values())[1:] == ["test", clip.motion, clip.appearance]


def test_files_are_plain_h264_and_decode_to_the_drawn_frames(written):
    for index in range(4):
        with av.open(str(written / clip_path("test", index))) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
            assert stream.average_rate == CONFIG.fps
            frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
        drawn = render_clip(CONFIG, "test", index).frames
        assert frames.shape == drawn.shape
        assert np.abs(frames.astype(int) - drawn.astype(int)).mean() < 8


def test_two_processes_write_the_same_bytes(written, tmp_path, capsys):
    write_synthetic_set(CONFIG, tmp_path, workers=2)
    assert contents(tmp_path) == contents(written)
    assert capsys.readouterr().err.endswith("synth: 27/27 (100 %)\n")


def test_a_cut_short_set_is_continued_and_complete_files_are_kept(written, tmp_path):
    write_synthetic_set(CONFIG, tmp_path)
    kept = tmp_path / clip_path("train", 0)
    stamp = kept.stat().st_mtime_ns
    (tmp_path / "labels.csv").unlink()
    (tmp_path / clip_path("train", 1)).unlink()
    (tmp_path / clip_path("train", 2)).write_bytes(b"")
    write_synthetic_set(CONFIG, tmp_path)
    assert contents(tmp_path) == contents(written)
    assert kept.stat().st_mtime_ns == stamp


def test_a_kill_leaves_no_half_file_under_a_final_name(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic_files, "write_mp4", fail)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_set(CONFIG, tmp_path)
    assert not list(tmp_path.rglob("*.mp4"))
    assert not (tmp_path / "labels.csv").exists()


def test_another_set_in_the_folder_is_one_clear_error(written):
    before = contents(written)
    with pytest.raises(UserError, match=r"another config \(seed: 0 -> 1"):
        write_synthetic_set(replace(CONFIG, seed=1), written)
    assert contents(written) == before


def test_a_foreign_folder_is_not_touched_and_a_spoilt_settings_file_is_named(tmp_path):
    with pytest.raises(UserError, match="workers is 0"):
        write_synthetic_set(CONFIG, tmp_path, workers=0)
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="holds nothing of `vjepa data synth`"):
        write_synthetic_set(CONFIG, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["train"]
    (tmp_path / "synthetic.json").write_text('{"format": "vjepa synthetic set"}')
    with pytest.raises(UserError, match="begun by an older version; give another --out"):
        write_synthetic_set(CONFIG, tmp_path)
    (tmp_path / "config.yaml").write_text("# vjepa data synth\nseed: [")
    with pytest.raises(UserError, match=r"config\.yaml"):
        write_synthetic_set(CONFIG, tmp_path)


def test_a_set_with_colours_has_a_third_label_and_another_folder(tmp_path):
    small = replace(CONFIG, num_clips_train=3, num_clips_validation=0, num_clips_test=0)
    path = write_synthetic_set(replace(small, colours=True), tmp_path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "split", "motion", "appearance", "colour"]
    with pytest.raises(UserError, match="colours: True -> False"):
        write_synthetic_set(small, tmp_path)
