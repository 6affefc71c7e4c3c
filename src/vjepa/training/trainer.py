"""ONE training loop for every job: pretraining, probes, fine-tuning.

The step is the only clock. Data, schedules and randomness are pure functions of it, so that a run
that is resumed from a checkpoint does exactly what the uninterrupted one would have done, bit for
bit on a CPU.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from vjepa.checkpoint.folder import CHECKPOINTS_FOLDER
from vjepa.checkpoint.state import whole
from vjepa.checkpoint.store import CheckpointStore, load_checkpoint
from vjepa.errors import UserError
from vjepa.runtime.device import seed_torch
from vjepa.runtime.distributed import ProcessGroup, world
from vjepa.runtime.logging import MetricLog, MetricRecord
from vjepa.runtime.process import REQUEUE_SIGNALS
from vjepa.runtime.progress import Progress
from vjepa.tasks import Task
from vjepa.tasks.health import reports_to_keep
from vjepa.training.guards import BadUpdateGuard, StopSignals, TrainingStopped
from vjepa.training.parallel import DistributedConfig
from vjepa.training.preflight import foretell, is_telling, time_a_part
from vjepa.training.schedules import (
    EmaConfig,
    OptimConfig,
    TrainingConfig,
    ema_momentum,
    learning_rate,
    unreached,
    weight_decay,
)
from vjepa.training.step import build_learner, train_step
from vjepa.training.window import LogWindow

_LOGGER = logging.getLogger(__name__)
_OUT_OF_TIME, _NO_DATA = 1, 1000  # requests to stop; others are one more than a signal's number


class Evaluator(Protocol):
    """Something that is measured now and then while training, for example an online probe.

    One that has `is_early` set is measured before the first update, too.
    """

    @property
    def every_steps(self) -> int | None:
        """After how many updates each time; None: as the training config says."""

    def run(self, step: int) -> Mapping[str, float]:
        """Measure after `step` updates."""


@dataclass(frozen=True)
class TrainingResult:
    """How a training run ended."""

    step: int
    """Updates done in total, those before a resume included."""
    interrupted: bool
    """Stopped by a signal before the last update."""
    checkpoint: Path | None
    """The newest checkpoint."""
    skipped_steps: int
    """Updates of this process that were not finite or a spike."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last interval's means; empty when nothing was left to do."""
    out_of_time: bool = False
    """Ended by `max_minutes`, `max_cpu_minutes` or `is_enough` before the last update."""
    requeue: bool = False
    """It was not a person but the system (SIGTERM, SIGHUP, SIGUSR1): start it again."""


@dataclass(kw_only=True, eq=False, repr=False)
class Trainer:
    """Trains a task on batches, with logs, checkpoints, evaluations and guards.

    Building one moves the task to its device and makes the optimiser.
    """

    task: Task
    batches: Callable[[int, int], Iterator[Any]]
    """``batches(start, stop)`` gives those of updates ``start + 1`` to ``stop``, as a pure function
    of the step. A batch has ``ordinals``, int64 [B]: its samples' numbers in the run's order; and
    may have ``num_bad``: how many videos could not be read and were replaced."""
    optim: OptimConfig
    """Optimiser and schedules; `steps` is where training ends."""
    training: TrainingConfig
    seed: int
    """The run's; each update seeds torch with this and its own number."""
    ema: EmaConfig | None = None
    """Momentum of the task's moving averages, if it has any."""
    folder: Path | None = None
    """For checkpoints and diagnostics, claimed by the job; None: nothing is kept or resumed."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """``objective``, ``model`` and ``run`` for each checkpoint's `config.json`."""
    sinks: Sequence[MetricLog] = ()
    evaluators: Sequence[Evaluator] = ()
    description: str = "training"
    """Name of the work in the progress display."""
    group: ProcessGroup = field(default_factory=ProcessGroup)
    """All processes that train together; the main one has the sinks."""
    is_enough: Callable[[], bool] | None = None
    """Asked by the main process before each update: true ends training as `max_minutes` does."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        if world().size != self.group.size:
            raise UserError(
                f"WORLD_SIZE={world().size}: this job trains in one process; start it without "
                "a launcher such as torchrun"
            )
        training, group = self.training, self.group
        self.folder = None if self.folder is None else Path(self.folder)  # text will do
        self.learner = build_learner(
            self.task, self.optim, self.ema, training, group=group, distributed=self.distributed
        )
        self.store = None if self.folder is None else self._open_store(self.folder)
        self._guard = BadUpdateGuard(
            training, self.folder, group.rank, lambda update: next(self.batches(update - 1, update))
        )
        self._reports: list[dict[str, float]] = []  # of health, those that an alarm needs
        self._ringing = self._has_foretold = False
        self._window = LogWindow()
        self._completed = self._saved_step = 0
        self._elapsed, self._started = 0.0, time.perf_counter()
        self._cpu_seconds = 0.0  # of the windows that are read
        self._checkpoint: Path | None = None
        self._last_means: dict[str, Any] = {}
        # Evaluators that measure before the first update, later those that a stop came before.
        self._unmeasured = [
            n for n, e in enumerate(self.evaluators) if getattr(e, "is_early", False)
        ]

    def _open_store(self, folder: Path) -> CheckpointStore:
        place, training = folder / CHECKPOINTS_FOLDER, self.training
        keep, group = (training.keep_last, training.keep_every_steps), self.group
        return CheckpointStore(place, *keep, group=group, background=training.async_checkpoint)

    def start_from(self, completed_steps: int) -> None:
        """Continue training that was begun elsewhere, whose weights and moments the caller loaded.

        A checkpoint in this run's own folder goes before it.
        """
        self._completed = self._saved_step = completed_steps

    def fit(self) -> TrainingResult:
        """Train to the last update, from the newest checkpoint if there is one.

        Raises:
            TrainingStopped: The loss or a gradient is not finite, or the loss is a spike.
            UserError: The newest checkpoint is damaged or unfit; the disk is full; videos are bad.
        """
        task, group, training = self.task, self.group, self.training
        total, parts, request = self.optim.steps, self.optim.accumulation_steps, 0
        stream = f"step of process {group.rank}" if group.rank else "step"
        with ExitStack() as stack:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._resume()
            self._started = time.perf_counter()
            if self._is_done():
                return self._result(0)
            for warning in unreached(self.optim) if group.is_main else ():
                _LOGGER.warning("%s", warning)
            for sink in self.sinks:
                stack.callback(sink.close)
                sink.start(self._completed)
            signals = stack.enter_context(StopSignals(has_launcher=group.size > 1))
            progress = None
            if group.is_main:
                shown = None if training.max_minutes or training.max_cpu_minutes else total
                progress = stack.enter_context(Progress(self.description, shown, self._completed))
            batches = self.batches(self._completed, total)
            first, last, failure = self._completed, None, None
            try:
                self._measure(self._unmeasured, signals)
                self._window.restart()
                while self._completed < total:
                    asked, batch, request = time.perf_counter(), None, self._request(signals)
                    if not request:
                        try:
                            batch = signals.wait_for(lambda: next(batches, None))
                            request = (signals.received or -1) + 1
                        except UserError as error:  # no videos any more: all save, then it is said
                            failure, request = error, _NO_DATA
                    waited = time.perf_counter() - asked
                    # Nobody begins an update that another process will not come to.
                    if request := group.largest(request):
                        break
                    if batch is None:
                        raise RuntimeError(f"data ended after step {self._completed} of {total}")

                    update = self._completed + 1
                    if self._completed == first:
                        asked = self._say_pace(batch)
                    seed_torch(self.seed, stream, update)
                    micro_batches = (task.inputs(batch, part, parts) for part in range(parts))
                    self._window.add(train_step(self.learner, micro_batches, update), batch, waited)
                    self._completed, last = update, batch
                    self._foretell(update - first, time.perf_counter() - asked)
                    self._after_update(batch, signals)
                    if progress is not None:
                        note = None if len(self._window) else self._note()
                        progress.update(update, note, self._expected_steps())
                if request == _OUT_OF_TIME and last is not None:
                    self._after_update(last, signals, is_end=True)
                if len(self._window):
                    self._log_window()
                if self._completed != self._saved_step:
                    self._save()
            except BaseException as error:
                if "find_unused_parameters" in str(error):  # a constructor's, which nobody can call
                    error.add_note(f"{type(task).__name__} must say so: has_unused = True")
                # What is being written is written to its end; a second Ctrl-C waits for nothing.
                if not isinstance(error, KeyboardInterrupt):
                    self._finish_saving(together=isinstance(error, TrainingStopped))
                raise
            self._finish_saving()
            if request == _NO_DATA:
                group.agree([] if failure is None else [f"{failure}; {self._kept()}"])
        return self._result(request)

    def _is_done(self) -> bool:
        """Whether nothing is left to do after resuming, which is said."""
        done, total, read = self._completed, self.optim.steps, self._checkpoint
        # By the time that is stored, which is the same in every process; no clock is.
        is_done = done >= total or self._used(self._elapsed, self._cpu_seconds) >= 1
        if self.group.is_main and is_done:
            _LOGGER.info("done already, after %d of %d updates: %s", done, total, read)
        elif self.group.is_main and read is not None:
            _LOGGER.info("resuming after step %d from %s", done, read)
        return is_done

    def _say_pace(self, batch: Any) -> float:
        """Say how long training takes before a first update that is long; the time after that."""
        clips, done = len(batch.ordinals), self._completed
        if self.training.compile:
            if self.group.is_main:
                _LOGGER.info("how long an update takes is said after two: they compile the blocks")
        elif found := time_a_part(self.learner, batch, clips):
            seconds, said = found
            self.group.on_main(
                lambda: foretell(seconds, done, self._seconds(), self.optim, self.training, said)
            )
        return time.perf_counter()

    def _foretell(self, updates: int, seconds: float) -> None:
        """Say once, after the first or second update, how long training takes."""
        if self._has_foretold or updates > 2 or self._completed == self.optim.steps:
            return
        self._window.last_was_applied()  # waits for the device, so that its time is measured
        group, done = self.group, self._completed
        # Several processes must come to the same decision.
        if is_telling(updates, seconds if group.size == 1 else 0.0):
            self._has_foretold = True
            elapsed = self._seconds()
            group.on_main(lambda: foretell(seconds, done, elapsed, self.optim, self.training))

    def _request(self, signals: StopSignals) -> int:
        """Why this process wants to stop: a signal, :data:`_OUT_OF_TIME`, or 0 if it does not."""
        request = (signals.received or -1) + 1
        if request or not self.group.is_main:
            return request
        used = self._used(self._seconds(), self._cpu_so_far())
        is_over = used >= 1 or (self.is_enough is not None and self.is_enough())
        return _OUT_OF_TIME if is_over else 0

    def _seconds(self) -> float:
        """Seconds of training, those before a resume included."""
        return self._elapsed + time.perf_counter() - self._started

    def _cpu_so_far(self) -> float:
        """CPU seconds of training in this process, those before a resume included."""
        return self._cpu_seconds + self._window.cpu_seconds

    def _used(self, seconds: float, cpu_seconds: float) -> float:
        """The share of its time that training has used up; 0 without a limit."""
        limits = (self.training.max_minutes, seconds), (self.training.max_cpu_minutes, cpu_seconds)
        return max((done / (60 * limit) for limit, done in limits if limit), default=0.0)

    def _expected_steps(self) -> int:
        """Where training will end, at the pace so far."""
        steps = self.optim.steps
        used = self._used(self._seconds(), self._cpu_so_far())
        return min(steps, max(self._completed, round(self._completed / used))) if used else steps

    def _after_update(self, batch: Any, signals: StopSignals, *, is_end: bool = False) -> None:
        """Log, measure and save what is due; at an end by time, what was not due just now."""

        def is_due(every: int | None) -> bool:
            return every is not None and (
                is_end != (self._completed % every == 0) or self._completed == self.optim.steps
            )

        save = is_due(self.training.checkpoint_every_steps)
        health = is_due(self.training.health_every_steps)
        usual = self.training.evaluate_every_steps
        due = [n for n, e in enumerate(self.evaluators) if is_due(e.every_steps or usual)]
        log = is_due(self.training.log_every_steps) or (not is_end and self._is_bad_on_cpu())
        if not (log or save or health or due):
            return
        # Whatever takes time or may be resumed from ends the window too: then no line of the log
        # reaches over a resume, and no rate counts an evaluation's time.
        if len(self._window):
            self._log_window()
        if health:
            self._log_health(batch)
        is_over = is_end or self._completed == self.optim.steps  # what ends here is not resumed
        self._measure(due, None if is_over else signals)
        # Last, so that a resumed run has every line up to this step in its log.
        if save:
            self._save()
        self._window.restart()

    def _measure(self, evaluators: Sequence[int], signals: StopSignals | None) -> None:
        """Run evaluators, by number; at a stop the rest of them is left to the run that goes on."""
        if self.group.size > 1:  # others would wait for a process that gives up
            signals = None
        self._unmeasured = [number for number in evaluators if number < len(self.evaluators)]
        while self._unmeasured:
            run = partial(self.evaluators[self._unmeasured[0]].run, self._completed)
            if (found := signals.wait_for(run) if signals else run()) is None:
                return
            self._unmeasured.pop(0)
            self._write("evaluation", found)
        for module in self.learner.modules.values():
            module.train()

    def _is_bad_on_cpu(self) -> bool:
        """On the CPU this look costs nothing, and the first bad update stops the run at once."""
        return self.learner.setup.device.type == "cpu" and not self._window.last_was_applied()

    def _log_window(self) -> None:
        steps, values, ranks = self._window.read(self.group)
        optim, step = self.optim, self._completed
        values["learning_rate"] = learning_rate(step, optim)
        values["weight_decay"] = weight_decay(step, optim)
        if self.learner.ema is not None:
            values["momentum"] = ema_momentum(step, self.learner.ema, optim)
        self._cpu_seconds += values["cpu_seconds"]
        values["elapsed_seconds"] = self._seconds()
        values["elapsed_cpu_seconds"] = self._cpu_seconds
        self._last_means = values
        self._write("train", values)
        if ranks:
            self._write("ranks", ranks)
        self._guard.check(steps)

    def _log_health(self, batch: Any) -> None:
        with torch.no_grad(), self.learner.setup.autocast():
            found = self.task.health(batch, self.training.health_clips, self.group)
            health = {name: float(whole(value)) for name, value in found.items()}
        if not health:
            return
        self._write("health", health)
        report = {**health, "loss": self._last_means.get("loss", math.nan)}
        self._reports.append({name: v for name, v in report.items() if math.isfinite(v)})
        self._reports = reports_to_keep(self._reports)
        warning = self.task.alarm(self._reports)
        if warning is None and self._reports[-1].keys() < {n for one in self._reports for n in one}:
            return  # values that are no numbers now tell of no end
        # Said once, and its end too: small models often come near a collapse and get away from it.
        if (warning is not None) != self._ringing and self.group.is_main:
            message = warning or "all looks well again: nothing is left of the warning"
            _LOGGER.warning("step %d: %s", self._completed, message)
            self._write("warning" if warning else "all_clear", {"message": message})
        self._ringing = warning is not None

    def _save(self) -> None:
        if self.store is None:
            return
        spikes = self.learner.spikes
        extra = {
            "elapsed_seconds": self._seconds(),
            "cpu_seconds": self._cpu_seconds,
            "alarm": {"history": list(self._reports), "ringing": self._ringing},
            "spikes": None if spikes is None else spikes.state(),
            "skipped": list(self._guard.recent),
            "unmeasured": self._unmeasured,
        }
        modules, optimizer = self.task.saved_modules(), self.learner.optimizer
        self._checkpoint = self.store.save(self._completed, modules, optimizer, self.about, extra)
        self._saved_step = self._completed

    def _finish_saving(self, *, together: bool = True) -> None:
        if self.store is not None:
            self.store.finish(together=together)

    def _resume(self) -> None:
        if self.store is None:
            return
        newest = self.group.on_main(self.store.clean)
        if newest is None:
            return
        modules, optimizer = self.task.saved_modules(), self.learner.optimizer
        step, extra = load_checkpoint(newest, modules, optimizer, self.group)
        self._completed = self._saved_step = step
        self._checkpoint = newest
        self._elapsed = float(extra["elapsed_seconds"])
        # Runs of before this was counted: their wall-clock time.
        self._cpu_seconds = float(extra.get("cpu_seconds", self._elapsed))
        self._reports = [dict(report) for report in extra["alarm"]["history"]]
        self._ringing = bool(extra["alarm"]["ringing"])
        self._guard.recent.extend(extra.get("skipped", ()))
        self._unmeasured = list(extra.get("unmeasured", ()))
        losses = extra.get("spikes")
        if self.learner.spikes is not None and losses is not None:
            self.learner.spikes.load_state(losses)

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        record = MetricRecord(kind, self._completed, values)
        for sink in self.sinks:
            sink.write(record)

    def _note(self) -> str:
        said = "loss {loss:.4g}, {clips_per_second:.3g} clips/s, data wait {data_wait_share:.0%}"
        return said.format_map(self._last_means)

    def _kept(self) -> str:
        if self._checkpoint is not None:
            return f"saved as {self._checkpoint}: the same command resumes"
        return "the same command starts it again" if self.folder else "nothing was saved"

    def _result(self, request: int) -> TrainingResult:
        is_short = self._completed < self.optim.steps
        stopped_by = signal.Signals(request - 1) if is_short and request > _OUT_OF_TIME else None
        if stopped_by is not None and self.group.is_main:
            by_time = self.training.max_minutes or self.training.max_cpu_minutes
            step = f"{self._completed}{'' if by_time else f' of {self.optim.steps}'}"
            _LOGGER.warning("stopped by %s after step %s; %s", stopped_by.name, step, self._kept())
        return TrainingResult(
            step=self._completed,
            interrupted=stopped_by is not None,
            out_of_time=is_short and stopped_by is None,
            requeue=stopped_by in REQUEUE_SIGNALS,
            checkpoint=self._checkpoint,
            skipped_steps=self._guard.skipped,
            metrics={k: float(v) for k, v in self._last_means.items()},
        )
