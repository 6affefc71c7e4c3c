"""A new task is one file: a class that cuts its inputs out of a batch and computes their loss."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.jobs.tiny_run import metrics, tiny_config, weights, write_set
from torch import Tensor, nn

import vjepa
from vjepa.checkpoint import read_model
from vjepa.errors import UserError
from vjepa.jobs.decode import open_model
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.masking import MaskSampler, TokenMasks
from vjepa.models import VJEPA
from vjepa.tasks import FeaturePrediction, Output, Task


def _tasks_of_the_tour() -> dict[str, Any]:
    """What `docs/tour.md` shows, as it stands there, without the lines that train it."""
    tour = (Path(__file__).resolve().parents[2] / "docs" / "tour.md").read_text()
    names: dict[str, Any] = {}
    for block in tour.partition("## A new task")[2].split("```python")[1:3]:
        code, train, _ = block.partition("```")[0].partition("vjepa.pretrain(")
        assert train
        assert code.count("\n") < 60
        exec(code, names)
    return names


_TOUR = _tasks_of_the_tour()
MeanColour: type[Task] = _TOUR["MeanColour"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data"))


def test_it_trains_resumes_and_is_evaluated_like_the_others(manifest: Path, tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        manifest,
        "optim.steps=20",
        f"online_probe={{manifest: {manifest}, label: motion, every_steps: 20}}",
    )
    run, cut = tmp_path / "run", tmp_path / "cut"
    assert vjepa.pretrain(config, run, MeanColour).step == 20
    lines = metrics(run)
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < 0.5 * losses[0]
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [0, 20]
    assert {name.split(".")[0] for name in weights(run, 20)} == {"encoder", "head"}
    found = vjepa.load_encoder(run).config
    assert found == replace(config.model.encoder, input=found.input)  # which was measured

    shutil.copytree(run, cut)
    shutil.rmtree(cut / "checkpoints" / "step_00000020")
    assert vjepa.pretrain(config, str(cut), task=MeanColour).step == 20
    assert all(
        torch.equal(value, weights(run, 20)[name]) for name, value in weights(cut, 20).items()
    )
    longer, other = (
        replace(config, optim=replace(config.optim, steps=25)),
        type("Other", (MeanColour,), {}),
    )
    for task, name in (((), "vjepa"), ((other,), "Other")):
        with pytest.raises(
            UserError, match=f"was trained by MeanColour, not by {name}; go on with"
        ):
            vjepa.pretrain(longer, cut, *task)
    for wrong, kind in ((MeanColour(config), "MeanColour"), (lambda _: nn.Linear(1, 1), "Linear")):
        with pytest.raises(UserError, match=f"task: must be a subclass .* object of {kind} is"):
            vjepa.pretrain(longer, cut, wrong)
    assert vjepa.pretrain(longer, cut, MeanColour).step == 25


def test_an_online_probe_wants_an_encoder(manifest: Path, tmp_path: Path) -> None:
    probe = f"online_probe={{manifest: {manifest}, label: motion}}"
    config = tiny_config(tmp_path, manifest, "optim.steps=2", probe)

    def task(config: PretrainConfig) -> Task:
        made: Any = MeanColour(config)
        made.encoder = nn.Identity()
        return made

    with pytest.raises(UserError, match="MeanColour has no `encoder` whose `config` says its"):
        vjepa.pretrain(config, tmp_path / "run", task)


def test_a_collapse_is_told_of_any_task_that_reports_its_features(
    manifest: Path, tmp_path: Path
) -> None:
    task = MeanColour(tiny_config(tmp_path, manifest))
    rich = {"target_std": 0.9, "effective_rank": 9.0, "loss": 1.0}
    poor = {"target_std": 0.2, "effective_rank": 2.0, "loss": 0.5}
    assert task.alarm([rich]) is None
    assert "the features may be collapsing" in (task.alarm([rich, poor]) or "")
    assert task.alarm([{"accuracy": 0.1, "loss": 1.0}, {"accuracy": 0.0, "loss": 0.5}]) is None


class WithHead(FeaturePrediction):
    """Feature prediction, and something more that is learnt."""

    def __init__(self, config: PretrainConfig) -> None:
        encoder = config.model.encoder
        sampler = MaskSampler(config.masking, encoder.grid, encoder.tubelet_size, config.seed)
        super().__init__(VJEPA(config.model), sampler=sampler, batch_size=config.data.batch_size)
        self.head = nn.Linear(encoder.width, 1)

    def forward(self, clips: Tensor, *inputs: Any) -> Output:
        found = super().forward(clips, *inputs)
        return Output(found.loss + self.head(self.encoder(clips)).square().mean(), found.terms)


def test_a_subclass_of_feature_prediction_leaves_a_whole_model(
    manifest: Path, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path, manifest, "optim.steps=5")
    run, shaped = tmp_path / "run", WithHead(config).state_dict()
    vjepa.pretrain(config, run, WithHead)
    model, report = read_model(run)
    stored = weights(run, 5)
    assert set(stored) == set(shaped)
    assert set(report.dropped) == {"head.weight", "head.bias"}
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert open_model(run).config == model.config  # for pictures of what it predicts
    vjepa.pretrain(config, tmp_path / "colour", MeanColour)
    with pytest.raises(UserError, match="'MeanColour', which predicts no features"):
        vjepa.load_model(tmp_path / "colour")


def test_the_tours_task_with_hidden_tokens(manifest: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, manifest, "optim.steps=20")
    made = _TOUR["frame_differences"](config)
    still = torch.randn(2, 3, 1, 16, 16).expand(-1, -1, config.model.encoder.num_frames, -1, -1)
    assert not made.targets(still).any()  # where nothing changes there is nothing to predict
    vjepa.pretrain(config, tmp_path / "run", _TOUR["frame_differences"])
    losses = [line["loss"] for line in metrics(tmp_path / "run") if line["kind"] == "train"]
    assert losses[-1] < losses[0]
    assert vjepa.load_encoder(tmp_path / "run").config.width == config.model.encoder.width


class EveryOtherStep:
    """Masks of one's own: every second time step is hidden."""

    counts = None

    def __init__(self, grid: tuple[int, int, int]) -> None:
        steps = np.arange(math.prod(grid)) // (grid[1] * grid[2])
        self._sides = [np.flatnonzero(steps % 2 == odd) for odd in (0, 1)]

    def sample(self, ordinals: NDArray[np.int64], batch_index: int) -> tuple[TokenMasks, ...]:
        return (TokenMasks(*(torch.from_numpy(x).expand(len(ordinals), -1) for x in self._sides)),)


def test_masks_of_ones_own(manifest: Path, tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        manifest,
        "optim.steps=2",
        "optim.accumulation_steps=2",
        "training.health_every_steps=1",
    )
    sampler: Any = EveryOtherStep(config.model.encoder.grid)

    def task(config: PretrainConfig) -> Task:
        return FeaturePrediction(
            VJEPA(config.model), sampler=sampler, batch_size=config.data.batch_size
        )

    vjepa.pretrain(config, tmp_path / "run", task)
    report = next(line for line in metrics(tmp_path / "run") if line["kind"] == "health")
    assert report["context_share/mask_0"] == report["target_share/mask_0"] == 0.5


def test_accumulation_changes_nothing_but_rounding(manifest: Path, tmp_path: Path) -> None:
    for parts in (1, 4):
        config = tiny_config(
            tmp_path, manifest, "optim.steps=20", f"optim.accumulation_steps={parts}"
        )
        vjepa.pretrain(config, tmp_path / str(parts), MeanColour)
    parted = weights(tmp_path / "4", 20)
    for name, value in weights(tmp_path / "1", 20).items():
        if not name.endswith("qkv.bias"):  # the keys' part has no gradient but rounding noise
            torch.testing.assert_close(parted[name], value, atol=5e-5, rtol=0)
