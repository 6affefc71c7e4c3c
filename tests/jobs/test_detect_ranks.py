"""Detection in several real processes: their number changes nothing but rounding."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.jobs.tiny_run import launch, launch_all, write_box_set

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_COMMON = (
    "encoder.path=demo",
    "data.view.short_side=32",
    "data.view.crop_size=32",
    "data.view.train_short_sides=[32,40]",
    "data.view.jitter_boxes=[0.2,0.1]",
    "data.reading.num_workers=0",
    "features.shard_clips=3",
    "optim.batch_size=5",  # which two processes cannot share evenly
    "optim.epochs=2",
    "optim.peak_lr=0.003",
    "training.device=cpu",
    "training.num_threads=1",
    "training.log_every_steps=1",
    "training.checkpoint_every_steps=2",
    "training.keep_every_steps=1",
)
_FROZEN = ("features.passes=2", "data.on_bad_video=list")
_WHOLE = ("end_to_end.drop_path=0.2", "regions.layers=[0,1]")  # the last block is not used
_CASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "frozen": (1, _FROZEN),
    "frozen_2": (2, (*_FROZEN, "features.cache_dir=CACHE")),
    "whole": (1, _WHOLE),
    "whole_2": (2, _WHOLE),
    "whole_fsdp": (2, (*_WHOLE, "distributed.strategy=fsdp")),
    "longer_2": (2, (*_WHOLE, "optim.epochs=5")),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, each in its folder; one is killed on its way again and again."""
    folder = tmp_path_factory.mktemp("detect")
    write_box_set(folder / "set", 8, 4)
    recipe = folder / "recipe.yaml"
    tables = (f"  {split}: {folder}/set/boxes_{split}.parquet\n" for split in ("train", "test"))
    recipe.write_text("data:\n" + "".join(tables))
    jobs = [
        {
            "command": "detect train",
            "ranks": ranks,
            "config": str(recipe),
            "out": str(folder / name),
            "overrides": [*_COMMON, *(x.replace("CACHE", str(folder / "cache")) for x in more)],
        }
        for name, (ranks, more) in _CASES.items()
    ]
    killed = {**jobs[2], "out": str(folder / "killed"), "kills": 2, "cpu_seconds": 0.5}
    launch_all(folder, jobs, killed)
    both = {**jobs[-1], "out": str(folder / "both_killed")}
    signals = [[rank, signal.SIGKILL] for rank in range(2)]
    codes, said = launch(folder, [{**both, "signals": signals, "after_lines": 8}, both])
    assert codes == [[-signal.SIGKILL] * 2, [0, 0]], said
    assert "resuming after step" in said
    return folder


@pytest.mark.parametrize(
    ("name", "alone", "atol"),
    [("frozen_2", "frozen", 1e-6), ("whole_2", "whole", 2e-5), ("whole_fsdp", "whole", 2e-5)],
)
def test_any_number_of_processes_finds_the_same(
    runs: Path, name: str, alone: str, atol: float
) -> None:
    ours, theirs = (load_file(runs / run / "detector.safetensors") for run in (name, alone))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, atol=atol, rtol=0, msg=key)
    mine, other = (json.loads((runs / run / "result.json").read_text()) for run in (name, alone))
    found, wanted = (result["test"]["metrics"] for result in (mine, other))
    assert found["mean_average_precision"] == pytest.approx(
        wanted["mean_average_precision"], abs=1e-4
    )
    assert found["images"] == wanted["images"]
    assert mine["num_boxes"] == other["num_boxes"]


def test_vectors_are_shared_through_the_cache(runs: Path) -> None:
    shards = list((runs / "cache").glob("*/shard_*.safetensors"))
    keys = {path.parent for path in shards}
    assert len(keys) == 3  # two passes and the test
    assert len(shards) > 2 * len(keys)  # so both processes had some


@pytest.mark.parametrize(("name", "whole"), [("killed", "whole"), ("both_killed", "longer_2")])
def test_kills_change_nothing(runs: Path, name: str, whole: str) -> None:
    """Of a process alone, and of both of two."""
    ours, theirs = (load_file(runs / run / "detector.safetensors") for run in (name, whole))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
