"""The benchmarks of the frozen encoder and of a training update."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vjepa.cli.main import main
from vjepa.config import load_config, recipe_names
from vjepa.jobs import bench_step
from vjepa.jobs.bench_encode import BenchConfig, encoder_flops
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.models import Encoder, EncoderConfig
from vjepa.runtime.device import DeviceSetup
from vjepa.tasks import FeaturePrediction, LeVJEPA, PixelPrediction, Task
from vjepa.training import TrainingConfig

SMALL = ["--model", "vitt16", "--image_size", "32", "--num_frames", "4", "--batch_size", "2"]


def test_reports_speed_and_work_and_ends_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--calls", "2", "--warmup_calls", "0", "--device", "cpu"]
    assert main(["bench", "encode", *arguments, "--num_threads", "1"]) == 0
    *lines, last = capsys.readouterr().out.strip().splitlines()
    values = json.loads(last)
    assert values["benchmark"] == "encode"
    assert values["clips_per_second"] > 0
    assert values["clips_per_cpu_second"] > 0
    assert values["milliseconds_per_clip"] == pytest.approx(1000 / values["clips_per_second"])
    assert (values["model"], values["batch_size"], values["threads"]) == ("vitt16", 2, 1)
    assert any("clips/s" in line for line in lines)


def test_work_is_that_of_torchs_own_counter() -> None:
    config = EncoderConfig(width=48, depth=2, heads=3, image_size=32, num_frames=4, patch_size=8)
    encoder = Encoder(config)
    # The counter does not know the CPU's fused attention; products it knows.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, 3, 4, 32, 32))
    assert encoder_flops(config) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_size", 0), ("num_frames", 0), ("batch_size", 0), ("calls", 0), ("warmup_calls", -1)],
)
def test_bad_settings_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name}"):
        BenchConfig(**{name: value})


def test_the_same_config_gives_the_same_batch() -> None:
    config = bench_step.BenchConfig(model="vitt16", image_size=32, num_frames=4, batch_size=2)
    device = torch.device("cpu")
    (clips, masks), (again, same) = (bench_step.synthetic_batch(config, device) for _ in range(2))
    assert torch.equal(clips, again)
    assert clips.dtype == torch.uint8
    for a, b in zip(masks, same, strict=True):
        assert torch.equal(a.context, b.context)
        assert torch.equal(a.target, b.target)


def test_warm_up_is_not_timed() -> None:
    numbers = []
    wall, cpu = bench_step.time_calls(numbers.append, torch.device("cpu"), calls=3, warmup=2)
    assert numbers == [1, 2, 3, 4, 5]
    assert len(wall) == len(cpu) == 3


@pytest.mark.parametrize(("rate", "side"), [(1e12, 1024), (1e10, 512), (1e9, 256)])
def test_a_slow_device_multiplies_smaller_matrices(
    rate: float, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In emulated bfloat16 twelve products of 1024 rows took 36 seconds."""
    sides: list[int] = []
    product = torch.Tensor.__matmul__

    def noted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sides.append(len(a))
        return product(a, b)

    def timed(call: Callable[[int], object], *_: object, **__: object) -> tuple[list[float], None]:
        call(1)
        return [2 * sides[-1] ** 3 / rate], None

    monkeypatch.setattr(torch.Tensor, "__matmul__", noted)
    monkeypatch.setattr(bench_step, "time_calls", timed)
    setup = DeviceSetup(torch.device("cpu"), "float32")
    assert bench_step.matmul_rate(setup) == pytest.approx(rate)
    assert sides[0] == 256
    assert sides[-1] == side


def test_compiling_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("vjepa.training.step.compile_blocks", asked.extend)
    training = TrainingConfig(device="cpu", compile=True, num_threads=1)
    bench_step.build(
        bench_step.BenchConfig(model="vitt16", image_size=32, num_frames=4, training=training)
    )
    assert len(asked) == 3


@pytest.mark.parametrize("recipe", recipe_names("pretrain"))
def test_every_recipe_is_counted(recipe: str) -> None:
    """Its own model and masks; nothing is run."""
    config = bench_step.BenchConfig(recipe=recipe, batch_size=4, estimate=True)
    report = bench_step.run(config)
    own = load_config(PretrainConfig, [recipe], {"online_probe": None}, "pretrain")
    assert report.values["model"] == recipe
    assert report.values["image_size"] == own.model.encoder.image_size
    views = own.objective.levjepa.local_views + 1
    kinds = views if own.objective.name == "levjepa" else len(own.masking.masks)
    assert len(report.values["context_tokens"]) == kinds
    assert report.lines[0].startswith(f"{recipe}, {own.model.encoder.image_size} pixels, 4 clips")


@pytest.mark.parametrize(
    ("objective", "task"),
    [
        ("{name: pixel}", PixelPrediction),
        ("{sigreg_coefficient: 0.1}", FeaturePrediction),
        ("{name: levjepa, levjepa: {local_views: 2, local_size: 16, dropped: 0.5}}", LeVJEPA),
    ],
)
def test_an_update_of_a_recipe_is_timed_with_its_own_objective(
    objective: str, task: type[Task], tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "model:\n  encoder: {width: 24, depth: 1, heads: 3, image_size: 32, num_frames: 4, cls: "
        f"{str(task is LeVJEPA).lower()}}}\n  predictor: {{width: 12, depth: 1}}\n"
        f"objective: {objective}\n"
        "data: {clip: {num_frames: 4}, transform: {crop_size: 32}}\n"
    )
    training = TrainingConfig(device="cpu", num_threads=1)
    config = bench_step.BenchConfig(
        recipe=str(recipe), batch_size=2, steps=1, warmup_steps=1, training=training
    )
    assert isinstance(bench_step.build(config).task, task)
    assert bench_step.run(config).values["clips_per_second"] > 0
    with pytest.raises(ValueError, match="recipe: says model, image_size"):
        replace(config, model="vits16")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["encode", "--image_size", "100"], "image_size: 100 must be a multiple of patch_size 16"),
        (
            ["step", "--num_frames", "3", "--estimate", "true"],
            "num_frames: 3 must be a multiple of tubelet_size 2",
        ),
    ],
)
def test_sizes_that_are_no_whole_patches_are_one_line(
    command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *command, "--model", "vitt16"]) == 2
    assert said in capsys.readouterr().err
