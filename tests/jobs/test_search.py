"""`vjepa search`: through the command line, on videos that hold a copy of one of them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vjepa.cli.main import main
from vjepa.demo.synthetic import SyntheticConfig, render_clip
from vjepa.jobs import search
from vjepa.jobs.search_report import clusters, near_duplicates
from vjepa.reporting.pictures import SHOWN_SIDE, write_moving

pytest.importorskip("lancedb")

_LONG = SyntheticConfig(num_frames=16, travel=0.6, background_speed=0.6)
_HOW = ("--encoder.path", "demo", "--readers", "0", "--device", "cpu", "--num_threads", "1")


def _write(path: Path, number: int, frames: int = 16) -> None:
    write_moving(list(render_clip(_LONG, "train", number).frames[:frames]), path, 0.125)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of videos, `videos`, and its database, `db`."""
    folder = tmp_path_factory.mktemp("search")
    videos = folder / "videos"
    videos.mkdir()
    for number, name in enumerate(("a", "b", "it's c")):
        _write(videos / f"{name}.mp4", number)
    shutil.copy(videos / "a.mp4", videos / "again.mp4")
    _write(videos / "short.mp4", 3, frames=2)
    (videos / "broken.mp4").write_bytes(b"nothing")
    assert main(["search", "index", str(videos), *_HOW, "--out", str(folder / "db")]) == 1
    return folder


def _copied(made: Path, to: Path) -> tuple[Path, Path]:
    """Videos and database that a test may change."""
    shutil.copytree(made / "videos", to / "videos")
    for name in ("short", "broken"):
        (to / "videos" / f"{name}.mp4").unlink()
    return to / "videos", to / "db"


def _table(text: str) -> list[list[str]]:
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if line.split()[:2] == ["alike", "from"])
    last = next(n for n, line in enumerate(lines) if line.startswith("contact sheet"))
    return [line.split(maxsplit=4) for line in lines[first + 1 : last]]


def test_a_moment_is_found_in_the_copy_of_its_video(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example, sheet = made / "videos" / "a.mp4", tmp_path / "found.png"
    asked = ["search", "query", str(example), "--database", str(made / "db"), "--count", "3"]
    # The 8 frames from number 4 on are the second window of each file.
    assert main([*asked, "--start", "0.45", "--end", "1.45", "--out", str(sheet)]) == 0
    rows = _table(capsys.readouterr().out)
    assert len(rows) == 3
    assert rows[0][4] == str(made / "videos" / "again.mp4")
    assert rows[0][2:4] == ["0:00.5", "0:01.5"]
    alike = [float(row[1]) for row in rows]
    assert alike[0] > 0.9
    assert alike == sorted(alike, reverse=True)
    with Image.open(sheet) as picture:
        assert picture.height > 4 * SHOWN_SIDE  # the example and three rows
        assert picture.width > 4 * SHOWN_SIDE


def test_the_weights_of_a_model_of_timm_may_lie_elsewhere_now(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    timm = pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), "w.pth")
    how = ("--encoder.timm", "test_vit", "--encoder.timm_weights", "w.pth", "--readers", "0")
    cut = ("--framing.kind", "centre", "--framing.size", "160", "--window.num_frames", "8")
    example = str(made / "videos" / "a.mp4")
    assert main(["search", "index", str(made / "videos"), *how, *cut, "--out", "db"]) == 1
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    asked = ["search", "query", example, "--database", str(tmp_path / "db"), "--count", "1"]
    assert main(asked) == 0, "from another folder"
    (tmp_path / "w.pth").rename("moved.pth")
    assert main([*asked, "--encoder", "moved.pth"]) == 0
    best = _table(capsys.readouterr().out)[0]
    assert best[4] == str(made / "videos" / "again.mp4")


def test_an_image_is_an_example_too(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "frame.png"
    Image.fromarray(render_clip(_LONG, "train", 1).frames[8]).save(image)
    sheet = str(tmp_path / "found.png")
    assert (
        main(["search", "query", str(image), "--database", str(made / "db"), "--out", sheet]) == 0
    )
    best = _table(capsys.readouterr().out)[0]
    assert best[4] == str(made / "videos" / "b.mp4")


def test_the_report_names_the_copy(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    asked = ["search", "report", "--database", str(made / "db"), "--clusters", "2"]
    assert main([*asked, "--out", str(page)]) == 0
    said = capsys.readouterr().out
    assert "1.000 alike" in said.splitlines()[0]
    assert "a.mp4" in said.splitlines()[0]
    assert "again.mp4" in said.splitlines()[0]
    assert "nearly the same (at least 0.95 alike): 1. Clusters of moments: 2." in said
    assert "data:image/png" in page.read_text()
    assert ">a.mp4, 0:0" in page.read_text(), "the folder of all is named once"
    assert page.read_text().count(str(made / "videos")) == 1
    assert main([*asked, "--out", str(tmp_path / "page.png")]) == 2
    assert "page.png: must end in .html" in capsys.readouterr().err
    for given, said in (
        ("nan", "invalid number value: 'nan'"),
        ("1.5", "use 1 (the same) or less"),
    ):
        assert main([*asked, "--alike", given]) == 2
        assert said in capsys.readouterr().err


def test_only_what_changed_is_encoded_and_a_stopped_run_goes_on(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, out = _copied(made, tmp_path)
    command = ["search", "index", str(videos), *_HOW, "--out", str(out)]
    rows_of, calls = search._rows, []

    def stopped(*args: Any) -> list[dict[str, Any]]:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rows_of(*args)

    with monkeypatch.context() as patch:
        patch.setattr(search, "_rows", stopped)
        assert main(command) == 130
    example = str(videos / "a.mp4")
    assert main(["search", "query", example, "--database", str(out)]) == 2
    assert (
        "is empty or half-made; run the same `vjepa search index` again" in capsys.readouterr().err
    )
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "2 files encoded, 2 there already;" in said
    assert "(12 moments)" in said
    (videos / "again.mp4").unlink()
    _write(videos / "it's c.mp4", 7)
    asked = ["search", "query", example, "--database", str(out), "--out", str(tmp_path / "f.png")]
    assert main(asked) == 0
    said = capsys.readouterr().err
    named = [line for line in said.splitlines() if ".mp4: " in line]
    assert len(named) == 2, "one line a file"
    assert "/it's c.mp4: has changed since it was looked at" in said
    assert f"not shown: {videos / 'again.mp4'}: is gone; the command that" in said
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "1 file encoded, 2 there already, 1 dropped;" in said
    assert "(9 moments)" in said
    assert main(command) == 0
    assert "0 files encoded, 3 there already\n" in capsys.readouterr().out
    listed = tmp_path / "some.txt"
    listed.write_text(str(videos / "a.mp4"))
    command[2] = str(listed)
    assert main(command) == 0
    assert "1 there already, 2 of other sources stay (--drop true" in capsys.readouterr().out
    assert main([*command, "--drop", "true"]) == 0
    said = capsys.readouterr().out
    assert "1 there already, 2 dropped" in said
    assert "(3 moments)" in said


def test_an_update_that_was_stopped_leaves_no_database_that_looks_whole(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, out = _copied(made, tmp_path)
    command = ["search", "index", str(videos), *_HOW, "--out", str(out)]
    assert main(command) == 0
    for path in videos.iterdir():
        os.utime(path, (1, 1))

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(search, "_rows", stopped)
        assert main(command) == 130
    for asked in (["query", str(videos / "a.mp4")], ["report"]):
        assert main(["search", *asked, "--database", str(out)]) == 2
        assert "is empty or half-made; run the same" in capsys.readouterr().err
    assert main(command) == 0
    assert "(12 moments)" in capsys.readouterr().out
    page = str(tmp_path / "page.html")
    assert main(["search", "report", "--database", str(out), "--out", page]) == 0


def test_moments_that_are_all_the_same_are_not_compared(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "db"
    videos.mkdir()
    _write(videos / "one.mp4", 0, frames=8)
    example = str(made / "videos" / "b.mp4")
    for _ in ("one moment", "two alike"):
        assert main(["search", "index", str(videos), *_HOW, "--out", str(out)]) == 0
        for asked in (["query", example], ["report"]):
            assert main(["search", *asked, "--database", str(out)]) == 2
            said = capsys.readouterr().err
            assert f"error: {out}: all its moments are the same" in said
            assert "add videos to it" in said
        shutil.copy(videos / "one.mp4", videos / "two.mp4")
    _write(videos / "other.mp4", 1, frames=8)
    assert main(["search", "index", str(videos), *_HOW, "--out", str(out)]) == 0
    page = str(tmp_path / "page.html")
    assert main(["search", "report", "--database", str(out), "--out", page]) == 0


def test_a_report_tries_a_file_that_is_gone_once(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, out = _copied(made, tmp_path)
    assert main(["search", "index", str(videos), *_HOW, "--out", str(out)]) == 0
    shutil.rmtree(videos)
    page = str(tmp_path / "page.html")
    asked = ["search", "report", "--database", str(out), "--alike", "1", "--out", page]
    assert main(asked) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "not shown: " in line]
    for name in ("b.mp4", "it's c.mp4"):
        assert len([line for line in warned if f"{videos / name}: " in line]) == 1


def test_a_model_by_its_name_stays_one_where_a_folder_is_called_so(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    video = str(made / "videos" / "a.mp4")
    assert main(["search", "index", video, *_HOW, "--out", "db"]) == 0
    assert "  path: demo\n" in (tmp_path / "db" / "config.yaml").read_text()


def test_files_that_cannot_be_used_are_named(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["search", "index", str(made / "videos"), *_HOW, "--out", str(made / "db")]
    assert main(command) == 1
    said = capsys.readouterr().out
    assert "broken.mp4: not a video" in said
    assert "short.mp4: too short: gives 2 of the 8 frames of a moment" in said
    assert "0 files encoded, 4 there already, 2 cannot be used" in said


def test_a_moment_of_a_slow_video_lasts_until_its_frame_ends(tmp_path: Path) -> None:
    video, out = tmp_path / "a.mp4", str(tmp_path / "db")
    write_moving(list(render_clip(_LONG, "train", 1).frames[:3]), video, 1.0)
    assert main(["search", "index", str(video), *_HOW, "--window.fps", "8", "--out", out]) == 0
    _, moments = search.Database(out).moments(100)
    ends = sorted((one.start, one.end) for one in moments)
    assert ends == [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["query", "A", "--database", "none"], "none: no database of moments; make one with"),
        (["query", "none.mp4", "--database", "DB"], "none.mp4: no such file; name a video"),
        (["query", "SHORT", "--database", "DB"], "too short: gives 2 of the 8 frames of a"),
        (["query", "A", "--database", "DB", "--start", "9"], "lasts 2 s: --start 9 must"),
        (
            ["query", "A", "--database", "DB", "--start", "1", "--end", "1.1"],
            "too short: gives 2 of the 8 frames of a moment; give more",
        ),
        (["query", "BROKEN", "--database", "DB"], "broken.mp4: not a video"),
        (["index", "V", *_HOW, "--out", "V"], "holds nothing of `vjepa search index`"),
        (["index", "V", *_HOW, "--window.overlap", "0", "--out", "DB"], "or settings (window"),
        (
            ["index", "V", *_HOW, "--encoder.random", "true", "--out", "DB"],
            "db: holds moments of other weights or settings (weights_hash",
        ),
    ],
)
def test_bad_input_is_one_line(
    made: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = made / "videos"
    names = {"V": videos, "DB": made / "db", "A": videos / "a.mp4", "SHORT": videos / "short.mp4"}
    names["BROKEN"] = videos / "broken.mp4"
    before = (made / "db" / "search.json").read_bytes()
    assert main(["search", *(str(names.get(word, word)) for word in words)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert said[-1].startswith("error: ")
    assert (made / "db" / "search.json").read_bytes() == before


def test_the_missing_package_names_the_extra(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    example, database = str(made / "videos" / "a.mp4"), str(made / "db")
    assert main(["search", "query", example, "--database", database]) == 2
    assert "search needs lancedb: pip install 'open-vjepa[search]'" in capsys.readouterr().err


def _vectors(folder: Path, vectors: np.ndarray) -> search.Any:
    table = search._open_table(folder, vectors.shape[1])
    place = {"path": "x", "origin": "", "end": 0.0, "first_frame": 0, "last_frame": 0}
    table.add([place | {"start": float(n), "vector": v} for n, v in enumerate(vectors)])
    return table


def test_the_nearest_are_those_of_exact_arithmetic_also_through_the_index(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    vectors = np.repeat(generator.normal(size=(30, 16)), 20, axis=0)
    vectors = (vectors + 0.5 * generator.normal(size=vectors.shape)).astype(np.float32)
    table = _vectors(tmp_path, vectors)
    asked = vectors[::60] + 0.1
    wanted = [((vectors - one) ** 2).sum(axis=1).argsort()[:10].tolist() for one in asked]

    def found(exact: bool) -> list[list[int]]:
        rows = [search.nearest_rows(table, one, 10, exact=exact) for one in asked]
        return [[int(row["start"]) for row in several] for several in rows]

    assert found(exact=False) == wanted
    search.build_index(table)
    assert found(exact=True) == wanted
    pairs = zip(wanted, found(exact=False), strict=True)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in pairs]) >= 0.9


def test_pairs_and_clusters_of_known_vectors() -> None:
    vectors = np.array([[0, 0], [0, 1], [9, 9], [9, 9.1], [0, 0.1]], np.float32)
    moments = [search.Moment(path, float(n), n + 1.0, n, n, 1.0) for n, path in enumerate("aabcb")]
    database: Any = SimpleNamespace(spread=100.0)
    pairs = near_duplicates(database, vectors, moments, 0.98)
    found = {(one.start, other.start): one.alike for one, other in pairs}
    assert found == {(0.0, 4.0): pytest.approx(0.9999), (2.0, 3.0): pytest.approx(0.9999)}
    chosen, distances = clusters(vectors, 2)
    assert chosen[0] == chosen[1] == chosen[4] != chosen[2] == chosen[3]
    assert distances.max() < 1.0
    assert len(set(clusters(np.zeros((5, 2), np.float32), 3)[0])) == 1
