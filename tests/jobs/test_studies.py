"""Studies: declarations that expand and build, a runner that resumes, verdicts in plain words."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tests.data.clip_files import write_video
from tests.golden.test_baselines import _NAMES as REAL_LAYOUTS
from tests.golden.test_baselines import _on_meta as state_on_meta
from tests.jobs.tiny_run import RECIPE, write_box_set

from vjepa.checkpoint.catalogue import MODELS
from vjepa.checkpoint.folder import Asked
from vjepa.checkpoint.foreign import recognise
from vjepa.checkpoint.strict import LoadReport
from vjepa.checkpoint.timm_models import TimmEncoder
from vjepa.cli.main import main
from vjepa.config import load_config
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError
from vjepa.evaluation.results import over_seeds
from vjepa.jobs import studies_report, studies_run
from vjepa.jobs.detect import train as detect_train
from vjepa.jobs.finetune import inputs as finetune_inputs
from vjepa.jobs.finetune import job as finetune_job
from vjepa.jobs.pretrain import PretrainConfig, build_task
from vjepa.jobs.probe import encoder as probe_encoder
from vjepa.jobs.probe import inputs as probe_inputs
from vjepa.jobs.probe.config import VideosConfig
from vjepa.jobs.studies import SCALES, Grid, load_study, study_names
from vjepa.jobs.studies_report import Comparison, _markdown
from vjepa.jobs.studies_run import open_grid
from vjepa.masking import MaskSampler
from vjepa.models import Encoder, EncoderConfig
from vjepa.reporting.html import Report, Section, Table, Text


class _AllFiles(dict[str, str]):
    """Every file that a study may ask for, given."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return f"/{name}.parquet"


def _sizes(config: PretrainConfig) -> str:
    return repr((config.model, config.objective))


@pytest.mark.parametrize("name", study_names())
def test_every_study_expands_and_its_tasks_are_built_at_every_scale(name: str) -> None:
    """On the meta device: a recipe that could not run is found without a GPU or a video."""
    study, built = load_study(name), set[str]()
    assert "paper" in study.scales or not study.shows
    for scale, plan in study.scales.items():
        one_seed = replace(study.scales[scale], seeds=plan.seeds[:1])
        grid = Grid(replace(study, scales={scale: one_seed}), scale, _AllFiles(), ())
        assert grid.cells
        assert not grid.missing
        hours = sum(job.minutes for job in grid.jobs.values()) * len(plan.seeds) / 60
        assert scale == "paper" or hours <= {"cpu": 4.6, "gpu": 12.0}[scale], (scale, hours)
        for job in grid.jobs.values():
            assert set(job.needs) <= grid.jobs.keys()
            if job.command == "pretrain":
                encoder, masking = job.config.model.encoder, job.config.masking
                MaskSampler(masking, encoder.grid, encoder.tubelet_size, 0)
            if job.command == "pretrain" and _sizes(job.config) not in built:
                built.add(_sizes(job.config))
                with torch.device("meta"):
                    assert build_task(job.config).encoder_for_evaluation is not None


def _sized_encoder(sizes: EncoderConfig) -> Encoder:
    """An encoder that says it has these sizes, without numbers, and of one block: it is quick."""
    with torch.device("meta"):
        encoder = Encoder(replace(sizes, depth=1, levels=()))
    encoder.config = sizes
    return encoder


@functools.cache
def _known_encoder(name: str, golden_dir: Path) -> Encoder | TimmEncoder:
    """A published model at its real size, without numbers."""
    known = MODELS[name]
    if known.family not in ("hiera", "dinov2", "openclip"):
        return _sized_encoder(known.encoder)
    with torch.device("meta"):
        pytest.importorskip("timm")
        recorded = json.loads((golden_dir / "baselines" / "real_layouts.json").read_text())
        (layout, *_) = (key for key, value in REAL_LAYOUTS.items() if value == name)
        names, wrapping = recorded[layout]["names"], recorded[layout]["wrapping"].split()[0]
        state = state_on_meta(names)
        content = state if wrapping == "none" else {wrapping: state}
        held = recognise(content, Path(layout), Asked(which="target"))
        assert held is not None
        assert held.build is not None
        found = held.build(held.encoder)
    assert isinstance(found, TimmEncoder)
    return found


@pytest.fixture(scope="module")
def box_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boxes")
    write_box_set(folder, 2, 1)
    return folder


@pytest.mark.parametrize("name", study_names())
def test_every_job_of_the_paper_takes_the_encoder_that_its_variant_names(
    name: str, videos: Path, box_tables: Path, golden_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to its first video, on the meta device: of a pretraining's sizes, or a published model."""
    study = load_study(name)
    if "paper" not in study.scales:
        return
    one_seed = replace(study.scales["paper"], seeds=study.scales["paper"].seeds[:1])
    grid = Grid(replace(study, scales={"paper": one_seed}), "paper", _AllFiles(), ())

    def encoder_at(path: Path) -> Encoder | TimmEncoder:
        if path.name in grid.jobs:  # a run of the study
            return _sized_encoder(grid.jobs[path.name].config.model.encoder)
        return _known_encoder(path.stem, golden_dir)

    def read(path: Path, *_: object, **__: object) -> tuple[Encoder | TimmEncoder, LoadReport]:
        known, encoder = MODELS.get(path.stem), encoder_at(path)
        if known is None:
            return encoder, LoadReport(str(path), "", ())
        encoder.config = known.encoder  # which the job before may have changed
        title = "" if known.family == "vjepa" else known.title
        return encoder, LoadReport(str(path), "", (), title=title)

    monkeypatch.setattr(probe_encoder, "read_encoder", read)
    monkeypatch.setattr(probe_encoder, "weights_hash", lambda _: "0" * 64)
    few: dict[str, Any] = {"label": "colour", "label_fraction": None, "labels_per_class": 2}
    few |= {split: VideosConfig(manifest=videos, split=split) for split in ("train", "test")}
    for job in grid.jobs.values():
        config = job.config
        if job.command == "probe train":
            features = replace(config.features, compile=False, precision="float32")
            config = replace(config, features=features, device="cpu")
            probe_inputs.open_inputs(replace(config, data=replace(config.data, **few)))
        elif job.command == "finetune":
            config = replace(config, data=replace(config.data, **few))
            inputs = finetune_inputs.open_inputs(config)
            assert finetune_job._about(config, inputs, 1)
            with torch.device("meta"):
                assert finetune_inputs.build_task(config, inputs.encoder, 3).encoder
        elif job.command == "detect train":
            tables = {x: box_tables / f"boxes_{x}.parquet" for x in ("train", "test")}
            data = replace(config.data, videos=None, **tables)
            assert detect_train._open(replace(config, data=data))


def test_the_paper_is_covered() -> None:
    shown = {item for name in study_names() for item in load_study(name).shows}
    wanted = {f"Table {number}" for number in range(1, 17)}
    wanted |= {f"Figure {number}" for number in (1, 4, 5, 6, 7, 8, 9)}
    assert wanted == shown


def test_the_order_names_rows_or_variants() -> None:
    for name in study_names():
        study = load_study(name)
        variants = {variant for plan in study.scales.values() for variant in plan.variants or ()}
        known = variants | study.variants.keys() | study.rows.keys()
        named = {variant for chain in study.order for variant in chain}
        named |= {one for sweep in study.sweeps for line in sweep.lines.values() for one in line}
        assert named <= known, (name, named - known)
        assert all(len(row) == len(study.columns) for row in study.rows.values()), name


def _tiny(folder: Path, manifest: Path) -> Path:
    """A study of a pretraining, random weights, and rows whose encoders are not there."""
    settings = yaml.safe_load(RECIPE) | {"online_probe": None}
    del settings["seed"]  # the study gives it
    settings["data"]["sources"] = [{"manifest": str(manifest), "split": "train"}]
    settings["data"]["loader"] = {"num_workers": 0}
    settings["optim"]["steps"] = 2
    settings["training"]["health_every_steps"] = None
    probe = {
        "encoder.path": "{pretrain}",
        "data.label": "{label}",
        "data.train": {"manifest": str(manifest), "split": "train"},
        "data.test": {"manifest": str(manifest), "split": "test"},
        "data.reading.num_workers": 0,
        "probe.kind": "nearest_mean",
        "device": "cpu",
        "num_threads": 1,
    }
    study = {
        "title": "tiny",
        "question": "Which?",
        "columns": ["K400"],
        "rows": {"one": [3.0], "other": [1.0], "third": [0.5]},
        "order": [["one", "other"]],
        "variants": {
            "one": {},
            "other": {
                "pretrain": None,
                "probe": {"encoder.path": "{one/pretrain}", "encoder.random": True},
            },
            "lost": {"pretrain": None, "probe": {"encoder.path": "/nowhere"}},
            "not given": {"pretrain": None, "probe": {"encoder.path": "{files.weights}"}},
        },
        "scales": {
            "cpu": {
                "about": "two updates",
                "sets": {"videos": ["colour"]},
                "seeds": [0],
                "steps": {
                    "pretrain": {"job": "pretrain", "settings": settings},
                    "probe": {"job": "probe train", "settings": probe, "minutes": 0.1},
                },
            }
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def test_a_study_from_declaration_to_report(
    tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real jobs: one fails and is named, the others are run, and nothing is run twice."""
    words = [str(_tiny(tmp_path, videos)), "--out", str(tmp_path / "out")]
    assert main(["studies", "run", *words, "--files", f"videos={videos}", "--workers", "2"]) == 1
    said = capsys.readouterr().out
    assert "4 jobs, 0 done" in said
    assert "row not given, probe: give --files weights=PATH" in said
    assert "failed: lost, probe, videos colour, seed 0: ended with code 2" in said
    assert "3 of 4 jobs done" in said
    records = sorted((tmp_path / "out/jobs").glob("*.json"))
    assert len(records) == 3
    assert all(json.loads(record.read_text())["cpu_seconds"] > 0 for record in records)
    before = [record.stat().st_mtime_ns for record in records]
    assert main(["studies", "report", *words]) == 0  # remembers the files
    assert [record.stat().st_mtime_ns for record in records] == before
    text = (tmp_path / "out/tiny-cpu.md").read_text()
    assert "| one above other | videos, colour, probe |" in text
    assert "cannot be told (one seed)" in text
    assert "| third | 0.5 | not measured here |" in text
    assert (
        "| lost, probe, videos colour, seed 0 | begun; its log ends with: error: /nowhere" in text
    )
    page = (tmp_path / "out/tiny-cpu.html").read_text()
    widths = [int(part.partition("px")[0]) for part in page.split('style="--width: ')[1:]]
    assert widths
    assert max(widths) <= 330, "no chart is wider than a phone"
    # Where one side is not run there is nothing to compare, and no empty table of it.
    grid = open_grid(words[0], "cpu", tmp_path / "out", changes=["variants=[one, lost]"])
    studies_report.write_report(words[0], grid, tmp_path / "out")
    alone = (tmp_path / "out/tiny-cpu.md").read_text()
    assert "Nothing that the paper compares is run here; the figures are below." in alone
    assert "The paper's order" in text
    assert "The paper's order" not in alone
    # Of seeds that are planned, those that were begun are counted.
    study = yaml.safe_load(Path(words[0]).read_text())
    study["scales"]["cpu"]["seeds"] = [0, 1]
    Path(words[0]).write_text(
        yaml.safe_dump(study | {"order": [["one", "other"]]}, sort_keys=False)
    )
    assert main(["studies", "report", *words]) == 0
    assert "3 of 8 jobs done, 1 of 2 seeds begun" in (tmp_path / "out/tiny-cpu.md").read_text()
    # A job that was run with another config is not counted as this one's.
    found = json.loads(records[0].read_text())
    found["config"]["seed"] = 77
    records[0].write_text(json.dumps(found))
    assert main(["studies", "report", *words]) == 2
    said, place = capsys.readouterr().err, records[0].with_suffix("")
    assert "was run with another config (seed: 77 -> 0)" in said
    assert f"remove the folder {place}, and those of jobs that need it" in said
    place.rename(aside := tmp_path / "aside")
    assert main(["studies", "report", *words]) == 0, "it is to be run anew"
    aside.rename(place)
    for spoilt in (records[0], tmp_path / "out/studies.json"):
        spoilt.write_text('{"seconds": 3')
        assert main(["studies", "report", *words]) == 2
        assert f"{spoilt}: cannot be read as JSON" in capsys.readouterr().err


class _Fake:
    """Processes of the shell in place of ``vjepa``, which note what was asked for."""

    def __init__(self, script: str = "mkdir -p $OUT") -> None:
        self.script, self.started = script, list[tuple[str, Mapping[str, str]]]()

    def __call__(
        self, words: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        self.started.append((words[-1], environment))
        variables = os.environ | environment | {"OUT": words[-1]}
        with log.open("wb") as output:
            return subprocess.Popen(
                ["sh", "-c", self.script], env=variables, stdout=output, start_new_session=True
            )


def _grid(tmp_path: Path, *changes: str) -> Grid:
    manifest = tmp_path / "videos.parquet"
    manifest.touch()
    path, out = _tiny(tmp_path, manifest), tmp_path / "out"
    files = {"videos": manifest, "weights": manifest}
    grid = studies_run.open_grid(str(path), "cpu", out, files, changes)
    (out / "jobs").mkdir(parents=True, exist_ok=True)
    return grid


def test_a_failed_job_takes_those_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = _Fake("case $OUT in *pretrain*) echo no room; exit 3;; *) mkdir -p $OUT;; esac")
    monkeypatch.setattr(studies_run, "start_command", fake)
    grid = _grid(tmp_path)
    slots = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    outcome = studies_run.run(grid, tmp_path / "out", slots)
    assert len(outcome.failed) == 1
    assert all("ended with code 3: no room" in why for why in outcome.failed.values())
    assert [grid.jobs[name].what.partition(",")[0] for name in outcome.waiting] == ["one", "other"]
    assert len(outcome.done) == 2
    assert {environment["CUDA_VISIBLE_DEVICES"] for _, environment in fake.started} == {"0", "1"}
    fake.script, fake.started = "mkdir -p $OUT", []
    again = studies_run.run(grid, tmp_path / "out", [{}])
    assert not again.failed
    assert len(again.done) == len(grid.jobs)
    assert len(fake.started) == 3  # the two that were done are kept


def test_devices_are_counted_among_those_that_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scheduler gives GPUs 2 and 5: the second of them is no GPU of another user."""
    asked = []
    monkeypatch.setattr(
        studies_run, "run", lambda _, __, slots: asked.extend(slots) or studies_run.Outcome()
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    (manifest := tmp_path / "videos.parquet").touch()
    words = [str(_tiny(tmp_path, manifest)), "--out", str(tmp_path / "out")]
    words += ["--files", f"videos={manifest}", "--devices"]
    assert main(["studies", "run", *words, "cuda:1"]) == 0
    assert asked == [{"CUDA_VISIBLE_DEVICES": "5"}]
    assert main(["studies", "run", *words, "cuda:2"]) == 2
    assert "--devices cuda:2: CUDA_VISIBLE_DEVICES has 2" in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_study_stops_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setattr(studies_run, "start_command", _Fake("exec sleep 600"))
    before = signal.getsignal(signal.SIGTERM)  # Ray, once used, has one of its own
    timer = threading.Timer(0.5, os.kill, (os.getpid(), how))
    timer.start()
    grid = _grid(tmp_path)
    outcome = studies_run.run(grid, tmp_path / "out", [{}, {}])
    assert outcome.stopped == how
    assert not outcome.failed
    assert not outcome.done
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_a_job_has_done_stays_for_its_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of a night: `vjepa detect train` goes on from its checkpoints, or ends at once."""
    monkeypatch.setattr(studies_run, "start_command", _Fake("exit 3"))
    grid = _grid(tmp_path)
    name, job = next(iter(grid.jobs.items()))
    grid.jobs = {name: replace(job, command="detect train", needs=())}
    kept = tmp_path / "out" / "jobs" / name / "checkpoints"
    kept.mkdir(parents=True)
    studies_run.run(grid, tmp_path / "out", [{}])
    assert kept.is_dir()
    (kept.parent / "result.json").touch()
    studies_run.run(grid, tmp_path / "out", [{}])
    assert kept.is_dir()


def test_another_setting_is_another_job(tmp_path: Path) -> None:
    usual, changed = _grid(tmp_path), _grid(tmp_path, "pretrain.optim.steps=4")
    kept = usual.jobs.keys() & changed.jobs.keys()
    assert {usual.jobs[name].what.partition(",")[0] for name in kept} == {"lost", "not given"}
    assert changed.jobs[changed.cells[0].job].config.optim.steps == 4


def test_a_part_of_a_grid_is_run_with_seeds_of_the_user(tmp_path: Path) -> None:
    """Jobs that are left are those of the whole grid; a variant may need one that is not shown."""
    (manifest := tmp_path / "videos.parquet").touch()
    sets, files = "sets={vizdoom: [map], fashion: [garment]}", {"vizdoom": manifest}
    changes = (sets, "seeds=[0, 7]", "variants=[multi-block, future only]")
    part = open_grid("masks", "cpu", tmp_path / "out", files, changes)
    whole = open_grid("masks", "cpu", tmp_path / "out", files)
    assert {(cell.variant, cell.videos, cell.label, cell.seed) for cell in part.cells} == {
        (variant, "vizdoom", label, seed)
        for variant in ("multi-block", "future only")
        for label in ("", "map")
        for seed in (0, 7)
    }
    assert "give --files fashion=MANIFEST" in part.missing.values()
    assert len(part.jobs) == 8
    assert len(part.jobs.keys() & whole.jobs.keys()) == 4
    alone = _grid(tmp_path, "variants=other")
    assert [alone.jobs[cell.job].what for cell in alone.cells] == [
        "other, probe, videos colour, seed 0"
    ]
    assert [job.command for job in alone.jobs.values()] == ["pretrain", "probe train"]


def test_a_name_with_a_stroke_breaks_no_table() -> None:
    table = Table(["a|b", "c"], [["one | other", "1"]])
    report = Report("title", "answer", [], [Section("section", blocks=[table])])
    assert r"| one \| other | 1 |" in _markdown(report, "page.html")


def test_one_recipe_may_stand_without_a_list(tmp_path: Path) -> None:
    """In a step, in a variant, and on the command line."""
    (manifest := tmp_path / "videos.parquet").touch()
    path = _tiny(tmp_path, manifest)
    declared = yaml.safe_load(path.read_text())
    declared["variants"] = {"one": {}, "other": {"pretrain": {"recipes": "small"}}}
    declared["scales"]["cpu"]["steps"]["pretrain"] = {"job": "pretrain", "recipes": "demo"}

    def widths(*changes: str) -> list[int]:
        path.write_text(yaml.safe_dump(declared, sort_keys=False))
        grid = open_grid(str(path), "cpu", tmp_path / "out", {"videos": manifest}, changes)
        jobs = [grid.jobs[cell.job] for cell in grid.cells if cell.step == "pretrain"]
        return [job.config.model.encoder.width for job in jobs]

    assert widths() == [96, 192]
    assert widths("pretrain.recipes=vits16_224") == [384, 384]
    declared["variants"]["other"]["pretrain"]["recipes"] = 5
    with pytest.raises(UserError, match=r"tiny: pretrain\.recipes: 5: give a list of names"):
        widths()


def test_a_file_and_a_setting_are_remembered_until_they_are_forgotten(tmp_path: Path) -> None:
    (manifest := tmp_path / "videos.parquet").touch()
    words = [str(_tiny(tmp_path, manifest)), "--out", str(tmp_path / "out"), "--dry-run"]

    def told(*more: str) -> tuple[dict[str, str], list[str]]:
        assert main(["studies", "run", *words, *more]) == 0
        (found,) = json.loads((tmp_path / "out" / "studies.json").read_text()).values()
        return found["files"], found["changes"]

    files, changes = {"videos": str(manifest)}, ["pretrain.optim.steps=4"]
    assert told(f"--files=videos={manifest}", "--set", *changes) == (files, changes)
    assert told() == (files, changes)
    assert told("--files=videos=") == ({}, changes)
    assert told("--set=") == ({}, [])


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([3.0, 3.5, 2.5], "reproduced"),
        ([-3.0, -3.5, -2.5], "not reproduced: the other way round"),
        ([3.0, -3.0, 1.0], "cannot be told (the interval holds 0)"),
        ([3.0], "cannot be told (one seed)"),
        ([-0.2, -0.2 + 1e-12], "cannot be told (two seeds)"),
        ([2.0, 2.0, 2.0], "cannot be told (equal in all seeds, so they tell no interval)"),
    ],
)
def test_verdicts(differences: list[float], verdict: str) -> None:
    assert Comparison("here", "a", "b", over_seeds(differences)).verdict == verdict


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["maks"], "maks: no such study (`vjepa studies list` names all); did you mean masks?"),
        (["demo", "--scale", "gpu"], "--scale gpu: demo is declared for cpu only"),
        (["masks", "--files", "vizdoom"], "--files vizdoom: give NAME=PATH"),
        (["masks", "--files", "vizdoom=/nowhere"], "no such file"),
        (
            ["masks", "--files", "vizdom=/"],
            "--files vizdom: no study asks for it, only for fashion",
        ),
        (["masks", "--files", "vizdom=/"], "vizdoom; did you mean vizdoom?"),
        (
            ["masks", "--set", "prtrain.seed=1"],
            "give STEP.SETTING=VALUE; steps are pretrain, ridge; or seeds, sets or variants",
        ),
        (["masks", "--set", "seeds=[one]"], "--set seeds=[one]: input should be a valid integer"),
        (["masks", "--set", "seeds=[]"], "--set: nothing is left to run; give a seed"),
        (["masks", "--set", "sets={films: [action]}"], "films: no such set in common.yaml"),
        (
            ["masks", "--set", "variants=[tubes]"],
            "--set variants: tubes: they are random-tube[0.9]",
        ),
        (["masks", "--scale", "paper"], "--scale paper: needs --devices, or --dry-run"),
        (["masks", "--devices", "cuda:0,cuda:0"], "none twice"),
        (["masks", "--workers", "0"], "--workers 0: must be at least 1"),
    ],
)
def test_mistakes(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["studies", "run", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_is_known_whatever_else_is_not_given(tmp_path: Path) -> None:
    """Rows are read only where their set is given: their files are asked for all the same."""
    grid = open_grid("low_shot", "paper", tmp_path, {"mvd_vitl16": tmp_path})
    assert not grid.jobs
    assert any("k400=MANIFEST" in why for why in grid.missing.values())


def test_what_a_study_says_itself_counts_more_than_what_a_set_does(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: x\nquestion: y\nvariants: {usual: {}}\nscales:\n  cpu:\n    about: z\n"
        "    sets: {vizdoom: [motion]}\n    seeds: [0]\n    steps:\n"
        "      pretrain: {like: cpu_pretrain}\n      all: {like: cpu_ridge}\n"
        "      few: {like: cpu_ridge, settings: {data.labels_per_class: 15}}\n"
    )
    grid = Grid(load_study(str(path)), "cpu", {"vizdoom": "/films.parquet"}, ())
    asked = {cell.step: grid.jobs[cell.job].config for cell in grid.cells}
    assert {name: asked[name].data.labels_per_class for name in ("all", "few")} == {
        "all": 90,
        "few": 15,
    }
    assert asked["pretrain"].data.normalisation == "measured"


def test_a_wrong_declaration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("title: x\nquestion: y\nscale: {}\nscales: {}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: scale: "):
        load_study(str(path))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("usual: {}", "usual: {pretain: {seed: 1}}", "x: usual/pretain: no such variant or step"),
        ("job: pretrain", "like: nosuch", "x: step pretrain: give job, or like with a step of"),
        ("job: pretrain", "minutes: 1", "x: step pretrain: give job, or like with a step of"),
        ("seed: 1", "continue_from: '{pretrain}'", "x: usual/pretrain: needs itself"),
    ],
)
def test_a_declaration_whose_names_lead_nowhere_is_refused(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    text = (
        "title: x\nquestion: y\nvariants: {usual: {}}\nscales:\n  cpu:\n    about: z\n"
        "    sets: {vizdoom: [motion]}\n    steps: {pretrain: {job: pretrain, settings: {seed: 1}}}"
    )
    path = tmp_path / "mine.yaml"
    for now in (text, text.replace(before, after)):
        path.write_text(now)
        study = load_study(str(path))
        with nullcontext() if now == text else pytest.raises(UserError, match=message):
            Grid(study, "cpu", {"vizdoom": "/films.parquet"}, ())


def test_a_study_of_pictures_has_no_figure_to_wait_for(tmp_path: Path) -> None:
    grid = open_grid("decoder", "cpu", tmp_path / "out")
    text, _ = studies_report.write_report("decoder", grid, tmp_path / "out")
    assert "There is no figure to measure: see the pictures below." in text.read_text()
    grid = open_grid("recipes", "cpu", tmp_path / "out")
    text, _ = studies_report.write_report("recipes", grid, tmp_path / "out")
    assert "Nothing is measured yet." in text.read_text()


def test_all_scales_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studies", "list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in study_names())
    assert f"[{', '.join(SCALES)}]" in said


def test_what_a_report_cannot_draw_is_said_and_costs_no_report(tmp_path: Path) -> None:
    numbers = {"a": 1.0, "b": 2.0}
    sweep = SimpleNamespace(lines={f"line {n}": numbers for n in range(7)}, x="x", title="t")
    study = SimpleNamespace(sweeps=[sweep], unit="top-1 %", pictures=["masks"])
    gone = write_video(tmp_path / "gone.mp4")
    rows = [ManifestRow(info=inspect_file(str(gone)))]
    Manifest.from_rows(rows, tmp_path).write(tmp_path / "videos.parquet")
    gone.unlink()
    source = {"data.sources": [{"manifest": str(tmp_path / "videos.parquet")}]}
    job = SimpleNamespace(
        id="one", command="pretrain", config=load_config(PretrainConfig, overrides=source)
    )
    cell = SimpleNamespace(job="one", variant="features", seed=0)
    grid = SimpleNamespace(
        study=study, cells=[cell], jobs={"one": job}, plan=SimpleNamespace(seeds=[0])
    )
    scores = {("set", "label", "probe"): {"a": {0: 10.0}, "b": {0: 20.0}}}
    findings: Any = SimpleNamespace(
        grid=grid, scores=scores, done={}, out=tmp_path, folder=lambda job: tmp_path / job
    )
    _, said = studies_report._sweep_charts(findings)
    assert isinstance(said, Text)
    assert said.text.startswith("Not drawn, as there are more than 5 lines: line 5: ")
    assert "line 6: " in said.text
    (said,) = studies_report._pictures(findings)
    assert isinstance(said, Text)
    assert said.text.startswith(f"features: not drawn: {gone}: ")
