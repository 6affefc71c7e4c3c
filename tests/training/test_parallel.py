"""How several processes train together: settings, and one process alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.training.toy import ToyTask

from vjepa.runtime.device import DeviceSetup
from vjepa.runtime.distributed import ProcessGroup
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


def test_alone_the_task_is_called_as_it_is() -> None:
    config = DistributedConfig(strategy="fsdp")
    assert parallelise(ToyTask(), ProcessGroup(), config, DeviceSetup(_CPU, "float32")) is None
