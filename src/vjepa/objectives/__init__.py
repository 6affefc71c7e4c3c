"""What is trained: a batch in, loss and metrics out.

Feature prediction (the paper's section 3), pixel prediction (its Table 1), and the health of
self-supervised training.
"""

from vjepa.objectives.health import collapse_alarm
from vjepa.objectives.pixel import PixelPrediction
from vjepa.objectives.step_output import StepOutput
from vjepa.objectives.vjepa import FeaturePrediction

__all__ = ["FeaturePrediction", "PixelPrediction", "StepOutput", "collapse_alarm"]
