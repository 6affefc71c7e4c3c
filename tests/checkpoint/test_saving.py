"""Writing checkpoints beside the training."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from tests.training.toy import OPTIM, ToyObjective

from vjepa.checkpoint.store import CheckpointWriter
from vjepa.errors import UserError
from vjepa.runtime.distributed import Team
from vjepa.training import CheckpointStore, Snapshot, build_optimizer


def _snapshot(step: int, objective: ToyObjective, copy: bool = True) -> Snapshot:
    optimizer = build_optimizer(objective.trainable(), OPTIM)
    objective(torch.randn(4, 6)).loss.backward()
    optimizer.step()
    modules = objective.all_modules()
    return Snapshot.take(step, modules, optimizer, {}, {}, team=Team(), copy=copy)


def test_a_snapshot_in_the_background_is_a_copy(tmp_path: Path) -> None:
    """What training does to the weights meanwhile does not reach the checkpoint."""
    objective, store = ToyObjective(), CheckpointStore(tmp_path)
    snapshot = _snapshot(3, objective)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.fill_(7.0)
    writer = CheckpointWriter(store, Team(), background=True)
    folder = writer.write(snapshot)
    writer.finish()
    loaded = ToyObjective(seed=5)
    store.load(folder, loaded.all_modules(), None, Team())
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())


def test_it_is_the_newest_only_when_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, objective = CheckpointStore(tmp_path), ToyObjective()
    writer = CheckpointWriter(store, Team(), background=True)
    writer.write(_snapshot(1, objective))
    writer.finish()
    goes_on, rename = threading.Event(), Path.rename

    def wait_and_rename(path: Path, target: Path) -> Path:
        assert goes_on.wait(60)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", wait_and_rename)
    writer.write(_snapshot(2, objective))
    assert store.steps() == [1]
    goes_on.set()
    writer.finish()
    assert store.steps() == [1, 2]


def test_a_failure_is_told_at_the_next_occasion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, objective = CheckpointStore(tmp_path), ToyObjective()
    writer = CheckpointWriter(store, Team(), background=True)
    writer.write(_snapshot(1, objective))
    writer.finish()

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    writer.write(_snapshot(2, objective))
    with pytest.raises(UserError, match=r"step_00000002: .*the disk is full"):
        writer.finish()
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    writer.write(_snapshot(3, objective))
    writer.finish()
    assert store.steps() == [1, 3]
