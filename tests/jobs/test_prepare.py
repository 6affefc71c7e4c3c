"""``vjepa data prepare`` from end to end: what is removed, what is carried, what survives kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tests.data.clip_files import damaged, hanging
from tests.data.prepare.copies import remux, scene, write

from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.loader.loader import ClipLoader, LoaderConfig
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.prepare.config import (
    ExcludeConfig,
    MatchConfig,
    PrepareConfig,
    ShardConfig,
    TranscodeConfig,
    TrimConfig,
)
from vjepa.data.prepare.storing import Store
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError
from vjepa.jobs.prepare import prepare

_FAST = TranscodeConfig(short_side=48, preset="ultrafast", crf=18)
_CONFIG = PrepareConfig(transcode=_FAST)


def _row(path: Path, number: int, split: str = "train") -> ManifestRow:
    return ManifestRow(
        info=inspect_file(str(path)),
        split=split,
        dataset="set",
        weight=1.0 + number % 2,
        labels={"motion": f"m{number % 3}"},
    )


def _manifest(rows: list[ManifestRow], file: Path) -> Path:
    Manifest.from_rows(rows, file.parent).write(file)
    return file


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of eight different videos, two of them for validation."""
    folder = tmp_path_factory.mktemp("videos")
    rows = [
        _row(write(folder / f"v{n}.mp4", scene(n, 30)), n, "validation" if n > 5 else "train")
        for n in range(8)
    ]
    return _manifest(rows, folder / "all.parquet")


@pytest.fixture(scope="module")
def prepared(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    """The same videos as shards and as files."""
    made = {}
    for form in ("tar", "files"):
        out = tmp_path_factory.mktemp(form) / "out"
        config = replace(_CONFIG, shards=ShardConfig(form=form))
        report = prepare([videos], out, config, workers=2)
        assert report.removed == {}
        made[form] = Manifest.open(report.manifest)
    return made


def test_labels_weights_and_splits_are_carried(videos: Path, prepared: dict) -> None:
    before = Manifest.open(videos)
    for manifest in prepared.values():
        assert len(manifest) == 8
        assert manifest.ok.all()
        assert manifest.splits == ["train", "validation"]
        assert manifest.categories("dataset").classes == ["set"]
        source = pq.read_table(manifest.source).column("source_path").to_pylist()
        place = {before.path(row): row for row in range(8)}
        order = [place[path] for path in source]
        assert sorted(order) == list(range(8))
        assert manifest.labels("motion").tolist() == before.labels("motion")[order].tolist()
        assert np.allclose(manifest.weights, before.weights[order] / before.weights.mean())
        assert np.array_equal(manifest.num_frames, before.num_frames[order])
        assert np.all(np.minimum(manifest.numeric("width"), manifest.numeric("height")) == 48)


def test_the_index_says_where_each_video_lies(prepared: dict) -> None:
    table = pq.read_table(prepared["tar"].source)
    folder = Path(prepared["tar"].source).parent
    for row in table.select(["shard", "offset", "length"]).to_pylist():
        with (folder / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            data = file.read(row["length"])
        assert data[4:8] == b"ftyp"
        assert len(data) == row["length"]
    shards = set(table.column("shard").to_pylist())
    assert shards == {"shards/train-000000.tar", "shards/validation-000000.tar"}


def test_the_folder_can_be_moved(prepared: dict, tmp_path: Path) -> None:
    source = Path(prepared["tar"].source).parent
    (tmp_path / "moved").symlink_to(source)
    moved = Manifest.open(tmp_path / "moved" / "manifest.parquet")
    assert moved.path(0).startswith(f"{tmp_path}/moved/shards/")
    assert moved.content_hash == prepared["tar"].content_hash
    assert inspect_file(moved.path(0)).ok


def _batches(
    manifest: Manifest, num_workers: int, world_size: int = 1
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Clips and labels of two steps, put together from all ranks."""
    parts: list[list] = []
    for rank in range(world_size):
        with ClipLoader(
            [manifest.select("train")],
            None,
            ClipConfig(num_frames=4, stride=2),
            TransformConfig(crop_size=32),
            LoaderConfig(num_workers=num_workers),
            batch_size=6,
            seed=3,
            label="motion",
            rank=rank,
            world_size=world_size,
        ) as loader:
            # The pixels lie in memory that the next batch takes over.
            parts.append([(b.clips.clone(), b.labels.clone()) for b in loader.batches(0, 2)])
    for step in zip(*parts, strict=True):
        yield torch.cat([clips for clips, _ in step]), torch.cat([labels for _, labels in step])


@pytest.mark.parametrize(("num_workers", "world_size"), [(0, 2), (1, 1), (3, 1)])
def test_shards_give_the_same_samples_and_pixels_as_files(
    num_workers: int, world_size: int, prepared: dict
) -> None:
    expected = list(_batches(prepared["files"], 0))
    found = list(_batches(prepared["tar"], num_workers, world_size))
    for (clips, labels), (other_clips, other_labels) in zip(expected, found, strict=True):
        assert torch.equal(clips, other_clips)
        assert torch.equal(labels, other_labels)
    assert expected[0][0].float().std() > 20


def test_copies_and_validation_videos_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    val, train = tmp_path / "val", tmp_path / "train"
    held = [write(val / f"held{n}.mp4", scene(50 + n, 30)) for n in range(3)]
    files = [write(train / f"a{n}.mp4", scene(n, 30)) for n in range(5)]
    files += [
        write(train / "held0_000010_000020.mp4", scene(60, 30)),  # by its name
        remux(held[1], train / "other_name.mkv"),  # by its content
        write(train / "smaller.mp4", scene(52, 30), size=(64, 48), crf=35),  # by its look
        remux(files[0], train / "again.mkv"),
        write(train / "again_smaller.mp4", scene(1, 30), size=(64, 48), crf=35),
        write(train / "sub" / "a2.mp4", scene(61, 30)),
    ]
    listed = _manifest([_row(path, n) for n, path in enumerate(files)], tmp_path / "t.parquet")
    lists = _manifest([_row(path, n) for n, path in enumerate(held)], tmp_path / "v.parquet")
    config = replace(
        _CONFIG,
        exclude=(ExcludeConfig(path=lists),),
        match=MatchConfig(duplicate_names=True),
        max_removed=0.6,
        near_copies="remove",
    )
    out = tmp_path / "out"
    with caplog.at_level("WARNING", "vjepa"):
        report = prepare([listed], out, config, workers=2)
    assert "1 copies have another label than the video that stays" in caplog.text
    removed = [json.loads(line) for line in (out / "removed.jsonl").read_text().splitlines()]
    names = {Path(one["path"]).name: (one["reason"], Path(one["same_as"]).name) for one in removed}
    assert names == {
        "held0_000010_000020.mp4": ("excluded by id", "v.parquet"),
        "other_name.mkv": ("excluded by content", "held1.mp4"),
        "smaller.mp4": ("excluded by pictures", "held2.mp4"),
        "again.mkv": ("duplicate by content", "a0.mp4"),
        "again_smaller.mp4": ("duplicate by pictures", "a1.mp4"),
        "a2.mp4": ("duplicate by name", "a2.mp4"),
    }
    assert report.num_videos == 5
    assert json.loads((out / "report.json").read_text())["removed"]["excluded by id"] == 1
    assert any("left out, excluded by pictures: 1" in line for line in report.lines())


def test_recordings_of_a_camera_that_does_not_move_are_all_kept(tmp_path: Path) -> None:
    """They look alike, half of one's frames or more; only the same bytes are a copy for certain."""
    room, other = scene(3, 48, speed=0), scene(7, 48)
    days = []
    for day, begin in enumerate((0, 8, 16, 20)):
        frames = room.copy()
        frames[begin : begin + 12] = other[begin : begin + 12]  # something else happens
        days.append(write(tmp_path / f"day{day}.mp4", frames))
    days.append(remux(days[0], tmp_path / "again.mkv"))
    listed = _manifest([_row(path, n) for n, path in enumerate(days)], tmp_path / "m.parquet")
    out = tmp_path / "out"
    report = prepare([listed], out, _CONFIG, workers=2)
    assert report.removed == {"duplicate by content": 1}
    assert (report.num_videos, report.num_sources, report.near_copies) == (4, 4, 3)
    near = [json.loads(line) for line in (out / "near_copies.jsonl").read_text().splitlines()]
    assert [Path(one["path"]).stem for one in near] == ["day1", "day2", "day3"]
    assert all("alike" in one["detail"] and one["same_as"] for one in near)
    said = "\n".join(report.lines())
    assert "kept, but their pictures are like those of another one: 3 (all in near_copies" in said
    assert prepare([listed], out, _CONFIG, workers=1) == report
    asked = replace(_CONFIG, near_copies="remove", max_removed=1.0)
    report = prepare([listed], tmp_path / "other", asked, workers=2)
    assert report.removed == {"duplicate by content": 1, "duplicate by pictures": 3}
    assert report.near_copies == 0


def test_near_copies_of_three_kinds_are_listed_and_kept(tmp_path: Path) -> None:
    """Slow changes before one camera; one recording in two codecs; the same, cut a second later."""
    room, film = scene(3, 36, speed=0).astype(np.float32), scene(5, 60)
    fade = np.linspace(1.0, 0.55, 108)[:, None, None, None]
    hours = [(np.concatenate([room] * 3) * fade).astype(np.uint8)[n : n + 36] for n in (0, 36, 72)]
    paths = [write(tmp_path / f"hour{n}.mp4", frames) for n, frames in enumerate(hours)]
    paths += [
        write(tmp_path / "film.mp4", film[:48]),
        write(tmp_path / "other_codec.avi", film[:48], codec="mpeg4"),
        write(tmp_path / "later.mkv", film[12:]),
        write(tmp_path / "else.mp4", scene(9, 48)),
    ]
    listed = _manifest([_row(path, n) for n, path in enumerate(paths)], tmp_path / "m.parquet")
    out = tmp_path / "out"
    report = prepare([listed], out, _CONFIG, workers=1)
    assert (report.removed, report.num_videos) == ({}, 7)
    near = [json.loads(line) for line in (out / "near_copies.jsonl").read_text().splitlines()]
    like = {Path(one["path"]).stem: Path(one["same_as"]).stem for one in near}
    assert like == {"hour1": "hour0", "hour2": "hour0", "other_codec": "film", "later": "film"}


def test_splits_whose_names_become_alike_share_no_shard_file(tmp_path: Path) -> None:
    rows = [
        _row(write(tmp_path / f"{n}.mp4", scene(n, 12)), n, split)
        for n, split in enumerate(("part a", "part_a", "part/a"))
    ]
    report = prepare([_manifest(rows, tmp_path / "m.parquet")], tmp_path / "out", _CONFIG)
    made = Manifest.open(report.manifest)
    assert made.splits == ["part a", "part/a", "part_a"]
    assert [inspect_file(made.path(row)).ok for row in range(3)] == [True] * 3


def test_running_numbers_as_names_stop_the_run(videos: Path, tmp_path: Path) -> None:
    held = write(tmp_path / "v0.mp4", scene(99, 30))
    others = [write(tmp_path / f"v{n}.mp4", scene(99 + n, 30)) for n in range(1, 8)]
    rows = [_row(path, n) for n, path in enumerate([held, *others])]
    lists = _manifest(rows, tmp_path / "v.parquet")
    config = replace(_CONFIG, exclude=(ExcludeConfig(path=lists),))
    with pytest.raises(UserError, match=r"excluded by id: 8.*match.by_id false"):
        prepare([videos], tmp_path / "out", config, workers=1)
    only = replace(config, match=MatchConfig(by_id=False))
    assert prepare([videos], tmp_path / "out", only, workers=1).num_videos == 8


def test_bad_videos_cost_a_row_each(tmp_path: Path) -> None:
    good = write(tmp_path / "good.mp4", scene(1, 30))
    late = write(tmp_path / "late.mp4", scene(2, 30))
    rows = [
        _row(good, 0),
        ManifestRow(info=damaged(tmp_path)),
        ManifestRow(info=hanging(tmp_path)),
        replace(_row(late, 1), info=replace(inspect_file(str(late)), ok=False, reason="was bad")),
    ]
    config = replace(_CONFIG, timeout_seconds=3.0)
    report = prepare([_manifest(rows, tmp_path / "m.parquet")], tmp_path / "out", config, workers=2)
    assert report.num_videos == 1
    assert report.removed == {"unreadable": 2, "unusable": 1}
    assert any("did not end within 3 s" in line for line in report.lines())


@pytest.mark.parametrize("when", ["looked at", "encoded"])
def test_a_disk_that_was_away_makes_no_small_set(when: str, tmp_path: Path) -> None:
    clips = [write(tmp_path / f"{number}.mp4", scene(number, 30)) for number in range(5)]
    videos = _manifest([_row(path, n) for n, path in enumerate(clips)], tmp_path / "m.parquet")
    config = _CONFIG if when == "looked at" else replace(_CONFIG, deduplicate=False)
    away = tmp_path / "away"
    away.mkdir()
    for clip in clips[2:]:
        clip.rename(away / clip.name)
    for _ in range(2):
        with pytest.raises(UserError, match=r"3 of 5 videos could not be .* is their disk there"):
            prepare([videos], tmp_path / "out", config, workers=1)
    for clip in clips[2:]:
        (away / clip.name).rename(clip)
    assert prepare([videos], tmp_path / "out", config, workers=1).num_videos == 5


def test_windows_become_videos(videos: Path, tmp_path: Path) -> None:
    trim = TrimConfig(window_seconds=1.0)
    report = prepare([videos], tmp_path / "out", replace(_CONFIG, trim=trim), workers=2)
    manifest = Manifest.open(report.manifest)
    # 30 frames at 12 a second are two windows and half a second that is too short.
    assert len(manifest) == 16
    assert "kept: parts of 8 of the 8 videos" in report.lines()
    assert set(manifest.num_frames.tolist()) == {12}
    table = pq.read_table(report.manifest)
    assert set(table.column("source_start_seconds").to_pylist()) == {0.0, 1.0}


_COMMAND = """
import sys
from vjepa.cli.main import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


def test_a_killed_run_goes_on_and_does_nothing_twice(
    videos: Path, prepared: dict, tmp_path: Path
) -> None:
    script = tmp_path / "run.py"
    script.write_text(_COMMAND)
    out = tmp_path / "out"
    arguments = ["data", "prepare", str(videos), "--out", str(out), "--workers", "1"]
    arguments += ["--transcode.short_side", "48", "--transcode.preset", "ultrafast"]
    arguments += ["--transcode.crf", "18"]
    command = [sys.executable, str(script), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    journal = out / "work" / "encoded.jsonl"
    deadline = time.monotonic() + 600
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    noted = journal.read_bytes()
    whole = noted[: noted.rfind(b"\n") + 1]
    assert not (out / "manifest.parquet").exists()
    report = prepare([videos], out, _CONFIG, workers=1)
    assert report.num_videos == 8
    after = journal.read_bytes()
    assert after.startswith(whole)
    keys = [json.loads(line)["key"] for line in after.splitlines()]
    assert len(keys) == len(set(keys)) == 8
    assert _files(out) == _files(Path(prepared["tar"].source).parent)


def test_a_run_stopped_between_shards_goes_on(
    videos: Path, prepared: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    store = Store.store

    def stop_after_one(self: Store, name: str, some: list) -> None:
        if name.startswith("validation"):
            raise KeyboardInterrupt
        store(self, name, some)

    monkeypatch.setattr(Store, "store", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        prepare([videos], out, _CONFIG, workers=1)
    assert list(_files(out)) == ["train-000000.tar"]
    first = (out / "shards" / "train-000000.tar").stat().st_mtime_ns
    monkeypatch.setattr(Store, "store", store)
    assert prepare([videos], out, _CONFIG, workers=1).num_videos == 8
    assert (out / "shards" / "train-000000.tar").stat().st_mtime_ns == first
    assert _files(out) == _files(Path(prepared["tar"].source).parent)
    assert not (out / "work" / "parts").exists()


def test_a_finished_folder_is_left_alone(videos: Path, prepared: dict, tmp_path: Path) -> None:
    out = Path(prepared["tar"].source).parent
    before = Path(prepared["tar"].source).stat().st_mtime_ns
    config = replace(_CONFIG, shards=ShardConfig(form="tar"))
    assert prepare([videos], out, config, workers=1).num_videos == 8
    assert Path(prepared["tar"].source).stat().st_mtime_ns == before
    with pytest.raises(UserError, match="made from other videos or with other settings"):
        prepare([videos], out, replace(config, deduplicate=False), workers=1)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="holds nothing of `vjepa data prepare`"):
        prepare([videos], tmp_path, config, workers=1)


def test_an_address_for_the_shards(videos: Path, tmp_path: Path) -> None:
    shards = ShardConfig(url="memory://bucket/set/", megabytes=1)
    config = replace(_CONFIG, shards=shards, transcode=TranscodeConfig(mode="copy"))
    report = prepare([videos], tmp_path / "out", config, workers=1)
    manifest = Manifest.open(report.manifest)
    path = manifest.path(0)
    assert path.startswith("memory://bucket/set/shards/")
    import fsspec

    for shard in (tmp_path / "out" / "shards").iterdir():
        with fsspec.open(f"memory://bucket/set/shards/{shard.name}", "wb") as file:
            file.write(shard.read_bytes())
    assert [inspect_file(manifest.path(row)).ok for row in range(len(manifest))] == [True] * 8
    assert manifest.select("train").content_hash


def test_a_missing_validation_video_is_an_error(videos: Path, tmp_path: Path) -> None:
    held = write(tmp_path / "held.mp4", scene(70, 30))
    lists = _manifest([_row(held, 0)], tmp_path / "v.parquet")
    held.unlink()
    config = replace(_CONFIG, exclude=(ExcludeConfig(path=lists),))
    with pytest.raises(UserError, match=r"validation video .*held.mp4: No such file"):
        prepare([videos], tmp_path / "out", config, workers=1)
