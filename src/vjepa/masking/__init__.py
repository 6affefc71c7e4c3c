"""Masks: which tokens the context encoder sees and which the predictor must fill in.

Multi-block, random-tube and causal masks (paper, section 3.2 and Table 4), and three ways to bring
the clips of a batch to a common count.
"""

from vjepa.masking.config import LONG_RANGE, SHORT_RANGE, CountMode, MaskConfig, MaskingConfig
from vjepa.masking.counting import TokenCounts, TokenMasks
from vjepa.masking.sampler import MaskSampler

__all__ = [
    "LONG_RANGE",
    "SHORT_RANGE",
    "CountMode",
    "MaskConfig",
    "MaskSampler",
    "MaskingConfig",
    "TokenCounts",
    "TokenMasks",
]
