"""Checkpoints: our own folders and the authors' released files, read strictly, with a report.

``folder`` alone knows our format, ``store`` writes it beside a training, ``released`` alone knows
the authors'.
"""

from vjepa.checkpoint.folder import (
    CheckpointConfig,
    Which,
    described,
    find_checkpoint,
    locate,
    read_config,
    save_model,
)
from vjepa.checkpoint.load import (
    AnyEncoder,
    convert,
    read_encoder,
    read_model,
    read_sizes,
    shipped_weights,
    start_training,
)
from vjepa.checkpoint.released import (
    ReleasedTrainingState,
    hub_classes,
    read_anticipation_probe,
    read_probe,
    released_layout,
    released_training_state,
)
from vjepa.checkpoint.strict import LoadReport
