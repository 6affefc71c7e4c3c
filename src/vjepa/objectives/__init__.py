"""What is trained: a batch in, loss and metrics out.

Feature prediction (the paper's section 3), pixel prediction (its Table 1), classification (frozen
evaluation), and the health of self-supervised training.
"""

from vjepa.objectives.batch_part import BatchPart
from vjepa.objectives.classification import ClassificationObjective
from vjepa.objectives.feature_prediction import FeaturePrediction
from vjepa.objectives.health import collapse_alarm
from vjepa.objectives.pixel_prediction import PixelPrediction
from vjepa.objectives.step_output import StepOutput

__all__ = [
    "BatchPart",
    "ClassificationObjective",
    "FeaturePrediction",
    "PixelPrediction",
    "StepOutput",
    "collapse_alarm",
]
