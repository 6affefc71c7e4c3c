"""Evaluation by several processes gives the figures of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from tests.evaluation.tiny_videos import with_bad_video
from tests.jobs.probe.tiny_probe import probe_config

from vjepa.jobs.probe.probe import train


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


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
    port = str(_free_port())
    arguments = ["probe", "eval", str(tmp_path / "p"), str(tmp_path / "m.parquet")]
    arguments += ["--split", "test", "--on-bad-video", "list", "--device", "cpu"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "vjepa", *arguments, "--json", str(tmp_path / f"{rank}.json")],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=150) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "top-1" in outputs[0][0]
    assert outputs[1][0] == ""  # one process speaks for both
    assert not (tmp_path / "1.json").exists()
    found = json.loads((tmp_path / "0.json").read_text())
    assert result.test is not None
    alone = json.loads(json.dumps(asdict(result.test)))
    assert alone["metrics"]["count"] == 10
    assert found == alone  # every figure, to the last bit
