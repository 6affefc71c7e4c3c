"""Before the work: does a training job fit into memory and on the disk, and when will it end?

What a job needs is estimated from its sizes, before anything is allocated. How long an update takes
is measured: where it is long on some of the first batch's clips, else on the first updates.
"""

from __future__ import annotations

import logging
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vjepa.errors import UserError
from vjepa.runtime.distributed import ProcessGroup
from vjepa.runtime.process import available_bytes
from vjepa.runtime.progress import format_seconds
from vjepa.training.schedules import OptimConfig, TrainingConfig

if TYPE_CHECKING:
    from vjepa.training.step import Learner

_LOGGER = logging.getLogger(__name__)
_TELLING_SECONDS = 20.0
"""An update that takes longer tells enough; of shorter ones the first is not like the others."""
_TIMED_SECONDS, _TIMED_SHARE = 1.0, 8
"""Fewer clips are not like the whole batch; at most an eighth of it is computed beforehand."""

LIBRARIES_BYTES = 0.2e9
"""What torch loads and sets up at its first update."""

_ALONE = ProcessGroup()

Needs = Mapping[str, float]
"""Bytes of an update on one process, by what takes them."""


def check_memory(
    estimate: Callable[[int, bool], Needs],
    device: torch.device,
    optim: OptimConfig,
    training: TrainingConfig,
    clips: int,
    group: ProcessGroup = _ALONE,
) -> None:
    """Say what memory a job needs and what is there; UserError with the remedy if it is too little.

    Called by all processes of the group: what the one with least has counts, and processes on the
    CPUs of one machine share its memory. ``estimate(parts, checkpointing)`` is for so many
    micro-batches of this process's `clips`, with or without activation checkpointing; it is asked
    for other numbers to find one that fits.
    """
    if training.max_gigabytes is not None:
        there, place = training.max_gigabytes * 1e9, "training.max_gigabytes allows {:.1f} GB"
    elif device.type == "cuda":
        there, place = float(torch.cuda.mem_get_info(device)[0]), "{:.1f} GB are free on the GPU"
    else:
        there, place = memory_of_machine(group)
    there = min(group.gather(there))
    present = optim.accumulation_steps
    needs = estimate(present, training.activation_checkpointing)
    parts = ", ".join(f"{k} {size / 1e9:.1f}" for k, size in needs.items() if size >= 5e7)
    total = sum(needs.values())
    said = f"needs about {total / 1e9:.1f} GB of memory" + (f" ({parts})" if parts else "")
    if device.type == "cuda":
        said += ", an estimate that was not compared on a GPU yet"
    free = place.format(there / 1e9) if there else "what is free is not known here"
    short = []
    if there and total > there:
        remedies = _remedies(estimate, there, present, clips, training)
        short.append(f"training {said}, but {free}; use {', or '.join(remedies)}")
    group.agree(short)
    _LOGGER.info("%s; %s", said, free)


def memory_of_machine(group: ProcessGroup) -> tuple[float, str]:
    """Bytes that are free for each of the group's processes here (0: unknown), and words for it."""
    hosts = group.gather(platform.node())
    sharing = hosts.count(hosts[group.rank])
    words = "{:.1f} GB are free" + (" for each process" if sharing > 1 else "")
    return float(available_bytes() or 0) / sharing, words


def _remedies(
    estimate: Callable[[int, bool], Needs],
    there: float,
    present: int,
    clips: int,
    training: TrainingConfig,
) -> list[str]:
    """Options with which it would fit, with and without checkpointing, and another size."""
    remedies = []
    for checkpointing in {training.activation_checkpointing, True}:
        for number in (n for n in range(present, clips + 1) if clips % n == 0):
            less = sum(estimate(number, checkpointing).values())
            if less <= there:
                options = f"--optim.accumulation_steps {number}"
                if checkpointing and not training.activation_checkpointing:
                    options += " --training.activation_checkpointing true"
                remedies.append(f"{options} ({less / 1e9:.1f} GB)")
                break
    return [*remedies, "a smaller recipe or size (--config small)"]


def check_disk(folder: Path, checkpoint_bytes: float) -> None:
    """UserError if there is not even room for one checkpoint."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if free < checkpoint_bytes:
        raise UserError(
            f"{folder}: a checkpoint takes {checkpoint_bytes / 1e9:.2f} GB, but "
            f"{free / 1e9:.2f} GB are free on that disk; free some space or choose another --out"
        )


def time_a_part(learner: Learner, batch: Any, clips: int) -> tuple[float, str] | None:
    """Seconds of an update, by those of some of a batch's clips, and what was measured in words.

    No weight or buffer changes. None: an update is short enough to be measured itself, or its loss
    compares the clips of a batch. All processes compute as much, as FSDP needs it.
    """
    task = learner.task
    if task.compares_samples:
        return None
    images = getattr(batch, "images", None)  # beside the clips: each part must have one
    most = min(learner.group.gather(clips if images is None else min(clips, len(images.clips))))
    before = {name: buffer.detach().clone() for name, buffer in task.named_buffers()}

    def compute(number: int) -> None:
        try:
            with learner.setup.autocast():
                loss = task(*task.inputs(batch, 0, most // number)).loss
            loss.backward()
        except Exception as error:
            # Does a whole part of it do better?
            with suppress(Exception), learner.setup.autocast():
                task(*task.inputs(batch, 0, learner.optim.accumulation_steps)).loss.backward()
                error.add_note(
                    f"on {number} of {clips} clips, to measure the time of an update: a task that "
                    "needs several clips at once (a batch norm, say) has compares_samples = True"
                )
            raise
        if learner.setup.device.type == "cuda":
            torch.cuda.synchronize(learner.setup.device)
        learner.optimizer.zero_grad(set_to_none=True)

    found = seconds_of_part(compute, most, lambda seconds: max(learner.group.gather(seconds)))
    with torch.no_grad():  # running means, say, which a resumed run would count twice
        for name, buffer in task.named_buffers():
            buffer.copy_(before.get(name, buffer))
    return found and (found[0], f"measured on {found[1] * clips // most} of {clips} clips")


def seconds_of_part(
    compute: Callable[[int], None], clips: int, slowest: Callable[[float], float]
) -> tuple[float, int] | None:
    """Seconds of an update of so many clips, by those of some clips, and of how many.

    ``compute(n)`` does the work of the first n; ``slowest`` makes this process's seconds those of
    the slowest. None: an update is short enough to be measured itself.
    """
    number = 1
    while number * _TIMED_SHARE <= clips:
        times = []
        for _ in range(2):  # the first brings what is set up once
            began = time.perf_counter()
            compute(number)
            times.append(slowest(time.perf_counter() - began))
            if times[-1] < _TIMED_SECONDS:
                break
        else:
            seconds = min(times) * clips / number
            return (seconds, number) if seconds >= _TELLING_SECONDS else None
        number *= 2
    return None


def is_telling(updates: int, seconds: float) -> bool:
    """Whether the newest of a process's first updates tells how long the others will take."""
    return updates == 2 or (updates == 1 and seconds >= _TELLING_SECONDS)


def foretell(
    seconds: float,
    completed: int,
    elapsed: float,
    optim: OptimConfig,
    training: TrainingConfig,
    measured: str = "",
) -> None:
    """Say when training will end, at so many seconds an update and `elapsed` in all so far.

    `measured` says on what, where that was not a whole update. UserError: that is later than
    `longest_hours` allow.
    """
    left = seconds * (optim.steps - completed)
    until = f"{optim.steps} updates"
    if training.max_minutes is not None and 60 * training.max_minutes - elapsed < left:
        left = max(0.0, 60 * training.max_minutes - elapsed)
        number = completed + max(1, round(left / max(seconds, 1e-9)))
        until = f"training.max_minutes {round(training.max_minutes, 2):g}, about {number} updates"
    if training.max_cpu_minutes is not None:
        until += f", or earlier by training.max_cpu_minutes {training.max_cpu_minutes:g},"
    limit = training.longest_hours
    is_longer = limit is not None and left > 3600 * limit and training.max_cpu_minutes is None
    end = "" if is_longer else time.strftime(", %a %d %b %H:%M", time.localtime(time.time() + left))
    pace = f"{seconds:.3g} s" if seconds < 100 else format_seconds(seconds)
    text = f"{pace} an update: {until} are done in about {format_seconds(left)}{end}"
    text += f" ({measured})" if measured else ""
    if is_longer:
        raise UserError(
            f"{text}; that is longer than training.longest_hours {limit:g}: use a smaller recipe "
            "(--config small), size or batch, fewer --optim.steps, or --training.max_minutes"
        )
    _LOGGER.info("%s (evaluations and checkpoints come on top)", text)
