"""What is trained: a batch in, a loss out.

Feature prediction (the paper's section 3), pixel prediction (its Table 1), LeVJEPA, classification
(frozen evaluation), fine-tuning, detection, decoding of predictions (section 6), and the health of
self-supervised training.
"""

from vjepa.tasks.classification import Classification
from vjepa.tasks.decoding import Decoding
from vjepa.tasks.dense_prediction import DensePrediction
from vjepa.tasks.detection import Detection
from vjepa.tasks.feature_prediction import FeaturePrediction
from vjepa.tasks.fine_tuning import FineTuning, MixConfig, drop_path, layer_scale
from vjepa.tasks.health import collapse_alarm
from vjepa.tasks.levjepa import LeVJEPA, LeVJEPAConfig
from vjepa.tasks.masked_prediction import BatchSize, MaskedPrediction
from vjepa.tasks.pixel_prediction import PixelPrediction
from vjepa.tasks.task import Output, Task, slice_of_part

__all__ = [
    "BatchSize",
    "Classification",
    "Decoding",
    "DensePrediction",
    "Detection",
    "FeaturePrediction",
    "FineTuning",
    "LeVJEPA",
    "LeVJEPAConfig",
    "MaskedPrediction",
    "MixConfig",
    "Output",
    "PixelPrediction",
    "Task",
    "collapse_alarm",
    "drop_path",
    "layer_scale",
    "slice_of_part",
]
