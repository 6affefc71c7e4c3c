"""What will be done next: the probe of V-JEPA 2 on EPIC-KITCHENS-100, and the tokens it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vjepa.models.attention import init_layer
from vjepa.models.pooling import AttentivePooler
from vjepa.models.predictor import Predictor


class AnticipationClassifier(nn.Module):
    """Attentive pooling with a query for each question, and a linear layer for each.

    `classes` are the numbers of classes by question: ``verb``, ``noun`` and ``action``, or
    ``action`` alone.
    """

    def __init__(self, width: int, heads: int, classes: Mapping[str, int], depth: int = 4) -> None:
        super().__init__()
        self.questions = tuple(classes)
        self.pooler = AttentivePooler(
            width, heads, depth, variant="released_2", num_queries=len(classes)
        )
        for name, count in classes.items():
            linear = nn.Linear(width, count)
            init_layer(linear)
            self.add_module(f"{name}_classifier", linear)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Logits [B, classes] of each question, from tokens float [B, N, D]."""
        pooled = self.pooler(tokens).reshape(len(tokens), len(self.questions), -1)
        return {
            name: self.get_submodule(f"{name}_classifier")(pooled[:, number])
            for number, name in enumerate(self.questions)
        }


@torch.no_grad()
def with_future(
    predictor: Predictor,
    tokens: Tensor,
    grid: tuple[int, int, int],
    seconds: Sequence[float],
    fps: float,
) -> Tensor:
    """A clip's tokens, and behind them those of one time step that the predictor expects later.

    float [B, t*h*w, D] of a grid (t, h, w) -> [B, (t + 1) * h * w, D]; `seconds` say how long after
    each clip, of so many frames a second. By the predictor's second mask token, with which the
    released probes were trained.
    """
    t, h, w = grid
    tubelet = predictor.encoder_config.tubelet_size
    device = tokens.device
    ahead = torch.tensor([int(s * fps / tubelet) for s in seconds], device=device)[:, None]
    context = torch.arange(t * h * w, device=device).expand(len(tokens), -1)
    targets = t * h * w + ahead * h * w + torch.arange(h * w, device=device)
    latest = t + 1 + max(int(s * fps / tubelet) for s in seconds)
    predicted = predictor(tokens, context, targets, 1, grid=(latest, h, w))
    return torch.cat([tokens, predicted.to(tokens.dtype)], dim=1)
