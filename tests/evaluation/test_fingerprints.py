from __future__ import annotations

import pytest
import torch
from torch import nn

from vjepa.evaluation.frozen import settings_hash, weights_hash


def test_one_changed_bit_changes_the_hash() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    twin = nn.Linear(4, 3)
    assert weights_hash(layer) != weights_hash(twin)
    twin.load_state_dict(layer.state_dict())
    assert weights_hash(layer) == weights_hash(twin)
    with torch.no_grad():
        twin.bias[0] = torch.nextafter(twin.bias[0], torch.tensor(9.0))
    assert weights_hash(layer) != weights_hash(twin)


def test_names_shapes_and_types_count() -> None:
    first = nn.ParameterDict({"a": torch.zeros(2, 3)})
    assert weights_hash(first) != weights_hash(nn.ParameterDict({"b": torch.zeros(2, 3)}))
    assert weights_hash(first) != weights_hash(nn.ParameterDict({"a": torch.zeros(3, 2)}))
    assert weights_hash(first) != weights_hash(
        nn.ParameterDict({"a": torch.zeros(2, 3, dtype=torch.float64)})
    )
    assert weights_hash(nn.ParameterDict({"a": torch.zeros((), dtype=torch.bfloat16)}))


def test_settings_hash_ignores_order_only() -> None:
    assert settings_hash({"a": 1, "b": [1, 2]}) == settings_hash({"b": [1, 2], "a": 1})
    assert settings_hash({"a": 1}) != settings_hash({"a": 2})
    with pytest.raises(ValueError):
        settings_hash({"a": float("nan")})
