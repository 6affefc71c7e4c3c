"""Non-finite updates, losses that jump, signals."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vjepa.errors import UserError
from vjepa.training import TrainingConfig, TrainingStopped
from vjepa.training.guards import SPIKE_WINDOW, BadUpdateGuard, HostStep, SpikeGate, StopSignals

SKIP = TrainingConfig(nonfinite="skip", max_skipped=2)


def _step(update: int, finite: bool) -> HostStep:
    values = {"loss": 1.0 if finite else math.nan, "grad_norm/encoder": 3.0, "other": 4.0}
    return HostStep(update, np.array([update, update + 1]), values, finite)


@dataclass
class _Batch:
    """The batch of an update, as its data would make it once more."""

    update: int
    images: _Batch | None = None

    def __post_init__(self) -> None:
        self.number = torch.tensor(self.update)


def _guard(training: TrainingConfig, folder: Path | None, rank: int = 0) -> BadUpdateGuard:
    return BadUpdateGuard(training, folder, rank, _Batch)


def test_stop_describes_the_batch(tmp_path: Path) -> None:
    guard = _guard(TrainingConfig(), tmp_path)
    guard.check([_step(1, True)])
    with pytest.raises(TrainingStopped) as caught:
        guard.check([_step(2, True), _step(3, False), _step(4, True)])
    file = tmp_path / "nonfinite_step_00000003.json"
    assert str(file) in str(caught.value)
    assert "step 3: the loss or a gradient is not finite (loss nan" in str(caught.value)
    assert isinstance(caught.value, UserError)
    details = json.loads(file.read_text())
    assert details["sample_ordinals"] == [3, 4]
    assert details["values"]["loss"] == "nan"
    assert load_file(tmp_path / details["batch"])["number"] == 3


def test_every_process_keeps_its_part_of_the_batch(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped):
        _guard(TrainingConfig(), tmp_path, rank=2).check([_step(3, False)])
    assert [p.name for p in tmp_path.iterdir()] == ["nonfinite_step_00000003_rank_0002.safetensors"]


@pytest.mark.parametrize(("nonfinite", "spike"), [("skip", "stop"), ("stop", "skip")])
def test_spikes_have_a_policy_of_their_own(tmp_path: Path, nonfinite: Any, spike: Any) -> None:
    guard = _guard(TrainingConfig(nonfinite=nonfinite, spike=spike), tmp_path)
    high = replace(_step(5, True), spike=True)
    if spike == "skip":
        guard.check([high])
        assert guard.skipped == 1
        return
    guard.check([_step(4, False)])
    with pytest.raises(TrainingStopped, match="step 5: the loss is far above its running median"):
        guard.check([high])
    assert (tmp_path / "spike_step_00000005.json").is_file()


def test_a_batch_that_cannot_be_kept_does_not_hide_the_reason(tmp_path: Path) -> None:
    guard = _guard(TrainingConfig(), tmp_path / "a folder that was removed")
    with pytest.raises(TrainingStopped, match=r"^step 3: the loss .* not be kept: .*No such file"):
        guard.check([_step(3, False)])


def test_a_batch_that_cannot_be_read_again_does_not_hide_the_reason(tmp_path: Path) -> None:
    for error in (UserError("too many bad videos"), RuntimeError("out of memory")):

        def gone(_: int, error: Exception = error) -> None:
            raise error

        with pytest.raises(TrainingStopped, match=rf"^step 3: .* not be kept: {error}"):
            BadUpdateGuard(TrainingConfig(), tmp_path, 0, gone).check([_step(3, False)])


def test_images_beside_the_clips_are_kept_too(tmp_path: Path) -> None:
    def with_images(update: int) -> _Batch:
        batch = _Batch(update)
        batch.images = _Batch(100 + update)
        return batch

    with pytest.raises(TrainingStopped):
        BadUpdateGuard(TrainingConfig(), tmp_path, 0, with_images).check([_step(3, False)])
    kept = load_file(tmp_path / "nonfinite_step_00000003_rank_0000.safetensors")
    assert {name: int(value) for name, value in kept.items()} == {
        "number": 3,
        "images.number": 103,
    }


def test_stop_without_a_folder() -> None:
    with pytest.raises(TrainingStopped, match="step 7"):
        _guard(TrainingConfig(), None).check([_step(7, False)])


def test_skipped_updates_are_counted_and_bounded(caplog: pytest.LogCaptureFixture) -> None:
    guard = _guard(SKIP, None)
    with caplog.at_level(logging.WARNING, logger="vjepa"):
        guard.check([_step(1, False), _step(2, True), _step(3, False)])
    assert guard.skipped == 2
    assert "finite (loss nan, grad_norm/encoder 3); this update was skipped" in caplog.text
    with pytest.raises(TrainingStopped, match="3 of the last 1000 updates"):
        guard.check([_step(4, False)])


def test_rare_skips_never_add_up() -> None:
    guard = _guard(SKIP, None)
    guard.check([_step(update, False) for update in range(1, 20_000, 500)])
    assert guard.skipped == 40
    with pytest.raises(TrainingStopped):
        _guard(replace(SKIP, max_skipped=0), None).check([_step(1, False)])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_first_signal_asks_and_the_second_aborts(number: signal.Signals) -> None:
    previous = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        signal.raise_signal(number)
        assert signals.received is number
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        else:
            signal.raise_signal(number)  # schedulers repeat themselves
    assert signal.getsignal(number) is previous


def test_a_job_that_is_to_outlive_its_terminal_does() -> None:
    """`nohup` starts it with SIGHUP ignored."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_ctrl_c_that_a_launcher_passes_on_is_not_a_second_one() -> None:
    with StopSignals(has_launcher=True) as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert signals.received is signal.SIGINT


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_worker_ignores_ctrl_c_but_can_be_terminated() -> None:
    """A loader ends its workers by SIGTERM; a handler that they inherit must not swallow it."""
    read_end, write_end = os.pipe()
    with StopSignals() as signals:
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGINT)
            os.write(write_end, b"alive")
            signal.pause()
            os._exit(1)
        assert os.read(read_end, 5) == b"alive"
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert signals.received is None
        assert signal.getsignal(signal.SIGTERM) == signals._handle


def _gate(losses: list[float], factor: float = 3.0) -> SpikeGate:
    gate = SpikeGate(factor, torch.device("cpu"))
    for update, loss in enumerate(losses, start=1):
        gate.add(update, torch.tensor(loss), torch.tensor(True))
    return gate


@pytest.mark.parametrize(("loss", "spike"), [(2.9, False), (3.1, True), (math.inf, True)])
def test_a_spike_is_far_above_the_median_and_the_first_updates_pass(
    loss: float, spike: bool
) -> None:
    gate = _gate([1.0] * 15 + [100.0])
    assert bool(gate.is_spike(torch.tensor(loss))) is spike
    assert not _gate([1.0] * 15).is_spike(torch.tensor(1e9))


def test_the_median_follows_what_was_applied() -> None:
    gate = _gate([1.0] * SPIKE_WINDOW)
    for update in range(1, SPIKE_WINDOW + 1):
        gate.add(update, torch.tensor(50.0), torch.tensor(update % 4 == 0))
    assert not gate.is_spike(torch.tensor(140.0))
    assert gate.is_spike(torch.tensor(151.0))


def test_the_memory_survives_a_checkpoint() -> None:
    gate = _gate([0.1 * number for number in range(1, 40)])
    other = SpikeGate(3.0, torch.device("cpu"))
    other.load_state(json.loads(json.dumps(gate.state())))
    assert other.state() == gate.state()
    assert other.is_spike(torch.tensor(7.0))
