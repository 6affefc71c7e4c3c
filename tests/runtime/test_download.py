"""Fetching a file from a real server on this machine: broken, cut, resumed, changed, refused."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import ssl
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from types import SimpleNamespace
from urllib.request import OpenerDirector

import numpy as np
import pytest
from tests.runtime.full_disk import no_file_may_pass
from tests.runtime.web import Web, serving

from vjepa.errors import UserError
from vjepa.runtime import download as download_module
from vjepa.runtime.download import download, token_of
from vjepa.runtime.files import hold

DATA = np.random.default_rng(0).bytes(3_000_000)
SUM = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as web:
        web.files["/a/model.pth"] = DATA
        yield web


def _get(web: Web, folder: Path, **options: str) -> str:
    return download(f"{web.address}/a/model.pth", folder / "model.pth", pause_seconds=0, **options)


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_whole_file(web: Web, tmp_path: Path) -> None:
    assert _get(web, tmp_path / "new") == SUM
    assert (tmp_path / "new" / "model.pth").read_bytes() == DATA
    assert _left(tmp_path / "new") == ["model.pth"]


def test_a_transfer_that_breaks_goes_on_where_it_was(web: Web, tmp_path: Path) -> None:
    web.cuts = [1_000_000, 0, 700_000]
    web.codes = [503]
    assert _get(web, tmp_path) == SUM
    starts = [headers.get("Range") for _, headers in web.asked]
    assert starts[:2] == [None, None]
    assert starts[2] == starts[3] == "bytes=1000000-"
    assert starts[4] == "bytes=1700000-"
    assert _left(tmp_path) == ["model.pth"]


def test_whatever_breaks_the_connection_is_tried_again(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(cls: type, name: str, *errors: OSError) -> list[OSError]:
        left, do = list(errors), getattr(cls, name)

        def broken(*args: object, **options: object) -> object:
            if left:
                raise left.pop()
            return do(*args, **options)

        monkeypatch.setattr(cls, name, broken)
        return left

    ssl_error, unreachable = ssl.SSLError(1, "bad record"), OSError(errno.ENETUNREACH, "away")
    left = breaking(OpenerDirector, "open", ssl_error), breaking(HTTPResponse, "read", unreachable)
    assert _get(web, tmp_path) == SUM
    assert not any(left)


def test_a_later_call_goes_on_and_so_it_does_after_ctrl_c(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.cuts = [500_000] + [0] * 20
    with pytest.raises(UserError, match=r"broke off after 500,000 of 3,000,000 bytes.*is kept"):
        _get(web, tmp_path)
    assert _left(tmp_path) == ["model.pth.partial", "model.pth.partial.json"]
    with monkeypatch.context() as stopped:
        stopped.setattr(download_module.Progress, "update", _interrupt)
        web.cuts = []
        with pytest.raises(KeyboardInterrupt):
            _get(web, tmp_path)
    before = len(web.asked)
    assert _get(web, tmp_path) == SUM
    (asked,) = [headers["Range"] for _, headers in web.asked[before:]]
    assert int(asked.removeprefix("bytes=").rstrip("-")) > 500_000


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["another version", "no ranges", "no tag", "another part"])
def test_what_cannot_be_gone_on_from_is_fetched_anew(web: Web, tmp_path: Path, how: str) -> None:
    web.cuts = [500_000] + [0] * 20
    web.tag = "" if how == "no tag" else web.tag
    with pytest.raises(UserError):
        _get(web, tmp_path)
    web.cuts, web.has_ranges = [], how != "no ranges"
    if how == "another version":
        web.tag, web.files["/a/model.pth"] = '"two"', DATA[::-1]
    if how == "another part":
        (tmp_path / "model.pth.partial").write_bytes(bytes(3_000_001))
    found = _get(web, tmp_path)
    assert (tmp_path / "model.pth").read_bytes() == web.files["/a/model.pth"]
    assert found == hashlib.sha256(web.files["/a/model.pth"]).hexdigest()


def test_a_file_that_was_stopped_at_its_checksum_is_not_fetched_again(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for tag in ('"one"', ""):
        web.tag = tag
        for wanted in (SUM, "", "0" * 64):
            with monkeypatch.context() as patch:
                patch.setattr(hashlib, "file_digest", stop)
                with pytest.raises(KeyboardInterrupt):
                    _get(web, tmp_path)
            web.asked.clear()
            if wanted in (SUM, ""):
                assert _get(web, tmp_path, sha256=wanted) == SUM
                assert _left(tmp_path) == ["model.pth"]
            else:
                with pytest.raises(UserError, match="another checksum than it should"):
                    _get(web, tmp_path, sha256=wanted)
            assert not web.asked


def test_a_file_of_unknown_length_is_taken_as_it_comes(web: Web, tmp_path: Path) -> None:
    web.has_length = False
    assert _get(web, tmp_path) == SUM


@pytest.mark.parametrize("who", ["the caller", "the server"])
def test_another_checksum_is_refused_and_nothing_is_left(
    web: Web, tmp_path: Path, who: str
) -> None:
    given = {"sha256": "0" * 64} if who == "the caller" else {}
    web.checksum = "" if given else "1" * 64
    with pytest.raises(UserError, match=r"another checksum than it should \(sha256 .* deleted"):
        _get(web, tmp_path, **given)
    assert _left(tmp_path) == []


def test_the_servers_checksum_comes_with_a_redirection(web: Web, tmp_path: Path) -> None:
    web.checksum, web.cuts = SUM, [100_000]
    assert _get(web, tmp_path, token="secret") == SUM
    assert all(headers["Authorization"] == "Bearer secret" for _, headers in web.asked)


def test_a_token_stays_with_its_host(web: Web, tmp_path: Path) -> None:
    """The server that is pointed to is another by name."""
    other = web.address.replace("127.0.0.1", "localhost")
    assert token_of(other) == ""
    web.checksum = SUM
    redirects = download_module._Redirects()
    request = download_module.Request(web.address, headers={"Authorization": "Bearer secret"})
    following = redirects.redirect_request(request, None, 302, "Found", {}, f"{other}/x")
    assert following is not None
    assert not following.has_header("Authorization")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (404, "404 Not Found: it does not lie there any more"),
        (401, "401 Unauthorized: it needs an account: set HF_TOKEN"),
        (403, "403 Forbidden: it is not given to everybody"),
        (400, "400 Bad Request: the server refuses it"),
    ],
)
def test_what_a_server_refuses_is_said_at_once(
    web: Web, tmp_path: Path, code: int, said: str
) -> None:
    web.codes = [code]
    with pytest.raises(UserError, match=said):
        _get(web, tmp_path)
    assert len(web.asked) == 1
    assert _left(tmp_path) == []


def test_no_server_and_no_such_host(tmp_path: Path) -> None:
    with serving() as gone:
        address = gone.address
    with pytest.raises(UserError, match=r"no connection \(Connection refused\)"):
        download(f"{address}/a", tmp_path / "a", pause_seconds=0)


def test_no_room_is_known_before_a_byte_is_written(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(UserError, match=r"0\.00 GB are to come .* free some space, or choose"):
        _get(web, tmp_path)
    assert _left(tmp_path) == []


def test_a_disk_that_fills_up_keeps_what_has_come(web: Web, tmp_path: Path) -> None:
    full = pytest.raises(UserError, match="the disk is full; what has come is kept")
    with no_file_may_pass(1_500_000), full:
        _get(web, tmp_path)
    assert _get(web, tmp_path) == SUM
    assert "Range" in web.asked[-1][1]


def test_two_at_once_are_refused(web: Web, tmp_path: Path) -> None:
    """A lock belongs to a process: another one is needed to hold it."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            with hold(tmp_path):
                os.write(write_end, b"x")
                time.sleep(60)
        finally:
            os._exit(0)
    assert os.read(read_end, 1) == b"x"
    try:
        with pytest.raises(UserError, match="another process is at work"):
            _get(web, tmp_path)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
