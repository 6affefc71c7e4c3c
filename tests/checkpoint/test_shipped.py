"""Weights that come with the package give the number of their model card."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from vjepa.checkpoint import shipped_weights
from vjepa.demo.synthetic import MOTION_CLASSES, SyntheticConfig, render_clip
from vjepa.evaluation.frozen import encode_clips
from vjepa.evaluation.heads import fit_ridge, pool_tokens
from vjepa.evaluation.preprocess import load_encoder


def test_the_shipped_model_gives_the_number_of_its_card() -> None:
    card = (shipped_weights() / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    told = re.search(
        r"first (\d+) training clips of set seed (\d+), names ([\d.]+) % of its first (\d+)", card
    )
    assert told, "the card has no number to hold it to"
    sizes = {"train": int(told[1]), "test": int(told[4])}
    data, encoder = SyntheticConfig(seed=int(told[2])), load_encoder(shipped_weights())
    side = encoder.config.image_size
    border = (data.size - side) // 2
    inside = slice(border, border + side)
    features, labels = {}, {}
    for split, count in sizes.items():
        drawn = [render_clip(data, split, index) for index in range(count)]
        clips = torch.from_numpy(np.stack([one.frames[:, inside, inside] for one in drawn]))
        tokens = encode_clips(encoder, clips.permute(0, 4, 1, 2, 3), "float32")
        features[split] = pool_tokens(tokens, encoder.config.grid[0])
        labels[split] = torch.tensor([MOTION_CLASSES.index(one.motion) for one in drawn])
    ridge = fit_ridge(features["train"], labels["train"], len(MOTION_CLASSES))
    answers = ridge.scores(features["test"]).argmax(dim=1)
    right = float((answers == labels["test"]).float().mean())
    # Half a clip in a hundred may turn over with another order of sums.
    assert 100 * right == pytest.approx(float(told[3]), abs=0.5)
