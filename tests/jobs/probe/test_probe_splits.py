from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.jobs.probe.tiny_probe import probe_config, relabelled

from vjepa.errors import UserError
from vjepa.evaluation.labels import load_split
from vjepa.evaluation.results import load_result
from vjepa.jobs.export import export
from vjepa.jobs.probe.compare import compare_answers
from vjepa.jobs.probe.predict import load_probe
from vjepa.jobs.probe.probe import train, train_splits

FEW = {"data.labels_per_class": 4, "data.num_splits": 3, "optim.epochs": 6, "seed": 5}


def test_several_draws_give_mean_and_deviation(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    config = probe_config(videos, checkpoint, **FEW, floors=True)
    found = train_splits(config, tmp_path / "out")
    assert found.seeds == (5, 6, 7)
    assert found.summary is not None
    values = [load_result(tmp_path / f"out/split_{seed}").test.metrics.top1 for seed in (5, 6, 7)]
    assert found.summary.values == tuple(values)
    assert found.summary.mean == statistics.fmean(values)
    assert found.summary.deviation == statistics.stdev(values)
    splits = [load_split(tmp_path / f"out/split_{seed}/split.json") for seed in (5, 6, 7)]
    assert len({split.fit_paths + split.choose_paths for split in splits}) == 3
    assert all(len(split.fit) + len(split.choose) == 12 for split in splits)
    saved = json.loads((tmp_path / "out/splits.json").read_text())
    assert saved["summary"]["values"] == values
    beside = saved["floors"]["ridge on middle frame"]["values"]
    assert beside == [draw.floors[1].correct / 11 for draw in found.results]
    table = (tmp_path / "out/splits.md").read_text()
    mean = f"{100 * statistics.fmean(beside):.1f} +- {100 * statistics.stdev(beside):.1f}"
    assert f"| beside it: ridge on middle frame |  | {mean} |\n" in table
    assert table.rpartition("+-")[2].endswith(" |\n"), "what is printed next has its own line"
    assert not list((tmp_path / "out").glob("*features"))
    for one_is_wanted in (
        lambda: load_probe(tmp_path / "out", device="cpu"),
        lambda: compare_answers(tmp_path / "out", tmp_path / "out/split_6"),
        lambda: export(tmp_path / "out", tmp_path / "x.onnx"),
    ):
        with pytest.raises(UserError, match=r"holds 3 probes, .*; give one, such as .*/split_5"):
            one_is_wanted()
    before = (tmp_path / "out/config.yaml").read_bytes()
    with pytest.raises(UserError, match="holds a probe already"):
        train(probe_config(videos, checkpoint), tmp_path / "out")
    assert (tmp_path / "out/config.yaml").read_bytes() == before


def test_nothing_of_the_users_is_lost(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    """A cache that was named stays, and a finished single probe keeps its config."""
    cache = tmp_path / "out/features"
    few = {**FEW, "data.num_splits": 2, "optim.epochs": 1}
    train_splits(
        probe_config(videos, checkpoint, **few, **{"features.cache_dir": cache}), tmp_path / "out"
    )
    kept = sorted(cache.rglob("*"))
    assert kept
    train_splits(probe_config(videos, checkpoint, **few), tmp_path / "out")
    assert sorted(cache.rglob("*")) == kept
    train(probe_config(videos, checkpoint, **{"optim.epochs": 1}), tmp_path / "one")
    before = (tmp_path / "one/config.yaml").read_bytes()
    with pytest.raises(UserError, match="holds a probe already"):
        train_splits(probe_config(videos, checkpoint, **few), tmp_path / "one")
    assert (tmp_path / "one/config.yaml").read_bytes() == before


def test_a_finished_draw_is_kept_and_a_foreign_one_refused(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    config = probe_config(videos, checkpoint, **FEW)
    first = train_splits(config, tmp_path / "out")
    (tmp_path / "out/split_6/result.json").unlink()
    again = train_splits(config, tmp_path / "out")
    assert again.summary == first.summary
    assert again.results[0].date == first.results[0].date
    other = replace(config, optim=replace(config.optim, batch_size=4))
    before = (tmp_path / "out/config.yaml").read_bytes()
    with pytest.raises(UserError, match="another config"):
        train_splits(other, tmp_path / "out")
    assert (tmp_path / "out/config.yaml").read_bytes() == before


def test_a_draw_of_other_labels_or_weights_is_not_taken_for_finished(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "model")
    manifest = relabelled(videos, tmp_path / "m.parquet", lambda c, *_: {"colour": c})
    config = probe_config(manifest, model, **{**FEW, "probe.kind": "nearest_mean"})
    first = train_splits(config, tmp_path / "out")
    kept = manifest.read_bytes()
    for changed in ("train", "test"):
        new = {(changed, "red"): "green", (changed, "green"): "red"}
        relabelled(videos, manifest, lambda c, part, _, new=new: {"colour": new.get((part, c), c)})
        with pytest.raises(UserError, match="split_5: holds a finished probe, but its videos or"):
            train_splits(config, tmp_path / "out")
    manifest.write_bytes(kept)
    weights = load_file(model / "model.safetensors")
    weights = {name: tensor + 1 for name, tensor in weights.items()}
    save_file(weights, model / "model.safetensors")
    with pytest.raises(UserError, match="split_5: holds a finished probe, but the weights of its"):
        train_splits(config, tmp_path / "out")
    shutil.copytree(checkpoint, model, dirs_exist_ok=True)
    assert train_splits(config, tmp_path / "out").results == first.results


def test_a_job_goes_on_under_another_spelling_of_its_folder(
    videos: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = probe_config(videos, checkpoint, **{**FEW, "data.num_splits": 2, "optim.epochs": 1})
    first = train_splits(config, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert train_splits(config, Path("out")).results == first.results


def test_without_test_videos_there_is_no_figure(
    videos: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = probe_config(videos, checkpoint, **{**FEW, "data.num_splits": 2, "floors": True})
    config = replace(config, data=replace(config.data, test=None))
    found = train_splits(config, tmp_path / "out")
    assert found.summary is None
    assert "floors: not measured: there are no test videos (data.test)" in caplog.text
    assert "| seed 5 | 12 |\n" in found.markdown()
