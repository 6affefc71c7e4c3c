"""The two slow stages: looking at every video, and encoding those that stay; both can go on."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from vjepa.data.prepare.config import PrepareConfig
from vjepa.data.prepare.fingerprint import Fingerprint, FingerprintOrder, FingerprintTask
from vjepa.data.prepare.inputs import Part, PreparedInputs, safe_name, windows
from vjepa.data.prepare.matching import Exclusion, Removal, Removed, usable_rows
from vjepa.data.prepare.storing import PreparedVideo
from vjepa.data.prepare.transcode import EncodeAnswer, EncodeOrder, EncodeTask, output_suffix
from vjepa.data.video.info import DecodeError, VideoInfo, info_from_json, info_to_json
from vjepa.errors import UserError
from vjepa.runtime.workers import Outcome, WorkerPool

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


EngineName = Literal["local", "ray"]

Answers = Iterator[tuple[str, Outcome]]
"""Keys of orders with how each went, in the order in which they ended."""

# Orders handed out for each worker: enough that none waits while answers are written down.
_AHEAD = 4

_RAY_START_SECONDS = 300


def run_orders(
    engine: EngineName,
    task: Callable[[Any], Any],
    orders: Iterable[tuple[str, object]],
    num_workers: int,
    timeout_seconds: float,
) -> Answers:
    """Do all orders, many at once, each in a process that may hang or crash without harm.

    Args:
        engine: Where.
        task: What is done with an order; it answers failures instead of raising them.
        orders: Keys and orders, read lazily.
        num_workers: Processes (local) or actors of one process each (Ray).
        timeout_seconds: Longest time for one order.

    Raises:
        UserError: Workers cannot start; Ray is not installed or cannot be reached.
    """
    if engine == "ray":
        return _run_on_ray(task, iter(orders), num_workers, timeout_seconds)
    return _run_here(task, iter(orders), num_workers, timeout_seconds)


def _run_here(
    task: Callable[[Any], Any],
    orders: Iterator[tuple[str, object]],
    num_workers: int,
    timeout_seconds: float,
) -> Answers:
    with closing(WorkerPool(task, num_workers, timeout_seconds)) as pool:
        keys: dict[int, str] = {}
        while True:
            for key, order in islice(orders, max(0, _AHEAD * num_workers - pool.num_open)):
                keys[pool.submit(order)] = key
            if not keys:
                return
            for outcome in pool.wait(60.0):
                yield keys.pop(outcome.ticket), outcome


class OrderRunner:
    """Does orders one at a time in a process of its own; lives in a Ray actor on some machine.

    So a hanging decoder is killed, and a crash is told from bad luck, by the same rules as on one
    machine.
    """

    def __init__(self, task: Callable[[Any], Any], timeout_seconds: float) -> None:
        """Start no process yet."""
        self._pool = WorkerPool(task, 1, timeout_seconds)

    def run(self, order: object) -> Outcome:
        """Do one order."""
        self._pool.submit(order)
        while True:
            for outcome in self._pool.wait(60.0):
                return outcome


def ray_workers() -> int:
    """Processor cores of the Ray cluster, which is started here if none is running.

    Raises:
        UserError: Ray is not installed or cannot be reached.
    """
    return max(1, int(_connected_ray().cluster_resources().get("CPU", 1)))


def _connected_ray() -> Any:
    # Ray reports its use over the network unless told not to before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A busy machine takes longer than Ray's own limits. (Ray spells the name in small letters.)
    os.environ.setdefault("RAY_raylet_start_wait_time_s", str(_RAY_START_SECONDS))
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            "engine ray needs Ray: pip install 'open-vjepa[ray]', or use --engine local"
        ) from error
    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        except Exception as error:  # Ray raises bare ones, also when a machine is too busy
            raise UserError(f"engine ray: cannot be reached or started ({error})") from error
    return ray


def _run_on_ray(
    task: Callable[[Any], Any],
    orders: Iterator[tuple[str, object]],
    num_workers: int,
    timeout_seconds: float,
) -> Generator[tuple[str, Outcome]]:
    """One actor for each worker, one order at each; an actor whose machine dies is started anew.

    An order that loses its actor is given to another once; if that is lost, too, it counts as
    a crash.
    """
    ray = _connected_ray()
    remote = ray.remote(num_cpus=1, max_restarts=0)(OrderRunner)
    idle = [remote.remote(task, timeout_seconds) for _ in range(num_workers)]
    running: dict[Any, tuple[Any, str, object, int]] = {}
    again: list[tuple[str, object, int]] = []
    try:
        while True:
            while idle:
                following = again.pop() if again else next(((*pair, 0) for pair in orders), None)
                if following is None:
                    break
                actor = idle.pop()
                running[actor.run.remote(following[1])] = (actor, *following)
            if not running:
                return
            for reference in ray.wait(list(running), num_returns=1)[0]:
                actor, key, order, losses = running.pop(reference)
                try:
                    outcome = ray.get(reference)
                except ray.exceptions.RayActorError:
                    idle.append(remote.remote(task, timeout_seconds))
                    if losses:
                        yield key, Outcome(0, "crash", reason="two Ray workers died of it")
                    else:
                        again.append((key, order, losses + 1))
                    continue
                idle.append(actor)
                yield key, outcome
    finally:
        for actor in [*idle, *(entry[0] for entry in running.values())]:
            ray.kill(actor)


Progress = Callable[[int, int, int], None]
"""Called as progress(videos done, videos in all, failures so far)."""


@dataclass(frozen=True)
class Workplace:
    """Where the work is done and noted.

    Attributes:
        work: Folder of unfinished work.
        engine: Which machines do it.
        num_workers: How many processes.
        timeout_seconds: Longest time for one video.
    """

    work: Path
    engine: EngineName
    num_workers: int
    timeout_seconds: float

    def do_all(
        self,
        journal: Journal,
        task: Callable[[Any], Any],
        orders: dict[str, Callable[[], object]],
        note: Callable[[Outcome], dict[str, Any]],
        progress: Progress,
    ) -> None:
        """Do the orders that the journal has no answer to.

        Args:
            journal: Where answers are noted as soon as they come.
            task: What is done with an order.
            orders: By key, what makes the order.
            note: An outcome as plain values; has `failed` if it is a failure.
            progress: Called after each order.
        """
        answers = [journal.get(key) for key in orders]
        open_keys = [key for key, answer in zip(orders, answers, strict=True) if answer is None]
        done = len(orders) - len(open_keys)
        num_failed = sum(1 for answer in answers if answer is not None and "failed" in answer)
        progress(done, len(orders), num_failed)
        waiting = ((key, orders[key]()) for key in open_keys)
        for key, outcome in run_orders(
            self.engine, task, waiting, self.num_workers, self.timeout_seconds
        ):
            values = note(outcome)
            journal.add(key, values)
            done, num_failed = done + 1, num_failed + ("failed" in values)
            progress(done, len(orders), num_failed)


def _key(info: VideoInfo, part: Part, *settings: object) -> str:
    text = repr((info.path, info.bytes, info.mtime_ns, part.start, part.end, settings))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


@dataclass(frozen=True)
class Fingerprints:
    """What was seen in the videos.

    Attributes:
        inputs: By number of the video.
        excluded: By path of the validation video.
    """

    inputs: dict[int, Fingerprint]
    excluded: dict[str, Fingerprint]


def look_at_all(
    inputs: PreparedInputs,
    removal: Removal,
    exclusion: Exclusion,
    config: PrepareConfig,
    place: Workplace,
    progress: Progress,
) -> Fingerprints:
    """Take the fingerprint of every video that is not removed yet, and of all validation videos.

    Videos that cannot be read are removed; a validation video that cannot be read is an error,
    for nothing could be compared with it.

    Raises:
        UserError: A validation video cannot be read.
    """
    way = json.dumps(asdict(config.match), sort_keys=True)
    orders: dict[str, Callable[[], object]] = {}
    keys: dict[int, str] = {}
    for number in removal.kept():
        info, part = inputs.info(number), inputs.part(number)
        keys[number] = _key(info, part, way)
        orders[keys[number]] = lambda n=number: FingerprintOrder(inputs.info(n), inputs.part(n))
    theirs: dict[str, str] = {}
    for manifest in exclusion.manifests:
        for row in usable_rows(manifest):
            info = manifest.row(row)
            theirs[info.path] = _key(info, Part(), way)
            orders[theirs[info.path]] = lambda m=manifest, r=row: FingerprintOrder(m.row(r), Part())
    with Journal(place.work / "fingerprints.jsonl") as journal:
        place.do_all(journal, FingerprintTask(config.match), orders, _note_fingerprint, progress)
        found: dict[int, Fingerprint] = {}
        for number, key in keys.items():
            answer = journal.get(key) or {"failed": "was not looked at"}
            if "failed" in answer:
                removal.remove(number, "unreadable", answer["failed"])
            else:
                found[number] = Fingerprint.from_json(answer)
        excluded: dict[str, Fingerprint] = {}
        for path, key in theirs.items():
            answer = journal.get(key) or {"failed": "was not looked at"}
            if "failed" in answer:
                raise UserError(
                    f"validation video {path}: {answer['failed']}; mend it, or take it out of its"
                    " list, since nothing can be compared with it"
                )
            excluded[path] = Fingerprint.from_json(answer)
    return Fingerprints(found, excluded)


def _note_fingerprint(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome.value, Fingerprint):
        return dict(outcome.value.to_json())
    return {"failed": outcome.value if outcome.kind == "done" else outcome.reason}


@dataclass(frozen=True)
class _Window:
    """A window of a video that is to be encoded."""

    number: int
    part: Part
    target: str


def encode_all(
    inputs: PreparedInputs,
    removal: Removal,
    config: PrepareConfig,
    place: Workplace,
    progress: Progress,
) -> tuple[list[PreparedVideo], list[Removed]]:
    """Encode every window of every video that stays.

    Returns:
        The encoded videos in the order of the input, and the windows that could not be encoded.

    Raises:
        UserError: The disk is full or cannot be written.
    """
    planned, failed = _planned(inputs, removal, config, place.work / "parts")
    orders: dict[str, Callable[[], object]] = {
        key: lambda w=window: EncodeOrder(inputs.info(w.number), w.part, w.target)
        for key, window in planned.items()
    }
    videos: list[PreparedVideo] = []
    task = EncodeTask(config.transcode, config.limits)
    with Journal(place.work / "encoded.jsonl") as journal:
        place.do_all(journal, task, orders, _note_encoded, progress)
        for key, window in planned.items():
            answer = journal.get(key) or {"failed": "was not encoded"}
            row = inputs.row(window.number)
            if "failed" in answer:
                failed.append(
                    Removed(
                        number=window.number,
                        path=row.info.path,
                        reason="not encoded",
                        detail=answer["failed"],
                    )
                )
                continue
            name = safe_name(row, window.part, window.number)
            info = info_from_json(answer["info"])
            videos.append(PreparedVideo(key, name, Path(window.target), row, window.part, info))
    return videos, failed


def _planned(
    inputs: PreparedInputs, removal: Removal, config: PrepareConfig, parts: Path
) -> tuple[dict[str, _Window], list[Removed]]:
    """Windows to be encoded by key, in the order of the input, and those that cannot be."""
    way = json.dumps(asdict(config.transcode), sort_keys=True)
    planned: dict[str, _Window] = {}
    failed: list[Removed] = []
    for number in removal.kept():
        info = inputs.info(number)
        cuts = windows(inputs.part(number), info.duration_seconds, config.trim)
        if not cuts:
            removal.remove(number, "outside the video", f"it lasts {info.duration_seconds:.1f} s")
        for part in cuts:
            key = _key(info, part, way, number)
            try:
                suffix = output_suffix(info, config.transcode)
            except DecodeError as error:
                failed.append(
                    Removed(
                        number=number, path=info.path, reason="not encoded", detail=error.reason
                    )
                )
                continue
            planned[key] = _Window(number, part, str(parts / key[:2] / f"{key}{suffix}"))
    return planned, failed


def _note_encoded(outcome: Outcome) -> dict[str, Any]:
    if outcome.kind != "done":
        return {"failed": outcome.reason}
    answer: EncodeAnswer = outcome.value
    if answer.info is not None:
        return {"info": info_to_json(answer.info)}
    if answer.stops_run:
        raise UserError(
            f"writing prepared videos: {answer.reason}; free space and run the same command again"
        )
    return {"failed": answer.reason}
