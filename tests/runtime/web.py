"""A web server on this machine whose transfers break as they do elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Web:
    """What is served, and what was asked for.

    Attributes:
        files: Bytes by path.
        tag: ETag of all files.
        cuts: After so many bytes the next answers break off, one after the other.
        codes: What the next requests are answered with instead.
        checksum: Sent as Hugging Face does of large files, in a redirection to another path.
        has_ranges, has_length: Whether the server knows parts, and says how long a file is.
        asked: (path, headers) of every request.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    tag: str = '"one"'
    cuts: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    checksum: str = ""
    has_ranges: bool = True
    has_length: bool = True
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)


@contextmanager
def serving() -> Generator[Web]:
    """Serve on a free port until the end."""
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.asked.append((self.path, dict(self.headers)))
            if web.codes:
                self.send_error(web.codes.pop(0))
                return
            is_large = not self.path.endswith(".json")
            if web.checksum and is_large and not self.path.startswith("/cdn"):
                self.send_response(302)
                self.send_header("Location", f"/cdn{self.path}")
                self.send_header("X-Linked-ETag", f'"{web.checksum}"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = web.files.get(self.path.removeprefix("/cdn"))
            if content is None:
                self.send_error(404)
                return
            self._send(content)

        def do_HEAD(self) -> None:
            """What Hugging Face says of a file."""
            web.asked.append((self.path, dict(self.headers)))
            content = web.files.get(self.path)
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.end_headers()
                return
            is_large = web.checksum and not self.path.endswith(".json")
            self.send_response(200)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", web.tag)
            if is_large:
                self.send_header("X-Linked-ETag", f'"{web.checksum}"')
                self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def _send(self, content: bytes) -> None:
            start, asked = 0, self.headers.get("Range")
            if asked and web.has_ranges and self.headers.get("If-Range", web.tag) == web.tag:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206)
                end = f"{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", f"bytes {start}-{end}")
            else:
                self.send_response(200)
            self.send_header("ETag", web.tag)
            if web.has_length:
                self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            cut = web.cuts.pop(0) if web.cuts else len(content)
            with suppress(ConnectionError):  # who asked may have gone
                self.wfile.write(content[start : start + cut])

        def log_message(self, *_: Any) -> None:
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    web.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
