"""What stands beside a probe: ridge classifiers on the pixels of the very same clips."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.data.loader.evaluation import EvaluationClips
from vjepa.evaluation.floors import PIXEL_FLOORS, small_frames
from vjepa.evaluation.heads import fit_ridge
from vjepa.evaluation.labels import Split
from vjepa.evaluation.online import choose_rows
from vjepa.evaluation.results import Floor
from vjepa.jobs.probe.inputs import ProbeInputs

_READ_AT_ONCE = 64
_MOST_LABELS = 4000  # for a closed form


def pixel_floors(inputs: ProbeInputs) -> tuple[Floor, ...]:
    """Ridge on small pixels of frames, of their differences and of the size of these.

    Fitted on the probe's labels (at most 4000, the same share of every class), measured on its test
    videos; of all segments, first crop.
    """
    assert inputs.test is not None
    assert inputs.test.labels is not None
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
    """Rows that can be read, and their frames: float32 [n, T, 3, 16, 16]."""
    how, extractor = inputs.extractor.settings, inputs.extractor
    frames, kept = [], []
    with EvaluationClips(
        split.manifest,
        how.clip,
        how.view,
        extractor.reading,
        rows=rows,
        on_bad_video=extractor.on_bad_video,
    ) as source:
        for batch in source.batches(0, len(source), _READ_AT_ONCE):
            shown = batch.clips[:, : how.view.num_segments]
            frames.append(small_frames(shown.flatten(0, 1)).unflatten(0, shown.shape[:2]))
            kept.append(batch.rows)
    return np.concatenate(kept), torch.cat(frames).flatten(1, 2)
