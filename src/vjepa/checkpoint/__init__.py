"""Checkpoints: the authors' released files and our own folders, read strictly, with a report.

All foreign quirks live here and nowhere else.
"""

from vjepa.checkpoint.folder import CheckpointConfig, find_checkpoint, read_config, save_model
from vjepa.checkpoint.load import (
    LoadedEncoder,
    LoadedModel,
    convert,
    load_encoder,
    load_model,
    read_encoder,
    read_model,
    released_layout,
    shipped_weights,
)
from vjepa.checkpoint.released import (
    LoadedProbe,
    ReleasedTrainingState,
    Which,
    load_probe,
    read_probe,
    released_training_state,
)
from vjepa.checkpoint.strict import LoadReport

__all__ = [
    "CheckpointConfig",
    "LoadReport",
    "LoadedEncoder",
    "LoadedModel",
    "LoadedProbe",
    "ReleasedTrainingState",
    "Which",
    "convert",
    "find_checkpoint",
    "load_encoder",
    "load_model",
    "load_probe",
    "read_config",
    "read_encoder",
    "read_model",
    "read_probe",
    "released_layout",
    "released_training_state",
    "save_model",
    "shipped_weights",
]
