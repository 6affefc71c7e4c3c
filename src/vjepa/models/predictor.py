"""The predictor P: from context tokens to the target encoder's features at other places.

And the whole model: context encoder, target encoder, predictor.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vjepa.models.attention import Block, Packing, init_layer
from vjepa.models.config import EncoderConfig, ModelConfig, PredictorConfig, check_position_width
from vjepa.models.embedding import check_indices, position_code, resample_position_code
from vjepa.models.encoder import NORM_EPS, Encoder


class Predictor(nn.Module):
    """A narrow transformer over context tokens and mask tokens (paper, section 3).

    Mask tokens are learnt vectors, one per kind of mask (or one shared), that start at zero; both
    they and the projected context tokens get the predictor's own position code.

    `encoder_config` is that of the encoder whose tokens come in; it gives grid, width and heads.
    `out_width` numbers are predicted for a token: the encoder's width D unless given (pixel
    prediction gives the numbers in a patch).
    """

    predictor_pos_embed: Tensor
    """Fixed position code, float32 [1, N, P]; a buffer that is not saved."""

    def __init__(
        self,
        encoder_config: EncoderConfig,
        predictor_config: PredictorConfig,
        out_width: int | None = None,
    ) -> None:
        super().__init__()
        width = predictor_config.width
        heads = predictor_config.heads or encoder_config.heads
        if width % heads:
            raise ValueError(f"predictor.width: {width} must be a multiple of the heads, {heads}")
        check_position_width("predictor.width", width, encoder_config)
        self.config = predictor_config
        self.encoder_config = encoder_config
        self.predictor_embed = nn.Linear(encoder_config.width, width)
        self.mask_tokens = nn.ParameterList(
            nn.Parameter(torch.empty(1, 1, width)) for _ in range(predictor_config.num_mask_tokens)
        )
        self.predictor_blocks = nn.ModuleList(
            Block(width, heads, predictor_config.mlp_width, NORM_EPS)
            for _ in range(predictor_config.depth)
        )
        self.predictor_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.predictor_proj = nn.Linear(width, out_width or encoder_config.width)
        self.register_buffer("predictor_pos_embed", None, persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw all weights anew and recompute the position code, on the weights' device."""
        self.apply(init_layer)
        for token in self.mask_tokens:
            nn.init.zeros_(token)
        self.reset_position_code()

    def reset_position_code(self) -> None:
        """Recompute the position code on the device and in the dtype of the weights."""
        weight = self.predictor_norm.weight
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
                made for. For another one the position code is resampled, as the encoder's is. It
                cannot be seen from the tokens: of a clip of another size, always give it.

        Returns:
            float [B, M, D], or packed [U, D] (`out_width` in place of D where one was given).

        Raises:
            ValueError: An index that is none of the grid's, or an argument that does not fit.
        """
        sizes, code = self.encoder_config, self.predictor_pos_embed
        if grid is not None and tuple(grid) != sizes.grid:
            code = resample_position_code(code, sizes.grid, grid, is_image=sizes.is_image_model)
        num_tokens, code = code.shape[1], code[0]
        check_indices("context_indices", context_indices, num_tokens)
        check_indices("target_indices", target_indices, num_tokens)
        if context_tokens.shape[:-1] != context_indices.shape:
            raise ValueError(
                f"context_tokens {list(context_tokens.shape)} and context_indices "
                f"{list(context_indices.shape)} must be of the same tokens"
            )
        context = self.predictor_embed(context_tokens) + code[context_indices]
        count = len(self.mask_tokens)
        if count > 1 and not 0 <= mask_index < count:
            raise ValueError(f"mask_index: {mask_index} must be among 0 .. {count - 1}")
        mask_token = self.mask_tokens[mask_index if count > 1 else 0].flatten()
        targets = mask_token + code[target_indices]
        # Under autocast the two parts must agree before they are joined.
        targets = targets.to(context.dtype)
        if context_offsets is None and target_offsets is None:
            tokens = torch.cat([context, targets], dim=1)
            for block in self.predictor_blocks:
                tokens = block(tokens)
            tokens = tokens[:, context.shape[1] :]
        elif context_offsets is None or target_offsets is None:
            raise ValueError("context_offsets and target_offsets must be given together")
        else:
            longest = num_tokens * 2  # context and targets may overlap
            tokens = self._forward_packed(
                context, targets, context_offsets, target_offsets, longest
            )
        return self.predictor_proj(self.predictor_norm(tokens))

    def _forward_packed(
        self,
        context: Tensor,
        targets: Tensor,
        context_offsets: Tensor,
        target_offsets: Tensor,
        longest: int,
    ) -> Tensor:
        """Blocks over one sequence [clip 0: context, targets; clip 1: ...]; the target part."""
        if context_offsets.shape != target_offsets.shape:
            raise ValueError("context_offsets and target_offsets must be of the same clips")
        contexts = Packing.of(context_offsets, context.shape[0], longest)
        wanted = Packing.of(target_offsets, targets.shape[0], longest)
        device = context.device
        # In the joint sequence a context token comes after all targets of the clips before it, a
        # target token after all context tokens up to its own clip's.
        context_places = (
            torch.arange(context.shape[0], device=device) + target_offsets[contexts.clip_index]
        )
        target_places = (
            torch.arange(targets.shape[0], device=device) + context_offsets[wanted.clip_index + 1]
        )
        tokens = context.new_empty(context.shape[0] + targets.shape[0], context.shape[1])
        tokens.index_copy_(0, context_places, context)
        tokens.index_copy_(0, target_places, targets)
        packing = Packing.of(context_offsets + target_offsets, tokens.shape[0], longest)
        for block in self.predictor_blocks:
            tokens = block(tokens, packing)
        return tokens.index_select(0, target_places)


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
