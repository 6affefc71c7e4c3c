"""Detection on the synthetic set with boxes: an encoder beside what it must be compared with.

    vjepa data synth --out boxes --boxes true --size 64 --object_size 0.25 --travel 0.26 --zoom 1.5
    python studies/detection.py --train boxes/boxes_train.parquet --test boxes/boxes_test.parquet \
        --encoder "V-JEPA=runs/v0,runs/v1" --encoder "pixels=runs/p0,runs/p1" --out runs/study

On the simulated people of `make_people.py`, shown 8 frames at every second one: `--set
data.view.short_side=96 --set data.clip.stride=2 --groups action=1-15 direction=16-17 all=1-18`.

Rows: chance (every box gets the classes' frequencies of the training), pixels of the box (the key
frame; five frames), random weights and each encoder, whole clips and the key frame repeated; each
with true boxes and with those that a detector of people found, with all and with few videos. Head
and recipe are the same for all (`detect/synthetic`), and nothing was chosen on the test videos. A
second call goes on where the first stopped. Several runs of an encoder are its seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vjepa.config import load_config
from vjepa.data.clips.crops import resize_frames
from vjepa.data.clips.key_frames import MomentClip, moved_boxes, read_moments
from vjepa.evaluation.box_features import (
    DetectionBatches,
    DetectionSettings,
    KeyFrames,
    class_shares,
    detections,
)
from vjepa.evaluation.detection_metric import RULES, detection_metrics
from vjepa.evaluation.frozen import EncodingConfig, FeatureSet
from vjepa.evaluation.results import over_seeds
from vjepa.jobs.detect.config import DetectConfig
from vjepa.jobs.detect.detector import evaluate, test_rows
from vjepa.jobs.detect.train import train, training_rows
from vjepa.runtime.device import seed_torch
from vjepa.tasks import Detection
from vjepa.training import OptimConfig, Trainer, TrainingConfig

_SIDE = 8  # of the pixels of a box
Figures = dict[str, dict[str, list[float]]]
"""Means over classes by row, then by column, one for each seed."""
GROUPS: dict[str, range] = {}
"""Ids of the classes that a column averages over."""


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--encoder", action="append", default=[], metavar="NAME=RUN,RUN")
    parser.add_argument("--random-seeds", type=int, default=3)
    parser.add_argument("--few", type=int, default=50, metavar="VIDEOS")
    parser.add_argument("--out", type=Path, required=True)
    text = "columns, as NAME=FIRST-LAST of the classes' ids"
    digits = ["motion=1-9", "digit=10-19", "all=1-20"]
    parser.add_argument("--groups", nargs="+", default=digits, help=text)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="settings")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, _, ids in (group.partition("=") for group in args.groups):
        first, _, last = ids.partition("-")
        GROUPS[name] = range(int(first), int(last) + 1)
    tables = [f"data.train={args.train}", f"data.test={args.test}"]
    base = load_config(DetectConfig, ["synthetic"], [*tables, *args.set], recipes="detect")
    figures: Figures = {}
    for few in (None, args.few):
        small = replace(base, data=replace(base.data, num_videos=few))
        _baselines(small, args.out, figures)
        groups = {"random weights": ["demo"] * args.random_seeds}
        groups |= {
            name: runs.split(",") for name, _, runs in (e.partition("=") for e in args.encoder)
        }
        for name, runs in groups.items():
            for seed, run in enumerate(runs):
                for still in (False, True):
                    if still and seed:
                        continue
                    _encoder(small, args.out, figures, name, run, seed, still=still)
    (args.out / "table.md").write_text(_markdown(figures))
    print(_markdown(figures))


def _encoder(
    config: DetectConfig,
    out: Path,
    figures: Figures,
    name: str,
    run: str,
    seed: int,
    *,
    still: bool,
) -> None:
    """A head on one encoder, measured with both kinds of boxes."""
    few = config.data.num_videos
    row = f"{name}, key frame repeated" if still else name
    random = name == "random weights"
    config = replace(
        config,
        seed=seed,
        encoder=replace(config.encoder, path=Path(run), random=random, seed=seed),
        features=replace(config.features, cache_dir=out / "cache"),
        data=replace(
            config.data, view=replace(config.data.view, key_frame_only=still), test_on="truth"
        ),
    )
    folder = out / f"{row}_{seed}_{few or 'all'}".replace(" ", "_").replace(",", "")
    if not (folder / "result.json").is_file():
        train(config, folder)
    assert config.data.test is not None
    for kind in ("truth", "predicted"):
        file = folder / f"{kind}.json"
        if not file.is_file():
            found = evaluate(
                folder,
                config.data.test,
                test_on=kind,
                num_threads=1,
                reading=config.data.reading,
                cache_dir=out / "cache",
            )
            values = {e.label: e.average_precision for e in found.metrics.per_class}
            file.write_text(json.dumps(values))
        _note(figures, row, few, kind, json.loads(file.read_text()))


def _note(figures: Figures, row: str, few: int | None, kind: str, values: dict[str, float]) -> None:
    for group, labels in GROUPS.items():
        own = [v for label, v in values.items() if int(label) in labels and v is not None]
        column = f"{'few' if few else 'all'}/{kind}/{group}"
        figures.setdefault(row, {}).setdefault(column, []).append(100 * float(np.mean(own)))


def _baselines(config: DetectConfig, out: Path, figures: Figures) -> None:
    """Chance, and the pixels of each box."""
    out.mkdir(parents=True, exist_ok=True)
    assert config.data.train is not None
    assert config.data.test is not None
    assert config.data.clip is not None
    data, test = KeyFrames.open(config.data.train), KeyFrames.open(config.data.test)
    rows, few = training_rows(config, data), config.data.num_videos
    targets = data.table.targets(rows)
    settings = DetectionSettings(
        clip=config.data.clip,
        view=config.data.view,
        regions=config.regions,
        features=EncodingConfig(),
    )
    for kind in ("truth", "predicted"):
        _, wanted = test_rows(test.table, kind)
        constant = np.tile(targets.mean(axis=0), (len(wanted), 1)).astype(np.float64)
        _note(figures, "chance", few, kind, _measure(test, wanted, constant))
        for name, frames in (("pixels, key frame", [4]), ("pixels, five frames", [0, 2, 4, 5, 7])):
            file = out / f"{name}_{kind}_{few or 'all'}.json".replace(" ", "_").replace(",", "")
            if not file.is_file():
                train_x = _pixels(data, rows, settings, frames)
                test_x = _pixels(test, wanted, settings, frames)
                mean, deviation = train_x.mean(0), train_x.std(0) + 1e-3
                head = _fit(config, data, rows, (train_x - mean) / deviation, settings)
                vectors = torch.from_numpy((test_x - mean) / deviation)
                shares = class_shares(head, vectors, torch.device("cpu"))
                file.write_text(json.dumps(_measure(test, wanted, shares)))
            _note(figures, name, few, kind, json.loads(file.read_text()))


def _measure(
    data: KeyFrames, rows: NDArray[np.int64], shares: NDArray[np.float64]
) -> dict[str, float | None]:
    found = detections(data.table, rows, shares, "class")
    classes = data.table.counted_classes
    metrics = detection_metrics(data.table.truth(), found, classes, RULES["alphaction"])
    return {str(entry.label): entry.average_precision for entry in metrics.per_class}


def _pixels(
    data: KeyFrames, rows: NDArray[np.int64], settings: DetectionSettings, frames: Sequence[int]
) -> NDArray[np.float32]:
    """The pixels of boxes at chosen frames of the clip: float32 [rows, numbers]."""
    by_key = data.by_key(rows)
    keys = np.array(list(by_key), dtype=np.int64)
    found: dict[int, NDArray[np.float32]] = {}
    clips = read_moments(data.moments(keys, settings, 8, None), readers=0, timeout_seconds=60)
    for key, clip in zip(keys.tolist(), clips, strict=True):
        assert isinstance(clip, MomentClip)
        own = by_key[key]
        boxes = moved_boxes(clip.plan, data.table.box[own], *data.sizes(key))
        for row, box in zip(own.tolist(), boxes, strict=True):
            left, top = np.floor(box[:2]).astype(int)
            right, bottom = np.maximum(np.ceil(box[2:]).astype(int), (left + 1, top + 1))
            part = clip.clip[:, list(frames), top:bottom, left:right].transpose(0, 1)
            small = resize_frames(part, _SIDE, _SIDE, "antialias")
            found[row] = small.numpy().astype(np.float32).reshape(-1) / 255
    return np.stack([found[row] for row in rows.tolist()])


def _fit(
    config: DetectConfig,
    data: KeyFrames,
    rows: NDArray[np.int64],
    vectors: NDArray[np.float32],
    settings: DetectionSettings,
) -> nn.Linear:
    """A head on pixels, trained as on features."""
    seed_torch(config.seed, "detection head")
    head = nn.Linear(vectors.shape[1], len(data.table.classes))
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    kept = FeatureSet((torch.from_numpy(vectors)[:, None, None],), rows)
    batches = DetectionBatches(
        data=data,
        rows=rows,
        batch_size=config.optim.batch_size,
        seed=config.seed,
        settings=settings,
        reading=config.data.reading,
        patch=8,
        passes=(kept,),
    )
    optim = OptimConfig(
        steps=batches.steps_for(config.optim.epochs),
        warmup_steps=batches.steps_for(config.optim.warmup_epochs),
        start_lr=0.0,
        peak_lr=config.optim.peak_lr,
        final_lr=0.0,
        schedule_stretch=1.0,
        start_weight_decay=config.optim.weight_decay,
        final_weight_decay=config.optim.weight_decay,
        clip_norm=None,
    )
    Trainer(
        task=Detection(head),
        batches=batches.batches,
        optim=optim,
        training=TrainingConfig(device="cpu", num_threads=1, health_every_steps=None),
        seed=config.seed,
        description="head on pixels",
    ).fit()
    return head.eval()


def _markdown(figures: Figures) -> str:
    """A table: one row a system, mAP in percent by group of classes, mean and spread of seeds."""
    columns = [
        f"{n}/{kind}/{g}" for n in ("all", "few") for kind in ("truth", "predicted") for g in GROUPS
    ]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row, cells in figures.items():
        shown = []
        for column in columns:
            found = over_seeds(cells[column])
            spread = f" +- {found.deviation:.1f}" if len(found.values) > 1 else ""
            shown.append(f"{found.mean:.1f}{spread}")
        lines.append(f"| {row} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", time.strftime("%Y-%m-%d %H:%M")])


if __name__ == "__main__":
    main()
