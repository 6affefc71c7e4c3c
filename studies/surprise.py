"""Does a model notice what cannot be? Clips with a planted event, beside the same without it.

A digit moves straight over a panning background for 16 frames. At a frame drawn from 8 to 12 it
vanishes, jumps, turns back, stops, or becomes another digit or colour; in the twin it goes on.
The surprise of the shipped demo model (``vjepa show surprise``) is compared with that of random
weights, with the change of features from one step to the next, and with the change of pixels.

    python studies/surprise.py --clips 120 --out surprise.json

Results: docs/surprise.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import vjepa
from vjepa.demo.synthetic import EVENTS, SyntheticConfig, render_clip, render_event
from vjepa.jobs.show_time import similarity
from vjepa.models import VJEPA, patchify
from vjepa.runtime.files import atomic_write
from vjepa.tasks.masked_prediction import normalise_features

CONFIG = SyntheticConfig(num_frames=16, travel=0.6, background_speed=0.6)
_SEEN, _LENGTH, _STARTS, _BORDER = 4, 8, 9, 4

Video = NDArray[np.uint8]


def windows(video: Video) -> torch.Tensor:
    """Every window of the video: uint8 [9, 3, 8, 32, 32]; judged are its frames 4 and 5."""
    inside = video[:, _BORDER:-_BORDER, _BORDER:-_BORDER]
    clips = [inside[start : start + _LENGTH] for start in range(_STARTS)]
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).contiguous()


def worst_quarter(errors: torch.Tensor) -> NDArray[np.float64]:
    """Mean of the worst quarter of places: [windows, 16] -> [windows]."""
    return errors.topk(4, dim=1).values.mean(1).double().numpy()


@torch.no_grad()
def surprise(model: VJEPA, video: Video) -> NDArray[np.float64]:
    """As ``vjepa show surprise``: error of the predicted features of the next time step."""
    clips = model.encoder.normalise(windows(video))
    places = torch.arange(64).expand(len(clips), -1)
    truth = normalise_features(model.target_encoder(clips))[:, 32:48]
    seen = model.encoder(clips, places[:, :32])
    predicted = model.predictor(seen, places[:, :32], places[:, 32:])[:, :16]
    return worst_quarter((predicted - truth).abs().mean(-1))


@torch.no_grad()
def feature_change(model: VJEPA, video: Video) -> NDArray[np.float64]:
    """How far the features at a place move from the last time step seen to the next."""
    features = normalise_features(model.target_encoder(model.encoder.normalise(windows(video))))
    return worst_quarter((features[:, 32:48] - features[:, 16:32]).abs().mean(-1))


def pixel_change(video: Video) -> NDArray[np.float64]:
    """The same of pixels: from the last frame seen to the next, by places of 8 x 8 pixels."""
    clips = windows(video).float()
    change = (clips[:, :, _SEEN] - clips[:, :, _SEEN - 1]).abs().mean(1)
    return worst_quarter(torch.nn.functional.avg_pool2d(change[:, None], 8).flatten(1))


@torch.no_grad()
def follows(model: VJEPA, clips: int) -> dict[str, float]:
    """How often the most similar place of a later time step is where the digit has gone.

    As ``vjepa show similarity`` from the digit's token in the first time step, for clips of the
    demo's set in which it moves straight; counted are steps in which it is in another token than at
    first. By the features, by those of random weights, and by the pixels of the tokens.
    """
    config, size = SyntheticConfig(), model.config.encoder
    torch.manual_seed(0)
    encoders = {
        "features": model.target_encoder,
        "random weights": VJEPA(model.config).eval().encoder,
    }
    hits: dict[str, list[bool]] = {}
    for index in range(clips):
        known = render_clip(config, "test", index)
        inside = known.frames[:, _BORDER:-_BORDER, _BORDER:-_BORDER]
        middles = (known.centre_a * config.size - _BORDER).reshape(-1, size.tubelet_size, 2)
        cells = np.floor(middles.mean(axis=1) / size.patch_size).astype(int)[:, ::-1]
        if not known.motion.startswith("move_") or cells.min() < 0 or cells.max() >= size.grid[1]:
            continue
        video = torch.from_numpy(inside.copy()).permute(3, 0, 1, 2)[None]
        clip = model.encoder.normalise(video)
        grids = {name: encoder(clip)[0] for name, encoder in encoders.items()}
        grids["pixels"] = patchify(clip, size.tubelet_size, size.patch_size)[0]
        for name, tokens in grids.items():
            alike = similarity(tokens.reshape(*size.grid, -1).numpy(), (0, *map(int, cells[0])))
            for step in range(1, size.grid[0]):
                if (cells[step] != cells[0]).any():
                    found = np.unravel_index(alike[step].argmax(), size.grid[1:])
                    hits.setdefault(name, []).append(bool((cells[step] == found).all()))
    return {name: float(np.mean(values)) for name, values in hits.items()} | {
        "steps": float(len(hits["pixels"]))
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=120)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = vjepa.load_model("demo")
    followed = follows(model, 600)
    print(f"the most similar place is where the digit has gone: {followed}")
    torch.manual_seed(0)
    fresh = VJEPA(model.config).eval()
    measures: dict[str, Callable[[Video], NDArray[np.float64]]] = {
        "surprise": lambda video: surprise(model, video),
        "surprise of random weights": lambda video: surprise(fresh, video),
        "change of features": lambda video: feature_change(model, video),
        "change of pixels": pixel_change,
    }
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for name, measured in measures.items():
        table[name] = {}
        twins = (render_event(CONFIG, number, None)[0] for number in range(args.clips))
        usual = [measured(twin).max() for twin in twins]
        for event in EVENTS:
            highest, there = [], []
            for number in range(args.clips):
                video, when = render_event(CONFIG, number, event)
                curve = measured(video)
                highest.append(curve.max())
                # Windows whose judged frames hold the first one after the event.
                there.append(int(curve.argmax()) in (when - _SEEN, when - _SEEN - 1))
            above = np.mean(np.array(highest)[:, None] > np.array(usual)[None])
            table[name][event] = (float(above), float(np.mean(there)))
    atomic_write(args.out, json.dumps(table, indent=1))
    print(f"| | {' | '.join(EVENTS)} |")
    print("|---" * (len(EVENTS) + 1) + "|")
    for name, found in table.items():
        cells = [f"{above:.2f}, {100 * there:.0f} %" for above, there in found.values()]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
