"""How several processes train together: settings, and one process alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.training.toy import ToyObjective

from vjepa.runtime.device import DeviceSetup
from vjepa.runtime.distributed import Team
from vjepa.training.parallel import DistributedConfig, choose_strategy, parallelise

_CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shard_size": 0, "strategy": "fsdp"}, "^shard_size: must be at least 1"),
        ({"shard_size": 2}, "^shard_size: is used by strategy fsdp only"),
        ({"timeout_minutes": 0.0}, "^timeout_minutes: must be above 0"),
    ],
)
def test_impossible_settings_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistributedConfig(**fields)


def test_auto_is_ddp_on_the_cpu() -> None:
    assert choose_strategy(ToyObjective(), DistributedConfig(), _CPU) == "ddp"
    fsdp = DistributedConfig(strategy="fsdp")
    assert choose_strategy(ToyObjective(), fsdp, _CPU) == "fsdp"


def test_alone_the_objective_is_called_as_it_is() -> None:
    objective = ToyObjective(dropout=0.0)
    config = DistributedConfig(strategy="fsdp")
    parallel = parallelise(objective, Team(), config, DeviceSetup(_CPU, "float32"))
    inputs = torch.randn(2, 6)
    assert parallel.ddp is None
    with parallel.accumulating(last=False):
        assert torch.equal(parallel(inputs).loss, objective(inputs).loss)
