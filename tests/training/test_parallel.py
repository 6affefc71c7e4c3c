"""How several processes train together: settings, and one process alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.training.toy import ToyTask

from vjepa.runtime.device import DeviceSetup
from vjepa.runtime.distributed import ProcessGroup
from vjepa.training.parallel import DistributedConfig, choose_strategy, parallelise

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


def test_alone_the_task_is_called_as_it_is() -> None:
    config = DistributedConfig(strategy="fsdp")
    assert parallelise(ToyTask(), ProcessGroup(), config, DeviceSetup(_CPU, "float32")) is None
