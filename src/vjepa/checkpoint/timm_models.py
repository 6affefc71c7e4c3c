"""Image models of the `timm` library as frame-by-frame video encoders (extra ``baselines``).

Nothing is downloaded: weights come from a local file, or are drawn at random.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vjepa.checkpoint.folder import read_weights
from vjepa.checkpoint.strict import load_strictly, plain_names
from vjepa.checkpoint.torch_files import read_torch_file
from vjepa.errors import UserError
from vjepa.models import PIXEL_MEAN, PIXEL_STD, EncoderConfig
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
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        raise UserError("encoder.timm: timm is not installed: pip install timm") from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        suggestion = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"encoder.timm: timm {timm.__version__} has no model {name!r}{suggestion}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, pretrained=False, num_classes=0)
    if weights is not None:
        _load_strictly(model, weights)
    images = _TimmImages(model.eval(), name)
    return FrameEncoder(images, images.config).eval()


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
        raise UserError(f"encoder.timm_weights: {path}: no such file")
    if path.suffix == ".safetensors":
        state = read_weights(path)
    else:
        state = read_torch_file(path)
        for key in ("state_dict", "model"):
            if isinstance(state.get(key), dict):
                state = state[key]
                break
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
