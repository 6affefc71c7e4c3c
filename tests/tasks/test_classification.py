from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vjepa.tasks.classification import ClassificationObjective


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.first(inputs), self.second(inputs)])


def test_one_classifier_has_the_mean_cross_entropy() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    objective = ClassificationObjective(layer)
    inputs, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])
    output = objective(inputs, labels)
    assert torch.allclose(output.loss, F.cross_entropy(layer(inputs), labels))
    top1 = (layer(inputs).argmax(1) == labels).float().mean()
    assert torch.equal(output.metrics["top1"], top1)
    assert set(output.metrics) == {"cross_entropy", "top1"}
    assert not any(value.requires_grad for value in output.metrics.values())
    assert objective.trainable() == {"classifier": layer}
    assert objective.ema_pairs() == []


def test_each_head_gets_the_gradient_that_it_would_get_alone() -> None:
    torch.manual_seed(0)
    heads = _Two()
    objective = ClassificationObjective(heads, {"a": heads.first, "b": heads.second})
    assert list(objective.trainable()) == ["a", "b"]
    inputs, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 2, 1, 0])
    output = objective(inputs, labels)
    output.loss.backward()
    both = heads.second.weight.grad
    alone = torch.autograd.grad(F.cross_entropy(heads.second(inputs), labels), heads.second.weight)[
        0
    ]
    assert both is not None
    assert torch.allclose(both, alone, atol=1e-7)
    entropies = torch.stack([F.cross_entropy(row, labels) for row in heads(inputs)])
    assert torch.allclose(output.metrics["cross_entropy"], entropies.mean())
    assert torch.allclose(output.metrics["cross_entropy_best"], entropies.min())
    assert output.metrics["top1_best"] >= output.metrics["top1"]
