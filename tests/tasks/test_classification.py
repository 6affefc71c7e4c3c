from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from vjepa.tasks import Classification


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.first(inputs), self.second(inputs)])


def test_one_classifier_has_the_mean_cross_entropy() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    task = Classification(layer)
    inputs, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])
    output = task(inputs, labels)
    assert torch.allclose(output.loss, F.cross_entropy(layer(inputs), labels))
    top1 = (layer(inputs).argmax(1) == labels).float().mean()
    assert torch.equal(output.terms["top1"], top1)
    assert set(output.terms) == {"cross_entropy", "top1"}
    assert not any(value.requires_grad for value in output.terms.values())
    assert task.trainable() == {"classifier": layer}
    assert task.ema_pairs() == []


def test_each_head_gets_the_gradient_that_it_would_get_alone() -> None:
    torch.manual_seed(0)
    heads = _Two()
    task = Classification(heads, {"a": heads.first, "b": heads.second})
    assert list(task.trainable()) == ["a", "b"]
    inputs, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 2, 1, 0])
    output = task(inputs, labels)
    output.loss.backward()
    both = heads.second.weight.grad
    alone = torch.autograd.grad(F.cross_entropy(heads.second(inputs), labels), heads.second.weight)[
        0
    ]
    assert both is not None
    assert torch.allclose(both, alone, atol=1e-7)
    entropies = torch.stack([F.cross_entropy(row, labels) for row in heads(inputs)])
    assert torch.allclose(output.terms["cross_entropy"], entropies.mean())
    assert torch.allclose(output.terms["cross_entropy_best"], entropies.min())
    assert output.terms["top1_best"] >= output.terms["top1"]


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    torch.manual_seed(0)
    task = Classification(_Two())
    batch = SimpleNamespace(tokens=torch.randn(9, 4), labels=torch.arange(9) % 3)
    parts = [task.inputs(batch, part, 2) for part in range(2)]
    assert [len(labels) for _, labels, _ in parts] == [4, 5]
    assert torch.equal(torch.cat([tokens for tokens, _, _ in parts]), batch.tokens)
    whole = task(*task.inputs(batch, 0, 1))
    outputs = [task(*inputs) for inputs in parts]
    torch.testing.assert_close(sum(output.loss for output in outputs), whole.loss)
    for name in ("cross_entropy", "top1"):
        torch.testing.assert_close(sum(o.terms[name] for o in outputs), whole.terms[name])


def test_several_labels_a_sample() -> None:
    torch.manual_seed(0)
    layer, truth = nn.Linear(4, 3), (torch.rand(5, 3) > 0.5).float()
    task = Classification(layer)
    inputs = torch.randn(5, 4)
    output = task(*task.inputs(SimpleNamespace(tokens=inputs, labels=truth), 0, 1))
    wanted = F.binary_cross_entropy_with_logits(layer(inputs), truth)
    torch.testing.assert_close(output.loss, wanted)
    assert set(output.terms) == {"cross_entropy"}
