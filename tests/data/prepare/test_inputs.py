"""Parts, windows and names."""

from __future__ import annotations

import math
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.data.clip_files import make_manifest

from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.prepare.config import Part, PreparedInputs, TrimConfig, safe_name, stem_of, windows
from vjepa.data.video.info import VideoInfo
from vjepa.errors import UserError


def _spans(part: Part, duration: float, **trim: object) -> list[tuple[float, float]]:
    return [(cut.start, cut.end) for cut in windows(part, duration, TrimConfig(**trim))]


def test_windows() -> None:
    whole = Part()
    assert windows(whole, 25.0, TrimConfig()) == [whole]
    assert _spans(whole, 25.0, window_seconds=10.0) == [(0, 10), (10, 20), (20, 25)]
    assert _spans(whole, 20.0, window_seconds=10.0) == [(0, 10), (10, 20)]
    assert _spans(whole, 20.5, window_seconds=10.0) == [(0, 10), (10, 20)]
    assert _spans(whole, 0.5, window_seconds=10.0) == [(0, 0.5)]
    assert _spans(whole, 20.5, window_seconds=10.0, min_seconds=0.2)[-1] == (20, 20.5)
    assert _spans(Part(5, 18), 25.0, window_seconds=10.0) == [(5, 15), (15, 18)]
    assert _spans(Part(30, 40), 25.0, window_seconds=10.0) == []
    assert windows(Part(30), 25.0, TrimConfig()) == []
    assert len(_spans(Part(1.1, 4.1), 25.0, window_seconds=2.0)) == 2  # 4.1 - 3.1 < 1


def test_few_windows_are_spread_over_the_video() -> None:
    found = _spans(Part(), 100.0, window_seconds=10.0, max_windows=2)
    assert found == [(20, 30), (70, 80)]
    assert _spans(Part(), 100.0, window_seconds=10.0, max_windows=1) == [(50, 60)]


def test_frames_of_a_part() -> None:
    info = VideoInfo(path="/a.mp4", num_frames=100, fps=25.0, duration_seconds=4.0)
    assert Part().frames(info, None) == (0, 100)
    assert Part(1, 2).frames(info, None) == (25, 50)
    assert Part(3.9, 9).frames(info, None) == (98, 100)
    assert Part(2, 2.001).frames(info, None) == (50, 51)
    assert Part(99).frames(info, None) == (99, 100)
    assert Part(1, 2).seconds(info, None) == 1.0
    assert Part(1, 2).shown_at(info, None, np.array([0, 0.5, 9])).tolist() == [25, 37, 49]


def test_frames_of_a_part_at_a_variable_rate() -> None:
    """Twelve frames half a second apart, then 40 of 40 ms; as a mean 7.2 a second."""
    times = np.concatenate([np.arange(12) * 0.5, 5.54 + np.arange(40) * 0.04])
    info = VideoInfo(path="/a.mkv", num_frames=52, fps=51 / 7.1, duration_seconds=7.24)
    assert Part().frames(info, times) == (0, 52)
    assert Part(0, 5).frames(info, times) == (0, 10)
    assert Part(5.6, 7.06).frames(info, times) == (14, 50)
    assert Part(0.6, 0.9).frames(info, times) == (1, 2), "the one shown throughout"
    assert Part(0.5, 1.0).frames(info, times) == (1, 2)
    assert Part(99).frames(info, times) == (51, 52)
    assert Part(0, 5).seconds(info, times) == pytest.approx(5)
    assert Part().seconds(info, times) == pytest.approx(7.1 + 7.1 / 51)
    moments = np.array([0, 0.49, 0.5, 4.9, 5.6, 99])
    assert Part().shown_at(info, times, moments).tolist() == [0, 0, 1, 9, 13, 51]
    assert Part(0.5, 2).shown_at(info, times, np.array([0, 0.6, 9])).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "path", ["/x/../../etc/passwd", "/a/.mp4", "/a/ü ö.mp4", "/a/" + "x" * 300, "/a/\n;rm -rf.mp4"]
)
def test_names_cannot_lead_anywhere(path: str) -> None:
    row = ManifestRow(info=VideoInfo(path=path), dataset="../k 400")
    name = safe_name(row, Part(1.5, 2), 7)
    assert set(name) <= set(string.ascii_letters + string.digits + "-_")
    assert 10 < len(name) <= 80
    assert name[0] not in "-_." or path.endswith("passwd")
    assert name.endswith("000000007")
    assert safe_name(row, Part(1.5, 2), 8) != name
    assert safe_name(row, Part(2, 2.5), 7) != name


def test_stems() -> None:
    assert stem_of("/a/b.c.mp4") == "b.c"
    assert stem_of("s3://b/abc.MKV") == "abc"
    assert stem_of("/a/frames/") == "frames"
    assert stem_of("-9dX.y1") == "-9dX.y1"


def test_several_manifests_under_one_numbering(tmp_path: Path) -> None:
    first = make_manifest(tmp_path / "a", 2, labels=["x", None])
    second = make_manifest(tmp_path / "b", 1)
    inputs = PreparedInputs([first, second], TrimConfig())
    assert len(inputs) == 3
    rows = [inputs.row(n) for n in range(3)]
    assert [row.info.path for row in rows] == [first.path(0), first.path(1), second.path(0)]
    assert [row.labels for row in rows] == [{"motion": "x"}, {"motion": None}, {}]
    assert [row.split for row in rows] == [first.full_row(0).split] * 3
    assert inputs.videos.label_names == ["motion"]
    assert inputs.digest != PreparedInputs([second, first], TrimConfig()).digest


def test_the_digest_follows_frame_rates_and_names_of_data_sets(tmp_path: Path) -> None:
    info = VideoInfo(path="/v/frames", kind="image_folder", num_frames=30, fps=30.0)
    rows = [(info, "a"), (info, "b"), (replace(info, fps=10.0), "a")]
    manifests = [
        Manifest.from_rows([ManifestRow(info=info, dataset=name)], tmp_path) for info, name in rows
    ]
    assert len({PreparedInputs([one], TrimConfig()).digest for one in manifests}) == 3


def test_parts_from_labels(tmp_path: Path) -> None:
    rows = [
        ManifestRow(info=VideoInfo(path="/a.mp4"), labels={"from": "1.5", "to": "3"}),
        ManifestRow(info=VideoInfo(path="/a.mp4"), labels={"from": None, "to": None}),
    ]
    manifest = Manifest.from_rows(rows, tmp_path)
    inputs = PreparedInputs([manifest], TrimConfig(start_label="from", end_label="to"))
    assert inputs.part(0) == Part(1.5, 3)
    assert inputs.part(1) == Part(0.0, math.inf)
    with pytest.raises(UserError, match="no label 'nothing'"):
        PreparedInputs([manifest], TrimConfig(start_label="nothing"))
    bad = Manifest.from_rows([ManifestRow(info=rows[0].info, labels={"from": "soon"})], tmp_path)
    with pytest.raises(UserError, match="'soon', not a number of seconds"):
        PreparedInputs([bad], TrimConfig(start_label="from"))
