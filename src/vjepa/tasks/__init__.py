"""What is trained: a batch in, loss and metrics out.

Feature prediction (the paper's section 3), pixel prediction (its Table 1), classification (frozen
evaluation), and the health of self-supervised training.
"""

from vjepa.tasks.classification import ClassificationObjective
from vjepa.tasks.feature_prediction import FeaturePrediction
from vjepa.tasks.health import collapse_alarm
from vjepa.tasks.pixel_prediction import PixelPrediction
from vjepa.tasks.task import BatchPart, StepOutput

__all__ = [
    "BatchPart",
    "ClassificationObjective",
    "FeaturePrediction",
    "PixelPrediction",
    "StepOutput",
    "collapse_alarm",
]
