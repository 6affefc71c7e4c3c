"""`vjepa features` as a job: what is written, what is kept, what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from tests.data.video_files import SPECS
from tests.data.video_files import write_video as write_any_video
from tests.evaluation.tiny_videos import coloured_frames, write_video

import vjepa
from vjepa.checkpoint import save_model
from vjepa.cli.main import main
from vjepa.config import to_dict
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.data.clips.windows import WindowConfig, timeline
from vjepa.data.video.decode import frame_times
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError
from vjepa.evaluation.export import origin_of
from vjepa.jobs import features
from vjepa.jobs.features import (
    NOT_YET,
    FeaturesConfig,
    FeatureWorker,
    FileRecord,
    file_names,
    read_index,
    run,
)
from vjepa.jobs.probe.config import EncoderSourceConfig
from vjepa.jobs.videos import files_of
from vjepa.models import VJEPA, Encoder, EncoderConfig, ModelConfig, PredictorConfig
from vjepa.runtime.progress import Progress

TINY = ModelConfig(
    encoder=EncoderConfig(
        width=24, depth=1, heads=2, image_size=32, num_frames=4, patch_size=16, tubelet_size=2
    ),
    predictor=PredictorConfig(width=12, depth=1),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, VJEPA(TINY))
    return folder


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    write_video(folder / "a.mp4", coloured_frames("red", 1))
    write_video(folder / "sub" / "a.mp4", coloured_frames("green", 2), fps=5)
    Image.fromarray(coloured_frames("blue", 3)[0]).save(folder / "still.png")
    (folder / "broken.mp4").write_bytes(b"nothing")
    return folder


def test_a_split_is_taken_of_lists_and_folders_too(videos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text(f"path,split\n{videos / 'a.mp4'},train\n{videos / 'sub' / 'a.mp4'},test\n")
    assert [Path(info.path).parent.name for info in files_of([listed], "test")] == ["sub"]
    assert len(files_of([listed])) == 2
    assert len(files_of([listed, videos / "a.mp4"], "test")) == 2, "a file that is named is meant"
    for source, there in ((listed, "train, test|test, train"), (videos, "none")):
        with pytest.raises(UserError, match=rf"no file of split 'tset' \(splits: ({there})\)"):
            files_of([source], "tset")


def test_a_file_is_one_however_its_folder_is_written(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(videos / "sub")
    found = files_of([Path(".."), Path("../a.mp4"), videos / "a.mp4"])
    names = ("a.mp4", "broken.mp4", "still.png", "sub/a.mp4")
    assert [info.path for info in found] == [str(videos / name) for name in names]


def test_a_folder_of_bad_files_costs_only_these(videos: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (videos / "broken.mp4").rename(bad / "broken.mp4")
    assert [info.ok for info in files_of([bad, videos / "a.mp4"])] == [False, True]


def _config(model: Path, **changes) -> FeaturesConfig:
    base = FeaturesConfig(
        encoder=EncoderSourceConfig(path=model),
        window=WindowConfig(stride=2),
        device="cpu",
        num_threads=1,
    )
    return replace(base, **changes)


@pytest.mark.parametrize("action", ["features", "search index"])
def test_of_a_long_film_it_is_shown_how_far_it_is(
    model: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Also where it is the only file: until its end nothing else would be seen."""
    if action != "features":
        pytest.importorskip("lancedb")
    notes: list[str | None] = []
    monkeypatch.setattr(features, "_LONG", 2)
    monkeypatch.setattr(Progress, "update", lambda _, done, note=None: notes.append(note))
    source = videos / "sub" / "a.mp4"
    how = ["--encoder.path", str(model), "--window.stride", "1", "--out", str(tmp_path / "out")]
    assert main([*action.split(), str(source), *how]) == 0
    told = [note for note in notes if note and note.endswith("windows of a.mp4")]
    assert len(told) > 2
    assert told == [f"{n} of {len(told)} windows of a.mp4" for n in range(1, len(told) + 1)]


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_one_file_for_each_source_and_the_bad_one_named(
    model: Path, videos: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    report = run(_config(model, format=kind), [videos], out)
    assert (report.encoded, report.kept, len(report.failed)) == (3, 0, 1)
    assert report.failed[0][0].endswith("broken.mp4")
    assert report.failed[0][1]
    assert report.source_seconds == pytest.approx(1.0 + 2.0)
    written = {path.relative_to(out).as_posix() for path in out.rglob(f"*.{kind}")}
    assert written == {f"a.mp4.{kind}", f"sub/a.mp4.{kind}", f"still.png.{kind}"}
    lines = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    assert {line["file"] for line in lines} == written | {None}
    found = np.load(out / "a.mp4.npz") if kind == "npz" else load_file(out / "a.mp4.safetensors")
    wanted = vjepa.extract_features(
        vjepa.load_encoder(model), videos / "a.mp4", window=WindowConfig(stride=2)
    )
    np.testing.assert_allclose(found["tokens"], wanted.tokens.numpy(), atol=1e-5)
    assert np.array_equal(found["times"], wanted.times)
    loaded = vjepa.load_features(out)
    assert loaded.paths == tuple(str(videos / name) for name in ("a.mp4", "still.png", "sub/a.mp4"))
    monkeypatch.chdir(videos)
    for path in (str(videos / "a.mp4"), videos / "a.mp4", "a.mp4", Path("sub") / ".." / "a.mp4"):
        assert path in loaded
        assert torch.equal(loaded[path].tokens, loaded[0].tokens)
    assert "broken.mp4" not in loaded
    assert 0 not in loaded, "it holds files, not numbers"
    with pytest.raises(UserError, match=r"no features of .*broken\.mp4 \(.*\.paths names"):
        loaded["broken.mp4"]
    assert [file.path for file in loaded] == list(loaded.paths)
    assert list(loaded.failures) == [str(videos / "broken.mp4")]
    same = loaded[str(videos / "a.mp4")]
    assert torch.equal(same.tokens, loaded[0].tokens)
    torch.testing.assert_close(same.tokens, wanted.tokens, atol=1e-5, rtol=0)
    assert np.array_equal(same.times, wanted.times)
    assert np.array_equal(same.frame_numbers, wanted.frame_numbers)
    assert (same.grid, same.box) == (wanted.grid, wanted.box)
    assert [file.path for file in loaded[1:]] == list(loaded.paths[1:])
    with pytest.raises(UserError, match=r"no features of .*broken\.mp4"):
        loaded[str(videos / "broken.mp4")]


def test_frames_are_spaced_as_the_encoder_was_trained(
    model: Path, videos: Path, tmp_path: Path
) -> None:
    own, out = tmp_path / "model", tmp_path / "out"
    clip = ClipConfig(num_frames=4, stride=None, fps=2.5)
    preprocess = {"clip": to_dict(clip), "view": to_dict(ViewConfig(crop_size=32))}
    save_model(own, VJEPA(TINY), preprocess=preprocess)
    usual = WindowConfig()
    run(_config(own, window=usual), [videos / "a.mp4"], out)
    made = vjepa.load_features(out)
    assert (made.settings["window"]["stride"], made.settings["window"]["fps"]) == (None, 2.5)
    found = vjepa.extract_features(vjepa.load_encoder(own), videos / "a.mp4")
    assert found.frame_numbers.tolist() == made[0].frame_numbers.tolist() == [[0, 4], [8, 8]]
    assert run(_config(own, window=usual), [videos / "a.mp4"], out).kept == 1
    with pytest.raises(UserError, match=r"of other weights or settings \(window: see its \.json"):
        run(_config(own, window=WindowConfig(stride=4)), [videos / "a.mp4"], out)
    # Where a checkpoint does not say, the usual is what it was before: every fourth frame.
    before = tmp_path / "before"
    run(_config(model, window=WindowConfig(stride=4)), [videos / "a.mp4"], before)
    assert run(_config(model, window=usual), [videos / "a.mp4"], before).kept == 1


def test_features_of_a_variable_rate_that_went_by_the_mean_are_made_anew(
    model: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "out", _config(model, window=WindowConfig(fps=5))
    files = [videos / "a.mp4", write_any_video(videos / "v.mp4", SPECS["h264_vfr.mp4"])]
    with monkeypatch.context() as before:
        before.setattr(FeatureWorker, "origin", lambda own, info: origin_of(info, own._digest))
        run(config, files, out)
    report = run(config, files, out)
    assert (report.encoded, report.kept) == (1, 1)
    assert run(config, files, out).kept == 2
    by_time, info = vjepa.load_features(out)[1], inspect_file(str(files[1]))
    times = frame_times(info)
    assert times is not None
    shown = [int(np.searchsorted(times, n / 5 + 1e-6, side="right")) - 1 for n in range(4)]
    assert by_time.frame_numbers.flatten()[:4].tolist() == shown
    by_mean = timeline(config.window, info.num_frames, info.fps)
    assert by_time.frame_numbers.flatten()[: len(by_mean)].tolist() != by_mean.tolist()


def test_a_second_run_encodes_only_what_is_missing_damaged_or_changed(
    model: Path, videos: Path, tmp_path: Path
) -> None:
    out, config = tmp_path / "out", _config(model)
    (videos / "broken.mp4").unlink()
    run(config, [videos], out)
    assert run(config, [videos], out).kept == 3
    assert run(config, [videos / "sub"], out).kept == 1  # found under the name it has
    target = out / "a.mp4.safetensors"
    whole = target.read_bytes()
    target.write_bytes(whole[:-7])
    (out / "still.png.safetensors").unlink()
    report = run(config, [videos], out)
    assert (report.encoded, report.kept) == (2, 1)
    assert target.read_bytes() == whole
    write_video(videos / "a.mp4", coloured_frames("blue", 9))
    report = run(config, [videos], out)
    assert (report.encoded, report.kept) == (1, 2)
    assert target.read_bytes() != whole
    assert read_index(out)[str(videos / "a.mp4")].grid == (3, 2, 2)
    (videos / "a.mp4").write_bytes(b"nothing")
    (videos / "still.png").unlink()
    report = run(config, [videos], out)
    assert (len(report.failed), report.kept, report.dropped, report.others) == (1, 1, 1, 0)
    assert [path.parent.name for path in out.rglob("*.safetensors")] == ["sub"]
    moved = videos.rename(tmp_path / "moved")
    report = run(config, [moved / "sub"], out)
    assert (report.encoded, report.dropped, report.others) == (1, 0, 2)
    assert run(replace(config, drop=True), [moved / "sub"], out).dropped == 2
    assert vjepa.load_features(out).paths == (str(moved / "sub" / "a.mp4"),)
    assert len([*out.rglob("*.safetensors")]) == 1


def test_what_lies_behind_a_link_to_a_disk_that_is_away_stays(
    model: Path, videos: Path, tmp_path: Path
) -> None:
    disk = (videos / "sub").rename(tmp_path / "disk")
    (videos / "sub").symlink_to(disk)
    out, config = tmp_path / "out", _config(model)
    assert run(config, [videos], out).encoded == 3
    away = disk.rename(tmp_path / "away")
    report = run(config, [videos], out)
    assert (report.kept, report.dropped, report.others) == (2, 0, 1)
    away.rename(disk)
    assert run(config, [videos], out).kept == 3
    (disk / "a.mp4").unlink()
    assert run(config, [videos], out).dropped == 1


def test_a_half_written_folder_is_refused_until_it_is_whole(
    model: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (videos / "broken.mp4").unlink()
    out, config, encode = tmp_path / "out", _config(model), FeatureWorker.encode

    def interrupted(self: FeatureWorker, files: Sequence, **how: object) -> Iterator:
        yield next(encode(self, files, **how))
        raise KeyboardInterrupt

    monkeypatch.setattr(FeatureWorker, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config, [videos], out)
    with pytest.raises(UserError, match=r"half-written: 2 of its 3 files .* run the same"):
        vjepa.load_features(out)
    monkeypatch.undo()
    assert run(config, [videos], out).kept == 1
    whole = vjepa.load_features(out)
    # The list as a killed run leaves it: it knows the files, but not which of them are done.
    lines = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    killed = [{**line, "grid": None, "failure": NOT_YET} for line in lines]
    (out / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in killed))
    with pytest.raises(UserError, match="3 of its 3 files"):
        vjepa.load_features(out)
    assert run(config, [videos], out).kept == 3
    again = vjepa.load_features(out)
    assert again.paths == whole.paths
    assert [file.grid for file in again] == [file.grid for file in whole]
    damaged = out / "a.mp4.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"a\.mp4\.safetensors: missing or not whole"):
        again[str(videos / "a.mp4")]
    (out / "index.jsonl").unlink()
    with pytest.raises(UserError, match="half-written"):
        vjepa.load_features(out)
    with pytest.raises(UserError, match=r"not a folder of features: features\.json is missing"):
        vjepa.load_features(tmp_path)


def test_a_file_that_is_gone_is_not_waited_for_after_a_stop(
    model: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "out", _config(model)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureWorker, "encode", _stopped)
        with pytest.raises(KeyboardInterrupt):
            run(config, [videos], out)
    (videos / "broken.mp4").unlink()
    (videos / "a.mp4").rename(videos / "b.mp4")
    run(config, [videos], out)
    assert [Path(path).name for path in vjepa.load_features(out).paths] == [
        "still.png",
        "a.mp4",
        "b.mp4",
    ]


def test_what_lies_elsewhere_is_waited_for_after_a_stop(
    model: Path, videos: Path, tmp_path: Path
) -> None:
    """A stored file, and one in a shard that is there; not one in a shard that is gone."""
    out, config = tmp_path / "out", _config(model)
    run(config, [videos / "a.mp4"], out)
    (tmp_path / "there.tar").write_bytes(b"")
    paths = [f"{tmp_path}/{name}.tar!512+9/b.mp4" for name in ("there", "gone")]
    paths = ["s3://bucket/b.mp4", "s3://bucket/c.tar!512+9/b.mp4", *paths]
    with (out / "index.jsonl").open("a") as file:
        for path in paths:
            file.write(json.dumps(asdict(FileRecord(path, None, None, 1.0, NOT_YET))) + "\n")
    run(config, [videos / "a.mp4"], out)
    assert [*read_index(out)] == [str(videos / "a.mp4"), *paths[:3]]


def _stopped(*_: object, **__: object) -> Iterator:
    raise KeyboardInterrupt


def test_a_name_that_is_no_text_is_refused_as_in_folders(videos: Path) -> None:
    odd = (videos / "a.mp4").rename(videos / "caf\udce9.mp4")
    with pytest.raises(UserError, match="the name is not valid UTF-8; rename it"):
        files_of([odd])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_never_written(
    model: Path, videos: Path, tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Encoder, *_: object) -> torch.Tensor:
        return torch.full((1, 8, 24), value)

    monkeypatch.setattr(Encoder, "forward", broken)
    with pytest.raises(UserError, match="features that are not finite"):
        run(_config(model), [videos / "a.mp4"], tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors*"))
    with pytest.raises(UserError, match="features that are not finite"):
        vjepa.extract_features(vjepa.load_encoder(model), videos / "a.mp4")


def test_another_source_later_takes_no_name_that_is_taken(
    model: Path, videos: Path, tmp_path: Path
) -> None:
    out, config = tmp_path / "out", _config(model)
    run(config, [videos / "a.mp4"], out)
    run(config, [videos / "sub" / "a.mp4"], out)
    names = {Path(record.path).parent.name: record.file for record in read_index(out).values()}
    assert names == {"videos": "a.mp4.safetensors", "sub": "a.mp4.2.safetensors"}


def test_a_window_of_half_a_tubelet_is_refused_once(
    model: Path, videos: Path, tmp_path: Path
) -> None:
    """And not for every file."""
    config = _config(model, window=WindowConfig(num_frames=3))
    with pytest.raises(UserError, match=r"window.num_frames: 3 frames are not .* of 2; take 2"):
        run(config, [videos], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_settings_is_refused(model: Path, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(_config(model), [videos / "a.mp4"], out)
    for other in (
        _config(model, pool="space"),
        _config(model, window=WindowConfig(stride=4)),
        _config(model, encoder=EncoderSourceConfig(path=model, which="random")),
    ):
        with pytest.raises(UserError, match="other weights or settings"):
            run(other, [videos / "a.mp4"], out)


def test_the_folder_of_another_job_or_process_is_left_alone(
    model: Path, videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.yaml").write_text("# vjepa pretrain\nseed: 0\n")
    with pytest.raises(UserError, match="belongs to `vjepa pretrain`"):
        run(_config(model), [videos], out)
    assert [path.name for path in out.iterdir()] == ["config.yaml"]
    hold = (
        "import sys, pathlib, vjepa.runtime.files as files\n"
        "with files.claimed_folder(pathlib.Path(sys.argv[1]), 'features'):\n"
        "    print('held', flush=True), sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path / "held")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is at work in this folder"):
            run(_config(model), [videos], tmp_path / "held")
        holder.communicate()


@pytest.mark.parametrize(("pool", "rows"), [("video", 1), ("space", 3)])
def test_a_table(model: Path, videos: Path, tmp_path: Path, pool: str, rows: int) -> None:
    out, config = tmp_path / "seed=1", _config(model, format="parquet", pool=pool)
    report = run(config, [videos], out)
    assert (report.encoded, len(report.failed)) == (3, 1)
    table = pq.read_table(out / "table")
    paths = table.column("path").to_pylist()
    assert paths.count(str(videos / "a.mp4")) == rows
    assert len(table.column("features")[0]) == 24
    again = run(config, [videos], out)
    assert (again.encoded, again.kept) == (0, 3)
    assert pq.read_table(out / "table").num_rows == table.num_rows
    first = {file.path: file for file in vjepa.load_features(out)}[str(videos / "a.mp4")]
    encoder, window = vjepa.load_encoder(model), WindowConfig(stride=2)
    wanted = vjepa.extract_features(encoder, videos / "a.mp4", window=window, pool=pool)
    torch.testing.assert_close(first.tokens, wanted.tokens, atol=1e-5, rtol=0)
    assert (len(first.times), first.grid) == (rows, wanted.grid)
    shutil.copy2(videos / "a.mp4", tmp_path / "a.mp4")
    write_video(videos / "a.mp4", coloured_frames("blue", 9))
    run(config, [videos], out)
    paths = pq.read_table(out / "table").column("path").to_pylist()
    assert paths.count(str(videos / "a.mp4")) == rows, "no reader takes the old rows for these"
    again = vjepa.load_features(out)[str(videos / "a.mp4")]
    assert len(again.times) == rows
    assert not torch.allclose(again.tokens, first.tokens, atol=1e-3)
    (tmp_path / "a.mp4").replace(videos / "a.mp4")  # the old file, with its old time
    assert run(config, [videos], out).encoded == 1, "the newest rows are of another file"
    again = vjepa.load_features(out)
    assert len(again[str(videos / "a.mp4")].times) == rows
    torch.testing.assert_close(again[str(videos / "a.mp4")].tokens, first.tokens)
    number = np.int64(again.paths.index(str(videos / "a.mp4")))
    torch.testing.assert_close(again[number].tokens, first.tokens)
    (videos / "a.mp4").write_bytes(b"nothing")
    (videos / "still.png").unlink()
    assert run(config, [videos], out).dropped == 1
    left = pq.read_table(out / "table")
    assert left.schema == table.schema
    assert {*left.column("path").to_pylist()} == {str(videos / "sub" / "a.mp4")}


def test_a_file_with_the_longest_name_has_features_too(model: Path, tmp_path: Path) -> None:
    files = [tmp_path / "videos" / f"{'ä' * 124}{end}.mp4" for end in "ab"]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        write_video(file, coloured_frames("red", number))
    out = tmp_path / "out"
    assert run(_config(model), files, out).encoded == 2
    assert vjepa.load_features(out).paths == tuple(map(str, files))
    assert run(_config(model), files, out).kept == 2
    record = FileRecord("/x/a", f"{'a' * 235}.npz", None, 1.0, NOT_YET)
    (name,) = file_names([f"/x/{'a' * 235}"], "npz", {"/x/" + "a" * 235: record})
    assert name is not None
    assert len(name) < 230, "it was begun under a name that could not be written"


def test_names_keep_folders_apart_and_addresses_out_of_the_root() -> None:
    paths = ["/x/a/1.mp4", "/x/b/1.mp4", "s3://bucket/1.mp4"]
    assert file_names(paths[:2], "npz", {}) == ["a/1.mp4.npz", "b/1.mp4.npz"]
    assert file_names(paths[:1], "npz", {}) == ["1.mp4.npz"]
    assert file_names(paths[2:], "npz", {}) == ["1.mp4.npz"]
    assert file_names(paths, "parquet", {}) == [None, None, None]
    known = {paths[0]: FileRecord(paths[0], "old.npz", (1, 1, 1), 1.0, None)}
    assert file_names(paths[:2], "npz", known) == ["old.npz", "1.mp4.npz"]
    names = file_names(paths, "npz", {})
    assert len(set(names)) == 3
    assert not any(name and (name.startswith("/") or ".." in name) for name in names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "parquet"}, "format: a table holds pooled rows"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_threads": 0}, "num_threads"),
        ({"ray_workers": 4}, "ray_workers: is for engine ray"),
    ],
)
def test_impossible_settings(model: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(model, **changes)


def test_ray_does_the_same(model: Path, videos: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    run(_config(model), [videos], tmp_path / "local")
    stop = signal.getsignal(signal.SIGTERM)
    report = run(_config(model, engine="ray", ray_workers=1), [videos], tmp_path / "ray")
    assert signal.getsignal(signal.SIGTERM) == stop, "Ray's own would end with 15"
    assert (report.encoded, len(report.failed)) == (3, 1)
    for path in (tmp_path / "local").rglob("*.safetensors"):
        other = tmp_path / "ray" / path.relative_to(tmp_path / "local")
        np.testing.assert_allclose(load_file(other)["tokens"], load_file(path)["tokens"], atol=1e-5)


def test_without_ray_the_message_names_the_extra(
    model: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(
        UserError, match=r"needs ray: pip install 'open-vjepa\[ray\]', or use --engine local"
    ):
        run(_config(model, engine="ray"), [videos], tmp_path / "out")


def test_the_command(
    model: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["features", str(videos), "--encoder.path", str(model), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 1  # one file is bad
    said = capsys.readouterr().out
    assert "no features: " in said
    assert "broken.mp4" in said
    assert "3 files encoded, 1 cannot be read" in said
    assert "windows/s" in said
    (videos / "broken.mp4").unlink()
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "0 files encoded, 3 there already, 1 dropped\n" in capsys.readouterr().out
    command[1] = str(videos / "a.mp4")
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "1 there already, 2 of other sources stay (--drop true" in capsys.readouterr().out
    assert main([*command, "--print-config"]) == 0
    assert "overlap: 0.5" in capsys.readouterr().out
    assert main(command) == 2
    assert "--out" in capsys.readouterr().err
