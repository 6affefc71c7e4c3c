"""Linear layers whose bias is added after the product are torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from vjepa.models.linear import Linear


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 5), (5,), (0, 3, 5)])
@pytest.mark.parametrize("width_out", [3, 5, 20])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_a_linear_layer(shape: tuple[int, ...], width_out: int, bias: bool) -> None:
    """Whatever is wide or narrow: the result and all gradients."""
    torch.manual_seed(0)
    layer, inputs = Linear(5, width_out, bias=bias), torch.randn(shape, requires_grad=True)
    found, wanted = layer(inputs), F.linear(inputs, layer.weight, layer.bias)
    assert_close(found, wanted)
    taken = [inputs, *layer.parameters()]
    weights = torch.randn_like(wanted)
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), taken),
        torch.autograd.grad((wanted * weights).sum(), taken),
        strict=True,
    ):
        assert_close(ours, theirs)


def test_other_precisions_are_torchs() -> None:
    layer, inputs = Linear(4, 8), torch.randn(3, 2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(inputs).dtype == torch.bfloat16
        assert torch.equal(layer(inputs), F.linear(inputs, layer.weight, layer.bias))
    assert torch.equal(
        layer.double()(inputs.double()), F.linear(inputs.double(), layer.weight, layer.bias)
    )


def test_adapters_and_initialisation_know_it() -> None:
    assert isinstance(Linear(2, 3), nn.Linear)
    assert list(Linear(2, 3).state_dict()) == list(nn.Linear(2, 3).state_dict())
