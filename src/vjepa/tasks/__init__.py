"""What is trained: a batch in, a loss out.

Feature prediction (the paper's section 3), pixel prediction (its Table 1), classification (frozen
evaluation), and the health of self-supervised training.
"""

from vjepa.tasks.classification import Classification
from vjepa.tasks.feature_prediction import FeaturePrediction
from vjepa.tasks.health import collapse_alarm
from vjepa.tasks.masked_prediction import BatchSize, MaskedPrediction
from vjepa.tasks.pixel_prediction import PixelPrediction
from vjepa.tasks.task import Output, Task, slice_of_part

__all__ = [
    "BatchSize",
    "Classification",
    "FeaturePrediction",
    "MaskedPrediction",
    "Output",
    "PixelPrediction",
    "Task",
    "collapse_alarm",
    "slice_of_part",
]
