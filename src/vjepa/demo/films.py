"""The moving part of the demo's page: what the model watched, expects, follows, is surprised by.

Clips are the first ones, or evenly spread; none was chosen by how well it looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.checkpoint import AnyEncoder
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.data.manifest.manifest import Manifest
from vjepa.demo.synthetic import SyntheticConfig, render_clip, render_event
from vjepa.jobs.decode import decode_clip, open_decoder, sample_strips
from vjepa.jobs.show import Shot, feature_grid, read_shot
from vjepa.jobs.show_time import similar_rows, similarity, surprise_of
from vjepa.models import VJEPA, EncoderConfig
from vjepa.reporting.charts import Line, line_chart
from vjepa.reporting.html import Block, Chart, PictureBlock, Section, Table
from vjepa.reporting.pictures import Picture, moving_strip, tokens_to_frames, write_moving

WATCHED = 8
"""Clips that are shown."""
_A_ROW = 4
_DRAWN, _MEASURED = 3, 48
_FOLLOWED = 2
_FOLLOW_CLIPS = 200
_EVENTS = ("vanishes", "turns back")
_EVENT_CLIPS, _EVENT_FRAMES = 12, 24


def spread_shots(
    test: Manifest, clip: ClipConfig, view: ViewConfig, labels: tuple[str, ...], count: int
) -> list[Shot]:
    """Evenly spread clips of a manifest, named by their labels."""
    rows = np.unique(np.linspace(0, len(test) - 1, count).astype(int)).tolist()
    columns = [test.labels(label) for label in labels]
    return [
        read_shot(
            Path(test.path(row)),
            clip,
            view.crop_size,
            ", ".join(str(column[row]).replace("_", " ") for column in columns),
            view,
        )
        for row in rows
    ]


def watched_section(shots: list[Shot], count: int, labels: tuple[str, ...]) -> Section:
    """Some of the videos, moving."""
    rows = [(shot.name, shot.sharp) for shot in shots]
    size = shots[0].frames.shape[1]
    strips = [moving_strip(rows[start : start + _A_ROW]) for start in range(0, len(rows), _A_ROW)]
    caption = (
        f"Test clips, evenly spread, and their labels ({', '.join(labels)}), slowed down. They are "
        f"shown as they are; the model gets them at {size} x {size} pixels."
    )
    introduction = f"{count:,} such videos were watched. No label was used for that."
    return Section("What it watched", introduction, [PictureBlock(strips, caption)])


def drawn_section(decoder: Path, test: Manifest) -> Section:
    """What was hidden, what the model expects there, and how far that is from what came.

    The expected picture is what the decoder names without noise: the mean of all that the
    predicted features leave open.
    """
    opened = open_decoder(decoder)
    size, (masks, *_) = opened.model.config.encoder, opened.masks()
    rows = np.unique(np.linspace(0, len(test) - 1, _MEASURED).astype(int)).tolist()
    clips = [opened.preprocess.pixels(test.path(row)) for row in rows]
    expected = [decode_clip(opened, clip, masks, steps=1) for clip in clips]
    truth = torch.stack(clips).float()
    hidden = np.zeros(size.num_tokens, dtype=np.bool_)
    hidden[masks.target[0].numpy()] = True
    shape = truth.shape[2:]
    where = torch.from_numpy(tokens_to_frames(hidden.reshape(size.grid), *shape))
    first = int(where.flatten(1).any(1).nonzero()[0])
    strips = []
    for number in range(0, len(clips), max(1, len(clips) // _DRAWN))[:_DRAWN]:
        clip = clips[number]
        drawn = decode_clip(opened, clip, masks)
        (came, seen, sample, *_), _ = sample_strips(size, clip, masks, drawn, clip.shape[1])
        named = {
            "what came": np.stack(came.frames),
            "what it saw": np.stack(seen.frames),
            "what it expects": expected[number][0].movedim(0, -1).numpy(),
            "one way it could go": np.stack(sample.frames),
        }
        # A printed page shows the first picture: let it be the first that was hidden.
        strips.append(moving_strip([(n, np.roll(f, -first, axis=0)) for n, f in named.items()]))
    mine = torch.stack([one[0] for one in expected]).float()
    guesses = {
        "the expected picture": mine,
        "expected of another clip (control)": mine.roll(1, 0),
        "the mean of these clips": truth.mean(0, keepdim=True).expand_as(truth),
    }
    if first and bool(where[first:].all()):
        last = truth[:, :, first - 1 : first].expand_as(truth)
        guesses["the last frame seen, repeated"] = last
    errors = [
        (name, f"{float((guess - truth)[:, :, where].square().mean().sqrt()):.1f}")
        for name, guess in guesses.items()
    ]
    caption = (
        "Grey was hidden. The model predicts features of it, never pixels; a small decoder, which "
        "sees nothing of the clip but these predicted features, draws them. What it expects: the "
        "mean of all that they leave open, so what is sharp was predicted; what is blurred was "
        "not, or this small decoder has not learnt to draw it. All at "
        f"{size.image_size} x {size.image_size} pixels, enlarged."
    )
    head = (f"the hidden part of {len(clips)} test clips is filled by", "error, of 255 (RMS)")
    blocks: list[Block] = [
        PictureBlock(strips, caption),
        Table(head, errors, strong_rows=frozenset({0})),
    ]
    return Section("What it expects to come next", blocks=blocks)


def followed_section(
    encoders: Mapping[str, AnyEncoder], data: SyntheticConfig, clip: ClipConfig, view: ViewConfig
) -> Section:
    """Where features are like those of the moving digit, and how often that is where it went."""
    trained = tuple(encoders)[-1]
    size = encoders[trained].config
    strips = []
    for index in range(data.num_clips("test")):
        known = render_clip(data, "test", index)
        at = _places(known.centre_a[:1], view)[0]
        if known.motion.startswith("move_") and at.min() >= 0 and at.max() < 1:
            shot = read_shot(known.frames, clip, view.crop_size, view=view)
            rows = []
            for name, encoder in encoders.items():
                marked, alike = similar_rows(encoder, shot, (at[0], at[1]), 0)
                rows += [(name, alike[1])] if rows else [marked, (name, alike[1])]
            strips.append(moving_strip(rows))
        if len(strips) == _FOLLOWED:
            break
    grids = {name: partial(feature_grid, encoder) for name, encoder in encoders.items()}
    count = min(_FOLLOW_CLIPS, data.num_clips("test"))
    rates, steps = follow_rates(grids, data, size, clip, view, count)
    told = "; ".join(f"{name}: {100 * rate:.0f} %" for name, rate in rates.items())
    introduction = (
        "A mark is put on the moving digit in the first frame. Where is the clip most like that "
        f"place later on? In {steps} moments of {count} test clips in which the digit had moved "
        f"on, the most similar place is where it went: {told}; by chance "
        f"{100 / (size.grid[1] * size.grid[2]):.0f} %."
    )
    *others, mine = rates.values() or (1.0,)
    if mine <= max(others, default=0.0):
        introduction += " So training adds nothing here: colour and shape alone give it away."
    caption = (
        "Beside the clip: how alike the features at each place are to those at the ring, from "
        "blue-green (no more than any) over yellow to red (the same). A square is one token: "
        f"{size.patch_size} pixels, {size.tubelet_size} frames."
    )
    blocks = [PictureBlock(strips, caption)] if strips else []
    return Section("Does it follow a thing?", introduction, blocks)


def follow_rates(
    grids: Mapping[str, Callable[[Picture], NDArray[np.float32]]],
    data: SyntheticConfig,
    size: EncoderConfig,
    clip: ClipConfig,
    view: ViewConfig,
    count: int,
) -> tuple[dict[str, float], int]:
    """How often the most similar place of a later time step is where the digit has gone.

    As ``vjepa show similarity`` from the digit's token in the first time step, for those of the
    first `count` test clips in which it moves straight; counted are steps in which it is in another
    token than at first. A grid gives features [t, h, w, D] of a clip uint8 [T, S, S, 3]. Returned
    are the share for each, and the number of steps.
    """
    hits: dict[str, list[bool]] = {name: [] for name in grids}
    for index in range(count):
        known = render_clip(data, "test", index)
        middles = _places(known.centre_a, view).reshape(size.grid[0], -1, 2).mean(axis=1)
        cells = np.floor(middles * size.grid[1:][::-1]).astype(int)[:, ::-1]
        if not known.motion.startswith("move_") or cells.min() < 0 or cells.max() >= size.grid[1]:
            continue
        frames = read_shot(known.frames, clip, view.crop_size, view=view).frames
        for name, grid in grids.items():
            alike = similarity(grid(frames), (0, int(cells[0][0]), int(cells[0][1])))
            for step in range(1, size.grid[0]):
                if (cells[step] != cells[0]).any():
                    found = np.unravel_index(alike[step].argmax(), size.grid[1:])
                    hits[name].append(bool((cells[step] == found).all()))
    steps = len(next(iter(hits.values())))
    return {name: float(np.mean(each)) for name, each in hits.items() if each}, steps


def _places(centres: NDArray[np.float64], view: ViewConfig) -> NDArray[np.float64]:
    """Places [n, 2] as shares of the frame's side, as shares of the view in its middle."""
    inside = view.crop_size / (view.short_side or view.crop_size)
    return (centres - 0.5) / inside + 0.5


def surprised_section(
    model: VJEPA, data: SyntheticConfig, clip: ClipConfig, view: ViewConfig, folder: Path
) -> Section:
    """The surprise over time of clips in which something cannot be, and of their twins."""
    long = replace(data, num_frames=_EVENT_FRAMES, travel=0.6, background_speed=0.6)
    inside = view.crop_size / (view.short_side or view.crop_size)
    border = round(data.size * (1 - inside) / 2)
    lines, shown, above = [], [], dict.fromkeys(_EVENTS, 0)
    for number in range(_EVENT_CLIPS):
        usual = 0.0
        for colour, event in enumerate((None, *_EVENTS), start=1):
            frames, when = render_event(long, number, event)
            frames = frames[:, border : data.size - border, border : data.size - border]
            name = (event or "nothing happens").replace(" ", "_")
            video = folder / f"{number:02d}_{name}.mp4"
            write_moving(frames, video, 1 / data.fps)
            found = surprise_of(model, video, clip)
            if event is None:
                usual = found.values.max()
            else:
                above[event] += int(found.values.max() > usual)
            if number == 0:
                name = event or "nothing happens"
                moment = f", at {when / data.fps:.1f} s" if event else ""
                shown.append((f"{name}{moment}", frames))
                lines.append(Line(name, found.seconds.tolist(), found.values.tolist(), colour))
    counted = ", ".join(
        f"{above[event]} of {_EVENT_CLIPS} in which the digit {event}" for event in _EVENTS
    )
    introduction = (
        "All along a clip the model predicts what comes next; surprise is how wrong it was. The "
        "twins are the same until the moving digit does what its past does not tell. Of clips with "
        f"such an event, the highest surprise is above the twin's highest in {counted}. By chance "
        "it would be half."
    )
    curve = line_chart(lines, x_label="seconds", y_label="surprise")
    caption = (
        "The first of these clips, as they were tried. Surprise: mean absolute difference of "
        "predicted and true features, over the quarter of the places that were predicted worst."
    )
    blocks = [
        PictureBlock([moving_strip(shown)], caption),
        Chart(curve, "Its surprise over time.", wide=True),
    ]
    return Section("Does it notice what cannot be?", introduction, blocks)
