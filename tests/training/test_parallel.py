"""How several processes train together: settings, and one process alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.toy import ToyTask
from torch import nn

from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.plan import ClipConfig
from vjepa.jobs.pretrain import DataConfig, ObjectiveConfig, PretrainConfig, build_task
from vjepa.masking import MaskConfig, MaskingConfig
from vjepa.models import Encoder, EncoderConfig, LinearClassifier, ModelConfig, PredictorConfig
from vjepa.runtime.device import DeviceSetup
from vjepa.runtime.distributed import ProcessGroup
from vjepa.tasks import Detection, FineTuning, LeVJEPAConfig, Task
from vjepa.training.parallel import DistributedConfig, choose_strategy, num_shards, parallelise

_CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shard_size": 0, "strategy": "fsdp"}, "^shard_size must be at least 1"),
        ({"shard_size": 2}, "^shard_size: is used by strategy fsdp only"),
        ({"timeout_minutes": 0.0}, "^timeout_minutes must be above 0"),
    ],
)
def test_impossible_settings_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistributedConfig(**fields)


def test_auto_is_ddp_on_the_cpu() -> None:
    assert choose_strategy(ToyTask(), DistributedConfig(), _CPU) == "ddp"
    fsdp = DistributedConfig(strategy="fsdp")
    assert choose_strategy(ToyTask(), fsdp, _CPU) == "fsdp"


def test_weights_are_counted_in_as_many_parts_as_they_are_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu, auto = torch.device("cuda", 0), DistributedConfig()
    of_80_gb = type("Properties", (), {"total_memory": 80e9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: of_80_gb)
    assert [num_shards(auto, 8, gpu, size) for size in (39e9, 41e9)] == [1, 8]
    assert choose_strategy(ToyTask(), auto, gpu) == "ddp"
    assert num_shards(auto, 8, _CPU, 41e9) == 1
    assert num_shards(DistributedConfig(strategy="fsdp", shard_size=4), 8, gpu, 1.0) == 4
    assert num_shards(DistributedConfig(strategy="ddp"), 8, gpu, 41e9) == 1


_SIZES: dict[str, Any] = {"width": 24, "depth": 2, "heads": 2, "image_size": 16, "patch_size": 4}
_TWO_ONE = EncoderConfig(
    **_SIZES, num_frames=4, position="rotary_pairs", levels=(0, 1), modalities=True, cls=True
)
_LEVELS = replace(_TWO_ONE, modalities=False, cls=False)
_CAUSAL = EncoderConfig(**_SIZES, num_frames=4, cls=True, attention="block_causal")
_PLAIN = replace(_CAUSAL, cls=False, attention="full")


def _pretraining(encoder: EncoderConfig, dense: bool = False, **objective: Any) -> Task:
    return build_task(
        PretrainConfig(
            model=ModelConfig(
                encoder=encoder,
                predictor=PredictorConfig(width=24, depth=1, predicts_context=dense),
            ),
            masking=MaskingConfig(masks=(MaskConfig(num_blocks=1, spatial_scale=(0.2, 0.2)),) * 2),
            objective=ObjectiveConfig(**objective),
            data=DataConfig(
                batch_size=2,
                clip=ClipConfig(num_frames=4),
                transform=TransformConfig(crop_size=16),
            ),
        )
    )


_SMALL_VIEWS = LeVJEPAConfig(local_views=1, local_size=8, dropped=0.5, directions=8)


@pytest.mark.parametrize(
    ("build", "has_unused"),
    [
        (lambda: FineTuning(Encoder(_TWO_ONE), LinearClassifier(24, 3), final_norm=True), True),
        (lambda: FineTuning(Encoder(_CAUSAL), LinearClassifier(24, 3), final_norm=True), True),
        (lambda: FineTuning(Encoder(_PLAIN), LinearClassifier(24, 3), final_norm=True), False),
        (lambda: Detection(nn.Linear(48, 3), Encoder(_TWO_ONE)), True),
        (lambda: Detection(nn.Linear(48, 3), Encoder(_CAUSAL)), True),
        (lambda: Detection(nn.Linear(48, 3), Encoder(_PLAIN)), False),
        (lambda: _pretraining(_LEVELS), True),
        (lambda: _pretraining(_LEVELS, dense=True), True),
        (lambda: _pretraining(_PLAIN, dense=True), False),
        (lambda: _pretraining(_PLAIN, dense=True, name="pixel"), True),
        (lambda: _pretraining(_TWO_ONE, name="levjepa", levjepa=_SMALL_VIEWS), True),
        (lambda: _pretraining(_CAUSAL, name="levjepa", levjepa=_SMALL_VIEWS), False),
    ],
)
def test_a_task_says_whether_weights_take_no_part(
    build: Callable[[], Task], has_unused: bool
) -> None:
    """DDP must know: it waits for every gradient."""
    task, classes = build(), torch.eye(3)[:2]
    clips, boxes = torch.randn(2, 3, 4, 16, 16), torch.tensor([[0.0, 0, 0, 9, 9], [1, 2, 2, 16, 9]])
    if isinstance(task, FineTuning):
        given: tuple[Any, ...] = clips, classes
    elif isinstance(task, Detection):
        given = clips, boxes, classes
    else:
        pixels = (127 + 50 * clips).clamp(0, 255).byte()
        given = task.inputs(SimpleNamespace(clips=pixels, ordinals=np.arange(2), step=0), 0, 1)
    task(*given).loss.backward()
    unused = [n for n, p in task.named_parameters() if p.requires_grad and p.grad is None]
    assert (bool(unused), task.has_unused) == (has_unused, has_unused), unused


def test_alone_the_task_is_called_as_it_is() -> None:
    config = DistributedConfig(strategy="fsdp")
    assert parallelise(ToyTask(), ProcessGroup(), config, DeviceSetup(_CPU, "float32")) is None
