from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.evaluation.tiny_videos import coloured_frames, write_manifest, write_video
from tests.jobs.probe.tiny_probe import evaluate_here, probe_config

from vjepa.cli.main import main
from vjepa.data.loader.reading import ReadingConfig
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.decode import decode_frames
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError
from vjepa.jobs.probe.predict import PREDICTION_FILES, load_probe
from vjepa.jobs.probe.probe import train
from vjepa.runtime.files import check_kind


@pytest.fixture(scope="module")
def folder(videos: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a probe for colours in ``probe/``."""
    folder = tmp_path_factory.mktemp("predict")
    config = probe_config(
        videos, checkpoint, **{"optim.epochs": 40, "optim.learning_rates": [3e-3]}
    )
    result = train(replace(config, data=replace(config.data, test=None)), folder / "probe")
    assert result.test is None  # no test videos were named
    return folder


def test_a_file_gives_its_most_probable_classes(folder: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "new.mp4", coloured_frames("green", 777))
    probe = load_probe(folder / "probe", num_threads=1)
    (found,) = probe.predict([tmp_path], top=2)  # a folder
    assert found.path == str(tmp_path / "new.mp4")
    assert found.failure is None
    assert len(found.classes) == 2
    assert found.classes[0].name == "green"
    assert found.classes[0].probability > found.classes[1].probability
    assert sum(share.probability for share in found.classes) <= 1.0 + 1e-9
    (all_classes,) = probe.predict(str(tmp_path / "new.mp4"), top=9)
    assert sum(share.probability for share in all_classes.classes) == pytest.approx(1.0)


def test_a_manifest_in_its_order_with_a_failure_named(
    videos: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    sources = [tmp_path / "broken.mp4", videos]
    reading = ReadingConfig(num_workers=0)
    found = load_probe(folder / "probe", num_threads=1).predict(
        sources, split="test", reading=reading
    )
    assert len(found) == 12
    assert found[0].path == str(tmp_path / "broken.mp4")
    assert found[0].failure
    assert found[0].classes == ()
    assert [Path(entry.path).name for entry in found[1:]] == [
        f"test_{i:03d}.mp4" for i in range(11)
    ]
    right = [
        entry.classes[0].name == ("red", "green", "blue")[number % 3]
        for number, entry in enumerate(found[1:])
    ]
    assert sum(right) >= 8


def test_bad_input(videos: Path, folder: Path, tmp_path: Path) -> None:
    video = videos.parent / "test_000.mp4"
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


def test_predictions_are_written_in_three_forms(
    videos: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    sources = [str(videos.parent / "test_000.mp4"), str(tmp_path / "broken.mp4")]
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
    assert rows[1]["probability_2"] == ""  # as many columns as the others have
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert table[0]["classes"] == [entry["name"] for entry in best]
    assert table[0]["probabilities"] == [entry["probability"] for entry in best]
    assert table[1]["failure"] == lines[1]["failure"]


def test_a_kind_of_file_that_is_not_written_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--out .*must end in"):
        check_kind("--out", tmp_path / "p.txt", *PREDICTION_FILES)


def test_a_file_that_is_named_twice_is_answered_twice(videos: Path, folder: Path) -> None:
    one, other = (videos.parent / f"test_00{number}.mp4" for number in (0, 1))
    found = load_probe(folder / "probe", num_threads=1).predict([other, one, other])
    assert [entry.path for entry in found] == [str(other), str(one), str(other)]
    assert found[0] == found[2] != found[1]


def test_folders_of_frames_count_as_videos(
    videos: Path, checkpoint: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever stands first, in training, in evaluation and in what an earlier version wrote."""
    manifest, rows = Manifest.open(videos), []
    for number, split in enumerate(manifest.table.column("split").to_pylist()):
        info = manifest.row(number)
        if split == "test":
            frames = tmp_path / "frames" / Path(info.path).stem
            frames.mkdir(parents=True)
            for at, picture in enumerate(decode_frames(info, range(info.num_frames))):
                Image.fromarray(picture).save(frames / f"{at:03d}.png")
            info = inspect_file(str(frames))
        labels = {"colour": manifest.labels("colour")[number]}
        rows.append(ManifestRow(info=info, split=split, labels=labels))
    mixed = write_manifest(rows, tmp_path / "mixed.parquet")
    result = train(probe_config(mixed, checkpoint, **{"optim.epochs": 1}), tmp_path / "probe")
    assert result.test is not None
    described = tmp_path / "probe" / "probe.json"
    described.write_text(described.read_text().replace('"kind": "video"', '"kind": "image_folder"'))
    measured = evaluate_here(tmp_path / "probe", videos)
    assert measured.metrics.count == 11
    load_probe(tmp_path / "probe", num_threads=1).predict(videos, split="test")
    assert "its answers there say little" not in caplog.text
