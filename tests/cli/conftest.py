"""Calling the command line inside the test process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from vjepa.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a refused input."""
        assert self.code == 2, (self.code, self.out, self.err)
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")


@pytest.fixture
def vjepa(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs ``vjepa ARGS``."""

    def call(*argv: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(arg) for arg in argv])
        except SystemExit as stopped:  # argparse ends --help and --version so
            code = int(stopped.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call
