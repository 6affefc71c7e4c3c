"""What runs on a GPU runs on a pretended one, nothing on a wrong device, and the host never waits.

``test_places_that_may_wait`` lists the places that do wait, with the reason for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.gpu_rehearsal.pretended_gpu import GPU, HostWaitsError, is_on_gpu, on_meta, pretended_gpu
from tests.models.tiny import ENCODER, IMAGE_ENCODER, MODEL
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from vjepa.config import load_config
from vjepa.errors import UserError
from vjepa.evaluation.evaluate import averaged_probabilities
from vjepa.evaluation.frozen import encode_clips
from vjepa.evaluation.heads import NearestMean, NearestNeighbours, ProbeHeads
from vjepa.jobs import pretrain_room
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.masking import MaskingConfig, MaskSampler, TokenMasks
from vjepa.models import (
    VJEPA,
    AttentiveClassifier,
    AttentivePooler,
    Encoder,
    LinearClassifier,
    Predictor,
    position_code,
)
from vjepa.models.encoder import FrameEncoder
from vjepa.runtime.device import DeviceSetup, Precision
from vjepa.runtime.distributed import ProcessGroup
from vjepa.tasks import LeVJEPA, LeVJEPAConfig
from vjepa.tasks.classification import Classification
from vjepa.tasks.feature_prediction import FeaturePrediction
from vjepa.tasks.pixel_prediction import PixelPrediction
from vjepa.tasks.task import Task
from vjepa.training import preflight
from vjepa.training import step as step_module
from vjepa.training.guards import SpikeGate
from vjepa.training.optim import EmaPairs, build_optimizer
from vjepa.training.schedules import EmaConfig, OptimConfig
from vjepa.training.window import LogWindow

SETTINGS: tuple[tuple[str, Precision], ...] = (
    ("prefix", "bfloat16"),
    ("fixed", "float32"),
    ("packed", "float32"),
    ("packed", "bfloat16"),
)
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
COUNTS = ("prefix", "fixed", "packed")
BATCH = 4
SIZE = (4, 16, 16)


def _video(frames: int = 4, side: int = 16) -> Tensor:
    return torch.empty(BATCH, 3, frames, side, side, device=GPU)


def _sampler(count: str) -> MaskSampler:
    return MaskSampler(MaskingConfig(count=count), ENCODER.grid, ENCODER.tubelet_size, 0)


def _masks(count: str) -> tuple[TokenMasks, ...]:
    masks = _sampler(count).sample(np.arange(BATCH), 0)
    return tuple(mask.map(lambda indices: indices.to(GPU, non_blocking=True)) for mask in masks)


def _loaded(count: int = BATCH) -> SimpleNamespace:
    """What the loader gives for pretraining, in the host's memory."""
    clips = torch.zeros(count, 3, *SIZE, dtype=torch.uint8, device="cpu")
    return SimpleNamespace(clips=clips, ordinals=np.arange(count), step=0)


def _autocast(precision: Precision) -> torch.autocast:
    return torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bfloat16")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_encoder(precision: Precision) -> None:
    encoder = on_meta(lambda: Encoder(ENCODER))
    with pretended_gpu(encoder), _autocast(precision):
        assert is_on_gpu(encoder(_video()), *encoder(_video(), layers=[0, 1]))
        assert encoder(_video(8, 32)).shape == (BATCH, 4 * 64, ENCODER.width)
        for count in COUNTS:
            for mask in _masks(count):
                tokens = encoder(_video(), mask.context, offsets=mask.context_offsets)
                assert is_on_gpu(tokens)
                assert tokens.shape == (*mask.context.shape, ENCODER.width)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_image_encoder_over_frames(precision: Precision) -> None:
    image_encoder = on_meta(lambda: Encoder(IMAGE_ENCODER))
    encoder = FrameEncoder(image_encoder, IMAGE_ENCODER, frames_at_once=3)
    with pretended_gpu(encoder), _autocast(precision):
        assert is_on_gpu(encoder(_video()), image_encoder(_video(1, 32)))


@pytest.mark.parametrize(("count", "precision"), SETTINGS)
def test_predictor(count: str, precision: Precision) -> None:
    predictor = on_meta(lambda: Predictor(ENCODER, MODEL.predictor))
    with pretended_gpu(predictor), _autocast(precision):
        for kind, mask in enumerate(_masks(count)):
            context = torch.empty(*mask.context.shape, ENCODER.width, device=GPU)
            offsets = {
                "context_offsets": mask.context_offsets,
                "target_offsets": mask.target_offsets,
            }
            out = predictor(context, mask.context, mask.target, kind, **offsets)
            assert is_on_gpu(out)
            assert out.shape == (*mask.target.shape, ENCODER.width)


def _feature_prediction(count: str) -> Task:
    return FeaturePrediction(VJEPA(MODEL), 2.0, 0.1, _sampler(count), BATCH)


def _pixel_prediction(count: str) -> Task:
    return PixelPrediction(MODEL, _sampler(count), BATCH)


def _regularised(count: str) -> Task:
    model = VJEPA(MODEL)
    return FeaturePrediction(
        model, sampler=_sampler(count), batch_size=BATCH, sigreg_coefficient=0.1
    )


def _levjepa(attention: str) -> Task:
    sizes = replace(ENCODER, cls=True, attention=attention)
    return LeVJEPA(sizes, LeVJEPAConfig(local_views=2, local_size=8, dropped=0.5), 0, BATCH)


PRETRAINING = (_feature_prediction, _pixel_prediction, _regularised)


@pytest.mark.parametrize(("count", "precision"), SETTINGS)
@pytest.mark.parametrize("build", PRETRAINING)
def test_pretraining(build: Callable[[str], Task], count: str, precision: Precision) -> None:
    health = _rehearse(on_meta(lambda: build(count)), precision)
    assert "explained_vs_mean_token" in health


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_pretraining_by_views(attention: str, precision: Precision) -> None:
    assert "embedding_std" in _rehearse(on_meta(lambda: _levjepa(attention)), precision)


def _rehearse(task: Task, precision: Precision) -> Mapping[str, Tensor]:
    """From what the loader gives to loss, terms and health."""
    with pretended_gpu(task):
        for part in range(2):
            inputs = task.inputs(_loaded(), part, 2)
            with _autocast(precision):
                output = task(*inputs)
            assert is_on_gpu(output.loss, *output.terms.values())
            assert output.loss.dtype == torch.float32
            assert output.loss.requires_grad
        with torch.no_grad(), _autocast(precision):
            health = task.health(_loaded(), 3, ProcessGroup())
        assert {"target_std", "effective_rank"} <= health.keys()
        # Numbers that come from shapes are on the host already.
        known = ("context_tokens/", "target_tokens/", "context_share/", "target_share/")
        assert is_on_gpu(*(v for name, v in health.items() if not name.startswith(known)))
        return health


def _heads() -> ProbeHeads:
    """A grid as a probe trains it: two kinds, several depths and variants."""
    return ProbeHeads(
        [
            AttentiveClassifier(24, 3, 5),
            AttentiveClassifier(24, 3, 5),
            AttentiveClassifier(24, 3, 5, depth=2, variant="paper"),
            LinearClassifier(24, 5),
            LinearClassifier(24, 5, norm=True),
        ]
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("build", [_heads, lambda: LinearClassifier(24, 5)])
@pytest.mark.parametrize("multi_label", [False, True])
def test_probe_heads_in_training(
    build: Callable[[], nn.Module], precision: Precision, *, multi_label: bool
) -> None:
    task = on_meta(lambda: Classification(build()))
    labels = torch.zeros(BATCH, dtype=torch.int64)
    if multi_label:
        labels = torch.zeros(BATCH, 5)
    with pretended_gpu(task):
        batch = SimpleNamespace(tokens=torch.zeros(BATCH, 32, 24, device="cpu"), labels=labels)
        inputs = task.inputs(batch, 0, 2)
        with _autocast(precision):
            output = task(*inputs)
        assert is_on_gpu(output.loss, *output.terms.values())


def test_heads_alone_and_pooling_with_several_queries() -> None:
    modules = [
        on_meta(lambda: AttentiveClassifier(24, 3, 5, depth=2)),
        on_meta(lambda: AttentivePooler(24, 3, num_queries=4, variant="paper")),
        on_meta(lambda: NearestNeighbours(24, 5, 3, 0.1, 10)),
        on_meta(lambda: NearestMean(24, 5, 0.1)),
    ]
    with pretended_gpu(*modules):
        tokens = torch.empty(BATCH, 32, 24, device=GPU)
        assert is_on_gpu(*(module(tokens) for module in modules))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_encoding(precision: Precision) -> None:
    encoder = on_meta(lambda: Encoder(ENCODER))
    with pretended_gpu(encoder):
        clips = torch.zeros(BATCH, 3, *SIZE, dtype=torch.uint8, device="cpu")
        tokens = encode_clips(encoder, clips, precision)
        assert is_on_gpu(tokens)
        assert tokens.dtype == torch.float32


@pytest.mark.parametrize(("count", "precision"), SETTINGS)
def test_a_whole_update(count: str, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward passes, clipping, verdict on the loss, optimiser, moving average: no number is read.

    The backward pass is replaced by gradients of the right shape.
    """
    task = on_meta(lambda: _feature_prediction(count))
    optim = OptimConfig(accumulation_steps=2)

    def pretend_gradients(loss: Tensor) -> None:
        assert is_on_gpu(loss)
        for parameter in task.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None

    monkeypatch.setattr(Tensor, "backward", pretend_gradients)
    with pretended_gpu(task):
        trained = task.trainable()
        learner = step_module.Learner(
            task=task,
            ddp=None,
            modules=trained,
            optimizer=build_optimizer(trained, optim),
            pairs=EmaPairs.of(task.ema_pairs()),
            optim=optim,
            ema=EmaConfig(),
            setup=DeviceSetup(GPU, precision),
            group=ProcessGroup(),
            spikes=SpikeGate(3.0, GPU),
        )
        for update in (1, 2):
            parts = [task.inputs(_loaded(), part, 2) for part in range(2)]
            values = step_module.train_step(learner, parts, update)
            assert is_on_gpu(values.finite, values.spike, *values.values.values())
        assert {"loss", "loss/mask_0", "loss/mask_1", "grad_norm/encoder"} <= values.values.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_that_is_read_or_a_tensor_elsewhere_is_found(dtype: torch.dtype) -> None:
    """The rehearsal itself: it would see what it looks for."""
    with pretended_gpu():
        numbers = torch.empty(3, dtype=dtype, device=GPU)
        with pytest.raises(DataDependentOutputException):
            int(numbers.max())
        with pytest.raises(HostWaitsError, match="from cuda:0 to cpu"):
            numbers.cpu()
        with pytest.raises(HostWaitsError, match="from cpu to cuda:0"):
            torch.zeros(3, device="cpu").to(GPU)
        with pytest.raises(RuntimeError, match="at least two devices"):
            numbers + torch.zeros(3, dtype=dtype, device="cpu")


def _log_window() -> LogWindow:
    window, one = LogWindow(), torch.empty((), device=GPU)
    window.add(step_module.StepValues(1, {"loss": one}, one > 0, one > 0), _loaded(), 0.0)
    return window


def _probabilities_of_videos() -> object:
    outputs = torch.empty(BATCH, 2, 3, 5, device=GPU).mean(dim=2)
    return averaged_probabilities(nn.Identity(), outputs)


MAY_WAIT: dict[str, Callable[[], object]] = {
    # One transfer for all updates since the last log line.
    "LogWindow.read": lambda: _log_window().read(ProcessGroup()),
    # Before a checkpoint and after the last update: a bad one must not be saved as good.
    "LogWindow.last_was_applied": lambda: _log_window().last_was_applied(),
    # A checkpoint holds the losses of the median.
    "SpikeGate.state": lambda: SpikeGate(3.0, GPU).state(),
    # Once when a model is built, loaded or rebuilt for a size.
    "position_code": lambda: position_code(ENCODER, ENCODER.width, GPU),
    # One transfer a batch: measures are exact sums in float64 on the host.
    "averaged_probabilities": _probabilities_of_videos,
}
"""Where the host waits for the device, and why it may.

Besides, features that are stored or shown leave the device once a batch (`encode_rows`,
`encode_files`, the online probe): that is their purpose.
"""


@pytest.mark.parametrize(
    ("recipe", "gigabytes", "fits"), [("small", 8, True), ("vits16_224", 24, False)]
)
def test_what_a_gpu_lacks_is_said_before_the_first_step_with_what_would_fit(
    recipe: str,
    gigabytes: int,
    fits: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (gigabytes * 10**9, 8e10))
    monkeypatch.setattr(preflight, "available_bytes", lambda: 64 * 10**9)
    caplog.set_level("INFO", "vjepa")

    def check(*changes: str) -> None:
        config = load_config(PretrainConfig, [recipe], changes, "pretrain")
        pretrain_room.check_room(config, tmp_path, GPU, ProcessGroup())

    if fits:
        check()
        assert f"{gigabytes}.0 GB are free on the GPU" in caplog.text
    else:
        with pytest.raises(
            UserError, match=f"but {gigabytes}.0 GB are free on the GPU; "
        ) as refused:
            check()
        for remedy in str(refused.value).partition("; use ")[2].split(", or ")[:-1]:
            options, size = remedy.rstrip(" GB)").split(" (")
            caplog.clear()
            check(*("=".join(pair.split()) for pair in options.split("--")[1:]))
            assert f"needs about {size} GB" in caplog.text
    assert "GB of the machine's memory for reading clips" in caplog.text


class _EightOfOneMachine(ProcessGroup):
    def gather(self, value: object) -> list:
        return [value] * self.size


def test_what_processes_read_with_lies_in_the_memory_that_they_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8e10, 8e10))
    monkeypatch.setattr(preflight, "available_bytes", lambda: 3 * 10**9)
    changes = ("data.batch_size=40", "data.loader.num_workers=2", "distributed.strategy=ddp")
    config = load_config(PretrainConfig, ["small"], changes, "pretrain")
    pretrain_room.check_room(config, tmp_path, GPU, ProcessGroup())
    with pytest.raises(UserError, match=r"clips, but 0\.4 GB are free for each process; use fewer"):
        pretrain_room.check_room(config, tmp_path, GPU, _EightOfOneMachine(size=8))


@pytest.mark.parametrize("name", MAY_WAIT)
def test_places_that_may_wait(name: str) -> None:
    with pretended_gpu(), pytest.raises((HostWaitsError, DataDependentOutputException)):
        MAY_WAIT[name]()  # a place that does not wait any more leaves the list
