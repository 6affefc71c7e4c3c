"""Checkpoints: the authors' released files and our own folders, read strictly, with a report.

All foreign quirks live here and nowhere else.
"""

from vjepa.interop.conversion import convert, released_layout
from vjepa.interop.folders import CheckpointConfig, find_checkpoint, read_config, save_model
from vjepa.interop.loading import (
    LoadedEncoder,
    LoadedModel,
    load_encoder,
    load_model,
    read_encoder,
    read_model,
)
from vjepa.interop.probes import LoadedProbe, load_probe, read_probe
from vjepa.interop.released import Which
from vjepa.interop.released_training import ReleasedTrainingState, released_training_state
from vjepa.interop.report import LoadReport
from vjepa.interop.shipped import shipped_weights

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
