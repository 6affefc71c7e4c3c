"""Every job with an --out leaves the folder of another job alone, before it reads anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vjepa.cli.main import main
from vjepa.config import load_config
from vjepa.demo import demo
from vjepa.demo.config import DemoConfig
from vjepa.demo.synthetic import SyntheticConfig
from vjepa.demo.synthetic_files import write_synthetic_set
from vjepa.errors import UserError
from vjepa.jobs import features, learn, pretrain
from vjepa.jobs.detect.config import DetectConfig
from vjepa.jobs.detect.train import train as train_detector
from vjepa.jobs.features import FeaturesConfig
from vjepa.jobs.learn import LearnConfig
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.jobs.probe.config import ProbeConfig
from vjepa.jobs.probe.probe import train, train_splits

PROBE = load_config(ProbeConfig, ["linear"], {"data.train.manifest": "none"}, "probe")
JOBS: dict[str, Callable[[Path], object]] = {
    "pretrain": lambda out: pretrain.run(PretrainConfig(), out),
    "probe train": lambda out: train(PROBE, out),
    "probe train of several draws": lambda out: train_splits(PROBE, out),
    "detect train": lambda out: train_detector(DetectConfig(), out),
    "features": lambda out: features.run(FeaturesConfig(), [Path("none")], out),
    "data synth": lambda out: write_synthetic_set(SyntheticConfig(), out),
    "demo": lambda out: demo.run(DemoConfig(), out),
    "learn": lambda out: learn.run(LearnConfig(sources=(Path("none"),)), out),
}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("foreign", [False, True])
def test_another_jobs_folder_is_left_alone(job: str, foreign: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    first_line = "theme: dark\n" if foreign else "# vjepa another\n"
    (out / "config.yaml").write_text(first_line)
    (out / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    before = {path: path.read_bytes() for path in out.iterdir()}
    said = "holds nothing of `vjepa" if foreign else "belongs to `vjepa another`; give another"
    with pytest.raises(UserError, match=said):
        JOBS[job](out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    "command",
    [
        ["pretrain", "--out", "OUT"],
        ["finetune", "--out", "OUT"],
        ["decode", "train", "--out", "OUT"],
        ["show", "run", "OUT", "--out", "OUT/metrics.jsonl"],
        ["show", "features", "a.mp4", "--model", "demo", "--out", "OUT/config.yaml"],
        ["search", "report", "--database", "none", "--out", "OUT/config.yaml"],
    ],
)
def test_no_command_overwrites_a_file_of_another_job(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("# vjepa another\nhue: 1\n")
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main([part.replace("OUT", str(tmp_path)) for part in command]) == 2
    assert "`vjepa another`" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("job", JOBS)
def test_a_place_that_cannot_be_written_is_one_line(job: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run: cannot be written \(Not a directory\)"):
        JOBS[job](tmp_path / "file" / "run")
