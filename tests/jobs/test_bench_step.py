"""The benchmark of a training update."""

from __future__ import annotations

import pytest
import torch

from vjepa.jobs import bench_step
from vjepa.jobs.bench_step import BenchConfig
from vjepa.training import TrainingConfig


def test_the_same_config_gives_the_same_batch() -> None:
    config = BenchConfig(model="vitti16", image_size=32, num_frames=4, batch_size=2)
    one, two = (bench_step.synthetic_batch(config, torch.device("cpu")) for _ in range(2))
    assert torch.equal(one.clips, two.clips)
    assert one.clips.dtype == torch.uint8
    for a, b in zip(one.masks, two.masks, strict=True):
        assert torch.equal(a.context, b.context)
        assert torch.equal(a.target, b.target)


def test_warm_up_is_not_timed() -> None:
    numbers = []
    seconds = bench_step.time_calls(numbers.append, torch.device("cpu"), calls=3, warmup=2)
    assert numbers == [1, 2, 3, 4, 5]
    assert len(seconds) == 3


def test_compiling_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(bench_step, "compile_blocks", asked.extend)
    training = TrainingConfig(device="cpu", compile=True, num_threads=1)
    bench_step.build(
        BenchConfig(model="vitti16", image_size=32, num_frames=4, batch_size=1, training=training)
    )
    assert len(asked) == 3
