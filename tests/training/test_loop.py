"""The loop: exact resume, logs, checkpoints, guards, signals, spikes."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests import warm
from tests.training.toy import (
    OPTIM,
    TRAINING,
    ToyBatch,
    ToyData,
    ToyEvaluator,
    ToyTask,
    make_trainer,
    short_optim,
)
from torch import Tensor, nn

from vjepa.checkpoint.folder import step_folders
from vjepa.checkpoint.state import optimizer_state
from vjepa.errors import UserError
from vjepa.runtime.distributed import ProcessGroup
from vjepa.runtime.logging import read_metrics
from vjepa.tasks import Output
from vjepa.training import Trainer, TrainingConfig, TrainingStopped, preflight
from vjepa.training.schedules import learning_rate
from vjepa.training.step import StepValues
from vjepa.training.window import LogWindow

_TIMES = (
    "clips_per_second",
    "data_wait_share",
    "seconds",
    "cpu_seconds",
    "elapsed_cpu_seconds",
    "elapsed_seconds",
    "resident_gigabytes",
)


def _lines(folder: Path) -> list[dict[str, Any]]:
    """The log without what a clock has measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in _TIMES} for line in lines]


def _assert_same_state(ours: Trainer, theirs: Trainer) -> None:
    pairs = zip(ours.learner.pairs.target, theirs.learner.pairs.target, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    for name, module in ours.learner.modules.items():
        other = theirs.learner.modules[name].state_dict()
        assert all(torch.equal(v, other[k]) for k, v in module.state_dict().items())
    states = [optimizer_state(t.learner.optimizer, t.learner.modules) for t in (ours, theirs)]
    assert states[0].keys() == states[1].keys()
    for name, moments in states[0].items():
        assert all(torch.equal(v, states[1][name][k]) for k, v in moments.items())


class WatchedTask(ToyTask):
    """The spread of its features is a function of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, float]] = []

    def health(self, batch: ToyBatch, count: int, group: ProcessGroup) -> dict[str, Tensor]:
        spread = (1.0, 0.4, 0.3, 0.9, 0.2)[int(batch.ordinals[0]) // len(batch.ordinals)]
        return {"std": torch.tensor(spread), "rank": torch.tensor(math.nan)}

    def alarm(self, history: Sequence[Mapping[str, float]]) -> str | None:
        """Needs the reports from before, also over a resume."""
        self.seen.append(dict(history[-1]))
        spreads = [report["std"] for report in history]
        return f"fell to {spreads[-1]:.1f}" if spreads[-1] < max(spreads) / 2 else None


@dataclass(frozen=True)
class CountingBatch(ToyBatch):
    num_bad: int


class SignallingBatch:
    """A batch that sends signals to the process when a step first uses it."""

    def __init__(self, batch: ToyBatch, numbers: Sequence[signal.Signals]) -> None:
        self._batch, self._numbers = batch, list(numbers)

    def __getattr__(self, name: str) -> Any:
        while self._numbers:
            signal.raise_signal(self._numbers.pop())
        return getattr(self._batch, name)


class InterruptedData(ToyData):
    """Sends signals to the process during a step."""

    def __init__(self, at_step: int, *numbers: signal.Signals) -> None:
        super().__init__()
        self._at_step, self._numbers = at_step, numbers or (signal.SIGINT,)

    def batches(self, start_step: int, stop_step: int) -> Iterator[Any]:
        for batch in super().batches(start_step, stop_step):
            is_now = self.served[-1] == self._at_step
            yield SignallingBatch(batch, self._numbers) if is_now else batch


def test_training_learns_and_reports(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, optim=short_optim(80, warmup_steps=5))
    result = trainer.fit()
    assert (result.step, result.interrupted, result.skipped_steps) == (80, False, 0)
    losses = [line["loss"] for line in _lines(tmp_path) if line["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    assert result.metrics["loss"] == losses[-1]
    assert result.checkpoint == tmp_path / "checkpoints" / "step_00000080"
    saved = load_file(result.checkpoint / "model.safetensors")
    state = trainer.task.state_dict()
    assert saved.keys() == state.keys()
    assert all(torch.equal(v, saved[k]) for k, v in state.items())


@pytest.mark.parametrize("stop_after", [1, 5, 6, 11])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, stop_after: int) -> None:
    """Bit for bit: weights, moving average, moments; the log but for a cut interval."""
    whole = make_trainer(tmp_path / "whole")
    whole.fit()
    cut = tmp_path / "cut"
    result = make_trainer(cut, data=InterruptedData(stop_after - 1)).fit()
    assert result.interrupted
    assert result.step == stop_after
    data = ToyData()
    second = make_trainer(cut, data, task=ToyTask(seed=77))
    assert second.fit().step == 12
    _assert_same_state(whole, second)
    assert data.served == list(range(stop_after, 12))
    others = ("health", "evaluation")
    for kind in others:
        found, expected = (
            [line for line in _lines(tmp_path / name) if line["kind"] == kind]
            for name in ("cut", "whole")
        )
        assert found == expected
    covered = [
        step
        for line in _lines(cut)
        if line["kind"] == "train"
        for step in range(line["first_step"], line["step"] + 1)
    ]
    assert covered == list(range(1, 13))


_CRASHING = """
import os, sys
from pathlib import Path
from tests.training.toy import ToyData, make_trainer

class Crash(ToyData):
    def batches(self, start_step, stop_step):
        for batch in super().batches(start_step, stop_step):
            if self.served[-1] == 8:
                os.kill(os.getpid(), 9)
            yield batch

make_trainer(Path(sys.argv[1]), data=Crash()).fit()
"""


def test_killed_process_resumes_exactly_and_the_log_is_complete(tmp_path: Path) -> None:
    """SIGKILL after step 8, lines of steps 6 to 8 already written; the checkpoint is of step 5."""
    cut = tmp_path / "cut"
    killed = warm.script(_CRASHING, cut, log=tmp_path / "log")
    assert killed.wait() == -signal.SIGKILL, killed.said
    assert _lines(cut)[-1]["step"] == 8
    whole = make_trainer(tmp_path / "whole")
    whole.fit()
    resumed = make_trainer(cut, task=ToyTask(seed=77))
    resumed.fit()
    _assert_same_state(whole, resumed)
    assert _lines(cut) == _lines(tmp_path / "whole")


def test_log_has_every_kind_at_its_steps(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    lines = _lines(tmp_path)
    assert [li["step"] for li in lines if li["kind"] == "train"] == [4, 5, 6, 7, 8, 10, 12]
    assert [li["step"] for li in lines if li["kind"] == "health"] == [6, 12]
    assert [li["step"] for li in lines if li["kind"] == "evaluation"] == [7, 12]
    first = lines[0]
    assert first["learning_rate"] == learning_rate(4, OPTIM)
    assert first["momentum"] == pytest.approx(0.9 + 3 * 0.1 / 15)
    assert {"loss", "target_mean", "weight_decay", "grad_norm/encoder"} < first.keys()
    assert {"grad_norm/predictor", "skipped", "first_step"} < first.keys()


def test_bad_videos_are_counted(tmp_path: Path) -> None:
    class Counting(ToyData):
        def batch(self, step: int) -> ToyBatch:
            plain = super().batch(step)
            return CountingBatch(plain.ordinals, plain.inputs, num_bad=2 if step in (1, 3) else 0)

    make_trainer(tmp_path, data=Counting()).fit()
    counts = [line["bad_videos"] for line in _lines(tmp_path) if line["kind"] == "train"]
    assert counts == [4, 0, 0, 0, 0, 0, 0]


def test_intervals_may_be_switched_off(tmp_path: Path) -> None:
    training = replace(TRAINING, health_every_steps=None, evaluate_every_steps=None)
    evaluators = [ToyEvaluator(), ToyEvaluator(every_steps=5)]
    make_trainer(tmp_path, training=training, evaluators=evaluators).fit()
    lines = _lines(tmp_path)
    assert not [line for line in lines if line["kind"] == "health"]
    assert [li["step"] for li in lines if li["kind"] == "evaluation"] == [5, 10, 12]


def test_checkpoints_are_kept_as_configured(tmp_path: Path) -> None:
    training = replace(TRAINING, checkpoint_every_steps=2, keep_last=1, keep_every_steps=6)
    trainer = make_trainer(tmp_path, training=training)
    trainer.fit()
    assert trainer.store is not None
    assert list(step_folders(trainer.store.folder)) == [6, 12]


def test_randomness_is_a_function_of_seed_and_step() -> None:
    """Other draws in between change nothing; another seed changes the dropout."""
    plain, noisy = make_trainer(None, evaluators=[]), make_trainer(None)
    plain.fit()
    noisy.fit()
    _assert_same_state(plain, noisy)
    other = make_trainer(None, seed=2)
    other.fit()
    assert not torch.equal(other.learner.pairs.target[0], plain.learner.pairs.target[0])


def test_finished_run_does_nothing(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    before = (tmp_path / "metrics.jsonl").read_text()
    data = ToyData()
    result = make_trainer(tmp_path, data).fit()
    assert (result.step, result.interrupted, result.metrics) == (12, False, {})
    assert data.served == []
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_continued_training_starts_at_its_step(tmp_path: Path) -> None:
    """In a folder of its own; its own checkpoint goes before the foreign step."""
    data = InterruptedData(10)
    trainer = make_trainer(tmp_path, data)
    trainer.start_from(9)
    assert trainer.fit().step == 11
    assert data.served == [9, 10]
    assert _lines(tmp_path)[0]["first_step"] == 10
    assert _lines(tmp_path)[0]["learning_rate"] == learning_rate(10, OPTIM)
    data = ToyData()
    again = make_trainer(tmp_path, data)
    again.start_from(9)
    assert again.fit().step == 12
    assert data.served == [11]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signal_saves_and_says_so(
    tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    """The system wants the job started again, a person does not."""
    result = make_trainer(tmp_path, data=InterruptedData(7, number)).fit()
    assert (result.interrupted, result.step) == (True, 8)
    assert result.requeue == (number != signal.SIGINT)
    assert result.checkpoint == tmp_path / "checkpoints" / "step_00000008"
    assert f"stopped by {number.name} after step 8 of 12" in caplog.text
    assert "the same command resumes" in caplog.text


def test_the_bound_of_a_run_that_ends_by_time_is_not_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Recipes of so many minutes have a million steps, which nobody is meant to see."""
    by_time = replace(TRAINING, max_minutes=60.0)
    make_trainer(tmp_path, InterruptedData(7, signal.SIGINT), training=by_time).fit()
    assert "stopped by SIGINT after step 8; saved as" in caplog.text


class _Stopped(ToyEvaluator):
    """A signal comes while it measures after step 7, for the first so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def run(self, step: int) -> dict[str, float]:
        if step == 7 and self.times:
            self.times -= 1
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("it went on measuring")
        return super().run(step)


def test_a_stop_does_not_wait_for_an_evaluation_which_comes_in_the_next_run(tmp_path: Path) -> None:
    """An online probe of many videos may take longer than a scheduler waits before it kills."""

    def evaluations() -> list[int]:
        return [line["step"] for line in _lines(tmp_path) if line["kind"] == "evaluation"]

    evaluators = [ToyEvaluator(), _Stopped(2), ToyEvaluator()]
    for done in (1, 1):  # the second time while it makes up for it
        result = make_trainer(tmp_path, evaluators=evaluators).fit()
        assert (result.step, result.interrupted, result.requeue) == (7, True, True)
        assert result.checkpoint == tmp_path / "checkpoints" / "step_00000007"
        assert evaluations() == [7] * done
    assert make_trainer(tmp_path, evaluators=evaluators).fit().step == 12
    assert evaluations() == [7, 7, 7, 12, 12, 12]
    undisturbed = make_trainer(tmp_path / "b", evaluators=[ToyEvaluator()] * 3)
    undisturbed.fit()
    ours, theirs = _lines(tmp_path), _lines(tmp_path / "b")
    assert [(line["kind"], line["step"]) for line in ours] == [
        (line["kind"], line["step"]) for line in theirs
    ]


def test_what_is_measured_before_the_first_update_is_measured_once(tmp_path: Path) -> None:
    """Whatever stops the training later."""
    early = _Stopped(1)
    early.is_early = True
    for _ in range(2):
        make_trainer(tmp_path, evaluators=[ToyEvaluator(), early]).fit()
    steps = [line["step"] for line in _lines(tmp_path) if line["kind"] == "evaluation"]
    assert steps == [0, 7, 7, 12, 12]


def test_the_last_evaluation_is_waited_for(tmp_path: Path) -> None:
    """A run that is done does not go on."""

    class Last(ToyEvaluator):
        def run(self, step: int) -> dict[str, float]:
            signal.raise_signal(signal.SIGTERM)
            return super().run(step)

    training = replace(TRAINING, evaluate_every_steps=12)
    result = make_trainer(tmp_path, evaluators=[Last()], training=training).fit()
    assert (result.step, result.interrupted) == (12, False)
    assert [line["step"] for line in _lines(tmp_path) if line["kind"] == "evaluation"] == [12]


def test_signal_without_a_folder_says_that_nothing_is_saved(
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = make_trainer(None, data=InterruptedData(2)).fit()
    assert result.interrupted
    assert result.checkpoint is None
    assert "nothing was saved" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_data_is_waited_for_ends_at_once(
    tmp_path: Path, number: signal.Signals
) -> None:
    class Endless(ToyData):
        def batches(self, start_step: int, stop_step: int) -> Iterator[ToyBatch]:
            for batch in super().batches(start_step, stop_step):
                if self.served[-1] == 7:
                    signal.raise_signal(number)
                    raise AssertionError("it went on waiting")
                yield batch

    result = make_trainer(tmp_path, data=Endless()).fit()
    assert (result.step, result.interrupted) == (7, True)
    assert result.requeue == (number != signal.SIGINT)
    data = ToyData()
    assert make_trainer(tmp_path, data).fit().step == 12
    assert data.served[0] == 7


_CLOSED_TERMINAL = """
import fcntl, os, sys, termios
from pathlib import Path
from tests.training.toy import ToyData, make_trainer

class Closes(ToyData):
    def batches(self, start_step, stop_step):
        for batch in super().batches(start_step, stop_step):
            if self.served[-1] == 7:
                os.close(terminal)
            yield batch

if os.getsid(0) != os.getpid():
    os.setsid()
said = os.dup(1)
terminal, ours = os.openpty()
fcntl.ioctl(ours, termios.TIOCSCTTY, 0)
for number in range(3):
    os.dup2(ours, number)
assert sys.stderr.isatty()
found = make_trainer(Path(sys.argv[1]), Closes()).fit()
os.write(said, f"{found.step} {found.interrupted} {found.requeue}".encode())
os._exit(0)
"""


def test_a_terminal_that_closes_leaves_a_checkpoint(tmp_path: Path) -> None:
    done = warm.script(_CLOSED_TERMINAL, tmp_path / "run", log=tmp_path / "log")
    assert done.wait() == 0, done.said
    assert "7 True True" in done.said
    assert (tmp_path / "run" / "checkpoints" / "step_00000007").is_dir()


_TWO_PROCESSES = """
import os, signal, sys, time
from pathlib import Path
from tests.jobs.rank_host import free_port, place, wait
from tests.training.toy import ToyData, make_trainer
from vjepa.runtime.distributed import open_process_group

folder, port = Path(sys.argv[1]), free_port()

class Waits(ToyData):
    def batches(self, start_step, stop_step):
        for batch in super().batches(start_step, stop_step):
            if self.served[-1] == 3 and os.environ["RANK"] == "1":
                (folder / "waits").touch()
                time.sleep(600)
            yield batch

def train(rank):
    os.environ.update(place(rank, 2, port))
    with open_process_group("cpu", 1.0) as group:
        sinks = {} if group.is_main else {"sinks": []}
        found = make_trainer(folder / "run", Waits(), group=group, **sinks).fit()
        print(found.step, found.interrupted, found.requeue, flush=True)

children = []
for rank in range(2):
    if not (child := os.fork()):
        code = 1
        try:
            train(rank)
            code = 0
        finally:
            os._exit(code)
    children.append(child)
while not (folder / "waits").exists():
    time.sleep(0.02)
for child in children:
    os.kill(child, signal.SIGTERM)
sys.exit(max(map(wait, children)))
"""


def test_a_signal_to_several_processes_of_which_one_waits_for_data(tmp_path: Path) -> None:
    done = warm.script(_TWO_PROCESSES, tmp_path, log=tmp_path / "log")
    assert done.wait() == 0, done.said
    assert done.said.splitlines().count("3 True True") == 2, "both at the same step"
    assert (tmp_path / "run" / "checkpoints" / "step_00000003").is_dir()


def test_a_long_first_update_is_foretold_and_trying_it_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = make_trainer(None)
    plain.fit()
    monkeypatch.setattr(preflight, "_TIMED_SECONDS", 0.0)
    monkeypatch.setattr(preflight, "_TELLING_SECONDS", 0.0)
    with caplog.at_level("INFO", "vjepa"):
        told = make_trainer(None)
        told.fit()
    assert "(measured on 1 of 8 clips)" in caplog.text
    _assert_same_state(told, plain)
    data = ToyData()
    limit = replace(TRAINING, longest_hours=1e-12)
    with pytest.raises(UserError, match=r"\(measured on 1 of 8 clips\); that is longer than"):
        make_trainer(tmp_path, data, training=limit).fit()
    assert data.served == [0]
    assert not list((tmp_path / "checkpoints").glob("step_*"))


def test_second_signal_aborts_and_a_resume_still_works(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, data=InterruptedData(7, signal.SIGINT, signal.SIGINT)).fit()
    data = ToyData()
    assert make_trainer(tmp_path, data).fit().step == 12
    assert data.served[0] == 5


def test_bad_value_stops_before_anything_is_lost(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match="step 7: the loss or a gradient is not finite"):
        make_trainer(tmp_path, data=ToyData(bad_updates=[7])).fit()
    assert json.loads((tmp_path / "nonfinite_step_00000007.json").read_text())["step"] == 7
    assert _lines(tmp_path)[-1]["skipped"] == 1
    assert make_trainer(tmp_path).fit().step == 12


def test_bad_values_may_be_skipped(tmp_path: Path) -> None:
    training = replace(TRAINING, nonfinite="skip", health_every_steps=None)
    trainer = make_trainer(tmp_path, training=training, data=ToyData(bad_updates=[3, 7]))
    result = trainer.fit()
    assert (result.step, result.skipped_steps) == (12, 2)
    counts = {line["step"]: line["skipped"] for line in _lines(tmp_path) if "skipped" in line}
    assert counts[3] == counts[7] == 1
    assert sum(counts.values()) == 2
    state = optimizer_state(trainer.learner.optimizer, trainer.learner.modules)
    assert {int(moments["step"]) for moments in state.values()} == {10}


@pytest.mark.parametrize("stop_after", [None, 1, 2, 4])
def test_an_alarm_is_given_once_and_its_end_too_also_over_a_resume(
    tmp_path: Path, stop_after: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"training": replace(TRAINING, health_every_steps=1), "optim": short_optim(5)}
    if stop_after is not None:
        data = InterruptedData(stop_after - 1)
        make_trainer(tmp_path, data, task=WatchedTask(), **settings).fit()
    task = WatchedTask()
    make_trainer(tmp_path, task=task, **settings).fit()
    alarms = [line for line in _lines(tmp_path) if line["kind"] in {"warning", "all_clear"}]
    assert [(line["step"], line["kind"]) for line in alarms] == [
        (2, "warning"),
        (4, "all_clear"),
        (5, "warning"),
    ]
    assert [alarms[i]["message"] for i in (0, 2)] == ["fell to 0.4", "fell to 0.2"]
    assert "step 5: fell to 0.2" in caplog.text
    assert all(report.keys() == {"std", "loss"} for report in task.seen), "not what is no number"


def test_values_that_are_no_numbers_are_not_the_end_of_a_warning(tmp_path: Path) -> None:
    class Lost(WatchedTask):
        def health(self, batch: ToyBatch, count: int, group: ProcessGroup) -> dict[str, Tensor]:
            found = super().health(batch, count, group)
            return {n: value.where(value != 0.9, math.nan) for n, value in found.items()}

        def alarm(self, history: Sequence[Mapping[str, float]]) -> str | None:
            known = [report for report in history if "std" in report]
            return super().alarm(known) if "std" in history[-1] else None

    training = replace(TRAINING, health_every_steps=1)
    make_trainer(tmp_path, task=Lost(), training=training, optim=short_optim(5)).fit()
    kinds = [(line["step"], line["kind"]) for line in _lines(tmp_path)]
    assert [kind for kind in kinds if kind[1] in {"warning", "all_clear"}] == [(2, "warning")]


class Counting(ToyTask):
    """Counts the inputs that it saw, as a batch norm counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Module()
        self.seen.register_buffer("count", torch.zeros(()))

    def forward(self, inputs: Tensor, size: int | None = None) -> Output:
        self.seen.count += len(inputs)
        return super().forward(inputs, size)


def test_measuring_the_pace_changes_no_buffer_also_over_a_resume(tmp_path: Path) -> None:
    make_trainer(tmp_path, InterruptedData(4), task=Counting()).fit()
    task = Counting()
    make_trainer(tmp_path, task=task).fit()
    assert task.seen.count == 12 * 8


class WholeBatch(ToyTask):
    """Cannot compute its loss of a part, as a batch norm of a vector a clip cannot."""

    def forward(self, inputs: Tensor, size: int | None = None) -> Output:
        if len(inputs) < 8:
            raise ValueError("Expected more than 1 value per channel")
        return super().forward(inputs, size)


def test_a_loss_that_some_clips_alone_do_not_have_is_trained_where_the_task_says_so() -> None:
    task = WholeBatch()
    with pytest.raises(ValueError, match=r"1 of 8 clips, .* has compares_samples = True"):
        make_trainer(None, task=task, optim=short_optim(2)).fit()
    task.compares_samples = True
    assert make_trainer(None, task=task, optim=short_optim(2)).fit().step == 2


def test_what_fails_on_a_whole_batch_as_well_gets_no_such_advice() -> None:
    with pytest.raises(ValueError, match="must fit") as raised:
        make_trainer(None, task=Named("must fit")).fit()
    assert not hasattr(raised.value, "__notes__")
    with pytest.raises(ValueError, match="pass find") as raised:  # as torch's DDP says
        make_trainer(None, task=Named("pass find_unused_parameters=True")).fit()
    assert raised.value.__notes__ == ["Named must say so: has_unused = True"]


class Named(ToyTask):
    """Fails, or has a term of this name in every third update."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.calls = name, 0

    def forward(self, inputs: Tensor, size: int | None = None) -> Output:
        if " " in self.name:
            raise ValueError(self.name)
        found, self.calls = super().forward(inputs, size), self.calls + 1
        seldom = {self.name: torch.tensor(float(self.calls))} if self.calls % 3 == 0 else {}
        return Output(found.loss, found.terms | seldom)


def test_a_term_of_some_updates_is_averaged_over_those(tmp_path: Path) -> None:
    task, training = Named("rare"), replace(TRAINING, checkpoint_every_steps=12)
    task.compares_samples = True  # so that no part of the first batch is tried
    make_trainer(tmp_path, task=task, training=training).fit()
    lines = [r.values for r in read_metrics(tmp_path / "metrics.jsonl") if r.kind == "train"]
    assert [line.get("rare") for line in lines] == [3, 6, None, None, 10.5]
    with pytest.raises(ValueError, match="loss is the loss itself; give the term another name"):
        make_trainer(None, task=Named("loss")).fit()


def test_the_clock_goes_on_over_a_resume(tmp_path: Path) -> None:
    make_trainer(tmp_path, InterruptedData(6)).fit()
    make_trainer(tmp_path).fit()
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r.kind == "train"]
    elapsed = [record.values["elapsed_seconds"] for record in records]
    assert elapsed == sorted(elapsed)
    assert elapsed[0] > 0


def test_damaged_newest_checkpoint_stops_the_resume(tmp_path: Path) -> None:
    make_trainer(tmp_path, data=InterruptedData(6)).fit()
    model = tmp_path / "checkpoints" / "step_00000007" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"truncated.*resume from step 5"):
        make_trainer(tmp_path).fit()


def test_data_that_end_early_are_a_defect(tmp_path: Path) -> None:
    class Short(ToyData):
        def batches(self, start_step: int, stop_step: int) -> Iterator[ToyBatch]:
            return super().batches(start_step, stop_step - 2)

    with pytest.raises(RuntimeError, match="ended after step 10 of 12"):
        make_trainer(tmp_path, data=Short()).fit()


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE=2"):
        make_trainer(None)


def test_modules_are_in_training_mode_after_an_evaluation() -> None:
    class Evaluating(ToyEvaluator):
        def run(self, step: int) -> dict[str, float]:
            task.eval()
            return super().run(step)

    task = ToyTask()
    plain = make_trainer(None)
    plain.fit()
    switched = make_trainer(None, task=task, evaluators=[Evaluating()])
    switched.fit()
    _assert_same_state(plain, switched)


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("log_every_steps", 0, "be at least 1"),
        ("checkpoint_every_steps", 0, "be at least 1"),
        ("keep_last", 0, "be at least 1"),
        ("num_threads", 0, "be at least 1"),
        ("keep_every_steps", 0, "be at least 1"),
        ("max_skipped", -1, "not be negative"),
        ("max_minutes", 0, "be above 0"),
    ],
)
def test_bad_value_is_named(field: str, value: int, bound: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} must {bound}"):
        replace(TrainingConfig(), **{field: value})


def test_time_limit_stops_with_a_checkpoint_and_counts_over_resumes(tmp_path: Path) -> None:
    limited = replace(TRAINING, max_minutes=1e-6)
    make_trainer(tmp_path, training=replace(TRAINING, max_minutes=60)).fit()
    assert _lines(tmp_path)[-1]["step"] == 12
    other = tmp_path / "limited"
    result = make_trainer(other, training=limited).fit()
    assert (result.step, result.interrupted) == (0, False)
    steps = replace(OPTIM, steps=5)
    make_trainer(other, optim=steps).fit()
    data = ToyData()
    assert make_trainer(other, data, training=limited).fit().step == 5
    assert data.served == []


def test_a_run_ends_when_it_is_told_enough_and_says_when_it_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "vjepa")
    answers = iter([False, False, False, True])
    result = make_trainer(tmp_path, is_enough=lambda: next(answers)).fit()
    assert (result.step, result.out_of_time, result.interrupted) == (3, True, False)
    assert make_trainer(tmp_path).fit().step == 12
    assert "resuming after step 3" in caplog.text
    caplog.clear()
    make_trainer(tmp_path).fit()
    assert "done already, after 12 of 12 updates" in caplog.text
    assert "resuming" not in caplog.text


def test_what_ends_by_time_is_measured_at_its_end(tmp_path: Path) -> None:
    """Health each 6 updates, evaluations each 7: after the last as well, and once if it is due."""
    for end, health, evaluations in ((8, [6, 8], [7, 8]), (7, [6, 7], [7])):
        answers = iter([False] * end + [True])
        folder = tmp_path / str(end)
        make_trainer(folder, is_enough=lambda answers=answers: next(answers)).fit()
        found = {"health": health, "evaluation": evaluations}
        lines = _lines(folder)
        assert {k: [x["step"] for x in lines if x["kind"] == k] for k in found} == found


def test_what_a_checkpoint_holds_of_health_does_not_grow_with_the_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    class Told(ToyTask):
        def health(self, *_: Any) -> dict[str, Tensor]:
            return {name: torch.tensor(rng.random()) for name in ("effective_rank", "target_std")}

        def alarm(self, history: Sequence[Mapping[str, float]]) -> str | None:
            every.append(history[-1])
            for name in history[-1]:
                values = [report[name] for report in every]
                known = [report[name] for report in history]
                assert (min(known), max(known)) == (min(values), max(values))
            return None

    every: list[Mapping[str, float]] = []
    training = replace(TRAINING, health_every_steps=1, checkpoint_every_steps=40)
    make_trainer(tmp_path, task=Told(), training=training, optim=short_optim(40)).fit()
    state = tmp_path / "checkpoints/step_00000040/state/trainer.json"
    assert len(every) == 40
    assert len(json.loads(state.read_text())["extra"]["alarm"]["history"]) <= 7


def test_skipped_updates_are_counted_over_a_resume(tmp_path: Path) -> None:
    training = replace(TRAINING, nonfinite="skip", max_skipped=3)
    bad = (1, 3, 5, 7)
    data = InterruptedData(5)
    data.bad_updates = bad
    assert make_trainer(tmp_path, data, training=training).fit().interrupted
    with pytest.raises(TrainingStopped, match="4 of the last 1000 updates"):
        make_trainer(tmp_path, ToyData(bad_updates=bad), training=training).fit()


def test_a_limit_of_cpu_time_counts_updates_only_and_over_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each update takes a second of CPU, each evaluation a minute; the run is made longer once."""
    cpu = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: cpu[0])

    class Busy(ToyData):
        def batch(self, step: int) -> ToyBatch:
            cpu[0] += 1.0
            return super().batch(step)

    class Slow(ToyEvaluator):
        def run(self, step: int) -> dict[str, float]:
            cpu[0] += 60.0
            return super().run(step)

    fields = {"evaluators": [Slow(every_steps=2)]}
    for minutes, steps in ((4 / 60, 4), (4 / 60, 4), (7 / 60, 7), (1.0, 12)):
        limited = replace(TRAINING, max_cpu_minutes=minutes)
        trainer = make_trainer(tmp_path, Busy(), training=limited, **fields)
        result = trainer.fit()
        assert result.step == steps
        assert result.out_of_time == (steps < 12)
    last = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r.kind == "train"][-1]
    assert last.values["elapsed_cpu_seconds"] == 12.0
    whole = make_trainer(tmp_path / "at_once")
    whole.fit()
    _assert_same_state(trainer, whole)


_BATCH = ToyBatch(np.arange(4), torch.empty(0))


def _values(update: int, loss: float, finite: bool = True) -> StepValues:
    return StepValues(
        update, {"loss": torch.tensor(loss)}, torch.tensor(finite), torch.tensor(False)
    )


def test_means_and_rates() -> None:
    ticks = iter((10.0, 14.0, 20.0, 21.0))
    window = LogWindow(lambda: next(ticks))
    for update, loss in enumerate((1.0, 2.0, 6.0), start=5):
        window.add(_values(update, loss), _BATCH, seconds_waited=0.5)
    assert len(window) == 3
    steps, values, ranks = window.read(ProcessGroup())
    assert (values["first_step"], values["loss"], values["seconds"]) == (5, 3.0, 4.0)
    assert values["clips_per_second"] == 3.0
    assert values["data_wait_share"] == pytest.approx(0.375)
    assert [step.update for step in steps] == [5, 6, 7]
    assert ranks == {}
    window.restart()
    assert len(window) == 0


def test_bad_updates_are_left_out_of_the_means() -> None:
    window = LogWindow()
    window.add(_values(1, 2.0), _BATCH, 0.0)
    window.add(_values(2, math.nan, finite=False), _BATCH, 0.0)
    assert not window.last_was_applied()
    steps, values, _ = window.read(ProcessGroup())
    assert (values["loss"], values["skipped"]) == (2.0, 1)
    assert [step.finite for step in steps] == [True, False]
    window.restart()
    window.add(_values(1, math.inf, finite=False), _BATCH, 0.0)
    assert math.isnan(window.read(ProcessGroup())[1]["loss"])


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
    data = InterruptedData(21)
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


@pytest.mark.parametrize("error", [UserError("too many bad videos"), RuntimeError("out of memory")])
def test_an_error_waits_for_the_checkpoint_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """What writes it would end with the process."""

    class Broken(ToyData):
        def batch(self, step: int) -> ToyBatch:
            if step == 6:
                raise error
            return super().batch(step)

    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda *args: time.sleep(0.3) or rename(*args))
    training = replace(TRAINING, async_checkpoint=True)
    with pytest.raises(type(error), match=str(error)) as raised:
        make_trainer(tmp_path, data=Broken(), training=training).fit()
    # What stops at its videos has lost no update; a defect may have spoilt what would be saved.
    newest = 6 if isinstance(error, UserError) else 5
    assert sorted(step_folders(tmp_path / "checkpoints"))[-1] == newest
    assert ("step_00000006: the same command resumes" in str(raised.value)) == (newest == 6)
