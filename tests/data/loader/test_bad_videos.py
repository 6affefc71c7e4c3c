"""The record of bad videos and the limit to their share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vjepa.data.loader.failures import WINDOW, BadVideoLimit, BadVideoLog, FailedVideo
from vjepa.errors import UserError


def _lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines() if line]


def test_each_path_is_written_once_over_restarts(tmp_path: Path, caplog) -> None:
    file = tmp_path / "run" / "bad_videos.jsonl"
    log = BadVideoLog(file)
    log.add(FailedVideo("/a b.mp4", "truncated", 3))
    log.add(FailedVideo("/a b.mp4", "truncated", 7))
    log.add(FailedVideo("/ü\udcff.mp4", "no frames", 8))
    again = BadVideoLog(file)
    assert len(again) == 2
    again.add(FailedVideo("/a b.mp4", "truncated", 9))
    again.add(FailedVideo("/ü\udcff.mp4", "no frames", 9))
    assert [line["step"] for line in _lines(file)] == [3, 8]
    assert _lines(file)[0] == {
        "path": "/a b.mp4",
        "reason": "truncated",
        "step": 3,
        "kind": "decode",
    }
    assert caplog.text.count("bad video at step") == 2


def test_two_processes_share_a_file(tmp_path: Path) -> None:
    file = tmp_path / "bad_videos.jsonl"
    first, second = BadVideoLog(file), BadVideoLog(file)
    first.add(FailedVideo("/a.mp4", "x", 1, "hang"))
    second.add(FailedVideo("/a.mp4", "x", 1, "hang"))
    second.add(FailedVideo("/b.mp4", "x", 2))
    first.add(FailedVideo("/b.mp4", "x", 2))
    assert [line["path"] for line in _lines(file)] == ["/a.mp4", "/b.mp4"]
    assert second.is_dangerous("/a.mp4")


def test_only_hangs_and_crashes_are_dangerous(tmp_path: Path) -> None:
    file = tmp_path / "bad_videos.jsonl"
    log = BadVideoLog(file)
    for path, kind in (("/d", "decode"), ("/h", "hang"), ("/c", "crash")):
        log.add(FailedVideo(path, "reason", 0, kind))
    for known in (log, BadVideoLog(file)):
        assert [known.is_dangerous(path) for path in ("/d", "/h", "/c")] == [False, True, True]


def test_a_torn_last_line_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "bad_videos.jsonl"
    file.write_text('{"path": "/a.mp4", "reason": "x", "step": 1}\nnull\n{"path": "/b.m')
    log = BadVideoLog(file)
    assert len(log) == 1
    log.add(FailedVideo("/b.mp4", "y", 5))
    again = BadVideoLog(file)
    assert len(again) == 2
    assert json.loads(file.read_text().splitlines()[-1])["path"] == "/b.mp4"


def test_a_file_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = BadVideoLog(tmp_path / "file" / "bad_videos.jsonl")
    with pytest.raises(UserError, match="cannot be written"):
        log.add(FailedVideo("/a.mp4", "x", 1))


def test_the_limit_needs_a_share_and_a_number_and_names_the_worst_reason() -> None:
    limit = BadVideoLimit(max_fraction=0.1, min_bad=5)
    limit.count(0, ["a"] * 4)  # all bad, but only four
    limit.count(45, ["b"])  # 5 of 50: exactly the limit
    with pytest.raises(
        UserError, match=r"max_bad_fraction 0\.1 passed: 6 of the last 51 .* 4 of them because: a;"
    ):
        limit.count(0, ["b"])


def test_the_limit_looks_at_recent_videos_only() -> None:
    limit = BadVideoLimit(max_fraction=0.02, min_bad=5)
    limit.count(980, ["a"] * 20)
    limit.count(WINDOW, [])
    limit.count(980, ["b"] * 20)
    with pytest.raises(UserError, match="21 of the last 1000"):
        limit.count(0, ["c"])
