"""Probes without training: nearest neighbours and nearest class mean on pooled features.

They tell how the features lie without an optimiser's help: no learning rate, no epochs. Both
compare mean tokens by cosine.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NearestNeighbours(nn.Module):
    """A vote of the k most similar training videos, weighted by exp(cosine / temperature).

    The weighted vote of Wu et al. 2018, as DINO evaluates features.

    Attributes:
        bank: float32 [n, D], mean tokens of the training videos, of length 1.
        bank_labels: int64 [n], their class numbers.
    """

    bank: Tensor
    bank_labels: Tensor

    def __init__(
        self, width: int, num_classes: int, neighbours: int, temperature: float, num_stored: int
    ) -> None:
        """Build with an empty bank.

        Args:
            width: Token width D.
            num_classes: Classes.
            neighbours: k; with fewer training videos all of them vote.
            temperature: As above.
            num_stored: n.
        """
        super().__init__()
        self.num_classes, self.neighbours, self.temperature = num_classes, neighbours, temperature
        self.register_buffer("bank", torch.zeros(num_stored, width))
        self.register_buffer("bank_labels", torch.zeros(num_stored, dtype=torch.int64))

    def fit(self, pooled: Tensor, labels: Tensor) -> None:
        """Remember training features float [n, D] and class numbers int64 [n]."""
        self.bank.copy_(F.normalize(pooled.float(), dim=1))
        self.bank_labels.copy_(labels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logarithms of the shares of votes: tokens float [B, N, D] -> [B, classes]."""
        similar = F.normalize(tokens.float().mean(dim=1), dim=1) @ self.bank.T
        best = similar.topk(min(self.neighbours, len(self.bank)), dim=1)
        weights = (best.values / self.temperature).softmax(dim=1)
        votes = weights.new_zeros(len(tokens), self.num_classes)
        votes.scatter_add_(1, self.bank_labels[best.indices], weights)
        return votes.clamp_min(torch.finfo(votes.dtype).tiny).log()


class NearestMean(nn.Module):
    """The class whose mean direction is most similar; logits are cosine / temperature.

    Attributes:
        means: float32 [classes, D], mean of the training videos' directions, of length 1.
    """

    means: Tensor

    def __init__(self, width: int, num_classes: int, temperature: float) -> None:
        """Build with means of 0; arguments as in :class:`NearestNeighbours`."""
        super().__init__()
        self.temperature = temperature
        self.register_buffer("means", torch.zeros(num_classes, width))

    def fit(self, pooled: Tensor, labels: Tensor) -> None:
        """Average training features float [n, D] by class numbers int64 [n]."""
        directions = F.normalize(pooled.float(), dim=1)
        sums = torch.zeros_like(self.means).index_add_(0, labels, directions)
        self.means.copy_(F.normalize(sums, dim=1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits: tokens float [B, N, D] -> [B, classes]."""
        pooled = F.normalize(tokens.float().mean(dim=1), dim=1)
        return pooled @ self.means.T / self.temperature
