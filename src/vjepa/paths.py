"""What users write for a path, as the system takes it: the one place where it is understood."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from vjepa.errors import UserError

# A Path has made one slash of two.
_FILE_URL = re.compile(r"file:(//(localhost)?)?(?=/)")
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")


def local_path(text: str | PathLike[str]) -> str:
    """A path with ``~`` and ``file:///videos/a%20b.mp4`` written out; all else is left as it is.

    Many programs write file URLs without ``%20``: where a file has the name as it stands, it is
    that. UserError: it is no path at all.
    """
    if not isinstance(text, (str, PathLike)):
        raise UserError(f"{type(text).__name__} was given, where a path or name is wanted")
    path = os.path.expanduser(text)  # noqa: PTH111 (a Path has none of an address's slashes)
    if url := _FILE_URL.match(path):
        path = path[url.end() :]
        if not os.path.exists(path):  # noqa: PTH110
            escaped = os.fsencode(path)
            path = os.fsdecode(_ESCAPED.sub(lambda code: bytes.fromhex(code[1].decode()), escaped))
    return path


def as_path(text: str | PathLike[str]) -> Path:
    """A path; ``./NAME``, which would be no more than a name, from the root on.

    UserError: it is none, or an address of another machine.
    """
    plain = local_path(text)
    if re.match(r"[a-z][a-z0-9+.-]*://", plain):
        raise UserError(
            f"{plain}: an address, no path of this machine: fetch what lies there (videos in "
            "object storage may be named in a list: `vjepa data index`)"
        )
    path = Path(plain)
    return path.absolute() if plain == f"./{path.name}" and not path.suffix else path


def as_paths(given: str | PathLike[str] | Iterable[str | PathLike[str]]) -> list[Path]:
    """One path or several, each as by :func:`as_path`."""
    one = isinstance(given, (str, bytes, PathLike)) or not isinstance(given, Iterable)
    several: Any = [given] if one else given
    return [as_path(path) for path in several]
