"""Manifests as a set to draw from: usable rows, weights inside and between manifests, labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vjepa.data.loader.sampler import BLOCK, VideoSources
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.info import VideoInfo
from vjepa.errors import UserError


def _manifest(
    weights: Sequence[float],
    ok: Sequence[bool] | None = None,
    labels: Sequence[str | None] | None = None,
) -> Manifest:
    rows = [
        ManifestRow(
            info=VideoInfo(path=f"/v{number}.mp4", ok=ok is None or ok[number], num_frames=9),
            weight=weight,
            labels={} if labels is None else {"kind": labels[number]},
        )
        for number, weight in enumerate(weights)
    ]
    return Manifest.from_rows(rows, Path("/"))


def _counts(sources: VideoSources, blocks: int = 8) -> list[np.ndarray]:
    places = sources.locate(sources.order(0, 1).at(np.arange(blocks * BLOCK)))
    return [
        np.bincount(places[places[:, 0] == number, 1], minlength=len(manifest))
        for number, manifest in enumerate(sources.manifests)
    ]


def test_unusable_rows_are_never_drawn() -> None:
    sources = VideoSources([_manifest([1.0] * 8, ok=[True, False] * 4)], None)
    assert _counts(sources)[0].tolist() == [2 * BLOCK, 0] * 4


def test_weights_inside_a_manifest_and_between_manifests() -> None:
    inner = _manifest([1.0, 1.0, 3.0, 3.0])
    plain = _manifest([1.0] * 8)
    (counts,) = _counts(VideoSources([inner], None))
    assert counts.tolist() == [BLOCK, BLOCK, 3 * BLOCK, 3 * BLOCK]
    first, second = _counts(VideoSources([inner, plain], [1.0, 1.0]))
    assert (first.sum(), second.sum()) == (4 * BLOCK, 4 * BLOCK)
    assert first.tolist() == [BLOCK // 2, BLOCK // 2, 3 * BLOCK // 2, 3 * BLOCK // 2]
    first, second = _counts(VideoSources([plain, plain], None))
    assert np.ptp(np.concatenate([first, second])) <= 1


def test_labels_of_several_manifests_share_their_classes() -> None:
    first = _manifest([1.0] * 3, labels=["10", "9", "9"])
    second = _manifest([1.0] * 3, labels=["2", None, "10"], ok=[True, False, True])
    sources = VideoSources([first, second], None, label="kind")
    assert sources.class_names == ["2", "9", "10"]
    labels = sources.labels(np.array([[0, 0], [0, 1], [1, 0], [1, 2]]))
    assert labels is not None
    assert labels.tolist() == [2, 1, 0, 2]
    assert VideoSources([first], None).labels(np.array([[0, 0]])) is None


def test_bad_sets_are_refused() -> None:
    with pytest.raises(UserError, match="no source of videos"):
        VideoSources([], None)
    with pytest.raises(UserError, match="none of its 2 videos can be used; see `vjepa data check"):
        VideoSources([_manifest([1.0] * 2, ok=[False, False])], None)
    with pytest.raises(UserError, match="70 different row weights, at most 64"):
        VideoSources([_manifest(np.linspace(1, 2, 70).tolist())], None)
    with pytest.raises(UserError, match="1 of 2 usable rows have no label 'kind'"):
        VideoSources([_manifest([1.0] * 2, labels=["a", None])], None, label="kind")
