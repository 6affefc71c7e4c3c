"""A new task is one file: a class that cuts its inputs out of a batch and computes their loss."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.jobs.tiny_run import metrics, tiny_config, weights, write_set
from torch import Tensor, nn

import vjepa
from vjepa.checkpoint import read_model
from vjepa.errors import UserError
from vjepa.jobs.decode import open_model
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.masking import MaskSampler
from vjepa.models import VJEPA
from vjepa.tasks import FeaturePrediction, Output, Task


def _task_of_the_tour() -> type[Task]:
    """The class that `docs/tour.md` shows, as it stands there, without the line that trains it."""
    tour = (Path(__file__).resolve().parents[2] / "docs" / "tour.md").read_text()
    code = tour.partition("## A new task")[2].partition("```python")[2].partition("```")[0]
    code, train, _ = code.partition("vjepa.pretrain(")
    assert train
    assert code.count("\n") < 60
    names: dict[str, Any] = {}
    exec(code, names)
    return names["MeanColour"]


MeanColour = _task_of_the_tour()


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
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [20]
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
