from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from vjepa.data.clips.views import ViewConfig
from vjepa.evaluation.evaluate import ProbeBatches, probabilities, read_passes
from vjepa.evaluation.frozen import FeatureSet
from vjepa.evaluation.heads import HeadConfig, ProbeHeads, build_head
from vjepa.evaluation.labels import Labels
from vjepa.jobs.probe.config import HeadSetting, ProbeConfig, ProbeOptimConfig
from vjepa.jobs.probe.train import choose_head, fit_lookup, schedules, train_heads
from vjepa.models import EncoderConfig
from vjepa.training.schedules import weight_decay

CPU = torch.device("cpu")
VIEW = ViewConfig()
ENCODER = EncoderConfig(
    width=6, depth=1, heads=2, image_size=16, num_frames=2, patch_size=8, tubelet_size=2
)


def _data(count: int, classes: int = 3) -> tuple[FeatureSet, Labels]:
    """Token maps whose mean points along the axis of the class."""
    truth = np.arange(count, dtype=np.int64) % classes
    tokens = 0.1 * torch.randn(count, 4, 6, generator=torch.Generator().manual_seed(0))
    tokens[torch.arange(count), :, torch.from_numpy(truth)] += 1.0
    labels = Labels("axis", tuple("abc"[:classes]), truth)
    return FeatureSet((tokens[:, None],), np.arange(count)), labels


def _train(count: int, grid: Sequence[HeadSetting], config: ProbeConfig) -> ProbeHeads:
    features, labels = _data(count)
    read = partial(read_passes, [features])
    size = config.optim.batch_size
    batches = ProbeBatches(read, features.rows, labels.targets, size, config.seed, VIEW)
    return train_heads(batches, grid, replace(config, device="cpu"), ENCODER, 3)


def _linear_heads(scales: list[float]) -> ProbeHeads:
    """Heads that read the axis with more or less confidence (a negative one reads it wrongly)."""
    heads = []
    for scale in scales:
        head = build_head(HeadConfig(kind="linear", norm=False), 6, 2, 3)
        with torch.no_grad():
            head.linear.weight.copy_(scale * torch.eye(3, 6))
            head.linear.bias.zero_()
        heads.append(head)
    return ProbeHeads(heads)


def test_choice_is_by_right_answers_then_by_loss_then_by_order() -> None:
    features, labels = _data(130)  # more than one batch, the last one short
    grid = [HeadSetting(rate, 0.0) for rate in (1.0, 2.0, 3.0, 4.0)]
    found = choose_head(_linear_heads([-5.0, 1.0, 5.0, 5.0]), grid, [features], labels, VIEW, CPU)
    assert [entry.correct for entry in found] == [0, 130, 130, 130]
    assert {entry.count for entry in found} == {130}
    assert [entry.chosen for entry in found] == [False, False, True, False]
    assert found[1].loss > found[2].loss == found[3].loss
    assert [entry.learning_rate for entry in found] == [1.0, 2.0, 3.0, 4.0]


def test_trained_heads_follow_their_own_settings_and_the_seed() -> None:
    features, labels = _data(30)
    config = ProbeConfig(optim=ProbeOptimConfig(epochs=None, steps=60, batch_size=8))
    grid = [HeadSetting(1e-6, 0.01), HeadSetting(3e-2, 0.01)]
    heads = _train(30, grid, config)
    assert not heads.training
    found = choose_head(heads, grid, features.parts(features.rows), labels, VIEW, CPU)
    assert found[1].chosen
    assert found[1].top1 > 0.9
    assert found[0].loss > 1.0  # hardly moved
    again = _train(30, grid, config)
    for left, right in zip(heads.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)


def test_epochs_and_steps() -> None:
    grid = [HeadSetting(1e-3, 0.02), HeadSetting(1e-4, 0.04)]
    config = schedules(ProbeOptimConfig(weight_decay_end=1.0), grid, 7)
    assert (config.steps, config.peak_lr, config.start_weight_decay) == (7, 1e-3, 0.04)
    assert weight_decay(7, config) == 0.04  # fixed, as in the paper's text
    config = schedules(ProbeOptimConfig(), grid, 7)
    assert abs(weight_decay(7, config) - 0.04e-4) < 1e-15


def test_probabilities_of_several_heads_are_those_of_each() -> None:
    heads, tokens = _linear_heads([1.0, 2.0]), _data(10)[0].tokens
    both = probabilities(heads, tokens, VIEW, CPU, multi_label=False)
    assert both.shape == (2, 10, 3)
    alone = probabilities(heads[1], tokens, VIEW, CPU, multi_label=False)
    assert torch.allclose(both[1], alone, atol=1e-7)
    assert torch.allclose(both.sum(-1), torch.ones(2, 10, dtype=torch.float64))


def test_forms_of_heads_are_a_part_of_the_grid() -> None:
    features, labels = _data(30)
    optim = ProbeOptimConfig(
        epochs=None,
        steps=40,
        batch_size=8,
        learning_rates=(1e-6, 3e-2),
        poolings=("linear", "attentive"),
    )
    config = ProbeConfig(optim=optim, probe=HeadConfig(depth=2))
    assert [config.form(setting.kind).depth for setting in config.grid] == [1, 1, 2, 2]
    heads = _train(30, config.grid, config)
    found = choose_head(heads, config.grid, [features], labels, VIEW, CPU)
    assert [entry.kind for entry in found] == ["linear"] * 2 + ["attentive"] * 2
    assert found[1].top1 == found[3].top1 == 1.0
    # A head among others comes out as it does alone.
    alone = _train(30, config.grid[3:], config)
    for left, right in zip(heads[3].parameters(), alone[0].parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-5)


def test_heads_without_training() -> None:
    features, labels = _data(30)
    for head in (HeadConfig(kind="knn", neighbours=5), HeadConfig(kind="nearest_mean")):
        config = ProbeConfig(probe=head)
        assert len(config.grid) == 1
        fitted = fit_lookup(features.parts(features.rows), labels, VIEW, config, ENCODER)
        shares = probabilities(fitted, features.tokens, VIEW, CPU, multi_label=False)
        assert (shares.argmax(dim=1).numpy() == labels.indices).all()
        assert torch.allclose(shares.sum(dim=1), torch.ones(30, dtype=torch.float64))
