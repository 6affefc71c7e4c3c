"""The server of `vjepa app`: tabs of browsers, what they upload, and the page on 127.0.0.1."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from vjepa.checkpoint import locate
from vjepa.data.video.info import DecodeError, LimitsConfig, VideoInfo
from vjepa.data.video.inspect import InspectOrder, inspect_file, inspect_order
from vjepa.errors import UserError, needs_extra
from vjepa.jobs.app_looks import TRAINED, UNTRAINED, Session, Watch, named_sizes
from vjepa.runtime.workers import LOADER_MODULES, WorkerPool, start_server

MOST_MEGABYTES, MOST_SECONDS, MOST_CHECKING_SECONDS = 200, 180.0, 60.0
"""What may be uploaded: its size and length, and how long looking through it may take."""
_LIMITS = LimitsConfig(
    max_pixels=2560 * 1440,
    max_frames=20_000,
    max_bytes=MOST_MEGABYTES << 20,
    max_memory_gigabytes=4.0,
)


class Sessions:
    """The tabs that are open in browsers, their files, and the examples for all."""

    def __init__(self, root: Path, examples: Mapping[str, Path]) -> None:
        """Keep everything below `root`."""
        self._root, self._open, self._lock = root, dict[str, Session](), threading.Lock()
        self.examples = examples

    def of(self, key: str) -> Session:
        """The session of a tab, begun if it is new."""
        with self._lock:  # the first events of a tab may come at once
            if key not in self._open:
                self._open[key] = Session(Path(tempfile.mkdtemp(prefix="tab-", dir=self._root)))
            return self._open[key]

    def end(self, key: str) -> None:
        """A tab was closed: stop its work and remove its files."""
        session = self._open.pop(key, None)
        if session is not None:
            session.stops += 1
            self._forget_video(session)
            shutil.rmtree(session.folder, ignore_errors=True)

    def _forget_video(self, session: Session, coming: Path | None = None) -> None:
        """Remove its uploaded file, unless it has come again or another tab has uploaded it."""
        upload, session.upload = session.upload, coming
        if upload and all(upload != other.upload for other in self._open.values()):
            upload.unlink(missing_ok=True)
        if upload and session.video:
            Path(session.video.path).unlink(missing_ok=True)
        session.video = None
        session.surprises.clear()

    def choose(self, session: Session, example: str) -> VideoInfo:
        """Take one of the examples."""
        if example not in self.examples:
            raise UserError(f"no such example; there are: {', '.join(self.examples)}")
        self._forget_video(session)
        session.video = inspect_file(str(self.examples[example]))
        return session.video

    def accept(self, session: Session, upload: Path, watch: Watch) -> VideoInfo:
        """Take an uploaded file, after every frame of it came out in a process that may be killed.

        Raises:
            UserError: It is too large or long, is broken, or takes too long.
        """
        self._forget_video(session, upload)
        if not upload.is_file():
            raise UserError(f"{upload.name}: is gone; upload it again")
        for deep in (False, True):
            info = _inspected(InspectOrder(path=str(upload), deep=deep), watch)
            if not info.ok:
                raise DecodeError(upload.name, info.reason or "cannot be read")
            if info.kind != "image" and info.duration_seconds > MOST_SECONDS:
                raise UserError(
                    f"{upload.name}: lasts {info.duration_seconds:.0f} s, and at most "
                    f"{MOST_SECONDS:.0f} s are taken; cut a part out of it"
                )
        kept = Path(tempfile.mkdtemp(dir=session.folder)) / upload.name
        try:
            kept.hardlink_to(upload)
        except OSError:
            shutil.copy(upload, kept)
        session.video = replace(info, path=str(kept))
        return session.video


def _inspected(order: InspectOrder, watch: Watch) -> VideoInfo:
    """What a worker finds in a file, within the time allowed."""
    memory, name = _LIMITS.max_memory_gigabytes, Path(order.path).name
    inspect = partial(inspect_order, limits=_LIMITS)
    with closing(WorkerPool(inspect, 1, MOST_CHECKING_SECONDS, memory)) as pool:
        pool.submit(order)
        began, ended = time.monotonic(), pool.wait(0.5)
        while not ended:
            watch(0, 1)
            if time.monotonic() - began > MOST_CHECKING_SECONDS:
                raise UserError(
                    f"{name}: looking through it took longer than {MOST_CHECKING_SECONDS:.0f} s; "
                    "give a shorter or smaller one"
                )
            ended = pool.wait(0.5)
    if ended[0].kind != "done":
        raise DecodeError(name, ended[0].reason)
    return ended[0].value


@contextmanager
def open_server(
    port: int,
    examples: Callable[[Path], Mapping[str, Path]],
    models: Sequence[str] = (),
    **places: Path | None,
) -> Generator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """The page on 127.0.0.1: its address, a function that serves until it is stopped, and the stop.

    Port 0 takes a free one. `examples` makes videos in a folder, by what they show; `models` are
    offered beside the shipped one, `places` are `decoder`, `probe` and `database` to begin with.

    Raises:
        UserError: The port is in use, a model is not there, or the extra `app` is not installed.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    for name in models:
        if not name.strip() or not locate(named_sizes(name)[0]).exists():
            raise UserError(f"--model {name}: no such file or folder, and no weights of that name")
    with socket.socket() as listener, tempfile.TemporaryDirectory(prefix="vjepa-app-") as folder:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--port {port}: cannot be had ({error}); end what uses it, or give another one"
            ) from error
        root = Path(folder).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(root / "uploads")
        with needs_extra("app", "app"):
            import gradio as gr
            import uvicorn
            from fastapi import FastAPI
            from starlette.middleware.trustedhost import TrustedHostMiddleware
        from vjepa.jobs.app_page import CSS, build_page

        (root / "uploads").mkdir()
        sessions = Sessions(root / "uploads", examples(root))
        page = build_page(sessions, [TRAINED, UNTRAINED, *models], places)
        page.queue(default_concurrency_limit=4, max_size=32)
        font = ["system-ui", "sans-serif"]
        theme = gr.themes.Default(font=font, font_mono=["ui-monospace", "monospace"])
        theme.set(  # its greys of hints have a contrast of 2 to white, and 3 to the dark page
            body_text_color_subdued="*neutral_500",
            input_placeholder_color="*neutral_500",
            input_placeholder_color_dark="*neutral_400",
        )
        app = gr.mount_gradio_app(
            FastAPI(openapi_url=None),
            page,
            path="/",
            server_name="127.0.0.1",
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            max_file_size=_LIMITS.max_bytes,
            theme=theme,
            css=CSS,
        )
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        start_server(LOADER_MODULES)  # the first upload need not wait for it

        def stop() -> None:
            server.should_exit = True

        def heard(_: logging.LogRecord) -> bool:
            return not server.should_exit  # a browser that is open at the end is no error

        address, serve = listener.getsockname()[1], partial(server.run, sockets=[listener])
        logging.getLogger("uvicorn.error").addFilter(heard)
        try:
            yield f"http://127.0.0.1:{address}", serve, stop
        finally:
            logging.getLogger("uvicorn.error").removeFilter(heard)
