"""The error that a user can mend.

Everything below the command line raises :class:`UserError` for bad input: a missing file, a wrong
field, a truncated checkpoint. Its message is one line that names the file or field and the remedy.
The command line prints that line and exits with code 2; any other exception is a defect of ours and
keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Generator, Iterable
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


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` most probably meant, or None.

    A slip of the fingers counts first, then a name that lacks a word: ``lr`` for ``peak_lr``.
    """
    lowered = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    if not close:
        words = set(name.lower().split("_"))
        close = sorted((text for text in lowered if words <= set(text.split("_"))), key=len)
    return lowered[close[0]] if close else None


def suggested(name: str, candidates: Iterable[str]) -> str:
    """The end of an error's line that asks whether the nearest candidate was meant, if any is."""
    near = nearest(name, candidates)
    return f"; did you mean {near}?" if near else ""
