"""Bytes by path and by address."""

from __future__ import annotations

import io
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.spec import AbstractFileSystem

from vjepa.data.manifest.lists import IndexConfig, LeftOut, read_source
from vjepa.data.manifest.storage import absolute, files_beneath, is_address, open_range, status_of
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError

_DATA = bytes(range(256)) * 40


@pytest.fixture(params=["local", "file", "memory"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """One file on each kind of storage."""
    path = str(tmp_path / "a.bin")
    if request.param == "file":
        path = f"file://{path}"
    if request.param == "memory":
        path = f"memory://{tmp_path.name}/a.bin"
    with fsspec.open(path, "wb") as file:
        file.write(_DATA)
    return path


def test_a_range_reads_as_a_file_of_its_own(stored: str) -> None:
    part = io.BytesIO(_DATA[100:5100])
    rng = np.random.default_rng(0)
    with open_range(stored, 100, 5000) as file:
        assert file.readable()
        assert file.seekable()
        for _ in range(200):
            whence = int(rng.integers(0, 3))
            offset = int(rng.integers(0, 6000)) * (-1 if whence == 2 else 1)
            if whence == 1:
                offset = min(offset, 5000) - part.tell()
            # A real file refuses to go before its start; FFmpeg never asks for that.
            if whence == 2 and offset < -5000:
                continue
            assert file.seek(offset, whence) == part.seek(offset, whence)
            size = int(rng.integers(-1, 700))
            assert file.read(size) == part.read(size)
            assert file.tell() == part.tell()
    assert file.closed
    file.close()


def test_a_range_ends_where_the_file_ends(stored: str) -> None:
    with open_range(stored, len(_DATA) - 10, 5000) as file:
        assert file.read() == _DATA[-10:]
    with open_range(stored) as file:
        assert file.read() == _DATA


def test_long_objects_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vjepa.data.manifest.storage._ONE_REQUEST", 100)
    address = f"file://{tmp_path}/a.bin"
    with fsspec.open(address, "wb") as file:
        file.write(_DATA)
    with open_range(address, 100, 5000) as part:
        assert part.read() == _DATA[100:5100]
        part.seek(7)
        assert part.read(9) == _DATA[107:116]


def test_a_part_of_a_stored_object_takes_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"memory://{tmp_path.name}_part/a.tar"
    with fsspec.open(address, "wb") as file:
        file.write(_DATA)
    storage = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(storage, "info", lambda *_, **__: pytest.fail("asked for its size"))
    with open_range(address, 100, 5000) as part:
        assert part.read() == _DATA[100:5100]


def test_status(stored: str, tmp_path: Path) -> None:
    assert status_of(stored).bytes == len(_DATA)
    assert status_of(stored).mtime_ns > 0
    with pytest.raises(OSError):
        status_of(f"{stored}.missing")
    with pytest.raises(OSError):
        open_range(f"{stored}.missing")
    with pytest.raises(IsADirectoryError):
        status_of(f"file://{tmp_path}")


@pytest.mark.parametrize(
    "address",
    [
        "http://example.com/a.mp4",
        "ssh://host/a.mp4",
        "simplecache::memory://a/b.mp4",
        "memory://a::file:///etc/passwd",
        "reference://x",
    ],
)
def test_only_storage_systems_are_opened(address: str) -> None:
    """A manifest comes from outside: it must not make this machine call web pages or shells."""
    with pytest.raises((UserError, OSError), match=r"no storage system|No such file"):
        status_of(address)


def test_addresses_and_paths_are_told_apart() -> None:
    assert is_address("s3://bucket/a.mp4")
    assert not is_address("/data/a://b.mp4")
    assert not is_address("a.mp4")
    assert absolute("/a/../b") == "/b"
    assert absolute("s3://bucket/a/../b") == "s3://bucket/a/../b"


def test_files_of_a_stored_folder(tmp_path: Path) -> None:
    for name in ("b/x.mp4", "a.mp4"):
        with fsspec.open(f"memory://{tmp_path.name}/{name}", "wb") as file:
            file.write(b"1")
    root = f"memory://{tmp_path.name}"
    assert files_beneath(root) == [f"{root}/a.mp4", f"{root}/b/x.mp4"]
    assert files_beneath(root + "/") == files_beneath(root)


@pytest.mark.parametrize("is_flat", [False, True])
def test_a_stored_folder_that_cannot_be_listed_is_left_out_and_counted(
    tmp_path: Path, is_flat: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a disk; also where the storage lists all at once, and refuses that."""
    root = f"memory://{tmp_path.name}_{is_flat}"
    for name in ("a.mp4", "closed/b.mp4", "open/c.mp4"):
        with fsspec.open(f"{root}/{name}", "wb") as file:
            file.write(b"1")
    storage = type(fsspec.filesystem("memory"))
    ls = storage.ls

    def refusing(self, path: str, **options: object) -> list:
        if path.endswith("/closed"):
            raise PermissionError(13, "Permission denied")
        return ls(self, path, **options)

    def refused(self, path: str, **options: object) -> list:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage, "ls", refusing)
    monkeypatch.setattr(storage, "find", refused if is_flat else AbstractFileSystem.find)
    left_out = LeftOut()
    rows = list(read_source(root, IndexConfig(), left_out))
    assert [row.path for row in rows] == [f"{root}/a.mp4", f"{root}/open/c.mp4"]
    assert str(left_out) == "left out, cannot be read (Permission denied) (1)"
    assert f"{root}/closed: left out" in caplog.text
    with pytest.raises(UserError, match="cannot be listed"):
        list(read_source(f"{root}/closed", IndexConfig()))


class _NoKeyError(Exception):
    """As boto's errors: no OSError, and more than a line."""


def test_errors_of_a_storage_package_cost_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key, no connection: a reason like any other, and not the end of the run."""
    address = f"memory://{tmp_path.name}_key/a.mp4"
    with fsspec.open(address, "wb") as file:
        file.write(_DATA)
    monkeypatch.setattr("vjepa.data.manifest.storage._ONE_REQUEST", 100)
    late = open_range(address)

    def refuse(*_: object, **__: object) -> None:
        raise _NoKeyError("no key,\n  no bytes")

    storage = type(fsspec.filesystem("memory"))
    said = r"cannot be read \(_NoKeyError: no key, no bytes\)"
    for name in ("cat_file", "open", "info", "ls", "find"):
        monkeypatch.setattr(storage, name, refuse)
        monkeypatch.setattr("vjepa.data.manifest.storage._ONE_REQUEST", 64 << 20)
        with pytest.raises(OSError, match=said):
            open_range(address)
    monkeypatch.setattr(type(late._file), "read", refuse)  # ty: ignore[unresolved-attribute]
    with pytest.raises(OSError, match=said):
        late.read(10)
    assert inspect_file(address).reason == "cannot be read (_NoKeyError: no key, no bytes)"
    with pytest.raises(UserError, match=f"{tmp_path.name}_key: cannot be listed .{said}"):
        list(read_source(address.removesuffix("/a.mp4"), IndexConfig()))
