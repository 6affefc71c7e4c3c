"""What has been done, one line for each piece of work, so that a killed run can go on.

Lines are only ever added. A line that was being written when the run was killed is incomplete and
is cut off at the next start; its piece of work is looked at again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vjepa.errors import UserError

_SYNC_EVERY = 100


class Journal:
    """Answers by key, in a file of JSON lines. Use it as a context manager."""

    def __init__(self, file: Path) -> None:
        """Name the file; it is read and opened when the journal is entered."""
        self._file = file
        self._answers: dict[str, dict[str, Any]] = {}
        self._unsynced = 0

    def __enter__(self) -> Self:
        """Read what there is and make ready to add to it.

        Raises:
            UserError: The file cannot be read or written.
        """
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            complete = 0
            for line, end in self._lines():
                self._answers[line.pop("key")] = line
                complete = end
            self._out = self._file.open("ab")
            self._out.truncate(complete)
        except OSError as error:
            raise UserError(
                f"{self._file}: cannot be written ({error.strerror or error}); choose another --out"
            ) from error
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Bring everything to the disk."""
        self._sync()
        self._out.close()

    def _lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Complete lines and where each ends; stops at the first that is not whole."""
        if not self._file.exists():
            return
        end = 0
        with self._file.open("rb") as file:
            for raw in file:
                end += len(raw)
                if not raw.endswith(b"\n"):
                    return
                try:
                    values = json.loads(raw)
                except ValueError:
                    return
                if not isinstance(values, dict) or "key" not in values:
                    return
                yield values, end

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer noted under a key, or None."""
        return self._answers.get(key)

    def add(self, key: str, values: dict[str, Any]) -> None:
        """Note an answer; it outlives this process at once, a power cut after a hundred more.

        Raises:
            UserError: The disk is full or gone.
        """
        line = json.dumps({"key": key, **values}) + "\n"
        try:
            self._out.write(line.encode())
            self._out.flush()
        except OSError as error:
            raise UserError(
                f"{self._file}: cannot be written ({error.strerror or error}); free space and run "
                "the same command again"
            ) from error
        self._answers[key] = values
        self._unsynced += 1
        if self._unsynced >= _SYNC_EVERY:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._out.fileno())
        self._unsynced = 0
