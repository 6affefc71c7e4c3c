"""How pixels become the model's input: measured once, part of the model, asked by all."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.jobs.tiny_run import tiny_config, weights, write_set

from vjepa import load_encoder
from vjepa.checkpoint import find_checkpoint, read_config
from vjepa.cli.main import main
from vjepa.config import from_dict
from vjepa.data import Manifest
from vjepa.errors import UserError
from vjepa.jobs import pretrain
from vjepa.models import EncoderConfig, InputConfig, input_content, normalise_clip
from vjepa.reporting.pictures import write_mp4
from vjepa.runtime.distributed import ProcessGroup
from vjepa.tasks import Task
from vjepa.training import Trainer

STEPS = ("optim.steps=2", "optim.warmup_steps=1")
MEASURED = ("data.normalisation=measured", *STEPS)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data"))


def input_of(run: Path) -> InputConfig:
    return read_config(find_checkpoint(run)).model.encoder.input


def test_a_run_measures_its_clips_once_and_its_encoder_keeps_the_numbers(
    manifest: Path, tmp_path: Path
) -> None:
    config, run = tiny_config(tmp_path, manifest, *MEASURED), tmp_path / "run"
    pretrain.run(config, run)
    how = input_of(run)

    group = ProcessGroup()
    with_128 = replace(config, data=replace(config.data, batch_size=128))
    loader = pretrain.build_loader(with_128, None, group)
    (batch,) = loader.batches(0, 1)
    loader.close()
    pixels = batch.clips.numpy().transpose(1, 0, 2, 3, 4).reshape(3, -1) / 255
    np.testing.assert_allclose(how.mean, pixels.mean(1), atol=1e-4)
    np.testing.assert_allclose(how.deviation, pixels.std(1), atol=1e-4)

    encoder = load_encoder(run)
    assert encoder.config.input == how
    seen = encoder.normalise(batch.clips)
    torch.testing.assert_close(seen.mean(), torch.tensor(0.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen.std(), torch.tensor(1.0), atol=1e-2, rtol=0)
    frames = np.full((4, 32, 32, 3), 200, dtype=np.uint8)
    wanted = (200 / 255 - how.mean[1]) / how.deviation[1]
    assert float(encoder.preprocess(frames)[0, 1, 0, 0, 0]) == pytest.approx(wanted, abs=1e-5)

    # What a run has begun with it keeps, whatever is said later.
    pretrain.run(tiny_config(tmp_path, manifest, "data.normalisation=model", *STEPS), run)
    assert input_of(run) == how


def test_what_fails_after_measuring_leaves_a_folder_that_can_be_used_again(
    manifest: Path, tmp_path: Path
) -> None:
    """A video that is bad is noted by the run, not by the measuring before it."""
    rows = Manifest.open(manifest).select(split="train")
    broken = tmp_path / "broken"
    shutil.copytree(Path(rows.path(0)).parents[1], broken)
    for path in sorted((broken / "train").glob("*.mp4"))[::2]:
        path.write_bytes(b"no video any more")
    told = ("data.loader.min_bad_videos=99", *MEASURED)
    config = tiny_config(tmp_path, broken / manifest.name, *told)

    def fails(_: pretrain.PretrainConfig) -> Task:
        raise UserError("no such task")

    with pytest.raises(UserError, match="no such task"):
        pretrain.run(config, tmp_path / "run", fails)
    assert not (tmp_path / "run").exists()
    assert pretrain.run(config, tmp_path / "run").step == 2
    assert (tmp_path / "run" / "bad_videos.jsonl").exists()


def test_given_numbers_are_taken_and_imagenets_are_the_papers(
    manifest: Path, tmp_path: Path
) -> None:
    told = ("data.normalisation=model", *STEPS)
    pretrain.run(tiny_config(tmp_path, manifest, *told), tmp_path / "plain")
    assert input_of(tmp_path / "plain") == InputConfig()
    given = "model.encoder.input.mean=[0.1, 0.2, 0.3]"
    pretrain.run(tiny_config(tmp_path, manifest, *told, given), tmp_path / "given")
    assert input_of(tmp_path / "given").mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("content", ["rgb_without_mean", "change", "rgb_and_change"])
def test_every_content_trains_and_is_measured(manifest: Path, tmp_path: Path, content: str) -> None:
    channels = 6 if content == "rgb_and_change" else 3
    told = (f"model.encoder.channels={channels}", f"model.encoder.input.content={content}")
    pretrain.run(tiny_config(tmp_path, manifest, *told, *MEASURED), tmp_path / "run")
    how = input_of(tmp_path / "run")
    assert len(how.mean) == len(how.deviation) == channels
    assert how.mean[-1] == pytest.approx(0.0, abs=0.05)  # changes cancel out
    assert load_encoder(tmp_path / "run").preprocess(np.zeros((4, 32, 32, 3), np.uint8)).shape == (
        *(1, channels),
        *(4, 32, 32),
    )


def test_contents_are_what_they_say() -> None:
    clips = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    pixels = clips.float()
    without = input_content(clips, InputConfig(content="rgb_without_mean"))
    torch.testing.assert_close(without, pixels - pixels.mean(2, keepdim=True))
    change = input_content(clips, InputConfig(content="change"))
    torch.testing.assert_close(change[:, :, 1:], pixels[:, :, 1:] - pixels[:, :, :-1])
    torch.testing.assert_close(change[:, :, 0], change[:, :, 1])
    six = InputConfig(content="rgb_and_change")
    torch.testing.assert_close(input_content(clips, six), torch.cat([pixels, change], dim=1))
    assert normalise_clip(clips, how=six).shape == (2, 6, 4, 5, 6)
    still = clips[:, :, :1].expand(-1, -1, 4, -1, -1)
    for content in ("rgb_without_mean", "change"):
        assert not input_content(still, InputConfig(content=content)).any()
    assert not input_content(clips[:, :, :1], InputConfig(content="change")).any()


def test_measuring_does_not_depend_on_how_clips_are_shared_out() -> None:
    clips = torch.randint(0, 90, (6, 3, 4, 8, 8), dtype=torch.uint8)
    whole = pretrain.measured(InputConfig(), clips, ProcessGroup())
    turned = pretrain.measured(InputConfig(), clips.flip(0), ProcessGroup())
    assert whole == turned
    flat = torch.full((2, 3, 4, 8, 8), 7, dtype=torch.uint8)
    assert pretrain.measured(InputConfig(), flat, ProcessGroup()).deviation == (0.01,) * 3


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="mean: content rgb has 3 channels, got 2"):
        from_dict(InputConfig, {"mean": [0.5, 0.5]}, "file")
    with pytest.raises(UserError, match="deviation"):
        from_dict(InputConfig, {"deviation": [0.5, 0.5, 0.0]}, "file")
    with pytest.raises(UserError, match=r"channels: input\.content rgb_and_change has 6, got 3"):
        from_dict(EncoderConfig, {"input": {"content": "rgb_and_change"}}, "file")


def test_a_frozen_teacher_shares_its_input_and_becomes_part_of_the_run(
    manifest: Path, tmp_path: Path
) -> None:
    """The student of a pixel model; a resume does not look at the teacher's newer weights."""
    taught, whole, teacher = tmp_path / "taught", tmp_path / "whole", tmp_path / "teacher"
    pixels = tiny_config(tmp_path, manifest, *STEPS, "objective.name=pixel")
    pretrain.run(pixels, teacher)

    def student(steps: int, *more: str) -> pretrain.PretrainConfig:
        named = (f"optim.steps={steps}", "optim.warmup_steps=1", "objective.target=frozen")
        return tiny_config(tmp_path, manifest, *named, f"objective.target_from={teacher}", *more)

    pretrain.run(student(4), whole)
    first = student(4, "training.max_minutes=60")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_used", lambda self, *_: self._completed / 2)
        assert pretrain.run(first, taught).step == 2
    assert input_of(taught) == input_of(teacher)
    pretrain.run(replace(pixels, optim=replace(pixels.optim, steps=3)), teacher)
    pretrain.run(student(4), taught)
    ours, theirs = weights(taught, 4), weights(whole, 4)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    kept = {k.removeprefix("teacher."): v for k, v in ours.items() if k.startswith("teacher.")}
    before = weights(teacher, 2)
    assert kept
    assert all(torch.equal(before[f"encoder.{name}"], tensor) for name, tensor in kept.items())
    found = load_encoder(taught).state_dict()
    assert torch.equal(found["patch_embed.proj.weight"], ours["encoder.patch_embed.proj.weight"])
    teacher.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"target_from: .*no such file.*a resume, which has its w"):
        pretrain.run(student(4), taught)
    (tmp_path / "moved").rename(teacher)
    with pytest.raises(UserError, match=r"target_from: .* they must be the same"):
        pretrain.run(student(4, "model.encoder.patch_size=16"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("objective.target=frozen",), r"objective\.target_from: goes with target frozen"),
        (("objective.target_from=x",), r"objective\.target_from: goes with target frozen"),
        (
            ("objective.target=frozen", "objective.target_from=x", "objective.name=pixel"),
            r"objective\.target: frozen is for name vjepa",
        ),
    ],
)
def test_a_frozen_target_needs_its_encoder(
    overrides: tuple[str, ...], message: str, manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        tiny_config(tmp_path, manifest, *overrides)


@pytest.mark.parametrize("still", [True, False])
def test_videos_in_which_little_moves_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], still: bool
) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), dtype=np.uint8)
    frames = np.repeat(rows, 16, axis=0)
    frames[:, 18:22, 18:22] = np.arange(0, 256, 16, dtype=np.uint8)[:, None, None, None]
    if not still:
        frames = np.stack([np.roll(frame, 5 * time, axis=1) for time, frame in enumerate(frames)])
    for name in ("a", "b", "c", "d"):
        write_mp4(frames, tmp_path / f"{name}.mp4", Fraction(8))
    assert main(["data", "index", str(tmp_path), "--out", str(tmp_path / "videos.parquet")]) == 0
    config = tiny_config(tmp_path, tmp_path / "videos.parquet", *MEASURED)
    source = replace(config.data.sources[0], split=None)
    data = replace(config.data, sources=(source,))
    pretrain.settle_input(replace(config, data=data), tmp_path / "run", ProcessGroup())
    told = re.findall(
        r"little moves: ([\d.]+) %.*model.encoder.input.content=change", capsys.readouterr().err
    )
    assert len(told) == still
    assert all(0 < float(share) < 10 for share in told)
