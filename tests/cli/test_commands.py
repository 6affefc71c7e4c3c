"""`vjepa demo | pretrain | bench | doctor`: how a command line becomes a job; what is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vjepa.cli import commands
from vjepa.config import dump_yaml, load_config
from vjepa.demo import demo
from vjepa.demo.config import DemoConfig
from vjepa.jobs import bench_step, pretrain
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.runtime.environment import Finding, inspect_environment
from vjepa.training.trainer import TrainingResult

_DATA = ["--data.sources.0.manifest", "m.parquet"]


@pytest.fixture
def training_job(monkeypatch: pytest.MonkeyPatch) -> list:
    """Calls of the job, which itself is replaced."""
    calls: list = []

    def run(config: PretrainConfig, out: Path) -> TrainingResult:
        calls.append((config, out))
        return TrainingResult(config.optim.steps, config.seed == 99, None, 0)

    monkeypatch.setattr(pretrain, "run", run)
    return calls


def test_recipe_overrides_and_out(training_job: list, vjepa: Callable, tmp_path: Path) -> None:
    outcome = vjepa(
        *("pretrain", "--config", "vits16_224", "--optim.peak-lr", "1e-3", *_DATA),
        *("--out", tmp_path / "run"),
    )
    assert outcome.code == 0, outcome.err
    [(config, out)] = training_job
    assert out == tmp_path / "run"
    assert config.optim.peak_lr == 1e-3
    assert config.model.encoder.width == 384
    assert [source.manifest for source in config.data.sources] == [Path("m.parquet")]
    assert outcome.out.splitlines() == [
        "config: recipe vits16_224, with",
        "  optim.peak_lr: 0.000625 -> 0.001",
        "  data.sources.0.manifest: m.parquet",
        f"  all settings, once it has begun: {out}/config.yaml",
        f"done at step 90000 of 90000: {out}",
        "all updates are done",
        f"make it longer: vjepa pretrain --out {out} --optim.steps 180000",
    ]


def test_an_interrupted_run_says_how_to_go_on(
    training_job: list, vjepa: Callable, tmp_path: Path
) -> None:
    outcome = vjepa("pretrain", "--seed", 99, "--out", tmp_path / "my run")
    assert outcome.code == 130
    assert f"resume with: vjepa pretrain --out '{tmp_path / 'my run'}'\n" in outcome.out


def test_resume_takes_the_runs_own_config(
    training_job: list, vjepa: Callable, tmp_path: Path
) -> None:
    stored = tmp_path / "run" / "config.yaml"
    stored.parent.mkdir()
    before = load_config(PretrainConfig, ["vitt16_224"], ["seed=7"], recipes="pretrain")
    stored.write_text(dump_yaml(before))
    assert vjepa("pretrain", "--out", stored.parent).code == 0
    assert training_job[0][0] == before


def test_print_config_loads_back(training_job: list, vjepa: Callable, tmp_path: Path) -> None:
    outcome = vjepa("pretrain", "--config", "vitl16_224", "--seed", 3, "--print-config")
    assert outcome.code == 0
    assert training_job == []
    file = tmp_path / "mine.yaml"
    file.write_text(outcome.out)
    expected = load_config(PretrainConfig, ["vitl16_224"], ["seed=3"], recipes="pretrain")
    assert load_config(PretrainConfig, [file]) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "pretrain needs --out DIR"),
        (["--config", "vitl16_242"], "); did you mean vitl16_224?"),
        (["--config", "none.yaml"], "none.yaml: no such config file"),
        (["--optim.lr", "1e-3"], "command line: optim.lr: unknown setting (value 1e-3); did you"),
        (["--optim.steps", "many"], "command line: optim.steps: many is not valid here: expected"),
        (["--optim.steps", "0"], "must be at least 1, got 0"),
        (["--objective.name", "pixels"], "did you mean pixel?"),
        (["--model.encoder.image_size", "225"], "command line: model.encoder.image_size: 225 must"),
        (["--data.transform.crop_size", "96"], "command line: data.transform.crop_size is 96 but"),
        (["--masking.masks.0.num_blocks", "0"], "command line: masking.masks.0.num_blocks must be"),
    ],
)
def test_bad_input_of_pretrain(
    training_job: list, argv: list[str], message: str, vjepa: Callable
) -> None:
    assert message in vjepa("pretrain", *argv).error
    assert training_job == []


@pytest.fixture
def demo_job(monkeypatch: pytest.MonkeyPatch) -> list:
    """Calls of the job, which itself is replaced."""
    calls: list = []
    report = Path("report.html")
    monkeypatch.setattr(demo, "run", lambda *call: calls.append(call) or call[1] / report)
    return calls


def test_demo_settings(demo_job: list, vjepa: Callable, tmp_path: Path) -> None:
    assert vjepa("demo", "--print-config").out.startswith("minutes: ")
    assert demo_job == [], "printing does no work"
    assert vjepa("demo").out == "report: runs/demo/report.html\n"
    assert demo_job.pop() == (DemoConfig(), Path("runs/demo"))
    assert vjepa("demo", "--minutes", 60, "--seeds", "[0, 1]", "--out", tmp_path).code == 0
    [(config, out)] = demo_job
    assert (config.minutes, config.seeds, out) == (60.0, (0, 1), tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--minutes", "0"], "command line: minutes must be above 0"),
        (["--seeds", "[1, 1]"], "command line: seeds must be one or more different numbers"),
        (["--minute", "3"], "did you mean minutes?"),
    ],
)
def test_bad_input_of_demo(argv: list[str], message: str, demo_job: list, vjepa: Callable) -> None:
    assert message in vjepa("demo", *argv).error
    assert demo_job == []


SMALL = ("--model", "vitt16", "--image_size", "32", "--num_frames", "4", "--batch_size", "2")


def test_it_measures_and_prints_json_last(vjepa: Callable) -> None:
    outcome = vjepa(
        *("bench", "step", *SMALL, "--steps", "1", "--warmup_steps", "1"),
        *("--training.device", "cpu", "--training.num_threads", "1"),
    )
    assert outcome.code == 0, outcome.err
    values = json.loads(outcome.out.splitlines()[-1])
    assert values["benchmark"] == "step"
    assert values["batch_size"] == 2
    assert values["precision"] == "bfloat16"
    assert values["clips_per_second"] == pytest.approx(2e3 / values["ms"], rel=0.01)
    rate = values["teraoperations"] / values["ms"] * 1e3
    assert values["tflops"] == pytest.approx(rate, rel=0.01)
    assert values["share_of_matmul"] == pytest.approx(rate / values["matmul_tflops"], rel=0.01)
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


@pytest.mark.parametrize("field", ["steps", "batch_size", "model"])
def test_every_field_is_checked(field: str, vjepa: Callable) -> None:
    assert field in vjepa("bench", "step", f"--{field}", "0").error


def test_reports_versions_devices_and_decoders(vjepa: Callable) -> None:
    outcome = vjepa("doctor")
    assert outcome.code == 0
    for word in ("open-vjepa", "python", "torch ", "cpu:", "av ", "all that is needed is there"):
        assert word in outcome.out


def test_says_what_is_missing_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, vjepa: Callable
) -> None:
    lost = Finding("av", None, "reading videos", "pip install av")
    report = replace(inspect_environment(), decoders=[lost])
    monkeypatch.setattr(commands, "inspect_environment", lambda: report)
    outcome = vjepa("doctor")
    assert outcome.code == 1
    assert "MISSING, needed for reading videos: pip install av" in outcome.out
    assert outcome.out.endswith("missing: av\n")


def test_paths_are_written_as_people_write_them(
    vjepa: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home folder, a file URL; an address of elsewhere is refused with what to do."""
    monkeypatch.setenv("HOME", str(tmp_path))
    features = ("features", "--encoder.path", "demo", f"--out={tmp_path}/out")
    for written in ("~/no such.mp4", f"file://{tmp_path}/no%20such.mp4"):
        assert f"source {tmp_path}/no such.mp4: no such file" in vjepa(*features, written).error
    assert "s3://set/a.mp4: an address, no path" in vjepa(*features, "s3://set/a.mp4").error
    told = vjepa("features", "a.mp4", "--out=x", "--encoder.path", "https://page/a.pt").error
    assert told.startswith("command line: encoder.path: https://page/a.pt: an address, no path")
