"""What protects a long run: bad updates, spikes, signals that ask it to stop."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.errors import UserError
from vjepa.runtime.files import save_tensors
from vjepa.runtime.process import REQUEUE_SIGNALS, handled, is_put_off
from vjepa.runtime.workers import is_worker
from vjepa.training.schedules import TrainingConfig

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")
_SKIP_WINDOW = 1000
SPIKE_WINDOW = 128
"""Updates over which the running median of the loss is taken."""
_FEWEST_LOSSES = 16


class TrainingStopped(UserError):  # noqa: N818 (it is an outcome that the user asked for)
    """Training cannot go on; the message says at which step, why, and what may help."""


class SpikeGate:
    """Tells a loss above `factor` times the running median of the applied updates' losses.

    Everything stays on the device. The first 16 updates pass.
    """

    def __init__(self, factor: float, device: torch.device) -> None:
        self._factor = factor
        self._losses = torch.full((SPIKE_WINDOW,), math.nan, device=device)

    def is_spike(self, loss: Tensor) -> Tensor:
        """Whether a loss is too high: 0-d float32 -> 0-d bool."""
        enough = self._losses.isfinite().sum() >= _FEWEST_LOSSES
        return enough & (loss > self._factor * self._losses.nanmedian())

    def add(self, update: int, loss: Tensor, applied: Tensor) -> None:
        """Take in the loss of an update, if the update was applied (0-d bool)."""
        self._losses[update % SPIKE_WINDOW] = torch.where(applied, loss, math.nan)

    def state(self) -> list[float | None]:
        """The losses, for the checkpoint (plain JSON types)."""
        return [None if math.isnan(loss) else loss for loss in self._losses.tolist()]

    def load_state(self, state: Sequence[float | None]) -> None:
        """Go on from a stored :meth:`state`."""
        values = [math.nan if loss is None else loss for loss in state]
        self._losses.copy_(torch.tensor(values, dtype=torch.float32))


@dataclass(frozen=True)
class HostStep:
    """One update's values on the host."""

    update: int
    ordinals: NDArray[np.int64]
    values: dict[str, float]
    finite: bool
    spike: bool = False

    @property
    def applied(self) -> bool:
        """Whether it changed the weights."""
        return self.finite and not self.spike


class BadUpdateGuard:
    """Decides what happens after updates that were not finite or whose loss was a spike.

    Such updates have never changed the weights: the optimiser skips them on the device.

    Args:
        training: Says for either whether to stop at the first one or to skip and count them.
        folder: Where the details of a stop are written; None: only in the message.
        rank: Of this process; each keeps its part of the batch, the first describes it.
        batch_of: Makes the batch of an update once more, so that it can be kept.
    """

    def __init__(
        self,
        training: TrainingConfig,
        folder: Path | None,
        rank: int,
        batch_of: Callable[[int], Any],
    ) -> None:
        self._training, self._folder, self._rank = training, folder, rank
        self._batch_of = batch_of
        self.recent: deque[int] = deque()  # skipped of the last updates; checkpoints hold it
        self.skipped = 0

    def check(self, steps: Sequence[HostStep]) -> None:
        """Look at an interval of updates, in order; raises TrainingStopped by the policy."""
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
            self.recent.append(step.update)
            while self.recent[0] <= step.update - _SKIP_WINDOW:
                self.recent.popleft()
            if self._rank == 0:
                said = "step %d: %s (%s); this update was skipped"
                _LOGGER.warning(said, step.update, reason, _describe(step.values))
            if (count := len(self.recent)) > self._training.max_skipped:
                self._stop(step, kind, f"{count} of the last {_SKIP_WINDOW} updates were skipped")

    def _stop(self, step: HostStep, kind: str, reason: str) -> None:
        message = (
            f"step {step.update}: {reason} ({_describe(step.values)}); a lower optim.peak_lr, "
            "a longer warm-up, optim.clip_norm, or training.precision float32 may help"
        )
        if self._folder is not None:
            name = f"{kind}_step_{step.update:08d}"
            file = self._folder / f"{name}.json"
            batch_file = self._folder / f"{name}_rank_{self._rank:04d}.safetensors"
            try:
                arrays = _arrays(self._batch_of(step.update))
                save_tensors(batch_file, arrays)
                if self._rank == 0:
                    details = {
                        "step": step.update,
                        "reason": reason,
                        "values": {name: str(value) for name, value in step.values.items()},
                        "sample_ordinals": step.ordinals.tolist(),
                        "batch": batch_file.name,
                    }
                    file.write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
            except Exception as error:  # the reason of the stop must not be lost with the batch
                said = (str(error) or type(error).__name__).splitlines()[0]
                raise TrainingStopped(f"{message}; the batch could not be kept: {said}") from error
            message += f"; the batch is kept beside {file}"
        raise TrainingStopped(message)


def _arrays(batch: Any) -> dict[str, Tensor]:
    """The tensors and arrays among the attributes of a batch and of its parts, by name."""
    arrays: dict[str, Tensor] = {}
    for name, value in vars(batch).items():
        if isinstance(value, np.ndarray):
            arrays[name] = torch.from_numpy(np.ascontiguousarray(value))
        elif isinstance(value, Tensor):
            arrays[name] = value.detach().cpu().contiguous()
        elif is_dataclass(value) and not isinstance(value, type):
            arrays |= {f"{name}.{part}": array for part, array in _arrays(value).items()}
    return arrays


def _describe(values: Mapping[str, float]) -> str:
    shown = {n: v for n, v in values.items() if n == "loss" or n.startswith("grad_norm/")}
    return ", ".join(f"{name} {value:.4g}" for name, value in shown.items())


class _WaitEnded(BaseException):
    """A stop was asked for while nothing but data was waited for."""


class StopSignals:
    """Turns SIGINT (Ctrl-C), SIGTERM, SIGHUP and SIGUSR1 into a request to stop after the step.

    Schedulers announce the end of a job with SIGUSR1 or SIGTERM; SIGHUP comes when the terminal
    closes, and means nothing to a job of ``nohup``. A second Ctrl-C aborts at once; a second signal
    of another kind, of which launchers often send several, changes nothing. Outside the main
    thread, where Python allows no handlers, and in a pool's worker nothing is changed. Processes
    forked meanwhile (loader workers) ignore SIGINT, which a terminal sends to them as well.
    """

    def __init__(self, *, has_launcher: bool = False) -> None:
        self.received: signal.Signals | None = None
        self._is_waiting = False
        self._has_launcher = has_launcher
        numbers = () if is_worker() else (signal.SIGINT, *REQUEUE_SIGNALS)
        self._handled = handled(numbers, self._handle)

    def __enter__(self) -> Self:
        self._handled.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handled.__exit__(None, None, None)

    def wait_for(self, call: Callable[[], _T]) -> _T | None:
        """What a call gives that mostly waits; None as soon as a stop is asked for."""
        try:
            try:
                self._is_waiting = True
                return call() if self.received is None else None
            finally:
                self._is_waiting = False
        except _WaitEnded:
            return None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if is_put_off(number, frame):
            return
        if self.received is not None:
            # A launcher passes a Ctrl-C on to processes that have had it from the terminal.
            if number == signal.SIGINT and not self._has_launcher:
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number)
        if self._is_waiting:
            raise _WaitEnded
        # A handler may interrupt any line, also one that holds a lock of logging or of the
        # console, so this writes to the descriptor itself.
        if not self._has_launcher:
            with suppress(OSError):  # the terminal may be gone
                os.write(2, b"\nfinishing this step and saving; Ctrl-C once more aborts at once\n")


def _reset_signals() -> None:
    """A forked worker must not inherit a handler that swallows SIGTERM."""
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(getattr(handler, "__self__", None), StopSignals):
        for number in (signal.SIGINT, *REQUEUE_SIGNALS):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


os.register_at_fork(after_in_child=_reset_signals)
