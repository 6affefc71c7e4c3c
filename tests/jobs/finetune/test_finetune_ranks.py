"""Fine-tuning in several real processes: their number changes nothing but rounding."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from tests.jobs.finetune.tiny_finetune import write_recipe
from tests.jobs.tiny_run import launch, launch_all, metrics, weights

from vjepa.data.manifest.manifest import Manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_COMMON = ("optim.steps=4", "classifier.dropout=0.3", "trained.drop_path=0.5")
_CASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "one": (1, ()),
    "ddp": (2, ("distributed.strategy=ddp",)),
    "fsdp": (2, ("distributed.strategy=fsdp", "training.activation_checkpointing=true")),
    "averaged": (1, ("ema.start_momentum=0.9", "ema.final_momentum=0.9")),
    "averaged_fsdp": (
        2,
        ("distributed.strategy=fsdp", "ema.start_momentum=0.9", "ema.final_momentum=0.9"),
    ),
    "last": (1, ("trained.last_blocks=0",)),
    "last_ddp": (2, ("trained.last_blocks=0", "distributed.strategy=ddp")),
}


@pytest.fixture(scope="module")
def recipe(videos: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("finetune"), videos, checkpoint)


@pytest.fixture(scope="module")
def runs(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, each in its folder; one is killed on its way again and again."""
    folder = tmp_path_factory.mktemp("runs")
    jobs = [
        {
            "command": "finetune",
            "ranks": ranks,
            "config": str(recipe),
            "out": str(folder / name),
            "overrides": [*_COMMON, "data.validation.split=validation", *overrides],
        }
        for name, (ranks, overrides) in _CASES.items()
    ]
    killed = {**jobs[0], "out": str(folder / "killed"), "kills": 3, "cpu_seconds": 1.0}
    launch_all(folder, jobs, killed)
    return folder


@pytest.mark.parametrize(
    ("name", "alone"),
    [("ddp", "one"), ("fsdp", "one"), ("averaged_fsdp", "averaged"), ("last_ddp", "last")],
)
def test_any_number_of_processes_trains_the_same(runs: Path, name: str, alone: str) -> None:
    ours, theirs = weights(runs / name, 4), weights(runs / alone, 4)
    assert ours.keys() == theirs.keys()
    for full, value in theirs.items():
        if not full.endswith("qkv.bias"):  # the keys' part has no gradient but rounding noise
            torch.testing.assert_close(ours[full], value, atol=2e-5, rtol=0, msg=full)
    lines = [
        [line for line in metrics(run) if line["kind"] != "ranks"]
        for run in (runs / name, runs / alone)
    ]
    for mine, other in zip(*lines, strict=True):
        for key in ("loss", "top1", "validation/top1", "validation/count"):
            assert mine.get(key) == pytest.approx(other.get(key), abs=1e-3)
    assert (runs / name / "result.json").is_file()


def test_kills_change_nothing(runs: Path) -> None:
    ours, theirs = weights(runs / "killed", 4), weights(runs / "one", 4)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert metrics(runs / "killed") == metrics(runs / "one")


def test_saved_by_two_processes_goes_on_in_one(runs: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(runs / "fsdp", out)
    for name in ("checkpoints/step_00000004", "model"):
        shutil.rmtree(out / name)
    job = {"command": "finetune", "ranks": 1, "config": str(recipe), "out": str(out)}
    overrides = [*_COMMON, "data.validation.split=validation"]
    checkpointing = "training.activation_checkpointing=true"
    codes, said = launch(tmp_path, [{**job, "overrides": [*overrides, checkpointing]}])
    assert codes == [[0]], said
    assert "resuming after step 2" in said
    ours, theirs = weights(out, 4), weights(runs / "one", 4)
    for full, value in theirs.items():
        if not full.endswith("qkv.bias"):
            torch.testing.assert_close(ours[full], value, atol=2e-5, rtol=0, msg=full)


def test_other_labels_on_another_machine_are_refused(
    videos: Path, recipe: Path, tmp_path: Path
) -> None:
    """Before training: the videos are the same, and the main process alone reads its record."""
    folders = [tmp_path / "first", tmp_path / "second"]
    table = Manifest.open(videos).rooted_at(None)
    place = table.column_names.index("label.colour")
    for folder in folders:
        folder.mkdir()
        Manifest(table, Path("/")).write(folder / "m.parquet")
        labels = pa.array(table.column(place).to_pylist()[::-1])
        table = table.set_column(place, "label.colour", labels)
    job = {"command": "finetune", "ranks": 2, "config": str(recipe), "out": str(tmp_path / "run")}
    overrides = [*_COMMON, "data.train.manifest=m.parquet"]
    codes, said = launch(
        tmp_path, [{**job, "folders": list(map(str, folders)), "overrides": overrides}]
    )
    assert codes == [[2] * 2], said
    assert said.count("m.parquet: process 1 reads other videos, splits or labels there") == 2
    assert not (tmp_path / "run").exists()
