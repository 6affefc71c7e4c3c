"""The demo as a whole at toy size, with real processes; its table, headline and curves."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from tests import warm
from tests.jobs.tiny_run import RECIPE

from vjepa.config import dump_yaml, load_config
from vjepa.data import Manifest
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.data.manifest.manifest import ManifestRow
from vjepa.demo import demo, films
from vjepa.demo import training as demo_training
from vjepa.demo.config import DemoConfig
from vjepa.demo.demo import settle_labels
from vjepa.demo.films import expected_grid, followed_section
from vjepa.demo.probes import (
    Cell,
    EncoderName,
    pixel_baselines,
    probe_tasks,
    run_probes,
    summarise,
)
from vjepa.demo.report import DemoFindings, difference, headline
from vjepa.demo.synthetic import SyntheticConfig, render_clip
from vjepa.errors import StoppedBySystem, UserError
from vjepa.evaluation.metrics import ConfidenceInterval, wilson_interval
from vjepa.evaluation.preprocess import load_model
from vjepa.evaluation.results import load_result
from vjepa.jobs.decode import open_decoder, predicting_hash
from vjepa.models import EncoderConfig
from vjepa.reporting.pictures import Picture
from vjepa.runtime.files import atomic_write, begin_folder
from vjepa.training import TrainingResult
from vjepa.training.schedules import OptimConfig

Finished = tuple[DemoConfig, Path]

_PROBE = """
data:
  view: {crop_size: 32, short_side: 32}
  reading: {num_workers: 0, frame_cache_gigabytes: 0.1}
optim: {epochs: null, steps: 3, batch_size: 8, learning_rates: [1.0e-3]}
device: cpu
num_threads: 1
"""
_DECODER = """
data: {batch_size: 4, loader: {num_workers: 0, frame_cache_gigabytes: 0.1}}
decoder: {width: 24, depth: 1, heads: 3}
optim: {warmup_steps: 1}
training: {device: cpu}
"""


def _config(folder: Path) -> DemoConfig:
    (folder / "pretrain.yaml").write_text(
        RECIPE.replace("num_workers: 1", "num_workers: 0, frame_cache_gigabytes: 0.1")
        + "online_probe: {manifest: x, label: motion, every_steps: 20}\n"
    )
    (folder / "probe.yaml").write_text(_PROBE)
    (folder / "decoder.yaml").write_text(_DECODER)
    data = {"num_clips_train": 150, "num_clips_validation": 22, "num_clips_test": 22}
    return load_config(
        DemoConfig,
        overrides={
            "minutes": 0.02,
            "recipe": str(folder / "pretrain.yaml"),
            "probe_recipe": str(folder / "probe.yaml"),
            "few_labels_per_class": 1,
            "many_labels_per_class": 2,
            "label_draws": 2,
            "decoder_recipe": str(folder / "decoder.yaml"),
            "decoder_steps": 2,
            # One question is enough for all that is made of them.
            "data": data | {"size": 32, "num_frames": 4, "labels": ["motion"]},
        },
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("demo")
    config = _config(folder)

    def started(words: list[str], log: Path, _: Mapping[str, str]) -> warm.WarmProcess:
        log.parent.mkdir(parents=True, exist_ok=True)
        return warm.vjepa(*words, log=log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_training, "_TRIAL_STEPS", 40)
        patch.setattr(demo_training, "start_command", started)
        patch.setattr(films, "_EVENT_CLIPS", 1)
        patch.setattr(demo, "usable_cpus", lambda: 1)  # of which torch would keep all
        report = demo.run(config, folder / "out")
    assert report == folder / "out" / "report.html"
    return config, folder / "out"


def test_the_report_holds_every_part(finished: Finished) -> None:
    _, out = finished
    text = (out / "report.html").read_text()
    titles = re.findall(r"<(?:h2|summary)>(.*?)</", text)
    assert titles == [
        "Which motion is it? Learnt from 11 labels",
        "What it watched",
        "What it expects to come next",
        "Does it follow a thing?",
        "Does it notice what cannot be?",
        "Which moments are alike",
        "What do the frozen features know?",
        "What it cost",
        "How to go on",
        "What the features look like",
        "Where the prediction is right and wrong",
        "How training went",
        "All settings",
    ]
    title = "minutes of watching without a label, and from few labels it tells motion"
    assert text.index(title) < 600
    assert text.count("data:image/webp;base64,") >= 8 + 3 * 4 + 2 * 3 + 3, "they move"
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert f"--decoder {out}/decoder" in text
    assert "Motion says what a digit did. Test clips show" in text, "no other was asked for"
    widths = [int(width) for width in re.findall(r'style="--width: (\d+)px"', text)]
    assert len(widths) > 5
    assert max(widths) <= 330, "no chart is wider than a phone"


def test_the_drawn_prediction_is_of_the_first_seeds_model(finished: Finished) -> None:
    _, out = finished
    opened = open_decoder(out / "decoder")
    assert predicting_hash(opened.model) == predicting_hash(load_model(out / "runs/vjepa_seed0"))
    assert (out / "decoder" / "checkpoints" / "step_00000002").is_dir()


def test_each_objective_has_its_schedule_and_the_updates_that_fit_into_the_time(
    finished: Finished,
) -> None:
    config, out = finished
    assert not (out / "trial").exists()
    rates = json.loads((out / "plan.json").read_text())["updates_per_cpu_second"]
    optim = {}
    for objective in ("vjepa", "pixel"):
        run = out / "runs" / f"{objective}_seed0"
        optim[objective] = yaml.safe_load((run / "config.yaml").read_text())["optim"]
        steps = max(1, round(60 * config.minutes * rates[objective]))
        assert (run / "checkpoints" / f"step_{steps:08d}").is_dir()
    assert optim["vjepa"]["peak_lr"] == OptimConfig().peak_lr, "the recipe names none"
    assert optim["pixel"]["peak_lr"] == 1e-2 != OptimConfig().peak_lr
    assert optim["pixel"]["schedule_stretch"] == 1.0


def test_every_probe_is_in_the_table(finished: Finished) -> None:
    config, out = finished
    results = {task: load_result(task.folder(out)) for task in probe_tasks(config)}
    # Few labels: attentive, ridge on all tokens with two draws; many: ridge, pooled in three ways.
    assert len(results) == 3 * (1 + 2 + 3)
    cells = summarise(results)
    assert len(cells) == 3 * (2 + 3)
    kinds = ("motion", "ridge all", 1)
    few = {c.encoder: c for c in cells if (c.label, c.kind, c.labels_per_class) == kinds}
    pools = {
        result.config["probe"]["pool"]: task.kind
        for task, result in results.items()
        if task.kind.startswith("ridge")
    }
    assert pools == {"mean": "ridge mean", "steps": "ridge steps", "all": "ridge all"}
    cell = few["pixel"]
    draws = [
        result.test.metrics
        for task, result in results.items()
        if (task.label, task.kind, task.labels_per_class) == kinds
        and task.encoder == "pixel"
        and result.test is not None
    ]
    assert len(draws) == 2
    assert cell.top1 == pytest.approx(sum(draw.top1 for draw in draws) / 2)
    # Around the figure, unless none is right: how many updates there are depends on the machine.
    count = draws[0].count
    assert cell.interval == wilson_interval(round(count * cell.top1), count)
    assert len({result.weights_hash for result in results.values()}) == 3, "three encoders"
    _, answer, figures = headline(config, cells)
    top1 = f"{100 * few['vjepa'].top1:.1f} %"
    assert f"{top1} of unseen test clips" in answer
    attentive = [100 * c.top1 for c in cells if c.kind == "attentive"]
    numbers = f"{attentive[0]:.1f} %, {attentive[2]:.1f} % and {attentive[1]:.1f} %"
    assert f"the three have {numbers}" in answer, "whatever the claim's own classifier says"
    assert figures[0].value == top1


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
        Cell("motion", "ridge all", 15, name, x, ConfidenceInterval(x - 0.02, x + 0.02), (x,))
        for name, x in shares.items()
    ]
    assert said in headline(DemoConfig(), cells)[1]


@pytest.mark.parametrize(
    ("mine", "value", "label"),
    [
        (0.9, "40.0 points", "above pixel prediction"),
        (0.4, "10.0 points", "below pixel prediction"),
        (0.51, "1.0 points", "above pixel prediction, not told apart"),
        (0.49, "1.0 points", "below pixel prediction, not told apart"),
    ],
)
def test_a_gap_below_is_said_in_words_not_by_a_sign(mine: float, value: str, label: str) -> None:
    shares: dict[EncoderName, float] = {"vjepa": mine, "pixel": 0.5, "random": 0.2}
    cells = [
        Cell("motion", "ridge all", 15, name, x, ConfidenceInterval(x - 0.02, x + 0.02), (x,))
        for name, x in shares.items()
    ]
    shown = headline(DemoConfig(), cells)[2][2]
    assert (shown.value, shown.label) == (value, label)


def test_the_claim_says_no_more_than_what_holds() -> None:
    def claim(**shares: float) -> str:
        cells = [
            Cell(
                "motion",
                kind,
                15,
                name.replace("_", " "),
                x,
                ConfidenceInterval(x - 0.02, x + 0.02),
            )
            for name, x in shares.items()
            for kind in ["ridge" if name in ("all_frames", "middle_frame") else "ridge all"]
        ]
        return headline(DemoConfig(), cells)[0]

    start = "3.5 minutes of watching without a label, and from few labels it tells motion "
    floors = {"all_frames": 0.4, "middle_frame": 0.2}
    assert claim(vjepa=0.7, pixel=0.6, random=0.2, **floors) == (
        f"{start}better than the same network untrained, trained to predict pixels or "
        "linear classifiers on raw frames"
    )
    assert claim(vjepa=0.39, pixel=0.3, random=0.2, **floors) == (
        f"{start}better than the same network untrained or trained to predict pixels"
    )
    assert (
        claim(vjepa=0.5, pixel=0.6, random=0.2) == f"{start}better than the same network untrained"
    )
    nothing = f"{start}no better than the same network untrained"
    assert claim(vjepa=0.21, pixel=0.1, random=0.2, **floors) == nothing


def test_a_second_question_is_answered_too() -> None:
    cells = [_seeds("vjepa", 0.6), _seeds("pixel", 0.5), _seeds("random", 0.2)]
    cells += [replace(cell, label="colour", top1=cell.top1 - 0.1) for cell in cells]
    assert (
        "Asked for the colour instead, it gets 50.0 % right (untrained 10.0 %)."
        in headline(DemoConfig(), cells)[1]
    )


def _seeds(name: EncoderName, *shares: float) -> Cell:
    mean = sum(shares) / len(shares)
    return Cell("motion", "ridge all", 15, name, mean, ConfidenceInterval(0, 1), shares)


def test_with_three_seeds_rows_are_compared_seed_by_seed() -> None:
    config = DemoConfig(seeds=(0, 1, 2))
    random = _seeds("random", 0.2, 0.2, 0.2)
    # The seeds differ far more than the two encoders do, but alike.
    cells = [_seeds("vjepa", 0.62, 0.71, 0.83), _seeds("pixel", 0.60, 0.70, 0.80), random]
    gap = difference(cells[0], cells[1])
    assert gap.mean == pytest.approx(0.02)
    assert gap.interval.low == pytest.approx(0.02 - 4.3027 * 0.01 / 3**0.5, abs=1e-5)
    floor = Cell("motion", "ridge", 15, "all frames", 0.3, ConfidenceInterval(0.28, 0.32))
    assert "not told apart from pixel" in headline(config, [*cells, floor])[1]
    cells[0] = _seeds("vjepa", 0.62, 0.72, 0.83)
    assert "above pixel" in headline(config, cells)[1]
    cells[0] = _seeds("vjepa", 0.57, 0.68, 0.77)
    assert "below pixel" in headline(config, cells)[1]


def test_a_second_call_makes_what_is_missing_and_nothing_twice(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    stopped, *_ = before
    found = load_result(stopped.parent).test
    stopped.unlink()  # as if stopped while its probe, which is saved, was tested
    monkeypatch.setattr(demo, "train_side_by_side", lambda *_: None)
    monkeypatch.setattr(demo, "usable_cpus", lambda: 1)
    monkeypatch.setattr(demo, "write_demo_report", lambda *_: None)
    demo.run(config, out)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert {path for path in after if after[path] != before[path]} == {stopped}
    again = load_result(stopped.parent).test
    assert found
    assert again
    assert again.metrics == found.metrics


def test_a_probe_that_cannot_be_trained_is_one_line(finished: Finished) -> None:
    config, out = finished
    too_many = replace(config, many_labels_per_class=1000)
    with pytest.raises(UserError, match="1000_draw0: the probe cannot be trained: class"):
        run_probes(too_many, out, out / "data" / "manifest.parquet")


def test_videos_of_others_are_shown_as_their_labels_allow(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any manifest with labels: the input measured, as many labels as all classes have."""
    config, out = finished
    manifest = out / "data" / "manifest.parquet"
    overrides: dict[str, dict[str, str]] = {}
    shown: list[DemoFindings] = []
    monkeypatch.setattr(demo, "measure_rates", lambda *_: {"vjepa": 2.0, "pixel": 3.0})
    monkeypatch.setattr(
        demo, "train_side_by_side", lambda _, __, given, *_rest: overrides.update(given)
    )
    monkeypatch.setattr(demo, "run_probes", lambda settled, *_: {"labels": settled})
    monkeypatch.setattr(demo, "train_decoder", lambda *_: None)
    monkeypatch.setattr(demo, "write_demo_report", lambda found, _: shown.append(found))
    data = replace(config.data, manifest=manifest, labels=("appearance",))
    many = replace(config, data=data, many_labels_per_class=1000, minutes=1.0)
    demo.run(many, tmp_path / "out")
    (found,) = shown
    assert found.config.labels == ("appearance",)
    train = Manifest.open(manifest).select(split="train")
    fewest = min(Counter(train.labels("appearance").tolist()).values())
    assert found.config.many_labels_per_class == fewest < 22
    assert found.manifest == manifest
    floors = {cell.encoder: cell for cell in found.baselines if cell.labels_per_class == fewest}
    assert set(floors) == {
        *("middle frame", "all frames", "frame differences", "size of differences")
    }
    settings = overrides["vjepa"]
    assert settings["data.normalisation"] == "measured"
    assert settings["online_probe.label"] == "appearance"
    assert settings["optim.steps"] == "120"
    assert {task.label for task in probe_tasks(found.config)} == {"appearance"}
    assert not (tmp_path / "out" / "data").exists()
    unlabelled = Manifest.from_rows(
        [ManifestRow(info=row.info, split=row.split) for row in _rows(manifest)], "/"
    )
    with pytest.raises(UserError, match="has no label"):
        settle_labels(replace(many, data=replace(data, labels=())), unlabelled)


def test_the_same_number_of_labels_twice_is_one_row_of_each_floor(
    finished: Finished, tmp_path: Path
) -> None:
    config, out = finished
    manifest = out / "data" / "manifest.parquet"
    alike = replace(config, many_labels_per_class=1)
    cells = pixel_baselines(alike, tmp_path, manifest)
    assert len(cells) == len({cell.encoder for cell in cells}) == 4
    few = {
        cell for cell in pixel_baselines(config, tmp_path, manifest) if cell.labels_per_class == 1
    }
    assert set(cells) == few, "the mean over the draws, as of all few labels"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", "b", "a", "b", "c"], "class 'c' of label 'kind' has no training sample"),
        (["a", "a", "a", "a", "a"], "only the class 'a'; a probe needs at least two"),
    ],
)
def test_labels_that_no_probe_can_take_are_refused_before_the_training(
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labels: list[str],
    said: str,
) -> None:
    config, out = finished
    monkeypatch.setattr(demo, "measure_rates", lambda *_: pytest.fail("it began to train"))
    videos = Manifest.open(out / "data" / "manifest.parquet")
    rows = [
        ManifestRow(info=videos.row(n), split="train" if n < 4 else "test", labels={"kind": label})
        for n, label in enumerate(labels)
    ]
    own = tmp_path / "own.parquet"
    Manifest.from_rows(rows, tmp_path).write(own)
    data = replace(config.data, manifest=own, labels=("kind",))
    with pytest.raises(UserError, match=said):
        demo.run(replace(config, data=data), tmp_path / "out")


def test_too_few_clips_for_the_probes_are_said_before_the_training(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = finished
    monkeypatch.setattr(demo, "measure_rates", lambda *_: pytest.fail("it began to train"))
    shutil.copytree(out / "data", tmp_path / "out" / "data")
    many = replace(config, many_labels_per_class=100)
    begin_folder(tmp_path / "out", "demo", many)
    with pytest.raises(UserError, match=r"many_labels_per_class: 100, but class .* training clips"):
        demo.run(many, tmp_path / "out")
    choosing = tmp_path / "choosing.yaml"
    choosing.write_text(_PROBE.replace("[1.0e-3]", "[1.0e-3, 1.0e-2]"))
    one = replace(config, probe_recipe=str(choosing))
    shutil.copytree(out / "data", tmp_path / "one" / "data")
    begin_folder(tmp_path / "one", "demo", one)
    with pytest.raises(UserError, match="few_labels_per_class: 1, but heads are chosen"):
        demo.run(one, tmp_path / "one")


def _rows(manifest: Path) -> list[ManifestRow]:
    known = Manifest.open(manifest)
    return [ManifestRow(info=known.row(row), split="train") for row in range(3)]


def test_another_demo_does_not_take_the_folder(finished: Finished, tmp_path: Path) -> None:
    _, out = finished
    with pytest.raises(UserError, match="minutes"):
        demo.run(DemoConfig(minutes=1), out)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds nothing of `vjepa demo`"):
        demo.run(DemoConfig(), tmp_path)


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    folders = {"vjepa": tmp_path / "runs" / "a"}
    with pytest.raises(UserError, match="nosuch"):
        demo_training.train_side_by_side(folders, 0, {"vjepa": {}}, "nosuch", 0.1)


def test_ctrl_c_while_training_saves_and_the_same_command_goes_on(
    finished: Finished, tmp_path: Path
) -> None:
    settings, done = finished
    out, config = tmp_path / "out", tmp_path / "longer.yaml"
    longer = replace(settings, minutes=5.0)
    config.write_text(dump_yaml(longer))
    # Begun and stopped after the trial, which the other tests have made.
    shutil.copytree(done / "data", out / "data")
    begin_folder(out, "demo", longer)
    atomic_write(out / "plan.json", '{"updates_per_cpu_second": {"vjepa": 50.0, "pixel": 50.0}}')
    process = warm.vjepa("demo", "--config", config, "--out", out, log=tmp_path / "log")
    both = [out / "runs" / f"{name}_seed0" / "metrics.jsonl" for name in ("vjepa", "pixel")]
    deadline = time.monotonic() + 600
    try:
        while not all(path.is_file() and path.read_text().count("\n") > 1 for path in both):
            assert process.poll() is None, process.said
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        code = process.wait()
    finally:
        process.kill()
    assert code == 130, process.said
    assert "Traceback" not in process.said
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
        ({"few_labels_per_class": 20, "many_labels_per_class": 10}, "many_labels_per_class: 10"),
        ({"data.num_clips_test": 0}, "data.num_clips_test"),
        ({"data.num_clips_train": 0}, "data.num_clips_train"),
    ],
)
def test_bad_settings_name_the_field(overrides: dict, field: str) -> None:
    with pytest.raises(UserError, match=field):
        load_config(DemoConfig, overrides=overrides)


def test_what_is_expected_is_told_by_the_first_half_alone(finished: Finished) -> None:
    _, out = finished
    model = load_model(out / "runs/vjepa_seed0").eval()
    size = model.config.encoder
    shape = (size.num_frames, size.image_size, size.image_size, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = expected_grid(model, frames)
    assert expected.shape == (*size.grid, size.width)
    half = size.num_frames // 2
    hidden, seen = frames.copy(), frames.copy()
    hidden[half:] = 255 - hidden[half:]
    np.testing.assert_array_equal(expected_grid(model, hidden), expected)
    seen[:half] = 255 - seen[:half]
    changed = np.abs(expected_grid(model, seen) - expected).mean(axis=(1, 2, 3))
    assert (changed > 0).all()


def test_a_grid_that_knows_where_the_digit_goes_follows_it_always() -> None:
    data = SyntheticConfig(num_clips_test=60, size=32, num_frames=8)
    size, view = (
        EncoderConfig(image_size=32, num_frames=8, patch_size=8),
        ViewConfig(crop_size=32, short_side=32),
    )
    places = {}
    for index in range(60):
        known = render_clip(data, "test", index)
        places[hash(known.frames.tobytes())] = known.centre_a.reshape(4, 2, 2).mean(axis=1)

    def told(frames: Picture, shift: int = 0) -> NDArray[np.float32]:
        grid = np.zeros((4, 4, 4, 2), dtype=np.float32)
        for step, (x, y) in enumerate(np.floor(places[hash(frames.tobytes())] * 4).astype(int)):
            if 0 <= x < 4 and 0 <= y < 4:
                grid[step, (y + shift * (step > 1)) % 4, x] = 1
        return grid

    grids = {"right": told, "one place lower": partial(told, shift=1)}
    section = followed_section(grids, data, size, ClipConfig(num_frames=8, stride=1), view)
    assert re.search(r"In [1-9]\d* moments of 60 test clips", section.introduction)
    assert "right 100 %; one place lower 0 %" in section.introduction


@pytest.mark.parametrize("stop", [KeyboardInterrupt, StoppedBySystem])
def test_a_stop_while_the_decoder_learns_ends_the_demo(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, stop: type[KeyboardInterrupt]
) -> None:
    config, out = finished
    ended = TrainingResult(1, True, None, 0, requeue=stop is StoppedBySystem)
    monkeypatch.setattr(demo.decode, "train", lambda *_: ended)
    with pytest.raises(KeyboardInterrupt) as caught:
        demo.train_decoder(config, out, out / "data" / "manifest.parquet")
    assert caught.type is stop
