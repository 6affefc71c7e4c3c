from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pytest
import torch
from torch import nn

from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import AugmentConfig, ViewConfig
from vjepa.data.loader.evaluation import BadVideo, ClipRows
from vjepa.data.loader.failures import FailureKind
from vjepa.data.loader.reading import ReadingConfig
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.info import VideoInfo
from vjepa.errors import UserError
from vjepa.evaluation import frozen
from vjepa.evaluation.frozen import (
    ClipSettings,
    EncoderIdentity,
    EncodingConfig,
    FeatureExtractor,
    FeatureSet,
    FrozenEncoder,
    data_hash,
    kept_shard,
    settings_hash,
    stored_shard,
    weights_hash,
)
from vjepa.evaluation.labels import Split
from vjepa.models import Encoder, EncoderConfig, normalise_clip
from vjepa.runtime.device import DeviceSetup
from vjepa.runtime.files import save_tensors

TINY = EncoderConfig(
    width=12, depth=1, heads=2, image_size=16, num_frames=2, patch_size=8, tubelet_size=2
)


class _Source:
    """Clips whose pixels depend on the row; counts what was read."""

    clips_per_video = 1

    def __init__(self, count: int, bad: set[int], stop_at: int | None) -> None:
        self.rows, self.bad, self.stop_at = np.arange(count), bad, stop_at
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def batches(self, start: int, stop: int, batch_size: int) -> Iterable[ClipRows]:
        for first in range(start, stop, batch_size):
            rows = range(first, min(first + batch_size, stop))
            if self.stop_at is not None and self.stop_at in rows:
                raise KeyboardInterrupt
            self.read.extend(rows)
            good = [row for row in rows if row not in self.bad]
            clips = [torch.full((1, 3, 2, 16, 16), row, dtype=torch.uint8) for row in good]
            bad = tuple(BadVideo(row, f"v{row}.mp4", "bad") for row in rows if row in self.bad)
            stacked = torch.stack(clips) if clips else torch.empty(0, dtype=torch.uint8)
            yield ClipRows(np.array(good, dtype=np.int64), stacked, bad)


class _Extractor(FeatureExtractor):
    """Cuts its clips out of nothing: `source` stands for the files."""

    def open_clips(self, split: Split, rows: object, pass_index: int = 0) -> Any:
        del split, rows, pass_index
        return SOURCES[-1]


SOURCES: list[_Source] = []


def _encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(TINY).eval()


def _extractor(cache_dir: Path | None = None, seed: int = 0) -> _Extractor:
    encoder = _encoder(seed)
    identity = EncoderIdentity(
        weights_hash=weights_hash(encoder), config=TINY, path=None, which="random"
    )
    settings = ClipSettings(
        clip=ClipConfig(num_frames=2),
        view=ViewConfig(crop_size=16),
        features=EncodingConfig(batch_size=3, shard_clips=8),
    )
    setup = DeviceSetup(torch.device("cpu"), "float32")
    return _Extractor(
        FrozenEncoder(encoder, identity), settings, setup, ReadingConfig(), cache_dir=cache_dir
    )


def _split(count: int, size: int = 1) -> Split:
    infos = [
        VideoInfo(path=f"/v{row}.mp4", num_frames=8, fps=10.0, bytes=size) for row in range(count)
    ]
    return Split(Manifest.from_rows([ManifestRow(info=info) for info in infos], "/"), "data.test")


def _features(
    extractor: FeatureExtractor, count: int, bad: set[int] | None = None, stop_at: int | None = None
) -> tuple[FeatureSet, list[int]]:
    """The features of all rows, and the rows that were read for them."""
    SOURCES.append(_Source(count, bad or set(), stop_at))
    return extractor.features(_split(count)), SOURCES[-1].read


@pytest.mark.parametrize("in_memory", [True, False])
def test_same_key_is_read_back_and_not_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    if not in_memory:
        monkeypatch.setattr(frozen, "_MOST_IN_MEMORY_BYTES", 100)
    plain, _ = _features(_extractor(), 20)
    first, _ = _features(_extractor(tmp_path), 20)
    second, read = _features(_extractor(tmp_path), 20)
    assert read == []
    assert len(plain.shards) == (1 if in_memory else 4)  # 6 rows each: whole batches of 3
    for got in (first, second):
        assert torch.equal(got.tokens, plain.tokens)
        assert np.array_equal(got.rows, plain.rows)


def test_a_cache_made_with_other_weights_is_refused(tmp_path: Path) -> None:
    first, _ = _features(_extractor(tmp_path), 5)
    (described,) = tmp_path.glob("*/features.json")
    second, read = _features(_extractor(tmp_path, seed=1), 5)  # another key
    assert len(read) == 5
    assert not torch.equal(first.tokens, second.tokens)
    assert len(list(tmp_path.iterdir())) == 2
    foreign = json.loads(described.read_text()) | {"weights_hash": "0" * 64}
    described.write_text(json.dumps(foreign))
    with pytest.raises(UserError, match="made with another weights_hash than this folder's name"):
        _features(_extractor(tmp_path), 5)
    described.write_text("[")
    with pytest.raises(UserError, match=r"features\.json: cannot be read as JSON .*delete it"):
        _features(_extractor(tmp_path), 5)


@pytest.mark.parametrize(
    "change",
    [
        {"clip": ClipConfig(num_frames=4)},
        {"view": ViewConfig(crop_size=8)},
        {"precision": "bfloat16"},
        {"storage": "bfloat16"},
        {"batch_size": 4},
        {"shard_clips": 9},
        {"compile": True},
        {"augment": AugmentConfig(policy="paper")},
        {"setup": DeviceSetup(torch.device("meta"), "float32")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_matters_is_in_the_key(change: dict) -> None:
    one = _extractor()
    (name,) = change
    if name in ("clip", "view"):
        other = replace(one, settings=replace(one.settings, **change))
    elif name in ("augment", "setup"):
        other = replace(one, **change)
    else:
        features = replace(one.settings.features, **change)
        other = replace(one, settings=replace(one.settings, features=features))
    split, rows = _split(4), np.arange(4)
    assert other._key(split, rows, 0) != one._key(split, rows, 0)
    assert one._key(split, rows, 0) == _extractor()._key(split, rows, 1)  # nothing is random
    assert one._key(split, rows[:3], 0) != one._key(split, rows, 0)
    assert one._key(_split(4, size=2), rows, 0) != one._key(split, rows, 0)
    if name == "augment":
        assert other._key(split, rows, 0) != other._key(split, rows, 1)
    joined = replace(one.settings, view=replace(one.settings.view, join="average"))
    assert replace(one, settings=joined)._key(split, rows, 0) == one._key(split, rows, 0)


def test_two_models_of_timm_with_the_same_weights_have_keys_of_their_own() -> None:
    """Their inputs may be normalised otherwise, which no weight shows."""
    one, split, rows = _extractor(), _split(4), np.arange(4)
    keys = []
    for timm in (None, "vit_tiny_patch16_224", "deit_tiny_patch16_224"):
        frozen_one = replace(one.frozen, identity=replace(one.frozen.identity, timm=timm))
        keys.append(replace(one, frozen=frozen_one)._key(split, rows, 0))
    assert len({settings_hash(key) for key in keys}) == 3
    assert "timm" not in keys[0]["encoder"], "caches of our encoders stay valid"


def test_an_interrupted_extraction_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _features(_extractor(tmp_path), 20, stop_at=13)
    got, read = _features(_extractor(tmp_path), 20)
    assert read == list(range(12, 20))  # two shards of six were there
    assert torch.equal(got.tokens, _features(_extractor(), 20)[0].tokens)


def test_bad_videos_are_listed_also_from_the_cache(tmp_path: Path) -> None:
    listing = replace(_extractor(tmp_path), on_bad_video="list")
    for wanted in (list(range(12)), []):
        got, read = _features(listing, 12, bad={4})
        assert got.rows.tolist() == [0, 1, 2, 3, *range(5, 12)]
        assert [video.path for video in got.bad] == ["v4.mp4"]
        assert read == wanted
    # Where a bad video is an error, it is read again, and may be good now.
    got, read = _features(replace(listing, on_bad_video="error"), 12)
    assert (read, len(got)) == (list(range(6)), 12)


def _one_bad(
    folder: Path, kind: FailureKind = "decode", reason: str = "bad"
) -> tuple[Path, Manifest, FeatureSet]:
    """Where a shard is kept; a manifest of two files; features without the second."""
    for name in ("a", "b"):
        (folder / name).write_bytes(b"frames")
    stamps = {name: (folder / name).stat() for name in ("a", "b")}
    infos = [
        VideoInfo(path=str(folder / name), bytes=stamp.st_size, mtime_ns=stamp.st_mtime_ns)
        for name, stamp in stamps.items()
    ]
    manifest = Manifest.from_rows([ManifestRow(info=info) for info in infos], folder)
    bad = (BadVideo(1, str(folder / "b"), reason, kind),)
    part = FeatureSet((torch.zeros(1, 1, 4, 12),), np.arange(1), bad)
    return folder / "shard.safetensors", manifest, part


def test_a_video_that_was_away_is_read_once_it_is_there_again(tmp_path: Path) -> None:
    path, manifest, part = _one_bad(tmp_path)
    (tmp_path / "b").rename(tmp_path / "away")
    stored_shard(path, manifest, part)
    kept = kept_shard(path, manifest, "list")
    assert kept is not None
    assert kept.bad == part.bad
    (tmp_path / "b").write_bytes(b"a copy has another time than the manifest")
    assert kept_shard(path, manifest, "list") is None
    stored_shard(path, manifest, part)
    assert kept_shard(path, manifest, "list") is not None, "it was there, and is bad"


@pytest.mark.parametrize(
    ("kind", "reason", "again"),
    [
        ("hang", "did not end within 2 s", True),
        ("crash", "killed", True),
        ("decode", "out of memory while reading it", True),
        ("decode", "truncated", False),
    ],
)
def test_where_time_or_memory_did_not_suffice_the_next_process_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: FailureKind, reason: str, again: bool
) -> None:
    path, manifest, part = _one_bad(tmp_path, kind, reason)
    stored_shard(path, manifest, part)
    assert kept_shard(path, manifest, "list") is not None, "this process has tried"
    monkeypatch.setattr(frozen, "_TRIED", set())
    assert (kept_shard(path, manifest, "list") is None) == again


def test_shards_of_older_caches_are_read(tmp_path: Path) -> None:
    path, manifest, part = _one_bad(tmp_path)
    bad = json.dumps([{"row": 1, "path": "b", "reason": "bad"}])
    tensors = {"tokens": part.tokens, "rows": torch.from_numpy(part.rows)}
    save_tensors(path, tensors, {"bad": bad})
    kept = kept_shard(path, manifest, "list")
    assert kept is not None
    assert kept.bad == (BadVideo(1, "b", "bad"),)


def test_nothing_readable_and_a_truncated_shard_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not one video.*v0.mp4: bad"):
        _features(_extractor(), 4, bad={0, 1, 2, 3})
    _features(_extractor(tmp_path), 4)
    shard = next(tmp_path.glob("*/shard_00000.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(UserError, match="shard_00000"):
        _features(_extractor(tmp_path), 4)


def test_shares_of_several_processes_are_the_shards_of_one() -> None:
    extractor, split = _extractor(), _split(20)
    SOURCES.append(_Source(20, {7}, None))
    alone = [part.rows.tolist() for part in extractor.shards(split)]
    shared = [list(extractor.shards(split, share=(rank, 2))) for rank in range(2)]
    assert [part.rows.tolist() for part in shared[0]] == alone[::2]
    assert [part.rows.tolist() for part in shared[1]] == alone[1::2]


def test_encoding_is_the_frozen_encoder_on_normalised_clips() -> None:
    extractor = _extractor()
    clips = torch.randint(0, 256, (5, 2, 3, 2, 16, 16), dtype=torch.uint8)
    got = extractor.encode(ClipRows(np.array([0, 1, 3, 4, 5]), clips, (BadVideo(2, "v", "bad"),)))
    expected = _encoder()(normalise_clip(clips.flatten(0, 1)))
    torch.testing.assert_close(got.tokens.flatten(0, 1), expected.detach())
    assert got.tokens.shape == (5, 2, 4, 12)
    assert not got.tokens.requires_grad
    assert got.bad == (BadVideo(2, "v", "bad"),)
    stored = replace(extractor.settings.features, storage="bfloat16", precision="bfloat16")
    half = replace(extractor, settings=replace(extractor.settings, features=stored))
    rough = half.encode(ClipRows(np.arange(5), clips)).tokens
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), got.tokens, atol=0.2, rtol=0.05)


@pytest.mark.parametrize("sizes", [[7], [3, 1, 3]])
def test_gathering_takes_rows_in_their_order(sizes: list[int]) -> None:
    tokens = torch.randn(7, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    features = FeatureSet(tokens.split(sizes), np.arange(7) * 2)
    wanted = np.array([8, 0, 12, 8, 6])
    assert torch.equal(features.gather(wanted), tokens[torch.from_numpy(wanted // 2)])
    assert torch.equal(features.tokens, tokens)
    parts = list(features.parts(np.array([0, 4, 12]), size=2))
    assert [part.rows.tolist() for part in parts] == [[0, 4], [12]]
    assert torch.equal(parts[1].tokens, tokens[6:])
    for missing in (3, 14):
        with pytest.raises(ValueError, match="not in this set"):
            features.gather(np.array([missing]))
    with pytest.raises(ValueError, match="do not fit"):
        FeatureSet((tokens,), np.arange(6))


def test_weights_hash_sees_one_bit_and_names_shapes_and_types() -> None:
    torch.manual_seed(0)
    layer, twin = nn.Linear(4, 3), nn.Linear(4, 3)
    assert weights_hash(layer) != weights_hash(twin)
    twin.load_state_dict(layer.state_dict())
    assert weights_hash(layer) == weights_hash(twin)
    with torch.no_grad():
        twin.bias[0] = torch.nextafter(twin.bias[0], torch.tensor(9.0))
    assert weights_hash(layer) != weights_hash(twin)
    variants = [
        {"a": torch.zeros(2, 3)},
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.float64)},
        {"a": torch.zeros((), dtype=torch.bfloat16)},
    ]
    assert len({weights_hash(nn.ParameterDict(variant)) for variant in variants}) == 5


def test_settings_hash_ignores_order_only() -> None:
    assert settings_hash({"a": 1, "b": [1, 2]}) == settings_hash({"b": [1, 2], "a": 1})
    assert settings_hash({"a": 1}) != settings_hash({"a": 2})
    with pytest.raises(ValueError):
        settings_hash({"a": float("nan")})


def test_features_of_image_folders_go_with_the_rate_they_were_indexed_at() -> None:
    def hashed(kind: Literal["video", "image_folder"], fps: float) -> str:
        info = VideoInfo(path="/v", kind=kind, num_frames=9, fps=fps)
        return data_hash(Manifest.from_rows([ManifestRow(info=info)], Path("/")), np.array([0]))

    assert hashed("image_folder", 24.0) != hashed("image_folder", 30.0)
    assert hashed("video", 24.0) == hashed("video", 30.0)  # told by its bytes
