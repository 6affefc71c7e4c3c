"""Looking into many files: in order, whatever they do to the processes, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.data.video_files import Spec, write_image_folder, write_video
from tests.runtime.hanging_worker import hanging_order

from vjepa.data.video import inspect as inspect_module
from vjepa.data.video.info import LimitsConfig
from vjepa.data.video.inspect import InspectOrder, inspect_file, inspect_files
from vjepa.errors import UserError
from vjepa.runtime import workers
from vjepa.runtime.workers import WorkerPool


@pytest.fixture
def pools(monkeypatch) -> list[WorkerPool]:
    """The pools that are made, with :func:`hanging_order` for the task."""
    made: list[WorkerPool] = []

    class Recorded(WorkerPool):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(inspect_module, "WorkerPool", Recorded)
    monkeypatch.setattr(inspect_module, "inspect_order", hanging_order)
    return made


def _write(folder: Path, *names: str) -> list[InspectOrder]:
    spec = Spec(num_frames=2, b_frames=0)
    return [InspectOrder(path=str(write_video(folder / name, spec))) for name in names]


def test_results_come_in_order_and_processes_end(tmp_path, pools):
    lengths = [5, 3, 9, 1, 7]
    orders = []
    for number, length in enumerate(lengths):
        path = write_video(tmp_path / f"{number}.mp4", Spec(num_frames=length, b_frames=0))
        orders.append(InspectOrder(path=str(path)))
    found = list(inspect_files(iter(orders), 2, LimitsConfig(), 30.0))
    assert [info.num_frames for info in found] == lengths
    assert [info.path for info in found] == [order.path for order in orders]
    assert pools[0].worker_ids == []


def test_a_hang_and_a_crash_cost_one_file_each(tmp_path, pools):
    orders = _write(tmp_path, "a.mp4", "hang.mp4", "b.mp4", "crash.mp4", "c.mp4")
    found = list(inspect_files(orders, 1, LimitsConfig(), 2.0))
    assert [info.ok for info in found] == [True, False, True, False, True]
    assert found[1].reason.startswith("reading it stood still for 2 s")
    assert found[3].reason == "the decoder crashed (exit status -11)"


def test_a_mistake_of_ours_ends_the_run_and_marks_no_file(tmp_path, pools):
    orders = _write(tmp_path, "a.mp4", "mistake.mp4", "b.mp4")
    found = []
    with pytest.raises(RuntimeError, match=r"(?s)mistake\.mp4.*Traceback.*KeyError: 'a mistake in"):
        found.extend(inspect_files(orders, 1, LimitsConfig(), 30.0))
    assert all(info.ok for info in found)
    assert pools[0].worker_ids == []


def test_leaving_ends_a_process_that_hangs(tmp_path, pools):
    def orders() -> Iterator[InspectOrder]:
        yield from _write(tmp_path, "a.mp4", *(f"hang{number}.mp4" for number in range(15)))
        known.extend(pools[0].worker_ids)
        raise KeyboardInterrupt

    known: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        list(inspect_files(orders(), 1, LimitsConfig(), 300.0))
    assert known
    assert not any(Path(f"/proc/{process}").exists() for process in known)


@pytest.mark.parametrize(("deep", "signs"), [(False, 5), (True, 11)])
def test_a_long_folder_of_images_goes_on_with_every_image(tmp_path, monkeypatch, deep, signs):
    """Its headers behind the first, and with `deep` its frames, each begin the time anew."""
    said: list[object] = []
    pipe: Any = SimpleNamespace(send=said.append)
    monkeypatch.setattr(workers, "_SIGNS", workers._Signs(pipe))
    monkeypatch.setattr(workers, "_SECONDS_BETWEEN_SIGNS", -1)
    assert inspect_file(str(write_image_folder(tmp_path / "clip", 6)), deep=deep).ok
    assert len(said) == signs


def test_limits(tmp_path):
    path = str(write_video(tmp_path / "a.mp4"))
    (info,) = inspect_files([InspectOrder(path=path)], 1, LimitsConfig(max_frames=3), 30.0)
    assert "max_frames = 3" in (info.reason or "")
    with pytest.raises(UserError, match="workers: must be at least 1, got 0"):
        next(inspect_files([], 0, LimitsConfig(), 30.0))


def test_a_script_needs_no_guard(tmp_path):
    """Looking into files imports nothing of the script that asks for it."""
    write_video(tmp_path / "a.mp4")
    script = tmp_path / "script.py"
    script.write_text(
        "from vjepa.data import index_sources\n"
        f"print(len(index_sources([{str(tmp_path)!r}], {str(tmp_path / 'm.parquet')!r})))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
