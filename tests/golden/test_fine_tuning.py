"""Fine-tuning against numbers of public programs: updates, layer rates, mixing, losses, views."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tests.golden.golden_files import TINY, plain_names, tensors, tiny_checkpoint
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from vjepa.data.clips.plan import ClipConfig, clip_indices
from vjepa.data.clips.segments import segment_indices
from vjepa.data.clips.source import FrameSource
from vjepa.data.clips.views import OPERATIONS, ViewConfig, operate, plan_views
from vjepa.data.loader.sampler import SampleOrder
from vjepa.models import PRESETS, Encoder, LinearClassifier
from vjepa.tasks import FineTuning, layer_scale
from vjepa.tasks.fine_tuning import Mixture, cutmix, keep_factors, mixed, smoothed
from vjepa.training import OptimConfig, TrainingConfig, build_learner, train_step

OPTIM = OptimConfig(
    steps=6,
    warmup_steps=2,
    start_lr=1e-6,
    peak_lr=2e-3,
    final_lr=1e-6,
    schedule_stretch=1.0,
    start_weight_decay=0.05,
    final_weight_decay=0.05,
    clip_norm=None,
)
RATES = np.array([0.0, 0.1, 0.2])


@pytest.fixture(scope="module")
def folder(golden_dir: Path) -> Path:
    return golden_dir / "finetune"


@pytest.fixture(scope="module")
def recorded(folder: Path) -> dict[str, Tensor]:
    return tensors(folder, "train_steps")


def _task(golden_dir: Path, recorded: dict[str, Tensor], norm: str, **options: float) -> FineTuning:
    """The tiny encoder and a head whose norm is fresh, the encoder's, or none."""
    encoder = Encoder(TINY.encoder)
    stored = tiny_checkpoint(golden_dir)["target_encoder"]
    encoder.load_state_dict(plain_names(stored, "pos_embed"))
    head = LinearClassifier(TINY.encoder.width, 6, norm=norm != "none", norm_eps=1e-6)
    head.linear.load_state_dict({k: recorded[f"initial/head.{k}"] for k in ("weight", "bias")})
    if norm == "fresh":
        head.norm.load_state_dict({k: recorded[f"initial/fc_norm.{k}"] for k in ("weight", "bias")})
    elif norm == "encoder":
        head.norm.load_state_dict(encoder.norm.state_dict())
    if norm != "none":
        encoder.norm.requires_grad_(False)
    return FineTuning(encoder, head, final_norm=norm == "none", **options)


def _full_name(name: str) -> str:
    """A recorded parameter's name in our task."""
    if name.startswith("fc_norm."):
        return "head.norm." + name.removeprefix("fc_norm.")
    return "head.linear." + name[5:] if name.startswith("head.") else f"encoder.{name}"


def _batch(golden_dir: Path, recorded: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    clips = tensors(golden_dir, "pretrain_forward")["input/clip"]
    pairs = [clips[0], clips[0].flip(-1), clips[1], clips[1].flip(-1)]
    return torch.stack(pairs), recorded["input/labels"].long()


def _mixtures(folder: Path, side: int) -> list[Mixture]:
    with safe_open(folder / "train_steps.safetensors", "pt") as file:
        told = json.loads(file.metadata()["mix"])
    made = {"mixup": lambda e: Mixture(e["lam"]), "none": lambda _: Mixture(1.0)}
    made["cutmix"] = lambda e: cutmix(side, side, e["lam"], *e["centre_yx"])
    return [made[entry["kind"]](entry) for entry in told]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("run", ["plain", "regularised"])
def test_six_updates(
    golden_dir: Path, folder: Path, recorded: dict[str, Tensor], run: str, parts: int
) -> None:
    """In one go, and accumulated over halves of the batch: the same numbers."""
    task = _task(golden_dir, recorded, "fresh", layer_decay=0.75)
    start = {name: value.clone() for name, value in task.state_dict().items()}
    clips, labels = _batch(golden_dir, recorded)
    optim = OptimConfig(**{**vars(OPTIM), "accumulation_steps": parts})
    learner = build_learner(task, optim, None, TrainingConfig(device="cpu", num_threads=1))
    for step, mixture in enumerate(_mixtures(folder, clips.shape[-1])):
        video, targets = mixed(clips, smoothed(labels, 6, 0.1), [mixture], 4)
        assert_close(targets, recorded[f"{run}/targets/{step}"], atol=1e-6, rtol=0)
        dropped = kept = None
        if run == "regularised":
            keep = recorded["regularised/drop_path_keep"][step].float()
            dropped = keep / torch.from_numpy(1 - RATES).float()[:, None, None]
            kept = recorded["regularised/head_keep"][step].float() / 0.5
        with torch.no_grad():
            tokens = task.encoder(video, branch_scale=dropped, final_norm=False)
            logits = task.head(tokens, kept)
        assert_close(logits, recorded[f"{run}/logits/{step}"], atol=1e-5, rtol=0)
        size = 4 // parts
        cuts = [slice(part * size, (part + 1) * size) for part in range(parts)]
        inputs = [
            (
                video[cut],
                targets[cut],
                None if dropped is None else dropped[..., cut],
                None if kept is None else kept[cut],
                4,
            )
            for cut in cuts
        ]
        values = train_step(learner, inputs, step + 1).values
        assert_close(values["loss"].double(), recorded[f"{run}/loss"][step].double(), **_LOSS)
        norm = torch.stack([values["grad_norm/encoder"], values["grad_norm/head"]]).norm()
        assert float(norm) == pytest.approx(float(recorded[f"{run}/grad_norm"][step]), rel=1e-4)
        rate = max(group["lr"] for group in learner.optimizer.param_groups)
        assert rate == pytest.approx(float(recorded[f"{run}/lr"][step]), abs=1e-12)
    state, compared = task.state_dict(), 0
    for name, theirs in recorded.items():
        if name.startswith(f"{run}/after_6/"):
            own = _full_name(name.rpartition("/")[2])
            ours = state[own]
            assert (theirs - start[own]).abs().max() > 1e-6, name
            if name.endswith("qkv.bias"):  # the keys' third has no true gradient
                ours, theirs = (torch.cat([t.chunk(3)[0], t.chunk(3)[2]]) for t in (ours, theirs))
            assert_close(ours, theirs, atol=1e-5, rtol=0, msg=name)
            compared += 1
    assert compared == 42


_LOSS = {"atol": 1e-6, "rtol": 0.0}


@pytest.mark.parametrize(
    ("norm", "name"),
    [
        ("fresh", "mean_then_fresh_norm"),
        ("none", "final_norm_then_mean"),
        ("encoder", "mean_then_final_norm"),
    ],
)
def test_three_readouts(
    golden_dir: Path, recorded: dict[str, Tensor], norm: str, name: str
) -> None:
    task = _task(golden_dir, recorded, norm)
    clips = tensors(golden_dir, "pretrain_forward")["input/clip"]
    with torch.no_grad():
        logits = task.head(task.encoder(clips, final_norm=task.final_norm))
    assert_close(logits, recorded[f"readout/{name}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["tiny_fc_norm", "tiny_final_norm_beit"])
def test_layer_rates_and_weight_decay_of_every_parameter(
    golden_dir: Path, folder: Path, recorded: dict[str, Tensor], name: str
) -> None:
    wanted = json.loads((folder / "layer_decay.json").read_text())[name]["parameters"]
    norm = "fresh" if name == "tiny_fc_norm" else "none"
    task = _task(golden_dir, recorded, norm, layer_decay=0.75)
    learner = build_learner(task, OPTIM, None, TrainingConfig(device="cpu", num_threads=1))
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in learner.optimizer.param_groups
        for parameter in group["params"]
    }
    told = {
        _full_name(name): (entry["lr_scale"], entry["weight_decay"])
        for name, entry in wanted.items()
    }
    assert found.keys() == told.keys()
    for full, pair in told.items():
        assert found[full] == pytest.approx(pair, abs=1e-12), full


@pytest.mark.parametrize(("preset", "depth"), [("vitb16", 12), ("vitl16", 24), ("vith16", 32)])
def test_layer_rates_by_depth(folder: Path, preset: str, depth: int) -> None:
    wanted = json.loads((folder / "layer_decay.json").read_text())["by_layer"][str(depth)]
    assert PRESETS[preset].depth == depth
    blocks = [layer_scale(f"encoder.blocks.{i}.attn.qkv.weight", depth, 0.75) for i in range(depth)]
    assert blocks == pytest.approx(wanted["blocks"], abs=1e-12)
    embedding = layer_scale("encoder.patch_embed.proj.weight", depth, 0.75)
    assert embedding == pytest.approx(wanted["patch_embed"], abs=1e-12)
    assert layer_scale("encoder.cls_token", depth, 0.75) == embedding, "it is there from the start"
    for last in ("encoder.norm.weight", "head.norm.bias", "head.linear.weight"):
        assert layer_scale(last, depth, 0.75) == wanted["norm_and_head"]


def test_drop_path_rates_and_factors(folder: Path) -> None:
    from vjepa.tasks import drop_path

    wanted = json.loads((folder / "drop_path.json").read_text())
    for name, rates in wanted["rates"].items():
        most, depth = name.split("_")
        factors = drop_path(0, np.arange(4000), int(depth), float(most))
        assert factors.shape == (int(depth), 2, 4000)
        values = [sorted(set(block.flatten().tolist())) for block in factors]
        kept = [1 / (1 - rate) for rate in rates]
        assert [value[-1] for value in values] == pytest.approx(kept, abs=1e-6)
        dropped = (factors == 0).double().mean(dim=(1, 2)).tolist()
        assert dropped == pytest.approx(rates, abs=0.03)
    example = wanted["example"]
    kept = keep_factors(0, "x", np.arange(2000), np.array([example["rate"]]))
    pairs = zip(example["input"], example["output"], strict=True)
    allowed = {round(out / x, 5) for x, out in pairs}
    assert {round(value, 5) for value in kept.flatten().tolist()} == allowed


def test_mixed_clips_and_targets(folder: Path) -> None:
    recorded = tensors(folder, "mixup_and_loss")
    clips, labels = recorded["mix/clips"], recorded["mix/labels"].long()
    smooth = smoothed(labels, 6, 0.1)
    cases = {
        "mixup_lam_0.3": Mixture(0.3),
        "cutmix_inside": cutmix(12, 16, 0.75, 6, 8),
        "cutmix_corner": cutmix(12, 16, 0.5, 1, 15),
        "cutmix_tiny": cutmix(12, 16, 0.999, 5, 5),
        "cutmix_all": cutmix(12, 16, 0.0, 6, 8),
    }
    for name, mixture in cases.items():
        made, targets = mixed(clips, smooth, [mixture], 4)
        assert_close(made, recorded[f"mix/{name}/clips"], atol=1e-6, rtol=0, msg=name)
        assert_close(targets, recorded[f"mix/{name}/targets"], atol=1e-6, rtol=0, msg=name)
    compared = 0
    for name, wanted in recorded.items():
        if name.startswith("mix/targets/"):
            _, _, smoothing, share = name.split("/")
            own = smoothed(labels, 6, float(smoothing.removeprefix("smoothing_")))
            ours = Mixture(float(share.removeprefix("lam_"))).targets(own)
            assert_close(ours, wanted, atol=1e-6, rtol=0)
            compared += 1
    assert compared > 2
    with pytest.raises(AssertionError):  # the comparison sees the partner
        assert_close(clips, recorded["mix/cutmix_corner/clips"])


def test_losses_and_gradients_of_soft_targets(golden_dir: Path, folder: Path) -> None:
    recorded = tensors(folder, "mixup_and_loss")
    encoder = Encoder(TINY.encoder)
    task = FineTuning(encoder, LinearClassifier(48, 6))
    compared = 0
    for name, wanted in recorded.items():
        if not name.startswith("loss/soft/lam_"):
            continue
        share = float(name.rpartition("_")[2])
        targets = Mixture(share).targets(smoothed(recorded["mix/labels"].long(), 6, 0.1))
        logits = recorded["loss/logits"].clone().requires_grad_()
        task.encoder.forward = lambda _clips, **_: torch.zeros(4, 1, 48)
        task.head.forward = lambda _tokens, _kept, logits=logits: logits
        loss = task(torch.zeros(4, 1), targets).loss
        loss.backward()
        assert_close(loss, wanted, atol=2e-6, rtol=0)
        gradient = recorded[f"loss/soft_grad/{name.rpartition('/')[2]}"]
        assert_close(logits.grad, gradient, atol=1e-6, rtol=0)
        compared += 1
    assert compared > 1
    smooth = F.cross_entropy(
        recorded["loss/logits"], smoothed(recorded["mix/labels"].long(), 6, 0.1)
    )
    assert_close(smooth, recorded["loss/label_smoothing_timm"], atol=2e-6, rtol=0)


def test_cutmix_boxes(folder: Path) -> None:
    boxes = json.loads((folder / "cutmix_boxes.json").read_text())["boxes"]
    for entry in boxes:
        found = cutmix(
            entry["height"], entry["width"], entry["lam"], entry["centre_y"], entry["centre_x"]
        )
        assert list(found.box) == entry["box_yyxx"]
        assert found.share == pytest.approx(entry["lam_corrected"], abs=1e-12)
    assert len(boxes) > 10


_NAMES = {"Color": "ColorIncreasing", "Contrast": "ContrastIncreasing"}
_NAMES |= {"Brightness": "BrightnessIncreasing", "Sharpness": "SharpnessIncreasing"}
_NAMES |= {"Posterize": "PosterizeIncreasing", "Solarize": "SolarizeIncreasing"}
_NAMES |= {"TranslateX": "TranslateXRel", "TranslateY": "TranslateYRel"}
_OTHER_WAY = ("TranslateX", "TranslateY", "ShearX", "ShearY")


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_rand_augment(folder: Path, name: str) -> None:
    recorded = tensors(folder, "rand_augment_ops")
    frames = recorded["input"].permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    stored = _NAMES.get(name, name)
    compared = 0
    for way, sign in (("plus", 1.0), ("minus", -1.0)):
        key = next((k for k in (f"{stored}/{way}/bicubic", f"{stored}/{way}") if k in recorded), "")
        if key:
            sign = -sign if name in _OTHER_WAY else sign
            ours = operate(name, frames, 0.7, sign, bicubic=True)
            assert ours.dtype == torch.uint8
            off = (ours.permute(0, 2, 3, 1).int() - recorded[key].int()).abs().max()
            assert off <= 1, (key, int(off))
            compared += 1
    assert compared


@pytest.fixture(scope="module")
def views(folder: Path) -> dict:
    return json.loads((folder / "views.json").read_text())


def test_dense_test_views(views: dict) -> None:
    clip = ClipConfig(num_frames=16, stride=4)
    for entry in views["dense_test_5x3"]:
        found = segment_indices(clip, entry["frames"], 25.0, 5, "strided")
        assert found.tolist() == entry["clips"]


def test_uniform_test_views(views: dict) -> None:
    clip = ClipConfig(num_frames=16, sampling="uniform")
    for entry in views["uniform_test_2x3"]:
        found = segment_indices(clip, entry["frames"], 25.0, 2, "centre")
        assert found.tolist() == entry["clips"]


def test_training_clips_dense_and_uniform(views: dict) -> None:
    """Starts come from another generator: spacing and range are compared."""
    dense, uniform = ClipConfig(num_frames=16, stride=4), ClipConfig(sampling="uniform")
    for entry in views["dense_train"]:
        length = entry["frames"]
        found = np.array([clip_indices(dense, length, 25.0, u) for u in (0.0, 0.5, 0.999)])
        for clip in entry["clips"]:
            steps = np.array(clip["indices"]) - clip["indices"][0]
            assert (found - found[:, :1] == steps).all() or length < 65
        assert found.min() >= 0
        assert found.max() < length
    for entry in views["uniform_train"]:
        length = entry["frames"]
        ends = [clip_indices(uniform, length, 25.0, np.full(16, u)) for u in (0.0, 0.999)]
        if length % 16 == 0:  # their parts are whole frames; ours share out the rest as well
            assert (ends[0] <= entry["indices"]).all()
            assert (ends[1] >= entry["indices"]).all()
        assert (np.diff(ends[0]) >= 0).all()
        assert ends[1].max() == length - 1


def test_three_crops_along_the_long_side(views: dict) -> None:
    view = ViewConfig(crop_size=224, num_views=3, placement="strided")
    for entry in views["spatial_crops_short_side_224"]:
        frames = np.zeros((2, entry["height"], entry["width"], 3), dtype=np.uint8)
        plans = plan_views(ClipConfig(num_frames=1, stride=1), view, FrameSource(frames))
        found = np.array([plan.crop[:2] for plan in plans])
        # The released evaluation rounds the step, these programs each place: a pixel at most.
        assert np.abs(found - np.array(entry["crops_top_left"])).max() <= 1
        assert {plan.crop[2:] for plan in plans} == {(224, 224)}


def test_repeated_samples_stand_side_by_side(views: dict) -> None:
    told = views["repeated_batch"]
    order = SampleOrder([3], [1.0], seed=0, clips_per_video=told["samples"])
    slots = order.at(np.arange(6)).slots
    assert slots.tolist() == told["order"]
    partner = Mixture(0.0).clips(torch.arange(6.0)[:, None, None])
    assert partner.flatten().tolist() == told["partner_by_flip"]
