from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tests.evaluation.tiny_videos import coloured_frames, make_set, write_video

from vjepa.checkpoint import save_model
from vjepa.cli.main import main
from vjepa.config import load_config
from vjepa.data.clips.dataset import ReadingConfig
from vjepa.errors import UserError
from vjepa.jobs.probe.config import ProbeConfig
from vjepa.jobs.probe.predict import check_predictions_file, load_probe
from vjepa.jobs.probe.probe import train
from vjepa.models import VJEPA, EncoderConfig, ModelConfig, PredictorConfig

TINY = ModelConfig(
    encoder=EncoderConfig(
        width=24, depth=1, heads=2, image_size=32, num_frames=4, patch_size=16, tubelet_size=2
    ),
    predictor=PredictorConfig(width=12, depth=1),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos in ``videos/``, a model, and a probe for colours in ``probe/``."""
    folder = tmp_path_factory.mktemp("predict")
    (folder / "videos").mkdir()
    manifest = make_set(folder / "videos", {"train": 24, "test": 6})
    torch.manual_seed(0)
    save_model(folder / "model", VJEPA(TINY))
    settings = {
        "encoder.path": str(folder / "model"),
        "data.label": "colour",
        "data.train.manifest": str(manifest),
        "data.train.split": "train",
        "data.clip.num_frames": 4,
        "data.clip.stride": 2,
        "data.view.crop_size": 32,
        "data.view.short_side": 32,
        "data.reading.num_workers": 0,
        "optim.epochs": 40,
        "optim.batch_size": 8,
        "optim.learning_rates": [3e-3],
    }
    result = train(load_config(ProbeConfig, overrides=settings), folder / "probe")
    assert result.test is None  # no test videos were named
    return folder


def test_a_file_gives_its_most_probable_classes(folder: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "new.mp4", coloured_frames("green", 777))
    probe = load_probe(folder / "probe", num_threads=1)
    (found,) = probe.predict([tmp_path / "new.mp4"], top=2)
    assert found.path == str(tmp_path / "new.mp4")
    assert found.failure is None
    assert len(found.classes) == 2
    assert found.classes[0].name == "green"
    assert found.classes[0].probability > found.classes[1].probability
    assert sum(share.probability for share in found.classes) <= 1.0 + 1e-9
    (all_classes,) = load_probe(folder / "probe", num_threads=1).predict(
        [str(tmp_path / "new.mp4")], top=9
    )
    assert sum(share.probability for share in all_classes.classes) == pytest.approx(1.0)


def test_a_manifest_in_its_order_with_a_failure_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    sources = [tmp_path / "broken.mp4", folder / "videos/manifest.parquet"]
    reading = ReadingConfig(num_workers=0)
    found = load_probe(folder / "probe", num_threads=1).predict(
        sources, split="test", reading=reading
    )
    assert len(found) == 7
    assert found[0].path == str(tmp_path / "broken.mp4")
    assert found[0].failure
    assert found[0].classes == ()
    assert [Path(entry.path).name for entry in found[1:]] == [f"test_{i:03d}.mp4" for i in range(6)]
    right = [
        entry.classes[0].name == ("red", "green", "blue")[number % 3]
        for number, entry in enumerate(found[1:])
    ]
    assert sum(right) >= 5


@pytest.mark.slow
def test_a_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_video(tmp_path / "a.mp4", coloured_frames("red", 1))
    write_video(tmp_path / "sub/b.mp4", coloured_frames("blue", 2))
    found = load_probe(folder / "probe", num_threads=1).predict([tmp_path])
    assert sorted(Path(entry.path).name for entry in found) == ["a.mp4", "b.mp4"]


def test_bad_input(folder: Path, tmp_path: Path) -> None:
    video = folder / "videos/test_000.mp4"
    with pytest.raises(UserError, match="not a probe"):
        load_probe(tmp_path)
    probe = load_probe(folder / "probe")
    with pytest.raises(UserError, match="top"):
        probe.predict([video], top=0)
    with pytest.raises(UserError, match="no video"):
        probe.predict([])
    with pytest.raises(UserError, match=r"nothing\.mp4"):
        probe.predict([tmp_path / "nothing.mp4"])
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"not one video could be read.*broken\.mp4"):
        probe.predict([tmp_path / "broken.mp4"])
    torch.manual_seed(1)
    other = save_model(tmp_path / "other", VJEPA(TINY))
    with pytest.raises(UserError, match="trained for another encoder"):
        load_probe(folder / "probe", encoder=other)


def test_predictions_are_written_in_three_forms(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    sources = [str(folder / "videos" / "test_000.mp4"), str(tmp_path / "broken.mp4")]
    for name in ("p.jsonl", "p.csv", "p.parquet"):
        command = ["probe", "predict", str(folder / "probe"), *sources, "--top", "2"]
        assert main([*command, "--device", "cpu", "--out", str(tmp_path / name)]) == 1
        said = capsys.readouterr().out
        assert "not predicted: " in said
        assert "predictions of 2 files" in said
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == sources
    assert lines[1]["failure"]
    assert lines[1]["classes"] == []
    best = lines[0]["classes"]
    assert len(best) == 2
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["class_1"] == best[0]["name"]
    assert float(rows[0]["probability_2"]) == best[1]["probability"]
    assert rows[1]["failure"] == lines[1]["failure"]
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert table[0]["classes"] == [entry["name"] for entry in best]
    assert table[0]["probabilities"] == [entry["probability"] for entry in best]
    assert table[1]["failure"] == lines[1]["failure"]


@pytest.mark.parametrize("name", ["p.txt", "none/p.csv"])
def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError, match="--out"):
        check_predictions_file(tmp_path / name)
