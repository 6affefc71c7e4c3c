from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vjepa.evaluation.heads import HeadConfig, ProbeHeads, build_head

FORMS = [
    HeadConfig(),
    HeadConfig(variant="paper"),
    HeadConfig(depth=3),
    HeadConfig(variant="paper", depth=2, num_heads=1),
    HeadConfig(kind="linear"),
    HeadConfig(kind="linear", norm=False),
]


def _heads(config: HeadConfig, count: int) -> ProbeHeads:
    torch.manual_seed(0)
    heads = ProbeHeads([build_head(config, 12, 3, 5) for _ in range(count)])
    with torch.no_grad():  # no parameter at 0 or 1, so that none can be forgotten
        for parameter in heads.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return heads


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels)


@pytest.mark.parametrize("config", FORMS, ids=str)
def test_joint_computation_equals_each_head_alone(config: HeadConfig) -> None:
    heads = _heads(config, 3).double()
    tokens = torch.randn(4, 7, 12, dtype=torch.float64)
    labels = torch.tensor([0, 4, 2, 2])
    joint = heads(tokens)
    assert joint.shape == (3, 4, 5)
    torch.stack([_loss(row, labels) for row in joint]).sum().backward()
    gradients = {name: p.grad for name, p in heads.named_parameters()}
    heads.zero_grad(set_to_none=True)
    for index, head in enumerate(heads.heads):
        alone = head(tokens)
        assert torch.allclose(alone, joint[index], atol=1e-12)
        _loss(alone, labels).backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None
        assert gradients[name] is not None, name
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-12), name


@pytest.mark.parametrize("config", FORMS, ids=str)
def test_every_parameter_takes_part(config: HeadConfig) -> None:
    """Except the parts whose true gradient is zero: softmax ignores what all tokens share."""
    heads = _heads(config, 2)
    tokens = torch.randn(4, 7, 12)
    heads(tokens).square().sum().backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0.0, name


def test_features_kept_in_bfloat16_are_read_in_float32() -> None:
    heads = _heads(HeadConfig(), 1)
    tokens = torch.randn(2, 7, 12).to(torch.bfloat16)
    assert heads(tokens).dtype == torch.float32
    assert torch.equal(heads(tokens), heads(tokens.float()))


def test_names_of_the_heads() -> None:
    heads = _heads(HeadConfig(), 2)
    assert list(heads.trainable()) == ["head_00", "head_01"]
    assert len(heads) == 2


def test_heads_of_several_forms_are_computed_each_by_its_own_kind() -> None:
    torch.manual_seed(0)
    forms = [HeadConfig(kind="linear"), HeadConfig(), HeadConfig(depth=2)]
    heads = ProbeHeads([build_head(form, 12, 3, 5) for form in forms for _ in range(2)])
    tokens = torch.randn(4, 7, 12)
    for joint, head in zip(heads(tokens), heads.heads, strict=True):
        torch.testing.assert_close(joint, head(tokens), atol=1e-5, rtol=0.0)
    with pytest.raises(ValueError, match="at least one"):
        ProbeHeads([])


def test_number_of_attention_heads_is_the_encoders_by_default() -> None:
    head = build_head(HeadConfig(), 12, 4, 5)
    assert isinstance(head.pooler, nn.Module)
    assert head.pooler.heads == 4
    assert build_head(HeadConfig(num_heads=2), 12, 4, 5).pooler.heads == 2
    with pytest.raises(ValueError, match="heads"):
        build_head(HeadConfig(num_heads=5), 12, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth"),
        ({"num_heads": 0}, "num_heads"),
        ({"kind": "linear", "depth": 2}, "depth"),
    ],
)
def test_impossible_forms(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}\b"):
        HeadConfig(**arguments)
