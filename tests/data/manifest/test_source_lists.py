from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from tests.data.video_files import write_image, write_image_folder

from vjepa.data.manifest.lists import IndexConfig, LeftOut, SourceRow, read_source
from vjepa.errors import UserError


def read(source: Path, **options) -> list[SourceRow]:
    return list(read_source(str(source), IndexConfig(**options)))


def names(rows: list[SourceRow], root: Path) -> list[str]:
    return [os.path.relpath(row.path, root) for row in rows]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --- folders ---


def make_tree(root: Path, *files: str) -> Path:
    for name in files:
        write(root / name, "x")
    return root


def test_a_folder_tree(tmp_path):
    root = make_tree(
        tmp_path / "set", "b/2.mp4", "a/1.MKV", "a/notes.txt", "c.gif", ".hidden.mp4", ".git/x.mp4"
    )
    rows = read(root)
    assert names(rows, root) == ["c.gif", "a/1.MKV", "b/2.mp4"]
    assert all(row.kind == "video" and not row.labels and row.split is None for row in rows)
    assert all(Path(row.path).is_absolute() for row in rows)
    assert names(read(root / "c.gif"), root) == ["c.gif"], "one video is a source, too"


def test_folder_names_as_labels(tmp_path):
    root = make_tree(tmp_path / "set", "run/1.mp4", "walk/2.mp4", "deep/walk/3.mp4")
    rows = read(root, label_from_folder=True)
    assert [(name, row.labels) for name, row in zip(names(rows, root), rows, strict=True)] == [
        ("deep/walk/3.mp4", {"label": "walk"}),
        ("run/1.mp4", {"label": "run"}),
        ("walk/2.mp4", {"label": "walk"}),
    ]
    make_tree(root, "loose.mp4")
    with pytest.raises(UserError, match=r"run/1\.mp4|deep.*: has a label 'label', but the rows"):
        read(root, label_from_folder=True)


def test_split_folders(tmp_path):
    root = make_tree(tmp_path / "set", "train/run/1.mp4", "Val/run/2.mp4", "testing/3.mp4")
    rows = read(root)
    assert [row.split for row in rows] == ["validation", "test", "train"]
    labelled = make_tree(tmp_path / "other", "train/run/1.mp4", "val/walk/2.mp4")
    assert [row.labels["label"] for row in read(labelled, label_from_folder=True)] == [
        "run",
        "walk",
    ]


def test_folders_of_frames_are_clips_and_folders_of_stills_are_not(tmp_path):
    root = tmp_path / "set"
    write_image_folder(root / "run" / "clip1", 3)
    write_image(make_tree(root, "stills/notes.txt") / "stills" / "n01_26.png")
    write_image(root / "stills" / "n01_29.png")
    write_image(root / "stills" / "n01_45.png")
    rows = read(root, label_from_folder=True)
    assert [(name, row.kind) for name, row in zip(names(rows, root), rows, strict=True)] == [
        ("run/clip1", "image_folder"),
        ("stills/n01_26.png", "image"),
        ("stills/n01_29.png", "image"),
        ("stills/n01_45.png", "image"),
    ]
    assert [row.labels["label"] for row in rows] == ["run", "stills", "stills", "stills"]
    assert [row.kind for row in read(root, image_folders="clips")] == ["image_folder"] * 2
    assert [row.kind for row in read(root, image_folders="images")] == ["image"] * 6


def test_a_class_folder_of_numbered_images_is_no_clip(tmp_path):
    """ImageNet's layout, however its files are numbered; folders of frames stand one deeper."""
    write_image_folder(tmp_path / "train" / "cat", 3)
    write_image_folder(tmp_path / "train" / "run" / "clip_7", 3)
    found = list(read_source(str(tmp_path), IndexConfig(label_from_folder=True)))
    assert [(row.kind, row.split, row.labels["label"]) for row in found] == [
        ("image", "train", "cat"),
        ("image", "train", "cat"),
        ("image", "train", "cat"),
        ("image_folder", "train", "run"),
    ]
    as_clips = IndexConfig(label_from_folder=False)
    assert [row.kind for row in read_source(str(tmp_path), as_clips)] == ["image_folder"] * 2


def test_only_a_link_to_a_folder_that_it_lies_in_is_a_loop(tmp_path):
    root = make_tree(tmp_path / "set", "a/1.mp4")
    (root / "a" / "back").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "linked").symlink_to(make_tree(tmp_path / "elsewhere", "2.mp4"))
    left_out = LeftOut()
    rows = list(read_source(str(root), IndexConfig(), left_out))
    assert names(rows, root) == ["a/1.mp4", "linked/2.mp4"]
    assert left_out == {"left out, a link to a folder that it lies in": 2}


def test_two_ways_of_writing_an_accent_are_one_class(tmp_path):
    one, two = "caf\u00e9", "cafe\u0301"
    rows = read(make_tree(tmp_path / "set", f"{one}/1.mp4", f"{two}/2.mp4"), label_from_folder=True)
    assert [row.labels["label"] for row in rows] == [one, one]
    assert {Path(row.path).parent.name for row in rows} == {one, two}, "paths stay as they are"
    listed = tmp_path / "l.csv"
    listed.write_text(f"path,label\n{two}.mp4,{two}\n1.mp4,{one}\n", encoding="utf-8")
    rows = read(listed)
    assert [row.labels["label"] for row in rows] == [one, one]
    assert Path(rows[0].path).stem == two


def test_every_link_to_one_folder_is_gone_into(tmp_path):
    """A shared pool seen through splits and classes, and folders linked into each other."""
    pool = make_tree(tmp_path / "pool", "1.mp4", "2.mp4")
    for place in ("train/cat", "train/pet", "val/cat"):
        (tmp_path / "set" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / place).symlink_to(pool)
    rows = read(tmp_path / "set", label_from_folder=True)
    assert [(row.split, row.labels["label"]) for row in rows] == [
        *[("train", "cat")] * 2,
        *[("train", "pet")] * 2,
        *[("validation", "cat")] * 2,
    ]
    make_tree(tmp_path / "x", "1.mp4")
    make_tree(tmp_path / "y", "2.mp4")
    (tmp_path / "x" / "y").symlink_to(tmp_path / "y")
    (tmp_path / "y" / "x").symlink_to(tmp_path / "x")
    assert names(read(tmp_path / "x"), tmp_path) == ["x/1.mp4", "x/y/2.mp4"]


def test_what_cannot_be_a_row_is_named_and_counted(tmp_path, monkeypatch):
    root = make_tree(tmp_path / "set", "ok/1.mp4")
    for number in range(4):
        make_tree(root, f"lost+found{number}/2.mp4")
    Path(os.fsdecode(os.fsencode(root) + b"/ok/\xff.mp4")).write_text("x")
    Path(os.fsdecode(os.fsencode(root) + b"/\xfe")).mkdir()
    (root / "ok" / "round.mp4").symlink_to(root / "ok" / "round.mp4")
    (root / "ok" / "circle").symlink_to(root / "ok" / "circle")
    scandir = os.scandir

    def refusing(folder):  # whoever runs the tests may read everything
        if "lost+found" in str(folder):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    said: list[str] = []
    logger = logging.getLogger("vjepa.data.manifest.lists")
    monkeypatch.setattr(logger, "warning", lambda text, *values: said.append(text % values))
    left_out = LeftOut()
    rows = list(read_source(str(root), IndexConfig(), left_out))
    assert names(rows, root) == ["ok/1.mp4", "ok/round.mp4"], "a broken link is a bad row"
    assert left_out == {
        "left out, cannot be read (Permission denied)": 4,
        "left out, the name is not valid UTF-8; rename it": 2,
    }
    assert len(said) == 3 + 2, "the first three of each kind"
    assert any("lost+found2: left out, cannot be read" in line for line in said)
    said[-1].encode()
    monkeypatch.setattr(os, "scandir", lambda folder: refusing("lost+found"))
    with pytest.raises(UserError, match=r"folder .*set: cannot be read \(Permission denied\)"):
        read(root)


@pytest.mark.parametrize("beside", ["flow", "thumb", "gap", "video", "folder"])
def test_folders_that_look_like_a_clip_and_are_none_are_named(beside, tmp_path):
    clip = write_image_folder(tmp_path / "set" / "clip", 20)
    image = clip / "frame_7.png"
    if beside == "flow":
        for number in range(20):
            os.link(image, clip / f"flow_x_{number:05d}.png")
    elif beside == "gap":
        image.unlink()
    else:
        other = {"thumb": "thumb.png", "video": "a.mp4", "folder": "sub/a.png"}[beside]
        (clip / other).parent.mkdir(exist_ok=True)
        os.link(image, clip / other)
    left_out = LeftOut()
    rows = list(read_source(str(tmp_path / "set"), IndexConfig(), left_out))
    assert {row.kind for row in rows} <= {"image", "video"}
    ((why, count),) = left_out.items()
    assert count == 1
    assert "taken as stills, though many are numbered like the frames of a clip" in why
    for options in ({"image_folders": "images"}, {"label_from_folder": True}):
        asked = LeftOut()
        config = IndexConfig(**options)
        if options == {"label_from_folder": True} and beside == "folder":
            continue
        list(read_source(str(tmp_path / "set"), config, asked))
        assert not asked, "it was asked for, or it is a class"


def test_collections_of_stills_are_not_named(tmp_path):
    root = tmp_path / "set"
    for name in ("n01_26", "n01_2900", *(f"n02_{number**2}" for number in range(3, 20)), "a", "b"):
        write_image(make_tree(root, "x/y").joinpath(f"x/{name}.png"))
    left_out = LeftOut()
    assert len(list(read_source(str(root), IndexConfig(), left_out))) == 21
    assert not left_out


def test_folders_without_media(tmp_path):
    with pytest.raises(UserError, match=r"no such file or folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"empty: no video or image in this folder"):
        read(make_tree(tmp_path / "empty", "notes.txt"))


# --- lists ---


def test_csv(tmp_path):
    text = 'path,split,weight,motion,look\na.mp4,train,2,left,1\n"sub/b, c.mp4",test,,right,2\n'
    rows = read(write(tmp_path / "list.csv", "\ufeff" + text))
    assert rows == [
        SourceRow(
            path=str(tmp_path / "a.mp4"),
            kind="video",
            split="train",
            weight=2.0,
            labels={"motion": "left", "look": "1"},
        ),
        SourceRow(
            path=str(tmp_path / "sub/b, c.mp4"),
            kind="video",
            split="test",
            weight=1.0,
            labels={"motion": "right", "look": "2"},
        ),
    ]

    rows = read(write(tmp_path / "list.tsv", "label\tpath\nrun\t/data/a b.mp4\n"))
    assert rows == [SourceRow(path="/data/a b.mp4", kind="video", labels={"label": "run"})]
    rows = read(write(tmp_path / "list.csv", "path,label\na.mp4,\nb.mp4,\n"))
    assert [row.labels for row in rows] == [{}, {}], "an empty label column is no label"


def test_json_lines(tmp_path):
    lines = [{"path": "a.mp4", "label": 3, "split": "train"}, {"label": 4.5, "path": "b.mp4"}]
    rows = read(write(tmp_path / "list.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n"))
    assert [row.labels for row in rows] == [{"label": "3"}, {"label": "4.5"}]
    assert [row.split for row in rows] == ["train", None]


@pytest.mark.parametrize("name", ["list.csv", "list.txt", "list"])
def test_path_label_lines(name, tmp_path):
    text = "/data/a.mp4 3\nmy videos/b c.mp4 12\nclip.unknown 0\n\n/data/d,e.webm 7\n"
    rows = read(write(tmp_path / name, text))
    assert [row.path for row in rows] == [
        "/data/a.mp4",
        str(tmp_path / "my videos/b c.mp4"),
        str(tmp_path / "clip.unknown"),
        "/data/d,e.webm",
    ]
    assert [row.labels["label"] for row in rows] == ["3", "12", "0", "7"]


def test_a_column_without_values_is_named(tmp_path, caplog):
    source = write(tmp_path / "l.csv", "path,split,weight,colour\na.mp4,,,\nb.mp4,,,\n")
    assert [row.labels for row in read(source)] == [{}, {}]
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{source}: colour: without values, so no label"]


def test_path_lines_without_labels(tmp_path, caplog):
    write_image_folder(tmp_path / "frames of clip 1", 2)
    text = "a.mp4\nmy video 2.mp4\nframes of clip 1\n"
    rows = read(write(tmp_path / "list.txt", text))
    assert names(rows, tmp_path) == ["a.mp4", "my video 2.mp4", "frames of clip 1"]
    assert [row.labels for row in rows] == [{}, {}, {}]
    assert rows[2].kind == "image_folder"
    assert not caplog.records, "nobody named a label"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "a.mp4 1\nb.mp4\n", r"l\.txt, row 2: has no label 'label'.*label every row"),
        ("l.txt", "a.mp4\nb.mp4\nc.mp4 3\n", r"row 3: has a label 'label', but .* have none"),
        ("l.csv", "path,look\na.mp4,1\nb.mp4,\n", r"l\.csv, row 3: has no label 'look'"),
        ("l.csv", "path,look\na.mp4,\nb.mp4,2\n", r"l\.csv, row 3: has a label 'look'"),
        ("l.jsonl", '{"path": "a.mp4", "x": 1}\n{"path": "b.mp4"}\n', r"row 2: has no label 'x'"),
        ("l.csv", "video,label\na.mp4,1\n", r"no column 'path' in its header \(video,label\)"),
        ("l.csv", "path,label\na.mp4,1,2\n", r"row 2: 3 cells under 2 column names"),
        ("l.csv", "path,label,label\na.mp4,1,2\n", r"header repeats or omits a column name"),
        ("l.csv", "path,label\n,1\n", r"row 2: no path"),
        ("l.csv", "path,weight\na.mp4,heavy\n", r"row 2: weight 'heavy' is no number from 0 up"),
        ("l.csv", "path,weight\na.mp4,-1\n", r"row 2: weight '-1'"),
        ("l.csv", "path,weight\na.mp4,nan\n", r"row 2: weight 'nan'"),
        ("l.csv", 'path,label\n"a.mp4,1\n', r"l\.csv, row 2: cannot be read .*quote not closed"),
        ("l.csv", "path,label\n", r"l\.csv: names no file"),
        ("l.txt", "", r"l\.txt: names no file"),
        ("l.txt", "\n \n", r"l\.txt: names no file"),
        ("l.jsonl", '{"path": "a.mp4"}\n{broken\n', r"row 2: not valid JSON"),
        ("l.jsonl", '{"path": "a.mp4"}\n[1]\n', r"row 2: not a JSON object"),
        ("l.jsonl", '{"path": "a.mp4", "x": {"y": 1}}\n', r"row 1: x is no text or number but {"),
        ("l.jsonl", '{"label": 1}\n', r"row 1: no path"),
        ("l.txt", "a.mp4 3 7\n", r"l\.txt, row 1: .*several labels \(a.mp4 3 7\).*3\|7"),
        ("l.txt", "a.mp4 3\nb.mp4\t3 7\n", r"row 2: .*several labels"),
        ("l.txt", "a.mp4,train,3\n", r"no column 'path' in its header"),
        ("l.txt", "a.mp4 3\nclips/no suffix 3\n", r"row 2: cannot tell path and label apart"),
        ("l.txt", "a.mp4 x\nthere/b.mp4 to/c.mp4 y\n", r"row 2: cannot tell path and label"),
        ("l.txt", "path label\na.mp4 3\n", r"no column 'path' in its header \(path label\)"),
        ("l.tsv", "video\tlabel\na.mp4\t3\n", r"no column 'path' in its header \(video label\)"),
        ("l.csv", "video;label\na.mp4;3\n", r"no column 'path' in its header \(video;label\)"),
        ("l.csv", "path,label\na.mp4," + "x" * 200_000 + "\n", r"row 2: .*field larger than"),
        ("l.csv", "path,label\na.mp4,nan\n", r"row 2: label is 'nan', which other programs"),
        ("l.txt", "a.mp4 3\nb.mp4 NaN\n", r"row 2: label is 'NaN'"),
        ("l.csv", "path,label\na.mp4,#N/A\n", r"row 2: label is '#N/A'"),
        ("l.csv", "path,label\na.mp4,none\nb.mp4,None\n", r"row 3: label is 'None'"),
        ("l.jsonl", '{"path": "a.mp4", "x": 1}\n{"path": "b.mp4", "x": NaN}\n', "row 2: has no"),
        ("l.jsonl", '{"path": "a.mp4", "x": Infinity}\n', r"row 1: not valid JSON \(Infinity is"),
        ("l.jsonl", '{"path": "a.mp4", "x": 1e999}\n', r"row 1: x is inf, which other programs"),
        ("l.jsonl", '{"path": "a.mp4", "split": "nan"}\n', r"row 1: split is 'nan'"),
        ("l.jsonl", '{"path": NaN}\n', r"row 1: no path"),
        ("l.jsonl", '{"path": "a.mp4"}\n{"path": "\\ud800.mp4"}\n', r"row 2: 'path' is not valid"),
        ("l.jsonl", '{"path": "a\\u0000.mp4"}\n', r"row 1: 'path' is not valid UTF-8"),
        ("l.jsonl", '{"path": "a.mp4", "x": "\\udfff"}\n', r"row 1: 'x' is not valid UTF-8"),
        ("l.jsonl", '{"path": "a.mp4", "x": ["a|b"]}\n', r"row 1: x is no list of classes"),
        ("l.json", '[{"path": "a.mp4"}, 3]', r"entry 2: not a JSON object"),
        ("l.json", '[{"path": "a.mp4"}', r"l\.json: not valid JSON"),
        ("l.csv", "path,y\na.mp4,a\nb.mp4,\n", r"row 3: has no label 'y'.*a lone \| says"),
    ],
)
def test_mistakes_name_the_file_and_the_row(name, text, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        read(write(tmp_path / name, text))
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_texts_and_names_that_are_not_utf8(tmp_path):
    (tmp_path / "l.csv").write_bytes(b"\xff\xfe\x00\x80" * 20)
    with pytest.raises(UserError, match="neither a media file nor UTF-8 text"):
        read(tmp_path / "l.csv")
    (tmp_path / "song.mp3").write_bytes(b"\xff\xfb\x90\x00" * 20)
    with pytest.raises(UserError, match=r"song\.mp3: holds sound and no picture; name a video"):
        read(tmp_path / "song.mp3")
    (tmp_path / "utf16.csv").write_text("path,label\na.mp4,x\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"utf16\.csv: is neither .* save a list as UTF-8"):
        read(tmp_path / "utf16.csv")
    (tmp_path / "latin.csv").write_text("path,label\na.mp4,x\nb.mp4,f\u00fc\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"latin\.csv, row 3: 'label' is not valid UTF-8"):
        read(tmp_path / "latin.csv")
    only = Path(os.fsdecode(os.fsencode(tmp_path) + b"/only/\xff.mp4"))
    only.parent.mkdir()
    only.write_text("x")
    with pytest.raises(UserError, match=r"no video or image .*; left out, the name is not .*\(1\)"):
        read(tmp_path / "only")


def labelled(source: Path) -> list[tuple[str, str | None]]:
    return [(Path(row.path).name, row.labels.get("label")) for row in read(source)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.mp4 archery\nb.mp4 riding a bike\n", ["archery", "riding a bike"]),
        ("c d.mp4 petting a dog\ne f.mkv x\n", ["petting a dog", "x"]),
        ("a.mp4\triding a bike\nc d.MP4\tx\n", ["riding a bike", "x"]),
        ("no suffix\tx y\nclip.unknown\t3\n", ["x y", "3"]),
        ("a.mp4,riding a bike\nb.webm;7\n", ["riding a bike", "7"]),
        ("a.mp4 12 angry men\nb.mp4 level 3\n", ["12 angry men", "level 3"]),
    ],
)
def test_labels_with_spaces(text, expected, tmp_path):
    rows = labelled(write(tmp_path / "list.txt", text))
    assert [label for _, label in rows] == expected
    assert all(name in text for name, _ in rows)


@pytest.mark.parametrize(
    "text",
    [
        '"a.mp4" "riding a bike"\n"c, d.mp4" x\n"b\'s.mp4" it\'s\n',
        "'a.mp4' riding a bike\n'c, d.mp4' 'x'\nb's.mp4 it's\n",
        '"a.mp4","riding a bike"\n"c, d.mp4",x\nb\'s.mp4,it\'s\n',
        "a.mp4\t'riding a bike'\n\"c, d.mp4\"\tx\nb's.mp4\tit's\n",
    ],
)
def test_quotes_about_a_path_or_a_label_are_none_of_it(text, tmp_path):
    expected = [("a.mp4", "riding a bike"), ("c, d.mp4", "x"), ("b's.mp4", "it's")]
    assert labelled(write(tmp_path / "list.txt", text)) == expected


def test_where_a_suffix_does_not_decide_it_is_what_exists(tmp_path):
    write_image_folder(tmp_path / "frames of clip 1", 2)
    make_tree(tmp_path, "my.mp4 videos/a.mp4", "x.unknown")
    text = "frames of clip 1 riding a bike\nmy.mp4 videos/a.mp4 jump\nx.unknown sit down now\n"
    assert labelled(write(tmp_path / "list.txt", text)) == [
        ("frames of clip 1", "riding a bike"),
        ("a.mp4", "jump"),
        ("x.unknown", "sit down now"),
    ]


def test_a_json_array_and_other_separators(tmp_path):
    rows = [{"path": f"{number}.mp4", "label": "x" * 500} for number in range(50)]
    for text in (json.dumps(rows), json.dumps(rows, indent=1)):
        assert len(read(write(tmp_path / "rows.json", text))) == 50
    paths = read(write(tmp_path / "paths.json", '["a.mp4", "b c.mp4"]'))
    assert names(paths, tmp_path) == ["a.mp4", "b c.mp4"]
    found = labelled(write(tmp_path / "rows.csv", 'label;path\n"a; b";x, y.mp4\nc;z.mp4\n'))
    assert found == [("x, y.mp4", "a; b"), ("z.mp4", "c")]
    for text in ("[a] b.mp4 3\n", "{a} b.mp4 3\n"):
        assert labelled(write(tmp_path / "lines.txt", text)) == [(text[:9], "3")]


def test_labels_of_json_are_what_is_written(tmp_path):
    lines = [
        '{"path": "a.mp4", "y": ' + text + "}\n" for text in ("true", "3.0", "3", '["b", 1]', "[]")
    ]
    found = read(write(tmp_path / "rows.jsonl", "".join(lines)))
    assert [row.labels["y"] for row in found] == ["true", "3", "3", "b|1", "|"]


def test_config_is_checked():
    with pytest.raises(ValueError, match=r"^timeout_seconds "):
        IndexConfig(timeout_seconds=0)
    with pytest.raises(ValueError, match=r"^image_folder_fps "):
        IndexConfig(image_folder_fps=-1)
