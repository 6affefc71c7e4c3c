"""``vjepa bench``: what it prints, and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from vjepa.jobs import bench_step

SMALL = ("--model", "vitti16", "--image_size", "32", "--num_frames", "4", "--batch_size", "2")


def test_it_measures_and_prints_json_last(vjepa: Callable) -> None:
    outcome = vjepa(
        *("bench", "step", *SMALL, "--steps", "2", "--warmup_steps", "1"),
        *("--training.device", "cpu", "--training.num_threads", "1"),
    )
    assert outcome.code == 0, outcome.err
    values = json.loads(outcome.out.splitlines()[-1])
    assert values["benchmark"] == "step"
    assert values["batch_size"] == 2
    assert values["precision"] == "bfloat16"
    assert values["clips_per_second"] == pytest.approx(2e3 / values["ms"], rel=0.01)
    rate = values["teraoperations"] / values["ms"] * 1e3
    assert values["tflops"] == pytest.approx(rate, abs=2e-3)
    assert values["share_of_matmul"] == pytest.approx(rate / values["matmul_tflops"], abs=0.02)
    assert 0.05 < values["peak_memory_gb"] < 100
    assert "clips/s" in outcome.out
    assert "matrix products" in outcome.out


def test_estimate_runs_nothing(vjepa: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_step, "build", lambda _: pytest.fail("built a model"))
    outcome = vjepa("bench", "step", "--model", "vitl16", "--estimate", "true")
    values = json.loads(outcome.out.splitlines()[-1])
    assert values["teraoperations"] == pytest.approx(24 * 2.5, rel=0.05)
    assert values["memory_gb"] == pytest.approx(
        values["states_gb"] + values["activations_gb"], abs=0.01
    )
    less = vjepa(
        *("bench", "step", "--model", "vitl16", "--estimate", "true"),
        *("--training.activation_checkpointing", "true"),
    )
    assert json.loads(less.out.splitlines()[-1])["memory_gb"] < values["memory_gb"]
    assert "counted, not run" in outcome.out


def test_every_field_is_checked(vjepa: Callable) -> None:
    assert "steps" in vjepa("bench", "step", "--steps", "0").error
    assert "batch_size" in vjepa("bench", "step", "--batch_size", "0").error
    assert "model" in vjepa("bench", "step", "--model", "vitxx").error
