"""What is said, and refused, before the work begins."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.training.toy import ToyTask

from vjepa.errors import UserError
from vjepa.runtime.distributed import ProcessGroup
from vjepa.runtime.process import available_bytes, resident_bytes
from vjepa.training import OptimConfig, TrainingConfig, preflight
from vjepa.training.preflight import check_disk, check_memory, foretell, is_telling

CPU = torch.device("cpu")


def _estimate(parts: int, checkpointing: bool) -> dict[str, float]:
    """Of 24 clips: 1 GB of weights, 4 GB a clip, a quarter of that with checkpointing."""
    return {"weights": 1e9, "activations": 4e9 * (24 / parts) * (0.25 if checkpointing else 1)}


def _check(gigabytes: float, parts: int = 1) -> None:
    training = TrainingConfig(max_gigabytes=gigabytes)
    check_memory(_estimate, CPU, OptimConfig(accumulation_steps=parts), training, 24)


def test_what_fits_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vjepa"):
        _check(97)
    said = "needs about 97.0 GB of memory (weights 1.0, activations 96.0); training.max_gigabytes "
    assert f"{said}allows 97.0 GB" in caplog.text


@pytest.mark.parametrize(
    ("gigabytes", "parts", "remedies"),
    [
        (96.9, 1, [r"--optim.accumulation_steps 2 \(49.0 GB\)", "activation_checkpointing true"]),
        (17, 2, [r"--optim.accumulation_steps 6 \(17.0 GB\)"]),
        (4, 1, [r"steps 8 --training.activation_checkpointing true \(4.0 GB\), or a smaller"]),
        (1.5, 1, ["but training.max_gigabytes allows 1.5 GB; use a smaller recipe or size"]),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    gigabytes: float, parts: int, remedies: list[str]
) -> None:
    for remedy in remedies:
        with pytest.raises(UserError, match=remedy):
            _check(gigabytes, parts)


class _Pair(ProcessGroup):
    """Two processes on one machine; the other one has 3 GB."""

    def gather(self, value: object) -> list:
        return [value, 3e9 if isinstance(value, float) else value]


def test_on_a_gpu_its_free_memory_counts_and_of_several_the_least(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(98e9), int(141e9)))
    of_gpu = torch.device("cuda", 0), OptimConfig(), TrainingConfig(), 24
    with caplog.at_level(logging.INFO, logger="vjepa"):
        check_memory(_estimate, *of_gpu)
    assert "not compared on a GPU yet; 98.0 GB are free on the GPU" in caplog.text
    with pytest.raises(UserError, match=r"but 3.0 GB are free on the GPU; use --optim.acc"):
        check_memory(_estimate, *of_gpu, _Pair(size=2))


def test_processes_share_the_memory_of_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_bytes", lambda: 5_000_000_000)
    with pytest.raises(UserError, match=r"but 2.5 GB are free for each process; use --optim"):
        check_memory(_estimate, CPU, OptimConfig(), TrainingConfig(), 24, _Pair(size=2))


def test_the_memory_of_this_machine_is_known() -> None:
    if resident_bytes():  # Linux
        assert 0 < available_bytes() < 1e14


def test_a_disk_without_room_for_a_checkpoint_is_refused(tmp_path: Path) -> None:
    check_disk(tmp_path / "new" / "run", 1e3)
    with pytest.raises(UserError, match=r"a checkpoint takes 1000000.00 GB, but .* are free"):
        check_disk(tmp_path / "new" / "run", 1e15)
    assert not list(tmp_path.iterdir())


def test_only_a_long_first_update_tells_by_itself() -> None:
    assert [is_telling(1, 1.0), is_telling(1, 60.0), is_telling(2, 1.0)] == [False, True, True]


@pytest.mark.parametrize(
    ("clips", "seconds_a_clip", "found", "computed"),
    [
        (768, 4.0, (3072.0, 1), [1, 1]),
        (768, 0.3, (230.4, 4), [1, 2, 4, 4]),  # fewer clips are not like the batch
        (32, 0.01, None, [1, 2, 4]),  # short enough to be measured itself
        (24, 0.7, None, [1, 2, 2]),  # 17 seconds: so, too
        (7, 60.0, None, []),
    ],
)
def test_a_long_update_is_known_from_a_few_clips(
    clips: int,
    seconds_a_clip: float,
    found: tuple[float, int] | None,
    computed: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, asked = [0.0], []

    def compute(number: int) -> None:
        asked.append(number)
        now[0] += number * seconds_a_clip

    monkeypatch.setattr(preflight.time, "perf_counter", lambda: now[0])
    result = preflight.seconds_of_part(compute, clips, lambda seconds: seconds)
    assert result == (found if found is None else (pytest.approx(found[0]), found[1]))
    assert asked == computed


def test_processes_with_uneven_parts_of_a_batch_measure_as_often() -> None:
    """Of 8 and 7 key frames: those of the second would wait for the first for ever."""
    group = SimpleNamespace(gather=lambda value: [value, 7 if value == 8 else value])
    learner: Any = SimpleNamespace(group=group, task=ToyTask())  # nothing else is looked at
    assert preflight.time_a_part(learner, SimpleNamespace(), 8) is None


@pytest.mark.parametrize(
    ("minutes", "said"),
    [
        (None, "3.6 s an update: 1000 updates are done in about 54 min"),
        (30.0, "3.6 s an update: training.max_minutes 30, about 517 updates are done in about 25"),
        (600.0, "3.6 s an update: 1000 updates are done in about 54 min"),
    ],
)
def test_the_end_is_foretold_and_what_takes_too_long_is_refused(
    minutes: float | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    optim = OptimConfig(steps=1000)
    with caplog.at_level(logging.INFO, logger="vjepa"):
        foretell(3.6, 100, 300.0, optim, TrainingConfig(max_minutes=minutes))
    assert said in caplog.text
    short = TrainingConfig(max_minutes=minutes, longest_hours=0.3)
    with pytest.raises(UserError, match=r"longer than training\.longest_hours 0\.3: use a smaller"):
        foretell(3.6, 100, 300.0, optim, short)


def test_a_limit_of_cpu_time_bounds_a_run_of_endless_updates() -> None:
    foretell(3.6, 0, 0.0, OptimConfig(steps=10**9), TrainingConfig(max_cpu_minutes=5))
    with pytest.raises(UserError, match="longest_hours"):  # not: the clock knows no such year
        foretell(3.6, 0, 0.0, OptimConfig(steps=10**18), TrainingConfig())
