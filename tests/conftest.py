"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

_ROOT = Path(__file__).resolve().parents[1]
_MAY_SKIP = "needs a CUDA device"
_SKIPPED: list[str] = []

# A shell starts background jobs with Ctrl-C ignored, and all that tests start would inherit it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# And nohup, with which a long run of the tests may be started, with SIGHUP ignored.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: of two workers none is left alone with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what is skipped, and why."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if _MAY_SKIP not in reason:
            _SKIPPED.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In continuous integration only the want of a GPU excuses a test."""
    if os.environ.get("CI") and _SKIPPED and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which skips make continuous integration fail."""
    if os.environ.get("CI"):
        for line in _SKIPPED:
            terminalreporter.write_line(f"not allowed to be skipped here: {line}", red=True)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """One torch thread: decoding beside a spinning thread pool is several times slower."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread_again(_one_thread: None) -> None:
    """Whatever the tests before have set: threads of two workers would wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of 24 train, 9 validation and 11 test videos with two labels."""
    # Imported here: it needs a video decoder, which a machine for GPU tests may lack.
    from tests.evaluation.tiny_videos import make_set

    folder = tmp_path_factory.mktemp("videos")
    return make_set(folder, {"train": 24, "validation": 9, "test": 11})


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the reference implementation's recorded numbers."""
    candidates = [os.environ.get("VJEPA_GOLDEN"), _ROOT.parent / "shared" / "golden"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "pretrain_forward.safetensors").is_file():
            return Path(candidate).resolve()
    pytest.skip("golden numbers not found: set VJEPA_GOLDEN to their folder")
