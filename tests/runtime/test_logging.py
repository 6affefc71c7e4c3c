"""Log lines on and off a terminal."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from rich.logging import RichHandler

from vjepa.runtime.logging import configure_logging, shared_console

LOGGER = logging.getLogger("vjepa.somewhere")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    logger = logging.getLogger("vjepa")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers[:] = before[0]
    logger.setLevel(before[1])
    logger.propagate = before[2]


def test_plain_lines_once_each() -> None:
    stream = io.StringIO()
    configure_logging(stream=io.StringIO())
    configure_logging(stream=stream)
    LOGGER.info("a [bold] line")
    LOGGER.debug("hidden")
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("INFO a [bold] line\n")
    configure_logging(verbose=True, stream=stream)
    LOGGER.debug("shown")
    assert stream.getvalue().endswith("DEBUG shown\n")


def test_a_stream_that_is_closed_is_left_for_the_present_stderr(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a test's captured stderr, or a log file of one job of a worker that goes on."""
    for given in (None, io.StringIO()):
        first, now = io.StringIO(), io.StringIO()
        monkeypatch.setattr("sys.stderr", first)
        configure_logging(stream=given)
        LOGGER.warning("before")
        (given or first).close()
        monkeypatch.setattr("sys.stderr", now)
        LOGGER.warning("after")
        assert now.getvalue().endswith("WARNING after\n")
        assert "Logging error" not in now.getvalue()
        now.close()
        LOGGER.warning("to nobody")


def test_terminal_shares_its_console_with_the_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    configure_logging()
    (handler,) = logging.getLogger("vjepa").handlers
    assert isinstance(handler, RichHandler)
    assert handler.console is shared_console()
