"""The loader's promise: a batch depends on the seed and the step and on nothing else."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.clip_files import damaged, hanging, make_manifest, with_rows

from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.dataset import TrainingClips
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.source import VideoSource
from vjepa.data.loader import reading
from vjepa.data.loader.loader import ClipBatch, ClipLoader, LoaderConfig
from vjepa.data.loader.reading import SharedArray
from vjepa.data.manifest.manifest import Manifest
from vjepa.data.video.decode import decode_parts
from vjepa.errors import UserError
from vjepa.runtime.workers import WorkerPool

CLIP = ClipConfig(num_frames=4, stride=2)
TRANSFORM = TransformConfig(crop_size=16)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    labels = ["left", "right", "left", "turn", "turn", "left"]
    folder = tmp_path_factory.mktemp("videos")
    return make_manifest(folder, 6, num_frames=[24, 20, 5, 16, 24, 12], labels=labels)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    labels = ["up"] * 3
    return make_manifest(tmp_path_factory.mktemp("other"), 3, width=64, labels=labels)


def _loader(manifests: list[Manifest], **fields) -> ClipLoader:
    names = ("num_workers", "prefetch_batches", "sample_timeout_seconds", "max_retries")
    names += ("max_bad_fraction", "min_bad_videos", "max_clip_gigabytes", "max_queue_gigabytes")
    config = {"num_workers": 0, **{name: fields.pop(name) for name in names if name in fields}}
    arguments = {
        "weights": None,
        "clip": CLIP,
        "transform": TRANSFORM,
        "batch_size": 6,
        "seed": 5,
        **fields,
    }
    return ClipLoader(manifests, loader=LoaderConfig(**config), **arguments)


def _take(manifests: list[Manifest], start: int, stop: int, **fields) -> list[ClipBatch]:
    with _loader(manifests, **fields) as loader:
        return list(loader.batches(start, stop))


def _assert_equal(ours: list[ClipBatch], theirs: list[ClipBatch]) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.step == b.step
        np.testing.assert_array_equal(a.ordinals, b.ordinals)
        np.testing.assert_array_equal(a.rows, b.rows)
        assert torch.equal(a.clips, b.clips)
        assert (a.labels is None) == (b.labels is None)
        assert a.labels is None or b.labels is None or torch.equal(a.labels, b.labels)
        assert a.num_bad == b.num_bad


def test_a_batch_is_what_its_parts_say(manifest: Manifest) -> None:
    (batch,) = _take([manifest], 3, 4, label="motion")
    assert batch.step == 3
    assert batch.ordinals.tolist() == list(range(18, 24))
    assert batch.clips.shape == (6, 3, 4, 16, 16)
    assert batch.clips.dtype == torch.uint8
    assert batch.num_bad == 0
    assert batch.wait_seconds > 0
    names = ["left", "right", "turn"]
    motions = manifest.labels("motion")
    assert batch.labels is not None
    assert [names[label] for label in batch.labels] == [motions[row] for row in batch.rows[:, 1]]
    recipe = TrainingClips(CLIP, TRANSFORM, 5, 1.0)
    for place, ordinal in enumerate(batch.ordinals):
        video = manifest.row(batch.rows[place, 1])
        alone = torch.empty(1, 3, 4, 16, 16, dtype=torch.uint8)
        recipe.cut(VideoSource(video), np.array([ordinal]), alone)
        assert torch.equal(alone[0], batch.clips[place])


@pytest.mark.parametrize("num_workers", [1, 3])
def test_any_number_of_workers_gives_the_same_batches(
    manifest: Manifest, other: Manifest, num_workers: int
) -> None:
    fields = {"weights": [3.0, 1.0], "label": "motion"}
    expected = _take([manifest, other], 0, 7, **fields)
    _assert_equal(_take([manifest, other], 0, 7, num_workers=num_workers, **fields), expected)
    assert {int(source) for batch in expected for source in batch.rows[:, 0]} == {0, 1}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_resumed_at_any_step_sees_what_it_would_have_seen(
    manifest: Manifest, num_workers: int
) -> None:
    whole = _take([manifest], 0, 8)
    with _loader([manifest], num_workers=num_workers) as loader:
        for start, stop in ((5, 8), (0, 2), (7, 8)):
            _assert_equal(list(loader.batches(start, stop)), whole[start:stop])


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_the_ranks_parts_make_the_whole_batch(manifest: Manifest, world_size: int) -> None:
    clip = replace(CLIP, clips_per_video=2)
    whole = _take([manifest], 0, 3, clip=clip)
    ranks = [
        _take([manifest], 0, 3, clip=clip, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        assert torch.equal(torch.cat([part.clips for part in parts]), batch.clips)
        np.testing.assert_array_equal(np.concatenate([p.ordinals for p in parts]), batch.ordinals)
        np.testing.assert_array_equal(np.concatenate([p.rows for p in parts]), batch.rows)


def test_seeds_differ(manifest: Manifest) -> None:
    (first,), (second,) = _take([manifest], 0, 1), _take([manifest], 0, 1, seed=6)
    assert not torch.equal(first.clips, second.clips)


def test_clips_of_one_video_are_decoded_in_one_opening(manifest: Manifest, monkeypatch) -> None:
    calls: list[str] = []

    def counted(video, orders):
        calls.append(video.path)
        return decode_parts(video, orders)

    monkeypatch.setattr("vjepa.data.video.decode.decode_parts", counted)
    (batch,) = _take([manifest], 0, 1, clip=replace(CLIP, clips_per_video=3))
    assert len(calls) == 2
    assert batch.rows[:, 1].tolist() == [batch.rows[0, 1]] * 3 + [batch.rows[3, 1]] * 3
    assert len(torch.unique(batch.clips.flatten(1), dim=0)) == 6


def test_a_bad_video_costs_one_sample(manifest: Manifest, tmp_path: Path) -> None:
    mixed = with_rows(manifest, [damaged(tmp_path), damaged(tmp_path, "two.mp4")], tmp_path)
    log = tmp_path / "bad_videos.jsonl"
    fields = {"max_bad_fraction": 1.0}
    expected = _take([mixed], 0, 6, bad_videos_log=log, **fields)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(Path(line["path"]).name for line in lines) == ["damaged.mp4", "two.mp4"]
    assert all(line["reason"] and line["kind"] == "decode" for line in lines)
    assert sum(batch.num_bad for batch in expected) >= 2 * 4
    assert all((batch.rows[:, 1] < 6).all() for batch in expected)
    _assert_equal(_take([mixed], 0, 6, num_workers=2, **fields), expected)
    clean = _take([manifest], 0, 6)
    assert not torch.equal(expected[0].clips, clean[0].clips)


def test_a_replacement_keeps_the_samples_own_randomness(manifest: Manifest, tmp_path: Path) -> None:
    mixed = with_rows(manifest, [damaged(tmp_path)], tmp_path)
    batches = _take([mixed], 0, 4, max_bad_fraction=1.0)
    recipe = TrainingClips(CLIP, TRANSFORM, 5, 1.0)
    assert sum(batch.num_bad for batch in batches) > 0
    for batch in batches:
        for place, ordinal in enumerate(batch.ordinals):
            alone = torch.empty(1, 3, 4, 16, 16, dtype=torch.uint8)
            video = mixed.row(batch.rows[place, 1])
            recipe.cut(VideoSource(video), np.array([ordinal]), alone)
            assert torch.equal(alone[0], batch.clips[place])


def test_a_video_that_hangs_is_killed_and_replaced(
    manifest: Manifest, tmp_path: Path, caplog
) -> None:
    mixed = with_rows(manifest, [hanging(tmp_path)], tmp_path)
    log = tmp_path / "bad_videos.jsonl"
    fields = {"max_bad_fraction": 1.0, "bad_videos_log": log}
    fields |= {"num_workers": 2, "sample_timeout_seconds": 2.0}
    batches = _take([mixed], 0, 6, **fields)
    (line,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert (line["kind"], Path(line["path"]).name) == ("hang", "hanging.mp4")
    assert caplog.text.count("reading it did not end within 2 s") >= 2, "it had a second chance"
    assert sum(batch.num_bad for batch in batches) >= 4
    # A resumed run, and one without a watchdog, know the file from the record and do not touch it.
    fields |= {"num_workers": 0}
    _assert_equal(_take([mixed], 2, 6, **fields), batches[2:])


def test_a_worker_that_dies_changes_nothing(manifest: Manifest, caplog) -> None:
    expected = _take([manifest], 0, 12)
    with _loader([manifest], num_workers=2, prefetch_batches=1) as loader:
        got = []
        for batch in loader.batches(0, 12):
            got.append(batch)
            if batch.step in (2, 5):
                os.kill(loader.worker_ids[0], signal.SIGKILL)
    _assert_equal(got, expected)
    assert caplog.text.count("killed by SIGKILL") == 2


def test_a_worker_that_stands_still_changes_nothing(
    manifest: Manifest, tmp_path: Path, caplog
) -> None:
    """As on a network drive that does not answer for longer than a video may take."""
    expected = _take([manifest], 0, 8)
    log = tmp_path / "bad_videos.jsonl"
    fields = {"num_workers": 2, "prefetch_batches": 1, "sample_timeout_seconds": 5.0}
    with _loader([manifest], bad_videos_log=log, **fields) as loader:
        got = []
        for batch in loader.batches(0, 8):
            got.append(batch)
            if batch.step == 2:
                os.kill(loader.worker_ids[0], signal.SIGSTOP)
    _assert_equal(got, expected)
    assert caplog.text.count("reading it did not end within 5 s") == 1
    assert not log.exists()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_bad_videos_stop_the_run(
    manifest: Manifest, tmp_path: Path, num_workers: int
) -> None:
    bad = [damaged(tmp_path, f"bad_{number}.mp4") for number in range(3)]
    mixed = with_rows(manifest, bad, tmp_path)
    with (
        _loader([mixed], num_workers=num_workers, min_bad_videos=5) as loader,
        pytest.raises(UserError, match=r"max_bad_fraction 0\.05 passed: \d+ of .* because"),
    ):
        list(loader.batches(0, 50))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_when_no_replacement_can_be_read_the_run_stops(
    manifest: Manifest, tmp_path: Path, num_workers: int
) -> None:
    infos = [damaged(tmp_path, f"bad_{number}.mp4") for number in range(3)]
    only_bad = Manifest(with_rows(manifest, infos, tmp_path).table.slice(6), tmp_path)
    with (
        _loader([only_bad], num_workers=num_workers, max_retries=4) as loader,
        pytest.raises(UserError, match=r"5 videos in a row .*/bad_\d\.mp4"),
    ):
        next(iter(loader.batches(0, 1)))


def test_a_clip_that_needs_too_much_memory_is_bad(manifest: Manifest) -> None:
    with (
        _loader([manifest], max_clip_gigabytes=1e-6) as loader,
        pytest.raises(UserError, match=r"frames of 48x32 take 0\.0 GB, loader\.max_clip"),
    ):
        next(iter(loader.batches(0, 1)))


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate"), RuntimeError("DefaultCPUAllocator: can't")]
)
def test_a_video_that_memory_does_not_suffice_for_is_bad(
    manifest: Manifest, monkeypatch, error: Exception
) -> None:
    def resize(*_: object) -> None:
        raise error

    monkeypatch.setattr("vjepa.data.clips.cut.resize_frames", resize)
    with pytest.raises(UserError, match="out of memory while reading it"):
        _take([manifest], 0, 1)


def test_short_videos_can_be_bad(manifest: Manifest) -> None:
    clip = ClipConfig(num_frames=8, stride=2, short_video="error")
    batches = _take([manifest], 0, 8, clip=clip, max_bad_fraction=1.0)
    assert {int(row) for batch in batches for row in batch.rows[:, 1]} == {0, 1, 3, 4}


def test_batches_belong_to_the_caller(manifest: Manifest) -> None:
    with _loader([manifest], num_workers=1, prefetch_batches=1) as loader:
        steps = loader.batches(0, 6)
        first = next(steps)
        kept = first.clips.clone()
        list(steps)
        assert torch.equal(first.clips, kept)
    assert torch.equal(first.clips, kept)


@pytest.mark.parametrize("place", ["-", "script.py"])
def test_any_script_may_use_workers(manifest: Manifest, tmp_path: Path, place: str) -> None:
    """One from stdin too, and one that does not guard its work by ``__name__``."""
    manifest.write(tmp_path / "videos.parquet")
    script = (
        "from vjepa.data import ClipConfig, ClipLoader, LoaderConfig, Manifest, TransformConfig\n"
        "clip, transform = ClipConfig(num_frames=4, stride=2), TransformConfig(crop_size=16)\n"
        "loader = LoaderConfig(num_workers=1)\n"
        "manifests = [Manifest.open('videos.parquet')]\n"
        "with ClipLoader(manifests, None, clip, transform, loader, 6, 5) as made:\n"
        "    for batch in made.batches(0, 2):\n"
        "        print(int(batch.clips.sum()))\n"
    )
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, place]
    done = subprocess.run(command, cwd=tmp_path, input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = [int(batch.clips.sum()) for batch in _take([manifest], 0, 2)]
    assert [int(line) for line in done.stdout.split()] == expected


@pytest.mark.parametrize("num_workers", [0, 1])
def test_waiting_says_for_what(manifest: Manifest, monkeypatch, caplog, num_workers: int) -> None:
    monkeypatch.setattr(reading, "_REPORT_SECONDS", 0.0001)
    caplog.set_level("INFO", "vjepa")
    _take([manifest], 3, 4, num_workers=num_workers)
    assert re.search(r"waiting for clips .*: \d of 6 videos of batch 3 are read; ", caplog.text)
    assert ("worker processes" in caplog.text) == (num_workers > 0)


def _processes() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}  # noqa: PTH208


def _shared_memory() -> int:
    """Bytes of it that this process has mapped, in whole pages."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text().splitlines()
    ends = [line.split()[0].split("-") for line in maps if "vjepa-batches" in line]
    return sum(int(stop, 16) - int(start, 16) for start, stop in ends)


def test_close_leaves_no_process_and_no_memory(manifest: Manifest) -> None:
    loader = _loader([manifest], num_workers=2)
    iterator: Iterator[ClipBatch] = loader.batches(0, 1000)
    next(iterator)
    known = loader.worker_ids
    assert len(known) == 2
    assert _shared_memory() >= 4 * 6 * 3 * 4 * 16 * 16
    loader.close()
    loader.close()
    assert not _processes() & set(known)
    assert _shared_memory() == 0
    assert loader.worker_ids == []
    with pytest.raises((RuntimeError, StopIteration)):
        next(iterator)
    with pytest.raises(ValueError, match="closed"):
        next(loader.batches(0, 1))


@pytest.mark.parametrize("moment", ["a worker starts", "a worker reads"])
def test_ctrl_c_ends_the_wait_for_data_and_the_workers(
    manifest: Manifest, tmp_path: Path, moment: str
) -> None:
    only = Manifest(with_rows(manifest, [hanging(tmp_path)], tmp_path).table.slice(6), tmp_path)
    known: list[int] = []
    opened: list[int] = []

    def interrupt() -> None:
        while moment == "a worker reads" and not opened:
            time.sleep(0.01)
            with suppress(OSError):  # a pipe can be opened for writing once somebody reads it
                opened.append(os.open(only.path(0), os.O_WRONLY | os.O_NONBLOCK))
        known.extend(loader.worker_ids)
        os.kill(os.getpid(), signal.SIGINT)

    with _loader([only], num_workers=1, sample_timeout_seconds=600.0) as loader:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 (it may come at any moment)
            threading.Thread(target=interrupt).start()
            next(loader.batches(0, 1))
        assert moment == "a worker starts" or (known and loader.worker_ids == [])
    assert not _processes() & set(known)
    for pipe in opened:
        os.close(pipe)


def test_a_new_range_ends_an_unfinished_one(manifest: Manifest) -> None:
    expected = _take([manifest], 4, 6)
    with _loader([manifest], num_workers=1) as loader:
        old = loader.batches(0, 100)
        next(old)
        _assert_equal(list(loader.batches(4, 6)), expected)
        with pytest.raises(RuntimeError, match="later call"):
            next(old)
        abandoned = loader.batches(0, 100)
        next(abandoned)
        abandoned.close()
        _assert_equal(list(loader.batches(4, 6)), expected)


def test_prefetching_is_bounded_and_announced(manifest: Manifest) -> None:
    with _loader([manifest], num_workers=1, prefetch_batches=3) as loader:
        assert loader.queue_bytes == 4 * 6 * 3 * 4 * 16 * 16
        steps = loader.batches(0, 100)
        next(steps)
        planned = loader._plan
        seen: list[int] = []
        loader._plan = lambda step: (seen.append(step), planned(step))[1]
        next(steps)
        while 5 not in seen:
            time.sleep(0.01)
        time.sleep(0.2)
        # Two batches are out; three stand in the ring and one is copied: nothing beyond step 5.
        assert max(seen) == 5
    with _loader([manifest]) as loader:
        assert loader.queue_bytes == 0


@pytest.mark.parametrize(
    ("free", "field", "ahead"),
    [(1000, None, 3), (16, None, 3), (12, None, 2), (4, None, 1), (1.1, None, 1), (1000, 2.5, 1)],
)
def test_the_queue_is_bounded_by_memory_too(
    manifest: Manifest, monkeypatch, free: float, field: float | None, ahead: int
) -> None:
    """By a quarter of what is free, or as the config says; the batches stay the same."""
    each = 6 * 3 * 4 * 16 * 16
    monkeypatch.setattr(reading, "available_bytes", lambda: int(free * each))
    limit = {} if field is None else {"max_queue_gigabytes": field * each / 1e9}
    with _loader([manifest], num_workers=1, prefetch_batches=3, **limit) as loader:
        assert loader.queue_bytes == (ahead + 1 if ahead > 1 else 1) * each
        got = list(loader.batches(0, 6))
    _assert_equal(got, _take([manifest], 0, 6))


def test_a_batch_that_no_memory_is_there_for_is_refused(manifest: Manifest, monkeypatch) -> None:
    monkeypatch.setattr(reading, "available_bytes", lambda: 10_000)
    with (
        _loader([manifest], num_workers=1) as loader,
        pytest.raises(UserError, match=r"a batch of 6 clips takes .* of memory are free"),
    ):
        next(loader.batches(0, 1))


def test_one_step_takes_the_memory_of_one(manifest: Manifest) -> None:
    page, each = 4096, 6 * 3 * 4 * 16 * 16
    with _loader([manifest], num_workers=1, prefetch_batches=3) as loader:
        for steps, ahead in ((1, 1), (2, 2), (50, 3), (1, 3)):
            batches = loader.batches(0, steps)
            next(batches)
            assert ahead * each <= _shared_memory() < ahead * each + page
            batches.close()


def test_bad_arguments_are_refused(manifest: Manifest, other: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch_size 6 does not divide .* 4 processes"):
        _loader([manifest], world_size=4)
    with pytest.raises(UserError, match=r"rank 5: of 2 processes it is 0 .. 1"):
        _loader([manifest], rank=5, world_size=2)
    with pytest.raises(UserError, match="no label 'colour'"):
        _loader([manifest], label="colour")
    partly = make_manifest(tmp_path, 3, labels=["a", None, "b"])
    with pytest.raises(UserError, match="1 of 3 usable rows have no label 'motion'"):
        _loader([partly], label="motion")
    with pytest.raises(UserError, match="2 weights for 1 manifests"):
        _loader([manifest], weights=[1.0, 2.0])
    with pytest.raises(UserError, match="every manifest or to none"):
        _loader([manifest, other], weights=[1.0, None])
    with _loader([manifest]) as loader, pytest.raises(ValueError, match="not a range"):
        next(loader.batches(3, 2))


@pytest.mark.parametrize(
    "fields",
    [
        {"num_workers": -1},
        {"max_bad_fraction": 1.5},
        {"frame_cache_short_side": 0},
        {"max_worker_gigabytes": 3.0},
    ],
)
def test_impossible_configs_name_their_field(fields: dict) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(fields))} must"):
        LoaderConfig(**fields)


class _Write:
    def __init__(self, array: SharedArray) -> None:
        self.array = array

    def __call__(self, value: int) -> None:
        self.array.tensor[value] = value


def test_workers_write_into_it() -> None:
    array = SharedArray((3, 4))
    assert array.tensor.tolist() == [[0] * 4] * 3
    pool = WorkerPool(_Write(array), 2, timeout_seconds=60.0)
    try:
        left = {pool.submit(value) for value in (1, 2)}
        while left:
            left -= {outcome.ticket for outcome in pool.wait(5.0)}
    finally:
        pool.close()
    assert array.tensor.tolist() == [[0] * 4, [1] * 4, [2] * 4]
    kept = array.tensor[2]
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    array.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1  # noqa: PTH208
    assert kept.tolist() == [2] * 4
    assert array.tensor.numel() == 0


def test_too_little_memory_is_a_user_error(monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"shared memory.*No space left.*prefetch_batches"):
        SharedArray((1 << 20,))


def test_an_empty_shape_is_possible() -> None:
    array = SharedArray((0, 3))
    assert array.tensor.shape == (0, 3)
    assert array.tensor.dtype == torch.uint8
    array.close()
