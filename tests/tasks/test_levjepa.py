"""LeVJEPA: its views, its loss, and that it trains without a collapse."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.models.tiny import ENCODER, shaken
from torch.testing import assert_close

from vjepa.runtime.distributed import ProcessGroup
from vjepa.tasks import LeVJEPA, LeVJEPAConfig
from vjepa.tasks.sigreg import sigreg

CLS = replace(ENCODER, cls=True)
SMALL = LeVJEPAConfig(
    local_views=2,
    local_size=8,
    local_scale=(0.2, 0.5),
    dropped=0.5,
    directions=32,
    embedding_width=8,
)


def _batch(count: int = 6, step: int = 0) -> SimpleNamespace:
    numbers = torch.Generator().manual_seed(step)
    clips = torch.randint(256, (count, 3, 4, 16, 16), dtype=torch.uint8, generator=numbers)
    return SimpleNamespace(clips=clips, ordinals=step * count + np.arange(count), step=step)


def _task(**changes: object) -> LeVJEPA:
    torch.manual_seed(0)
    return LeVJEPA(CLS, replace(SMALL, **changes), seed=0, batch_size=6)


def test_views_follow_from_the_samples_and_not_from_who_has_them() -> None:
    task, batch = _task(), _batch(step=2)
    (whole, local), directions = task.inputs(batch, 0, 1)
    assert whole.clips.shape == (6, 3, 4, 16, 16)
    assert whole.kept.shape == (6, 16)
    assert local.clips.shape == (12, 3, 4, 8, 8)
    assert local.kept.shape == (12, 4)
    half = SimpleNamespace(clips=batch.clips[3:], ordinals=batch.ordinals[3:], step=2)
    for given, part, parts in ((batch, 1, 2), (half, 0, 1)):
        (other_whole, other_local), same = task.inputs(given, part, parts)
        assert torch.equal(same, directions)
        assert torch.equal(other_whole.kept, whole.kept[3:])
        for mine, theirs in ((other_local.clips, local.clips), (other_local.kept, local.kept)):
            assert torch.equal(mine, torch.cat([theirs[3:6], theirs[9:]]))
    (after, _), later = task.inputs(_batch(step=3), 0, 1)
    assert not torch.equal(after.kept, whole.kept)
    assert not torch.equal(later, directions)


def test_kept_tokens_are_uniform_and_each_view_has_its_own() -> None:
    task, batch = _task(), _batch(600)
    (whole, local), _ = task.inputs(batch, 0, 1)
    for kept, tokens in ((whole.kept, 32), (local.kept, 8)):
        assert (kept.diff(dim=1) > 0).all()
        counts = kept.flatten().bincount(minlength=tokens) / len(kept)
        assert_close(counts, torch.full((tokens,), 0.5), atol=0.09, rtol=0)  # 4 standard errors
    assert not torch.equal(local.kept[:600], local.kept[600:])


def test_parts_show_boxes_of_the_drawn_area_inside_the_clip() -> None:
    """On a clip whose pixels say where they are."""
    task = _task(local_views=3)
    place = (torch.arange(16) + 0.5) / 16
    grid = torch.stack([place.expand(16, 16), place[:, None].expand(16, 16), torch.ones(16, 16)])
    clips = grid[None, :, None].expand(200, -1, 4, -1, -1)
    parts = task._parts(np.arange(200), clips)
    x, y = parts[:, 0, 0], parts[:, 1, 0]
    assert torch.equal(parts[:, :, 0], parts[:, :, 3]), "the same box in every frame"
    assert_close(parts[:, 2], torch.ones_like(parts[:, 2]))
    # Of 8 samples across a box the inner ones are 6/8 of a side apart, unless at the clip's edge.
    width = (x[:, 0, -2] - x[:, 0, 1]) * 8 / 5
    height = (y[:, -2, 0] - y[:, 1, 0]) * 8 / 5
    area, aspect = width * height, width / height
    assert (area > 0.2 - 0.03).all()
    assert (area < 0.5 + 0.03).all()
    assert area.mean() == pytest.approx(0.35, abs=0.03)
    assert aspect.log().abs().max() < np.log(4 / 3) + 0.1
    assert x.mean() == pytest.approx(0.5, abs=0.02)
    assert y.mean() == pytest.approx(0.5, abs=0.02)
    same = _task(local_scale=(1.0, 1.0), local_size=16)
    clip = torch.randn(2, 3, 4, 16, 16)
    ends = same._parts(np.arange(2), clip)
    # Of the whole area only a square fits; the sides of others are cut off at the clip's.
    assert ends.shape == (4, 3, 4, 16, 16)


def test_the_loss_is_disagreement_with_the_whole_clip_and_sigreg() -> None:
    task = shaken(_task())
    (whole, local), directions = task.inputs(_batch(), 0, 1)
    output = task((whole, local), directions)
    z = [task.embed(whole), *task.embed(local).split(6)]
    far = torch.stack([(one - z[0]).square().mean() for one in z]).mean()
    odd = torch.stack([sigreg(one, directions, ProcessGroup()) for one in z]).mean()
    assert_close(output.terms["disagreement"], far.detach())
    assert_close(output.terms["sigreg"], odd.detach())
    assert_close(output.loss, 0.98 * far + 0.02 * odd)
    output.loss.backward()
    for name, p in [*task.encoder.named_parameters(), *task.projector.named_parameters()]:
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    assert all(p.grad is None for p in task.target_encoder.parameters())


def test_embeddings_neither_collapse_nor_drift_apart() -> None:
    """On clips of one colour each, so that a part tells as much as the whole."""
    torch.manual_seed(0)
    config = replace(SMALL, sigreg_weight=0.3, embedding_width=3, local_views=1)
    task = LeVJEPA(replace(CLS, patch_init_std=0.3, depth=1), config, 0, 24)
    batch = _batch(24)
    batch.clips = batch.clips[..., :1, :1, :1].expand(batch.clips.shape)
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], lr=3e-3)
    first, last = {}, {}
    for step in range(120):
        output = task(*task.inputs(SimpleNamespace(**{**vars(batch), "step": step}), 0, 1))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        last = {name: value.item() for name, value in output.terms.items()}
        first = first or last
    health = task.health(batch, 24, ProcessGroup())
    assert first["sigreg"] > 4, "fresh embeddings are nearly the same"
    assert last["sigreg"] < 2
    assert last["disagreement"] < 0.3
    assert health["embedding_std"] > 0.7
    assert health["embedding_rank"] > 2
    assert task.alarm([{**{k: float(v) for k, v in health.items()}, "loss": 1.0}]) is None


def test_what_is_trained_averaged_and_evaluated() -> None:
    task = _task()
    assert set(task.trainable()) == {"encoder", "projector"}
    assert task.ema_pairs() == [(task.encoder, task.target_encoder)]
    assert task.encoder_for_evaluation is task.target_encoder


@pytest.mark.parametrize(
    ("sizes", "changes", "message"),
    [
        (ENCODER, {}, r"model\.encoder\.cls: must be true"),
        (CLS, {"local_size": 10}, "local_size: 10 must be a multiple of .*patch_size 4"),
        (CLS, {"local_size": 32}, "at most the clip's size, 16"),
    ],
)
def test_what_does_not_fit_is_refused(sizes: object, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeVJEPA(sizes, replace(SMALL, **changes), 0, 6)  # ty: ignore[invalid-argument-type]


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match="local_scale must rise within"):
        LeVJEPAConfig(local_scale=(0.5, 0.2))
