"""AVA's files into one table of boxes: what is read, and what is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vjepa.cli.main import main
from vjepa.data.boxes import BoxTable
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.info import VideoInfo
from vjepa.errors import UserError
from vjepa.evaluation.box_features import KeyFrames

_MAP = 'item {\n  name: "stand"\n  id: 1\n}\nitem { name: "run"\n label_id: 12 }\n'
_TRUTH = """film_a,0902,0.1,0.2,0.5,0.9,1,0
film_a,0902,0.1,0.2,0.5,0.9,12,0
film_a,903.5,0.1,0.1,0.3,0.4,12,1
film_a,0904
film_b,0901,0.0,0.0,1.0,1.0,1,3
"""
_PERSONS = """film_a,0902,0.1,0.2,0.5,0.88,,0.99
film_a,0902,0.7,0.2,0.9,0.8,,0.95
film_a,0902,0.6,0.2,0.9,0.8,,0.2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A manifest of two films that begin at second 900, and the csv files."""
    rows = [
        ManifestRow(
            info=VideoInfo(
                path=str(tmp_path / f"{name}.mp4"),
                num_frames=250,
                fps=25.0,
                duration_seconds=10.0,
                width=64,
                height=48,
            )
        )
        for name in ("film_a", "film_b")
    ]
    Manifest.from_rows(rows, tmp_path).write(tmp_path / "films.parquet")
    (tmp_path / "map.pbtxt").write_text(_MAP)
    (tmp_path / "truth.csv").write_text(_TRUTH)
    (tmp_path / "persons.csv").write_text(_PERSONS)
    (tmp_path / "excluded.csv").write_text("film_b,0901\nfilm_z,0905\n")
    return tmp_path


def _run(folder: Path, *more: str) -> int:
    fixed = ("--videos", str(folder / "films.parquet"), "--out", str(folder / "boxes.parquet"))
    settings = ("--label_map", str(folder / "map.pbtxt"), "--starts_at", "900")
    return main(["data", "ava", str(folder / "truth.csv"), *fixed, *settings, *more])


def test_two_classes_of_one_name_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "map.pbtxt").write_text('item { name: "run" id: 1 }\nitem { name: "run" id: 2 }')
    assert _run(folder) == 2
    assert "map.pbtxt: the name 'run' stands twice; call one otherwise" in capsys.readouterr().err


def test_rows_become_boxes_with_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = (f"--persons=[{folder / 'persons.csv'}]", f"--excluded=[{folder / 'excluded.csv'}]")
    assert _run(folder, *more, "--match_persons", "0.9") == 0
    said = capsys.readouterr().out
    assert "1 key frames excluded" in said
    assert "2 people found (1 with classes, 1 negatives)" in said
    table = BoxTable.open(folder / "boxes.parquet")
    assert dict(table.classes) == {1: "stand", 12: "run"}
    assert table.keys == (("film_a", 902.0), ("film_a", 903.5), ("film_a", 904.0))
    truth = table.rows_of("truth")
    assert [table.labels[row] for row in truth] == [(1, 12), (12,)]
    assert table.time[truth].tolist() == [2.0, 3.5]
    found = table.rows_of("predicted")
    assert [table.labels[row] for row in found] == [(1, 12), ()]
    assert table.targets(found).tolist() == [[1.0, 1.0], [0.0, 0.0]]
    rows = table.truth()
    assert rows.label.tolist() == [1, 12, 12]
    assert rows.images == table.keys  # the one where nobody acts is known, too
    assert table.videos.resolve() == (folder / "films.parquet").resolve()


def test_frames_and_clips_named_by_their_start(folder: Path) -> None:
    assert _run(folder, "--unit", "frames", "--starts_at", "899") == 0
    table = BoxTable.open(folder / "boxes.parquet")
    assert np.allclose(table.time[table.rows_of("truth")], [3 / 25, 4.5 / 25, 2 / 25])
    info = VideoInfo(
        path=str(folder / "abc_000900_000910.mp4"),
        num_frames=250,
        fps=25.0,
        duration_seconds=10.0,
        width=8,
        height=8,
    )
    Manifest.from_rows([ManifestRow(info=info)], folder).write(folder / "films.parquet")
    (folder / "truth.csv").write_text("abc,904.25,0.1,0.2,0.5,0.9,1\n")
    assert _run(folder, "--starts_at", "name") == 0
    assert BoxTable.open(folder / "boxes.parquet").time.tolist() == [4.25]


def test_numbers_of_frames_are_not_turned_into_times_by_a_mean_rate(folder: Path) -> None:
    info = VideoInfo(
        path=str(folder / "film_c.mkv"),
        num_frames=4,
        fps=3 / 5.08,
        duration_seconds=4 * 5.08 / 3,
        width=8,
        height=8,
        constant_rate=False,
        time_base=Fraction(1, 1000),
        frame_pts=np.array([7, 47, 87, 5087]),
    )
    Manifest.from_rows([ManifestRow(info=info)], folder).write(folder / "films.parquet")
    (folder / "truth.csv").write_text("film_c,2,0.1,0.2,0.5,0.9,1\nfilm_c,3,0.1,0.2,0.5,0.9,1\n")
    assert _run(folder, "--unit", "frames", "--starts_at", "0") == 0
    assert BoxTable.open(folder / "boxes.parquet").time.tolist() == pytest.approx([0.08, 5.08])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("film_c,0902,0.1,0.2,0.5,0.9,1", "no such video: 'film_c'"),
        ("film_a.mp4,0902,0.1,0.2,0.5,0.9,1", "a file of that name, whose ending is left out"),
        ("film_a;0902;0.1;0.2;0.5;0.9;1", "set apart by commas, not by semicolons"),
        ("film_a,0920,0.1,0.2,0.5,0.9,1", "20 s into 'film_a', which lasts 10 s"),
        ("film_a,0902,0.5,0.2,0.1,0.9,1", "inverted or empty box: 0.5 0.2 0.1 0.9"),
        ("film_a,0902,0.1,0.2,0.1,0.9,1", "inverted or empty box"),
        ("film_a,0902,10,20,110,90,1", "far outside of the frame"),
        ("film_a,0902,0.1,0.2,0.5,0.9,7", "unknown class: 7"),
        ("film_a,0902,0.1,0.2,0.5", "5 columns, wanted 2 or 7 or 8"),
        ("film_a,0902,0.1,0.2,0.5,0.9,run", "class (column 7) is 'run', not a number"),
        ("film_a,soon,0.1,0.2,0.5,0.9,1", "second (column 2) is 'soon', not a number"),
        ("film_a,0902,nan,0.2,0.5,0.9,1", "side of the box is 'nan', not a number"),
    ],
)
def test_a_bad_row_is_named(
    folder: Path, row: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "truth.csv").write_text(_TRUTH + row + "\n")
    assert _run(folder) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "row 6" in error
    assert error.count("\n") == 1
    assert not (folder / "boxes.parquet").exists()
    if "commas" not in said and "columns" not in said and "not a" not in said:
        assert _run(folder, "--on_bad_row", "drop") == 0
        assert "1 rows left out" in capsys.readouterr().out


def test_two_videos_of_one_name_are_not_taken_for_each_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only where a row means them; the same file may be listed twice."""
    manifest = Manifest.open(folder / "films.parquet")
    rows = [ManifestRow(info=manifest.row(row)) for row in (0, 1, 1)]
    other = replace(manifest.row(1), path=str(folder / "val/film_b.mp4"), duration_seconds=3.0)
    Manifest.from_rows(rows, folder).write(folder / "films.parquet")
    assert _run(folder) == 0
    (folder / "before.parquet").write_bytes((folder / "boxes.parquet").read_bytes())
    Manifest.from_rows([*rows, ManifestRow(info=other)], folder).write(folder / "films.parquet")
    said = f"{folder}/film_b.mp4 and {folder}/val/film_b.mp4 have one name: rename one"
    capsys.readouterr()
    assert _run(folder) == 2
    assert f"row 5: a video that cannot be used: {said}" in capsys.readouterr().err
    with pytest.raises(UserError, match=said):
        KeyFrames.open(folder / "before.parquet")
    assert _run(folder, "--on_bad_row", "drop") == 0
    assert set(BoxTable.open(folder / "boxes.parquet").video) == {"film_a"}
    KeyFrames.open(folder / "boxes.parquet")


def test_a_field_without_an_end_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "truth.csv").write_text(_TRUTH + "film_a,0902," + "1" * 140_000 + "\n")
    assert _run(folder) == 2
    assert "truth.csv, row 6: cannot be read as CSV (field larger than" in capsys.readouterr().err


def test_people_without_scores_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    persons = f"--persons=[{folder / 'persons.csv'}]"
    for row, said in (
        ("film_a,0902,0.1,0.2,0.5,0.9,,high", "score (column 8) is 'high', not a number"),
        ("film_a,0902", "only a truth can say"),
        ("film_a,0902,0.1,0.2,0.5,0.9,,7", "score 7 is not in 0 .. 1"),
    ):
        (folder / "persons.csv").write_text(row + "\n")
        assert _run(folder, persons) == 2
        assert said in capsys.readouterr().err


def test_a_header_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "truth.csv").write_text("video,second,x1,y1,x2,y2,class,person\n" + _TRUTH)
    assert _run(folder) == 2
    assert "truth.csv, row 1: is a header ('second'), AVA's files have none" in (
        capsys.readouterr().err
    )


def test_files_that_excel_has_saved_lose_no_row(folder: Path) -> None:
    for name, text in (("truth.csv", _TRUTH), ("persons.csv", _PERSONS)):
        (folder / name).write_text(text, encoding="utf-8-sig")
    assert _run(folder, f"--persons=[{folder / 'persons.csv'}]") == 0
    assert len(BoxTable.open(folder / "boxes.parquet").rows_of("predicted")) == 2


def test_people_are_matched_also_below_half(folder: Path) -> None:
    """The two boxes share 4 of 10 parts of what they cover."""
    (folder / "truth.csv").write_text("film_a,902,0.0,0.0,0.7,1.0,1\n")
    (folder / "persons.csv").write_text("film_a,902,0.3,0.0,1.0,1.0,,0.99\n")
    for least, labels in (("0.3", (1,)), ("0.5", ())):
        assert _run(folder, f"--persons=[{folder / 'persons.csv'}]", "--match_persons", least) == 0
        table = BoxTable.open(folder / "boxes.parquet")
        assert [table.labels[row] for row in table.rows_of("predicted")] == [labels]
