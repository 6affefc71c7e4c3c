"""A detector on any video: who does what, where and when; as a table, and drawn into the video."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vjepa.checkpoint.torch_files import read_torch_file
from vjepa.data.ava import box_problem, read_persons
from vjepa.data.boxes import BoxTable, ImageKey
from vjepa.data.clips.plan import frames_at
from vjepa.data.clips.source import VideoSource
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.decode import read_frames
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.errors import UserError
from vjepa.evaluation.box_features import KeyFrames, class_shares
from vjepa.jobs.detect.detector import Detector
from vjepa.jobs.videos import files_of
from vjepa.reporting.pictures import words_font, write_moving
from vjepa.runtime.device import DeviceSetup
from vjepa.runtime.files import atomic_write, check_kind, write_csv
from vjepa.runtime.progress import Progress

PREDICTION_FILES = (".csv", ".jsonl")
PERSON_MODEL = "fasterrcnn_resnet50_fpn"
PERSON = 1
"""The class of people in COCO, which torchvision's detectors are trained on."""
_FRAMES_AT_ONCE = 4
_LEAST_SHARE = 0.3
_LEAST_DRAWN = 360  # pixels of the drawn video's short side, so that words can be read
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")

_Rectangle = tuple[float, ...]  # left, top, right, bottom

Persons = list[tuple[float, tuple[float, ...], float]]
"""Boxes of people in a video: seconds from its start, x1 y1 x2 y2 as shares of a frame, score."""


@dataclass(frozen=True)
class BoxAnswer:
    """One person at one moment: the most probable classes first, with their shares in [0, 1]."""

    path: str
    second: float
    box: tuple[float, ...]
    person_score: float
    classes: tuple[tuple[str, float], ...]

    @property
    def sentence(self) -> str:
        """In words."""
        shown = ", ".join(f"{name} {100 * share:.0f} %" for name, share in self.classes)
        sides = " ".join(f"{side:.2f}" for side in self.box)
        return f"{self.second:8.2f} s  [{sides}]  {shown}"


def predict(
    detector: Detector,
    sources: Sequence[Path],
    *,
    persons: Path | None = None,
    person_detector: Path | None = None,
    person_model: str = PERSON_MODEL,
    min_person_score: float = 0.9,
    every: float = 1.0,
    top: int = 3,
) -> tuple[tuple[BoxAnswer, ...], Mapping[str, str]]:
    """Classes of every person, at moments `every` seconds apart or at those that a csv file names.

    And the videos that could not be read, with the reason. `persons` is that csv file (video,
    second, x1, y1, x2, y2, class, score): the video is the file's name without ending, seconds
    count from its start. Or `person_detector` holds the weights of torchvision's `person_model`,
    trained on COCO, which looks at the frames of the moments.

    Raises:
        UserError: Neither or both kinds of boxes are given, or there is no person in any video.
    """
    if (persons is None) == (person_detector is None):
        raise UserError(
            "people's boxes: give a csv file (--persons) or the weights of one of torchvision's "
            "detectors (--person-detector), one of the two"
        )
    if persons is not None and (every, person_model) != (1.0, PERSON_MODEL):
        name = "--every" if every != 1.0 else "--person-model"
        raise UserError(
            f"{name}: is for --person-detector; {persons} says which people, and when: leave it out"
        )
    if not every > 0 or top < 1:
        raise UserError(f"every and top must be above 0, got {every:g} and {top}")
    infos = files_of(sources)
    names = [Path(info.path).stem for info in infos]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two videos are called {twice[0]!r}; rename one, or give one at a time")
    failures = {info.path: info.reason or "cannot be read" for info in infos if not info.ok}
    good = [info for info in infos if info.ok]
    found: dict[str, Persons]
    if persons is not None:
        found = _of_file(persons, good, min_person_score)
    else:
        assert person_detector is not None
        model = load_person_detector(person_detector, person_model)
        setup = detector.features.setup
        found = {}
        for info in good:
            try:
                found[info.path] = find_people(model, info, every, min_person_score, setup)
            except DecodeError as error:
                failures[info.path] = error.reason
    if not any(found.values()):
        raise UserError(
            f"no person with a score of {min_person_score:g} or more in any video "
            f"({len(failures)} of {len(infos)} cannot be read): lower --min-person-score"
        )
    answers, more = _answers(detector, good, found, top)
    return answers, failures | more


def _of_file(path: Path, infos: Sequence[VideoInfo], least: float) -> dict[str, Persons]:
    """People by the path of the video, from a csv file."""
    paths = {Path(info.path).stem: info for info in infos}
    found: dict[str, Persons] = {info.path: [] for info in infos}
    rows = read_persons(path)
    persons = dict[tuple[ImageKey, tuple[float, ...]], float]()  # a row for each class is one
    for key, box, _, score in rows:
        persons[key, box] = max(score, persons.get((key, box), 0.0))
    for ((video, second), box), score in persons.items():
        if video not in paths or score < least:
            continue
        info = paths[video]
        if not 0 <= second <= info.duration_seconds:
            raise UserError(
                f"{path}: second {second:g} of {video!r} is outside of the video, which lasts "
                f"{info.duration_seconds:g} s; seconds count from the file's start"
            )
        if (problem := box_problem(box)) is not None:
            raise UserError(f"{path}: of {video!r} at {second:g} s {problem}; mend it")
        found[info.path].append((second, box, score))
    if rows and not any(video in paths for (video, _), *_ in rows):
        raise UserError(
            f"{path}: names none of the videos (first: {rows[0][0][0]!r}); its first column is "
            "the file's name without its ending"
        )
    return found


def load_person_detector(path: Path, name: str) -> torch.nn.Module:
    """One of torchvision's detectors, in evaluation mode, with its weights (91 classes of COCO).

    UserError: no such model, or weights of another one. Nothing is downloaded.
    """
    from torchvision.models import detection as detectors
    from torchvision.models import get_model, list_models

    if name not in list_models(module=detectors):
        raise UserError(
            f"--person-model {name}: torchvision has {', '.join(list_models(module=detectors))}"
        )
    model = get_model(name, weights=None, weights_backbone=None)
    stored = read_torch_file(path)
    wanted = model.state_dict()
    wrong = [
        key
        for key in sorted(stored.keys() | wanted.keys())
        if key not in stored
        or key not in wanted
        or getattr(stored[key], "shape", None) != wanted[key].shape
    ]
    if wrong:
        raise UserError(
            f"{path}: is not a file of weights of torchvision's {name}: {len(wrong)} tensors are "
            f"missing, unknown or of another shape (first: {wrong[0]}); see --person-model"
        )
    model.load_state_dict(stored)
    return model.eval()


def _moments(info: VideoInfo, every: float) -> NDArray[np.float64]:
    """When people are looked for in a video, in seconds from its start."""
    return np.arange(min(every, info.duration_seconds) / 2, info.duration_seconds, every)


@torch.no_grad()
def find_people(
    model: torch.nn.Module, info: VideoInfo, every: float, least: float, setup: DeviceSetup
) -> Persons:
    """The people that a detector of torchvision sees at moments of a video; DecodeError."""
    seconds = _moments(info, every)
    shown = None if (times := VideoSource(info).times) is None else times * info.fps
    numbers = frames_at(seconds * info.fps, info.num_frames, shown)
    model, found = model.to(setup.device), Persons()
    frames = read_frames(info, numbers)
    with Progress(f"people in {Path(info.path).name}", len(seconds)) as progress:
        for start in range(0, len(seconds), _FRAMES_AT_ONCE):
            own = seconds[start : start + _FRAMES_AT_ONCE].tolist()
            images = [
                torch.from_numpy(np.array(frame.image)).movedim(-1, 0).float().div(255)
                for frame in islice(frames, len(own))
            ]
            for second, seen in zip(own, model([i.to(setup.device) for i in images]), strict=True):
                keep = (seen["labels"] == PERSON) & (seen["scores"] >= least)
                boxes = seen["boxes"][keep].cpu().double().numpy()
                boxes /= np.array([info.width, info.height] * 2)
                scores = seen["scores"][keep].cpu().tolist()
                found += [
                    (second, tuple(box), score)
                    for box, score in zip(boxes.tolist(), scores, strict=True)
                    if box[0] < box[2] and box[1] < box[3]
                ]
            progress.update(start + len(own))
    return found


def _answers(
    detector: Detector, infos: Sequence[VideoInfo], found: Mapping[str, Persons], top: int
) -> tuple[tuple[BoxAnswer, ...], dict[str, str]]:
    """The detector's classes of people, and the videos whose moments could not be read."""
    people = [(info, *person) for info in infos for person in found.get(info.path, [])]
    classes = detector.saved.classes
    seconds = np.array([second for _, second, _, _ in people])
    table = BoxTable(
        source_file="people",
        videos=Path(),
        classes=classes,
        evaluated=(),
        video=tuple(Path(info.path).stem for info, *_ in people),
        second=seconds,
        time=seconds,
        box=np.array([box for _, _, box, _ in people]).reshape(-1, 4),
        labels=(None,) * len(people),
        score=np.array([score for *_, score in people]),
        source=("predicted",) * len(people),
    )
    manifest = Manifest.from_rows([ManifestRow(info=info) for info in infos], "/")
    rows = np.arange(len(people), dtype=np.int64)
    vectors = detector.features.features(KeyFrames(table, manifest), rows, "the people")
    head, device = detector.saved.head, detector.features.setup.device
    shares = class_shares(head, vectors.tokens, device)
    names, answers = list(classes.values()), []
    for row, own in zip(vectors.rows.tolist(), shares, strict=True):
        info, second, box, score = people[row]
        best = np.argsort(-own, kind="stable")[:top]
        shown = tuple((names[number], float(own[number])) for number in best)
        answers.append(BoxAnswer(info.path, second, tuple(box), score, shown))
    return tuple(answers), {bad.path: bad.reason for bad in vectors.bad}


def write_predictions(
    path: Path, answers: Sequence[BoxAnswer], failures: Mapping[str, str]
) -> None:
    """Write a line a box: as JSON objects, or as csv with columns for each of the classes."""
    check_kind("--out", path, *PREDICTION_FILES)
    if path.suffix == ".jsonl":
        plain: list[dict[str, Any]] = []
        for one in answers:
            shown = [{"name": name, "share": share} for name, share in one.classes]
            plain.append({**asdict(one), "classes": shown})
        plain += [{"path": failed, "failure": reason} for failed, reason in failures.items()]
        atomic_write(path, "".join(json.dumps(values) + "\n" for values in plain))
        return
    most = max((len(answer.classes) for answer in answers), default=0)
    columns = [f"{what}_{n + 1}" for n in range(most) for what in ("class", "share")]
    rows: list[tuple[object, ...]] = [
        ("path", "second", "x1", "y1", "x2", "y2", "person_score", *columns, "failure")
    ]
    for one in answers:
        cells = chain.from_iterable(one.classes)
        rows.append((one.path, one.second, *one.box, one.person_score, *cells, ""))
    rows += [(failed, *[""] * (6 + 2 * most), reason) for failed, reason in failures.items()]
    write_csv(path, rows)


def draw(
    info: VideoInfo,
    answers: Sequence[BoxAnswer],
    out: Path,
    persons: Path | None = None,
    every: float = 1.0,
) -> None:
    """Draw the answers of one video into a copy of it (.mp4).

    Each box is shown from half-way to the moment before to half-way to the one after; of its
    classes those of a share of 0.3 or more, or the most probable one. `persons` and `every` as for
    :func:`predict`: they say which moments were looked at, with people or without. A
    file names none without: no box is shown further than half of its moments' usual spacing.
    """
    own = [answer for answer in answers if answer.path == info.path]
    moments, reach = _moments(info, every), math.inf
    if persons is not None:
        rows, name = read_persons(persons), Path(info.path).stem
        moments = np.unique([second for (video, second), *_ in rows if video == name])
        reach = float(np.median(np.diff(moments))) / 2 if len(moments) > 1 else reach
    scale = max(1, -(-_LEAST_DRAWN // min(info.height, info.width)))
    font = words_font(max(12, min(info.height, info.width) * scale // 28))

    def frames() -> Iterator[NDArray[np.uint8]]:
        for frame in read_frames(info, np.arange(info.num_frames)):
            picture = Image.fromarray(frame.image)
            picture = picture.resize((info.width * scale, info.height * scale))
            now = moments[np.abs(moments - frame.seconds).argmin()] if len(moments) else None
            pen: Any = ImageDraw.Draw(picture)
            if now is not None and abs(now - frame.seconds) <= reach:
                beside = [answer for answer in own if answer.second == now]
                _draw_boxes(pen, beside, picture.size, font)
            yield np.asarray(picture)

    write_moving(frames(), out, 1 / info.fps if info.fps > 0 else 1.0)


def _draw_boxes(pen: Any, answers: Sequence[BoxAnswer], size: tuple[int, int], font: Any) -> None:
    """All boxes, then their labels, so that nothing lies on a label."""
    corners = [
        tuple(share * side for share, side in zip(answer.box, size * 2, strict=True))
        for answer in answers
    ]
    colours = [_COLOURS[number % len(_COLOURS)] for number in range(len(answers))]
    for corner, colour in zip(corners, colours, strict=True):
        pen.rectangle(corner, outline=colour, width=2)
    taken: list[_Rectangle] = []
    for answer, corner, colour in zip(answers, corners, colours, strict=True):
        shown = [entry for entry in answer.classes if entry[1] >= _LEAST_SHARE]
        shown = shown or answer.classes[:1]
        text = "\n".join(f"{name} {100 * share:.0f}" for name, share in shown)
        left, top, right, bottom = pen.multiline_textbbox((0, 0), text, font=font)
        taken.append(label_place(corner, (right - left + 4, bottom - top + 4), size, taken))
        pen.rectangle(taken[-1], fill=colour)
        x, y = taken[-1][:2]
        pen.multiline_text((x + 2 - left, y + 2 - top), text, fill="white", font=font)


def label_place(
    box: _Rectangle, label: tuple[float, float], size: tuple[int, int], taken: Sequence[_Rectangle]
) -> _Rectangle:
    """Where a label goes: above its box, or as near to that as it covers none that is placed.

    `label` and `size` are width and height of label and picture. If there is no such place above or
    below, it covers another.
    """
    width, height = math.ceil(label[0]), math.ceil(label[1])  # whole rows: compared below
    x = max(0.0, min(box[0], size[0] - width))
    wanted, lowest = max(0, round(box[1]) - height), size[1] - height
    in_the_way = [other for other in taken if other[0] < x + width and x < other[2]]
    possible = [wanted, *(y for _, top, _, bottom in in_the_way for y in (top - height, bottom))]
    free = [
        y
        for y in possible
        if 0 <= y <= lowest
        and all(y + height <= top or bottom <= y for _, top, _, bottom in in_the_way)
    ]
    y = min(free, key=lambda y: abs(y - wanted), default=wanted)
    return x, y, x + width, y + height
