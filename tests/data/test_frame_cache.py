"""Cached frames: the same clips as decoding, built once, bounded, never half there."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.data.clip_files import damaged, hanging, make_manifest, with_rows, write_video

from vjepa.data import frame_cache
from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.frame_cache import FrameCache, open_frame_caches
from vjepa.data.loader.loader import ClipBatch, ClipLoader, LoaderConfig
from vjepa.data.loader.reading import ReadingConfig
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video import decode
from vjepa.data.video.decode import decode_frames
from vjepa.data.video.info import VideoInfo
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("videos")
    return make_manifest(folder, 5, num_frames=[24, 20, 5, 16, 9], labels=list("abcab"))


def _caches(
    manifests: list[Manifest], folder: Path | None, short_side: int | None = None, **fields
) -> list[FrameCache]:
    usual = {"frame_cache_gigabytes": 1.0, "frame_cache_folder": folder}
    return open_frame_caches(manifests, ReadingConfig(**usual | fields), short_side)


def _take(
    manifests: list[Manifest], stop: int, loader: LoaderConfig, clips_per_video: int = 1
) -> list[ClipBatch]:
    clip = ClipConfig(num_frames=4, stride=2, clips_per_video=clips_per_video)
    transform = TransformConfig(crop_size=16)
    with ClipLoader(manifests, None, clip, transform, loader, batch_size=8, seed=3) as made:
        assert made.uses_workers == (loader.num_workers > 0 and not loader.frame_cache_gigabytes)
        return list(made.batches(0, stop))


@pytest.mark.parametrize("clips_per_video", [1, 2])
def test_cached_batches_equal_decoded_ones(
    manifest: Manifest, tmp_path: Path, clips_per_video: int
) -> None:
    """Over videos of different sizes and lengths, with bad ones among them."""
    wide = make_manifest(tmp_path / "wide", 3, width=64, height=48)
    mixed = with_rows(manifest, [damaged(tmp_path)], tmp_path)
    decode = LoaderConfig(num_workers=0, max_bad_fraction=1.0)
    cached = replace(decode, frame_cache_gigabytes=1.0, frame_cache_folder=tmp_path / "cache")
    expected = _take([mixed, wide], 6, decode, clips_per_video)
    assert sum(batch.num_bad for batch in expected) > 0
    for a, b in zip(_take([mixed, wide], 6, cached, clips_per_video), expected, strict=True):
        assert torch.equal(a.clips, b.clips)
        np.testing.assert_array_equal(a.rows, b.rows)
        assert a.num_bad == b.num_bad


def frames_of(cache: FrameCache, row: int) -> np.ndarray:
    source = cache.source(row)
    (frames,) = source.read([(np.arange(source.num_frames), None)])
    return frames


def test_a_cache_is_built_once(manifest: Manifest, tmp_path: Path, monkeypatch) -> None:
    (first,) = _caches([manifest], tmp_path)
    monkeypatch.setattr(frame_cache, "_build", None)  # calling it again would fail
    (second,) = _caches([manifest], tmp_path)
    assert first.folder == second.folder
    for row in range(len(manifest)):
        info = manifest.row(row)
        source = second.source(row)
        frames = frames_of(second, row)
        np.testing.assert_array_equal(frames, decode_frames(info, np.arange(info.num_frames)))
        assert (source.fps, source.path) == (info.fps, info.path)
        assert second.failure(row) is None
    assert sorted(path.name for path in first.folder.iterdir()) == ["frames.npy", "index.npz"]
    expected = sum(manifest.num_frames) * 32 * 48 * 3
    assert abs((first.folder / "frames.npy").stat().st_size - expected) < 4096


def test_other_files_or_settings_give_another_cache(manifest: Manifest, tmp_path: Path) -> None:
    other = make_manifest(tmp_path / "other", 2)
    caches = _caches([manifest, other], tmp_path) + _caches([manifest], tmp_path, short_side=16)
    write_video(Path(other.path(0)), seed=7)  # the same name, another file
    changed = Manifest.from_rows(
        [ManifestRow(info=inspect_file(other.path(row))) for row in range(2)], tmp_path / "other"
    )
    assert changed.content_hash == other.content_hash
    caches += _caches([changed], tmp_path)
    assert len({cache.folder for cache in caches}) == 4


def test_a_short_side_shrinks_only_larger_videos(manifest: Manifest, tmp_path: Path) -> None:
    small = make_manifest(tmp_path / "small", 1, height=16, width=32)
    large, kept = _caches([manifest, small], tmp_path, short_side=16)
    assert frames_of(large, 0).shape == (24, 16, 24, 3)
    assert frames_of(kept, 0).shape == (24, 16, 32, 3)
    original = decode_frames(manifest.row(0), np.arange(24)).astype(float)
    shrunk = frames_of(large, 0).astype(float)
    halves = original.reshape(24, 16, 2, 24, 2, 3).mean(axis=(2, 4))
    assert np.abs(shrunk - halves).mean() < 8


def test_bad_videos_are_remembered_with_their_kind(manifest: Manifest, tmp_path: Path) -> None:
    infos = [damaged(tmp_path), hanging(tmp_path), replace(damaged(tmp_path, "x.mp4"), ok=False)]
    mixed = with_rows(manifest, infos, tmp_path)
    (cache,) = _caches([mixed], tmp_path / "cache", sample_timeout_seconds=2.0)
    failures = [cache.failure(row) for row in range(len(mixed))]
    assert failures[:5] == [None] * 5
    assert [kind for _, kind in failures[5:]] == ["decode", "hang", "decode"]
    assert "did not end within" in failures[6][0]


def test_videos_that_came_back_are_decoded_once_more(tmp_path: Path, monkeypatch) -> None:
    """A disk was not mounted when the cache was built; a damaged file stays bad."""
    whole = with_rows(make_manifest(tmp_path / "set", 2), [damaged(tmp_path)], tmp_path)
    file = Path(whole.path(0))
    file.rename(tmp_path / "away.mp4")
    (cache,) = _caches([whole], tmp_path / "cache", num_workers=0)
    assert [cache.failure(row) is None for row in range(3)] == [False, True, False]
    (tmp_path / "away.mp4").rename(file)
    (cache,) = _caches([whole], tmp_path / "cache", num_workers=0)
    assert [cache.failure(row) is None for row in range(3)] == [True, True, False]
    assert frames_of(cache, 0).any()
    monkeypatch.setattr(frame_cache, "_build", None)  # calling it again would fail
    _caches([whole], tmp_path / "cache")


def test_a_video_that_took_too_long_is_tried_again_with_more_time(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by another process; what is there stays as it is."""
    mixed = with_rows(manifest, [damaged(tmp_path), hanging(tmp_path)], tmp_path)

    def cache(seconds: float) -> FrameCache:
        return _caches([mixed], tmp_path / "cache", sample_timeout_seconds=seconds)[0]

    before = cache(2.0)
    frames, decoded = frames_of(before, 0).copy(), []
    stat = (before.folder / "frames.npy").stat()
    mend = frame_cache._mend

    def noted(cache: FrameCache, manifest: Manifest, rows: np.ndarray, *how: object) -> FrameCache:
        decoded.append(rows.tolist())
        return mend(cache, manifest, rows, *how)

    monkeypatch.setattr(frame_cache, "_mend", noted)
    assert cache(2.0).failure(6)[1] == "hang"
    assert not decoded  # this process has tried
    assert "within 3 s" in cache(3.0).failure(6)[0]
    assert decoded == [[6]]
    monkeypatch.setattr(frame_cache, "_decode", _decode_good)  # the disk answers again
    monkeypatch.setattr(frame_cache, "_TRIED", set())  # as in another process
    after = cache(3.0)
    assert decoded == [[6], [6]]
    assert [after.failure(row) is None for row in range(7)] == [True] * 5 + [False, True]
    np.testing.assert_array_equal(frames_of(after, 0), frames)
    assert frames_of(after, 6).any()
    assert (after.folder / "frames.npy").stat().st_ino == stat.st_ino
    monkeypatch.setattr(frame_cache, "_TRIED", set())
    cache(3.0)
    assert len(decoded) == 2


def _decode_good(file: Path, order: frame_cache._CacheOrder) -> np.ndarray | str | None:
    """As the file would be decoded if its disk answered."""
    folder = Path(order.video.path).parent
    return frame_cache._decode(
        file, replace(order, video=replace(order.video, path=str(folder / "good_hanging.mp4")))
    )


def test_a_set_that_would_be_too_large_is_decoded_from_its_files(
    manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gigabytes = sum(manifest.num_frames) * 32 * 48 * 3 / 1e9
    assert _caches([manifest], tmp_path, frame_cache_gigabytes=gigabytes)
    caplog.set_level("INFO", "vjepa")
    small = 1.9 * gigabytes
    assert _caches([manifest, manifest], tmp_path, frame_cache_gigabytes=small) == []
    assert "decoded from their files" in caplog.text
    loaders = []
    for limit in (0.5 * gigabytes, 0.0):
        config = LoaderConfig(
            num_workers=0, frame_cache_gigabytes=limit, frame_cache_folder=tmp_path / "other"
        )
        clip, transform = ClipConfig(num_frames=2, stride=1), TransformConfig(crop_size=16)
        with ClipLoader([manifest], None, clip, transform, config, 4, seed=0) as loader:
            loaders.append(next(loader.batches(0, 1)).clips)
    torch.testing.assert_close(*loaders, rtol=0, atol=0)
    assert not (tmp_path / "other").exists()


def test_a_build_that_breaks_off_goes_on_where_it_was(
    manifest: Manifest, tmp_path: Path, monkeypatch
) -> None:
    read = decode.read_frames
    decoded: list[str] = []

    def counted(video: VideoInfo, numbers: NDArray[np.int64]) -> Iterator[decode.Frame]:
        decoded.append(video.path)
        if len(decoded) == 4:
            raise KeyboardInterrupt
        return read(video, numbers)

    monkeypatch.setattr("vjepa.runtime.files.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(decode, "read_frames", counted)
    with pytest.raises(KeyboardInterrupt):
        _caches([manifest], tmp_path, num_workers=0)
    kept = set(decoded[:1])
    (half,) = tmp_path.glob("*/")
    assert not FrameCache(half, manifest).is_whole
    with monkeypatch.context() as patch:  # where it cannot be completed it is not used either
        patch.setattr(frame_cache, "_only_one_builds", _refused)
        with pytest.raises(UserError, match="cannot be written"):
            _caches([manifest], tmp_path, num_workers=0)
    decoded[:] = [""] * 4
    (cache,) = _caches([manifest], tmp_path, num_workers=0)
    assert kept.isdisjoint(decoded)
    assert cache.is_whole
    for row in range(len(manifest)):
        whole = np.stack([one.image for one in read(manifest.row(row), np.arange(2))])
        np.testing.assert_array_equal(frames_of(cache, row)[:2], whole)


def _refused(*_: object) -> None:
    raise OSError(30, "Read-only file system")


def test_what_a_killed_build_left_is_removed(manifest: Manifest, tmp_path: Path) -> None:
    (cache,) = _caches([manifest], tmp_path)
    left = tmp_path / f"{cache.folder.name}.77.partial"
    cache.folder.rename(left)
    (again,) = _caches([manifest], tmp_path)
    assert list(tmp_path.glob("*/")) == [again.folder]


def test_a_full_disk_or_a_wrong_folder_is_known_before_any_video_is_read(
    manifest: Manifest, tmp_path: Path, monkeypatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frame_cache, "WorkerPool", None)  # decoding would fail otherwise
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UserError, match=r"GB cannot be written \(No space left.*free space"):
            _caches([manifest], tmp_path)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path("/proc/frames")):
        with pytest.raises(UserError, match=r"cannot be written.*another frame_cache_folder"):
            _caches([manifest], folder)


def test_a_cache_is_read_where_nothing_can_be_written(
    manifest: Manifest, tmp_path: Path, monkeypatch
) -> None:
    (cache,) = _caches([manifest], tmp_path)
    tmp_path.joinpath(f"{cache.folder.name}.lock").unlink()
    monkeypatch.setattr(Path, "mkdir", None)
    monkeypatch.setattr(frame_cache.fcntl, "flock", None)
    assert _caches([manifest], tmp_path)[0].folder == cache.folder


def test_nor_is_it_an_error_that_a_video_cannot_be_tried_again_there(
    manifest: Manifest, tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    mixed = with_rows(manifest, [hanging(tmp_path)], tmp_path)
    _caches([mixed], tmp_path / "cache", sample_timeout_seconds=2.0)
    monkeypatch.setattr(frame_cache, "_only_one_builds", refuse)
    (cache,) = _caches([mixed], tmp_path / "cache", sample_timeout_seconds=3.0)
    assert frames_of(cache, 0).any()
    assert "(Read-only file system), 1 videos that failed are not tried again" in caplog.text


@pytest.mark.parametrize("name", ["frames.npy", "index.npz"])
def test_a_damaged_cache_says_what_to_delete(manifest: Manifest, tmp_path: Path, name: str) -> None:
    (cache,) = _caches([manifest], tmp_path)
    file = cache.folder / name
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{cache.folder}: damaged .*delete the folder"):
        _caches([manifest], tmp_path)


def test_who_waits_for_another_process_says_so(manifest: Manifest, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO", "vjepa")
    (cache,) = _caches([manifest], tmp_path)
    cache.folder.rename(tmp_path / "aside")
    with (tmp_path / f"{cache.folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=_caches, args=([manifest], tmp_path))
        waiting.start()
        while "another process decodes these videos" not in caplog.text:
            time.sleep(0.01)
        (tmp_path / "aside").rename(cache.folder)
    waiting.join()


def test_the_default_folder_is_the_users_cache(
    manifest: Manifest, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caches = _caches([manifest], None)
    assert caches[0].folder.parent == tmp_path / "vjepa" / "frames"


def test_a_film_may_take_longer_than_a_clip(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sample_timeout_seconds` is made for clips: each frame of a whole video begins it anew."""
    said: list[None] = []
    monkeypatch.setattr(frame_cache, "going_on", lambda: said.append(None))
    _caches([manifest], tmp_path, num_workers=0)
    assert len(said) == manifest.num_frames.sum()
