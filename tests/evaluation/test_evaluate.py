"""Joining of segments and averaging over views against the reference's recorded numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.golden.golden_files import LOGITS, tensors
from torch import Tensor

from vjepa.checkpoint import read_probe
from vjepa.evaluation.evaluate import averaged_probabilities, join_clips


def _clips() -> Tensor:
    """[B 2, R 6, N 4, D 3] with the clip's number in every token; two segments, three views."""
    return torch.arange(6.0)[None, :, None, None].expand(2, 6, 4, 3)


def test_segments_of_a_view_stand_one_after_the_other() -> None:
    joined = join_clips(_clips(), 2, "tokens")
    assert joined.shape == (2, 3, 8, 3)
    assert joined[0, 1, :, 0].tolist() == [2.0] * 4 + [3.0] * 4
    assert torch.equal(join_clips(_clips(), 2, "average"), _clips())


@pytest.mark.parametrize(("join", "name"), [("tokens", "joined"), ("average", "separate")])
def test_probabilities_are_the_references(golden_dir: Path, join, name: str) -> None:
    recorded = tensors(golden_dir, "clip_aggregation")
    wanted = tensors(golden_dir, "attentive_probe_forward")[f"eval/{name}/probabilities"]
    probe = read_probe(golden_dir / "attentive_probe_tiny.pth.tar", num_heads=3)[0]
    clips = [recorded[f"separate/view{v}/segment{s}"] for v in range(3) for s in range(2)]
    tokens = torch.stack(clips, dim=1)  # [batch, view * segments + segment, N, D]
    with torch.no_grad():
        found = averaged_probabilities(probe, join_clips(tokens, 2, join))
    torch.testing.assert_close(found.float(), wanted, **LOGITS)


def test_several_heads_and_several_classes() -> None:
    def heads(tokens: Tensor) -> Tensor:
        return torch.stack([tokens.mean(dim=1), -tokens.mean(dim=1)])

    tokens = join_clips(_clips(), 2, "tokens")
    both = averaged_probabilities(heads, tokens)
    assert both.shape == (2, 2, 3)
    assert torch.allclose(both.sum(dim=-1), torch.ones(2, 2, dtype=torch.float64))
    each = averaged_probabilities(heads, tokens, multi_label=True)
    expected = torch.tensor([0.5, 2.5, 4.5], dtype=torch.float64).sigmoid().mean()
    assert torch.allclose(each[0], expected.expand(2, 3))
