"""A file from the web to the disk: shown, resumed after a break, and whole or not there.

The only place that fetches anything, and only for ``vjepa models get``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Any, cast
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from vjepa.errors import UserError
from vjepa.runtime.files import DISK_FULL, atomic_write, hold, sync, written
from vjepa.runtime.progress import Progress
from vjepa.version import __version__

_BLOCK = 1 << 20
_SECONDS_OF_SILENCE = 60.0
_ATTEMPTS = 6  # in a row without a single byte
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))  # answers that may soon be others


@dataclass
class _Source:
    """What a server has said of a file; kept beside the part of it that is there."""

    url: str
    tag: str = ""  # the version of the file, as the server calls it; empty: it cannot be resumed
    size: int | None = None
    sha256: str = ""


class _Redirects(HTTPRedirectHandler):
    """Follows redirections, hides the caller's token from other hosts, keeps a checksum."""

    sha256 = ""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """As the base class, but for those two."""
        self.sha256 = self.sha256 or _checksum(headers)
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and urlsplit(newurl).hostname != urlsplit(req.full_url).hostname:
            following.remove_header("Authorization")
        return following


def _checksum(headers: Mapping[str, str] | HTTPMessage) -> str:
    """The SHA-256 that Hugging Face names for a large file, or nothing."""
    given = (headers.get("X-Linked-ETag") or "").strip('"')
    return given if _SHA256.fullmatch(given) else ""


def download(
    url: str, target: Path, *, sha256: str = "", token: str = "", pause_seconds: float = 1.0
) -> str:
    """Fetch a file; a transfer that breaks goes on where it was, now or at the next call.

    What has come so far lies beside `target`, as ``<name>.partial``, also after Ctrl-C. `sha256` is
    the checksum it must have; empty: the one that the server names, if any. `token` is sent as
    authorisation to the host of the address alone. The pause before another attempt doubles with
    each that brings nothing. Given is the file's SHA-256.

    Raises:
        UserError: No such file, no permission, no connection, no space, or another checksum.
    """
    part = target.with_name(f"{target.name}.partial")
    about = target.with_name(f"{target.name}.partial.json")
    fruitless = 0
    with hold(target.parent), Progress(target.name, None) as progress:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                source = _fetch(url, part, about, token, progress)
                break
            except (HTTPException, ConnectionError) as error:
                grown = (part.stat().st_size if part.exists() else 0) > before
                fruitless = 0 if grown else fruitless + 1
                if fruitless == _ATTEMPTS:
                    raise UserError(
                        f"{url}: no connection ({_reason(error)}); what has come is kept: run the "
                        "same command again, or fetch it by other means and give its path"
                    ) from error
                time.sleep(pause_seconds * 2**fruitless)
    wanted = (sha256 or source.sha256).lower()
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if wanted and found != wanted:
        part.unlink()
        about.unlink(missing_ok=True)
        raise UserError(
            f"{url}: what came has another checksum than it should (sha256 {found[:16]}..., not "
            f"{wanted[:16]}...) and was deleted; run the same command again, and do not use the "
            "file if that does not help"
        )
    with written(target):
        sync(part)
        part.replace(target)
        about.unlink(missing_ok=True)
        sync(target.parent)
    return found


def _fetch(url: str, part: Path, about: Path, token: str, progress: Progress) -> _Source:
    """Bring the part to the whole file, if it is not; what the server says, or has said, of it."""
    known, have = _known(url, part, about)
    if have and have == known.size:  # it was stopped at its checksum
        return known
    headers = {"User-Agent": f"vjepa/{__version__}", "Accept-Encoding": "identity"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": known.tag}
    redirects = _Redirects()
    with _answer(build_opener(redirects), Request(url, headers=headers)) as answer:
        if answer is None:  # what is there is no part of what lies there now
            part.unlink(missing_ok=True)
            raise ConnectionError("the file has changed on the server")
        starts = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
        if not (have and answer.status == 206 and starts and int(starts[1]) == have):
            have = 0
        length = answer.headers.get("Content-Length")
        source = _Source(
            url,
            answer.headers.get("ETag") or "",
            None if length is None else have + int(length),
            redirects.sha256 or _checksum(answer.headers) or known.sha256,
        )
        if source.tag.startswith("W/"):  # the same meaning, not the same bytes
            source.tag = ""
        free = shutil.disk_usage(part.parent).free
        if source.size is not None and source.size - have > free:
            raise UserError(
                f"{part.parent}: {(source.size - have) / 1e9:.2f} GB are to come and "
                f"{free / 1e9:.2f} GB are free; free some space, or choose another folder (--out)"
            )
        if not have:  # what is said of the new file must not stand beside an older one
            part.unlink(missing_ok=True)
        atomic_write(about, json.dumps(vars(source)))
        have = _append(answer, part, have, source.size, progress)
    if source.size is not None and have < source.size:
        raise ConnectionError(f"it broke off after {have:,} of {source.size:,} bytes")
    return source


def _append(
    answer: HTTPResponse, part: Path, have: int, size: int | None, progress: Progress
) -> int:
    """Write what comes behind the first `have` bytes; the bytes that are there then."""
    try:
        with part.open("r+b" if have else "wb") as file:
            file.truncate(have)
            file.seek(have)
            while block := _block(answer):
                file.write(block)
                have += len(block)
                done, total = -(-have // 10**6), None if size is None else -(-size // 10**6)
                progress.update(done, "MB" if total else f"{done} MB", total)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"{part}: the disk is full; what has come is kept: free some space and run the "
                "same command again"
            ) from error
        raise
    return have


def _block(answer: HTTPResponse) -> bytes:
    """What comes next; whatever breaks this is the connection, and not the disk."""
    try:
        return answer.read(_BLOCK)
    except OSError as error:
        raise ConnectionError(_reason(error)) from error


def _known(url: str, part: Path, about: Path) -> tuple[_Source, int]:
    """What is known of a part, and how much of it is there to go on from; 0: begin anew."""
    try:
        found = _Source(**json.loads(about.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return _Source(url), 0
    have = part.stat().st_size if part.exists() else 0
    is_part = found.url == url and (found.tag or have == found.size)
    return found if found.url == url else _Source(url), have if is_part else 0


@contextmanager
def _answer(opener: OpenerDirector, request: Request) -> Generator[HTTPResponse | None]:
    """The server's answer; None where it has no such part."""
    try:
        answer = cast("HTTPResponse", opener.open(request, timeout=_SECONDS_OF_SILENCE))
    except HTTPError as error:
        error.close()
        if error.code == 416:
            yield None
            return
        if error.code in _PASSING:
            raise ConnectionError(f"the server answers {error.code} {error.reason}") from error
        remedies = {
            401: "it needs an account: set HF_TOKEN where it is Hugging Face's",
            403: "it is not given to everybody: ask for it where it is published",
            404: "it does not lie there any more",
            410: "it does not lie there any more",
        }
        remedy = remedies.get(error.code, "the server refuses it")
        raise UserError(
            f"{request.full_url}: {error.code} {error.reason}: {remedy}; or fetch it by other "
            "means and give its path"
        ) from error
    except OSError as error:
        raise ConnectionError(_reason(error)) from error
    with answer:
        yield answer


def _reason(error: Exception) -> str:
    reason: Any = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)


def token_of(url: str) -> str:
    """The user's token for an address: of Hugging Face's site `HF_TOKEN`, else nothing."""
    return os.environ.get("HF_TOKEN", "") if urlsplit(url).hostname == "huggingface.co" else ""
