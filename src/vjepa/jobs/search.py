"""Moments of many videos by example: what `vjepa search index | query | report` do.

A moment is one window of a video; its vector is the mean of the window's tokens. All lie in a
LanceDB table on disk, which holds what they were made from. Two moments are compared by their
distance; `alike` is 1 where it is 0, and 0 where they are as far apart as two moments are on
average (1 - d² / mean d²): it falls with the distance and needs no other scale.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vjepa.checkpoint import locate
from vjepa.config import config_dataclass, field_types, from_dict
from vjepa.data.clips.windows import Look
from vjepa.data.video.info import DecodeError, VideoInfo, is_media
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError, needs_extra
from vjepa.evaluation.video_features import Part, tokens_and_times
from vjepa.jobs.features import (
    FeaturesConfig,
    FeatureWorker,
    FilesConfig,
    FilesReport,
    stored_config,
)
from vjepa.jobs.videos import files_of, gone_from, is_gone
from vjepa.paths import as_path, as_paths
from vjepa.runtime.files import atomic_write, begin_folder, claimed_folder, read_json
from vjepa.runtime.process import set_num_threads
from vjepa.runtime.progress import Progress

JOB = "search index"
DESCRIPTION_FILE = "search.json"
_TABLE = "moments"
_PLACE = ("path", "start", "end", "first_frame", "last_frame", "origin")
_LOGGER = logging.getLogger(__name__)
_WRITE_ROWS, _WRITE_SECONDS = 4096, 20.0
"""Moments are written when there are so many, or after so long: what a kill can cost."""
APPROXIMATE_FROM = 200_000
"""Moments from which on a query looks through an index instead of at every one."""
_PROBES, _REFINED = 100, 20
_FEWEST = 0.5
"""Share of a moment's frames that a video must have; the rest repeats its last frame."""


@config_dataclass
class SearchConfig(FilesConfig):
    """Everything that `vjepa search index` needs to know; a window of `window` is a moment."""

    def for_features(self) -> FeaturesConfig:
        """The same for the code that encodes whole files."""
        own = {name: getattr(self, name) for name in field_types(SearchConfig)}
        return FeaturesConfig(pool="space", **own)


@dataclass(frozen=True)
class Moment:
    """A part of a file, in seconds and source frames, and how alike it is to the example."""

    path: str
    start: float
    end: float
    first_frame: int
    last_frame: int
    alike: float
    origin: str = ""  # in a database: hash of what it was made from


def index(
    config: SearchConfig, sources: Sequence[str | Path], out: str | Path
) -> tuple[FilesReport, int]:
    """Bring a database up to date with videos: only new and changed files are encoded.

    Files that lay below one of the folders and do no more are dropped, with `config.drop` all
    that no source names. Sources are those of `vjepa features`. A run that was stopped goes on with
    the same command. Returned are what was done, and how many moments the database has now.

    Raises:
        UserError: Bad input, another encoder or other settings than the database's, another job's
            folder.
    """
    config, sources, out = from_dict(SearchConfig, config), as_paths(sources), as_path(out)
    _lancedb()
    with claimed_folder(out, JOB):
        started = time.perf_counter()
        set_num_threads(config.num_threads)
        for name in ("path", "timm_weights"):  # queries may come from another folder
            path = getattr(config.encoder, name)
            if path is not None and path.exists() and locate(path) == path:
                moved = replace(config.encoder, **{name: path.absolute()})
                config = replace(config, encoder=moved)
        worker = FeatureWorker(config.for_features(), out)
        infos = files_of(sources)
        if (out / DESCRIPTION_FILE).is_file():
            worker.require_same(out, _describe(out)["settings"], "moments")
        else:
            begin_folder(out, JOB, config)
            _write_description(out, worker, None)
        table = _open_table(out, worker.width)
        held: dict[str, str] = {}  # what each file's moments were made from
        for part in table.search().select(["path", "origin"]).to_batches():
            held |= zip(part["path"].to_pylist(), part["origin"].to_pylist(), strict=True)
        origins = [origin_hash(worker, info) for info in infos]
        todo = [n for n, info in enumerate(infos) if held.get(info.path) != origins[n]]
        unnamed = held.keys() - {info.path for info in infos}
        gone = unnamed if config.drop else gone_from(sources, unnamed)
        old = [*gone, *(infos[n].path for n in todo if infos[n].path in held)]
        if old:
            _write_description(out, worker, None)  # half-made until all is there anew
        for first in range(0, len(old), 500):
            quoted = ("'" + path.replace("'", "''") + "'" for path in old[first : first + 500])
            table.delete(f"path IN ({', '.join(quoted)})")
        failed: list[tuple[str, str]] = []
        kept, rows, seconds = len(infos) - len(todo), 0, 0.0
        chosen, waiting, written = [infos[n] for n in todo], [], time.monotonic()
        try:
            with Progress("search index", len(infos), kept) as progress:
                files = enumerate(worker.read(chosen, progress=progress), start=1)
                for done, (number, look, parts) in files:
                    info = chosen[number]
                    try:
                        found = _rows(look, parts, info, origins[todo[number]])
                        waiting += found
                        rows += len(found)
                        seconds += info.duration_seconds if info.kind != "image" else 0.0
                    except DecodeError as error:
                        failed.append((info.path, error.reason))
                    late = time.monotonic() - written > _WRITE_SECONDS
                    if waiting and (late or len(waiting) >= _WRITE_ROWS):
                        table.add(waiting)
                        waiting, written = [], time.monotonic()
                    rate = rows / (time.perf_counter() - started)
                    progress.update(kept + done, f"{rate:.1f} moments/s")
        finally:
            if waiting:
                table.add(waiting)
        count = _finish(out, table, worker)
        report = FilesReport(
            encoded=len(todo) - len(failed),
            kept=kept,
            dropped=len(gone),
            others=len(unnamed) - len(gone),
            failed=tuple(failed),
            pieces=rows,
            source_seconds=seconds,
            wall_seconds=time.perf_counter() - started,
            encoder=worker.encoder,
        )
        return report, count


def _lancedb() -> Any:
    with needs_extra("search", "search"):
        import lancedb
    return lancedb


def _write_description(out: Path, worker: FeatureWorker, spread: float | None) -> None:
    values = {"encoder": worker.encoder, "spread": spread, "settings": worker.settings}
    atomic_write(out / DESCRIPTION_FILE, json.dumps(values, indent=1) + "\n")


def _describe(out: Path) -> dict[str, Any]:
    """What a database says of itself; UserError: it is none, or damaged."""
    described = out / DESCRIPTION_FILE
    if not described.is_file():
        raise UserError(
            f"{out}: no database of moments; make one with `vjepa search index VIDEOS --out "
            f"{shlex.quote(str(out))}`"
        )
    again = "make the database anew elsewhere"
    values = read_json(described, again)
    if not values.keys() >= {"settings", "encoder", "spread"}:
        raise UserError(f"{described}: is damaged; {again}")
    return values


def _open_table(out: Path, width: int | None = None) -> Any:
    """The table of a database; made, for vectors of this width, if it is not there."""
    import pyarrow as pa

    database = _lancedb().connect(out.absolute())
    schema = width and pa.schema(
        [
            ("path", pa.string()),
            ("origin", pa.string()),  # hash of what the row was made from
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("first_frame", pa.int64()),
            ("last_frame", pa.int64()),
            ("vector", pa.list_(pa.float32(), width)),
        ]
    )
    try:
        if schema:
            return database.create_table(_TABLE, schema=schema, exist_ok=True)
        return database.open_table(_TABLE)
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            f"{out}: its table of moments cannot be opened ({reason}); make the database anew"
        ) from error


def origin_hash(worker: FeatureWorker, info: VideoInfo) -> str:
    """Of all that the moments of a file as it is now are made from."""
    text = json.dumps(worker.origin(info), sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def _pooled(
    look: Look | DecodeError, parts: Iterator[Part], path: str
) -> tuple[Look, NDArray[np.float32], NDArray[np.float64]]:
    """Tokens [t, D] and times [t] of a file; DecodeError: it fails or is too short."""
    if isinstance(look, DecodeError):
        raise look
    tokens, times = tokens_and_times(parts)
    plan = look.plan
    if look.info.kind != "image" and plan.num_tubelets < _FEWEST * plan.window_tubelets:
        has, of = (n * plan.tubelet_size for n in (plan.num_tubelets, plan.window_tubelets))
        has = min(has, look.info.num_frames)
        raise DecodeError(path, f"too short: gives {has} of the {of} frames of a moment; give more")
    return look, tokens.numpy(), times


def _span(
    look: Look, times: NDArray[np.float64], first: int, end: int
) -> tuple[float, float, int, int]:
    """Of some tubelets: when their first frame is shown and their last one ends; both numbers."""
    size, numbers = look.plan.tubelet_size, look.plan.frame_numbers
    frame = float(times[1] - times[0]) / size if len(times) > 1 else 0.0
    begin = max(0.0, float(times[first]) - frame * (size - 1) / 2)
    # A slow source shows one frame for several of a clip.
    shown = 0.0 if look.info.kind == "image" else max(frame, 1 / look.info.fps)
    until = float(times[end - 1]) + frame * (size - 1) / 2 + shown
    return begin, until, int(numbers[first, 0]), int(numbers[end - 1, -1])


def _rows(
    look: Look | DecodeError, parts: Iterator[Part], info: VideoInfo, origin: str
) -> list[dict[str, Any]]:
    look, tokens, times = _pooled(look, parts, info.path)
    plan, rows = look.plan, []
    for start in plan.starts:
        end = min(start + plan.window_tubelets, plan.num_tubelets)
        place = (info.path, *_span(look, times, start, end), origin)
        vector = tokens[start:end].mean(axis=0)
        rows.append({**dict(zip(_PLACE, place, strict=True)), "vector": vector})
    return rows


def _finish(out: Path, table: Any, worker: FeatureWorker) -> int:
    """Tidy the table, index it if it is large, and measure how far apart moments are."""
    count = table.count_rows()
    total, squares = np.zeros(worker.width), 0.0
    for vectors, _ in _vectors(table):
        wide = vectors.astype(np.float64)
        total += wide.sum(axis=0)
        squares += float((wide**2).sum())
    spread = 2 * (squares / count - float(((total / count) ** 2).sum())) if count else None
    if spread is not None and spread < 1e-9 * squares / count:  # no more than rounding
        spread = 0.0
    if count >= APPROXIMATE_FROM and not table.list_indices():
        _LOGGER.info("building an index of %d moments ...", count)
        build_index(table)
    table.optimize(cleanup_older_than=timedelta(hours=1))  # a query may still read older ones
    _write_description(out, worker, spread)
    return count


def build_index(table: Any) -> None:
    """Let a table of many moments be searched through an index (IVF with product codes)."""
    from lancedb.index import IvfPq

    table.create_index("vector", config=IvfPq(distance_type="l2"))


def _vectors(table: Any) -> Iterator[tuple[NDArray[np.float32], list[dict[str, Any]]]]:
    """All moments in parts: vectors [n, D] and where they are."""
    for batch in table.search().select([*_PLACE, "vector"]).to_batches():
        if len(batch):
            flat = batch["vector"].flatten().to_numpy(zero_copy_only=False)
            yield flat.reshape(len(batch), -1), batch.select(list(_PLACE)).to_pylist()


def nearest_rows(
    table: Any, vector: NDArray[np.float32], count: int, *, exact: bool = False
) -> list[dict[str, Any]]:
    """The moments nearest to a vector, nearest first, with `_distance` (squared).

    `exact` looks at every one, also where there is an index.
    """
    asked = table.search(vector).distance_type("l2").limit(count).select([*_PLACE, "_distance"])
    if exact:
        asked = asked.bypass_vector_index()
    elif table.list_indices():
        asked = asked.nprobes(_PROBES).refine_factor(_REFINED)
    return asked.to_list()


class Database:
    """An open database: by which `encoder`, in words; `spread` is the moments' mean distance²."""

    def __init__(self, folder: str | Path) -> None:
        """Open it; UserError: none there, half-made, empty, damaged, or all moments the same."""
        described = _describe(folder := as_path(folder))
        self.folder, self.encoder = folder, str(described["encoder"])
        self._settings = described["settings"]
        again = "run the same `vjepa search index` again"
        if described["spread"] is None:
            raise UserError(f"{folder}: is empty or half-made; {again}, which goes on")
        self.spread = float(described["spread"])
        if self.spread < 1e-12:
            raise UserError(
                f"{folder}: all its moments are the same, so that none is more alike than others; "
                "add videos to it with `vjepa search index`"
            )
        self.table = _open_table(folder)

    def worker(self, encoder: Path | None = None) -> FeatureWorker:
        """Its encoder, loaded; `encoder` says where it lies now. UserError: it is another."""
        config = stored_config(SearchConfig, self.folder, encoder)
        worker = FeatureWorker(replace(config, readers=0).for_features(), self.folder)
        worker.require_same(self.folder, self._settings, "moments")
        return worker

    def query(
        self,
        example: NDArray[np.float32],
        count: int,
        beside: Moment | None = None,
        *,
        exact: bool = False,
    ) -> list[Moment]:
        """The moments most alike to a vector [D]: of those that overlap, the most alike one.

        What overlaps `beside`, the example itself, is left out; `exact` as in `nearest_rows`.
        """
        total, asked = self.table.count_rows(), 8 * count
        while True:
            found: list[Moment] = []
            for row in nearest_rows(self.table, example, asked, exact=exact):
                alike = 1.0 - row["_distance"] / self.spread
                moment = Moment(**{name: row[name] for name in _PLACE}, alike=alike)
                others = [*found, beside] if beside else found
                if not any(_overlap(moment, other) for other in others):
                    found.append(moment)
            if len(found) >= count or asked >= total:
                return found[:count]
            asked = min(total, 4 * asked)

    def moments(self, most: int) -> tuple[NDArray[np.float32], list[Moment]]:
        """Vectors [n, D] and places of at most so many moments, evenly spread."""
        step = -(-self.table.count_rows() // most)
        vectors, moments, seen = [], [], 0
        for part, places in _vectors(self.table):
            chosen = range(-seen % step, len(places), step)
            vectors.append(part[chosen.start :: step])
            moments += [Moment(**places[number], alike=1.0) for number in chosen]
            seen += len(places)
        return np.concatenate(vectors), moments


def warn_of_changed(paths: Iterable[str]) -> None:
    """Name files that are not as they were when they were looked at, but for those that are gone.

    Of these it is said that they are not shown.
    """
    for path in sorted(path for path in set(paths) if not is_gone(path)):
        _LOGGER.warning("%s: has changed since it was looked at; give that command again", path)


def _overlap(one: Moment, other: Moment) -> bool:
    if one.path != other.path:
        return False
    return max(one.start, other.start) < min(one.end, other.end) or one.start == other.start


def encode_example(
    worker: FeatureWorker, path: Path, start: float | None = None, end: float | None = None
) -> tuple[NDArray[np.float32], Moment]:
    """One vector [D] for a video, a part of it (in seconds), or an image, and its place.

    Raises:
        UserError: It cannot be read, or is too short.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; name a video or an image")
    if not is_media(str(path)) and not path.is_dir():
        raise UserError(f"{path}: is no video or image; name one")
    info = inspect_file(str(path.absolute()))
    between = None
    if start is not None or end is not None:
        between = (start or 0.0, info.duration_seconds if end is None else end)
        if info.kind == "image":
            raise UserError(f"{path}: is a still image: leave out --start and --end")
        if info.ok and not 0 <= between[0] < min(between[1], info.duration_seconds):
            behind = "" if end is None else f"--end {end:g} and "
            raise UserError(
                f"{path}: lasts {info.duration_seconds:g} s: --start {between[0]:g} must be from 0 "
                f"on and before {behind}its end"
            )
    _, look, parts = next(worker.read([info], between))
    look, tokens, times = _pooled(look, parts, str(path))
    place = Moment(info.path, *_span(look, times, 0, len(times)), 1.0)
    return tokens.mean(axis=0), place
