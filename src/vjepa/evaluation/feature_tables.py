"""Pooled features of many files: a folder of Parquet parts, which other tools read as one table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vjepa.evaluation.feature_files import FileOrigin, StoredType
from vjepa.evaluation.window_reading import Look

_PART_ROWS = 4096


class FeatureTable:
    """Collects rows of whole files and writes a part whenever there are enough.

    Columns: ``path``, ``seconds`` (the middle of what the row's tubelet shows; of a whole file its
    middle), ``first_frame``, ``last_frame``, ``features`` (list of D numbers), ``origin`` (JSON:
    what the row was made from).
    """

    def __init__(self, folder: Path, stored: StoredType, writer: str = "") -> None:
        """Read which files the parts hold already.

        Args:
            folder: Of the parts ``part-00000.parquet``, ...; made when new.
            stored: Type of the numbers.
            writer: Name of this writer among several that write to the folder at the same time.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa, self._pq = pa, pq
        self._folder = folder
        self._stored = stored
        self._columns: dict[str, list[object]] = {}
        self._rows = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._origins: set[str] = set()
        parts = sorted(folder.glob("part-*.parquet"))
        for part in parts:
            column = pq.read_table(part, columns=["origin"]).column("origin")
            self._origins.update(column.unique().to_pylist())
        self._prefix = f"part-{writer}"
        self._next_part = len(parts)

    def holds(self, origin: FileOrigin) -> bool:
        """Whether a part that is on the disk holds the rows of this origin."""
        return json.dumps(asdict(origin)) in self._origins

    def sink(self, look: Look, origin: FileOrigin) -> TableSink:
        """The sink of one file."""
        return TableSink(self, look, json.dumps(asdict(origin)))

    def add(self, look: Look, origin: str, tokens: NDArray, times: NDArray[np.float64]) -> None:
        """Add the rows of a finished file.

        Args:
            look: How it was looked at.
            origin: JSON.
            tokens: [t, D], or [1, D] for the whole file.
            times: float64 [t].
        """
        numbers = look.plan.frame_numbers
        if len(tokens) != len(times):
            times, numbers = times[[0, -1]].mean(keepdims=True), numbers[[0, -1]].reshape(1, -1)
        rows = {
            "path": [look.info.path] * len(tokens),
            "seconds": times.tolist(),
            "first_frame": numbers[:, 0].tolist(),
            "last_frame": numbers[:, -1].tolist(),
            "features": list(tokens.astype(self._stored)),
            "origin": [origin] * len(tokens),
        }
        for name, values in rows.items():
            self._columns.setdefault(name, []).extend(values)
        self._rows += len(tokens)
        if self._rows >= _PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait as a part of their own."""
        if not self._rows:
            return
        pa = self._pa
        number = pa.float32() if self._stored == "float32" else pa.float16()
        schema = pa.schema(
            [
                ("path", pa.string()),
                ("seconds", pa.float64()),
                ("first_frame", pa.int64()),
                ("last_frame", pa.int64()),
                ("features", pa.list_(number)),
                ("origin", pa.dictionary(pa.int32(), pa.string())),
            ]
        )
        target = self._folder / f"{self._prefix}{self._next_part:05d}.parquet"
        while target.exists():
            self._next_part += 1
            target = self._folder / f"{self._prefix}{self._next_part:05d}.parquet"
        aside = target.with_suffix(".partial")
        self._pq.write_table(pa.table(self._columns, schema=schema), aside)
        aside.replace(target)
        self._next_part += 1
        self._columns, self._rows = {}, 0


class TableSink:
    """Collects the pooled features of one file."""

    def __init__(self, table: FeatureTable, look: Look, origin: str) -> None:
        """Hold nothing yet."""
        self._table, self._look, self._origin = table, look, origin
        self._parts: list[NDArray] = []

    def write(self, tokens: Tensor) -> None:
        """Keep them."""
        self._parts.append(np.atleast_2d(tokens.numpy()))

    def finish(self, times: NDArray[np.float64]) -> None:
        """Hand the rows to the table."""
        self._table.add(self._look, self._origin, np.concatenate(self._parts), times)

    def abandon(self) -> None:
        """Forget them."""
        self._parts = []
