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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vjepa.checkpoint.state import whole
from vjepa.checkpoint.store import CheckpointStore, CheckpointWriter, Snapshot
from vjepa.errors import UserError
from vjepa.runtime.device import compile_blocks, seed_torch
from vjepa.runtime.distributed import Agreement, Team, world
from vjepa.runtime.files import locked_folder
from vjepa.runtime.metric_log import MetricLog, MetricRecord
from vjepa.runtime.progress import Progress, open_progress
from vjepa.training.guards import (
    REQUEUE_SIGNALS,
    AlarmRule,
    BadUpdateGuard,
    HealthAlarm,
    StopSignals,
    TrainingStopped,
    keep_batch,
)
from vjepa.training.learner import build_learner, scheduled
from vjepa.training.log_window import Interval
from vjepa.training.parallel import DistributedConfig
from vjepa.training.schedules import EmaConfig, OptimConfig, TrainingConfig
from vjepa.training.step import (
    BadVideoCounting,
    BatchSource,
    Evaluator,
    HealthReporting,
    Look,
    Objective,
    Prepare,
    train_step,
)


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

    def writer(self, training: TrainingConfig, team: Team) -> CheckpointWriter:
        """Writes its checkpoints as the config says, together with all processes of the team."""
        return CheckpointWriter(self.store, team, background=training.async_checkpoint)


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
    """Updates of this process that were skipped because they were not finite or a spike."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last interval's means; empty when nothing was left to do."""
    requeue: bool = False
    """It was not a person who stopped it but the system (SIGTERM, SIGUSR1): start it again."""


_LOGGER = logging.getLogger(__name__)
_OUT_OF_TIME = 1  # among requests to stop; all others are numbers of signals, which are larger


@dataclass(kw_only=True, eq=False, repr=False)
class Trainer:
    """Trains an objective on batches, with logs, checkpoints, evaluations and guards.

    Building one moves the objective to its device and makes the optimiser.

    Raises:
        UserError: Device or compiler missing, nothing to train, or several processes where this
            job takes one.
    """

    objective: Objective
    """What is trained."""
    data: BatchSource
    """Gives the batches of any range of steps."""
    prepare: Prepare
    """Makes the objective's inputs of a part of a batch."""
    look: Look | None = None
    """Makes those for the objective's health; None: the first part that `prepare` makes."""
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
    sinks: Sequence[MetricLog] = ()
    """Where metrics go."""
    evaluators: Sequence[Evaluator] = ()
    """What is measured now and then."""
    alarm: AlarmRule | None = None
    """Warns of what the objective's health reports show, for example of a collapse."""
    description: str = "training"
    """Name of the work in the progress display."""
    team: Team = field(default_factory=Team)
    """All processes that train together; the main one has the sinks."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """How several processes train together."""
    has_unused: bool = False
    """Some trained parameters never take part in the loss."""

    def __post_init__(self) -> None:
        """Build the learner and the guards."""
        if world().size != self.team.size:
            raise UserError(
                f"WORLD_SIZE={world().size}: this job trains in one process; start it without "
                "a launcher such as torchrun"
            )
        self.learner = build_learner(
            self.objective,
            self.optim,
            self.ema,
            self.training,
            team=self.team,
            distributed=self.distributed,
            has_unused=self.has_unused,
        )
        self._saved_modules = dict(self.modules or self.learner.modules)
        if self.training.compile:
            compile_blocks(list(self._saved_modules.values()))
        folder = self.folder.path if self.folder else None
        self._guard = BadUpdateGuard(self.training, folder, self.team.rank, self._keep_batch)
        self._alarm = HealthAlarm(self.alarm)
        self._writer = self.folder.writer(self.training, self.team) if self.folder else None
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
            How it ended; after a signal ``interrupted`` is True and the state is saved.

        Raises:
            TrainingStopped: The loss or a gradient is not finite, or the loss is a spike.
            UserError: The newest checkpoint is damaged or does not fit; the disk is full; another
                process trains in the folder.
        """
        with ExitStack() as stack:
            if (folder := self.folder) is not None:
                self.team.on_main(lambda: stack.enter_context(locked_folder(folder.path)))
            return self._train()

    def _train(self) -> TrainingResult:
        self._resume()
        total = self.optim.steps
        self._started = time.perf_counter()
        limit = self.training.max_minutes
        # By the time that is stored, which is the same in every process; no clock is.
        if self._completed >= total or (limit is not None and self._elapsed >= 60 * limit):
            _LOGGER.info("nothing is left to do after %d of %d updates", self._completed, total)
            return self._result(None)
        try:
            for sink in self.sinks:
                sink.start(self._completed)
            bar = open_progress(self.description, total, self._completed)
            progress = bar if self.team.is_main else nullcontext()
            with StopSignals(has_launcher=world().size > 1) as signals, progress as shown:
                request = self._run(signals, shown)
        except TrainingStopped:
            self._finish_saving()
            raise
        finally:
            for sink in self.sinks:
                sink.close()
        stopped_by = signal.Signals(request) if request > _OUT_OF_TIME else None
        if self._completed < total and stopped_by is not None and self.team.is_main:
            saved = f"saved as {self._checkpoint}: the same command resumes"
            _LOGGER.warning(
                "stopped by %s after step %d of %d; %s",
                *(stopped_by.name, self._completed, total),
                saved if self.folder else "nothing was saved, because this job has no run folder",
            )
        return self._result(stopped_by)

    def _run(self, signals: StopSignals, progress: Progress | None) -> int:
        """Train until the end or a request; the request that ended it, or 0."""
        total = self.optim.steps
        source = self.data.batches(self._completed, total)
        agreement = Agreement(self.team)
        self._set_training_mode()
        self._interval.restart()
        request = 0
        while self._completed < total:
            request = agreement.exchange(self._request(signals))
            if request:
                break
            asked = time.perf_counter()
            batch = next(source, None)
            if batch is None:
                raise RuntimeError(f"the data ended after step {self._completed} of {total}")
            waited = time.perf_counter() - asked
            self._update(batch, waited)
            logged = self._after_update(batch)
            if progress is not None:
                progress.update(self._completed, self._note() if logged else None)
        agreement.finish()
        if len(self._interval):
            self._log_interval()
        if self._completed != self._saved_step:
            self._save()
        self._finish_saving()
        return request

    def _request(self, signals: StopSignals) -> int:
        """Why this process wants to stop: a signal's number, :data:`_OUT_OF_TIME`, or 0."""
        if signals.received is not None:
            return signals.received.value
        return _OUT_OF_TIME if self.team.is_main and self._is_out_of_time() else 0

    def _update(self, batch: Any, waited: float) -> None:
        """One optimiser update on one batch."""
        learner, update = self.learner, self._completed + 1
        parts = learner.optim.accumulation_steps
        rank = self.team.rank
        seed_torch(self.seed, f"step of process {rank}" if rank else "step", update)
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
        bad = self.learner.setup.device.type == "cpu" and not self._interval.last_was_applied()
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
        summary = self._interval.read(self.team)
        values: dict[str, Any] = {
            "first_step": summary.steps[0].update,
            **summary.means,
            **scheduled(self._completed, self.learner),
            "clips_per_second": summary.clips_per_second,
            "data_wait_share": summary.data_wait_share,
            **summary.memory,
            "seconds": summary.seconds,
            "elapsed_seconds": self._seconds_in_all(),
            "bad_videos": summary.num_bad,
            "skipped": sum(not step.applied for step in summary.steps),
        }
        self._last_means = values
        self._write("train", values)
        if summary.ranks:
            self._write("ranks", summary.ranks)
        self._guard.check(summary.steps)

    def _log_health(self, batch: Any) -> None:
        objective, setup = self.learner.objective, self.learner.setup
        if not isinstance(objective, HealthReporting):
            return
        if self.look is not None:
            inputs = self.look(batch, setup.device, self.training.health_clips)
        else:
            parts = self.optim.accumulation_steps
            inputs = self.prepare(batch, setup.device, 0, parts).inputs
        with torch.no_grad(), setup.autocast():
            health = {name: float(whole(v)) for name, v in objective.health(*inputs).items()}
        self._write("health", health)
        loss = self._last_means.get("loss", math.nan)
        warning = self._alarm.check(health, loss)
        if warning is not None and self.team.is_main:
            _LOGGER.warning("step %d: %s", self._completed, warning)
            self._write("warning", {"message": warning})

    def _save(self) -> None:
        if self.folder is None or self._writer is None:
            return
        spikes = self.learner.spikes
        extra = {
            "elapsed_seconds": self._seconds_in_all(),
            "alarm": self._alarm.state(),
            "spikes": None if spikes is None else spikes.state(),
        }
        snapshot = Snapshot.take(
            self._completed,
            self._saved_modules,
            self.learner.optimizer,
            self.folder.config,
            extra,
            team=self.team,
            copy=self._writer.background,
        )
        self._checkpoint = self._writer.write(snapshot)
        self._saved_step = self._completed

    def _finish_saving(self) -> None:
        if self._writer is not None:
            self._writer.finish()

    def _resume(self) -> None:
        if self.folder is None:
            return
        store = self.folder.store
        newest = self.team.on_main(store.clean_latest)
        if newest is None:
            return
        modules, optimizer = self._saved_modules, self.learner.optimizer
        loaded = store.load(newest, modules, optimizer, self.team)
        self._completed = self._saved_step = loaded.step
        self._checkpoint = newest
        self._elapsed = float(loaded.extra["elapsed_seconds"])
        self._alarm.load_state(loaded.extra["alarm"])
        losses = loaded.extra.get("spikes")
        if self.learner.spikes is not None and losses is not None:
            self.learner.spikes.load_state(losses)
        if self.team.is_main:
            _LOGGER.info("resuming after step %d from %s", loaded.step, newest)

    def _keep_batch(self, update: int, path: Path) -> bool:
        """Make the batch of an update once more, which the step alone determines, and keep it."""
        return keep_batch(next(iter(self.data.batches(update - 1, update))), path)

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

    def _result(self, stopped_by: signal.Signals | None) -> TrainingResult:
        interrupted = stopped_by is not None and self._completed < self.optim.steps
        return TrainingResult(
            step=self._completed,
            interrupted=interrupted,
            requeue=interrupted and stopped_by in REQUEUE_SIGNALS,
            checkpoint=self._checkpoint,
            skipped_steps=self._guard.skipped,
            metrics={k: float(v) for k, v in self._last_means.items()},
        )
