"""Segments, views, augmentation, passes and online training, as whole jobs."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tests.jobs.probe.tiny_probe import evaluate_here, probe_config, train_probe

from vjepa.errors import UserError
from vjepa.evaluation.saved_probe import load_saved_probe
from vjepa.jobs.probe.predict import load_probe
from vjepa.jobs.probe.probe import train

# Crops of 16 out of 32 pixels, so that views differ; ten frames, so that segments overlap or not.
SEVERAL = {
    "data.clip": {"num_frames": 4, "stride": 1},
    "data.view.crop_size": 16,
    "data.view.short_side": 24,
    "data.view.num_segments": 2,
    "data.view.num_views": 3,
    "optim.epochs": 4,
}


@pytest.mark.parametrize(
    "changes",
    [
        SEVERAL,
        {**SEVERAL, "data.view.join": "average"},
        {**SEVERAL, "data.view.placement": "reference_random", "probe.depth": 2},
        {**SEVERAL, "data.view.placement": "even", "features.storage": "bfloat16"},
        {**SEVERAL, "data.augment.policy": "paper", "features.passes": 2},
        {**SEVERAL, "data.augment.policy": "released", "features.online": True},
        {**SEVERAL, "probe.kind": "knn"},
        {**SEVERAL, "probe.kind": "nearest_mean", "data.view.join": "average"},
        {**SEVERAL, "optim.poolings": ["linear", "attentive"], "features.shard_clips": 7},
        {**SEVERAL, "probe.variant": "paper", "probe.kind": "attentive"},
    ],
    ids=lambda changes: ", ".join(f"{k}={v}" for k, v in changes.items() if k not in SEVERAL),
)
def test_evaluating_again_gives_the_number_exactly_in_every_protocol(
    videos: Path, checkpoint: Path, tmp_path: Path, changes: dict
) -> None:
    result, test = train_probe(videos, checkpoint, tmp_path / "p", **changes)
    assert test.metrics.count == 11
    assert asdict(evaluate_here(tmp_path / "p", videos)) == asdict(test)
    probe = load_saved_probe(tmp_path / "p")
    assert (probe.settings.view.num_segments, probe.settings.view.num_views) == (2, 3)
    if changes.get("probe.kind", "attentive") == "attentive":
        assert {head.count for head in result.selection} == {6}
    else:
        assert result.selection == ()
    paths = sorted(videos.parent.glob("test_*.mp4"))
    (answer, *_) = load_probe(tmp_path / "p", device="cpu", num_threads=1).predict(paths[:2])
    assert abs(sum(entry.probability for entry in answer.classes) - 1.0) < 1e-9


def test_segments_and_views_change_what_is_seen(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    losses = set()
    for name, segments, views, join in (
        ("a", 1, 1, "tokens"),
        ("b", 2, 1, "tokens"),
        ("c", 2, 1, "average"),
        ("d", 2, 3, "tokens"),
    ):
        changes = {
            **SEVERAL,
            "data.view.num_segments": segments,
            "data.view.num_views": views,
            "data.view.join": join,
        }
        _, test = train_probe(videos, checkpoint, tmp_path / name, **changes)
        losses.add(round(test.metrics.loss, 9))
    assert len(losses) == 4


def test_online_and_as_many_cached_passes_train_the_same_probe(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """24 videos in batches of 8 that are encoded together either way: the very same numbers."""
    one = {
        "optim.epochs": 3,
        "optim.learning_rates": [3e-3],
        "optim.weight_decays": [0.01],
        "data.augment.policy": "paper",
        "features.batch_size": 1,
    }
    online = {**one, "features.online": True}
    _, first = train_probe(videos, checkpoint, tmp_path / "online", **online)
    cached = {**one, "features.cache_dir": str(tmp_path / "cache"), "features.passes": 3}
    _, second = train_probe(videos, checkpoint, tmp_path / "cached", **cached)
    assert first.metrics == second.metrics
    weights = [
        (tmp_path / name / "probe.safetensors").read_bytes() for name in ("online", "cached")
    ]
    assert weights[0] == weights[1]
    # One folder for each pass and one for the test; with fewer passes the probe is another.
    assert len(list((tmp_path / "cache").iterdir())) == 4
    fewer = {**cached, "features.passes": 1}
    _, other = train_probe(videos, checkpoint, tmp_path / "fewer", **fewer)
    assert other.metrics.loss != second.metrics.loss
    assert len(list((tmp_path / "cache").iterdir())) == 4  # the first pass was there


def test_cached_passes_need_no_video(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    own = tmp_path / "videos"
    shutil.copytree(videos.parent, own)
    changes = {
        "features.cache_dir": str(tmp_path / "cache"),
        "features.passes": 2,
        "data.augment.policy": "paper",
        "optim.epochs": 2,
    }
    manifest = own / "manifest.parquet"
    first = train(probe_config(manifest, checkpoint, **changes), tmp_path / "a")
    for video in own.glob("*.mp4"):
        video.unlink()
    second = train(probe_config(manifest, checkpoint, **changes), tmp_path / "b")
    assert second.test == first.test
    assert second.selection == first.selection
    changes["data.augment.seed"] = 1  # other random clips: another cache
    with pytest.raises(UserError, match="cannot be evaluated"):
        train(probe_config(manifest, checkpoint, **changes), tmp_path / "c")


def test_a_video_shorter_than_a_segment_follows_the_policy(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    long = {"num_frames": 4, "stride": 4}  # 16 frames; the videos have 10
    changes = {**SEVERAL, "data.clip": {**long, "short_video": "error"}}
    with pytest.raises(UserError, match="10 frames, a clip takes 16"):
        train(probe_config(videos, checkpoint, **changes), tmp_path / "x")
    changes["data.clip"] = {**long, "short_video": "loop"}
    _, test = train_probe(videos, checkpoint, tmp_path / "y", **changes)
    assert test.metrics.count == 11


def test_nothing_is_drawn_from_torchs_generator(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    changes = {"data.augment.policy": "released", "optim.epochs": 1}
    losses = []
    for number in range(2):
        torch.manual_seed(number)
        _, test = train_probe(videos, checkpoint, tmp_path / str(number), **changes)
        losses.append(test.metrics.loss)
    assert losses[0] == losses[1]
