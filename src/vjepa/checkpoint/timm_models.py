"""Encoders that the `timm` library computes (extra ``baselines``).

Image models by their name in timm, and the forms that released files of DINOv2, OpenCLIP and Hiera
fill. Nothing is downloaded: weights come from a local file, or are drawn at random.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vjepa.checkpoint.folder import read_weights
from vjepa.checkpoint.strict import load_strictly, plain_names
from vjepa.checkpoint.torch_files import read_torch_file
from vjepa.errors import UserError, needs_extra, suggested
from vjepa.models import PIXEL_MEAN, PIXEL_STD, EncoderConfig, normalise_clip
from vjepa.models.embedding import token_grid
from vjepa.models.encoder import FrameEncoder

_CUSTOMARY_HEADS = (16, 12, 8, 6, 4, 3, 2, 1)


def load_timm_encoder(name: str, weights: Path | None = None, seed: int = 0) -> FrameEncoder:
    """An image model of timm that sees every frame of a clip alone.

    Its tokens are those of the last feature map: class and register tokens are left out, the map of
    a convolutional network is taken place by place. Pixels come normalised as for our encoders and
    are brought to the model's own normalisation.

    Args:
        name: Name in timm, for example ``vit_base_patch16_224``.
        weights: ``.safetensors`` or torch file with the model's state dict; None draws them.
        seed: Of weights drawn at random; torch's own generator is left as it was.

    Raises:
        UserError: timm is not installed, has no such model, the weights do not fit, or the model
            has no square feature map.
    """
    timm = _timm("encoder.timm")
    if not timm.is_model(name):
        near = suggested(name, timm.list_models())
        raise UserError(f"encoder.timm: timm {timm.__version__} has no model {name!r}{near}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, pretrained=False, num_classes=0)
    if weights is not None:
        _load_strictly(model, weights)
    images = _TimmImages(model.eval(), name)
    return FrameEncoder(images, images.config).eval()


def _timm(what: str, module: str = "timm") -> Any:
    with needs_extra(what, "baselines"):
        return importlib.import_module(module)


class TimmEncoder(nn.Module):
    """A published encoder that timm computes; `config` has its sizes and says how it sees pixels.

    Built on the meta device it waits for the weights of its file.
    """

    stretches = False
    """Whether it has positions for frames of any size in whole patches."""
    preprocess: Callable[..., Tensor]
    """Videos -> normalised input; set by :func:`vjepa.load_encoder`."""

    def __init__(self, config: EncoderConfig, again: Callable[[], TimmEncoder]) -> None:
        super().__init__()
        self.config = config
        self._again = again

    def fresh(self) -> TimmEncoder:
        """Another of the same form, with weights drawn anew, as timm draws them."""
        other = self._again()
        other.config = self.config
        return other

    def normalise(self, clips: Tensor) -> Tensor:
        """Pixels uint8 [B, 3, T, H, W] -> input float32 [B, 3, T, H, W], as this model takes it."""
        return normalise_clip(clips, how=self.config.input)


@dataclass(frozen=True, kw_only=True)
class VitForm:
    """What tells one published ViT with a class token from another."""

    table_side: int  # places on a side of the stored table of positions
    final_norm: bool  # whether tokens go through the last norm
    stretches: bool = False
    """Whether the table is brought to other grids, by DINOv2's rule; else they are refused."""
    gated: bool = False
    layer_scale: bool = False
    input_norm: bool = False
    eps: float = 1e-6


class TimmVit(TimmEncoder):
    """DINOv2 or OpenCLIP: images float [B, 3, 1, H, W] -> tokens of the patches [B, h*w, D].

    The class token takes part and is left out at the end. DINOv2's rule for other grids: bicubic
    without antialiasing, with the scale (n + 0.1) / side, not the same as asking for n places.
    """

    def __init__(self, config: EncoderConfig, form: VitForm) -> None:
        super().__init__(config, lambda: TimmVit(config, form))
        self.stretches, self._form = form.stretches, form
        layers = _timm("DINOv2 and OpenCLIP", "timm.layers")
        gate = {"mlp_layer": layers.SwiGLUPacked, "act_layer": nn.SiLU} if form.gated else {}
        vit = _timm("DINOv2 and OpenCLIP", "timm.models.vision_transformer").VisionTransformer
        self.model: Any = vit(
            img_size=form.table_side * config.patch_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            # A gated layer takes both halves of its hidden width from one product.
            mlp_ratio=config.mlp_ratio * (1 + form.gated),
            num_classes=0,
            global_pool="",
            init_values=1.0 if form.layer_scale else None,
            pre_norm=form.input_norm,
            norm_layer=functools.partial(nn.LayerNorm, eps=form.eps),
            dynamic_img_size=True,
            **gate,
        )

    def forward(
        self, images: Tensor, *, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Tokens row by row; ValueError for a size that is not whole patches or has no table.

        With `layers`, blocks counted from 0, a list of their tokens, each as the last one's are.
        """
        frames, height, width = token_grid(images.shape, 1, self.config.patch_size)
        if frames != 1:
            raise ValueError(
                f"an image model takes one frame, got {frames}: "
                "vjepa.models.encoder.FrameEncoder shows it every one"
            )
        model = self.model
        patches = model.patch_embed(images[:, :, 0]).flatten(1, 2)
        cls = model.cls_token.expand(images.shape[0], -1, -1)  # len() would fix it in an export
        tokens = torch.cat([cls, patches], dim=1)
        tokens = model.norm_pre(tokens + self.positions(height, width))
        norm = model.norm if self._form.final_norm else nn.Identity()
        wanted = (len(model.blocks) - 1,) if layers is None else layers
        outputs: dict[int, Tensor] = {}
        for index, block in enumerate(model.blocks):
            tokens = block(tokens)
            if index in wanted:
                outputs[index] = norm(tokens)[:, 1:]
        return outputs[wanted[0]] if layers is None else [outputs[index] for index in wanted]

    def positions(self, height: int, width: int) -> Tensor:
        """The table [1, 1 + h*w, D] for a grid, the class token's row first."""
        table, side = self.model.pos_embed, self._form.table_side
        if (height, width) == (side, side):
            return table
        if not self.stretches:
            own = side * self.config.patch_size
            raise ValueError(f"this model's table of positions is for images of {own} pixels")
        places = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
        scale = ((height + 0.1) / side, (width + 0.1) / side)
        grid = F.interpolate(places, scale_factor=scale, mode="bicubic", antialias=False)
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


class TimmHiera(TimmEncoder):
    """Hiera for video: clips float [B, 3, T, H, W] of its own size -> last stage's map [B, N, D].

    Tokens are in the order of the grid, not in Hiera's. Pooling has no weights: with two poolings
    the same file gives 16 pixels a token instead of 32.
    """

    def __init__(self, config: EncoderConfig, stages: tuple[int, ...], poolings: int) -> None:
        super().__init__(config, lambda: TimmHiera(config, stages, poolings))
        self.model: Any = _timm("Hiera", "timm.models.hiera").Hiera(
            img_size=(config.num_frames, config.image_size, config.image_size),
            embed_dim=config.width // 8,
            num_heads=config.heads // 8,
            stages=stages,
            q_pool=poolings,
            q_stride=(1, 2, 2),
            mask_unit_size=(1, 8, 8),
            patch_kernel=(3, 7, 7),
            patch_stride=(2, 4, 4),
            patch_padding=(1, 3, 3),
            sep_pos_embed=True,
            num_classes=0,
        )
        self.model.head = nn.Identity()

    def forward(self, video: Tensor) -> Tensor:
        """Tokens, time-major; ValueError for another size."""
        config = self.config
        wanted = (config.num_frames, config.image_size, config.image_size)
        if tuple(video.shape[2:]) != wanted:
            raise ValueError(f"Hiera takes clips [B, 3, {wanted}], got {tuple(video.shape)}")
        found = self.model.forward_intermediates(
            video, indices=[3], output_fmt="NHWC", intermediates_only=True
        )
        return found[-1].flatten(1, -2)


class _TimmImages(nn.Module):
    """Images [B, 3, 1, H, W] -> tokens [B, h*w, D] by a model of timm."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        self.model = model
        defaults = model.pretrained_cfg
        # (x * ours + our mean - their mean) / theirs, in one step.
        ours, our_mean = torch.tensor(PIXEL_STD), torch.tensor(PIXEL_MEAN)
        theirs, their_mean = torch.tensor(defaults["std"]), torch.tensor(defaults["mean"])
        self.register_buffer("scale", (ours / theirs)[:, None, None], persistent=False)
        shift = ((our_mean - their_mean) / theirs)[:, None, None]
        self.register_buffer("shift", shift, persistent=False)
        self.config = _sizes(self, defaults["input_size"][-1], name)

    @functools.cached_property
    def stretches(self) -> bool:
        """Whether it takes frames of any size, found by one that is a patch wider than its own."""
        side = self.config.image_size
        wider = torch.zeros(1, 3, 1, side, side + self.config.patch_size, device=self.scale.device)
        try:
            with torch.no_grad():
                self(wider)
        except (AssertionError, RuntimeError, ValueError):
            return False
        return True

    def forward(self, images: Tensor) -> Tensor:
        """Tokens of the last feature map, row by row."""
        features = self.model.forward_features(images[:, :, 0] * self.scale + self.shift)
        if features.ndim == 3:
            return features[:, getattr(self.model, "num_prefix_tokens", 0) :]
        if features.ndim == 4 and features.shape[1] == self.model.num_features:
            return features.flatten(2).transpose(1, 2)
        return features.flatten(1, -2)


def _sizes(images: _TimmImages, image_size: int, name: str) -> EncoderConfig:
    """Sizes as our protocol wants to know them, found by one image."""
    with torch.no_grad():
        tokens = images(torch.zeros(1, 3, 1, image_size, image_size))
    side = round(tokens.shape[1] ** 0.5)
    if tokens.ndim != 3 or side * side != tokens.shape[1] or image_size % side:
        raise UserError(
            f"encoder.timm: {name} gives no square feature map for {image_size} pixels "
            f"(tokens {list(tokens.shape[1:])}); choose another model"
        )
    width = tokens.shape[2]
    blocks = getattr(images.model, "blocks", None)
    attention = getattr(blocks[0], "attn", None) if isinstance(blocks, nn.Sequential) else None
    heads = getattr(attention, "num_heads", None)
    return EncoderConfig(
        width=width,
        depth=len(blocks) if isinstance(blocks, nn.Sequential) else 1,
        heads=heads or next(count for count in _CUSTOMARY_HEADS if width % count == 0),
        image_size=image_size,
        num_frames=1,
        patch_size=image_size // side,
        tubelet_size=1,
    )


def _load_strictly(model: Any, path: Path) -> None:
    """Load a state dict; only the classifier, which is not there any more, may be left over."""
    if not path.is_file():
        raise UserError(f"encoder.timm_weights: {path}: no such file; check the path")
    if path.suffix == ".safetensors":
        state = read_weights(path)
    else:
        state = read_torch_file(path)
        inner = (state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict))
        state = next(inner, state)
    state = {plain: state[name] for plain, name in plain_names(state, str(path)).items()}
    classifier = model.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    prefixes = tuple(f"{head}." for head in heads)
    load_strictly(
        model,
        {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)},
        str(path),
        "weights of timm",
        remedy="these weights are of another model",
    )
