"""The predictor P: from context tokens to the target encoder's features at other places.

And the whole model: context encoder, target encoder, predictor.
"""

from __future__ import annotations

import copy
import math
from functools import partial

import torch
from torch import Tensor, nn

from vjepa.models.attention import Block, init_layer
from vjepa.models.config import EncoderConfig, ModelConfig, PredictorConfig, check_positions
from vjepa.models.embedding import check_indices, position_code, resample_position_code
from vjepa.models.encoder import NORM_EPS, Encoder
from vjepa.models.linear import shrink_by_depth
from vjepa.models.modalities import VECTOR_STD
from vjepa.models.packing import Joined
from vjepa.models.rotary import rotation


class Predictor(nn.Module):
    """A narrow transformer over context tokens and mask tokens (paper, section 3).

    Mask tokens are learnt vectors, one per kind of mask (or one shared), that start at zero; both
    they and the projected context tokens get the predictor's own position code, or are rotated.

    `encoder_config` is that of the encoder whose tokens come in; it gives grid, kind of position,
    width and heads. `out_width` numbers are predicted for a token: unless given here or in the
    config, the encoder's width D (pixel prediction gives the numbers in a patch). With several
    `levels`, D is that of all of them side by side.
    """

    predictor_pos_embed: Tensor
    """Fixed position code, float32 [1, N, P]; a buffer that is not saved. None if rotary."""

    def __init__(
        self,
        encoder_config: EncoderConfig,
        predictor_config: PredictorConfig,
        out_width: int | None = None,
    ) -> None:
        super().__init__()
        width = predictor_config.width
        heads = predictor_config.heads or encoder_config.heads
        check_positions("predictor.width", width, heads, encoder_config)
        self.config, self.encoder_config = predictor_config, encoder_config
        width_in, levels = encoder_config.width, predictor_config.levels
        self._width_in = levels * width_in
        self.predictor_embed: nn.Module = nn.Linear(width_in, width)
        if levels > 1:
            first = nn.Linear(levels * width_in, width_in)
            self.predictor_embed = nn.Sequential(first, nn.GELU(), nn.Linear(width_in, width))
        self.mask_tokens = nn.ParameterList(
            nn.Parameter(torch.empty(1, 1, width)) for _ in range(predictor_config.num_mask_tokens)
        )
        self.predictor_blocks = nn.ModuleList(
            Block(width, heads, predictor_config.mlp_width, NORM_EPS)
            for _ in range(predictor_config.depth)
        )
        self.predictor_norm = nn.LayerNorm(width, eps=NORM_EPS)
        out_width = out_width or predictor_config.out_width or levels * width_in
        self.predictor_proj = nn.Linear(width, out_width)
        self.predictor_proj_context = (
            nn.Linear(width, out_width) if predictor_config.predicts_context else None
        )
        kinds = ("video", "image") if encoder_config.modalities else ()
        self.modality_vectors = nn.ParameterDict({k: torch.empty(1, 1, width) for k in kinds})
        self.register_buffer("predictor_pos_embed", None, persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw all weights anew and recompute the position code, on the weights' device."""
        self.apply(partial(init_layer, std=self.config.init_std))
        shrink_by_depth(self.predictor_blocks if self.encoder_config.is_rotary else ())
        for token in self.mask_tokens:
            nn.init.zeros_(token)
        for vector in self.modality_vectors.values():
            nn.init.normal_(vector, std=VECTOR_STD)
        self.reset_position_code()

    def reset_position_code(self) -> None:
        """Recompute the position code on the device and in the dtype of the weights."""
        weight = self.predictor_norm.weight
        if not self.encoder_config.is_rotary:
            code = position_code(self.encoder_config, self.config.width, weight.device)
            self.predictor_pos_embed = code.to(weight.dtype)

    def forward(
        self,
        context_tokens: Tensor,
        context_indices: Tensor,
        target_indices: Tensor,
        mask_index: int = 0,
        *,
        context_offsets: Tensor | None = None,
        target_offsets: Tensor | None = None,
        grid: tuple[int, int, int] | None = None,
        is_image: bool = False,
        with_context: bool = False,
    ) -> Tensor:
        """Predict the features at the target places.

        Args:
            context_tokens: The encoder's output, float [B, K, D], or packed [S, D].
            context_indices: Their places, int64 [B, K], or packed [S].
            target_indices: The places to predict, int64 [B, M], or packed [U].
            mask_index: Which kind of mask, and so which mask token; with one shared token any.
            context_offsets: int64 [B+1] of the packed context tokens.
            target_offsets: int64 [B+1] of the packed target tokens.
            grid: Tokens (t, h, w) of the clips, which the indices count; None: as the model was
                made for. For another one the position code is resampled, as the encoder's is;
                rotary positions count on, so that more steps in time are the future. It cannot be
                seen from the tokens: of a clip of another size, always give it.
            is_image: Of a model with modalities: whether the clips are images of one frame.
            with_context: Also what is predicted of the context tokens, put before the targets:
                [B, K + M, D], or packed [S + U, D]. Needs `predicts_context`.

        Returns:
            float [B, M, D], or packed [U, D] (`out_width` in place of D where one was given).

        Raises:
            ValueError: An index that is none of the grid's, or an argument that does not fit.
        """
        grid = self.encoder_config.grid if grid is None else grid
        if min(grid) < 1:
            raise ValueError(f"grid: {tuple(grid)} has no token; each side is at least 1")
        if context_tokens.shape[-1] != self._width_in:
            raise ValueError(
                f"context_tokens are {context_tokens.shape[-1]} wide; give {self._width_in}"
            )
        code = None if self.encoder_config.is_rotary else self._code_of(grid)
        num_tokens = math.prod(grid) if code is None else len(code)
        check_indices("context_indices", context_indices, num_tokens)
        check_indices("target_indices", target_indices, num_tokens)
        if context_tokens.shape[:-1] != context_indices.shape:
            raise ValueError(
                f"context_tokens {list(context_tokens.shape)} and context_indices "
                f"{list(context_indices.shape)} must be of the same tokens"
            )
        if (context_offsets is None) != (target_offsets is None):
            raise ValueError("context_offsets and target_offsets must be given together")
        if with_context and self.predictor_proj_context is None:
            raise ValueError("with_context: this predictor has no projection for context tokens")
        context = self.predictor_embed(context_tokens.to(self.predictor_norm.weight.dtype))
        count = len(self.mask_tokens)
        if count > 1 and not 0 <= mask_index < count:
            raise ValueError(f"mask_index: {mask_index} must be among 0 .. {count - 1}")
        targets = self.mask_tokens[mask_index if count > 1 else 0].flatten()
        if code is None:
            targets = targets.expand(*target_indices.shape, -1)
        else:
            context, targets = context + code[context_indices], targets + code[target_indices]
        # Under autocast sums are float32, as in the encoder, and the two parts must agree.
        if context.dtype.itemsize == 2 and torch.is_autocast_enabled(context.device.type):
            context = context.float()
        targets = targets.to(context.dtype)
        longest = num_tokens * 2  # context and targets may overlap
        join = Joined(context_indices, target_indices, context_offsets, target_offsets, longest)
        tokens = join.joined(context, targets)
        if self.modality_vectors:
            vector = self.modality_vectors["image" if is_image else "video"]
            tokens = tokens + vector.flatten().to(tokens.dtype)
        rotated, like = None, self.predictor_norm.weight
        if code is None:
            places = join.joined(context_indices, target_indices)
            rotated = rotation(self.encoder_config, grid, places, like, self.config)
        for block in self.predictor_blocks:
            tokens = block(tokens, join.packing, rotated)
        hidden = self.predictor_proj(self.predictor_norm(join.targets(tokens)))
        if self.predictor_proj_context is None or not with_context:
            return hidden
        seen = self.predictor_proj_context(self.predictor_norm(join.context(tokens)))
        return torch.cat([seen, hidden], dim=-2)

    def _code_of(self, grid: tuple[int, int, int]) -> Tensor:
        """The position code [N, P] of a grid, resampled where it is not the model's own."""
        sizes, code = self.encoder_config, self.predictor_pos_embed
        if tuple(grid) != sizes.grid:
            code = resample_position_code(code, sizes.grid, grid, is_image=sizes.is_image_model)
        return code[0]


class VJEPA(nn.Module):
    """Encoder E, its moving average, and the predictor P (paper, section 3, Figure 2).

    Encoder and predictor are trained. The target encoder starts as a copy of the encoder and
    follows it as a moving average, without gradients; it is what is evaluated.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.encoder.is_given:
            raise ValueError("encoder.position: given: comes with weights of others; take sincos")
        self.config, self.encoder = config, Encoder(config.encoder)
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
        for part in (self.encoder, self.target_encoder, self.predictor):
            part.reset_position_code()
