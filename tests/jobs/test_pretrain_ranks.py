"""Pretraining in several real processes: the number of processes changes nothing but rounding."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.jobs.tiny_run import CAUSAL, LEVJEPA, launch, metrics, weights, write_recipe, write_set

from vjepa.data.manifest.manifest import Manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_COMMON = (
    "optim.steps=4",
    "data.loader.num_workers=0",
    "training.log_every_steps=1",
    "training.checkpoint_every_steps=2",
    "training.keep_every_steps=1",
    "training.health_every_steps=2",
    "training.health_clips=6",
)
_PACKED = ("masking.count=packed", "objective.variance_coefficient=0.5")
_CASES: dict[str, tuple[str, ...]] = {
    "prefix": (),
    # A mask token that no mask kind uses gets no gradient.
    "fixed": ("masking.count=fixed", "model.predictor.num_mask_tokens=3"),
    "packed": _PACKED,
    "pixel": ("masking.count=packed", "objective.name=pixel"),
    "levjepa": LEVJEPA,
    # The last is seen by no other token, so it gets no gradient.
    "regularised": (*_PACKED, "objective.sigreg_coefficient=0.05", *CAUSAL),
    "bfloat16": ("training.precision=bfloat16",),
    # V-JEPA 2.1 with images beside the clips, which have masks of their own.
    "images": (
        "model.encoder.position=rotary_pairs",
        "model.encoder.depth=2",
        "model.encoder.levels=[0,1]",
        "model.encoder.modalities=true",
        "model.predictor.levels=2",
        "model.predictor.predicts_context=true",
        "objective.context_from_step=0",
        "objective.context_full_step=0",
        "masking.count=fixed",
        "data.images.sources=[{manifest: MANIFEST}]",
        "data.images.batch_size=4",
        "data.images.share=0.25",
    ),
    "probed": (
        "optim.steps=2",
        "online_probe={manifest: MANIFEST, label: motion, max_clips: 11, batch_size: 4}",
    ),
}
_ROUNDING = {"bfloat16": 5e-4}
"""Largest difference of weights: 2e-5 in float32."""


@dataclass(frozen=True)
class Run:
    """One job of the host."""

    name: str
    case: str
    ranks: int
    overrides: tuple[str, ...] = ()
    is_timed: bool = False
    """The pace is measured before the first update, however short it is."""


_DDP, _FSDP = "distributed.strategy=ddp", "distributed.strategy=fsdp"
_RUNS = (
    *(Run(case, case, 1) for case in _CASES),
    Run("packed_accumulated", "packed", 1, ("optim.accumulation_steps=4",)),
    Run("prefix_ddp_2", "prefix", 2, (_DDP,)),
    Run("prefix_fsdp_4", "prefix", 4, (_FSDP, "training.async_checkpoint=true")),
    Run("fixed_ddp_4", "fixed", 4, ()),
    Run("fixed_fsdp_2", "fixed", 2, (_FSDP, "optim.accumulation_steps=2")),
    Run("packed_ddp_2", "packed", 2, (_DDP, "optim.accumulation_steps=2")),
    Run("packed_fsdp_4", "packed", 4, (_FSDP, "distributed.shard_size=2")),
    Run("packed_fsdp_2", "packed", 2, (_FSDP,), is_timed=True),
    Run("pixel_ddp_2", "pixel", 2, (_DDP,)),
    Run("pixel_fsdp_2", "pixel", 2, (_FSDP,)),
    Run("levjepa_ddp_2", "levjepa", 2, (_DDP,)),
    Run("levjepa_fsdp_2", "levjepa", 2, (_FSDP,)),
    Run("regularised_ddp_2", "regularised", 2, (_DDP,)),
    Run("bfloat16_fsdp_2", "bfloat16", 2, (_FSDP,)),
    Run("images_ddp_2", "images", 2, (_DDP, "optim.accumulation_steps=2")),
    Run("images_fsdp_2", "images", 2, (_FSDP,)),
    # 11 videos: the two processes make different numbers of calls of their own.
    Run("probed_fsdp_2", "probed", 2, (_FSDP,)),
)
_COMPARED = tuple(run for run in _RUNS if run.name != run.case)


def _job(folder: Path, recipe: Path, run: Run) -> dict[str, Any]:
    manifest = str(recipe.parent / "set" / "manifest.parquet")
    case = (override.replace("MANIFEST", manifest) for override in _CASES[run.case])
    overrides = [*_COMMON, *case, *run.overrides]
    out = str(folder / run.name)
    job = {"ranks": run.ranks, "config": str(recipe), "out": out, "overrides": overrides}
    return {**job, "is_timed": run.is_timed}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_recipe(folder, write_set(folder))


@pytest.fixture(scope="module")
def runs(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, each in its folder."""
    folder = tmp_path_factory.mktemp("runs")
    codes, said = launch(folder, [_job(folder, recipe, run) for run in _RUNS])
    assert codes == [[0] * run.ranks for run in _RUNS], said
    assert "Warning" not in said, said
    assert said.count("(measured on 1 of 4 clips)") == 1
    return folder


def _assert_same_weights(found: Path, expected: Path, atol: float = 2e-5, step: int = 4) -> None:
    ours, theirs = weights(found, step), weights(expected, step)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if not name.endswith("qkv.bias"):  # the keys' part has no gradient but rounding noise
            torch.testing.assert_close(ours[name], value, atol=atol, rtol=0, msg=name)


def _assert_same_metrics(found: Path, expected: Path, rel: float = 2e-3) -> None:
    ours, theirs = (
        [line for line in metrics(run) if line["kind"] != "ranks"] for run in (found, expected)
    )
    assert [(line["kind"], line["step"]) for line in ours] == [
        (line["kind"], line["step"]) for line in theirs
    ]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name, value in other.items():
            if isinstance(value, float):
                assert mine[name] == pytest.approx(value, rel=rel, abs=rel / 100), (
                    name,
                    other["step"],
                )


@pytest.mark.parametrize("run", _COMPARED, ids=lambda run: run.name)
def test_any_number_of_processes_trains_the_same(runs: Path, run: Run) -> None:
    is_rounded = run.case in _ROUNDING
    steps = 2 if run.case == "probed" else 4
    ours, theirs = runs / run.name, runs / run.case
    _assert_same_weights(ours, theirs, _ROUNDING.get(run.case, 2e-5), steps)
    _assert_same_metrics(ours, theirs, 2e-2 if is_rounded else 2e-3)


def test_the_online_probe_measures_all_videos_once(runs: Path) -> None:
    lines = [line for line in metrics(runs / "probed_fsdp_2") if line["kind"] == "evaluation"]
    assert [(line["step"], line["online_probe/count"]) for line in lines] == [(0, 11), (2, 11)]


def test_every_process_tells_its_numbers(runs: Path) -> None:
    lines = (runs / "fixed_ddp_4" / "metrics.jsonl").read_text().splitlines()
    shares = [json.loads(line) for line in lines if '"ranks"' in line]
    assert [line["step"] for line in shares] == [1, 2, 3, 4]
    assert all(len(line["clips_per_second"]) == 4 for line in shares)
    assert all(math.isfinite(share) for line in shares for share in line["data_wait_share"])


def test_saved_by_two_processes_goes_on_in_one_and_in_four(
    runs: Path, recipe: Path, tmp_path: Path
) -> None:
    """Same samples, same schedules: as if the number of processes had never changed."""
    resumed = (
        Run("one", "packed", 1),
        Run("four", "packed", 4, (_FSDP,)),
        Run("four_copies", "packed", 4, (_DDP,)),
    )
    for run in resumed:
        shutil.copytree(runs / "packed_fsdp_2", tmp_path / run.name)
        shutil.rmtree(tmp_path / run.name / "checkpoints" / "step_00000004")
    codes, said = launch(tmp_path, [_job(tmp_path, recipe, run) for run in resumed])
    assert codes == [[0], [0] * 4, [0] * 4], said
    assert said.count("resuming after step 2") == 3
    for run in resumed:
        _assert_same_weights(tmp_path / run.name, runs / "packed")
        _assert_same_metrics(tmp_path / run.name, runs / "packed")


def test_sharded_processes_continue_from_weights_with_and_without_moments(
    runs: Path, recipe: Path, tmp_path: Path
) -> None:
    source = runs / "prefix"
    cases = {"state": ("true", 6), "weights": ("false", 2)}
    jobs = [
        Run(f"{name}_{ranks}", "prefix", ranks, (
            f"continue_from={{path: {source}, keep_optimizer: {keep}}}",
            f"optim.steps={steps}",
            *((_FSDP,) if ranks > 1 else ()),
        ))
        for name, (keep, steps) in cases.items()
        for ranks in (1, 2)
    ]  # fmt: skip
    codes, said = launch(tmp_path, [_job(tmp_path, recipe, run) for run in jobs])
    assert codes == [[0], [0, 0]] * 2, said
    assert "going on after update 4" in said
    assert "starting at update 1 with the weights of" in said
    for name, (_, steps) in cases.items():
        _assert_same_weights(tmp_path / f"{name}_2", tmp_path / f"{name}_1", step=steps)
    changed = weights(tmp_path / "weights_1", 2)
    assert any(not torch.equal(value, changed[k]) for k, value in weights(source, 4).items())


def test_bad_input_is_told_by_every_process_and_claims_nothing(
    recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    own = ("data.sources=[{manifest: m.parquet}]",)
    jobs = [
        _job(tmp_path, recipe, Run("odd", "prefix", 3)),
        _job(tmp_path, recipe, Run("full", "prefix", 2)),
        _job(tmp_path, recipe, Run("shards", "prefix", 2, (_FSDP, "distributed.shard_size=3"))),
        # Each machine has a manifest of its own under the same name.
        _job(tmp_path, recipe, Run("unlike", "prefix", 2, own)),
    ]
    videos = Manifest.open(recipe.parent / "set" / "manifest.parquet")
    jobs[-1]["folders"] = [str(tmp_path / "first"), str(tmp_path / "second")]
    for folder, count in zip(jobs[-1]["folders"], (40, 30), strict=True):
        Path(folder).mkdir()
        videos.take(np.arange(count)).write(Path(folder) / "m.parquet")
    codes, said = launch(tmp_path, jobs)
    assert codes == [[2] * 3, [2] * 2, [2] * 2, [2] * 2], said
    assert said.count("m.parquet: process 1 reads other videos") == 2
    assert "data.batch_size: 8 clips cannot be divided over 3 processes" in said
    assert "use a multiple of 3, for example 9" in said
    assert "holds nothing of `vjepa pretrain`" in said
    assert "distributed.shard_size: 3 does not divide the 2 processes" in said
    assert not (tmp_path / "odd").exists()
    assert not (tmp_path / "unlike").exists()
