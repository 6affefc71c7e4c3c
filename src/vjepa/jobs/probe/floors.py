"""Floors: what needs no trained encoder, so that no number stands without its yardstick.

Ridge classifiers on small pixels of the very clips that an encoder is shown. The strongest for
motion is often the *size* of what changes: it says where and when something moves, whatever its
sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.data.loader.evaluation import EvaluationClips
from vjepa.evaluation.heads import fit_ridge
from vjepa.evaluation.labels import Split
from vjepa.evaluation.online import choose_rows
from vjepa.evaluation.results import Floor
from vjepa.jobs.probe.inputs import ProbeInputs

_READ_AT_ONCE = 64
_MOST_LABELS = 4000  # for a closed form
_SIDE = 16


def small_frames(clips: Tensor) -> Tensor:
    """Frames of clips uint8 [n, 3, T, H, W], small: float32 [n, T, 3, 16, 16], scale 0..255."""
    frames = clips.float().transpose(1, 2)
    small = torch.nn.functional.adaptive_avg_pool2d(frames.flatten(0, 1), _SIDE)
    return small.unflatten(0, frames.shape[:2])


def _differences(frames: Tensor) -> Tensor:
    """How grey changes from frame to frame: float [n, T, 3, S, S] -> [n, (T-1)*S*S]."""
    return frames.mean(dim=2).diff(dim=1).flatten(1)


PIXEL_FLOORS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "middle frame": lambda frames: frames[:, frames.shape[1] // 2].flatten(1),
    "all frames": lambda frames: frames.flatten(1),
    "frame differences": _differences,
    "size of differences": lambda frames: _differences(frames).abs(),
}
"""Of :func:`small_frames`, float [n, T, 3, S, S]: what ridge sees, [n, F]; one frame: no motion."""


def pixel_floors(inputs: ProbeInputs) -> tuple[Floor, ...]:
    """Ridge on small pixels of frames, of their differences and of the size of these.

    Fitted on the probe's labels (at most 4000, the same share of every class), measured on its test
    videos; of all segments, first crop.
    """
    assert inputs.test is not None
    used, seed = inputs.used, inputs.config.seed
    fitted_on = used[choose_rows(inputs.labels.take(used), _MOST_LABELS, seed)]
    rows, train = _frames(inputs, inputs.train, fitted_on)
    known = torch.from_numpy(inputs.labels.indices[rows])
    rows, test = _frames(inputs, inputs.test, np.arange(len(inputs.test.labels)))
    truth = torch.from_numpy(inputs.test.labels.indices[rows])
    floors = []
    for name, view in PIXEL_FLOORS.items():
        fitted = fit_ridge(view(train), known, len(inputs.labels.classes))
        correct = int((fitted.scores(view(test)).argmax(dim=1) == truth).sum())
        floors.append(Floor(name=f"ridge on {name}", count=len(truth), correct=correct))
    return tuple(floors)


def _frames(
    inputs: ProbeInputs, split: Split, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Tensor]:
    how, extractor = inputs.extractor.settings, inputs.extractor
    seen, bad = (split.manifest, how.clip, how.view, extractor.reading), extractor.on_bad_video
    clips = EvaluationClips(*seen, rows=rows, on_bad_video=bad)
    return read_small_frames(clips, how.view.num_segments)


def read_small_frames(
    clips: EvaluationClips, num_segments: int = 1
) -> tuple[NDArray[np.int64], Tensor]:
    """Rows that can be read, and the first crop of all their segments, small, one after another.

    float32 [n, S * T, 3, 16, 16]; the clips are closed.
    """
    frames, kept = [], []
    with clips as source:
        for batch in source.batches(0, len(source), _READ_AT_ONCE):
            shown = batch.clips[:, :num_segments]
            frames.append(small_frames(shown.flatten(0, 1)).unflatten(0, shown.shape[:2]))
            kept.append(batch.rows)
    return np.concatenate(kept), torch.cat(frames).flatten(1, 2)
