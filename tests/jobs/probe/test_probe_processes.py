"""Evaluation by several processes gives the figures of one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from tests import warm
from tests.evaluation.tiny_videos import with_bad_video
from tests.jobs.probe.tiny_probe import probe_config
from tests.jobs.rank_host import free_port, place

from vjepa.jobs.probe.probe import train


@pytest.mark.slow
def test_two_processes_measure_what_one_does(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    with_bad_video(videos, "test", tmp_path / "m.parquet")
    changes = {
        "features.shard_clips": 5,  # 11 videos: three shards for two processes
        "optim.epochs": 3,
        "data.on_bad_video": "list",
    }
    result = train(probe_config(tmp_path / "m.parquet", checkpoint, **changes), tmp_path / "p")
    port = free_port()
    arguments = ["probe", "eval", str(tmp_path / "p"), str(tmp_path / "m.parquet")]
    arguments += ["--split", "test", "--on-bad-video", "list", "--device", "cpu"]
    processes = [
        warm.vjepa(
            *(*arguments, "--json", tmp_path / f"{rank}.json"),
            log=tmp_path / f"{rank}.log",
            environment=place(rank, 2, port),
        )
        for rank in range(2)
    ]
    codes = [process.wait() for process in processes]
    first, second = (process.said for process in processes)
    assert codes == [0, 0], first + second
    assert "top-1" in first
    assert "top-1" not in second  # one process speaks for both
    assert not (tmp_path / "1.json").exists()
    found = json.loads((tmp_path / "0.json").read_text())
    assert result.test is not None
    alone = json.loads(json.dumps(asdict(result.test)))
    assert alone["metrics"]["count"] == 10
    assert found == alone  # every figure, to the last bit
