"""Pretraining when things break: kills, preemption, lost and hanging processes, restarts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.clip_files import hanging, with_rows
from tests.jobs.rank_host import free_port
from tests.jobs.tiny_run import launch, metrics, weights, write_recipe, write_set
from tests.warm import ENVIRONMENT

from vjepa.checkpoint.folder import verify_checkpoint
from vjepa.config import load_config
from vjepa.data.manifest.manifest import Manifest
from vjepa.jobs.pretrain import PretrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_COMMON = (
    "data.loader.num_workers=0",
    "training.log_every_steps=1",
    "training.health_every_steps=null",
)
_STEPS, _INTERVAL = 150, 2


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_recipe(folder, write_set(folder))


def _job(recipe: Path, out: Path, *overrides: str, ranks: int = 2, **more: Any) -> dict[str, Any]:
    fields = {"ranks": ranks, "config": str(recipe), "out": str(out)}
    return {**fields, "overrides": [*_COMMON, *overrides], **more}


def _newest(run: Path) -> int:
    return max(int(p.name[5:]) for p in (run / "checkpoints").iterdir() if "." not in p.name)


def test_twenty_kills_at_random_moments_change_nothing(recipe: Path, tmp_path: Path) -> None:
    """Also while checkpoints are written, in both ways of writing; bit for bit."""
    config = (f"optim.steps={_STEPS}", f"training.checkpoint_every_steps={_INTERVAL}")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    codes, said = launch(
        tmp_path,
        [
            _job(recipe, whole, *config, ranks=1),
            _job(recipe, cut, *config, ranks=1, kills=20, cpu_seconds=0.35),
        ],
    )
    assert codes == [[0], [-signal.SIGKILL] * 20 + [0]], said
    assert "left incomplete: 1" in said, "no kill met a checkpoint in the making"
    found, expected = weights(cut, _STEPS), weights(whole, _STEPS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert metrics(cut) == metrics(whole)


def test_signals_and_losses_among_several_processes(recipe: Path, tmp_path: Path) -> None:
    """One host for all, because starting processes is what takes the time."""
    endless = ("optim.steps=100000", "training.checkpoint_every_steps=100000")
    soon = {"after_lines": 4}
    names = ("usr1", "term", "killed", "hung", "main_hung")
    usr1, term, killed, hung, main_hung = (tmp_path / name for name in names)
    last = _job(recipe, usr1, *endless, signals=[[0, signal.SIGTERM]], after_lines=30)
    jobs = [
        _job(recipe, usr1, *endless, signals=[[1, signal.SIGUSR1]], **soon),
        _job(
            recipe,
            term,
            *endless,
            "distributed.strategy=fsdp",
            # A launcher passes on what the scheduler has sent to all processes already.
            signals=[[0, signal.SIGTERM], [1, signal.SIGTERM], [1, signal.SIGTERM]],
            **soon,
        ),
        _job(recipe, killed, *endless, signals=[[1, signal.SIGKILL]], **soon),
        _job(
            recipe,
            hung,
            *endless,
            "distributed.timeout_minutes=0.25",
            signals=[[1, signal.SIGSTOP]],
            waits=True,
            **soon,
        ),
        # With it stands the store that the others would ask who is missing.
        _job(
            recipe,
            main_hung,
            *endless,
            "distributed.timeout_minutes=0.25",
            signals=[[0, signal.SIGSTOP]],
            waits=True,
            **soon,
        ),
        last,
    ]
    codes, said = launch(tmp_path, jobs)
    assert codes == [[75, 75], [75, 75], [1, -9], [1, -9], [-9, 1], [75, 75]], said
    assert "stopped by SIGUSR1 after step" in said
    assert said.count("process 0: process 1 of 2 ended or did not answer") == 2
    assert "process 1: another process (nothing on the first machine answers) of 2" in said
    assert "Traceback" not in said, said
    for run in (usr1, term):
        step = _newest(run)
        train = [line["step"] for line in metrics(run) if line["kind"] == "train"]
        assert train == list(range(1, step + 1)), "resumed at the step that both had saved"
    assert not (killed / "checkpoints").exists()


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[list[Path]]:
    """Two file systems that one checkpoint fills by more than half."""
    folders = [tmp_path / "sync", tmp_path / "async"]
    mounted = []
    for folder in folders:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=1900k", "tmpfs", str(folder)]
        if os.geteuid() == 0 and not subprocess.run(command, capture_output=True).returncode:
            mounted.append(folder)
    if len(mounted) == len(folders):
        yield folders
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)
    if len(mounted) < len(folders):
        pytest.skip("mounting a small file system needs root")


def test_a_full_disk_ends_all_processes_and_keeps_the_last_checkpoint(
    recipe: Path, tmp_path: Path, small_disks: list[Path]
) -> None:
    """It fills up while every process writes its part of the optimiser's state."""
    config = ("distributed.strategy=fsdp", "optim.steps=6", "training.checkpoint_every_steps=2")
    jobs = [
        _job(recipe, disk / "run", *config, f"training.async_checkpoint={background}")
        for disk, background in zip(small_disks, ("false", "true"), strict=True)
    ]
    codes, said = launch(tmp_path, jobs)
    assert codes == [[2, 2], [2, 2]], said
    assert said.count("step_00000004: the checkpoint could not be written: the disk is full") >= 4
    assert "Traceback" not in said, said
    assert "keep_every_steps: 5 is no multiple of checkpoint_every_steps 2: only those" in said
    for disk in small_disks:
        checkpoints = disk / "run" / "checkpoints"
        assert [path.name for path in checkpoints.iterdir()] == ["step_00000002"]
        verify_checkpoint(checkpoints / "step_00000002")


def test_a_loader_worker_that_hangs_holds_up_no_process(recipe: Path, tmp_path: Path) -> None:
    """Both processes end their own worker and replace the clips of a video that never answers."""
    config = load_config(PretrainConfig, [recipe])
    manifest = Manifest.open(config.data.sources[0].manifest).select(split="train")
    mixed = with_rows(manifest, [hanging(tmp_path)] * 30, tmp_path)
    mixed.write(tmp_path / "mixed.parquet")
    out = tmp_path / "run"
    loader = ("num_workers=1", "sample_timeout_seconds=6", "max_bad_fraction=1.0")
    overrides = [
        *(f"data.loader.{setting}" for setting in loader),
        f"data.sources=[{{manifest: {tmp_path / 'mixed.parquet'}}}]",
        "optim.steps=4",
    ]
    codes, said = launch(tmp_path, [_job(recipe, out, *overrides)])
    assert codes == [[0, 0]], said
    bad = [json.loads(line) for line in (out / "bad_videos.jsonl").read_text().splitlines()]
    assert {(line["kind"], Path(line["path"]).name) for line in bad} == {("hang", "hanging.mp4")}
    assert _newest(run=out) == 4
    counted = [line["bad_videos"] for line in metrics(out) if line["kind"] == "train"]
    assert sum(counted) > 0


def test_all_save_where_one_process_has_no_videos_any_more(recipe: Path, tmp_path: Path) -> None:
    """Of one source, whose disk is away: the other process has nothing to complain of."""
    config = load_config(PretrainConfig, [recipe])
    manifest = Manifest.open(config.data.sources[0].manifest).select(split="train")
    gone = replace(manifest.row(0), path=str(tmp_path / "gone.mp4"))
    with_rows(manifest, [gone], tmp_path).write(tmp_path / "mixed.parquet")
    out = tmp_path / "run"
    overrides = [
        *("data.loader.max_bad_fraction=0.0", "data.loader.min_bad_videos=0"),
        f"data.sources=[{{manifest: {tmp_path / 'mixed.parquet'}}}]",
        *("optim.steps=100", "training.checkpoint_every_steps=100"),
    ]
    codes, said = launch(tmp_path, [_job(recipe, out, *overrides)])
    assert codes == [[2, 2]], said
    assert "Traceback" not in said, said
    (bad,) = (out / "bad_videos.jsonl").read_text().splitlines()
    step = json.loads(bad)["step"]
    assert said.count(f"step_{step:08d}: the same command resumes") == 2
    assert _newest(out) == step


def test_torchrun_on_two_machines_restarts_what_died_and_saves_what_is_stopped(
    recipe: Path, tmp_path: Path
) -> None:
    """The real launcher, an agent a machine: one process dies, all start again, all are stopped.

    The agent whose process died counts a restart, the other one does not: they must meet all the
    same, though the store is full of the keys of those that are gone.
    """
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    command += ["--nproc-per-node", "1", "--max-restarts", "1", "--rdzv-backend", "c10d"]
    command += ["--rdzv-id", "a", "--rdzv-endpoint", f"localhost:{free_port()}"]
    command += ["-m", "vjepa", "pretrain", "--config", str(recipe), "--out", str(run)]
    command += [f"--{override}" for override in _COMMON]
    command += ["--optim.steps=100000", "--training.checkpoint_every_steps=1"]
    log = tmp_path / "log"
    with log.open("w") as out:
        launchers = [
            subprocess.Popen(
                command, env={**os.environ, **ENVIRONMENT}, stdout=out, stderr=subprocess.STDOUT
            )
            for _ in range(2)
        ]
    try:
        _wait_for(launchers, log, lambda: _newest_or_0(run) >= 2)
        os.kill(_process_ids(run, 1)[-1], signal.SIGKILL)
        _wait_for(launchers, log, lambda: "resuming after step" in log.read_text())
        resumed = int(re.findall(r"resuming after step (\d+)", log.read_text())[-1])
        _wait_for(launchers, log, lambda: _newest_or_0(run) > resumed + 1)
        for launcher in launchers:
            launcher.send_signal(signal.SIGTERM)
        assert all(launcher.wait(timeout=300) != 0 for launcher in launchers)
    finally:
        for launcher in launchers:
            launcher.kill()
    assert "stopped by SIGTERM after step" in log.read_text()
    train = [line["step"] for line in metrics(run) if line["kind"] == "train"]
    assert train == list(range(1, _newest(run) + 1))


def _process_ids(run: Path, rank: int) -> list[int]:
    text = (run / "logs" / f"rank_{rank:03d}.log").read_text()
    return [int(number) for number in re.findall(r"process (\d+) on", text)]


def _newest_or_0(run: Path) -> int:
    return max(
        (int(p.name[5:]) for p in (run / "checkpoints").glob("step_*") if "." not in p.name),
        default=0,
    )


def _wait_for(processes: list[subprocess.Popen[bytes]], log: Path, condition: Any) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert all(process.poll() is None for process in processes), log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
