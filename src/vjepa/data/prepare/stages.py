"""The two slow stages: looking at every video, and encoding those that stay; both can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vjepa.data.prepare.config import PrepareConfig
from vjepa.data.prepare.engines import EngineName, run_orders
from vjepa.data.prepare.exclusion import Exclusion, usable_rows
from vjepa.data.prepare.fingerprint import Fingerprint, FingerprintOrder, FingerprintTask
from vjepa.data.prepare.inputs import Part, PreparedInputs, safe_name, windows
from vjepa.data.prepare.journal import Journal
from vjepa.data.prepare.removal import Removal, Removed
from vjepa.data.prepare.storing import PreparedVideo
from vjepa.data.prepare.transcode import EncodeAnswer, EncodeOrder, EncodeTask, output_suffix
from vjepa.data.video_info import DecodeError, VideoInfo, info_from_json, info_to_json
from vjepa.data.workers import Outcome
from vjepa.errors import UserError

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
