"""Training of V-JEPA 2 and 2.1: the authors' cool-down from their file, and the loss of 2.1."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.golden.golden_files import LOSSES, tensors
from tests.golden.vjepa2_files import TWO_ONE, encoder_of_two_one, predictor_of_two_one, read
from torch import Tensor
from torch.testing import assert_close

from vjepa.checkpoint import start_training
from vjepa.cli.main import main
from vjepa.config import load_config, to_dict
from vjepa.data.loader.loader import ClipBatch, beside
from vjepa.demo.synthetic import SyntheticConfig
from vjepa.demo.synthetic_files import synthesise
from vjepa.errors import UserError
from vjepa.evaluation.preprocess import load_model
from vjepa.jobs.pretrain import PretrainConfig, build_loader, build_task
from vjepa.masking import TokenMasks
from vjepa.models import VJEPA
from vjepa.runtime.distributed import ProcessGroup, open_process_group
from vjepa.tasks import BatchSize, DensePrediction, FeaturePrediction, Output
from vjepa.tasks.masked_prediction import normalise_features
from vjepa.training import EmaConfig, OptimConfig, TrainingConfig, build_learner, train_step
from vjepa.training.schedules import learning_rate

COOLDOWN = OptimConfig(
    steps=3,
    warmup_steps=0,
    peak_lr=5.25e-4,
    learning_rate_schedule="linear",
    start_weight_decay=0.04,
    final_weight_decay=0.04,
    clip_norm=None,
)


class TwoLengths(FeaturePrediction):
    """The recorded batch: clips of 8 frames with mask token 0, their first 4 with token 1."""

    def forward(
        self, clips: Tensor, masks: tuple[TokenMasks, ...], size: BatchSize | None = None
    ) -> Output:
        losses = []
        for token, frames in enumerate((8, 4)):
            seen = clips[:, :, :frames]
            targets = normalise_features(self.target_encoder(seen).detach())
            for mask in masks[2 * token : 2 * token + 2]:
                tokens = self.encoder(seen, mask.context)
                grid = (frames // 2, 4, 4)
                predicted = self.predictor(tokens, mask.context, mask.target, token, grid=grid)
                losses.append((predicted - mask.gather_target(targets)).abs().mean())
        return Output(torch.stack(losses).mean(), {})


def test_cool_down_from_the_authors_file(golden_dir: Path) -> None:
    recorded = tensors(golden_dir / "vjepa2", "v2_cooldown_3_steps")
    clip = tensors(golden_dir / "vjepa2", "v2_forward")["input/clip"]
    path = golden_dir / "vjepa2" / "v2_pretrain_tiny.pt"
    model = load_model(path, num_heads=2)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    task = TwoLengths(model)
    momentum = EmaConfig(start_momentum=0.99925, final_momentum=0.99925)
    training = TrainingConfig(device="cpu", num_threads=1)
    learner = build_learner(task, COOLDOWN, momentum, training)
    with open_process_group("cpu", 1) as group:
        step, _ = start_training(path, task.saved_modules(), learner.optimizer, None, group)
    assert step == 2
    for update in range(1, 4):
        masks = tuple(
            TokenMasks(
                *(
                    recorded[f"masks/{update - 1}/frames{n}/{kind}/{of}"]
                    for of in ("context", "target")
                )
            )
            for n in (8, 4)
            for kind in (0, 1)
        )
        values = train_step(learner, [(clip, masks, None)], update)
        assert_close(values.values["loss"].double(), recorded["loss"][update - 1], **LOSSES)
        rate = learner.optimizer.param_groups[0]["lr"]
        assert rate == pytest.approx(recorded["lr"][update - 1].item(), abs=1e-12)
    compared = 0
    for name, theirs in recorded.items():
        if name.startswith("after_3/"):
            own = name.removeprefix("after_3/").replace("/", ".")
            ours = model.state_dict()[own]
            if not own.startswith("target_encoder"):
                assert (theirs - start[own]).abs().max() > 1e-5 or "mask_tokens" in own
            if own.endswith("qkv.bias"):
                ours, theirs = (torch.cat([t.chunk(3)[0], t.chunk(3)[2]]) for t in (ours, theirs))
            assert_close(ours, theirs, atol=1e-6, rtol=0, msg=own)
            compared += 1
    assert compared > 40


def test_schedules_of_the_released_recipe() -> None:
    """The cool-down's stretched line stops on its way; the phase before it is flat."""
    line = OptimConfig(
        steps=12_000, warmup_steps=0, peak_lr=5.25e-4, learning_rate_schedule="linear"
    )
    assert learning_rate(12_000, line) == pytest.approx(1.058e-4, rel=1e-3)
    flat = OptimConfig(start_lr=1e-4, peak_lr=5.25e-4, learning_rate_schedule="constant")
    assert [learning_rate(k, flat) for k in (6_000, 12_000, 90_000)] == [3.125e-4, 5.25e-4, 5.25e-4]


def test_dense_loss(golden_dir: Path) -> None:
    later = tensors(golden_dir / "vjepa2", "v2_1_forward")
    clip = tensors(golden_dir / "vjepa2", "v2_forward")["input/clip"]
    content, model = read(golden_dir, "v2_1_pretrain_tiny.pt"), VJEPA(TWO_ONE)
    model.encoder = encoder_of_two_one(content["encoder"], TWO_ONE.encoder)
    model.target_encoder = encoder_of_two_one(content["target_encoder"], TWO_ONE.encoder)
    model.predictor = predictor_of_two_one(content["predictor"], TWO_ONE)
    masks = {
        kind: TokenMasks(*(later[f"masks/{kind}/{of}"] for of in ("context", "target")))
        for kind in ("short", "long")
    }
    weighted = DensePrediction(model)
    plain = DensePrediction(model, by_distance=False)
    assert_close(weighted.targets(clip), later["target/levels_normed"], atol=2e-5, rtol=0)
    for kind, mask in masks.items():
        assert_close(weighted.distance(mask), later[f"distance/{kind}"], atol=1e-6, rtol=0)
        for task, name in ((weighted, "context_weighted"), (plain, "context_plain")):
            out = task(clip, [mask])
            hidden = later[f"loss/{kind}/targets"]
            assert_close(out.terms["loss/mask_0"], hidden, **LOSSES)
            assert_close(out.terms["loss/context"], later[f"loss/{kind}/{name}"], **LOSSES)
            assert_close(out.loss, hidden + 0.5 * out.terms["loss/context"], **LOSSES)
    assert [weighted.weight_at(k) for k in (15_000, 22_500, 40_000)] == [0.0, 0.25, 0.5]


@torch.no_grad()
def test_dense_loss_of_images_beside_clips(golden_dir: Path) -> None:
    """Images take the path of images, encoder and predictor both, and their share of the loss."""
    later = tensors(golden_dir / "vjepa2", "v2_1_forward")
    clip = tensors(golden_dir / "vjepa2", "v2_forward")["input/clip"]
    content, model = read(golden_dir, "v2_1_pretrain_tiny.pt"), VJEPA(TWO_ONE)
    model.encoder = encoder_of_two_one(content["encoder"], TWO_ONE.encoder)
    model.target_encoder = encoder_of_two_one(content["target_encoder"], TWO_ONE.encoder)
    model.predictor = predictor_of_two_one(content["predictor"], TWO_ONE)
    task = DensePrediction(model, image_share=0.25)
    still, mask = clip[:, :, :1], TokenMasks(later["image/context"], later["image/target_ids"])
    clips = TokenMasks(*(later[f"masks/short/{of}"] for of in ("context", "target")))
    alone, both = task(clip, [clips]), task(clip, [clips], None, still, [mask])
    levels = later["image/t1_levels"].unflatten(-1, (4, -1))
    target = torch.nn.functional.layer_norm(levels, (32,), eps=1e-5).flatten(2)
    predicted = {of: later[f"image/predictor/training/{of}"] for of in ("targets", "context")}
    wanted = {}
    for of, places in (("targets", mask.target), ("context", mask.context)):
        gathered = target.gather(1, places[..., None].expand(-1, -1, target.shape[-1]))
        wanted[of] = (predicted[of] - gathered).abs()
    hidden = wanted["targets"].mean()
    context = (wanted["context"] / task.distance(mask)[..., None]).mean()
    assert_close(both.terms["images/loss/mask_0"], hidden, atol=5e-6, rtol=0)
    assert_close(both.terms["images/loss/context"], context, atol=5e-6, rtol=0)
    whole = 0.75 * alone.loss + 0.25 * (hidden + 0.5 * context)
    assert_close(both.loss, whole, atol=5e-6, rtol=0)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = SyntheticConfig(
        num_clips_train=8, num_clips_validation=1, num_clips_test=1, num_frames=6, size=32
    )
    return synthesise(config, tmp_path_factory.mktemp("videos") / "set", workers=1)[0]


@pytest.mark.parametrize(
    ("name", "with_images"),
    [
        ("v2_pretrain_tiny.pt", False),
        ("v2_1_pretrain_tiny.pt", False),
        ("v2_1_pretrain_tiny.pt", True),
        ("hf_base_tiny", False),
    ],
)
def test_training_continues_from_files_of_others(
    name: str, with_images: bool, golden_dir: Path, manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = {
        "continue_from.path": golden_dir / "vjepa2" / name,
        "continue_from.input_size": "config",
        "continue_from.step": "0",
        "continue_from.keep_optimizer": "null",
        "model.encoder.image_size": "32",
        "model.encoder.num_frames": "4",
        "model.encoder.patch_size": "16",
        "data.clip.num_frames": "4",
        "data.clip.stride": "null",
        "data.clip.fps": "4",
        "data.transform.crop_size": "32",
        "data.sources.0.manifest": manifest,
        "data.batch_size": "4",
        "data.loader.num_workers": "1",
        "optim.steps": "2",
        "optim.learning_rate_schedule": "linear",
        "optim.warmup_steps": "0",
        "training.device": "cpu",
        "training.num_threads": "1",
        "training.health_every_steps": "null",
    }
    if not name.startswith("hf"):
        settings["continue_from.num_heads"] = "2"
    if with_images:  # one frame of each video, and fewer of them than clips
        settings |= {"data.images.sources.0.manifest": manifest, "data.images.batch_size": "2"}
        settings["data.batch_size"] = "8"
    options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    assert main(["pretrain", "--out", str(out), *options]) == 0
    if with_images:
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert any("images/loss/mask_0" in line for line in lines)
    model = load_model(out)
    assert model.config.encoder.is_rotary
    assert (model.config.encoder.image_size, model.config.encoder.num_frames) == (32, 4)


def test_images_beside_clips_are_the_same_after_a_resume(manifest: Path) -> None:
    """Every part of a batch is a function of the step; a model without image patches refuses."""
    values = {
        "data.sources": [{"manifest": manifest}],
        "data.images": {"sources": [{"manifest": manifest}], "batch_size": 6},
        "data.batch_size": 4,
        "data.clip.num_frames": 4,
        "data.transform.crop_size": 32,
        "data.loader.num_workers": 0,
        "model.encoder.num_frames": 4,
        "model.encoder.image_size": 32,
    }
    config = load_config(PretrainConfig, [], values)

    def read(start: int) -> list[ClipBatch]:
        loaders = (build_loader(config, None, ProcessGroup(), of_images=o) for o in (False, True))
        with ExitStack() as stack:
            both = [stack.enter_context(closing(loader)) for loader in loaders]
            return list(beside(*both)(start, 2))

    whole, later = read(0), read(1)
    assert [batch.images.clips.shape for batch in whole] == [(6, 3, 1, 32, 32)] * 2
    assert torch.equal(whole[1].images.clips, later[0].images.clips)
    assert torch.equal(whole[1].clips, later[0].clips)
    with pytest.raises(UserError, match=r"data\.images: is for V-JEPA 2\.1"):
        build_task(config)


def test_a_distilled_model_cannot_go_on() -> None:
    """Its predictions are of another encoder's features."""
    model = replace(TWO_ONE, predictor=replace(TWO_ONE.predictor, levels=1, out_width=48))
    values = {"data.clip.num_frames": 8, "data.transform.crop_size": 64, "model": to_dict(model)}
    with pytest.raises(UserError, match=r"towards features of another encoder .* continue from"):
        build_task(load_config(PretrainConfig, [], values))
