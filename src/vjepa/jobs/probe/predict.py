"""A saved probe on any video: its most probable classes."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import get_args

import torch

from vjepa.config import from_dict
from vjepa.data.loader.evaluation import OnBadVideo
from vjepa.data.loader.reading import ReadingConfig
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.errors import UserError
from vjepa.evaluation.evaluate import probabilities
from vjepa.evaluation.frozen import FeatureExtractor
from vjepa.evaluation.labels import SPLIT_FILE, Files, Split, file_kind, load_split
from vjepa.evaluation.saved_probe import CONFIG_FILE, SavedProbe, check_encoder, load_saved_probe
from vjepa.jobs.probe.encoder import compile_encoder, reopen_encoder
from vjepa.jobs.probe.released import ReleasedProbeConfig, is_released, open_released
from vjepa.jobs.videos import named_files
from vjepa.paths import as_path
from vjepa.runtime.device import DeviceName, set_up_device
from vjepa.runtime.files import atomic_path, atomic_write, check_kind, write_csv
from vjepa.runtime.process import set_num_threads

_LOGGER = logging.getLogger(__name__)
PREDICTION_FILES = (".jsonl", ".csv", ".parquet")
_FEW_VIDEOS = 16
"""Up to so many videos are read in this process: starting workers would take longer."""


@dataclass(frozen=True)
class ClassShare:
    """A class and how probable the probe holds it to be, in [0, 1]."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The answer for one video: its most probable classes first, or why it cannot be read."""

    path: str
    classes: tuple[ClassShare, ...]
    failure: str | None = None


@dataclass(frozen=True)
class Probe:
    """A trained probe with its encoder, ready for any video.

    `trained_on` are the videos whose labels it was trained or chosen with.
    """

    saved: SavedProbe
    extractor: FeatureExtractor
    trained_on: Files = field(default_factory=dict)

    def predict(
        self,
        sources: str | Path | Sequence[str | Path],
        *,
        top: int = 5,
        split: str | None = None,
        reading: ReadingConfig | None = None,
    ) -> list[Prediction]:
        """The most probable classes of videos, in the order of the sources; no label is needed.

        One that cannot be read has `failure`; one that is named twice has its answer twice.

        Args:
            sources: One or several videos, images, folders, lists of files, or Parquet manifests.
            top: How many classes to give of each.
            split: Only this split of the manifests among the sources.
            reading: Worker processes; None takes the defaults, and none for a few videos.

        Raises:
            UserError: A source is missing, or not one video can be read.
        """
        if not isinstance(top, int) or top < 1:
            raise UserError(f"top: must be a whole number of at least 1, got {top!r}")
        named = named_files(sources, split)
        rows = [ManifestRow(info=info) for info in {info.path: info for info in named}.values()]
        manifest = Manifest.from_rows(rows, "/")
        if known := sum(row.info.path in self.trained_on for row in rows):
            _LOGGER.warning(
                "%d of these %d videos trained the probe: its answers there say little",
                *(known, len(rows)),
            )
        kind = self.saved.kind
        other = sum(file_kind(row.info.kind) != kind for row in rows)
        if kind is not None and other:
            _LOGGER.warning(
                "the probe was trained on %ss, and %d of these %d files are others: its answers "
                "there say little",
                *(kind, other, len(rows)),
            )
        few = {"num_workers": 0} if len(rows) <= _FEW_VIDEOS else {}
        how = from_dict(ReadingConfig, few if reading is None else reading, "reading")
        extractor, classes = replace(self.extractor, reading=how), self.saved.classes
        view, device = extractor.settings.view, extractor.setup.device
        head, multi_label = self.saved.head.to(device), self.saved.multi_label
        found: dict[int, Prediction] = {}
        for part in extractor.shards(Split(manifest, "videos")):
            found |= {bad.row: Prediction(bad.path, (), bad.reason) for bad in part.bad}
            if len(part) == 0:
                continue
            shares = probabilities(head, part.tokens, view, device, multi_label=multi_label)
            best = torch.topk(shares, min(top, len(classes)), dim=1)
            for row, values, numbers in zip(
                part.rows.tolist(), best.values.tolist(), best.indices.tolist(), strict=True
            ):
                shown = zip(numbers, values, strict=True)
                answer = tuple(ClassShare(classes[number], value) for number, value in shown)
                found[row] = Prediction(manifest.path(row), answer)
        if all(prediction.failure for prediction in found.values()):
            first = f"{found[0].path}: {found[0].failure}"
            raise UserError(f"not one video could be read (first: {first}); name others")
        place = {row.info.path: number for number, row in enumerate(rows)}
        return [found[place[info.path]] for info in named]


def load_probe(
    folder: str | Path,
    *,
    encoder: str | Path | None = None,
    device: DeviceName = "auto",
    num_threads: int | None = None,
    on_bad_video: OnBadVideo = "list",
    reading: ReadingConfig | None = None,
    cache_dir: str | Path | None = None,
    released: ReleasedProbeConfig | None = None,
) -> Probe:
    """Load what training a probe wrote, or a released probe, with the encoder that it reads.

    Args:
        folder: Of the probe, or of a fine-tuning's run; or a file of V-JEPA's or V-JEPA 2's
            authors, or a Hugging Face folder with a classifier.
        encoder: Where the probe's encoder lies now, if not where it lay then. A released file never
            holds it.
        device: Where to compute.
        num_threads: CPU threads of torch; None: torch's choice.
        on_bad_video: ``error`` stops at a video that cannot be read, ``list`` names it.
        reading: Worker processes; None takes the defaults.
        cache_dir: Feature cache.
        released: What the file of a released probe does not say; None: the usual.

    Raises:
        UserError: The probe or its encoder is missing, or the encoder is another.
    """
    set_num_threads(num_threads)
    if on_bad_video not in get_args(OnBadVideo):
        raise UserError(f"on_bad_video: {on_bad_video!r} must be 'error' or 'list'")
    folder = as_path(folder)
    encoder = None if encoder is None else as_path(encoder)
    cache_dir = None if cache_dir is None else as_path(cache_dir)
    theirs = is_released(folder)
    if not theirs and (folder / "model").is_dir() and not (folder / CONFIG_FILE).is_file():
        from vjepa.jobs.finetune.saved import load_finetuned  # which is made of what is here

        if not (encoder is released is cache_dir is None):
            raise UserError(
                f"{folder}: a fine-tuned model holds its encoder, says its settings itself and "
                "caches nothing; leave --encoder, --cache-dir, --config and settings out"
            )
        how = {"device": device, "num_threads": num_threads, "on_bad_video": on_bad_video}
        return load_finetuned(folder, reading=reading, **how)
    if theirs:
        said = from_dict(ReleasedProbeConfig, released or {}, "released")
        saved, frozen = open_released(folder, encoder, said)
    elif released is not None:
        raise UserError(
            f"{folder}: says its settings itself; --config and settings are for a "
            "released probe: leave them out"
        )
    else:
        saved = load_saved_probe(folder)
        frozen = reopen_encoder(saved.encoder, encoder)
        check_encoder(saved.encoder, frozen.encoder, frozen.identity.source, "probe")
    setup = set_up_device(device, saved.settings.features.precision)
    if saved.settings.features.compile:
        compile_encoder(frozen.encoder.to(setup.device))
    reading = from_dict(ReadingConfig, reading or {}, "reading")
    extractor = FeatureExtractor(frozen, saved.settings, setup, reading, on_bad_video, cache_dir)
    probe = Probe(saved, extractor)
    return probe if theirs else with_record(probe, folder / SPLIT_FILE)


def with_record(probe: Probe, record: Path) -> Probe:
    """A probe that knows the videos again that it was trained on, by the record beside it."""
    if not record.is_file():
        _LOGGER.warning("%s is missing: training videos are not known again", record)
        return probe
    return replace(probe, trained_on=load_split(record).files)


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write predictions to a file whose suffix chooses the form.

    ``.jsonl``: one object a video with `path`, `classes` (name, probability), `failure`.
    ``.csv``: columns path, failure, class_1, probability_1, class_2, and so on. ``.parquet``:
    columns path, failure, classes (list of text), probabilities (list of numbers).
    """
    check_kind("--out", path, *PREDICTION_FILES)
    shown = [entry.classes for entry in predictions]
    if path.suffix == ".jsonl":
        atomic_write(path, "".join(json.dumps(asdict(entry)) + "\n" for entry in predictions))
    elif path.suffix == ".csv":
        width = max(map(len, shown), default=0)
        names = [f"{what}_{n + 1}" for n in range(width) for what in ("class", "probability")]
        rows = [("path", "failure", *names)]
        for entry in predictions:
            cells = [cell for share in entry.classes for cell in astuple(share)]
            missing = [""] * (len(names) - len(cells))
            rows.append((entry.path, entry.failure or "", *cells, *missing))
        write_csv(path, rows, "\r\n")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {
            "path": [entry.path for entry in predictions],
            "failure": pa.array([entry.failure for entry in predictions], pa.string()),
            "classes": [[share.name for share in classes] for classes in shown],
            "probabilities": [[share.probability for share in classes] for classes in shown],
        }
        with atomic_path(path) as aside:
            pq.write_table(pa.table(columns), aside)
