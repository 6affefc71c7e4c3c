from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.data.video_files import Spec, write_video

from vjepa.data.video.info import LimitsConfig
from vjepa.data.video.inspect_pool import ProbePool, ProbeRequest
from vjepa.errors import UserError

WORKER = "tests.runtime.hanging_worker"


def children() -> set[str]:
    """Reader processes of this one, by what /proc says."""
    pids = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
    return {pid for pid in pids if _parent(pid) == os.getpid() and _is_reader(pid)}


def _parent(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def _is_reader(pid: str) -> bool:
    try:
        return b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_results_come_in_order_and_readers_end(tmp_path):
    lengths = [5, 3, 9, 1, 7]
    for number, length in enumerate(lengths):
        write_video(tmp_path / f"{number}.mp4", Spec(num_frames=length, b_frames=0))
    requests = [ProbeRequest(path=str(tmp_path / f"{number}.mp4")) for number in range(5)]
    with ProbePool(2, LimitsConfig(), 30.0) as pool:
        found = list(pool.probe_all(requests))
        assert len(children()) == 2
    assert [info.num_frames for info in found] == lengths
    assert [info.path for info in found] == [request.path for request in requests]
    assert not children()


def test_a_hang_and_a_crash_cost_one_file_each(tmp_path):
    names = ["a.mp4", "hang.mp4", "b.mp4", "crash.mp4", "c.mp4"]
    for name in names:
        write_video(tmp_path / name, Spec(num_frames=2, b_frames=0))
    with ProbePool(1, LimitsConfig(), 2.0, worker_module=WORKER) as pool:
        found = list(pool.probe_all(ProbeRequest(path=str(tmp_path / name)) for name in names))
    assert [info.ok for info in found] == [True, False, True, False, True]
    assert found[1].reason == "reading it took longer than 2 s"
    assert found[3].reason == "the decoder crashed (exit status -11)"


def test_leaving_the_pool_ends_a_reader_that_hangs(tmp_path):
    path = str(write_video(tmp_path / "hang.mp4"))

    def requests():
        yield ProbeRequest(path=path)
        while not children():
            time.sleep(0.01)
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        ProbePool(1, LimitsConfig(), 300.0, worker_module=WORKER) as pool,
    ):
        list(pool.probe_all(requests()))
    assert not children()


def test_limits_reach_the_readers(tmp_path):
    write_video(tmp_path / "a.mp4")
    with ProbePool(1, LimitsConfig(max_frames=3), 30.0) as pool:
        (info,) = pool.probe_all([ProbeRequest(path=str(tmp_path / "a.mp4"))])
    assert "max_frames = 3" in (info.reason or "")


def test_a_worker_that_cannot_start_is_no_bad_file(tmp_path):
    with (
        ProbePool(1, LimitsConfig(), 30.0, worker_module="no.such.module") as pool,
        pytest.raises(RuntimeError, match="does not start"),
    ):
        list(pool.probe_all([ProbeRequest(path=str(tmp_path / "a.mp4"))]))


def test_at_least_one_worker():
    with pytest.raises(UserError, match="workers: must be at least 1, got 0"):
        ProbePool(0, LimitsConfig(), 30.0)
