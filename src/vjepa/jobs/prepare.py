"""``vjepa data prepare``: videos of some manifests -> a set made for training."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vjepa.config import from_dict
from vjepa.data.manifest.manifest import Manifest
from vjepa.data.prepare.config import ExcludeConfig, PrepareConfig, PreparedInputs
from vjepa.data.prepare.matching import OTHER_LABEL, Removal, Removed, read_exclusion
from vjepa.data.prepare.stages import Workplace, encode_all, look_at_all
from vjepa.data.prepare.storing import PLAN, PreparedVideo, Store
from vjepa.errors import UserError
from vjepa.jobs.videos import checked_workers
from vjepa.paths import as_path
from vjepa.runtime.files import atomic_write, begin_folder, claimed_folder, read_json, written
from vjepa.runtime.progress import Progress, format_gigabytes
from vjepa.runtime.ray_engine import EngineName, ray_cluster

__all__ = ["ExcludeConfig", "PrepareConfig", "PrepareReport", "prepare"]

_LOGGER = logging.getLogger(__name__)

MANIFEST = "manifest.parquet"
REPORT_FILE, REMOVED_FILE, NEAR_COPIES_FILE = "report.json", "removed.jsonl", "near_copies.jsonl"
_ANEW = "delete the folder, or give another --out"
_VERSION = 2  # raised whenever the same settings give another result


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What went in, what came out, and what was left out and why."""

    manifest: str  # that was written
    num_inputs: int  # videos named by the input manifests
    num_videos: int  # of the result; one that was cut into windows counts once for each
    num_shards: int  # tar files, or folders of files
    duration_hours: float
    input_gigabytes: float  # of the usable input files, in 1e9 bytes
    output_gigabytes: float
    removed: dict[str, int]
    """Number of videos (of windows, where only one failed) left out, by reason."""
    first_removed: dict[str, list[str]]
    """Up to three examples for each reason."""
    num_sources: int = 0  # videos of the input that those of the result come from
    near_copies: int = 0
    """Videos of the result whose pictures are like those of another one."""
    first_near_copies: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for people."""
        found = [
            f"prepared: {self.num_videos} videos of {self.num_inputs} in the input,"
            f" {self.duration_hours:.2f} hours, in {self.num_shards} "
            + ("shard" if self.num_shards == 1 else "shards"),
            f"size: {format_gigabytes(self.input_gigabytes)} -> "
            f"{format_gigabytes(self.output_gigabytes)}",
        ]
        for reason, count in sorted(self.removed.items(), key=lambda item: -item[1]):
            found.append(f"left out, {reason}: {count}")
            found += [f"  {example}" for example in self.first_removed[reason]]
        if not self.removed:
            found.append("left out: none")
        if self.num_videos != self.num_sources:
            found.append(f"kept: parts of {self.num_sources} of the {self.num_inputs} videos")
        if self.near_copies:
            found.append(
                f"kept, but their pictures are like those of another one: {self.near_copies} (all"
                f" in {NEAR_COPIES_FILE}; --near_copies remove leaves them out)"
            )
            found += [f"  {example}" for example in self.first_near_copies]
        return found


def _count_removed(removed: Sequence[Removed]) -> tuple[dict[str, int], dict[str, list[str]]]:
    """How many were left out for each reason, and the first three of each in words."""
    counts = Counter(one.reason for one in removed)
    examples: dict[str, list[str]] = {reason: [] for reason in counts}
    for one in removed:
        if len(examples[one.reason]) < 3:
            examples[one.reason].append(_in_words(one))
    return dict(counts), examples


def _in_words(one: Removed, how: str = "is") -> str:
    words = [one.path, one.same_as and f"{how} {one.same_as}", one.detail and f"({one.detail})"]
    return " ".join(filter(None, words))


def prepare(
    manifests: Sequence[Path],
    out: str | Path,
    config: PrepareConfig,
    *,
    engine: EngineName = "local",
    workers: int | None = None,
) -> PrepareReport:
    """Remove copies and validation videos, encode the rest, store them, and write their manifest.

    A run that was stopped, however, goes on where it was when called again in the same way: no
    video that was done is looked at or encoded again.

    `engine`: processes of this machine, or a Ray cluster that sees the same files; `workers` None
    takes one process for each core. More videos removed than `max_removed` are a UserError.
    """
    config, out = from_dict(PrepareConfig, config), as_path(out)
    inputs = PreparedInputs([Manifest.open(path) for path in manifests], config.trim)
    with written(out), claimed_folder(out, "data prepare"), ExitStack() as stack:
        if not _begin(out, inputs, config):
            return PrepareReport(**read_json(out / REPORT_FILE, _ANEW))
        if engine == "ray":  # one for both stages
            ray = stack.enter_context(ray_cluster())
            workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        num_workers = checked_workers(workers)
        place = Workplace(out / "work", engine, num_workers, config.timeout_seconds)
        removal = Removal(inputs, config.match)
        exclusion = read_exclusion(config.exclude, config.match)
        removal.by_name(exclusion, config.deduplicate)
        if config.needs_fingerprints:
            prints, excluded = look_at_all(inputs, removal, exclusion, config, place)
            removal.by_exclusion(prints, excluded)
            if config.deduplicate:
                removal.by_likeness(prints, config.near_copies == "remove")
                lost = [one for one in removal.removed.values() if one.detail == OTHER_LABEL]
                if lost:
                    _LOGGER.warning(
                        "%d copies have another label than the video that stays, first: %s (label "
                        "%s); all are in %s; --deduplicate false keeps them",
                        *(len(lost), _in_words(lost[0]), inputs.row(lost[0].number).labels),
                        REMOVED_FILE,
                    )
        _check_removed(inputs, removal, config.max_removed)
        _check_failed(inputs, removal, config.max_removed)
        videos = encode_all(inputs, removal, config, place)
        if not videos:
            _, examples = _count_removed(removal.all)
            first = "; ".join(f"{reason}: {listed[0]}" for reason, listed in examples.items())
            raise UserError(f"nothing is left to store: {first}; change what is removed")
        _check_failed(inputs, removal, config.max_removed)  # those not encoded, too
        return _store(inputs, out, config, videos, removal)


def _begin(out: Path, inputs: PreparedInputs, config: PrepareConfig) -> bool:
    """Begin, or go on with, a set in a folder; False: it is finished; UserError: it is another."""
    counts = asdict(config)
    for name in ("timeout_seconds", "max_removed"):  # on which the result does not depend
        del counts[name]
    paths = [entry.path for entry in config.exclude if entry.path.is_file()]
    lists = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    text = json.dumps([_VERSION, inputs.digest, lists, counts], sort_keys=True, default=str)
    settings, note = hashlib.sha256(text.encode()).hexdigest(), out / "work" / "settings.json"
    if note.exists():
        if read_json(note, _ANEW).get("settings") == settings:
            return not (out / MANIFEST).exists()
        if (out / "work" / PLAN).exists():
            raise UserError(
                f"{out}: holds a set made from other videos or with other settings; choose another"
                " --out, or delete it"
            )
    begin_folder(out, "data prepare", config)
    atomic_write(note, json.dumps({"settings": settings}))
    return True


def _check_removed(inputs: PreparedInputs, removal: Removal, largest: float) -> None:
    """Stop before hours of encoding if the comparison seems to be at fault."""
    compared = [one for one in removal.removed.values() if one.reason.startswith(("ex", "dup"))]
    share = len(compared) / len(inputs)
    if share > largest:
        counts, _ = _count_removed(compared)
        words = ", ".join(f"{reason}: {count}" for reason, count in counts.items())
        one = compared[0]
        raise UserError(
            f"{share:.0%} of the videos would be removed, max_removed is {largest:.0%} ({words};"
            f" first: {one.path}, same as {one.same_as}): are the names running numbers"
            " (match.by_id false), or is match.hash_bits too high? If not, raise max_removed"
        )


def _check_failed(inputs: PreparedInputs, removal: Removal, largest: float) -> None:
    """Stop before a set is stored, for good, that lacks what only could not be read just now."""
    failed = [one for one in removal.all if one.reason in ("unreadable", "not encoded")]
    count = len({one.number for one in failed})
    if count > largest * len(inputs):
        raise UserError(
            f"{count} of {len(inputs)} videos could not be read or encoded, max_removed is "
            f"{largest:.0%} (first: {_in_words(failed[0])}): is their disk there? The same command "
            "tries them again; or raise max_removed to leave them out"
        )


def _store(
    inputs: PreparedInputs,
    out: Path,
    config: PrepareConfig,
    videos: Sequence[PreparedVideo],
    removal: Removal,
) -> PrepareReport:
    store = Store(out, out / "work", config.shards, sorted(inputs.videos.label_names))
    plan = store.plan(videos)
    by_key = {video.key: video for video in videos}
    with Progress("store videos", len(plan)) as progress:
        for number, (name, keys) in enumerate(plan.items(), start=1):
            if not store.rows_file(name).exists():
                store.store(name, [by_key[key] for key in keys])
            progress.update(number)
    table = store.all_rows(list(plan))
    counts, examples = _count_removed(removal.all)
    sources = {video.number for video in videos}
    near_copies = [one for one in removal.near_copies if one.number in sources]
    manifest = Manifest(table, out.absolute(), str(out / MANIFEST))
    report = PrepareReport(
        manifest=str(out / MANIFEST),
        num_inputs=len(inputs),
        num_videos=len(manifest),
        num_shards=len(plan),
        duration_hours=float(manifest.numeric("duration_seconds").sum()) / 3600,
        input_gigabytes=int(inputs.videos.numeric("bytes")[inputs.videos.ok].sum()) / 1e9,
        output_gigabytes=float(manifest.numeric("bytes").sum()) / 1e9,
        removed=counts,
        first_removed=examples,
        num_sources=len(sources),
        near_copies=len(near_copies),
        first_near_copies=[_in_words(one, "is like") for one in near_copies[:3]],
    )
    for file, listed in ((REMOVED_FILE, removal.all), (NEAR_COPIES_FILE, near_copies)):
        ordered = sorted(listed, key=lambda one: one.number)
        atomic_write(out / file, "".join(json.dumps(asdict(one)) + "\n" for one in ordered))
    atomic_write(out / REPORT_FILE, json.dumps(asdict(report), indent=2) + "\n")
    # The manifest comes last: where it stands, everything it names stands, too.
    manifest.write(out / MANIFEST)
    shutil.rmtree(out / "work" / "parts", ignore_errors=True)
    shutil.rmtree(out / "work" / "rows", ignore_errors=True)
    return report
