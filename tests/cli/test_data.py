"""``vjepa data``: synthetic set, index and check through the command line."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

_SMALL = [
    *("--num_clips_train", 3, "--num_clips_validation", 1, "--num_clips_test", 1),
    *("--num_frames", 4, "--size", 32, "--workers", 1),
]


_PREPARE = ["prepare", "m.parquet", "--out", "x"]


@pytest.fixture
def synthetic(tmp_path: Path, vjepa: Callable) -> Path:
    outcome = vjepa("data", "synth", "--out", tmp_path / "set", *_SMALL)
    assert outcome.code == 0, outcome.err
    manifest = tmp_path / "set" / "manifest.parquet"
    assert outcome.out.startswith(f"{manifest}: 5 videos")
    assert "splits train 3, test 1, validation 1, labels appearance (" in outcome.out
    return manifest


def test_check_lists_what_is_bad_and_says_so_by_its_exit_code(
    synthetic: Path, vjepa: Callable
) -> None:
    outcome = vjepa("data", "check", synthetic, "--deep", "--workers", 1)
    assert outcome.code == 0
    assert "usable: 5 of 5 videos\nlength: 20 frames" in outcome.out
    assert "splits: train 3" in outcome.out
    outcome = vjepa("data", "check", synthetic, "--deep", "--workers", 1, "--limits.max_frames", 3)
    assert outcome.code == 1
    assert "more than max_frames = 3 frames" in outcome.out
    bad = next((synthetic.parent / "train").glob("*.mp4"))
    bad.write_bytes(b"")
    outcome = vjepa("data", "check", synthetic, "--workers", 1)
    assert outcome.code == 1
    assert f"bad: {bad}: " in outcome.out
    assert "usable: 4 of 5 videos" in outcome.out
    assert "changed since they were indexed: 1" in outcome.out


def test_what_is_given_in_place_of_a_manifest_is_what_to_make_one_of(
    synthetic: Path, tmp_path: Path, vjepa: Callable
) -> None:
    video = synthetic.parent / "train" / "000000.mp4"
    (spaced := tmp_path / "my clips").mkdir()
    for given, what in (
        (video.parent, "a folder"),
        (video, "no Parquet file"),
        (spaced, "a folder"),
    ):
        remedy = f"make one with `vjepa data index {shlex.quote(str(given))} --out"
        said = f"manifest {given}: cannot be read (is {what}); {remedy}"
        assert said in vjepa("data", "check", given).error
    moved = tmp_path / "moved.parquet"
    shutil.copy(synthetic, moved)
    outcome = vjepa("data", "check", moved, "--workers", 1)
    assert outcome.code == 1
    assert "none of its files is there: was it moved? Its paths begin at its own" in outcome.out


def test_index_a_folder_with_a_bad_file(synthetic: Path, tmp_path: Path, vjepa: Callable) -> None:
    (synthetic.parent / "train" / "empty.mp4").write_bytes(b"")
    out = tmp_path / "all.parquet"
    outcome = vjepa(
        *("data", "index", "--label-from-folder", "false", synthetic.parent / "train"),
        *("--out", out, "--workers", 1),
    )
    assert outcome.code == 0
    assert outcome.out.startswith(f"{out}: 4 videos, 1 of them bad ({synthetic.parent}")
    assert "empty.mp4: empty file (0 bytes)), " in outcome.out
    (synthetic.parent / "train" / "other.mp4").write_bytes(b"")
    outcome = vjepa("data", "index", synthetic.parent / "train", "--out", out, "--workers", 1)
    assert outcome.out.startswith(f"{out}: 5 videos, 2 of them bad (first: {synthetic.parent}")
    assert "empty.mp4: empty file (0 bytes); the others: `vjepa data check`), " in outcome.out


def test_images_are_called_images(synthetic: Path, tmp_path: Path, vjepa: Callable) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "all" / name).mkdir(parents=True)
        Image.new("RGB", (32, 24)).save(tmp_path / "all" / name / "a.png")
    out = tmp_path / "m.parquet"
    arguments = ("data", "index", "--label_from_folder", "true", "--out", out, "--workers", 1)
    assert vjepa(*arguments, tmp_path / "all").out == f"{out}: 2 images, labels label (2 values)\n"
    shutil.copy(synthetic.parent / "train" / "000000.mp4", tmp_path / "all" / "cat")
    said = vjepa(*arguments, tmp_path / "all").out
    assert said == f"{out}: 1 video, 2 images, 0.00 hours, labels label (2 values)\n"


def test_names_that_are_nearly_the_same_are_told(tmp_path: Path, vjepa: Callable) -> None:
    rows, names = [], [("Cat", "Train", 1), ("cat", "train", "1.0"), ("dog", "train", 10)]
    for number, (label, split, age) in enumerate(names):
        Image.new("RGB", (32, 24)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{label},{split},{age},{number}.5\n")
    (tmp_path / "l.csv").write_text("path,label,split,age,at\n" + "".join(rows))
    out = tmp_path / "m.parquet"
    said = vjepa("data", "index", tmp_path / "l.csv", "--out", out, "--workers", 1).out
    assert "splits train 2, Train 1 ('Train' and 'train' count as two)" in said
    assert "label (3 values ('Cat' and 'cat' count as two))" in said
    assert "age (3 values ('1' and '1.0' count as two))" in said
    assert "at (3 values)" in said


def test_prepare_says_what_it_left_out(synthetic: Path, tmp_path: Path, vjepa: Callable) -> None:
    names = tmp_path / "held_out.txt"
    first = sorted((synthetic.parent / "train").glob("*.mp4"))[0]
    names.write_text(f"{first.stem}_of_another_set\n{first.stem}\n")
    out = tmp_path / "prepared"
    arguments = ["data", "prepare", synthetic, "--exclude", names, "--out", out, "--workers", 1]
    # The splits of the synthetic set number their files alike.
    outcome = vjepa(*arguments, "--transcode.preset", "ultrafast", "--max_removed", 0.7)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("prepared: 2 videos of 5 in the input")
    assert "left out, excluded by id: 3" in outcome.out
    assert outcome.out.endswith(f"manifest: {out}/manifest.parquet\n")
    assert vjepa("data", "check", out / "manifest.parquet", "--workers", 1).code == 0


def test_two_sources_with_weights(synthetic: Path, tmp_path: Path, vjepa: Callable) -> None:
    folder, out = synthetic.parent, tmp_path / "mix.parquet"
    sources = [folder / "train", folder / "test"]
    arguments = ["data", "index", *sources, "--out", out, "--workers", 1, "--source-weight"]
    outcome = vjepa(*arguments, 2, 1)
    assert outcome.code == 0
    assert "sources train 3, test 1" in outcome.out
    assert "weights: 1 given for 2 sources" in vjepa(*arguments, 2).error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["index"], "data index needs SRC"),
        (["index", "x"], "data index needs --out FILE"),
        (["index", "no-such", "--out", "m.parquet"], "no-such: no such file or folder"),
        (["index", "x", "--timeout_second", "3"], "did you mean timeout_seconds?"),
        (["check", "no-such.parquet"], "no-such.parquet: no such file"),
        (["check", "m.parquet", "--label_from_folder", "true"], "unknown setting"),
        (
            ["index", __file__, "--out", "m.parquet", "--label_from_folder", "true"],
            "label_from_folder: is for folders, and no source is one",
        ),
        (
            ["index", __file__, "--out", "m.parquet", "--image_folders", "clips"],
            "image_folders: is for folders",
        ),
        (["synth"], "data synth needs --out DIR"),
        (["prepare"], "data prepare needs MANIFEST"),
        (["prepare", "m.parquet"], "data prepare needs --out DIR"),
        (_PREPARE, "m.parquet: no such file"),
        ([*_PREPARE, "--transcode.gop", "0"], "gop must be at least 1, got 0"),
        ([*_PREPARE, "--config", "k71"], "k710"),
        (
            [*_PREPARE, "--transcode.mode", "copy", "--trim.window_seconds", "2"],
            "trim cannot be used with transcode.mode copy",
        ),
        (["synth", "--out", "x", "--num_frames", "1"], "num_frames must be at least 2, got 1"),
        (["synth", "--out", "x", "--workers", "0"], "--workers must be at least 1, got 0"),
    ],
)
def test_bad_input(argv: list[str], message: str, vjepa: Callable) -> None:
    assert message in vjepa("data", *argv).error


def test_print_config_does_no_work(vjepa: Callable, tmp_path: Path) -> None:
    outcome = vjepa("data", "synth", "--out", tmp_path / "x", "--print-config", "--seed", 5)
    assert outcome.code == 0
    assert "\nseed: 5\n" in outcome.out
    assert not (tmp_path / "x").exists()
