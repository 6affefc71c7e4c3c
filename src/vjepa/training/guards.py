"""What protects a long run: values that are not finite, collapse, signals that ask it to stop."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vjepa.errors import UserError
from vjepa.training.log_window import HostStep
from vjepa.training.schedules import TrainingConfig


def keep_batch(batch: Any, path: Path) -> bool:
    """Write the arrays of a batch as safetensors.

    Args:
        batch: A dataclass with tensors and arrays, for example a ``ClipBatch``.
        path: The file.

    Returns:
        Whether there was anything to write.
    """
    if not dataclasses.is_dataclass(batch):
        return False
    arrays: dict[str, Tensor] = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = torch.from_numpy(np.ascontiguousarray(value))
        elif isinstance(value, Tensor):
            arrays[field.name] = value.detach().cpu().contiguous()
    save_file(arrays, path)
    return bool(arrays)


_LOGGER = logging.getLogger(__name__)
_SKIP_WINDOW = 1000
_HANDLED = tuple(
    # Windows has no SIGUSR1.
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1")
    if hasattr(signal, name)
)
REQUEUE_SIGNALS = frozenset(_HANDLED) - {signal.SIGINT}
"""Sent by systems, not by people: the job wants to be started again."""


class TrainingStopped(UserError):  # noqa: N818 (it is an outcome that the user asked for)
    """Training cannot go on; the message says at which step, why, and what may help."""


KeepBatch = Callable[[int, Path], bool]
"""``keep(update, file)``: writes the batch of an update to a file, if it can; whether it did."""


class BadUpdateGuard:
    """Decides what happens after updates that were not finite or whose loss was a spike.

    Such updates have never changed the weights: the optimiser skips them on the device.
    """

    def __init__(
        self, training: TrainingConfig, folder: Path | None, rank: int, keep: KeepBatch
    ) -> None:
        """Set the policy.

        Args:
            training: Gives ``nonfinite`` and ``spike``: ``stop`` at the first one, or ``skip`` and
                count up to ``max_skipped`` in any 1000 updates.
            folder: Where the details of a stop are written; None: only in the message.
            rank: Of this process; each keeps its part of the batch, the first describes it.
            keep: Keeps the batch at which training stops.
        """
        self._training, self._folder, self._rank, self._keep = training, folder, rank, keep
        self._recent: deque[int] = deque()
        self.skipped = 0

    def check(self, steps: Sequence[HostStep]) -> None:
        """Look at an interval of updates.

        Args:
            steps: The updates, in order.

        Raises:
            TrainingStopped: By the policy.
        """
        for step in steps:
            if step.applied:
                continue
            kind, policy = "nonfinite", self._training.nonfinite
            reason = "the loss or a gradient is not finite"
            if step.finite:
                kind, policy = "spike", self._training.spike
                reason = "the loss is far above its running median"
            if policy == "stop":
                self._stop(step, kind, reason)
            self.skipped += 1
            self._recent.append(step.update)
            while self._recent[0] <= step.update - _SKIP_WINDOW:
                self._recent.popleft()
            if self._rank == 0:
                _LOGGER.warning(
                    "step %d: %s (%s); this update was skipped",
                    *(step.update, reason, _describe(step.values)),
                )
            if len(self._recent) > self._training.max_skipped:
                count = len(self._recent)
                self._stop(step, kind, f"{count} of the last {_SKIP_WINDOW} updates were skipped")

    def _stop(self, step: HostStep, kind: str, reason: str) -> None:
        message = (
            f"step {step.update}: {reason} ({_describe(step.values)}); a lower optim.peak_lr, "
            "a longer warm-up, optim.clip_norm, or training.precision float32 may help"
        )
        if self._folder is not None:
            name = f"{kind}_step_{step.update:08d}"
            details = self._folder / f"{name}.json"
            batch = self._folder / f"{name}_rank_{self._rank:04d}.safetensors"
            try:
                kept = self._keep(step.update, batch)
                if self._rank == 0:
                    self._write_details(details, step, reason, batch.name if kept else None)
            except (OSError, SafetensorError) as error:
                # The reason of the stop must not be lost with the batch.
                message += f"; the batch could not be kept: {str(error).splitlines()[0]}"
            else:
                message += f"; the batch is kept beside {details}"
        raise TrainingStopped(message)

    def _write_details(
        self, file: Path, step: HostStep, reason: str, batch_name: str | None
    ) -> None:
        details = {
            "step": step.update,
            "reason": reason,
            "values": {name: str(value) for name, value in step.values.items()},
            "sample_ordinals": step.ordinals.tolist(),
            "batch": batch_name,
        }
        file.write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")


AlarmRule = Callable[[Sequence[Mapping[str, float]]], str | None]
"""Looks at all health reports so far, each with the ``loss`` of its time; a warning or None."""


class HealthAlarm:
    """Keeps the health reports of a run and passes on what a rule says of them, once.

    What a value means is the objective's business: the rule belongs to it.
    """

    def __init__(self, rule: AlarmRule | None) -> None:
        """Set the rule; None never warns."""
        self._rule = rule
        self._history: list[dict[str, float]] = []
        self._ringing = False

    def check(self, health: Mapping[str, float], loss: float) -> str | None:
        """Add a report.

        Args:
            health: The objective's values; those that are not finite are left out.
            loss: Mean loss of the newest interval.

        Returns:
            A warning when the rule begins to see something wrong; it is not repeated until all was
            well in between.
        """
        report = {name: v for name, v in {**health, "loss": loss}.items() if math.isfinite(v)}
        self._history.append(report)
        warning = self._rule(self._history) if self._rule else None
        is_new = warning is not None and not self._ringing
        self._ringing = warning is not None
        return warning if is_new else None

    def state(self) -> dict[str, Any]:
        """The reports so far, for the checkpoint (plain JSON types)."""
        return {"history": self._history, "ringing": self._ringing}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored :meth:`state`."""
        self._history = [dict(report) for report in state["history"]]
        self._ringing = bool(state["ringing"])


class StopSignals:
    """Turns SIGINT (Ctrl-C), SIGTERM and SIGUSR1 into a request to stop after the running step.

    Schedulers announce the end of a job with SIGUSR1 or SIGTERM. A second Ctrl-C aborts at once; a
    second signal from a scheduler or launcher, which often sends several, changes nothing. Outside
    the main thread, where Python allows no handlers, nothing is changed. Processes forked meanwhile
    (loader workers) ignore SIGINT, which a terminal sends to them as well, so that the step can be
    finished; SIGTERM ends them as usual.
    """

    def __init__(self, *, has_launcher: bool = False) -> None:
        """Nothing is installed yet.

        Args:
            has_launcher: Another process started this one and several like it.
        """
        self.received: signal.Signals | None = None
        self._has_launcher = has_launcher
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            _reset_signals_in_forked_children()
            for number in _HANDLED:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.received is not None:
            # A launcher passes a Ctrl-C on to processes that have had it from the terminal.
            if number == signal.SIGINT and not self._has_launcher:
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number)
        # A handler may interrupt any line, also one that holds a lock of logging or of the
        # console, so this writes to the descriptor itself.
        if not self._has_launcher:
            os.write(2, b"\nfinishing this step and saving; Ctrl-C once more to abort at once\n")


@functools.cache
def _reset_signals_in_forked_children() -> None:
    """A forked worker must not inherit a handler that swallows SIGTERM; registered once."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_reset_signals)


def _reset_signals() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(getattr(handler, "__self__", None), StopSignals):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in REQUEUE_SIGNALS - {signal.SIGTERM}:
            signal.signal(number, signal.SIG_IGN)


def _describe(values: Mapping[str, float]) -> str:
    shown = {n: v for n, v in values.items() if n == "loss" or n.startswith("grad_norm/")}
    return ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
