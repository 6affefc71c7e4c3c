"""The encoder: a video to tokens, all of them or only chosen ones (paper, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from vjepa.models.attention import INIT_STD, Block, init_layer
from vjepa.models.config import EncoderConfig
from vjepa.models.embedding import PatchEmbed, check_indices, position_code, resample_position_code
from vjepa.models.given_table import rows_of_table
from vjepa.models.linear import shrink_by_depth
from vjepa.models.modalities import ModalityPatchEmbed
from vjepa.models.packing import Packing, with_first
from vjepa.models.preprocess import check_video, normalise_clip
from vjepa.models.rotary import Rotation, rotation

NORM_EPS = 1e-6


class Encoder(nn.Module):
    """A vision transformer over tubelets; tokens are dropped at the input."""

    pos_embed: Tensor
    """Fixed position code, float32 [1, N, D]; a buffer that is saved only where it was `given`.
    None where positions are rotary."""
    cls_token: nn.Parameter | None
    """Learnt, float32 [1, 1, D]."""
    preprocess: Callable[..., Tensor]
    """Videos -> normalised input; set by :func:`vjepa.load_encoder`."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = (ModalityPatchEmbed if config.modalities else PatchEmbed)(config)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_width, NORM_EPS)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.level_norms = nn.ModuleDict(
            {str(level): nn.LayerNorm(config.width, eps=NORM_EPS) for level in config.levels[:-1]}
        )
        cls = nn.Parameter(torch.empty(1, 1, config.width)) if config.cls else None
        self.register_parameter("cls_token", cls)
        self.register_buffer("pos_embed", None, persistent=config.is_given)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw all weights anew and recompute the position code, on the weights' device.

        Also for models built on the meta device and then given memory by ``to_empty``.
        """
        self.apply(partial(init_layer, std=self.config.init_std))
        self.patch_embed.init_weights(self.config.patch_init_std)
        shrink_by_depth(self.blocks if self.config.is_rotary else ())
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=INIT_STD)
        self.reset_position_code()

    def reset_position_code(self) -> None:
        """Recompute the position code on the device and in the dtype of the weights.

        One that was given stays; rotary positions have none.
        """
        weight, is_given = self.norm.weight, self.config.is_given
        if self.config.is_rotary or (is_given and self.pos_embed is not None):
            return
        if is_given:  # until weights come, which bring it
            self.pos_embed = weight.new_zeros(1, self.config.num_tokens, self.config.width)
            return
        code = position_code(self.config, self.config.width, weight.device)
        self.pos_embed = code.to(weight.dtype)

    def rebuilt_for(self, *, image_size: int, num_frames: int) -> Encoder:
        """The same weights as a model made for another input size.

        Its position code is computed for the new grid, not resampled from the old one (but for one
        that was given): what the authors do for another resolution and for still images as two
        frames. Weights are shared, not copied.
        """
        config = replace(self.config, image_size=image_size, num_frames=num_frames)
        if config.is_image_model != self.config.is_image_model:
            raise ValueError("num_frames: an image model stays one, a video model likewise")
        with torch.device("meta"):
            other = Encoder(config)
        other.patch_embed, other.blocks, other.norm = self.patch_embed, self.blocks, self.norm
        other.level_norms, other.cls_token = self.level_norms, self.cls_token
        if config.is_given:
            other.pos_embed = self._code_of(config.grid)
        if how := getattr(self, "preprocess", None):
            other.preprocess = how.sized(image_size=image_size, num_frames=num_frames)
        other.reset_position_code()
        return other.train(self.training)

    def normalise(self, clips: Tensor) -> Tensor:
        """Pixels uint8 [B, 3, T, H, W] -> input float32 [B, C, T, H, W], as this model takes it."""
        return normalise_clip(clips, how=self.config.input)

    def forward(
        self,
        video: Tensor,
        token_indices: Tensor | None = None,
        *,
        offsets: Tensor | None = None,
        layers: Sequence[int] | None = None,
        branch_scale: Tensor | None = None,
        final_norm: bool = True,
        with_cls: bool = False,
    ) -> Tensor | list[Tensor]:
        """Encode clips.

        Args:
            video: float [B, C, T, H, W], normalised (:meth:`normalise`). Any size
                in whole patches: for a size other than the configured one the position code is
                resampled; rotary positions count on. An image model takes T = 1.
            token_indices: int64 [B, K]: only these tokens are seen, in this order; indices count
                the input's own grid, time-major. Packed: [S] with `offsets`. None means all.
            offsets: int64 [B+1] for packed indices: clip b owns offsets[b] .. offsets[b+1]-1.
            layers: Blocks, counted from 0, whose outputs are wanted; each passes through the final
                norm, or its own where the model has `levels`. Blocks after the last one asked for
                are not run.
            branch_scale: float [depth, 2, B], factors of what each block's attention and MLP add to
                each clip: drop path, drawn by whoever trains (:func:`vjepa.tasks.drop_path`).
            final_norm: False leaves the final norm out.
            with_cls: Put the [cls] token's features before the others': [B, 1 + N, D]. Needs a
                model with that token, and equally many tokens in each clip.

        Returns:
            float [B, N, D] or [B, K, D] or packed [S, D], after the final norm; with `layers` a
            list of such, in the order asked for.

        Raises:
            ValueError: The video is not whole patches, or an argument does not fit. On the CPU, in
                evaluation mode, values are looked at as well: not finite, or not normalised.
        """
        if with_cls and (self.cls_token is None or offsets is not None):
            said = "packed tokens have" if offsets is not None else "this model has"
            raise ValueError(f"with_cls: {said} none; leave it out, or build one with cls: true")
        tokens, packing, rotated = self._embed(video, token_indices, offsets)
        # What blocks add up is float32 under autocast; only a code that is added makes it so.
        if tokens.dtype.itemsize == 2 and torch.is_autocast_enabled(tokens.device.type):
            tokens = tokens.float()
        grid, join, steps = self.patch_embed.grid(video.shape), None, None
        if self.config.attention == "block_causal":
            places = torch.arange(math.prod(grid), device=tokens.device)
            steps = (places if token_indices is None else token_indices) // (grid[1] * grid[2])
        if self.cls_token is not None and (steps is None or with_cls):  # else no token sees it
            given = tokens, packing, rotated, steps
            join, tokens, packing, rotated, steps = with_first(self.cls_token, *given, grid[0])
        scales: Sequence[Tensor | None] = [None] * len(self.blocks)
        if branch_scale is not None:
            given, fitting = tuple(branch_scale.shape), (len(scales), 2, video.shape[0])
            if given != fitting:
                raise ValueError(f"branch_scale: must be [depth, 2, B] = {fitting}, got {given}")
            wide = branch_scale if packing is None else branch_scale[:, :, packing.clip_index]
            scales = (wide[..., None, None] if packing is None else wide[..., None]).unbind()
        last = len(self.blocks) - 1
        wanted = (last,) if layers is None else () if isinstance(layers, int) else tuple(layers)
        if not wanted or not set(wanted) <= set(self.config.levels or range(last + 1)):
            named = ", ".join(map(str, self.config.levels)) or f"0 .. {last}"
            raise ValueError(f"layers: {list(wanted) or layers} must be among {named}, in a list")
        outputs: dict[int, Tensor] = {}
        for index, block, scale in zip(range(max(wanted) + 1), self.blocks, scales, strict=False):
            tokens = block(tokens, packing, rotated, scale, steps)
            if index in wanted:
                own = str(index) in self.level_norms
                norm = self.level_norms[str(index)] if own else self.norm
                seen = tokens if join is None or with_cls else join.targets(tokens)
                outputs[index] = norm(seen) if final_norm else seen
        return outputs[last] if layers is None else [outputs[index] for index in wanted]

    def _embed(
        self, video: Tensor, token_indices: Tensor | None, offsets: Tensor | None
    ) -> tuple[Tensor, Packing | None, Rotation | None]:
        """Tokens with their position codes, how they are packed, and how they are rotated."""
        config, like = self.config, self.norm.weight
        check_video(video, config, is_training=self.training)
        grid = self.patch_embed.grid(video.shape)
        if config.is_image_model and grid[0] != 1:
            raise ValueError(f"an image model takes one frame, got {grid[0]}")
        if token_indices is None:
            if offsets is not None:
                raise ValueError("offsets: given without token_indices")
            tokens, rotated = self.patch_embed(video), rotation(config, grid, None, like)
            return tokens if rotated else tokens + self._code_of(grid), None, rotated
        check_indices("token_indices", token_indices, math.prod(grid))
        if token_indices.ndim != (2 if offsets is None else 1):
            raise ValueError("token_indices must be [B, K], or [S] together with offsets")
        packing = None
        if offsets is None:
            if token_indices.shape[0] != video.shape[0]:
                rows = f"{token_indices.shape[0]} rows for {video.shape[0]} clips"
                raise ValueError(f"token_indices: {rows}; expand(B, -1) gives all the same")
            clip_index = torch.arange(video.shape[0], device=token_indices.device)[:, None]
        else:
            packing = Packing.of(offsets, token_indices.numel(), math.prod(grid))
            if len(offsets) != video.shape[0] + 1:
                raise ValueError(f"offsets: {len(offsets) - 1} lists for {video.shape[0]} clips")
            clip_index = packing.clip_index
        tokens = self.patch_embed(video, clip_index, token_indices)
        rotated = rotation(config, grid, token_indices, like)
        if rotated is None:
            tokens = tokens + self._code_of(grid)[0][token_indices]
        return tokens, packing, rotated

    def _code_of(self, grid: tuple[int, int, int]) -> Tensor:
        """The position code [1, N, D] of a grid, resampled where it is not the model's own."""
        own, is_image = self.config.grid, self.config.is_image_model
        if self.config.is_given and not is_image:
            stretched = self.config.position == "given_stretched"
            return rows_of_table(self.pos_embed, own, grid, stretched=stretched)
        if grid == own:
            return self.pos_embed
        return resample_position_code(self.pos_embed, own, grid, is_image=is_image)


class FrameEncoder(nn.Module):
    """An image model as a video encoder: every frame alone, token maps joined in time (section 4).

    No time code is added. One frame is one tubelet. `image_encoder`, whose sizes are `config`, maps
    float [B, C, 1, H, W] to tokens [B, h*w, D], and with `layers` (blocks, from 0), if it knows the
    word, to a list of such; one call takes at most `frames_at_once` frames.
    """

    def __init__(
        self, image_encoder: nn.Module, config: EncoderConfig, frames_at_once: int = 256
    ) -> None:
        super().__init__()
        if config.num_frames != 1 or config.tubelet_size != 1:
            raise ValueError("config: FrameEncoder takes an image model (num_frames 1, tubelet 1)")
        self.image_encoder, self.config, self.frames_at_once = image_encoder, config, frames_at_once

    def forward(
        self, video: Tensor, *, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Encode normalised clips float [B, C, T, H, W] to [B, T*h*w, D], frame 0 first."""
        batch, channels, frames, height, width = video.shape
        images = video.transpose(1, 2).reshape(-1, channels, 1, height, width)
        parts = images.split(self.frames_at_once)

        def joined(found: Sequence[Tensor]) -> Tensor:
            return torch.cat(list(found)).unflatten(0, (batch, frames)).flatten(1, 2)

        if layers is None:
            return joined([self.image_encoder(some) for some in parts])
        found = [self.image_encoder(some, layers=layers) for some in parts]
        return [joined(same) for same in zip(*found, strict=True)]
