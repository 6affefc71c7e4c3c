from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vjepa.errors import UserError
from vjepa.evaluation import frozen as feature_cache
from vjepa.evaluation.frozen import BadVideo, ClipRows, FeatureKey, extract_features, weights_hash
from vjepa.models import Encoder, EncoderConfig

TINY = EncoderConfig(
    width=12, depth=1, heads=2, image_size=16, num_frames=2, patch_size=8, tubelet_size=2
)


class _Source:
    """Clips whose pixels depend on the row; counts what was read."""

    def __init__(self, count: int, bad: set[int] | None = None, stop_at: int | None = None) -> None:
        self.count, self.bad, self.stop_at = count, bad or set(), stop_at
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    clips_per_video = 1

    def path(self, row: int) -> str:
        return f"v{row}.mp4"

    def batches(self, start: int, stop: int, batch_size: int) -> Iterable[ClipRows]:
        for first in range(start, stop, batch_size):
            rows = range(first, min(first + batch_size, stop))
            if self.stop_at is not None and self.stop_at in rows:
                raise KeyboardInterrupt
            self.read.extend(rows)
            good = [row for row in rows if row not in self.bad]
            clips = torch.stack(
                [torch.full((1, 3, 2, 16, 16), row, dtype=torch.uint8) for row in good]
            )
            bad = tuple(BadVideo(row, self.path(row), "bad") for row in rows if row in self.bad)
            yield ClipRows(np.array(good, dtype=np.int64), clips, bad)


def _encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(TINY)


def _key(encoder: Encoder) -> FeatureKey:
    return FeatureKey(
        weights_hash=weights_hash(encoder),
        encoder={"width": 12},
        data_hash="m",
        clip={"num_frames": 2},
        view={"crop_size": 16},
        precision="float32",
        storage="float32",
        batch_size=3,
        shard_clips=8,
        device="cpu",
    )


@pytest.mark.parametrize("in_memory", [True, False])
def test_same_key_is_read_back_and_not_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    if not in_memory:
        monkeypatch.setattr(feature_cache, "_MOST_IN_MEMORY_BYTES", 100)
    encoder = _encoder()
    plain = extract_features(encoder, _Source(20), _key(encoder))
    first = extract_features(encoder, _Source(20), _key(encoder), cache_dir=tmp_path)
    again = _Source(20)
    second = extract_features(encoder, again, _key(encoder), cache_dir=tmp_path)
    assert again.read == []
    assert len(plain.shards) == (1 if in_memory else 4)  # 6 rows each: whole batches of 3
    for got in (first, second):
        assert torch.equal(got.tokens, plain.tokens)
        assert got.paths == plain.paths
        assert np.array_equal(got.rows, plain.rows)


def test_other_weights_have_another_key(tmp_path: Path) -> None:
    encoder, other = _encoder(0), _encoder(1)
    first = extract_features(encoder, _Source(5), _key(encoder), cache_dir=tmp_path)
    source = _Source(5)
    second = extract_features(other, source, _key(other), cache_dir=tmp_path)
    assert len(source.read) == 5
    assert not torch.equal(first.tokens, second.tokens)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cache_made_with_other_weights_is_refused(tmp_path: Path) -> None:
    encoder = _encoder()
    extract_features(encoder, _Source(5), _key(encoder), cache_dir=tmp_path)
    (described,) = tmp_path.glob("*/features.json")
    foreign = json.loads(described.read_text()) | {"weights_hash": "0" * 64}
    described.write_text(json.dumps(foreign))
    with pytest.raises(UserError, match="made with another weights_hash than this folder's name"):
        extract_features(encoder, _Source(5), _key(encoder), cache_dir=tmp_path)
    described.write_text("[")
    with pytest.raises(UserError, match="made with other settings than"):
        extract_features(encoder, _Source(5), _key(encoder), cache_dir=tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"data_hash": "other"},
        {"clip": {"num_frames": 4}},
        {"view": {"crop_size": 8}},
        {"precision": "bfloat16"},
        {"storage": "bfloat16"},
        {"batch_size": 4},
        {"shard_clips": 9},
        {"augment": {"policy": "paper", "seed": 0, "pass": 0}},
        {"encoder": {"width": 13}},
        {"device": "cuda"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_matters_is_in_the_key(change: dict) -> None:
    key = _key(_encoder())
    assert replace(key, **change).digest != key.digest
    assert replace(key).digest == key.digest


def test_an_interrupted_extraction_goes_on(tmp_path: Path) -> None:
    encoder = _encoder()
    with pytest.raises(KeyboardInterrupt):
        extract_features(encoder, _Source(20, stop_at=13), _key(encoder), cache_dir=tmp_path)
    source, progress = _Source(20), []
    got = extract_features(
        encoder,
        source,
        _key(encoder),
        cache_dir=tmp_path,
        progress=lambda done, total: progress.append((done, total)),
    )
    assert source.read == list(range(12, 20))  # two shards of six were there
    assert torch.equal(got.tokens, extract_features(encoder, _Source(20), _key(encoder)).tokens)
    assert progress[-1] == (20, 20)
    assert progress == sorted(progress)


def test_bad_videos_are_listed_also_from_the_cache(tmp_path: Path) -> None:
    encoder = _encoder()
    for _ in range(2):
        got = extract_features(encoder, _Source(9, bad={4, 7}), _key(encoder), cache_dir=tmp_path)
        assert got.rows.tolist() == [0, 1, 2, 3, 5, 6, 8]
        assert [video.path for video in got.bad] == ["v4.mp4", "v7.mp4"]


def test_not_one_readable_video() -> None:
    class _AllBad(_Source):
        def batches(self, start: int, stop: int, batch_size: int) -> Iterable[ClipRows]:
            bad = tuple(BadVideo(row, self.path(row), "zero bytes") for row in range(start, stop))
            yield ClipRows(
                np.empty(0, np.int64), torch.empty(0, 3, 2, 16, 16, dtype=torch.uint8), bad
            )

    encoder = _encoder()
    with pytest.raises(UserError, match=r"not one video.*v0.mp4: zero bytes"):
        extract_features(encoder, _AllBad(4), _key(encoder))


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    encoder = _encoder()
    extract_features(encoder, _Source(4), _key(encoder), cache_dir=tmp_path)
    shard = next(tmp_path.glob("*/shard_00000.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(UserError, match="shard_00000"):
        extract_features(encoder, _Source(4), _key(encoder), cache_dir=tmp_path)
