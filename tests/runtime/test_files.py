"""Files that are whole or not there, whatever happens to who writes them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.config.sample import Mask
from tests.runtime.full_disk import no_file_may_pass

from vjepa.config import load_config
from vjepa.errors import UserError
from vjepa.runtime.files import (
    DISK_FULL,
    JsonLines,
    atomic_folder,
    atomic_path,
    atomic_write,
    begin_folder,
    check_writable,
    claimed_folder,
    holder_of,
    job_of,
    read_json_lines,
    save_tensors,
)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_tensors_are_for_those_who_may_read_our_other_files(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a.json", "{}")
    save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_a_file_is_written_whole_in_a_folder_that_is_made(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    atomic_write(target, "größer")
    atomic_write(target, "kleiner")
    assert target.read_text(encoding="utf-8") == "kleiner"
    atomic_write(target, "caf\udce9.mp4")  # in a report, the name of a file
    assert target.read_text() == "caf\\udce9.mp4"
    atomic_write(target, b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"
    assert _names(target.parent) == ["a.txt"]


def test_the_old_file_stays_until_the_block_ends_and_if_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    atomic_write(target, "old")

    def fail() -> None:
        with atomic_path(target) as aside:
            aside.write_text("half")
            assert target.read_text() == "old"
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert target.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    atomic_write(target, "old")
    with pytest.raises(OSError), no_file_may_pass(1000):
        atomic_write(target, "x" * 2000)
    assert target.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


def test_a_full_disk_is_told_of_tensors_as_of_other_files(tmp_path: Path) -> None:
    """The library's own error is none of the system's: a cache of features ended in a traceback."""
    with pytest.raises(OSError) as caught, no_file_may_pass(1000):
        save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2000)})
    assert caught.value.errno in DISK_FULL
    assert caught.value.filename == str(tmp_path / "a.safetensors")


def test_what_a_killed_process_of_the_same_number_left_is_no_beginning(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.jsonl") as aside:
        left_over = aside
        aside.touch()
    left_over.write_text("from the dead\n")
    with atomic_path(tmp_path / "a.jsonl") as aside, aside.open("a") as file:
        file.write("mine\n")
    assert (tmp_path / "a.jsonl").read_text() == "mine\n"


_KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from vjepa.runtime.files import atomic_folder, atomic_path
out = Path(sys.argv[1])
with atomic_path(out / "file") as file, atomic_folder(out / "folder") as folder:
    file.write_text("half")
    (folder / "part").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED_WHILE_WRITING, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(_names(tmp_path)) == 2
    assert all(name.endswith(".partial") for name in _names(tmp_path))


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "below" / "folder"

    def fail() -> None:
        with atomic_folder(target) as aside:
            (aside / "part").write_text("half")
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert _names(target.parent) == []
    with atomic_folder(target) as aside:
        (aside / "deep").mkdir()
        (aside / "deep" / "a").write_text("1")
        assert not target.exists()
    assert (target / "deep" / "a").read_text() == "1"
    with pytest.raises(FileExistsError, match="folder exists"), atomic_folder(target):
        pass


def test_lines_are_there_at_once_and_after_the_file_was_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    for number in range(2):
        with JsonLines(path) as log:
            log.append({"number": number})
            assert list(read_json_lines(path))[-1] == (number + 1, {"number": number})
    log.close()
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("length", [1, 2**16, 2**16 + 1, 200_000])
def test_a_torn_last_line_is_not_read_and_cut_off_when_opened(tmp_path: Path, length: int) -> None:
    path = tmp_path / "log.jsonl"
    for whole in ([], [{"a": 1}]):
        text = "".join(json.dumps(line) + "\n" for line in whole)
        path.write_text(text + "x" * length)
        assert [line for _, line in read_json_lines(path)] == whole
        JsonLines(path).close()
        assert path.read_text() == text
        with JsonLines(path) as log:
            log.append({"a": 3})
        assert [line for _, line in read_json_lines(path)] == [*whole, {"a": 3}]


def test_lines_that_are_no_object_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'[1]\n\xff\n{"a": 1}\n\n' + b"[" * 100_000 + b"\n")
    assert [line for _, line in read_json_lines(path)] == [None, None, {"a": 1}, None, None]


@pytest.mark.parametrize("name", ["grün 動画", os.fsdecode(b"\xff.mp4"), "\ud800", 'a"\n'])
def test_any_text_comes_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / "log.jsonl"
    with JsonLines(path) as log:
        log.append({name: name})
    assert list(read_json_lines(path)) == [(1, {name: name})]


_KILLED_WHILE_APPENDING = """
import os, signal, sys
from pathlib import Path
from vjepa.runtime.files import JsonLines
log = JsonLines(Path(sys.argv[1]))
for number in range(250):
    log.append({"number": number})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_costs_no_line_and_the_next_process_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    done = subprocess.run([sys.executable, "-c", _KILLED_WHILE_APPENDING, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    with JsonLines(path) as log:
        log.append({"number": 250})
    assert [line for _, line in read_json_lines(path)] == [{"number": n} for n in range(251)]


def test_a_full_disk_is_one_clear_line_and_costs_no_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"

    def fill() -> None:
        # Leaving the block closes the log, which must not fail a second time over the same line.
        with no_file_may_pass(100), JsonLines(path) as log:
            log.append({"a": 1})
            log.append({"text": "x" * 200})

    message = r"log\.jsonl: cannot be written \(.+\); free some space"
    with pytest.raises(UserError, match=message):
        fill()
    with JsonLines(path) as log:
        log.append({"a": 2})
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"log\.jsonl: cannot be written .*choose another --out"):
        JsonLines(tmp_path / "file" / "log.jsonl")


_HOLD = """
import sys, time
from pathlib import Path
from vjepa.runtime.files import claimed_folder
with claimed_folder(Path(sys.argv[1]), "learn"):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(UserError, match="another process is at work"),
            claimed_folder(tmp_path, "learn"),
        ):
            pass
        holder.kill()
    with pytest.raises(json.JSONDecodeError), claimed_folder(tmp_path, "learn"):
        json.loads("an error inside passes through")


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_who_holds_a_folder_holds_it_still_after_it_was_asked(tmp_path: Path) -> None:
    """Closing any handle of a file gives back the locks that the process has on it."""
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    (tmp_path / "link").symlink_to(tmp_path)
    begin_folder(tmp_path, "learn", Mask())
    with claimed_folder(tmp_path, "learn"):
        for path in (tmp_path, tmp_path / "link"):
            assert holder_of(path) == os.getpid()
            with pytest.raises(UserError, match="this process is at work in this folder"):
                _claim(path, "learn")
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "another process is at work in this folder" in second.stderr
    assert holder_of(tmp_path) is None
    assert _claim(tmp_path, "learn")


def _claim(folder: Path, job: str) -> bool:
    with claimed_folder(folder, job) as has_begun:
        return has_begun


def test_a_job_goes_on_in_its_own_folder_and_leaves_those_of_others(tmp_path: Path) -> None:
    with claimed_folder(tmp_path / "a" / "run", "features") as has_begun:
        assert not has_begun
        begin_folder(tmp_path / "a" / "run", "features", Mask(num_blocks=3))
    assert _claim(tmp_path / "a" / "run", "features")
    assert load_config(Mask, [tmp_path / "a" / "run" / "config.yaml"]).num_blocks == 3
    for job in ("pretrain", "probe train", "learn"):
        with pytest.raises(UserError, match=r"run: belongs to `vjepa features`; give another"):
            _claim(tmp_path / "a" / "run", job)


_OLD_RUN = "seed: 0\nmodel: {}\nmasking: {}\nobjective:\n  name: vjepa\ntraining: {}\n"
OLD_MARKS = {
    "config.yaml": (_OLD_RUN, "pretrain"),
    "features.json": ('{"format": "files", "weights_hash": "470f"}', "features"),
    "probe.json": ('{"format": "vjepa-probe-1"}', "probe train"),
    "split.json": ('{"label": "a", "manifest_hash": "295b"}', "probe train"),
    "splits.json": ('{"format": "vjepa-probe-splits-1"}', "probe train"),
    "studies.json": ('{"clips-small": {"files": {}, "changes": []}}', "studies"),
    "work/settings.json": ('{"settings": "1f2e"}', "data prepare"),
    "synthetic.json": ('{"format": "vjepa synthetic set", "version": 1}', "data synth"),
    "demo.yaml": ("minutes: 6\nfew_labels_per_class: 15\n", "demo"),
}


@pytest.mark.parametrize("name", OLD_MARKS)
def test_folders_that_older_versions_wrote_are_known(tmp_path: Path, name: str) -> None:
    content, job = OLD_MARKS[name]
    atomic_write(tmp_path / name, content)
    assert job_of(tmp_path) == job
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"belongs to `vjepa {job}`"):
        _claim(tmp_path, "learn")
    assert sorted(tmp_path.rglob("*")) == before
    assert _claim(tmp_path, job)


@pytest.mark.parametrize("name", OLD_MARKS)
def test_files_of_others_that_are_called_like_ours_are_left_alone(
    tmp_path: Path, name: str
) -> None:
    """Also those that hold a setting of a name that we have."""
    for text in ("mine", '{"train": ["a"]}', "model: xgb\nobjective: binary\n"):
        atomic_write(tmp_path / name, text)
        (tmp_path / "metrics.jsonl").write_text("mine\n")
        assert job_of(tmp_path) is None
        for with_config in (False, True):
            if with_config:
                (tmp_path / "config.yaml").write_text("objective: mine\n")
            with pytest.raises(UserError, match="exists and holds nothing of `vjepa"):
                _claim(tmp_path, OLD_MARKS[name][1])
    assert ".lock" not in _names(tmp_path)


def test_probes_of_the_first_version_are_known() -> None:
    old = Path(__file__).parents[1] / "evaluation" / "old_format"
    for name in ("attentive", "neighbours", "several"):
        assert job_of(old / name) == "probe train"
    assert job_of(next((old / "cache").iterdir())) == "features"


def test_other_files_are_left_alone_and_what_never_began_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("theme: dark\n")
    for place in ("mine", "mine/config.yaml"):
        with pytest.raises(UserError, match="exists and holds nothing of `vjepa learn`"):
            _claim(tmp_path / place, "learn")
    assert _names(tmp_path / "mine") == ["config.yaml"]
    assert not _claim(tmp_path / "new", "learn")
    (tmp_path / "empty").mkdir()
    assert not _claim(tmp_path / "empty", "learn")
    assert not _claim(tmp_path / "empty", "pretrain")
    assert _names(tmp_path) == ["empty", "mine"]


@pytest.mark.parametrize("place", ["file/run", "file/below/run", "n" * 300])
def test_a_place_that_cannot_be_made_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(.+\); choose another --out"):
        _claim(tmp_path / place, "learn")


@pytest.mark.parametrize("take", [check_writable, lambda path: _claim(path, "learn")])
def test_a_place_whose_name_is_no_text_is_refused_before_the_work(
    tmp_path: Path, take: Callable[[Path], object]
) -> None:
    """Arrow, safetensors and TensorBoard would end the work at their first file."""
    with pytest.raises(UserError, match=r"the name is not valid UTF-8; choose another --out"):
        take(tmp_path / "caf\udce9" / "out")
    assert _names(tmp_path) == []


def test_jobs_of_one_process_are_not_started_by_a_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=r"WORLD_SIZE=2: `vjepa features` runs in one process"):
        _claim(tmp_path / "a", "features")
    with claimed_folder(tmp_path / "a", "pretrain", is_shared=True):
        pass
    assert _names(tmp_path) == []


def test_a_file_that_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "a.png")
    assert _names(tmp_path / "new") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.png: cannot be written \(a file is where a"):
        check_writable(tmp_path / "file" / "a.png")
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        check_writable(tmp_path)
    with pytest.raises(UserError, match="b: cannot be written"), no_file_may_pass(0):
        check_writable(tmp_path / "b")
    assert _names(tmp_path) == ["file", "new"]
