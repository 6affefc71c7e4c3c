"""A small model and files made from it, independent of the recorded ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.models.tiny import MODEL, clips, shaken

from vjepa.checkpoint import released_layout
from vjepa.models import VJEPA, ModelConfig, PredictorConfig


def model(config: ModelConfig = MODEL) -> VJEPA:
    """A model in which encoder, target encoder and predictor all differ."""
    made = VJEPA(config)
    shaken(made.encoder, 1)
    shaken(made.target_encoder, 2)
    shaken(made.predictor, 3)
    return made.eval()


def with_encoder(predictor: PredictorConfig = MODEL.predictor, **changes: Any) -> ModelConfig:
    """The small configuration with another encoder, and perhaps another predictor."""
    return ModelConfig(encoder=replace(MODEL.encoder, **changes), predictor=predictor)


def released_file(folder: Path, made: VJEPA | None = None, **changes: Any) -> Path:
    """A file in the authors' layout; `changes` replace entries (None removes)."""
    content = released_layout(model() if made is None else made) | changes
    path = folder / "released.pth.tar"
    torch.save({k: v for k, v in content.items() if v is not None or k == "scaler"}, path)
    return path


def same_outputs(a: VJEPA, b: VJEPA) -> bool:
    """Whether two models compute the same bits."""
    video = clips(1)
    context, target = torch.tensor([[0, 3, 9]]), torch.tensor([[1, 2]])
    with torch.no_grad():
        for part in ("encoder", "target_encoder"):
            if not torch.equal(a.get_submodule(part)(video), b.get_submodule(part)(video)):
                return False
        outs = [m.predictor(m.encoder(video, context), context, target, 1) for m in (a, b)]
    return torch.equal(*outs)
