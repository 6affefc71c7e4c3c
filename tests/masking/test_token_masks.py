from __future__ import annotations

import pytest
import torch

from vjepa.masking import TokenMasks


def _packed() -> TokenMasks:
    return TokenMasks(
        context=torch.tensor([0, 2, 5, 1, 3]),
        target=torch.tensor([1, 3, 0, 2, 4, 5, 4]),
        context_offsets=torch.tensor([0, 2, 3, 5]),
        target_offsets=torch.tensor([0, 2, 6, 7]),
    )


def _dense() -> TokenMasks:
    return TokenMasks(
        context=torch.tensor([[0, 2], [1, 5], [3, 4]]),
        target=torch.tensor([[1, 3, 4], [0, 2, 3], [0, 1, 2]]),
    )


def test_counts() -> None:
    assert (_dense().batch_size, _packed().batch_size) == (3, 3)
    assert (_dense().num_context_mean, _dense().num_target_mean) == (2.0, 3.0)
    assert _packed().num_context_mean == pytest.approx(5 / 3)
    assert _packed().num_target_mean == pytest.approx(7 / 3)
    assert not _dense().is_packed
    assert _packed().is_packed


def test_target_rows() -> None:
    assert _dense().target_rows().tolist() == [[0], [1], [2]]
    assert _packed().target_rows().tolist() == [0, 0, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("masks", [_dense(), _packed()], ids=["dense", "packed"])
def test_gather_target_takes_each_clips_own_tokens(masks: TokenMasks) -> None:
    tokens = torch.arange(18).reshape(3, 6, 1)
    gathered = masks.gather_target(tokens)
    for clip in range(3):
        own = masks.sample(clip).target[0]
        part = gathered[clip] if not masks.is_packed else gathered[masks.target_rows() == clip]
        assert part[:, 0].tolist() == (clip * 6 + own).tolist()


def test_sample_of_a_packed_clip_is_dense() -> None:
    clip = _packed().sample(1)
    assert not clip.is_packed
    assert clip.context.tolist() == [[5]]
    assert clip.target.tolist() == [[0, 2, 4, 5]]


def test_slice_of_dense_and_of_packed_whose_offsets_start_at_zero() -> None:
    part = _dense().slice(1, 3)
    assert part.context.tolist() == [[1, 5], [3, 4]]
    assert part.target.tolist() == [[0, 2, 3], [0, 1, 2]]
    part = _packed().slice(1, 3)
    assert part.context.tolist() == [5, 1, 3]
    assert part.target.tolist() == [0, 2, 4, 5, 4]
    assert part.context_offsets is not None
    assert part.target_offsets is not None
    assert part.context_offsets.tolist() == [0, 1, 3]
    assert part.target_offsets.tolist() == [0, 4, 5]


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (2, 2), (-1, 1)])
def test_slice_outside_the_batch_is_refused(start: int, stop: int) -> None:
    for masks in (_dense(), _packed()):
        with pytest.raises(IndexError, match=f"clips {start}:{stop} of a batch of 3"):
            masks.slice(start, stop)


def test_map_reaches_everything() -> None:
    moved = _packed().map(lambda tensor: tensor.to("meta"))
    for tensor in (moved.context, moved.target, moved.context_offsets, moved.target_offsets):
        assert tensor is not None
        assert tensor.is_meta
    assert _dense().map(torch.clone).context_offsets is None
