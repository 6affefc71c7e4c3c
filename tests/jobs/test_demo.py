"""The demo as a whole at toy size, with real processes, and the sums in its table."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.jobs.tiny_run import RECIPE

from vjepa.config import dump_yaml, load_config
from vjepa.errors import UserError
from vjepa.evaluation.intervals import Interval
from vjepa.evaluation.results import load_result
from vjepa.jobs import demo, demo_training
from vjepa.jobs.demo_config import DemoConfig
from vjepa.jobs.demo_probes import Cell, EncoderName, probe_tasks, summarise
from vjepa.jobs.demo_report import headline

_PROBE = """
data:
  view: {crop_size: 32, short_side: 32}
  reading: {num_workers: 0, frame_cache_gigabytes: 0.1}
optim: {epochs: null, steps: 3, batch_size: 8, learning_rates: [1.0e-3]}
device: cpu
num_threads: 1
"""


def _config(folder: Path) -> DemoConfig:
    (folder / "pretrain.yaml").write_text(
        RECIPE.replace("num_workers: 1", "num_workers: 0, frame_cache_gigabytes: 0.1")
        + "online_probe: {manifest: x, label: motion, every_steps: 20}\n"
    )
    (folder / "probe.yaml").write_text(_PROBE)
    data = {"num_clips_train": 220, "num_clips_validation": 90, "num_clips_test": 22}
    return load_config(
        DemoConfig,
        overrides={
            "minutes": 0.02,
            "recipe": str(folder / "pretrain.yaml"),
            "probe_recipe": str(folder / "probe.yaml"),
            "few_labels_per_class": 1,
            "many_labels_per_class": 2,
            "label_draws": 2,
            "real_clips": False,
            "data": data | {"size": 32, "num_frames": 4},
        },
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoConfig, Path]:
    folder = tmp_path_factory.mktemp("demo")
    config = _config(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_training, "_TRIAL_STEPS", 40)
        report = demo.run(config, folder / "out")
    assert report == folder / "out" / "report.html"
    return config, folder / "out"


def test_the_report_holds_every_part(finished: tuple[DemoConfig, Path]) -> None:
    _, out = finished
    text = (out / "report.html").read_text()
    for title in ("What do the frozen features know?", "The task", "Training", "What ran"):
        assert title in text
    assert text.count("data:image/png;base64,") >= 4
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)


def test_both_objectives_got_the_updates_that_fit_into_the_time(
    finished: tuple[DemoConfig, Path],
) -> None:
    config, out = finished
    rates = json.loads((out / "plan.json").read_text())["updates_per_second"]
    for objective in ("vjepa", "pixel"):
        steps = max(1, round(60 * config.minutes * rates[objective]))
        checkpoint = out / "runs" / f"{objective}_seed0" / "checkpoints" / f"step_{steps:08d}"
        assert checkpoint.is_dir()


def test_every_probe_is_in_the_table(finished: tuple[DemoConfig, Path]) -> None:
    config, out = finished
    results = {task: load_result(task.folder(out)) for task in probe_tasks(config)}
    assert len(results) == 2 * 3 * (2 + 1 + 1)
    cells = summarise(results)
    assert len(cells) == 2 * 3 * 3
    cell = next(
        c for c in cells if (c.label, c.encoder, c.labels_per_class) == ("motion", "pixel", 1)
    )
    draws = [
        result.test.metrics.top1
        for task, result in results.items()
        if (task.label, task.encoder, task.labels_per_class) == ("motion", "pixel", 1)
        and result.test is not None
    ]
    assert len(draws) == 2
    assert cell.top1 == pytest.approx(sum(draws) / 2)
    assert cell.interval.low < cell.top1 < cell.interval.high
    assert len({result.weights_hash for result in results.values()}) == 3, "three encoders"
    answer, figures = headline(config, cells)
    mine = next(
        c for c in cells if (c.label, c.encoder, c.labels_per_class) == ("motion", "vjepa", 1)
    )
    assert f"{100 * mine.top1:.1f} % of unseen test clips" in answer
    assert figures[0].value == f"{100 * mine.top1:.1f} %"


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        (0.9, "above the untrained encoder and above pixel"),
        (0.5, "above the untrained encoder and not told apart from pixel"),
        (0.4, "above the untrained encoder and below pixel"),
        (0.2, "not told apart from the untrained encoder and below pixel"),
        (0.1, "below the untrained encoder and below pixel"),
    ],
)
def test_the_headline_says_who_is_ahead_whoever_it_is(mine: float, said: str) -> None:
    shares: dict[EncoderName, float] = {"vjepa": mine, "pixel": 0.5, "random": 0.2}
    cells = [
        Cell("motion", "attentive", 15, name, x, Interval(x - 0.02, x + 0.02), 1, (x,))
        for name, x in shares.items()
    ]
    assert said in headline(DemoConfig(), cells)[0]


def test_a_second_call_does_nothing_twice(
    finished: tuple[DemoConfig, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    monkeypatch.setattr(demo, "train_side_by_side", lambda *_: None)
    demo.run(config, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("result.json")} == before


def test_another_demo_does_not_take_the_folder(
    finished: tuple[DemoConfig, Path], tmp_path: Path
) -> None:
    _, out = finished
    with pytest.raises(UserError, match="minutes"):
        demo.run(DemoConfig(minutes=1), out)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds no demo"):
        demo.run(DemoConfig(), tmp_path)


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    config = load_config(DemoConfig, overrides={"recipe": "nosuch"})
    with pytest.raises(UserError, match="nosuch"):
        demo_training.train_side_by_side(
            (demo_training.TrainingTask("vjepa", 0, tmp_path / "runs" / "a"),),
            {"vjepa": {}},
            config.recipe,
            0.1,
        )


def test_ctrl_c_while_training_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    config = tmp_path / "demo.yaml"
    config.write_text(dump_yaml(replace(_config(tmp_path), minutes=5.0)))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vjepa", "demo", "--config", str(config), "--out", str(out)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell's background job ignores Ctrl-C, and so would everything that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    metrics = out / "runs" / "vjepa_seed0" / "metrics.jsonl"
    deadline = time.monotonic() + 150
    while not (metrics.is_file() and metrics.read_text().count("\n") > 1):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    for objective in ("vjepa", "pixel"):
        log = (out / "runs" / f"{objective}_seed0.log").read_text()
        assert "stopped by SIGTERM" in log
        assert list((out / "runs" / f"{objective}_seed0" / "checkpoints").glob("step_*"))


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"minutes": 0}, "minutes"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"label_draws": 0}, "label_draws"),
    ],
)
def test_bad_settings_name_the_field(overrides: dict, field: str) -> None:
    with pytest.raises(UserError, match=field):
        load_config(DemoConfig, overrides=overrides)
