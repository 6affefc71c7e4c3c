"""Weights that come with the package give the number of their model card."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
import torch

from vjepa.checkpoint import read_config
from vjepa.checkpoint.folder import SHIPPED, shipped_names
from vjepa.demo.synthetic import MOTION_CLASSES, SyntheticClip, SyntheticConfig, render_clip
from vjepa.evaluation.frozen import encode_clips
from vjepa.evaluation.heads import fit_ridge, pool_tokens
from vjepa.evaluation.preprocess import load_encoder, load_model


@cache
def _drawn(seed: int, split: str, index: int) -> SyntheticClip:
    return render_clip(SyntheticConfig(seed=seed), split, index)


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_model_gives_the_number_of_its_card(name: str) -> None:
    card = (SHIPPED / name / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    told = re.search(
        r"first (\d+) training clips of set seed (\d+), names ([\d.]+) % of its first (\d+)", card
    )
    assert told, "the card has no number to hold it to"
    sizes, encoder = {"train": int(told[1]), "test": int(told[4])}, load_encoder(name)
    side = encoder.config.image_size
    features, labels = {}, {}
    for split, count in sizes.items():
        some = [_drawn(int(told[2]), split, index) for index in range(count)]
        border = (some[0].frames.shape[1] - side) // 2
        inside = slice(border, border + side)
        clips = torch.from_numpy(np.stack([one.frames[:, inside, inside] for one in some]))
        tokens = encode_clips(encoder, clips.permute(0, 4, 1, 2, 3), "float32")
        features[split] = pool_tokens(tokens, encoder.config.grid[0])
        labels[split] = torch.tensor([MOTION_CLASSES.index(one.motion) for one in some])
    ridge = fit_ridge(features["train"], labels["train"], len(MOTION_CLASSES))
    answers = ridge.scores(features["test"]).argmax(dim=1)
    right = float((answers == labels["test"]).float().mean())
    # Half a clip in a hundred may turn over with another order of sums.
    assert 100 * right == pytest.approx(float(told[3]), abs=0.5)


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_model_opens_by_name_and_has_a_card(name: str) -> None:
    model = load_model(name)
    size = model.config.encoder
    clip = torch.zeros(1, 3, size.num_frames, size.image_size, size.image_size)
    assert torch.isfinite(model.target_encoder(clip)).all()
    card = (SHIPPED / name / "README.md").read_text(encoding="utf-8")
    parts = ("Trained on", "How", "What it can do", "What it cannot", "Licence")
    assert [line[3:] for line in card.splitlines() if line.startswith("## ")] == list(parts)
    assert f"{read_config(SHIPPED / name).step:,} updates" in card.replace("\n", " ")
    settings = (SHIPPED / name / "config.json").read_text(encoding="utf-8")
    assert not re.search(r'"/|"[A-Z]:\\', settings), "a path of the machine that trained it"
