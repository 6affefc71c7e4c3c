"""The loop when it is to stop, to skip, or to save beside its work."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.toy import (
    TRAINING,
    ToyBatch,
    ToyData,
    ToyTask,
    make_trainer,
    short_optim,
)

from vjepa.checkpoint.state import optimizer_state
from vjepa.training import TrainingConfig, TrainingStopped


class SignalledData(ToyData):
    """Sends a signal to the process while a batch is being fetched."""

    def __init__(self, at_step: int, number: signal.Signals = signal.SIGINT) -> None:
        super().__init__()
        self._at_step, self._number = at_step, number

    def batches(self, start_step: int, stop_step: int) -> Iterator[ToyBatch]:
        for batch in super().batches(start_step, stop_step):
            if self.served[-1] == self._at_step:
                signal.raise_signal(self._number)
            yield batch


class SpikingData(ToyData):
    """The inputs of one update are far too large."""

    def batch(self, step: int) -> ToyBatch:
        plain = super().batch(step)
        return ToyBatch(plain.ordinals, plain.inputs * (1000 if step + 1 == 25 else 1))


def _spike_training(policy: Any) -> TrainingConfig:
    return replace(TRAINING, spike_factor=5.0, spike=policy, health_every_steps=None)


def test_a_spike_is_skipped_and_counted(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, training=_spike_training("skip"), data=SpikingData(), optim=short_optim(30)
    )
    result = trainer.fit()
    assert (result.step, result.skipped_steps) == (30, 1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    counts = {line["step"]: line["skipped"] for line in lines if "skipped" in line}
    assert [step for step, count in counts.items() if count] == [25]
    state = optimizer_state(trainer.learner.optimizer, trainer.learner.modules)
    assert {int(moments["step"]) for moments in state.values()} == {29}


def test_a_spike_may_stop_the_run_and_its_batch_is_kept(tmp_path: Path) -> None:
    """After a resume too: the losses before it are in the checkpoint."""
    training, optim = _spike_training("stop"), short_optim(30)
    data = SignalledData(21)
    make_trainer(tmp_path, training=training, data=data, optim=optim).fit()
    with pytest.raises(TrainingStopped, match="step 25: the loss is far above its running median"):
        make_trainer(tmp_path, training=training, data=SpikingData(), optim=optim).fit()
    details = json.loads((tmp_path / "spike_step_00000025.json").read_text())
    kept = load_file(tmp_path / details["batch"])
    assert torch.equal(kept["inputs"], SpikingData().batch(24).inputs)
    assert kept["ordinals"].tolist() == details["sample_ordinals"]


def test_checkpoints_in_the_background_are_the_same(tmp_path: Path) -> None:
    plain = make_trainer(tmp_path / "plain")
    plain.fit()
    behind = make_trainer(tmp_path / "behind", training=replace(TRAINING, async_checkpoint=True))
    behind.fit()
    for step in ("step_00000010", "step_00000012"):
        ours, theirs = (
            load_file(tmp_path / name / "checkpoints" / step / "model.safetensors")
            for name in ("plain", "behind")
        )
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    again = make_trainer(tmp_path / "behind", task=ToyTask(seed=77))
    assert again.fit().step == 12
    ours, theirs = (
        optimizer_state(trainer.learner.optimizer, trainer.learner.modules)
        for trainer in (plain, again)
    )
    assert all(torch.equal(v, theirs[name][k]) for name in ours for k, v in ours[name].items())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_system_wants_the_job_started_again(tmp_path: Path, number: signal.Signals) -> None:
    result = make_trainer(tmp_path, data=SignalledData(7, number)).fit()
    assert (result.interrupted, result.requeue, result.step) == (True, True, 8)
    assert not make_trainer(None, data=SignalledData(2)).fit().requeue, "Ctrl-C"
