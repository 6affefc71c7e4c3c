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
from vjepa.errors import UserError
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.models import Encoder
from vjepa.runtime.device import to_device
from vjepa.tasks import Output, Task, slice_of_part


class MeanColour(Task):
    """Predict the mean colour of a clip from the mean of its tokens."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config.model.encoder)
        self.head = nn.Linear(config.model.encoder.width, 3)
        self._batch_size = config.data.batch_size

    def inputs(self, batch: Any, part: int, parts: int) -> tuple[Tensor]:
        here = slice_of_part(len(batch.clips), part, parts)
        return (self.encoder.normalise(to_device(batch.clips[here], self.device)),)

    def forward(self, clips: Tensor) -> Output:
        predicted = self.head(self.encoder(clips).mean(dim=1))
        error = (predicted - clips.mean(dim=(2, 3, 4))).square()
        return Output(error.sum() / (3 * self._batch_size), {})

    @property
    def encoder_for_evaluation(self) -> Encoder:
        return self.encoder


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
    with pytest.raises(UserError, match="head"):
        vjepa.pretrain(config, cut)  # as the config's own objective


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
