"""ONE training loop for every job: pretraining, probes, fine-tuning.

The step is the only clock. Data, schedules and randomness are pure functions of it, so that a run
that is resumed from a checkpoint does exactly what the uninterrupted one would have done, bit for
bit on a CPU.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vjepa.errors import UserError
from vjepa.runtime.device import compile_blocks, set_up_device
from vjepa.runtime.distributed import world
from vjepa.runtime.metric_sinks import MetricRecord, MetricSink
from vjepa.runtime.progress import Progress, open_progress
from vjepa.runtime.run_lock import locked_folder
from vjepa.runtime.seeds import seed_torch
from vjepa.runtime.threads import set_num_threads
from vjepa.training.checkpoint import CheckpointStore
from vjepa.training.config import TrainingConfig
from vjepa.training.ema import EmaPairs
from vjepa.training.guards import AlarmRule, HealthAlarm, NonFiniteGuard, StopSignals
from vjepa.training.interval import Interval
from vjepa.training.optim import build_optimizer
from vjepa.training.schedules import (
    EmaConfig,
    OptimConfig,
    ema_momentum,
    learning_rate,
    weight_decay,
)
from vjepa.training.step import (
    BadVideoCounting,
    BatchSource,
    Evaluator,
    HealthReporting,
    Learner,
    Objective,
    Prepare,
    train_step,
)

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """Where a job keeps what it makes; a job without one only trains."""

    path: Path
    """For diagnostics."""
    store: CheckpointStore
    """Its checkpoints."""
    config: Mapping[str, Any]
    """``objective``, ``model`` and ``run`` for each checkpoint's `config.json`."""

    @classmethod
    def open(cls, path: Path, training: TrainingConfig, config: Mapping[str, Any]) -> RunFolder:
        """The run folder at `path`, which keeps as many checkpoints as the config says."""
        path.mkdir(parents=True, exist_ok=True)
        store = CheckpointStore(path / "checkpoints", training.keep_last, training.keep_every_steps)
        return cls(path, store, config)


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
    """Updates of this process that were skipped because they were not finite."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last interval's means; empty when nothing was left to do."""


@dataclass(kw_only=True, eq=False, repr=False)
class Trainer:
    """Trains an objective on batches, with logs, checkpoints, evaluations and guards.

    Building one moves the objective to its device and makes the optimiser.

    Raises:
        UserError: Device or compiler missing, nothing to train, or several processes.
    """

    objective: Objective
    """What is trained."""
    data: BatchSource
    """Gives the batches of any range of steps."""
    prepare: Prepare
    """Makes the objective's inputs of a part of a batch."""
    optim: OptimConfig
    """Optimiser and schedules; `steps` is where training ends."""
    training: TrainingConfig
    """Device and intervals."""
    seed: int
    """The run's seed; each update seeds torch with its own number."""
    ema: EmaConfig | None = None
    """Momentum of the objective's moving averages; None: it has none."""
    modules: Mapping[str, nn.Module] | None = None
    """All weights that a checkpoint holds, by name; None: the trained ones."""
    folder: RunFolder | None = None
    """Where checkpoints go; None: nothing is kept and nothing resumed."""
    sinks: Sequence[MetricSink] = ()
    """Where metrics go."""
    evaluators: Sequence[Evaluator] = ()
    """What is measured now and then."""
    alarm: AlarmRule | None = None
    """Warns of what the objective's health reports show, for example of a collapse."""
    description: str = "training"
    """Name of the work in the progress display."""

    def __post_init__(self) -> None:
        """Build the learner and the guards."""
        if world().size > 1:
            raise UserError(
                f"WORLD_SIZE={world().size}: this version trains in one process; start it without "
                "a launcher such as torchrun"
            )
        self.learner = build_learner(self.objective, self.optim, self.ema, self.training)
        self._saved_modules = dict(self.modules or self.learner.modules)
        if self.training.compile:
            compile_blocks(list(self._saved_modules.values()))
        self._guard = NonFiniteGuard(self.training, self.folder.path if self.folder else None)
        self._alarm = HealthAlarm(self.alarm)
        self._interval = Interval()
        self._completed = self._saved_step = 0
        self._elapsed, self._started = 0.0, time.perf_counter()
        self._checkpoint: Path | None = None
        self._last_means: dict[str, float] = {}

    def start_from(self, completed_steps: int) -> None:
        """Continue training that was begun elsewhere.

        The caller has loaded its weights, and its moments into ``learner.optimizer``. A checkpoint
        in this run's own folder goes before it.

        Args:
            completed_steps: Updates that those weights have behind them; schedules and data go on
                from there.
        """
        self._completed = self._saved_step = completed_steps

    def train(self) -> TrainingResult:
        """Train to the last update, from the newest checkpoint if there is one.

        Returns:
            How it ended; after SIGINT or SIGTERM ``interrupted`` is True and the state is saved.

        Raises:
            TrainingStopped: The loss or a gradient is not finite.
            UserError: The newest checkpoint is damaged or does not fit; the disk is full; another
                process trains in the folder.
        """
        with locked_folder(self.folder.path) if self.folder else nullcontext():
            return self._train()

    def _train(self) -> TrainingResult:
        self._resume()
        total = self.optim.steps
        self._started = time.perf_counter()
        if self._completed >= total or self._is_out_of_time():
            _LOGGER.info("nothing is left to do after %d of %d updates", self._completed, total)
            return self._result(interrupted=False)
        try:
            for sink in self.sinks:
                sink.start(self._completed)
            progress = open_progress(self.description, total, self._completed)
            with StopSignals() as signals, progress:
                self._run(signals, progress)
        finally:
            for sink in self.sinks:
                sink.close()
        interrupted = signals.received is not None and self._completed < total
        if interrupted and signals.received is not None:
            _LOGGER.warning(
                "stopped by %s after step %d of %d; %s",
                signals.received.name,
                self._completed,
                total,
                f"saved as {self._checkpoint}: the same command resumes"
                if self.folder
                else "nothing was saved, because this job has no run folder",
            )
        return self._result(interrupted)

    def _run(self, signals: StopSignals, progress: Progress) -> None:
        total = self.optim.steps
        source = self.data.batches(self._completed, total)
        self._set_training_mode()
        self._interval.restart()
        while self._completed < total and signals.received is None and not self._is_out_of_time():
            asked = time.perf_counter()
            batch = next(source, None)
            if batch is None:
                raise RuntimeError(f"the data ended after step {self._completed} of {total}")
            waited = time.perf_counter() - asked
            self._update(batch, waited)
            progress.update(self._completed)
            if self._after_update(batch):
                progress.update(self._completed, self._note())
        if len(self._interval):
            self._log_interval()
        if self._completed != self._saved_step:
            self._save()

    def _update(self, batch: Any, waited: float) -> None:
        """One optimiser update on one batch."""
        learner, update = self.learner, self._completed + 1
        parts = learner.optim.accumulation_steps
        seed_torch(self.seed, "step", update)
        micro_batches = (
            self.prepare(batch, learner.setup.device, part, parts) for part in range(parts)
        )
        values = train_step(learner, micro_batches, update)
        num_bad = batch.num_bad if isinstance(batch, BadVideoCounting) else 0
        self._interval.add(values, batch.ordinals, waited, num_bad)
        self._completed = update

    def _after_update(self, batch: Any) -> bool:
        """Log, look at the health, evaluate and save where due; whether a line was logged."""
        step, training = self._completed, self.training
        save = self._is_due(training.checkpoint_every_steps)
        look = self._is_due(training.health_every_steps)
        evaluators = [e for e in self.evaluators if self._is_due(self._interval_of(e))]
        # On the CPU this look costs nothing, and the first bad update stops the run at once.
        bad = self.learner.setup.device.type == "cpu" and not self._interval.last_is_finite()
        # Whatever takes time or may be resumed from ends the interval too: then no line of the log
        # reaches over a resume, and no rate counts the time of an evaluation.
        if not (save or look or evaluators or bad or self._is_due(training.log_every_steps)):
            return False
        self._log_interval()
        if look:
            self._log_health(batch)
        for evaluator in evaluators:
            self._write("evaluation", evaluator.run(step))
            self._set_training_mode()
        # Last, so that a resumed run has every line up to this step in its log.
        if save:
            self._save()
        self._interval.restart()
        return True

    def _seconds_in_all(self) -> float:
        """Seconds of training, those before a resume included."""
        return self._elapsed + time.perf_counter() - self._started

    def _is_out_of_time(self) -> bool:
        limit = self.training.max_minutes
        return limit is not None and self._seconds_in_all() >= 60 * limit

    def _log_interval(self) -> None:
        summary = self._interval.read()
        first, learner = summary.steps[0].update, self.learner
        values: dict[str, Any] = {
            "first_step": first,
            **summary.means,
            "learning_rate": learning_rate(self._completed, learner.optim),
            "weight_decay": weight_decay(self._completed, learner.optim),
        }
        if learner.ema is not None:
            values["momentum"] = ema_momentum(self._completed, learner.ema, learner.optim)
        values |= {
            "clips_per_second": summary.clips_per_second,
            "data_wait_share": summary.data_wait_share,
            "seconds": summary.seconds,
            "elapsed_seconds": self._seconds_in_all(),
            "bad_videos": summary.num_bad,
            "skipped": sum(not step.finite for step in summary.steps),
        }
        self._last_means = values
        self._write("train", values)
        self._guard.check(summary.steps)

    def _log_health(self, batch: Any) -> None:
        objective, setup = self.learner.objective, self.learner.setup
        if not isinstance(objective, HealthReporting):
            return
        parts = self.optim.accumulation_steps
        micro = self.prepare(batch, setup.device, 0, parts)
        with torch.no_grad(), setup.autocast():
            health = {name: float(v) for name, v in objective.health(*micro.inputs).items()}
        self._write("health", health)
        loss = self._last_means.get("loss", math.nan)
        warning = self._alarm.check(health, loss)
        if warning is not None:
            _LOGGER.warning("step %d: %s", self._completed, warning)
            self._write("warning", {"message": warning})

    def _save(self) -> None:
        if self.folder is None:
            return
        extra = {
            "elapsed_seconds": self._seconds_in_all(),
            "alarm": self._alarm.state(),
        }
        self._checkpoint = self.folder.store.save(
            self._completed, self._saved_modules, self.learner.optimizer, self.folder.config, extra
        )
        self._saved_step = self._completed

    def _resume(self) -> None:
        newest = self.folder.store.latest() if self.folder else None
        if self.folder is None or newest is None:
            return
        self.folder.store.clean()
        loaded = self.folder.store.load(newest, self._saved_modules, self.learner.optimizer)
        self._completed = self._saved_step = loaded.step
        self._checkpoint = newest
        self._elapsed = float(loaded.extra["elapsed_seconds"])
        self._alarm.load_state(loaded.extra["alarm"])
        _LOGGER.info("resuming after step %d from %s", loaded.step, newest)

    def _is_due(self, every: int | None) -> bool:
        """At multiples of an interval, and at the end of training."""
        step = self._completed
        return every is not None and (step % every == 0 or step == self.optim.steps)

    def _interval_of(self, evaluator: Evaluator) -> int | None:
        return evaluator.every_steps or self.training.evaluate_every_steps

    def _set_training_mode(self) -> None:
        for module in self.learner.modules.values():
            module.train()

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        record = MetricRecord(kind, self._completed, values)
        for sink in self.sinks:
            sink.write(record)

    def _note(self) -> str:
        means = self._last_means
        return (
            f"loss {means['loss']:.4g}, {means['clips_per_second']:.3g} clips/s, "
            f"data wait {means['data_wait_share']:.0%}"
        )

    def _result(self, interrupted: bool) -> TrainingResult:
        return TrainingResult(
            step=self._completed,
            interrupted=interrupted,
            checkpoint=self._checkpoint,
            skipped_steps=self._guard.skipped,
            metrics={k: float(v) for k, v in self._last_means.items()},
        )


def build_learner(
    objective: Objective, optim: OptimConfig, ema: EmaConfig | None, training: TrainingConfig
) -> Learner:
    """Put an objective on its device and build what an update needs.

    Args:
        objective: What is trained; moved in place.
        optim: Optimiser and schedules.
        ema: Momentum, exactly when the objective has moving averages.
        training: Gives device, precision and threads.

    Returns:
        The learner, with a fresh optimiser.

    Raises:
        UserError: No such device, or nothing to train.
        ValueError: `ema` does not go with the objective.
    """
    set_num_threads(training.num_threads)
    setup = set_up_device(training.device, training.precision)
    objective.to(setup.device)
    trained = dict(objective.trainable())
    # Pairs are made before compiling or any other wrapping.
    pairs = EmaPairs.of(objective.ema_pairs())
    if bool(pairs.target) != (ema is not None):
        raise ValueError("ema: an objective with moving averages needs it, others must not have it")
    optimizer = build_optimizer(trained, optim)
    return Learner(objective, trained, optimizer, pairs, optim, ema, setup)
