"""Frozen features of any files on disk: what `vjepa features` does."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, overload

from pydantic import Field, TypeAdapter

from vjepa.config import RESOLVED_CONFIG_FILE, config_dataclass, from_dict, load_config, to_dict
from vjepa.data.clips.windows import Look, Pool
from vjepa.data.manifest.storage import absolute
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError
from vjepa.evaluation.export import (
    FeatureTable,
    Origin,
    StoredType,
    meta_of,
    origin_of,
    read_features,
    read_rows,
    sources_of_table,
    write_features,
)
from vjepa.evaluation.frozen import settings_hash
from vjepa.evaluation.preprocess import preprocess_of, with_assumed_spacing
from vjepa.evaluation.video_features import (
    FileEncodingConfig,
    FileFeatures,
    Part,
    encode_files,
    fitted_to,
    look_of,
    tokens_and_times,
)
from vjepa.jobs.probe.config import EncoderSourceConfig
from vjepa.jobs.probe.encoder import (
    compile_encoder,
    fit_to_clips,
    open_encoder,
)
from vjepa.jobs.videos import files_of, gone_from, is_gone
from vjepa.paths import as_path, as_paths
from vjepa.runtime.device import DeviceName, set_up_device
from vjepa.runtime.files import (
    atomic_write,
    begin_folder,
    claimed_folder,
    read_json,
    read_json_lines,
)
from vjepa.runtime.process import prevent_openmp_spinning, set_num_threads
from vjepa.runtime.progress import Progress
from vjepa.runtime.ray_engine import EngineName, ray_map


@config_dataclass
class FilesConfig(FileEncodingConfig):
    """What `vjepa features` and `vjepa search index` need to know of their files and encoder."""

    encoder: EncoderSourceConfig = field(default_factory=EncoderSourceConfig)
    """The frozen encoder."""
    readers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode; 0 decodes in this process, without a watchdog for files that hang."""
    device: DeviceName = "auto"
    """Where the encoder runs; `auto` takes a GPU when there is one."""
    num_threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of torch; null: torch's choice."""
    drop: bool = False
    """Take out what was made of files that none of the sources names, such as rows taken off a
    manifest; else only of those that are gone from a folder that is named."""


@config_dataclass
class FeaturesConfig(FilesConfig):
    """Everything that `vjepa features` needs to know."""

    pool: Pool = "none"
    """`none`: every token, [t, h, w, D]; `space`: a row for each tubelet, [t, D]; `video`: one for
    each file, [D]. Means over tokens."""
    format: Literal["safetensors", "npz", "parquet"] = "safetensors"
    """One `safetensors` or `npz` file for each source; `parquet`: a folder of parts, pooled rows
    only, which other tools read as one table."""
    stored: StoredType = "float32"
    """Type of the stored numbers; `float16` takes half the space."""
    compile: bool = False
    """Compile the encoder's blocks; the first minute is slow, the rest faster on a GPU."""
    engine: EngineName = "local"
    """`local`: this process; `ray`: workers of a Ray cluster, or of a Ray started on this machine
    (needs the extra `ray`)."""
    ray_workers: Annotated[int, Field(ge=1)] = 2
    """Processes of `engine: ray`, each with its own encoder; on GPUs each takes one."""

    def __post_init__(self) -> None:
        if self.engine == "local" and self.ray_workers != FeaturesConfig.ray_workers:
            raise ValueError("ray_workers: is for engine ray; readers are its processes otherwise")
        if self.format == "parquet" and self.pool == "none":
            raise ValueError(
                "format: a table holds pooled rows; choose pool: space or video, or format: "
                "safetensors or npz for every token"
            )


_LONG = 100
"""Of a file with so many windows it is shown how far it is: an hour of film is one file."""
_FILES_AT_ONCE = 16
"""Files handed to a worker in one piece: few enough to share evenly, enough to fill batches."""

_LONGEST_NAME = 220
"""Bytes of 255 that systems take."""

INDEX_FILE = "index.jsonl"
NOT_YET = "not encoded yet"
"""Why a source has no features whose run has not come to it, or was stopped before."""
SETTINGS_FILE = "features.json"
TABLE_FOLDER = "table"


@dataclass(frozen=True)
class FileRecord:
    """One line of ``index.jsonl``; every source has one from the start of a run.

    Attributes:
        file: Where its features lie, relative to the folder; None for a table and for failures.
        grid: Tokens (t, h, w) before pooling; None for failures.
        seconds: Length of the source in seconds; 0 for a still image.
        failure: Why it has no features, or None.
    """

    path: str
    file: str | None
    grid: tuple[int, int, int] | None
    seconds: float
    failure: str | None


@dataclass(frozen=True)
class FilesReport:
    """What a run over files has done: files encoded, found there already, without a result and why.

    `dropped` are those taken out, `others` those that stay and that no source named. `pieces` are
    the windows of files, or the moments in them. `encoder` says which it was: file, weights and
    hash, or untrained. `source_seconds` is the length of the encoded sources, `wall_seconds`
    includes loading.
    """

    encoded: int
    kept: int
    dropped: int
    others: int
    failed: tuple[tuple[str, str], ...]
    pieces: int
    source_seconds: float
    wall_seconds: float
    encoder: str

    def lines(self, made: str, pieces: str, not_usable: str) -> list[str]:
        """All of it in words: `made` of the `pieces` of files, or not, as they are `not_usable`."""
        lines = [f"encoder: {self.encoder}"]
        lines += [f"no {made}: {path}: {reason}" for path, reason in self.failed]
        others = "of other sources stay (--drop true takes them out)"
        counts = (self.kept, "there already"), (self.dropped, "dropped"), (self.others, others)
        counts = (*counts, (len(self.failed), not_usable))
        parts = [f"{self.encoded} file{'s' * (self.encoded != 1)} encoded"]
        parts += [f"{count} {what}" for count, what in counts if count]
        line = ", ".join(parts)
        if self.pieces:
            line += (
                f"; {self.source_seconds:.1f} s of video in {self.wall_seconds:.1f} s: "
                f"{self.pieces / self.wall_seconds:.2f} {pieces}/s"
            )
        return [*lines, line]


_File = tuple[VideoInfo, str | None]
"""A source, and where its features go relative to the folder; None for a table."""
_Done = tuple["FileRecord", int]
"""The record of a source that is done, and the windows that it took."""


def run(
    config: FeaturesConfig, sources: Sequence[str | Path], out: str | Path, split: str | None = None
) -> FilesReport:
    """Write the features of every file of the sources; what is there already is kept.

    Files that lay below one of the folders and are gone are dropped, with `config.drop` all that
    no source names.
    Sources are videos, images, folders, lists of files, or Parquet manifests, of which `split`
    takes only that split.
    """
    config, sources, out = from_dict(FeaturesConfig, config), as_paths(sources), as_path(out)
    with claimed_folder(out, "features"):
        set_num_threads(config.num_threads)
        worker = FeatureWorker(config, out)
        config, infos = worker.config, files_of(sources, split)
        described = out / SETTINGS_FILE
        if described.exists():
            old = read_json(described, "give another --out")
            worker.require_same(out, old, "features", format=config.format)
        else:
            begin_folder(out, "features", config)
            values = {"format": config.format, **worker.settings}
            atomic_write(described, json.dumps(values, indent=1, sort_keys=True) + "\n")
        known = read_index(out)
        unnamed = known.keys() - {info.path for info in infos}
        # What a stopped run had not come to, and is gone since, would be waited for for ever.
        waiting = {path for path in unnamed if known[path].failure == NOT_YET and is_gone(path)}
        gone = unnamed if config.drop else waiting | gone_from(sources, unnamed)
        for path in gone:
            if file := known.pop(path).file:
                (out / file).unlink(missing_ok=True)
        names = file_names([info.path for info in infos], config.format, known)
        started = time.perf_counter()
        files = list(zip(infos, names, strict=True))
        todo: list[_File] = []
        for info, name in files:
            before = known.get(info.path)
            if not worker.is_done(info, name):
                todo.append((info, name))
                known[info.path] = FileRecord(info.path, name, None, _seconds(info), NOT_YET)
            elif before is None or before.failure is not None:  # a killed run had come to it
                grid = worker.grid_of(info)
                known[info.path] = FileRecord(info.path, name, grid, _seconds(info), None)
        worker.forget_rows(gone | {info.path for info, _ in todo})
        _write_index(out, known)
        kept, windows = len(files) - len(todo), 0
        encoded: list[FileRecord] = []
        try:
            with Progress("features", len(files), kept) as progress:
                on_ray = functools.partial(_encode_on_ray, config, out)
                here = functools.partial(worker.encode, progress=progress)
                for record, took in (on_ray if config.engine == "ray" else here)(todo):
                    encoded.append(record)
                    known[record.path] = record
                    windows += took
                    rate = windows / (time.perf_counter() - started)
                    progress.update(kept + len(encoded), f"{rate:.2f} windows/s")
        finally:
            worker.flush()
            _write_index(out, known)
        good = [record for record in encoded if record.failure is None]
        return FilesReport(
            encoded=len(good),
            kept=kept,
            dropped=len(gone),
            others=len(unnamed) - len(gone),
            failed=tuple((one.path, one.failure) for one in encoded if one.failure is not None),
            pieces=windows,
            source_seconds=sum(record.seconds for record in good),
            wall_seconds=time.perf_counter() - started,
            encoder=worker.encoder,
        )


class FeatureWorker:
    """Encodes files with one encoder and writes what comes out.

    `settings` is everything that the numbers depend on besides the files, as plain values;
    `encoder` says which it is, `width` how long its vectors are, `config` what is done, with the
    spacing of frames that is meant, `window_steps` how many tokens a window has in time.
    """

    def __init__(self, config: FeaturesConfig, out: Path, name: str = "") -> None:
        """Load the encoder; `name` is that of this worker among several, for a table's parts."""
        frozen = open_encoder(config.encoder)
        if not (config.window.stride or config.window.fps):
            frozen = with_assumed_spacing(frozen, config.encoder.path)
        sizes = frozen.identity.config
        own = preprocess_of(config.encoder.path, sizes).clip
        config = replace(config, window=config.window.spaced_as(own))
        config = fitted_to(frozen.encoder, config, frozen.identity.source)
        self.config, self._out, self._name = config, out, name
        num_frames = config.window.num_frames or sizes.num_frames
        self.window_steps = num_frames // sizes.tubelet_size
        image_size = config.framing.size or sizes.image_size
        self._frozen = fit_to_clips(frozen, config.encoder, num_frames, image_size)
        self.settings = {
            "weights_hash": self._frozen.identity.weights_hash,
            "encoder": self._frozen.identity.settings,
            "window": to_dict(config.window),
            "framing": to_dict(config.framing),
            "pool": config.pool,
            "stored": config.stored,
            "precision": config.precision,
        }
        self.encoder, self.width = self._frozen.identity.sentence, sizes.width
        self._digest = settings_hash(self.settings)
        # Frames of a variable rate were chosen by their mean rate before.
        self._digest_by_times = settings_hash(self.settings | {"frames": "by their times"})
        self._device = set_up_device(config.device, config.precision).device

    def require_same(self, folder: Path, old: Mapping[str, Any], what: str, **more: object) -> None:
        """Refuse a folder of `what` with other settings (and `more`), which cannot be mixed.

        Raises:
            UserError: With the names of what differs.
        """
        now = json.loads(json.dumps(more | self.settings))
        if other := [name for name, value in now.items() if old.get(name) != value]:
            raise UserError(
                f"{folder}: holds {what} of other weights or settings ({', '.join(other)}: see its "
                f".json file) than {self.encoder}; give those again, or another folder"
            )

    @functools.cached_property
    def _table(self) -> FeatureTable:
        return FeatureTable(self._out / TABLE_FOLDER, self.config.stored, self._name)

    def is_done(self, info: VideoInfo, name: str | None) -> bool:
        """Whether the features of a file are there, whole, and made from it as it is now."""
        origin = self.origin(info)
        if name is None:
            return self._table.holds(origin)
        return meta_of(self._out / name, origin) is not None

    def origin(self, info: VideoInfo) -> Origin:
        """What the features of a file as it is now are made from."""
        by_times = self.config.window.fps and info.kind == "video" and not info.constant_rate
        return origin_of(info, self._digest_by_times if by_times else self._digest)

    def grid_of(self, info: VideoInfo) -> tuple[int, int, int]:
        """Tokens (t, h, w) of a file before pooling."""
        return look_of(info, self.config, self._frozen.identity.config).grid

    def read(
        self,
        infos: Sequence[VideoInfo],
        between: tuple[float, float] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, Look | DecodeError, Iterator[Part]]]:
        """Encode files and write nothing, as :func:`encode_files`; of long ones say how far."""
        encoder = self._frozen.encoder.to(self._device)
        if self.config.compile:
            compile_encoder(encoder)
        for index, look, parts in encode_files(
            encoder, infos, self.config, pool=self.config.pool, between=between
        ):
            if progress and not isinstance(look, DecodeError) and len(look.plan.starts) >= _LONG:
                parts = _told(parts, look, progress)
            yield index, look, parts

    def encode(self, files: Sequence[_File], progress: Progress | None = None) -> Iterator[_Done]:
        """Encode files and write their features; those of a table may still wait."""
        write = functools.partial(
            write_features, pool=self.config.pool, width=self.width, stored=self.config.stored
        )
        for index, look, parts in self.read([info for info, _ in files], progress=progress):
            info, name = files[index]
            origin = self.origin(info)
            try:
                if isinstance(look, DecodeError):
                    raise look
                if name is None:
                    self._table.add(look, origin, parts)
                else:
                    write(self._out / name, look, origin, parts)
            except DecodeError as error:
                if name is not None:  # of what the file held before
                    (self._out / name).unlink(missing_ok=True)
                yield FileRecord(info.path, None, None, _seconds(info), error.reason), 0
            else:
                record = FileRecord(info.path, name, look.grid, _seconds(info), None)
                yield record, len(look.plan.starts)

    def look_into(self, path: str) -> FileFeatures:
        """The features of one file in memory; nothing is written. UserError: it cannot be read."""
        _, look, parts = next(self.read([inspect_file(path)]))
        if isinstance(look, DecodeError):
            raise look
        with Progress("windows", len(look.plan.starts)) as progress:
            seen = (progress.update(n) or part for n, part in enumerate(parts, start=1))
            tokens, times = tokens_and_times(seen)
        return FileFeatures(tokens, times, look.plan.frame_numbers, look.grid, look.box, path)

    def forget_rows(self, paths: Set[str]) -> None:
        """Take what a table holds of these files out of it."""
        if self.config.format == "parquet":
            self._table.drop(paths)

    def flush(self) -> None:
        """Write table rows that wait."""
        if self.config.format == "parquet":
            self._table.flush()


def _told(parts: Iterator[Part], look: Look, progress: Progress) -> Iterator[Part]:
    total, name = len(look.plan.starts), Path(look.info.path).name
    for number, part in enumerate(parts, start=1):
        progress.update(None, f"{number} of {total} windows of {name}")
        yield part


def _seconds(info: VideoInfo) -> float:
    return 0.0 if info.kind == "image" else info.duration_seconds


def _encode_on_ray(config: FeaturesConfig, out: Path, files: Sequence[_File]) -> Iterator[_Done]:
    """Encode files on Ray, in any order; every machine must see `out` under its path."""
    size = max(1, min(_FILES_AT_ONCE, -(-len(files) // config.ray_workers)))
    chunks = [files[start : start + size] for start in range(0, len(files), size)]
    make_task = functools.partial(_ray_task, config, out.absolute())
    for chunk, outcome in ray_map(make_task, chunks, config.ray_workers, config.device != "cpu"):
        if outcome.kind != "done":
            paths = ", ".join(info.path for info, _ in chunk)
            raise UserError(
                f"engine ray: {outcome.reason}, while at these files: {paths}; what is done is "
                "kept: take out the file that they die of, or use --engine local"
            )
        yield from outcome.value


def _ray_task(
    config: FeaturesConfig, out: Path, number: int
) -> Callable[[Sequence[_File]], list[_Done]]:
    """What a Ray worker does with some files, with its own encoder."""
    prevent_openmp_spinning()
    set_num_threads(config.num_threads or 1)
    worker = FeatureWorker(config, out, f"{number:02d}-")

    def encode(files: Sequence[_File]) -> list[_Done]:
        done = list(worker.encode(files))
        worker.flush()
        return done

    return encode


def file_names(
    paths: Sequence[str], kind: str, known: Mapping[str, FileRecord]
) -> list[str | None]:
    """Where the features of each source go, relative to the folder; None for a table.

    Where an earlier run has put them (`known`, by path); else the source's own path below what all
    new sources share, with its suffix, and numbered where that name is taken; one that leaves no
    room for what is added to it is cut. `paths` are absolute or addresses, each once.
    """
    if kind == "parquet":
        return [None] * len(paths)
    old = {
        path: file
        for path, record in known.items()
        if (file := record.file) is not None
        and (record.failure is None or _fitting(Path(file).name) == Path(file).name)
    }
    taken = set(old.values())
    new = [path for path in paths if path not in old]
    parts = {path: Path(path.replace("://", "/").lstrip("/")).parts for path in new}
    shared = len(os.path.commonprefix([parts[path][:-1] for path in new]))  # noqa: RUF071
    for path in new:
        *folders, last = parts[path][shared:]
        stem, number = "/".join([*folders, _fitting(last)]), 1
        name = f"{stem}.{kind}"
        while name in taken:
            number += 1
            name = f"{stem}.{number}.{kind}"
        old[path] = name
        taken.add(name)
    return [old[path] for path in paths]


def _fitting(name: str) -> str:
    """A name that a suffix, and while it is written a process and `partial`, can be added to."""
    text = os.fsencode(name)
    if len(text) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(text).hexdigest()[:16]
    return f"{text[: _LONGEST_NAME - 17].decode(errors='ignore')}.{digest}"


def read_index(out: Path) -> dict[str, FileRecord]:
    """The records of earlier runs in a folder of features, by the path of their source."""
    index = out / INDEX_FILE
    if not index.exists():
        return {}
    try:
        read = TypeAdapter(FileRecord).validate_python
        records = [read(fields) for _, fields in read_json_lines(index)]
    except ValueError as error:
        raise UserError(f"{index}: damaged ({error}); delete it") from error
    return {record.path: record for record in records}


def _write_index(out: Path, records: Mapping[str, FileRecord]) -> None:
    lines = (json.dumps(asdict(record)) + "\n" for record in records.values())
    atomic_write(out / INDEX_FILE, "".join(lines))


class SavedFeatures(Sequence[FileFeatures]):
    """What `vjepa features` wrote: a sequence of each file's tokens, times and path.

    Nothing but the list of files is read until a file is asked for, by number or by path, which may
    be relative; ``path in saved`` says whether it has features.

    Attributes:
        paths: Of the files that have features, in order.
        failures: Why the others have none, by path.
        settings: What the features were made with, as plain values.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], records: Sequence[FileRecord]
    ) -> None:
        self._folder, self.settings = folder, settings
        self._records = {record.path: record for record in records if record.failure is None}
        self.paths = tuple(self._records)
        self.failures = {one.path: one.failure for one in records if one.failure is not None}

    @functools.cached_property
    def _parts(self) -> dict[str, Path]:
        return sources_of_table(self._folder / TABLE_FOLDER)

    def is_current(self, path: str, worker: FeatureWorker) -> bool:
        """Whether the features of a file are what a worker would make of it as it is now."""
        return worker.is_done(inspect_file(path), self._records[path].file)

    def __len__(self) -> int:
        return len(self.paths)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, (str, os.PathLike)) and self._named(path) in self._records

    def _named(self, path: str | os.PathLike[str]) -> str:
        return str(path) if str(path) in self._records else absolute(path)

    @overload
    def __getitem__(self, index: int | str | os.PathLike[str]) -> FileFeatures: ...

    @overload
    def __getitem__(self, index: slice) -> list[FileFeatures]: ...

    def __getitem__(
        self, index: int | str | os.PathLike[str] | slice
    ) -> FileFeatures | list[FileFeatures]:
        """Read one file's features; UserError if they are missing or not whole."""
        if isinstance(index, slice):
            return [self[path] for path in self.paths[index]]
        is_path = isinstance(index, (str, os.PathLike))
        path = self._named(index) if is_path else self.paths[operator.index(index)]
        record = self._records.get(path)
        if record is None:
            raise UserError(
                f"{self._folder}: has no features of {path} "
                f"({self.failures.get(path, 'it is not in the list')}); .paths names those it has"
            )
        if record.file is not None:
            return read_features(self._folder / record.file)
        if path not in self._parts or record.grid is None:
            raise UserError(f"{self._folder}: the table has no rows of {path}; {_AGAIN}")
        return read_rows(self._parts[path], path, record.grid, self.settings["pool"])


_AGAIN = "run the same `vjepa features` again, which goes on where it stopped"


def stored_config(cls: type[Any], folder: Path, encoder: Path | None) -> Any:
    """The config, of class `cls`, that made a folder; `encoder`: where its weights lie now."""
    config = load_config(cls, [folder / RESOLVED_CONFIG_FILE])
    if encoder is None:
        return config
    name = "path" if config.encoder.timm is None else "timm_weights"
    return load_config(cls, [folder / RESOLVED_CONFIG_FILE], {f"encoder.{name}": encoder})


def load_features(folder: str | Path) -> SavedFeatures:
    """What `vjepa features` wrote in a folder, to be read file by file.

    ``found = load_features("features")``; ``found[0].tokens``, ``found[0].times``, ``found.paths``.

    Raises:
        UserError: No such folder, or its run has not come to the end.
    """
    folder = as_path(folder)
    described = folder / SETTINGS_FILE
    if not described.is_file():
        raise UserError(
            f"{folder}: not a folder of features: {SETTINGS_FILE} is missing; give the --out of "
            "`vjepa features`"
        )
    records = list(read_index(folder).values())
    waiting = sum(record.failure == NOT_YET for record in records)
    if waiting or not records:
        raise UserError(
            f"{folder}: half-written: {waiting or 'all'} of its {len(records) or ''} files are "
            f"not encoded yet; {_AGAIN}"
        )
    return SavedFeatures(folder, read_json(described, "make the features anew"), records)
