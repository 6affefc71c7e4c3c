from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from tests.data.clip_files import make_manifest

from vjepa.cli.main import main
from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.loader.loader import LoaderConfig
from vjepa.errors import UserError
from vjepa.jobs.bench_loader import BenchConfig, MeasuringClock, run


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    made = make_manifest(folder, 5)
    made.write(folder / "videos.parquet")
    return folder / "videos.parquet"


def small(manifest: Path, **fields) -> BenchConfig:
    defaults = {
        "manifest": manifest,
        "batch_size": 4,
        "batches": 2,
        "warmup_batches": 1,
        "clip": ClipConfig(num_frames=4, stride=2),
        "transform": TransformConfig(crop_size=16),
        "loader": LoaderConfig(num_workers=0),
    }
    return BenchConfig(**{**defaults, **fields})


def test_reports_speed_and_where_the_time_goes(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--manifest", str(manifest), "--batch_size", "4", "--batches", "2"]
    arguments += ["--clip.num_frames", "4", "--clip.stride", "2", "--transform.crop_size", "16"]
    assert main(["bench", "loader", *arguments, "--loader.num_workers", "0"]) == 0
    *lines, last = capsys.readouterr().out.strip().splitlines()
    values = json.loads(last)
    assert values["benchmark"] == "loader"
    assert values["one_process"]["clips"] == 8
    assert values["one_process"]["clips_per_core_second"] > 0
    assert values["workers"] is None
    shares = values["share_of_cpu_time"]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert min(shares[stage] for stage in ("open", "seek", "decode", "convert", "crop")) > 0
    assert values["queue_bytes_per_clip"] == {"pixels": 3 * 4 * 16 * 16}
    assert lines[0].startswith("8 clips of 4 frames")
    assert any("share of CPU time: open" in line for line in lines)


def test_reads_through_workers_and_counts_bad_videos(manifest: Path) -> None:
    videos = sorted(manifest.parent.glob("*.mp4"))
    good = videos[0].read_bytes()
    videos[0].write_bytes(bytes(len(good)))
    try:
        loader = LoaderConfig(num_workers=1, prefetch_batches=1, max_bad_fraction=1.0)
        report = run(small(manifest, loader=loader))
    finally:
        videos[0].write_bytes(good)
    assert report.values["workers"]["number"] == 1
    assert report.values["workers"]["clips_per_second"] > 0
    assert report.values["one_process"]["bad_videos"] > 0
    assert "could not be read" in report.lines[-1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("batches", 0),
        ("warmup_batches", -1),
        ("loader", LoaderConfig(frame_cache_gigabytes=1.0)),
    ],
)
def test_impossible_settings_name_their_field(manifest: Path, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}"):
        small(manifest, **{field: value})


def test_only_the_rows_of_the_split_are_read(manifest: Path) -> None:
    with pytest.raises(UserError, match="split"):
        run(small(manifest, split="absent"))


def test_cpu_time_goes_to_the_stage_that_runs() -> None:
    clock = MeasuringClock()
    began = time.thread_time()
    clock.enter("open")
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
    clock.enter("decode")
    time.sleep(0.01)  # sleeping is no work
    clock.enter("rest")
    assert clock.seconds["open"] >= 0.02
    assert clock.seconds["decode"] < clock.seconds["open"]
    assert sum(clock.seconds.values()) <= time.thread_time() - began + 1e-3
    clock.reset()
    assert sum(clock.seconds.values()) == 0
