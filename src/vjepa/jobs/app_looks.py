"""What the page of `vjepa app` shows: looks at a video through models, as files and words.

Everything is computed by the functions behind `vjepa show`, `decode sample`, `probe predict` and
`search query`. A browser's tab is one session with a folder of its own, which goes with it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.checkpoint import AnyEncoder, locate
from vjepa.checkpoint.folder import CHECKPOINTS_FOLDER, step_folders
from vjepa.data.clips.plan import ClipConfig, indices_from
from vjepa.data.clips.source import VideoSource
from vjepa.data.video.decode import decode_clip as read_clip
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.errors import UserError
from vjepa.evaluation.preprocess import load_encoder, preprocess_of
from vjepa.jobs.decode import decode_clip, open_decoder, open_model, write_samples
from vjepa.jobs.pretrain import run_of
from vjepa.jobs.probe.predict import load_probe
from vjepa.jobs.search_report import clock, search
from vjepa.jobs.show import Rows, Shot, error_rows, feature_rows, read_shot
from vjepa.jobs.show_time import Surprise, peak_strips, similar_rows, surprise_of
from vjepa.masking import MaskingConfig, MaskSampler, TokenMasks
from vjepa.models import VJEPA, EncoderConfig
from vjepa.paths import as_path
from vjepa.reporting.charts import MAX_LINES, Line, write_line_chart
from vjepa.reporting.pictures import (
    Strip,
    marked,
    picture_of,
    resized,
    strip_of,
    write_png,
    write_side_by_side,
)
from vjepa.runtime.device import seed_torch

TRAINED, UNTRAINED = "demo", "untrained"
"""The shipped weights, and the same model before it has learnt anything."""
SIDE, CURVE_PIXELS = 512, 990
"""Of the picture that is clicked at, and the width of the curve."""
_SMALL, _KEPT_FILES, _PEAKS, _ANSWERS = 192, 60, 3, 5
_STILL, _LONGEST_LABEL, _ANY_LENGTH = 128, 24, 1 << 40
"""Frames of stills are small: on a phone their words have to be read."""

STOPPED = "stopped at your request"
Hide = Literal["as in its training", "what comes next", "a box"]
Watch = Callable[[int, int], None]
"""Called with (done, in all); raises UserError where the user has stopped the work."""


@dataclass
class Session:
    """One browser's tab: its video, its files, and whether its work was stopped."""

    folder: Path
    video: VideoInfo | None = None
    upload: Path | None = None
    """The file as it was uploaded; tabs that upload the same share it."""
    surprises: dict[str, tuple[Opened, Surprise]] = field(default_factory=dict)
    edges: tuple[float, float] = (0.0, 1.0)
    """Seconds at the left and the right edge of the curve that is shown."""
    corner: tuple[float, ...] | None = None
    """The first corner of a box, while the second is waited for."""
    models: list[str] = field(default_factory=list)
    """Those that were added to the offered ones."""
    stops: int = 0
    files: list[Path] = field(default_factory=list)

    def new_file(self, suffix: str) -> Path:
        """A name for a file of this session; the oldest of many go."""
        made = Path(tempfile.mkdtemp(dir=self.folder)) / f"look{suffix}"
        self.files.append(made)
        while len(self.files) > _KEPT_FILES:
            shutil.rmtree(self.files.pop(0).parent, ignore_errors=True)
        return made

    def watched(self, progress: Watch | None = None) -> Watch:
        """For work that begins now: shows how far it is, and ends it after the next stop."""
        before = self.stops

        def watch(done: int, total: int) -> None:
            if self.stops != before:
                raise UserError(STOPPED)
            if progress is not None:
                progress(done, total)

        return watch

    @property
    def current(self) -> VideoInfo:
        """Its video; UserError: there is none."""
        if self.video is None:
            raise UserError("no video yet: upload one or choose an example")
        return self.video


@dataclass(frozen=True)
class Opened:
    """A model to look into: its encoder, and its predictor or why there is none to look at."""

    name: str
    encoder: AnyEncoder
    clip: ClipConfig
    masking: MaskingConfig
    seed: int
    model: VJEPA | None
    why: str = ""

    @property
    def predicting(self) -> VJEPA:
        """The whole model; UserError: it predicts nothing that can be looked at."""
        if self.model is None:
            raise UserError(self.why)
        return self.model


def named_sizes(name: str) -> tuple[str, dict[str, int]]:
    """A path, and the sizes that may stand behind it: `vitl.pt num_heads=16 num_frames=16`.

    They are those that a file of weights may not say: num_heads, image_size, num_frames.
    """
    sizes: dict[str, int] = {}
    while found := re.fullmatch(r"(.+\S)\s+(num_heads|image_size|num_frames)=(\d+)", name.strip()):
        name, sizes[found[2]] = found[1], int(found[3])
    return name, sizes


def open_for_page(name: str) -> Opened:
    """A model by its path, with :func:`named_sizes`, or name, `untrained` among them; it is kept.

    Of a run that goes on it is the newest checkpoint, opened anew when there is another one.

    Raises:
        UserError: Nothing there that can be opened.
    """
    place = locate(as_path(named_sizes(name)[0]))
    steps = [*step_folders(place / CHECKPOINTS_FOLDER)]
    steps += step_folders(place / "run" / CHECKPOINTS_FOLDER)  # of `vjepa learn`
    return _opened(name, max(steps, default=0))


@lru_cache(maxsize=6)
def _opened(name: str, step: int) -> Opened:  # noqa: ARG001 (tells checkpoints apart)
    if name == UNTRAINED:
        trained = open_for_page(TRAINED)
        with torch.random.fork_rng(devices=[]):
            seed_torch(0, "weights")
            fresh = VJEPA(trained.predicting.config).eval()
        how = (trained.clip, trained.masking, trained.seed)
        return Opened(name, fresh.target_encoder, *how, fresh)
    name, sizes = named_sizes(name)
    path, model, why = as_path(name), None, ""
    if not locate(path).exists():
        raise UserError(f"{name}: no such file or folder, and no weights of that name")
    try:
        model = open_model(path, drawn=False, **sizes)
    except UserError as error:
        why = f"there is no prediction to look at: {str(error).removeprefix(f'{path}: ')}"
    encoder = model.target_encoder if model else load_encoder(path, "target", **sizes)
    run = run_of(path) if model else None
    how = (run.masking, run.seed) if run else (MaskingConfig(), 0)
    return Opened(name, encoder, preprocess_of(path, encoder.config).clip, *how, model, why)


@dataclass(frozen=True)
class View:
    """What a tab shows: files, and a line or more of words."""

    film: Path | None = None
    still: Path | None = None
    words: str = ""


def cut_clip(
    info: VideoInfo, clip: ClipConfig, start: float, *, whole: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float64], str]:
    """A model's clip from `start` on, or as late as it fits: frames [T, H, W, 3], times [T], note.

    A video that is too short repeats its last frame, and the note says so; or UserError, if the
    clip has to be `whole`.
    """
    note, numbers = "", np.zeros(clip.num_frames, dtype=np.int64)
    try:
        if info.kind == "image":
            note = "a still picture, the same in every frame"
            if whole:
                raise UserError("a still picture, in which nothing comes next; give a video")
        else:
            times = VideoSource(info).times
            span = int(indices_from(clip, _ANY_LENGTH, info.fps, 0.0)[-1])
            latest = info.num_frames - 1 - span
            if latest < 0:
                note = (
                    f"too short for this model: {info.num_frames} frames, and a clip takes "
                    f"{clip.num_frames} over {span / info.fps:.2f} s"
                )
                if whole:
                    raise UserError(f"{note}: nothing to predict; give a longer video")
                note += ": the last frame is repeated"
            by_number = times is not None and not clip.is_by_time
            end = times[max(0, latest)] if by_number else max(0, latest) / info.fps
            begin = float(np.clip(start, 0.0, end))
            numbers = indices_from(clip, info.num_frames, info.fps, begin, times)
        found = read_clip(info, numbers)
    except (DecodeError, ValueError) as error:
        reason = getattr(error, "reason", str(error))
        raise DecodeError(Path(info.path).name, reason) from error
    return found.frames, found.times, note


def _clip_among(opened: Opened, names: Sequence[str]) -> ClipConfig:
    """A model's frames. One of single images sees those of the first of video, or of `demo`."""
    for name in (*names, TRAINED) if opened.encoder.config.is_image_model else ():
        with suppress(UserError):  # the line of that model says it
            other = open_for_page(name)
            if not other.encoder.config.is_image_model:
                return other.clip
    return opened.clip


def look_through(
    session: Session,
    watch: Watch,
    names: Sequence[str],
    start: float,
    look: Callable[[Opened, Shot, NDArray[np.float64]], tuple[Rows, str]],
    *,
    whole: bool = False,
) -> View:
    """The same look at the video through several models, side by side.

    A model that cannot be shown costs only itself; its line says why.
    """
    if not names:
        raise UserError("no model is ticked: tick one or more")
    info, parts, lines = session.current, [], []
    for number, name in enumerate(names):
        watch(number, len(names))
        try:
            opened = open_for_page(name)
            whole = whole and opened.predicting is not None  # or why there is none
            clip = _clip_among(opened, names)
            frames, seconds, note = cut_clip(info, clip, start, whole=whole)
            shot = read_shot(frames, clip, opened.encoder.config.image_size)
            rows, line = look(opened, shot, seconds)
            parts.append((rows, seconds))
            lines.append(f"{name}: {'; '.join(filter(None, (line, note)))}")
        except UserError as error:
            lines.append(f"{name}: error: {str(error).removeprefix(f'{name}: ')}")
    watch(len(names), len(names))
    return _view(session, parts, lines) if parts else View(words="\n".join(lines))


def _view(
    session: Session, parts: Sequence[tuple[Rows, NDArray[np.float64]]], lines: Sequence[str]
) -> View:
    """Rows of several models, with their times, on one time axis: that of the most frames.

    The first row of each is its clip, of which one is shown. Grey: not in a model's clip.
    """
    longest, axis = max(parts, key=lambda part: len(part[1]))
    rows: Rows = [(longest[0][0], resized(longest[0][1], _SMALL))]
    for own, seconds in parts:
        apart = np.abs(axis[:, None] - seconds[None])
        unseen = apart.min(axis=1) > float(np.diff(seconds).max(initial=0.0)) + 1e-6
        for name, clip in own[1:]:
            shown = resized(clip, _SMALL)[apart.argmin(axis=1)]
            shown[unseen] = 128
            if not any(name == n and np.array_equal(shown, old) for n, old in rows):
                rows.append((name, shown))
    film, still = session.new_file(".mp4"), session.new_file(".png")
    write_side_by_side(rows, film, in_a_line=2 if len(rows) == 4 else 3, narrow=True)
    write_png(picture_of([_small(strip_of(*row)) for row in rows], narrow=True), still)
    return View(film, still, "\n".join(lines))


def _small(strip: Strip) -> Strip:
    return replace(strip, frames=list(resized(np.stack(strip.frames), _STILL)))


def features(
    session: Session, watch: Watch, names: Sequence[str], start: float, strength: float
) -> View:
    """The video with each model's features as colours over it; `strength` 1: colours alone."""

    def look(opened: Opened, shot: Shot, seconds: NDArray[np.float64]) -> tuple[Rows, str]:
        (_, sharp), (name, colours) = feature_rows([shot], {opened.name: opened.encoder})
        mixed = (1 - strength) * sharp + strength * colours
        words = f"{seconds[0]:.2f} to {seconds[-1]:.2f} s, {about(opened.encoder.config)}"
        return [("clip", sharp), (_short(name), mixed.round().astype(np.uint8))], words

    return look_through(session, watch, names, start, look)


def about(config: EncoderConfig) -> str:
    """The sizes of an encoder, in words."""
    frames = "single images" if config.is_image_model else f"{config.num_frames} frames"
    grid = " x ".join(map(str, config.grid[config.is_image_model :]))
    return f"{frames} of {config.image_size} px seen as {grid} tokens of {config.width} numbers"


def _short(name: str) -> str:
    """A model's name for a label: of a long path as many of its last parts as fit."""
    while len(name) > _LONGEST_LABEL and "/" in name:
        name = name.partition("/")[2]
    return name if len(name) <= _LONGEST_LABEL else f"…{name[1 - _LONGEST_LABEL :]}"


def frame_picture(
    session: Session,
    names: Sequence[str],
    start: float,
    share: float,
    at: Sequence[float] | None = None,
    box: Sequence[float] | None = None,
) -> Path:
    """A picture of one frame of the first model's clip, large, with a ring or a hidden box."""
    if not names:
        raise UserError("no model is ticked: tick one or more")
    opened = open_for_page(names[0])
    clip = _clip_among(opened, names)
    frames, _, _ = cut_clip(session.current, clip, start, whole=False)
    number = _frame_at(share, len(frames))
    sharp = read_shot(frames, clip, opened.encoder.config.image_size).sharp[number][None]
    shown = resized(sharp, SIDE)
    shown = shown if at is None else marked(shown, 0, (at[0], at[1]))
    if box is not None:
        left, top, right, bottom = (round(edge * shown.shape[1]) for edge in box)
        shown[0, top:bottom, left:right] = 128
    picture = session.new_file(".png")
    write_png(shown[0], picture)
    return picture


def _frame_at(share: float, length: int) -> int:
    return min(length - 1, max(0, int(share * length)))


def similar(
    session: Session, watch: Watch, names: Sequence[str], start: float, share: float, *at: float
) -> View:
    """What is alike, in all frames, to the place `at` in the frame `share` of the way through."""
    place = min(0.999, max(0.0, at[0])), min(0.999, max(0.0, at[1]))
    moment: list[float] = []

    def look(opened: Opened, shot: Shot, seconds: NDArray[np.float64]) -> tuple[Rows, str]:
        moment.append(float(seconds[_frame_at(share, len(seconds))]))
        frame = int(np.abs(seconds - moment[0]).argmin())
        clip, (_, alike) = similar_rows(opened.encoder, shot, place, frame)
        return [clip, (_short(opened.name), alike)], f"asked for at {seconds[frame]:.2f} s"

    return look_through(session, watch, names, start, look)


@dataclass(frozen=True)
class Hidden:
    """What is hidden of a clip: so, mask `number` of the training, or a box in all frames."""

    how: Hide
    number: int
    left: float
    """The edges of the box are shares of the picture that models see."""
    top: float
    right: float
    bottom: float


def hidden_masks(opened: Opened, hide: Hidden) -> list[TokenMasks]:
    """Masks of one clip, [1, K] and [1, M], one for each kind of mask that the model knows."""
    size = opened.encoder.config
    steps, rows, columns = size.grid
    if hide.how == "as in its training":
        sampler = MaskSampler(opened.masking, size.grid, size.tubelet_size, opened.seed)
        return sampler.one(hide.number)
    hidden = np.zeros(size.grid, dtype=np.bool_)
    if hide.how == "what comes next":
        hidden[steps // 2 :] = True
    else:
        down, across = (hide.top, hide.bottom), (hide.left, hide.right)
        if not all(0 <= first < last <= 1 for first, last in (down, across)):
            raise UserError("the box is empty: give left and top less than right and bottom")
        hidden[:, _tokens(*down, rows), _tokens(*across, columns)] = True
    if hidden.all() or not hidden.any():
        raise UserError("nothing would be left to predict from: hide less")
    flat = torch.from_numpy(hidden.reshape(-1))
    seen, wanted = (torch.nonzero(which).T for which in (~flat, flat))
    return [TokenMasks(seen, wanted)]


def unlike_training(masking: MaskingConfig, how: Hide) -> str:
    """What the training hid, where it never hid this kind of part; else nothing."""
    future = [mask.context_frames for mask in masking.masks if mask.context_frames]
    boxes = any(m.kind == "multiblock" and not m.context_frames for m in masking.masks)
    if how == "as in its training" or (boxes if how == "a box" else future):
        return ""
    hid = "boxes over the whole clip" if boxes else "single places over the whole clip"
    if future:
        hid = f"what comes after the first {max(future)} frames"
    return f"never trained on such a part, so this says little: its training hid {hid}"


def _tokens(start: float, end: float, count: int) -> slice:
    """The tokens nearest to a stretch, given in shares of them all; at least one."""
    first = min(count - 1, round(start * count))
    return slice(first, max(first + 1, round(end * count)))


def predictions(
    session: Session, watch: Watch, names: Sequence[str], start: float, *how: Any
) -> View:
    """What each model was shown, and how wrong it was about the rest, :class:`Hidden` so."""
    hide = Hidden(*how)

    def look(opened: Opened, shot: Shot, _: NDArray[np.float64]) -> tuple[Rows, str]:
        rows: Rows = [("clip", shot.sharp)]
        errors = []
        model = opened.predicting
        for kind, masks in enumerate(hidden_masks(opened, hide)):
            found, mean = error_rows(model, shot, masks, kind)
            name = _short(opened.name)
            rows += [found[1], *((f"{what}: {name}", error) for what, error in found[2:])]
            errors.append(f"{mean:.2f}")
        words = f"error {' and '.join(errors)} (1: no better than the clip's mean feature)"
        strange = opened.name != UNTRAINED and unlike_training(opened.masking, hide.how)
        return rows, f"{words}; {strange}" if strange else words

    return look_through(session, watch, names, start, look, whole=True)


def samples(
    session: Session,
    watch: Watch,
    start: float,
    hide: Hidden,
    decoder: Path,
    model: Path | None,
    count: int,
) -> View:
    """What a decoder draws into the hidden part, from its own model's predictions of it."""
    opened = open_decoder(decoder, model)
    clip = opened.preprocess.clip
    frames, _, _ = cut_clip(session.current, clip, start, whole=True)
    encoder = opened.model.config.encoder
    how = Opened("", opened.model.encoder, clip, opened.masking, opened.seed, opened.model)
    masks = hidden_masks(how, hide)[0]
    pixels = opened.preprocess.pixels(frames)
    drawn = []
    for seed in range(count):
        watch(seed, count)
        drawn.append(decode_clip(opened, pixels, masks, 0, [seed]))
    film, still = session.new_file(".mp4"), session.new_file(".png")
    said = write_samples(opened, pixels, masks, torch.cat(drawn), still, film, narrow=True)
    size = f"drawn at {encoder.image_size} x {encoder.image_size} px"
    words = filter(None, (size, said[1], unlike_training(opened.masking, hide.how)))
    return View(film, still, f"{decoder}: {'; '.join(words)}")


def surprises(session: Session, watch: Watch, names: Sequence[str]) -> tuple[View, float]:
    """The curve of each model's surprise, words for its peaks, and the second of the highest."""
    info, lines = session.current, []
    curves: dict[str, tuple[Opened, Surprise]] = {}

    def watch_video(done: int, total: int) -> None:
        if session.video is not info:  # another one was chosen meanwhile
            raise UserError(STOPPED)
        watch(done, total)

    session.surprises.clear()
    for name in names:
        try:
            if len(curves) == MAX_LINES:
                raise UserError(f"a chart holds {MAX_LINES} curves; tick fewer models")
            opened = open_for_page(name)
            found = surprise_of(opened.predicting, Path(info.path), opened.clip, 0, watch_video)
        except UserError as error:
            watch_video(0, 1)  # one that was stopped is no failure of the model
            lines.append(f"{name}: error: {str(error).removeprefix(f'{name}: ')}")
            continue
        curves[name] = opened, found
        peaks = found.peaks(_PEAKS, opened.encoder.config.grid[0])
        lines += [f"{name}: {line}" for line in (*map(found.line, peaks), found.rule())]
    if not curves:
        raise UserError("\n".join(lines) or "no model is ticked: tick one or more")
    watch_video(1, 1)
    session.surprises = curves
    _, first = next(iter(curves.values()))
    moment = float(first.seconds[first.peaks(1, 1)[0]])
    return replace(moment_of_surprise(session, moment), words="\n".join(lines)), moment


def moment_of_surprise(session: Session, moment: float) -> View:
    """The curve with a mark at a moment, and the frames around it as each model judged them."""
    info, curves = session.current, dict(session.surprises)
    if not curves:
        raise UserError("no curve yet: press the button that draws it")
    strips, lines, told = [], [], []
    for name, (opened, found) in curves.items():
        curve = (found.seconds.tolist(), found.values.tolist())
        lines.append(Line(_short(opened.name), *curve, level=found.unusual))
        index = int(np.abs(found.seconds - moment).argmin())
        how = (opened.clip, opened.encoder.config, float(found.errors.max()))
        before, wrong = peak_strips(Path(info.path), found, index, *how)
        if not strips or before.label != strips[0].label:
            strips.append(_small(before))
        strips.append(replace(_small(wrong), label=f"wrong: {_short(opened.name)}"))
        told.append(f"{name}: {found.line(index)}")
    if session.video is not info:
        raise UserError(STOPPED)
    drawn, still = session.new_file(".png"), session.new_file(".png")
    session.edges = write_line_chart(lines, drawn, moment, x_label="seconds", y_label="surprise")
    write_png(picture_of(strips, narrow=True), still)
    return View(drawn, still, "\n".join(told))


def classes(session: Session, probe: Path, encoder: Path | None) -> tuple[dict[str, float], str]:
    """The most probable classes of the whole video by a probe, and whose they are."""
    opened = load_probe(probe, encoder=encoder)
    answer = opened.predict(session.current.path, top=_ANSWERS)[0]
    if answer.failure:
        raise UserError(f"{Path(answer.path).name}: {answer.failure}; give another video")
    shares = {share.name: share.probability for share in answer.classes}
    return shares, f"of {len(opened.saved.classes)} classes; encoder {opened.saved.encoder.path}"


def moments(
    session: Session,
    database: Path,
    encoder: Path | None,
    between: tuple[float | None, float | None],
    count: int,
) -> View:
    """The moments of a database most alike to the video, or to a part of it."""
    sheet, path = session.new_file(".png"), Path(session.current.path)
    start, end = between
    found = search(
        database, path, sheet, start=start, end=end, count=count, encoder=encoder, narrow=True
    )
    if not found:
        raise UserError(f"{database}: holds no other moment than this video; add videos to it")
    lines = [
        f"{one.alike:.3f} alike: {Path(one.path).name}, {clock(one.start)} to {clock(one.end)}"
        for one in found
    ]
    return View(still=sheet, words="\n".join(lines))
