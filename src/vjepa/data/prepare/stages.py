"""The two slow stages: looking at every video, and encoding those that stay; both can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vjepa.data.prepare.config import Order, Part, PrepareConfig, PreparedInputs, safe_name, windows
from vjepa.data.prepare.matching import Exclusion, Fingerprint, Removal, fingerprint
from vjepa.data.prepare.storing import PLAN, PreparedVideo, encode_order, output_suffix
from vjepa.data.video.info import DecodeError, VideoInfo, info_from_json
from vjepa.errors import UserError
from vjepa.runtime.files import JsonLines, read_json_lines
from vjepa.runtime.progress import Progress
from vjepa.runtime.ray_engine import EngineName, ray_map
from vjepa.runtime.workers import Outcome, WorkerPool

Answer = dict[str, Any]
"""What a task says of an order, as it is noted; with a reason in `failed` if it came to nothing."""

Task = Callable[[Order], Answer]

# Orders handed out for each worker: enough that none waits while answers are written down.
_AHEAD = 4
_WAY = 3  # raised whenever the same order gives another answer


@dataclass(frozen=True)
class Workplace:
    """Where the work is done and noted."""

    work: Path  # folder of unfinished work
    engine: EngineName
    num_workers: int
    timeout_seconds: float  # longest time for one video

    def run(self, task: Task, orders: Iterable[Order]) -> Iterator[tuple[Order, Outcome]]:
        """Do all orders, many at once, each in a process that may hang or crash without harm."""
        if self.engine == "ray":
            make_task = partial(_in_a_process, task, self.timeout_seconds)
            for order, outcome in ray_map(make_task, orders, self.num_workers):
                yield order, outcome.value if outcome.kind == "done" else outcome
            return
        with closing(WorkerPool(task, self.num_workers, self.timeout_seconds)) as pool:
            yield from pool.map(orders, _AHEAD * self.num_workers, in_order=False)

    def do_all(
        self, what: str, name: str, task: Task, orders: Mapping[str, Callable[[], Order]]
    ) -> dict[str, Answer]:
        """The answers to all orders (by key, what makes the order).

        They are noted in the file `name` as soon as they come and those that stand there are not
        done again; but failures, which may have been the network's or the machine's, are, until the
        set of videos is fixed. A line of it that says nothing is passed over.

        Raises:
            UserError: Nothing can be written any more.
        """
        with JsonLines(self.work / name) as journal:
            lines = (values for _, values in read_json_lines(journal.path) if values is not None)
            answers = {values.pop("key"): values for values in lines if "key" in values}
            if not (self.work / PLAN).exists():
                answers = {key: one for key, one in answers.items() if "failed" not in one}
            missing = [key for key in orders if key not in answers]
            done, num_failed = len(orders) - len(missing), 0
            with Progress(what, len(orders), done) as progress:
                progress.update(done)
                for order, outcome in self.run(task, (orders[key]() for key in missing)):
                    answer = outcome.value if outcome.kind == "done" else {"failed": outcome.reason}
                    if "disk" in answer:
                        raise UserError(
                            f"writing prepared videos: {answer['disk']}; free space and run the "
                            "same command again"
                        )
                    journal.append({"key": order.key, **answer})
                    answers[order.key] = answer
                    done, num_failed = done + 1, num_failed + ("failed" in answer)
                    progress.update(done, f"{num_failed} bad" if num_failed else None)
            return answers


def _in_a_process(task: Task, timeout_seconds: float, _number: int) -> Callable[[Order], Outcome]:
    """The task in a process of its own on a Ray worker's machine.

    So a hanging decoder is killed, and a crash is told from bad luck, by the same rules as here.
    """
    pool = WorkerPool(task, 1, timeout_seconds)

    def run(order: Order) -> Outcome:
        ((_, outcome),) = pool.map([order], 1)
        return outcome

    return run


def _key(info: VideoInfo, part: Part, *settings: object) -> str:
    text = repr((info.path, info.bytes, info.mtime_ns, info.fps, part, _WAY, settings))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def look_at_all(
    inputs: PreparedInputs,
    removal: Removal,
    exclusion: Exclusion,
    config: PrepareConfig,
    place: Workplace,
) -> tuple[dict[int, Fingerprint], dict[str, Fingerprint]]:
    """Fingerprints of videos not removed yet, by number, and of validation videos, by path.

    Videos that cannot be read are removed.

    Raises:
        UserError: A validation video cannot be read: nothing could be compared with it.
    """
    way = json.dumps(asdict(config.match), sort_keys=True)
    orders: dict[str, Callable[[], Order]] = {}
    keys: dict[int, str] = {}
    for number in removal.kept():
        part = inputs.part(number)
        keys[number] = key = _key(inputs.videos.row(number), part, way)
        orders[key] = lambda k=key, n=number, p=part: Order(k, inputs.videos.row(n), p)
    their_keys: dict[str, str] = {}
    for manifest in exclusion.manifests:
        for row in np.flatnonzero(manifest.ok).tolist():
            info = manifest.row(row)
            their_keys[info.path] = key = _key(info, Part(), way)
            orders[key] = lambda k=key, m=manifest, r=row: Order(k, m.row(r), Part())
    task = partial(fingerprint, config.match)
    answers = place.do_all("look at videos", "fingerprints.jsonl", task, orders)
    found: dict[int, Fingerprint] = {}
    for number, key in keys.items():
        if "failed" in answers[key]:
            removal.remove(number, "unreadable", answers[key]["failed"])
        else:
            found[number] = Fingerprint.from_json(answers[key])
    for path, key in their_keys.items():
        if "failed" in answers[key]:
            raise UserError(
                f"validation video {path}: {answers[key]['failed']}; mend it, or take it out of its"
                " list, since nothing can be compared with it"
            )
    excluded = {path: Fingerprint.from_json(answers[key]) for path, key in their_keys.items()}
    return found, excluded


def encode_all(
    inputs: PreparedInputs, removal: Removal, config: PrepareConfig, place: Workplace
) -> list[PreparedVideo]:
    """Encode every window of every video that stays, in the order of the input.

    What cannot be encoded is removed.

    Raises:
        UserError: The disk is full or cannot be written.
    """
    way = json.dumps(asdict(config.transcode), sort_keys=True)
    parts = place.work / "parts"
    planned: dict[str, tuple[int, Part, str]] = {}
    for number in removal.kept():
        info = inputs.videos.row(number)
        # A still image is copied, whole.
        trim = replace(config.trim, window_seconds=None) if info.kind == "image" else config.trim
        cuts = windows(inputs.part(number), info.duration_seconds, trim)
        if not cuts:
            removal.remove(number, "outside the video", f"it lasts {info.duration_seconds:.1f} s")
        for part in cuts:
            key = _key(info, part, way, number)
            try:
                suffix = output_suffix(info, config.transcode)
            except DecodeError as error:
                removal.remove_window(number, error.reason)
                continue
            planned[key] = number, part, str(parts / key[:2] / f"{key}{suffix}")
    orders: dict[str, Callable[[], Order]] = {
        key: lambda k=key, w=window: Order(k, inputs.videos.row(w[0]), *w[1:])
        for key, window in planned.items()
    }
    task = partial(encode_order, config.transcode, config.limits)
    answers = place.do_all("encode videos", "encoded.jsonl", task, orders)
    videos: list[PreparedVideo] = []
    for key, (number, part, target) in planned.items():
        if "failed" in answers[key]:
            removal.remove_window(number, answers[key]["failed"])
            continue
        row, info = inputs.row(number), info_from_json(answers[key]["info"])
        name = safe_name(row, part, number)
        videos.append(PreparedVideo(key, number, name, Path(target), row, part, info))
    return videos
