"""The error that a user can mend.

Everything below the command line raises :class:`UserError` for bad input: a missing file, a wrong
field, a truncated checkpoint. Its message is one line that names the file or field and the remedy.
The command line prints that line and exits with code 2; any other exception is a defect of ours and
keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input: the message names the file or field, what is wrong with it, and the remedy."""


class StoppedBySystem(KeyboardInterrupt):
    """A job was stopped by a system's signal and not by a person: it may be started again."""


class LostProcessError(UserError):
    """Another process of the same job ended or does not answer; starting the job again resumes."""


@contextmanager
def needs_extra(what: str, extra: str, otherwise: str = "") -> Generator[None]:
    """Around an import: a package that is not there comes with that extra of ours."""
    try:
        yield
    except ImportError as error:
        install = f"pip install 'open-vjepa[{extra}]'"
        raise UserError(f"{what} needs {error.name}: {install}{otherwise}") from error
