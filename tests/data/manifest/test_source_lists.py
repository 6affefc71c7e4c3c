from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.data.video_files import write_image, write_image_folder

from vjepa.data.manifest.lists import IndexConfig, SourceRow, read_source
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


def test_a_loop_of_links_ends(tmp_path):
    root = make_tree(tmp_path / "set", "a/1.mp4")
    (root / "a" / "back").symlink_to(root)
    (root / "linked").symlink_to(make_tree(tmp_path / "elsewhere", "2.mp4"))
    assert names(read(root), root) == ["a/1.mp4", "linked/2.mp4"]


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


def test_path_lines_without_labels(tmp_path):
    write_image_folder(tmp_path / "frames of clip 1", 2)
    text = "a.mp4\nmy video 2.mp4\nframes of clip 1\n"
    rows = read(write(tmp_path / "list.txt", text))
    assert names(rows, tmp_path) == ["a.mp4", "my video 2.mp4", "frames of clip 1"]
    assert [row.labels for row in rows] == [{}, {}, {}]
    assert rows[2].kind == "image_folder"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "a.mp4 1\nb.mp4\n", r"l\.txt, row 2: has no label 'label'.*label every row"),
        ("l.txt", "a.mp4\nb.mp4\nc.mp4 3\n", r"row 3: has a label 'label', but .* have none"),
        ("l.csv", "path,look\na.mp4,1\nb.mp4,\n", r"l\.csv, row 3: has no label 'look'"),
        ("l.csv", "path,look\na.mp4,\nb.mp4,2\n", r"l\.csv, row 3: has a label 'look'"),
        ("l.jsonl", '{"path": "a.mp4", "x": 1}\n{"path": "b.mp4"}\n', r"row 2: has no label 'x'"),
        ("l.csv", "video,label\na.mp4,1\n", r"no column 'path' in its header \(video, label\)"),
        ("l.csv", "path,label\na.mp4,1,2\n", r"row 2: 3 cells under 2 column names"),
        ("l.csv", "path,label,label\na.mp4,1,2\n", r"header repeats or omits a column name"),
        ("l.csv", "path,label\n,1\n", r"row 2: no path"),
        ("l.csv", "path,weight\na.mp4,heavy\n", r"row 2: weight 'heavy' is no number from 0 up"),
        ("l.csv", "path,weight\na.mp4,-1\n", r"row 2: weight '-1'"),
        ("l.csv", "path,weight\na.mp4,nan\n", r"row 2: weight 'nan'"),
        ("l.csv", 'path,label\n"a.mp4,1\n', r"l\.csv: cannot be read"),
        ("l.csv", "path,label\n", r"l\.csv: names no file"),
        ("l.txt", "", r"l\.txt: names no file"),
        ("l.txt", "\n \n", r"l\.txt: names no file"),
        ("l.jsonl", '{"path": "a.mp4"}\n{broken\n', r"row 2: not valid JSON"),
        ("l.jsonl", '{"path": "a.mp4"}\n[1]\n', r"row 2: not a JSON object"),
        ("l.jsonl", '{"path": "a.mp4", "x": [1]}\n', r"row 1: x is no text or number but \[1\]"),
        ("l.jsonl", '{"label": 1}\n', r"row 1: no path"),
    ],
)
def test_mistakes_name_the_file_and_the_row(name, text, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        read(write(tmp_path / name, text))
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_texts_and_names_that_are_not_utf8(tmp_path):
    (tmp_path / "l.csv").write_bytes(b"\xff\xfe\x00\x80" * 20)
    with pytest.raises(UserError, match="neither a media file nor UTF-8 text"):
        read(tmp_path / "l.csv")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")).write_text("x")
    with pytest.raises(UserError, match="not valid UTF-8; rename it"):
        read(tmp_path)


def test_config_is_checked():
    with pytest.raises(ValueError, match=r"^timeout_seconds "):
        IndexConfig(timeout_seconds=0)
    with pytest.raises(ValueError, match=r"^image_folder_fps "):
        IndexConfig(image_folder_fps=-1)
