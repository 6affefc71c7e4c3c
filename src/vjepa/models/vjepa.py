"""The whole model: context encoder, target encoder, predictor."""

from __future__ import annotations

import copy

import torch
from torch import nn

from vjepa.models.config import ModelConfig
from vjepa.models.encoder import Encoder
from vjepa.models.predictor import Predictor


class VJEPA(nn.Module):
    """Encoder E, its moving average, and the predictor P (paper, section 3, Figure 2).

    Encoder and predictor are trained. The target encoder starts as a copy of the encoder and
    follows it as a moving average, without gradients; it is what is evaluated.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(requires_grad=False)
        self.predictor = Predictor(config.encoder, config.predictor)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw all weights anew; the target encoder becomes a copy of the encoder."""
        self.encoder.init_weights()
        self.predictor.init_weights()
        self.target_encoder.load_state_dict(self.encoder.state_dict())
        self.target_encoder.reset_position_code()

    def reset_position_codes(self) -> None:
        """Recompute all position codes on the weights' devices."""
        self.encoder.reset_position_code()
        self.target_encoder.reset_position_code()
        self.predictor.reset_position_code()
