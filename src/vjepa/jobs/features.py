"""Frozen features of any files on disk: what `vjepa features` does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from vjepa.config import config_dataclass, dump_yaml, to_dict
from vjepa.data.clips.windows import FramingConfig, Look, Pool, WindowConfig
from vjepa.data.video.info import VideoInfo
from vjepa.errors import UserError
from vjepa.evaluation.export import (
    FeatureFileWriter,
    FeatureTable,
    FileOrigin,
    StoredType,
    is_written,
    metadata,
    tokens_shape,
)
from vjepa.evaluation.frozen import settings_hash
from vjepa.evaluation.video_features import FeatureSink, FileEncoding, encode_files
from vjepa.jobs.probe.config import EncoderSourceConfig
from vjepa.jobs.probe.encoder import FrozenEncoder, compile_encoder, fit_to_clips, open_encoder
from vjepa.jobs.show import files_of
from vjepa.runtime.device import DeviceName, Precision, set_up_device
from vjepa.runtime.process import prevent_openmp_spinning, set_num_threads
from vjepa.runtime.progress import open_progress
from vjepa.runtime.ray_engine import EngineName, ray_map


@config_dataclass
class FeaturesConfig:
    """Everything that `vjepa features` needs to know."""

    encoder: EncoderSourceConfig = field(default_factory=EncoderSourceConfig)
    """The frozen encoder."""
    window: WindowConfig = field(default_factory=WindowConfig)
    """Which frames, in which windows."""
    framing: FramingConfig = field(default_factory=FramingConfig)
    """Which part of the frames."""
    pool: Pool = "none"
    """`none`: every token, [t, h, w, D]; `space`: a row for each tubelet, [t, D]; `video`: one for
    each file, [D]. Means over tokens."""
    format: Literal["safetensors", "npz", "parquet"] = "safetensors"
    """One `safetensors` or `npz` file for each source; `parquet`: a folder of parts, pooled rows
    only, which other tools read as one table."""
    stored: StoredType = "float32"
    """Type of the stored numbers; `float16` takes half the space."""
    precision: Precision = "float32"
    """Of the encoder's computation."""
    batch_size: int = 8
    """Windows per call of the encoder."""
    readers: int = 2
    """Processes that decode; 0 decodes in this process, without a watchdog for files that hang."""
    timeout_seconds: float = 60.0
    """A file that keeps a reader for longer, at some windows, is given up and the reader killed."""
    compile: bool = False
    """Compile the encoder's blocks; the first minute is slow, the rest faster on a GPU."""
    device: DeviceName = "auto"
    """Where the encoder runs; `auto` takes a GPU when there is one."""
    num_threads: int | None = None
    """CPU threads of torch; null: torch's choice."""
    engine: EngineName = "local"
    """`local`: this process; `ray`: workers of a Ray cluster, or of a Ray started on this machine
    (needs the extra `ray`)."""
    ray_workers: int = 2
    """Processes of `engine: ray`, each with its own encoder; on GPUs each takes one."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "ray_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.readers < 0:
            raise ValueError(f"readers: must not be negative, got {self.readers}")
        if not self.timeout_seconds > 0:
            raise ValueError(f"timeout_seconds: must be above 0, got {self.timeout_seconds}")
        if self.format == "parquet" and self.pool == "none":
            raise ValueError(
                "format: a table holds pooled rows; choose pool: space or video, or format: "
                "safetensors or npz for every token"
            )


_Chunk = list[tuple[int, VideoInfo, str | None]]

_FILES_AT_ONCE = 16
"""Files handed to a worker in one piece: few enough to share evenly, enough to fill batches."""


def encode_on_ray(
    config: FeaturesConfig,
    out: Path,
    infos: Sequence[VideoInfo],
    names: Sequence[str | None],
    todo: Sequence[int],
) -> Iterator[EncodedFile]:
    """Encode files on Ray; as :meth:`vjepa.jobs.features.FeatureWorker.encode`, in any order.

    Args:
        config: The job.
        out: Folder of the features; every machine must see it under this path.
        infos, names: All files and where their features go.
        todo: Places among them to encode.

    Yields:
        What was done, as it comes.

    Raises:
        UserError: Ray is not installed, or its workers die of some files.
    """
    size = max(1, min(_FILES_AT_ONCE, -(-len(todo) // config.ray_workers)))
    chunks = [
        [(place, infos[place], names[place]) for place in todo[start : start + size]]
        for start in range(0, len(todo), size)
    ]
    make_task = partial(_encoder_of_chunks, config, out.absolute())
    for chunk, outcome in ray_map(
        make_task, chunks, config.ray_workers, use_gpus=config.device != "cpu"
    ):
        if outcome.kind != "done":
            paths = ", ".join(info.path for _, info, _ in chunk)
            raise UserError(
                f"engine ray: {outcome.reason}, while at these files: {paths}; what is done is "
                "kept: take out the file that they die of, or use --engine local"
            )
        yield from outcome.value


def _encoder_of_chunks(
    config: FeaturesConfig, out: Path, number: int
) -> Callable[[_Chunk], list[EncodedFile]]:
    """What a Ray worker does: encode some files with an encoder of its own."""
    prevent_openmp_spinning()
    set_num_threads(config.num_threads or 1)
    worker = FeatureWorker(config, out, f"{number:02d}-")

    def encode(chunk: _Chunk) -> list[EncodedFile]:
        places, infos, names = zip(*chunk, strict=True)
        done = list(worker.encode(infos, names, range(len(chunk))))
        worker.flush()
        return [replace(found, place=places[found.place]) for found in done]

    return encode


INDEX_FILE = "index.jsonl"
SETTINGS_FILE = "features.json"
CONFIG_FILE = "config.yaml"
TABLE_FOLDER = "table"


@dataclass(frozen=True)
class FileRecord:
    """One line of ``index.jsonl``.

    Attributes:
        path: The source.
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
class FeaturesReport:
    """What a run has done.

    Attributes:
        written: Files that were encoded.
        kept: Files whose features were there already.
        failed: Sources without features, with reasons.
        windows: Windows encoded.
        source_seconds: Length of the encoded sources in seconds.
        wall_seconds: Time that encoding took, loading included.
    """

    written: int
    kept: int
    failed: tuple[FileRecord, ...]
    windows: int
    source_seconds: float
    wall_seconds: float


def run(
    config: FeaturesConfig, sources: Sequence[Path], out: Path, split: str | None = None
) -> FeaturesReport:
    """Write the features of every file of the sources; what is there already is kept.

    Args:
        config: The job.
        sources: Videos, images, folders, lists of files, or Parquet manifests.
        out: Folder of the features.
        split: Only this split of the manifests among the sources.

    Returns:
        Counts, and the files that failed.

    Raises:
        UserError: No source, no encoder, or `out` holds features of other settings.
    """
    set_num_threads(config.num_threads)
    infos = files_of(sources, split)
    worker = FeatureWorker(config, out)
    _claim(out, config, worker.settings)
    known = read_index(out)
    names = file_names([info.path for info in infos], config.format, known)
    started = time.perf_counter()
    todo = [place for place, info in enumerate(infos) if not worker.is_done(info, names[place])]
    encoded: list[EncodedFile] = []
    try:
        with open_progress("features", len(infos), len(infos) - len(todo)) as progress:
            for file in _encoded(config, worker, out, infos, names, todo):
                encoded.append(file)
                known[file.record.path] = file.record
                rate = sum(one.windows for one in encoded) / (time.perf_counter() - started)
                progress.update(len(infos) - len(todo) + len(encoded), f"{rate:.2f} windows/s")
    finally:
        worker.flush()
        _write_index(out, known)
    good = [file.record for file in encoded if file.record.failure is None]
    return FeaturesReport(
        written=len(good),
        kept=len(infos) - len(todo),
        failed=tuple(file.record for file in encoded if file.record.failure is not None),
        windows=sum(file.windows for file in encoded),
        source_seconds=sum(record.seconds for record in good),
        wall_seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class EncodedFile:
    """A file that is done: its place among the sources, its record, the windows it took."""

    place: int
    record: FileRecord
    windows: int


def _encoded(
    config: FeaturesConfig,
    worker: FeatureWorker,
    out: Path,
    infos: Sequence[VideoInfo],
    names: Sequence[str | None],
    todo: Sequence[int],
) -> Iterator[EncodedFile]:
    if config.engine == "ray":
        yield from encode_on_ray(config, out, infos, names, todo)
    else:
        yield from worker.encode(infos, names, todo)


class FeatureWorker:
    """Encodes files with one encoder and writes what comes out."""

    def __init__(self, config: FeaturesConfig, out: Path, name: str = "") -> None:
        """Load the encoder.

        Args:
            config: The job.
            out: Folder of the features.
            name: Of this worker among several, for the parts of a table.

        Raises:
            UserError: No encoder can be loaded, or the device is not there.
        """
        self._config, self._out, self._name = config, out, name
        frozen = open_encoder(config.encoder)
        self._frozen = _fitted(frozen, config)
        self.settings = _settings(self._frozen, config)
        self._digest = settings_hash(self.settings)
        self._device = set_up_device(config.device, config.precision)
        self._table: FeatureTable | None = None

    def is_done(self, info: VideoInfo, name: str | None) -> bool:
        """Whether the features of a file are there, whole, and made from it as it is now."""
        origin = FileOrigin.of(info, self._digest)
        if name is None:
            return self._open_table().holds(origin)
        return is_written(self._out / name, origin)

    def encode(
        self, infos: Sequence[VideoInfo], names: Sequence[str | None], todo: Sequence[int]
    ) -> Iterator[EncodedFile]:
        """Encode the files at the places `todo`."""
        config = self._config
        encoder = self._frozen.encoder.to(self._device.device)
        if config.compile:
            compile_encoder(encoder)
        how = FileEncoding(
            window=config.window,
            framing=config.framing,
            pool=config.pool,
            device=self._device.device,
            precision=config.precision,
            batch_size=config.batch_size,
            readers=config.readers,
            timeout_seconds=config.timeout_seconds,
        )

        def open_sink(index: int, look: Look) -> FeatureSink:
            return self._sink(look, names[todo[index]])

        some = [infos[place] for place in todo]
        for outcome in encode_files(encoder, some, how, open_sink):
            place, look = todo[outcome.index], outcome.look
            info, failure = infos[place], outcome.failure
            file = None if failure else names[place]
            grid = None if failure or look is None else look.grid
            windows = 0 if failure or look is None else len(look.plan.starts)
            seconds = 0.0 if info.kind == "image" else info.duration_seconds
            record = FileRecord(info.path, file, grid, seconds, failure)
            yield EncodedFile(place, record, windows)

    def flush(self) -> None:
        """Write table rows that wait."""
        if self._table is not None:
            self._table.flush()

    def _sink(self, look: Look, name: str | None) -> FeatureSink:
        origin = FileOrigin.of(look.info, self._digest)
        if name is None:
            return self._open_table().sink(look, origin)
        width = self._frozen.identity.config.width
        return FeatureFileWriter(
            self._out / name,
            look,
            tokens_shape(look, self._config.pool, width),
            self._config.stored,
            metadata(look, origin),
        )

    def _open_table(self) -> FeatureTable:
        if self._table is None:
            self._table = FeatureTable(self._out / TABLE_FOLDER, self._config.stored, self._name)
        return self._table


def _fitted(frozen: FrozenEncoder, config: FeaturesConfig) -> FrozenEncoder:
    """The encoder with the position code that is wanted for these windows."""
    sizes = frozen.identity.config
    num_frames = config.window.num_frames or sizes.num_frames
    return fit_to_clips(frozen, config.encoder, num_frames, config.framing.size or sizes.image_size)


def _settings(frozen: FrozenEncoder, config: FeaturesConfig) -> dict[str, object]:
    """Everything that the numbers depend on besides the files."""
    return {
        "weights_hash": frozen.identity.weights_hash,
        "encoder": to_dict(frozen.identity.config),
        "window": to_dict(config.window),
        "framing": to_dict(config.framing),
        "pool": config.pool,
        "stored": config.stored,
        "precision": config.precision,
    }


def _claim(out: Path, config: FeaturesConfig, settings: dict[str, object]) -> None:
    """Make the folder, or find that it holds features of the same settings.

    Raises:
        UserError: It holds others.
    """
    described = out / SETTINGS_FILE
    text = json.dumps({"format": config.format, **settings}, indent=1, sort_keys=True) + "\n"
    if described.exists():
        if described.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{out}: holds features of other weights or settings (see {SETTINGS_FILE}); "
                "give another --out"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    described.write_text(text, encoding="utf-8")
    (out / CONFIG_FILE).write_text(dump_yaml(config), encoding="utf-8")


def file_names(
    paths: Sequence[str], kind: str, known: Mapping[str, FileRecord]
) -> list[str | None]:
    """Where the features of each source go, relative to the folder; None for a table.

    Where an earlier run has put them; else the source's own path below what all new sources share,
    with its suffix, and numbered where that name is taken.

    Args:
        paths: Absolute paths or addresses, each once.
        kind: The format.
        known: Records of earlier runs, by path.
    """
    if kind == "parquet":
        return [None] * len(paths)
    old = {path: record.file for path, record in known.items() if record.file is not None}
    taken = set(old.values())
    new = [path for path in paths if path not in old]
    parts = {path: Path(path.replace("://", "/").lstrip("/")).parts for path in new}
    shared = 0
    while new and all(
        len(parts[path]) > shared + 1 and parts[path][shared] == parts[new[0]][shared]
        for path in new
    ):
        shared += 1
    for path in new:
        stem, number = "/".join(parts[path][shared:]), 1
        name = f"{stem}.{kind}"
        while name in taken:
            number += 1
            name = f"{stem}.{number}.{kind}"
        old[path] = name
        taken.add(name)
    return [old[path] for path in paths]


def read_index(out: Path) -> dict[str, FileRecord]:
    """The records of earlier runs by the path of their source.

    Args:
        out: Folder of features.

    Raises:
        UserError: The list is damaged.
    """
    index = out / INDEX_FILE
    if not index.exists():
        return {}
    found = {}
    try:
        for line in index.read_text(encoding="utf-8").splitlines():
            record = FileRecord(**json.loads(line))
            found[record.path] = record
    except (ValueError, TypeError) as error:
        raise UserError(f"{index}: damaged ({error}); delete it") from error
    return found


def _write_index(out: Path, known: Mapping[str, FileRecord]) -> None:
    aside = out / f"{INDEX_FILE}.partial"
    text = "".join(json.dumps(asdict(record)) + "\n" for record in known.values())
    aside.write_text(text, encoding="utf-8")
    aside.replace(out / INDEX_FILE)
