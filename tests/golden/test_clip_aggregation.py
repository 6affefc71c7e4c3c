"""Several clips of a video, encoded each on its own, against the reference's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.golden.golden_files import FEATURES, LOGITS, tensors, tiny_model
from torch import Tensor
from torch.testing import assert_close

from vjepa.checkpoint import read_probe
from vjepa.models import Encoder
from vjepa.models.embedding import sincos_1d


@pytest.fixture(scope="module")
def encoder(golden_dir: Path) -> Encoder:
    return tiny_model(golden_dir).target_encoder


@pytest.fixture(scope="module")
def recorded(golden_dir: Path) -> dict[str, Tensor]:
    return tensors(golden_dir, "clip_aggregation")


@pytest.mark.parametrize("view", [0, 1, 2])
def test_segments_apart_and_joined(
    encoder: Encoder, recorded: dict[str, Tensor], view: int
) -> None:
    clips = (recorded["input/clips_u8"][:, view].to(torch.float32) - 127.5) / 64
    with torch.no_grad():
        parts = [encoder(clip) for clip in clips]
    for segment, part in enumerate(parts):
        assert_close(part, recorded[f"separate/view{view}/segment{segment}"], **FEATURES)
    assert_close(torch.cat(parts, dim=1), recorded[f"joined/view{view}"], **FEATURES)


def test_probe_on_joined_and_separate_segments(
    golden_dir: Path, recorded: dict[str, Tensor]
) -> None:
    probe = read_probe(golden_dir / "attentive_probe_tiny.pth.tar", num_heads=3)[0]
    wanted = tensors(golden_dir, "attentive_probe_forward")
    with torch.no_grad():
        joined = torch.stack([probe(recorded[f"joined/view{v}"]) for v in range(3)])
        names = [(v, s) for v in range(3) for s in range(2)]
        parts = torch.stack([probe(recorded[f"separate/view{v}/segment{s}"]) for v, s in names])
    for view in range(3):
        assert_close(joined[view], wanted[f"eval/joined/logits_view{view}"], **LOGITS)
    for (v, s), logits in zip(names, parts, strict=True):
        assert_close(logits, wanted[f"eval/separate/logits_view{v}_segment{s}"], **LOGITS)
    mean = joined.softmax(-1).mean(0)
    assert_close(mean, wanted["eval/joined/probabilities"], **LOGITS)
    mean = parts.softmax(-1).mean(0)
    assert_close(mean, wanted["eval/separate/probabilities"], **LOGITS)


def test_optional_time_code(recorded: dict[str, Tensor]) -> None:
    table = sincos_1d(torch.arange(64), 48).to(torch.float32)
    assert_close(table, recorded["time_code/table_first_64"], atol=1e-6, rtol=0)
    # The first source frame of each tubelet, segments in time order: [batch, 16].
    frames = recorded["time_code/frame_indices"][:, :, ::2].transpose(0, 1).flatten(1)
    code = sincos_1d(frames.flatten(), 48).unflatten(0, frames.shape).to(torch.float32)
    assert_close(code, recorded["time_code/added"], atol=1e-6, rtol=0)
    joined = recorded["joined/view0"] + code.repeat_interleave(16, dim=1)
    assert_close(joined, recorded["time_code/view0"], **FEATURES)
