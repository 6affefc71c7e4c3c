"""``vjepa demo``: its settings; the job has its own tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vjepa.demo import demo
from vjepa.demo.config import DemoConfig


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> list:
    """Calls of the job, which itself is replaced."""
    calls: list = []

    def run(config: DemoConfig, out: Path) -> Path:
        calls.append((config, out))
        return out / "report.html"

    monkeypatch.setattr(demo, "run", run)
    return calls


def test_says_where_the_report_is(job: list, vjepa: Callable) -> None:
    outcome = vjepa("demo")
    assert outcome.code == 0
    assert outcome.out == "report: runs/demo/report.html\n"
    assert job == [(DemoConfig(), Path("runs/demo"))]


def test_settings(job: list, vjepa: Callable, tmp_path: Path) -> None:
    assert vjepa("demo", "--minutes", 60, "--seeds", "[0, 1]", "--out", tmp_path).code == 0
    [(config, out)] = job
    assert (config.minutes, config.seeds, out) == (60.0, (0, 1), tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--minutes", "0"], "command line: minutes must be above 0"),
        (["--seeds", "[1, 1]"], "command line: seeds must be one or more different numbers"),
        (["--minute", "3"], "did you mean minutes?"),
    ],
)
def test_bad_input(argv: list[str], message: str, job: list, vjepa: Callable) -> None:
    assert message in vjepa("demo", *argv).error
    assert job == []


def test_print_config_does_no_work(job: list, vjepa: Callable) -> None:
    outcome = vjepa("demo", "--print-config")
    assert outcome.out.startswith("minutes: ")
    assert job == []
