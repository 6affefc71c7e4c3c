from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from vjepa.evaluation.heads import NearestMean, NearestNeighbours

VECTORS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [-1.0, 0.0]])
LABELS = torch.tensor([0, 1, 1, 2])


def _tokens(vector: list[float]) -> torch.Tensor:
    """[1, 2, D] whose mean is the vector."""
    middle = torch.tensor(vector)
    return torch.stack([middle + 1.0, middle - 1.0])[None]


def test_votes_are_weighted_by_similarity() -> None:
    head = NearestNeighbours(2, 3, neighbours=3, temperature=0.5, num_stored=4)
    head.fit(VECTORS, LABELS)
    shares = head(_tokens([1.0, 1.0])).exp()[0]
    # Cosines: sqrt(1/2) to the first three, of which two are of class 1.
    assert torch.allclose(shares, torch.tensor([1 / 3, 2 / 3, 0.0]), atol=1e-6)
    nearest = NearestNeighbours(2, 3, neighbours=1, temperature=0.5, num_stored=4)
    nearest.fit(VECTORS, LABELS)
    assert int(nearest(_tokens([-5.0, 0.1])).argmax()) == 2


def test_more_neighbours_than_videos() -> None:
    head = NearestNeighbours(2, 3, neighbours=99, temperature=0.1, num_stored=4)
    head.fit(VECTORS, LABELS)
    shares = head(_tokens([3.0, 0.0])).exp()[0]
    weights = torch.tensor([math.exp(10.0), 2.0, math.exp(-10.0)])
    assert torch.allclose(shares, weights / weights.sum(), atol=1e-6)


def test_length_of_a_feature_does_not_matter() -> None:
    head = NearestMean(2, 3, temperature=0.1)
    head.fit(VECTORS, LABELS)
    assert torch.allclose(head.means, torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    logits = head(_tokens([3.0, 4.0]))
    assert torch.allclose(logits, torch.tensor([[6.0, 8.0, -6.0]]))
    assert torch.allclose(head(_tokens([30.0, 40.0])), logits)


def test_the_mean_is_of_directions() -> None:
    head = NearestMean(2, 1, temperature=1.0)
    head.fit(torch.tensor([[100.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    assert torch.allclose(head.means[0], F.normalize(torch.tensor([1.0, 1.0]), dim=0))
