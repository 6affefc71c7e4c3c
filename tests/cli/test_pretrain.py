"""``vjepa pretrain``: how the command line becomes a config and a run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vjepa.config import dump_yaml, load_config
from vjepa.jobs import pretrain
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.training.trainer import TrainingResult

_DATA = ["--data.sources.0.manifest", "m.parquet"]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> list:
    """Calls of the job, which itself is replaced."""
    calls: list = []

    def run(config: PretrainConfig, out: Path) -> TrainingResult:
        calls.append((config, out))
        return TrainingResult(config.optim.steps, config.seed == 99, None, 0)

    monkeypatch.setattr(pretrain, "run", run)
    return calls


def test_recipe_overrides_and_out(job: list, vjepa: Callable, tmp_path: Path) -> None:
    outcome = vjepa(
        *("pretrain", "--config", "vits16_224", "--optim.peak-lr", "1e-3", *_DATA),
        *("--out", tmp_path / "run"),
    )
    assert outcome.code == 0, outcome.err
    [(config, out)] = job
    assert out == tmp_path / "run"
    assert config.optim.peak_lr == 1e-3
    assert config.model.encoder.width == 384
    assert [source.manifest for source in config.data.sources] == [Path("m.parquet")]
    assert dump_yaml(config) in outcome.out, "the resolved config is printed"
    assert f"done at step 90000 of 90000: {out}" in outcome.out


def test_an_interrupted_run_says_how_to_go_on(job: list, vjepa: Callable, tmp_path: Path) -> None:
    outcome = vjepa("pretrain", "--seed", 99, "--out", tmp_path / "run")
    assert outcome.code == 130
    assert f"resume with: vjepa pretrain --out {tmp_path / 'run'}" in outcome.out


def test_resume_takes_the_runs_own_config(job: list, vjepa: Callable, tmp_path: Path) -> None:
    stored = tmp_path / "run" / "config.yaml"
    stored.parent.mkdir()
    before = load_config(PretrainConfig, ["vitt16_224"], ["seed=7"], recipes="pretrain")
    stored.write_text(dump_yaml(before))
    assert vjepa("pretrain", "--out", stored.parent).code == 0
    assert job[0][0] == before


def test_print_config_loads_back(job: list, vjepa: Callable, tmp_path: Path) -> None:
    outcome = vjepa("pretrain", "--config", "vitl16_224", "--seed", 3, "--print-config")
    assert outcome.code == 0
    assert job == []
    file = tmp_path / "mine.yaml"
    file.write_text(outcome.out)
    expected = load_config(PretrainConfig, ["vitl16_224"], ["seed=3"], recipes="pretrain")
    assert load_config(PretrainConfig, [file]) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "pretrain needs --out DIR"),
        (["--config", "vitl16_242"], "did you mean vitl16_224? recipes of pretrain: "),
        (["--config", "none.yaml"], "none.yaml: no such config file"),
        (["--optim.lr", "1e-3"], "command line: optim.lr: unknown setting (value 1e-3); did you"),
        (["--optim.steps", "many"], "command line: optim.steps: many is not valid here: expected"),
        (["--optim.steps", "0"], "command line: optim.steps: must be at least 1, got 0"),
        (["--objective.name", "pixels"], "did you mean pixel?"),
        (["--model.encoder.image_size", "225"], "command line: model.encoder.image_size: 225 must"),
        (["--data.transform.crop_size", "96"], "command line: data.transform.crop_size is 96 but"),
        (["--masking.masks.0.num_blocks", "0"], "command line: masking.masks.0.num_blocks must be"),
    ],
)
def test_bad_input(job: list, argv: list[str], message: str, vjepa: Callable) -> None:
    assert message in vjepa("pretrain", *argv).error
    assert job == []
