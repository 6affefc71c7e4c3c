"""The weights that come with the package."""

from __future__ import annotations

import torch

import vjepa
from vjepa.checkpoint import find_checkpoint, read_config, shipped_weights

_LARGEST = 8 << 20
"""Bytes: the package must stay small."""


def test_the_model_loads_whole_and_takes_the_clips_that_its_card_names() -> None:
    folder = shipped_weights()
    model = vjepa.load_model(folder).eval()
    size = model.config.encoder
    assert (size.num_frames, size.image_size, size.width, size.depth) == (8, 32, 96, 3)
    encoder = vjepa.load_encoder(folder).eval()
    clips = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        features = encoder(clips)
        assert features.shape == (2, 64, 96)
        assert torch.equal(features, model.target_encoder(clips))
    assert features.isfinite().all()
    # Trained: clips differ in their features far beyond what position does.
    assert features.std(dim=0).mean() > 0.1


def test_the_folder_says_what_was_trained_and_how() -> None:
    folder = shipped_weights()
    assert find_checkpoint(folder) == folder
    config = read_config(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{config.step:,} updates" in card
    assert 0 < config.step <= config.run["optim"]["steps"]
    assert config.run["data"]["sources"] == [], "no path of the machine that it was trained on"
    for part in ("Trained on", "How", "What it can do", "What it cannot", "Licence"):
        assert part in card
    assert sum(file.stat().st_size for file in folder.iterdir()) < _LARGEST
