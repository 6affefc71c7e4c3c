"""The moving part of the demo's page: what the model watched, expects, follows, is surprised by.

Clips are the first ones, or evenly spread; none was chosen by how well it looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.data.manifest.manifest import Manifest
from vjepa.demo.synthetic import SyntheticConfig, render_clip, render_event
from vjepa.jobs.decode import decode_clip, open_decoder, sample_strips
from vjepa.jobs.show import Shot, read_shot
from vjepa.jobs.show_time import similarity, surprise_of
from vjepa.masking import TokenMasks
from vjepa.models import VJEPA, EncoderConfig
from vjepa.reporting.charts import Line, line_chart
from vjepa.reporting.html import Block, Chart, PictureBlock, Section, Table
from vjepa.reporting.pictures import (
    Picture,
    heat,
    marked,
    moving_strip,
    tokens_to_frames,
    write_moving,
)
from vjepa.tasks.decoding import predicted_features
from vjepa.tasks.masked_prediction import normalise_features

_A_ROW = 4
_DRAWN, _MEASURED = 3, 48
_FOLLOWED = 2
_FOLLOW_CLIPS = 200
_EVENTS = ("vanishes", "turns back")
_EVENT_CLIPS, _EVENT_FRAMES = 12, 24


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


@torch.no_grad()
def expected_grid(model: VJEPA, frames: Picture) -> NDArray[np.float32]:
    """Features of a clip's first half, and for the second, which is hidden, those it predicts.

    uint8 [T, H, W, 3] -> float32 [t, h, w, D], normalised as in the loss.
    """
    grid = model.config.encoder.grid
    tokens = torch.arange(math.prod(grid))[None]
    masks = TokenMasks(*tokens.split(grid[0] // 2 * grid[1] * grid[2], dim=1))
    clips = model.encoder.normalise(torch.from_numpy(frames).permute(3, 0, 1, 2)[None])
    seen = normalise_features(model.target_encoder(clips, masks.context))
    predicted = predicted_features(model, clips, masks)
    return torch.cat([seen, predicted], dim=1).reshape(*grid, -1).numpy()


def followed_section(
    grids: Mapping[str, Callable[[Picture], NDArray[np.float32]]],
    data: SyntheticConfig,
    size: EncoderConfig,
    clip: ClipConfig,
    view: ViewConfig,
) -> Section:
    """Where the moving digit is expected in the hidden half, and how often that is where it went.

    As ``vjepa show similarity`` from the digit's token in the last time step of the first half, for
    those of some test clips in which it moves straight and is always in view. A grid gives features
    [t, h, w, D] of a clip uint8 [T, S, S, 3].
    """
    strips, last, count = [], size.grid[0] // 2 - 1, min(_FOLLOW_CLIPS, data.num_clips("test"))
    hits: dict[str, list[bool]] = {name: [] for name in grids}
    inside = view.crop_size / (view.short_side or view.crop_size)
    for index in range(count):
        known = render_clip(data, "test", index)
        places = (known.centre_a.reshape(size.grid[0], -1, 2).mean(axis=1) - 0.5) / inside + 0.5
        if not known.motion.startswith("move_") or places.min() < 0 or places.max() >= 1:
            continue
        shot = read_shot(known.frames, clip, view.crop_size, view=view)
        cells = np.floor(places[:, ::-1] * size.grid[1:]).astype(int)
        start = last, int(cells[last][0]), int(cells[last][1])
        alike = {name: similarity(grid(shot.frames), start) for name, grid in grids.items()}
        for step in range(last + 1, size.grid[0]):
            if (cells[step] != cells[last]).any():
                for name, found in alike.items():
                    best = np.unravel_index(found[step].argmax(), size.grid[1:])
                    hits[name].append(bool((cells[step] == best).all()))
        if len(strips) < _FOLLOWED:
            at, where = (places[last][0], places[last][1]), np.ones(size.grid, dtype=np.bool_)
            rows = [("what came", marked(shot.sharp, last * size.tubelet_size, at))]
            rows += [(name, heat(shot.sharp, x, where, 1.0)) for name, x in alike.items()]
            strips.append(moving_strip(rows))
    moments = len(next(iter(hits.values())))
    told = "; ".join(f"{name} {100 * float(np.mean(x)):.0f} %" for name, x in hits.items() if x)
    introduction = (
        "A mark is put on the moving digit in the last frames that the model sees. Where in the "
        "frames that it does not see are the features that it predicts most like those at the "
        f"mark? In {moments} moments of {count} test clips in which the digit had moved on, that "
        f"is where it went: {told}; by chance {100 / (size.grid[1] * size.grid[2]):.0f} %."
    )
    caption = (
        "How alike the features at each place are to those at the ring, from blue-green (no more "
        "than any) over yellow to red (the same): first seen features, then predicted ones, drawn "
        f"over what came. A square is one token: {size.patch_size} pixels, {size.tubelet_size} "
        "frames."
    )
    blocks = [PictureBlock(strips, caption)] if strips else []
    return Section("Does it follow a thing?", introduction, blocks)


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
