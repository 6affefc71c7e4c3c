"""The sizes of a model: typed, checked, and everything that a checkpoint needs to be rebuilt."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from vjepa.config import config_dataclass

_Count = Annotated[int, Field(gt=0)]
_Positive = Annotated[float, Field(gt=0)]


PIXEL_MEAN = (0.485, 0.456, 0.406)
"""Channel means of ImageNet, red green blue, on the scale 0..1."""
PIXEL_STD = (0.229, 0.224, 0.225)
"""Channel standard deviations of ImageNet, red green blue, on the scale 0..1."""

Position = Literal["sincos", "rotary", "rotary_pairs", "given", "given_stretched"]
"""How a model knows where its tokens are."""
_SMALLEST_ROTATED_HEAD = 6  # two columns for each axis


@config_dataclass
class InputConfig:
    """What an encoder is shown of a clip's pixels: part of the model, as its weights are.

    The defaults are those of the paper's release and of every image model.
    """

    content: Literal["rgb", "rgb_without_mean", "change", "rgb_and_change"] = "rgb"
    """`rgb`: the pixels; `rgb_without_mean`: less their mean over the clip, so that what never
    changes is not seen; `change`: less those of the frame before (the first frame's is the
    second's); `rgb_and_change`: both, six channels."""
    mean: tuple[float, ...] | None = None
    """Of each channel on the scale 0..1; taken off. null: ImageNet's of pixels, 0 of changes."""
    deviation: tuple[_Positive, ...] | None = None
    """Of each channel on that scale; divided by. null: ImageNet's."""

    def __post_init__(self) -> None:
        for name, numbers in (("mean", self.mean), ("deviation", self.deviation)):
            if numbers is not None and len(numbers) != self.channels:
                raise ValueError(
                    f"{name}: content {self.content} has {self.channels} channels, got "
                    f"{len(numbers)} numbers"
                )

    @property
    def channels(self) -> int:
        """Channels that the encoder is given."""
        return 6 if self.content == "rgb_and_change" else 3

    @property
    def mean_and_deviation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of each channel, the defaults put in."""
        usual = {"rgb": PIXEL_MEAN, "rgb_and_change": (*PIXEL_MEAN, 0.0, 0.0, 0.0)}
        mean = self.mean or usual.get(self.content, (0.0, 0.0, 0.0))
        return mean, self.deviation or PIXEL_STD * (self.channels // 3)


@config_dataclass
class EncoderConfig:
    """A vision transformer over tubelets (video) or patches (image model).

    ``num_frames=1, tubelet_size=1`` makes an image model: 2-D convolution and 2-D position code.
    The defaults are the paper's ViT-L/16 at 224 pixels (section 4).
    """

    width: _Count = 1024
    """Token width D."""
    depth: _Count = 24
    """Number of transformer blocks."""
    heads: _Count = 16
    """Attention heads; must divide the width."""
    mlp_ratio: _Positive = 4.0
    """Hidden width of a block's MLP over the token width."""
    image_size: _Count = 224
    """Side of the square input in pixels for which the position code is made."""
    num_frames: _Count = 16
    """Frames of the input clip for which the position code is made."""
    patch_size: _Count = 16
    """Side of a patch in pixels."""
    tubelet_size: _Count = 2
    """Frames that one token covers."""
    position: Position = "sincos"
    """Where tokens are. `sincos`: a fixed code is added (V-JEPA); `rotary`, `rotary_pairs`: queries
    and keys are rotated (V-JEPA 2; 2.1); `given`: a table that comes with the weights is added;
    `given_stretched`: likewise, and for a video of another size stretched over its sides."""
    position_split: Literal["uniform", "half"] = "uniform"
    """Shares of the position code: uniform = a third per axis, half = time D/2, sides D/4 each."""
    position_reference: _Count | None = None
    """Rotary only. Rows and columns of any input are stretched to so many places (V-JEPA 2.1: 16);
    null: they are counted, on beyond those seen in training."""
    levels: tuple[int, ...] = ()
    """Blocks, from 0, whose outputs are features as the last one's are, each with a norm of its own
    (V-JEPA 2.1: four); the last block is one of them. Empty: the last block's norm serves all."""
    modalities: bool = False
    """Whether an input of one frame is an image, with patches of its own, and tokens are told of
    what they are by a learnt vector (V-JEPA 2.1)."""
    channels: _Count = 3
    """Channels of the input video."""
    input: InputConfig = field(default_factory=InputConfig)
    """How pixels become that input."""
    cls: bool = False
    """Whether a learnt token without a place goes along, [cls], which may sum a clip up (LeVJEPA).
    Features are those of the other tokens, unless it is asked for."""
    attention: Literal["full", "block_causal"] = "full"
    """`block_causal`: a token attends to those of its own time step and of earlier ones, so that
    the features of a frame do not depend on what comes later; [cls] comes after all of them: it
    attends to every token, and none to it."""
    init_std: _Positive = 0.02
    """Standard deviation of fresh weights. The authors' 0.02 suits widths of about 1000: a narrow
    network hardly answers at first to what it is given."""
    patch_init_std: _Positive = 0.02
    """Standard deviation of the patch embedding's fresh weights. The authors' 0.02 makes a fresh
    encoder's features mostly position; larger lets pixels lead the first targets, which a small
    model needs that trains for minutes."""

    def __post_init__(self) -> None:
        _require_multiple("image_size", self.image_size, "patch_size", self.patch_size)
        _require_multiple("num_frames", self.num_frames, "tubelet_size", self.tubelet_size)
        check_positions("width", self.width, self.heads, self)
        levels = list(self.levels)
        if levels and (sorted(set(levels)) != levels or levels[-1] != self.depth - 1):
            raise ValueError(f"levels: {levels} must rise to the last block, {self.depth - 1}")
        if self.modalities and self.is_image_model:
            raise ValueError("modalities: a model of single frames has one only")
        if self.input.content != "rgb" and self.channels != self.input.channels:
            raise ValueError(
                f"channels: input.content {self.input.content} has {self.input.channels}, got "
                f"{self.channels}"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """The token grid (t, h, w)."""
        side = self.image_size // self.patch_size
        return (self.num_frames // self.tubelet_size, side, side)

    @property
    def num_tokens(self) -> int:
        """N = t*h*w."""
        t, h, w = self.grid
        return t * h * w

    @property
    def is_image_model(self) -> bool:
        """Whether the model sees single frames: 2-D convolution and 2-D position code."""
        return self.num_frames == 1

    @property
    def is_rotary(self) -> bool:
        """Whether positions rotate queries and keys, instead of being added to tokens."""
        return self.position in ("rotary", "rotary_pairs")

    @property
    def is_given(self) -> bool:
        """Whether a table of positions comes with the weights."""
        return self.position in ("given", "given_stretched")

    @property
    def mlp_width(self) -> int:
        """Hidden width of a block's MLP."""
        return round(self.width * self.mlp_ratio)

    @property
    def has_spare(self) -> bool:
        """Whether the last block's features of a clip leave some of the weights out."""
        unseen = self.cls and self.attention == "block_causal"
        return self.modalities or len(self.levels) > 1 or unseen

    @property
    def patch_values(self) -> int:
        """Numbers in one token's patch: channels * tubelet * patch * patch."""
        return self.channels * self.tubelet_size * self.patch_size**2


@config_dataclass
class PredictorConfig:
    """The narrow transformer that predicts target tokens from context tokens (paper, section 3)."""

    width: _Count = 384
    """Token width P inside the predictor."""
    depth: _Count = 12
    """Number of transformer blocks."""
    heads: _Count | None = None
    """Attention heads; none means as many as the encoder, which is what the authors train with."""
    mlp_ratio: _Positive = 4.0
    """Hidden width of a block's MLP over the predictor width."""
    num_mask_tokens: _Count = 2
    """Learnt mask tokens: one per kind of mask, or 1 that all kinds share."""
    shared_mask_token: Annotated[int, Field(ge=0)] | None = None
    """The one of several stored mask tokens that all kinds of mask share (V-JEPA 2: 0 of 10)."""
    levels: _Count = 1
    """Levels of the encoder that come in side by side (V-JEPA 2.1: 4)."""
    out_width: _Count | None = None
    """Numbers predicted for a token; null: as many as come in."""
    predicts_context: bool = False
    """Whether there is a projection for context tokens, too (V-JEPA 2.1)."""
    stretch_positions: bool = True
    """Whether the encoder's `position_reference` holds here, too."""
    init_std: _Positive = 0.02
    """As the encoder's."""

    def __post_init__(self) -> None:
        if self.heads is not None:
            _require_multiple("width", self.width, "heads", self.heads)
        shared = self.shared_mask_token
        if shared is not None and shared >= self.num_mask_tokens:
            raise ValueError(f"shared_mask_token: {shared} is none of {self.num_mask_tokens}")

    def mask_token(self, kind: int) -> int:
        """Which mask token stands for the hidden places of a kind of mask."""
        return kind if self.shared_mask_token is None else self.shared_mask_token

    @property
    def mlp_width(self) -> int:
        """Hidden width of a block's MLP."""
        return round(self.width * self.mlp_ratio)


@config_dataclass
class ModelConfig:
    """Encoder and predictor; the target encoder has the encoder's shape."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The context encoder E, and so the target encoder."""
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    """The predictor P."""

    def __post_init__(self) -> None:
        encoder, predictor = self.encoder, self.predictor
        heads = predictor.heads or encoder.heads
        check_positions("predictor.width", predictor.width, heads, encoder)
        if predictor.levels not in (1, len(encoder.levels)):
            raise ValueError(
                f"predictor.levels: {predictor.levels}, but the encoder has "
                f"{len(encoder.levels) or 1}: take all, or 1"
            )


def check_positions(name: str, width: int, heads: int, encoder: EncoderConfig) -> None:
    """Refuse, by its `name`, a width that cannot take so many heads or the kind of positions."""
    _require_multiple(name, width, "heads", heads)
    head_width = width // heads
    if encoder.position == "sincos":
        check_position_width(name, width, encoder)
    elif encoder.is_rotary and (head_width < _SMALLEST_ROTATED_HEAD or head_width % 2):
        raise ValueError(
            f"{name}: {width} with {heads} heads: rotary positions need heads of even width, at "
            f"least {_SMALLEST_ROTATED_HEAD}"
        )


def check_position_width(name: str, width: int, encoder: EncoderConfig) -> None:
    """Refuse, by its `name`, a width for which the encoder's kind of grid has no sin-cos code.

    Some axis would get an odd number of columns; sines and cosines come in pairs.
    """
    if encoder.is_image_model and width % 4:
        raise ValueError(f"{name}: {width} must be a multiple of 4 for a 2-D position code")
    if not encoder.is_image_model and encoder.position_split == "half" and width % 8:
        raise ValueError(f"{name}: {width} must be a multiple of 8 for position_split half")


def _require_multiple(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        raise ValueError(f"{name}: {value} must be a multiple of {divisor_name} {divisor}")
