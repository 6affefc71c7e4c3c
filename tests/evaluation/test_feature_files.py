from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import Tensor

from vjepa.data.clips.windows import FramingConfig, Look, WindowConfig, look_at
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.errors import UserError
from vjepa.evaluation.export import (
    FeatureTable,
    Origin,
    meta_of,
    origin_of,
    read_features,
    read_rows,
    sources_of_table,
    write_features,
)
from vjepa.evaluation.video_features import Part

SIZES = {"image_size": 32, "num_frames": 8, "patch_size": 16, "tubelet_size": 2}
INFO = VideoInfo(
    path="video.mp4", num_frames=60, fps=10, width=64, height=36, bytes=12345, mtime_ns=99
)


def _look(info: VideoInfo = INFO) -> Look:
    return look_at(info, WindowConfig(), FramingConfig(), **SIZES)


def _parts(tokens: Tensor, times: np.ndarray, failure: str | None = None) -> Iterator[Part]:
    """Tokens three tubelets at a time, then the times or a failure."""
    for part in tokens.split(3) if tokens.ndim > 1 else [tokens]:
        yield part, None
    if failure is not None:
        raise DecodeError("video.mp4", failure)
    yield None, times


def _write(
    target: Path, stored: str = "float32", failure: str | None = None
) -> tuple[Origin, Tensor]:
    look, origin = _look(), origin_of(INFO, "settings")
    tokens = torch.randn(8, 2, 4, 24, generator=torch.Generator().manual_seed(0))

    def parts() -> Iterator[Part]:
        for part in _parts(tokens, np.arange(8.0), failure):
            assert not target.exists()  # only whole files have their name
            yield part

    write_features(target, look, origin, parts(), pool="none", width=24, stored=stored)
    return origin, tokens


@pytest.mark.parametrize("stored", ["float32", "float16"])
@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_what_was_written_is_read_by_the_usual_readers(
    tmp_path: Path, kind: str, stored: str
) -> None:
    target = tmp_path / "sub" / f"a.mp4.{kind}"
    origin, tokens = _write(target, stored)
    found = load_file(target) if kind == "safetensors" else np.load(target)
    np.testing.assert_array_equal(found["tokens"], tokens.numpy().astype(stored))
    assert found["times"].tolist() == list(range(8))
    assert found["frame_numbers"].tolist() == _look().plan.frame_numbers.tolist()
    if kind == "safetensors":
        with safe_open(target, "pt") as file:
            text = file.metadata()["vjepa"]
            assert file.get_tensor("tokens").shape == tokens.shape
    else:
        text = str(found["vjepa"])
    said = json.loads(text)
    assert said["origin"] == origin
    assert said["grid"] == [8, 2, 4]
    assert said["source_size"] == [36, 64]
    assert sorted(path.name for path in target.parent.iterdir()) == [target.name]


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_only_a_whole_file_of_the_same_origin_counts_as_written(tmp_path: Path, kind: str) -> None:
    target = tmp_path / f"a.{kind}"
    with pytest.raises(DecodeError, match="broke off"):
        _write(target, failure="broke off")
    assert list(tmp_path.iterdir()) == []  # a failure leaves nothing
    origin, _ = _write(target)
    assert meta_of(target, origin) is not None
    for other in (
        origin | {"bytes": 1},
        origin | {"mtime_ns": 1},
        origin | {"settings": "others"},
        origin | {"path": "elsewhere.mp4"},
    ):
        assert not meta_of(target, other)
    whole = target.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 20, 5, 0):
        target.write_bytes(whole[:length])
        assert not meta_of(target, origin)
    target.write_bytes(bytes(len(whole)))
    assert not meta_of(target, origin)
    assert not meta_of(tmp_path / f"none.{kind}", origin)


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
@pytest.mark.parametrize("pool", ["space", "video"])
def test_shapes_by_pooling(tmp_path: Path, kind: str, pool: str) -> None:
    target, look = tmp_path / f"a.{kind}", _look()
    tokens = torch.randn(8, 24) if pool == "space" else torch.randn(24)
    parts = _parts(tokens, np.arange(8.0))
    origin = origin_of(INFO, "settings")
    write_features(target, look, origin, parts, pool=pool, width=24, stored="float32")
    found = load_file(target) if kind == "safetensors" else np.load(target)
    np.testing.assert_array_equal(found["tokens"], tokens.numpy())


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_numbers_too_large_for_the_stored_type_are_refused(tmp_path: Path, kind: str) -> None:
    target, origin = tmp_path / f"a.{kind}", origin_of(INFO, "settings")
    tokens, how = torch.full((24,), 7e4), {"pool": "video", "width": 24}
    parts = partial(_parts, tokens, np.arange(8.0))
    with pytest.raises(UserError, match=r"stored: float16 cannot hold 7e\+04; choose float32"):
        write_features(target, _look(), origin, parts(), **how, stored="float16")
    assert list(tmp_path.iterdir()) == []
    write_features(target, _look(), origin, parts(), **how, stored="float32")
    assert torch.equal(read_features(target).tokens, tokens)
    with pytest.raises(UserError, match="stored: float16"):
        FeatureTable(tmp_path / "table", "float16").add(_look(), origin, parts())


def _fill(table: FeatureTable, name: str, tokens: Tensor, times: np.ndarray) -> Origin:
    look = _look(replace(INFO, path=name))
    origin = origin_of(look.info, "settings")
    table.add(look, origin, _parts(tokens, times))
    return origin


def test_a_table_of_pooled_rows(tmp_path: Path) -> None:
    table = FeatureTable(tmp_path / "table", "float32")
    rows = torch.randn(8, 24)
    times = np.arange(8.0)
    first = _fill(table, "a.mp4", rows, times)
    assert not table.holds(first)  # not before it is on the disk
    table.flush()
    whole = torch.randn(24)
    _fill(table, "b.mp4", whole, times)
    with pytest.raises(DecodeError):
        table.add(_look(), first, _parts(rows, times, "broke off"))
    table.flush()
    table.flush()
    parts = sorted(path.name for path in (tmp_path / "table").iterdir())
    assert parts == ["part-00000.parquet", "part-00001.parquet"]
    found = pq.read_table(tmp_path / "table")
    assert found.column("path").to_pylist() == ["a.mp4"] * 8 + ["b.mp4"]
    np.testing.assert_array_equal(found.column("features").to_pylist()[:8], rows.numpy())
    np.testing.assert_array_equal(found.column("features").to_pylist()[8], whole.numpy())
    assert found.column("seconds").to_pylist() == [*range(8), 3.5]
    assert found.column("last_frame").to_pylist()[-1] == 56
    again = FeatureTable(tmp_path / "table", "float32")
    assert again.holds(first)
    assert not again.holds(first | {"settings": "others"})


def test_rows_of_a_source_are_those_written_last_by_any_of_several_writers(tmp_path: Path) -> None:
    times = np.arange(8.0)
    before, now = torch.zeros(8, 24), torch.ones(8, 24)
    origins = []
    for number, (writer, tokens) in enumerate((("01-", before), ("00-", now), ("02-", before))):
        table = FeatureTable(tmp_path, "float32", writer)
        # The third time the file is again what it was at first.
        look = _look(replace(INFO, path="a.mp4", mtime_ns=number % 2))
        origins.append(origin_of(look.info, "settings"))
        table.add(look, origins[-1], _parts(tokens, times))
        table.flush()
        part = sources_of_table(tmp_path)["a.mp4"]
        assert torch.equal(read_rows(part, "a.mp4", (8, 1, 1), "space").tokens, tokens)
        held = FeatureTable(tmp_path, "float32")
        assert [held.holds(one) for one in origins] == [one == origins[-1] for one in origins]
    FeatureTable(tmp_path, "float32").drop(set())
    rows = pq.read_table(tmp_path).column("features").to_pylist()
    np.testing.assert_array_equal(rows, before.numpy())
