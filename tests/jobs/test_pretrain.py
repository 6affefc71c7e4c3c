"""The pretraining job on real video files: it learns, resumes exactly, continues, refuses."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import warm
from tests.jobs.tiny_run import (
    CAUSAL,
    LEVJEPA,
    metrics,
    tiny_config,
    weights,
    write_recipe,
    write_set,
)

from vjepa import load_encoder
from vjepa.checkpoint import convert
from vjepa.checkpoint.folder import write_manifest
from vjepa.config import dump_yaml, load_config
from vjepa.data.manifest.manifest import Manifest
from vjepa.errors import UserError
from vjepa.evaluation.preprocess import load_model
from vjepa.jobs import pretrain, pretrain_room
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.jobs.pretrain_room import (
    check_room,
    check_same_run,
    memory_needed,
    sized_as_source,
)
from vjepa.models import VJEPA
from vjepa.reporting.runs import read_run, status_of
from vjepa.runtime.distributed import ProcessGroup
from vjepa.training import OptimConfig, Trainer
from vjepa.training.schedules import learning_rate

_SMALL_CLIPS = (
    "optim.accumulation_steps=1",
    "training.precision=float32",
    "model.encoder.image_size=96",
    "data.transform.crop_size=96",
    "model.encoder.num_frames=8",
    "data.clip.num_frames=8",
)
_TWO_MASKS = (  # the recipe small as it was when it was measured
    "model.encoder={image_size: 112, patch_size: 16}",
    "model.predictor.num_mask_tokens=2",
    "masking.masks=[{kind: multiblock, num_blocks: 2, spatial_scale: [0.7, 0.7]}, "
    "{kind: tube, tube_ratio: 0.0, context_frames: 4}]",
    "masking.count=fixed",
    "data.transform.crop_size=112",
    "optim={optimizer: adamw, clip_norm: 10.0}",
)
_BFLOAT16 = "training.precision=bfloat16"
_NO_WORKERS = "data.loader.num_workers=0"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("finished")
    pretrain.run(tiny_config(folder, manifest), folder / "run")
    return folder / "run"


def test_the_loss_falls_and_the_target_follows(finished: Path) -> None:
    losses = [line["loss"] for line in metrics(finished) if line["kind"] == "train"]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    saved, name = weights(finished, 40), "blocks.0.attn.qkv.weight"
    assert not torch.equal(saved[f"encoder.{name}"], saved[f"target_encoder.{name}"])
    health = [line for line in metrics(finished) if line["kind"] == "health"]
    assert [line["step"] for line in health] == [10, 20, 30, 40]
    assert health[-1]["effective_rank"] > 1


def test_killed_at_any_moment_it_resumes_bit_for_bit(
    manifest: Path, finished: Path, tmp_path: Path
) -> None:
    """A real process, real SIGKILLs, also while workers decode and checkpoints are written."""
    recipe = write_recipe(tmp_path, manifest)
    run = tmp_path / "run"
    command, log = ("pretrain", "--config", recipe, "--out", run), tmp_path / "log"
    delays = np.random.default_rng(0).uniform(0.0, 0.6, size=3)
    for delay in delays:
        process = warm.vjepa(*command, log=log)
        deadline = time.monotonic() + 600
        while not (run / "metrics.jsonl").is_file() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(delay)
        process.kill()
    last = warm.vjepa(*command, log=log)
    assert last.wait() == 0, last.said
    resumed, whole = weights(run, 40), weights(finished, 40)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert metrics(run) == metrics(finished)


def test_accumulation_gives_the_same_training(
    manifest: Path, finished: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        tmp_path, manifest, "optim.accumulation_steps=4", "data.loader.num_workers=0"
    )
    answers = iter([False] * 5 + [True])
    assert pretrain.run(config, tmp_path / "run", is_enough=lambda: next(answers)).step == 5
    whole, parts = weights(finished, 5), weights(tmp_path / "run", 5)
    for name, value in whole.items():
        if not name.endswith("qkv.bias"):  # the keys' part has no gradient but rounding noise
            torch.testing.assert_close(parts[name], value, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "setting", ["masking.count=fixed", "masking.count=packed", "training.precision=bfloat16"]
)
def test_other_counts_and_bfloat16_train_too(setting: str, manifest: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, manifest, setting, "optim.steps=6")
    assert pretrain.run(config, tmp_path / "run").step == 6
    losses = [line["loss"] for line in metrics(tmp_path / "run") if line["kind"] == "train"]
    assert np.isfinite(losses).all()
    saved = weights(tmp_path / "run", 5)
    assert all(value.dtype == torch.float32 for value in saved.values())


def test_pixel_prediction_under_the_same_loop(manifest: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, manifest, "objective.name=pixel", "optim.peak_lr=2e-3")
    pretrain.run(config, tmp_path / "run")
    losses = [line["loss"] for line in metrics(tmp_path / "run") if line["kind"] == "train"]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    saved = weights(tmp_path / "run", 40)
    assert {name.split(".")[0] for name in saved} == {"encoder", "predictor"}
    assert load_encoder(tmp_path / "run").config.width == 48


@pytest.mark.parametrize(
    ("overrides", "saved"),
    [
        (LEVJEPA, {"encoder", "target_encoder", "projector"}),
        ((*LEVJEPA, "training.precision=bfloat16"), {"encoder", "target_encoder", "projector"}),
        ((*CAUSAL, "objective.sigreg_coefficient=0.1"), {"encoder", "target_encoder", "predictor"}),
    ],
)
def test_levjepa_and_sigreg_learn_and_resume_exactly(
    overrides: tuple[str, ...], saved: set[str], manifest: Path, tmp_path: Path
) -> None:
    """Cut off after any checkpoint, as a kill does it; and what is evaluated is the average."""
    config = tiny_config(tmp_path, manifest, *overrides, "optim.steps=20")
    run, cut = tmp_path / "run", tmp_path / "cut"
    pretrain.run(config, run)
    shutil.copytree(run, cut)
    for step in (15, 20):
        shutil.rmtree(cut / "checkpoints" / f"step_{step:08d}")
    assert pretrain.run(config, cut).step == 20
    whole, again = weights(run, 20), weights(cut, 20)
    assert {name.split(".")[0] for name in whole} == saved
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    assert metrics(run) == metrics(cut)
    lines = [line for line in metrics(run) if line["kind"] == "train"]
    values = [line.get("sigreg", line["loss"]) for line in lines]
    assert np.mean(values[-3:]) < np.mean(values[:3])
    encoder = load_encoder(run)
    assert (encoder.config.cls, encoder.config.attention) == (True, "block_causal")
    assert torch.equal(encoder.cls_token, whole["target_encoder.cls_token"])


def test_online_probe_is_measured_while_training(manifest: Path, tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        manifest,
        f"online_probe.manifest={manifest}",
        "online_probe.label=motion",
        "online_probe.every_steps=10",
        "optim.steps=20",
    )
    pretrain.run(config, tmp_path / "run")
    probes = [line for line in metrics(tmp_path / "run") if line["kind"] == "evaluation"]
    assert [line["step"] for line in probes] == [0, 10, 20], "what it learns is held against this"
    assert probes[0]["online_probe/count"] == 11


def test_released_training_goes_on_as_if_it_had_never_stopped(
    golden_dir: Path, manifest: Path, tmp_path: Path
) -> None:
    """Weights, moments and step of the authors' file: the next update uses all three."""
    released = golden_dir / "pretrain_tiny.pth.tar"
    config = tiny_config(
        tmp_path,
        manifest,
        "model.encoder={depth: 3, image_size: 64, num_frames: 16, patch_size: 16}",
        "model.predictor.depth=2",
        "data.clip.num_frames=16",
        "data.transform.crop_size=64",
        f"continue_from.path={released}",
        "training.checkpoint_every_steps=1",
        "training.log_every_steps=1",
        "optim.steps=5",
    )
    result = pretrain.run(config, tmp_path / "run")
    assert result.step == 5
    assert [line["step"] for line in metrics(tmp_path / "run") if line["kind"] == "train"] == [5]
    before = load_model(released, num_heads=3).encoder.state_dict()
    after = load_model(tmp_path / "run").encoder.state_dict()
    moved = {k: float((after[k] - before[k]).abs().max()) for k in before}
    assert max(moved.values()) < 0.01, "one update"
    assert min(v for k, v in moved.items() if "weight" in k) > 0
    state = torch.load(released, weights_only=True)["opt"]["state"]
    assert {int(entry["step"]) for entry in state.values()} == {4}


@pytest.mark.parametrize(("keep", "first"), [("true", 41), ("false", 1)])
def test_our_checkpoint_goes_on_at_its_step_and_weights_alone_at_zero(
    keep: str, first: int, finished: Path, manifest: Path, tmp_path: Path
) -> None:
    start = f"continue_from={{path: {finished}, keep_optimizer: {keep}}}"
    config = tiny_config(tmp_path, manifest, start, f"optim.steps={first + 1}")
    assert pretrain.run(config, tmp_path / "run").step == first + 1
    train = [line for line in metrics(tmp_path / "run") if line["kind"] == "train"]
    assert train[0]["first_step"] == first


def test_training_starts_from_everything_that_is_read(manifest: Path, tmp_path: Path) -> None:
    """Sizes come from the source, whatever the config says; weights alone need no state."""
    # The authors' file has no place for an input of its own.
    finished = tmp_path / "finished"
    pretrain.run(tiny_config(tmp_path, manifest, "data.normalisation=model"), finished)
    convert(finished, tmp_path / "folder")
    convert(finished, tmp_path / "file.pth.tar")
    for source in ("folder", "file.pth.tar", "demo", finished / "checkpoints" / "step_00000040"):
        start = source if source == "demo" else tmp_path / source
        keep = ("continue_from.keep_optimizer=false",) if start == source else ()
        other = ("model.encoder.width=24", "model.predictor.width=12", "optim.steps=1", *keep)
        config = tiny_config(
            tmp_path, manifest, f"continue_from={start}", "continue_from.num_heads=3", *other
        )
        run = tmp_path / f"run of {Path(start).name}"
        assert pretrain.run(config, run).step == 1
        before, after = load_model(start, num_heads=3), load_model(run)
        assert after.config == before.config
        old, new = before.predictor.state_dict(), after.predictor.state_dict()
        moved = max(float((new[name] - old[name]).abs().max()) for name in old)
        assert 0 < moved < 0.01, "one update"
        if source == "folder":
            shutil.rmtree(start)
            assert pretrain.run(config, run).step == 1, "a resume does not need it any more"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optim.steps=40",), "stands after 40 updates, and optim.steps is 40.*keep_optimizer f"),
        (
            (
                "continue_from.input_size=config",
                "model.encoder.image_size=20",
                "model.encoder.patch_size=4",
                "data.transform.crop_size=20",
            ),
            "image_size: 20 must be",
        ),
        (("masking.masks=[{}]", "continue_from=nowhere"), "nowhere: no such.*demo"),
        (("continue_from.num_heads=7",), "heads, not 7; leave num_heads out"),
        (("continue_from={path: demo, step: 9}",), "step: .*demo is weights alone, which start"),
    ],
)
def test_what_cannot_be_continued_is_told(
    overrides: tuple[str, ...], message: str, finished: Path, manifest: Path, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path, manifest, f"continue_from={finished}", *overrides)
    with pytest.raises(UserError, match=message):
        pretrain.run(config, tmp_path / "run")


def test_weights_train_on_at_another_size(finished: Path, manifest: Path, tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        manifest,
        "continue_from.keep_optimizer=false",
        f"continue_from={finished}",
        "continue_from.input_size=config",
        "model.encoder.image_size=48",
        "data.transform.crop_size=48",
        "optim.steps=1",
    )
    pretrain.run(config, tmp_path / "run")
    assert load_encoder(tmp_path / "run").config.grid == (2, 6, 6)


def test_other_sizes_in_a_folder_without_a_checkpoint_are_taken(
    finished: Path, manifest: Path, tmp_path: Path
) -> None:
    start = (f"continue_from={finished}", "continue_from.input_size=config")
    for side in (64, 32):
        sides = (f"model.encoder.image_size={side}", f"data.transform.crop_size={side}")
        config = sized_as_source(tiny_config(tmp_path, manifest, *start, *sides), tmp_path)
        assert config.model.encoder.image_size == side
        (tmp_path / "config.yaml").write_text(dump_yaml(config))


Change = Callable[[Path], tuple[str, ...]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.sources=[]",), "data.sources is empty"),
        (("data.sources.0.manifest=nowhere.parquet",), "nowhere.parquet"),
        (("data.sources.0.split=nosuch",), "nosuch"),
        (("data.clip.num_frames=8",), "model.encoder.num_frames is 4"),
        (("data.transform.crop_size=64",), "model.encoder.image_size is 32"),
        (("optim.accumulation_steps=3",), "not a multiple of optim.accumulation_steps"),
        (("masking.masks=[{}, {}, {}]",), "num_mask_tokens is 2 but masking.masks has 3 kinds"),
        (("continue_from.path=nowhere",), "nowhere"),
        (("objective.name=levjepa",), "model.encoder.cls: must be true for LeVJEPA"),
        (
            ("objective.name=pixel", "objective.sigreg_coefficient=0.1"),
            "objective.sigreg_coefficient: 0.1 is for name vjepa; pixel does not use it",
        ),
        ((*LEVJEPA, "objective.levjepa.local_size=12"), "local_size: 12 must be a multiple of"),
        (("objective.levjepa.dropped=0.5",), "levjepa: has no effect without objective.name levj"),
        (("objective.context_weight=1",), "context_weight: has no effect without model.predictor."),
        (
            ("objective.name=pixel", "objective.context_by_distance=false"),
            "context_by_distance: has no effect without model.predictor.predicts_context",
        ),
        ((*LEVJEPA, "optim.accumulation_steps=2"), "accumulation_steps: 2, but LeVJEPA compares"),
        (
            ("objective.sigreg_coefficient=1", "optim.accumulation_steps=2"),
            "FeaturePrediction compares the clips of a whole batch: use 1",
        ),
    ],
)
def test_bad_input_is_one_error_and_claims_nothing(
    overrides: tuple[str, ...], message: str, manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        pretrain.run(tiny_config(tmp_path, manifest, *overrides), tmp_path / "run")
    pretrain.run(tiny_config(tmp_path, manifest, "optim.steps=1"), tmp_path / "run")


def test_a_run_that_ended_is_made_longer(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By time or by updates; what changes in the schedules is said, also by `show run`."""
    out = tmp_path / "run"
    config = tiny_config(tmp_path, manifest, "optim.steps=4", "training.max_minutes=0.00001")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_used", lambda self, *_: self._completed / 2)
        first = pretrain.run(config, out)
    assert (first.step, first.out_of_time, first.interrupted) == (2, True, False)
    assert status_of(read_run(out)).state == "done: training.max_minutes 1e-05 are over"
    second = pretrain.run(tiny_config(tmp_path, manifest, "optim.steps=4"), out)
    assert (second.step, second.out_of_time) == (4, False)
    assert status_of(read_run(out)).state == "done: all updates are done"
    with caplog.at_level(logging.INFO, logger="vjepa"):
        assert pretrain.run(tiny_config(tmp_path, manifest, "optim.steps=8"), out).step == 8
    rate = learning_rate(5, OptimConfig(steps=8, warmup_steps=4))
    assert "of 8 updates instead of 4; at update 5: learning rate " in caplog.text
    assert f" -> {rate:.3g}, " in caplog.text
    assert "s an update: 8 updates are done in about" in caplog.text
    assert [line["step"] for line in metrics(out) if line["kind"] == "train"][-2:] == [6, 8]
    with pytest.raises(UserError, match=r"optim.steps: 6, but the run has done 8 updates"):
        pretrain.run(tiny_config(tmp_path, manifest, "optim.steps=6"), out)
    with pytest.raises(UserError, match=r"another config .*seed: 3 -> 4"):
        pretrain.run(tiny_config(tmp_path, manifest, "optim.steps=9", "seed=4"), out)


def test_a_run_that_takes_too_long_is_stopped_and_may_begin_again(
    manifest: Path, tmp_path: Path
) -> None:
    """Without a checkpoint there is nothing to resume, so the config is free."""
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"longer than training.longest_hours 1e-09"):
        pretrain.run(tiny_config(tmp_path, manifest, "training.longest_hours=1e-9"), out)
    assert not (out / "checkpoints" / "step_00000002").exists()
    assert pretrain.run(tiny_config(tmp_path, manifest, "optim.steps=2", "seed=5"), out).step == 2


@pytest.mark.parametrize(
    ("recipe", "gigabytes", "remedy"),
    [
        ("vits16_224", 16.0, r"needs about \d\d\.\d GB .*use --optim\.accumulation_steps \d+ \("),
        ("vith16_384", 16.0, r"training.max_gigabytes allows 16.0 GB; use a smaller recipe or"),
    ],
)
def test_a_run_that_cannot_fit_is_refused_before_anything_is_allocated(
    recipe: str, gigabytes: float, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VJEPA, "__init__", lambda *_: pytest.fail("weights were made"))
    overrides = [f"training.max_gigabytes={gigabytes}", "data.sources.0.manifest=none.parquet"]
    config = load_config(PretrainConfig, [recipe], [*overrides, "training.device=cpu"], "pretrain")
    with pytest.raises(UserError, match=remedy):
        pretrain.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_parts_that_memory_asks_for_divide_the_images_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain_room, "memory_needed", lambda *given: {"clips": 1e9 / given[3]})
    images = "data.images={batch_size: 2, sources: [{manifest: x.parquet}]}"
    for gigabytes, found in ((0.6, True), (0.3, False)):  # in 2 parts, and in 4
        more = ["data.batch_size=8", images, f"training.max_gigabytes={gigabytes}"]
        config = load_config(PretrainConfig, ["small"], [*more, _NO_WORKERS], "pretrain")
        with pytest.raises(UserError) as caught:
            check_room(config, tmp_path, torch.device("cpu"), ProcessGroup())
        assert ("accumulation_steps" in str(caught.value)) == found


@pytest.mark.parametrize(
    ("recipe", "changes", "measured"),
    [
        ("small", _TWO_MASKS, 0.900),
        ("vits16_224", ["data.batch_size=6", *_SMALL_CLIPS], 1.349),
        ("vitb16_224", ["data.batch_size=2", *_SMALL_CLIPS], 2.487),
        ("vits16_224", ["data.batch_size=1", *_SMALL_CLIPS[:2]], 1.761),
        ("small", [*_TWO_MASKS, _BFLOAT16], 0.766),
        ("vits16_224", ["data.batch_size=6", *_SMALL_CLIPS, _BFLOAT16], 1.307),
    ],
)
def test_the_estimate_is_near_what_was_measured(
    recipe: str, changes: list[str], measured: float
) -> None:
    """Peak of resident memory over two updates on a CPU, less that before them (2026-11-28)."""
    config = load_config(PretrainConfig, [recipe], changes, "pretrain")
    parts = config.optim.accumulation_steps
    needed = memory_needed(config, torch.device("cpu"), 1, parts, False)
    assert sum(needed.values()) / 1e9 == pytest.approx(measured, rel=0.25)


def test_what_the_loader_takes_is_counted_where_it_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "vjepa")
    for workers, said in ((0, False), (2, True)):
        caplog.clear()
        changes = [*_TWO_MASKS, f"data.loader.num_workers={workers}", "data.batch_size=40"]
        config = load_config(PretrainConfig, ["small"], changes, "pretrain")
        check_room(config, tmp_path, torch.device("cpu"), ProcessGroup())
        assert ("workers 0.4, clips that wait 0." in caplog.text) == said


def test_what_a_smaller_machine_needs_may_change_when_a_run_goes_on(finished: Path) -> None:
    """The remedies for too little memory, too few hours or bad videos, in a run that has begun."""
    stored = load_config(PretrainConfig, [finished / "config.yaml"])
    less = {"activation_checkpointing": True, "max_gigabytes": 3.0, "longest_hours": 2.0}
    asked = replace(stored, training=replace(stored.training, **less))
    assert check_same_run(asked, finished) == stored
    patient = {"max_bad_fraction": 0.5, "max_retries": 20, "sample_timeout_seconds": 600.0}
    loader = replace(stored.data.loader, **patient, min_bad_videos=40, max_worker_gigabytes=9.0)
    asked = replace(stored, data=replace(stored.data, loader=loader))
    assert check_same_run(asked, finished) == stored
    other = replace(stored, training=replace(stored.training, precision="bfloat16"))
    with pytest.raises(UserError, match="holds a run with another config"):
        check_same_run(other, finished)


def test_a_run_does_not_go_on_with_other_videos(manifest: Path, tmp_path: Path) -> None:
    """Nor is it held up where its manifest was indexed anew, or labelled; or cannot be compared."""
    videos, out = Manifest.open(manifest), tmp_path / "run"

    def train(steps: int, given: Manifest) -> int:
        given.write(tmp_path / "mine.parquet")
        config = tiny_config(tmp_path, tmp_path / "mine.parquet", f"optim.steps={steps}")
        return pretrain.run(config, out).step

    assert train(1, videos) == 1
    fewer = videos.take(np.arange(40))
    with pytest.raises(UserError, match=r"begun with other videos.*mine\.parquet holds now"):
        train(2, fewer)
    labelled = videos.table.drop_columns([f"label.{name}" for name in videos.label_names])
    assert train(2, Manifest(labelled, manifest.parent)) == 2
    config = out / "checkpoints" / "step_00000002" / "config.json"
    about = json.loads(config.read_text())
    assert len(about.pop("videos_hashes")) == 1
    config.write_text(json.dumps(about))
    (config.parent / "manifest.json").unlink()
    write_manifest(config.parent)  # as a version of before left it
    assert train(3, fewer) == 3


def test_a_folder_of_something_else_is_refused(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds nothing of `vjepa pretrain`"):
        pretrain.run(tiny_config(tmp_path, manifest), tmp_path / "run")
    assert (tmp_path / "run" / "thesis.tex").read_text() == "mine"


def test_a_truncated_checkpoint_stops_the_resume(manifest: Path, tmp_path: Path) -> None:
    pretrain.run(tiny_config(tmp_path, manifest, "optim.steps=5"), tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step_00000005" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        pretrain.run(tiny_config(tmp_path, manifest, "optim.steps=5"), tmp_path / "run")


def test_a_manifest_of_bad_videos_only(tmp_path: Path, manifest: Path) -> None:
    """The files were good when they were indexed and are gone now."""
    other = write_set(tmp_path)
    for video in (tmp_path / "set" / "train").glob("*.mp4"):
        video.write_bytes(b"")
    with pytest.raises(UserError, match=r"(?i)video"):
        pretrain.run(tiny_config(tmp_path, other), tmp_path / "run")
