"""Pictures of clips, masks, features and predictions as uint8 images `[H, W, 3]`.

Every function takes plain NumPy arrays; nothing here knows a model or a job. What is shown is made
of :class:`Strip`: a page lays them out itself, a file gets them below each other, on no ground of
its own and with words that are read on light pages and on dark ones.
Shapes: `T` frames, `H W` pixels, `t h w` token grid, `D` feature width.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vjepa.errors import UserError
from vjepa.runtime.files import atomic_path

Picture = NDArray[np.uint8]
Moving = Literal["webp", "gif", "mp4"]
"""Forms of moving pictures."""

SHOWN_SIDE = 192
"""Height in pixels at which frames are shown at least."""
SECONDS_EACH = 0.25
"""How long a moving picture shows each frame of a clip: slower than life, a clip is short."""
MIDDLE_GREY = "#7b8087"
"""Of words that stand on any ground: it has the same contrast to white and to a dark page."""
_DARK_GROUND = (12, 13, 16)
_TRANSPARENT = (".png", ".webp")
_NOTE = 0x010E
"""Exif's description of a picture."""
_NOTING = ("AVIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
"""Forms that hold it."""
_HIDDEN_GREY = 128
_HEAT = ((20, 150, 160), (255, 210, 40), (225, 45, 30))
_GAP = 4
_MARGIN = 110
_LABEL_WIDTH, _NOTE_WIDTH = 12, 6
"""In heights of letters: the most of a label on the left, and the least of a note."""
_FONT_PIXELS, _LARGE_FONT_PIXELS = 14, 20


@dataclass(frozen=True)
class Strip:
    """Frames uint8 [H, W, 3] of one height side by side, a word or two for all, and for each.

    In the place of a frame a whole clip [T, H, W, 3] may stand: it moves on a page, and of it the
    middle frame is drawn in a file.
    """

    label: str
    frames: Sequence[Picture]
    notes: Sequence[str] = ()


def resized(frames: Picture, height: int) -> Picture:
    """Frames [T, H, W, 3] at a height in pixels, smoothly (bicubic)."""
    if frames.shape[1] == height:
        return frames
    to = (max(1, round(frames.shape[2] * height / frames.shape[1])), height)
    others = [Image.fromarray(frame).resize(to, Image.Resampling.BICUBIC) for frame in frames]
    return np.stack([np.asarray(image) for image in others])


def marked(frames: Picture, number: int, at: tuple[float, float]) -> Picture:
    """Frames [T, H, W, 3] with a ring in one of them, at shares of its width and height."""
    image = Image.fromarray(frames[number])
    x, y = at[0] * image.width, at[1] * image.height
    for radius, colour in ((0.055, "black"), (0.045, "white")):
        reach, line = radius * image.height, max(1, round(0.012 * image.height))
        ImageDraw.Draw(image).ellipse(
            (x - reach, y - reach, x + reach, y + reach), outline=colour, width=line
        )
    return np.concatenate([frames[:number], np.asarray(image)[None], frames[number + 1 :]])


def moving_strip(rows: Sequence[tuple[str, Picture]]) -> Strip:
    """Named clips [T, H, W, 3] side by side, moving, at a size that people can see."""
    clips = [resized(clip, max(SHOWN_SIDE, clip.shape[1])) for _, clip in rows]
    return Strip("", clips, [name for name, _ in rows])


def strip_of(label: str, frames: Picture, most: int = 4) -> Strip:
    """At most so many frames of a clip [T, H, W, 3], evenly spaced, at a size that people can see.

    The same for clips of equal length, so that what stands below each other is of one time.
    """
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), most)).round().astype(np.int64)
    return Strip(label, list(resized(frames[chosen], max(SHOWN_SIDE, frames.shape[1]))))


def words_font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The letters of charts, so that names in most alphabets are read; Pillow's own know ASCII."""
    import matplotlib as mpl  # not for every picture

    return ImageFont.truetype(f"{mpl.get_data_path()}/fonts/ttf/DejaVuSans.ttf", pixels)


def wrapped(text: str, font: Any, width: float) -> list[str]:
    """Lines of at most a width in pixels, broken where a word of a name ends, or else anywhere."""
    lines = []
    for part in text.splitlines():
        while part:
            end = min(len(part), max(1, int(width)))  # measured whole, a long text takes for ever
            while end > 1 and font.getlength(part[:end]) > width:
                end = max(1, min(end - 1, int(1.1 * end * width / font.getlength(part[:end]))))
            if end < len(part):
                for marks in ("/_-", " ") if part[end] != " " else ():  # at spaces before others
                    ends = max(part.rfind(mark, 0, end) for mark in marks) + 1
                    end = ends if 2 * ends > end else end
            lines.append(part[:end].rstrip())
            part = part[end:].lstrip()
    return lines


def picture_of(
    strips: Sequence[Strip], gap: int = _GAP, caption: str = "", *, narrow: bool = False
) -> Picture:
    """Strips below each other, labels on the left, notes below frames, a caption below.

    uint8 [H, W, 4]: between frames it is transparent. With `narrow` labels stand above their strips
    and words are large, so that they are read on a phone.
    """
    still = [[f[len(f) // 2] if f.ndim == 4 else f for f in strip.frames] for strip in strips]
    strips = [replace(strip, frames=own) for strip, own in zip(strips, still, strict=True)]
    # What is wide is seen smaller, so its words grow with it.
    frames_width = max(sum(frame.shape[1] for frame in strip.frames) for strip in strips)
    pixels = _LARGE_FONT_PIXELS if narrow else max(_FONT_PIXELS, frames_width // 90)
    font, line = words_font(pixels), round(1.4 * pixels)
    # No name makes a picture wider than its frames do: words go on in the next line.
    cells = [
        [
            max(frame.shape[1], _NOTE_WIDTH * pixels if note else 0)
            for frame, note in zip(
                strip.frames, strip.notes or [""] * len(strip.frames), strict=True
            )
        ]
        for strip in strips
    ]
    widths = [sum(cell) + gap * (len(cell) - 1) for cell in cells]
    labels = [
        wrapped(strip.label, font, max(widths) if narrow else _LABEL_WIDTH * pixels)
        for strip in strips
    ]
    notes = [
        [wrapped(note, font, to - 2 * gap) for note, to in zip(strip.notes, cell, strict=False)]
        for strip, cell in zip(strips, cells, strict=True)
    ]
    above = [line * len(label) + 2 * gap if narrow and label else 0 for label in labels]
    heights = [
        over
        + max(strip.frames[0].shape[0], 0 if narrow else line * len(label))
        + line * max(map(len, below), default=0)
        for strip, label, over, below in zip(strips, labels, above, notes, strict=True)
    ]
    widest = max(font.getlength(part) for label in labels for part in label or [""])
    margin = max(_MARGIN, round(widest) + 16) if widest and not narrow else 0
    width = margin + max(widths)
    words = wrapped(caption, font, width - 4)
    below = line * len(words) + (2 * gap if words else 0)
    size = (width, sum(heights) + gap * (len(strips) - 1) + below)
    page = Image.new("RGBA", size, (255, 255, 255, 0))  # white to a reader that knows no alpha
    draw, top = ImageDraw.Draw(page), 0
    for number, (strip, over, across) in enumerate(zip(strips, above, cells, strict=True)):
        left, foot = margin, top + over + strip.frames[0].shape[0]
        for place, (frame, cell) in enumerate(zip(strip.frames, across, strict=True)):
            page.paste(Image.fromarray(frame), (left + (cell - frame.shape[1]) // 2, top + over))
            for row, part in enumerate(notes[number][place] if strip.notes else ()):
                at = (left + cell // 2, foot + 2 + row * line)
                draw.text(at, part, MIDDLE_GREY, font, anchor="ma")
            left += cell + gap
        label, high = labels[number], line * len(labels[number])
        first = top + 2 * gap if narrow else top + max(0, (strip.frames[0].shape[0] - high) // 2)
        for row, part in enumerate(label):
            at = (2 if narrow else margin - 8, first + row * line)
            draw.text(at, part, MIDDLE_GREY, font, anchor="la" if narrow else "ra")
        top += heights[number] + gap
    if words:
        draw.text((2, top + gap), "\n".join(words), MIDDLE_GREY, font)
    return np.array(page)


def tokens_to_frames(grid: NDArray, num_frames: int, height: int, width: int) -> NDArray:
    """Spread one value (or vector) per token over the pixels that the token covers.

    [t, h, w] or [t, h, w, c] -> [T, H, W] or [T, H, W, c]; need not be multiples of the grid.
    """
    t, h, w = grid.shape[:3]
    frame_of = np.arange(num_frames) * t // num_frames
    row_of = np.arange(height) * h // height
    column_of = np.arange(width) * w // width
    return grid[frame_of][:, row_of][:, :, column_of]


def hide_masked(frames: Picture, masked: NDArray[np.bool_]) -> Picture:
    """The clip [T, H, W, 3] as the context encoder sees it (Figure 9 of the paper).

    Grey where `masked`, bool [t, h, w], says that a token is hidden.
    """
    where = tokens_to_frames(masked, *frames.shape[:3])
    return np.where(where[..., None], np.uint8(_HIDDEN_GREY), frames)


def heat(
    frames: Picture, values: NDArray[np.floating], where: NDArray[np.bool_], limit: float
) -> Picture:
    """Lay a heat map over a grey version of the clip [T, H, W, 3].

    Float `values` [t, h, w], such as the prediction error of each token, are drawn where the bool
    `where` [t, h, w] says so: 0 as blue-green, half of `limit` as yellow, `limit` as red.
    """
    grey = frames.mean(axis=-1, keepdims=True).repeat(3, axis=-1) * 0.6 + 60
    share = np.clip(values / max(limit, 1e-12), 0.0, 1.0)
    # Straight from blue-green to red the middle would be the grey of what is not drawn.
    channels = [np.interp(share, (0, 0.5, 1), channel) for channel in zip(*_HEAT, strict=True)]
    colours = tokens_to_frames(np.stack(channels, axis=-1), *frames.shape[:3])
    drawn = tokens_to_frames(where, *frames.shape[:3])[..., None]
    return np.where(drawn, 0.35 * grey + 0.65 * colours, grey).clip(0, 255).astype(np.uint8)


def pca_colours(tokens: NDArray[np.floating]) -> Picture:
    """The three main directions of a clip's features [t, h, w, D] as red, green, blue [t, h, w, 3].

    Each channel is stretched between its 1st and 99th percentile. The sign of a component is fixed
    (its largest loading is positive), so the same features give the same colours.
    """
    flat = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    centred = flat - flat.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:3]
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
    scores = np.zeros((len(flat), 3))
    scores[:, : len(directions)] = centred @ directions.T
    low, high = np.percentile(scores, 1, axis=0), np.percentile(scores, 99, axis=0)
    share = ((scores - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return (share * 255).round().astype(np.uint8).reshape(*tokens.shape[:3], 3)


def check_picture(path: Path) -> None:
    """Refuse a name that ends in no form of picture, before the work for it is done."""
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise UserError(
            f"{path}: no form of picture that is written ends in {path.suffix!r}; use .png"
        )


def check_still(path: Path) -> None:
    """Refuse a name of what cannot note the moving picture that is written beside it.

    Without the note the same command would refuse its own film the next time.
    """
    check_picture(path)
    if Image.registered_extensions()[path.suffix.lower()] not in _NOTING:
        raise UserError(
            f"{path}: a {path.suffix} file cannot note which moving picture lies beside it; "
            "use .png, .jpg, .webp or .tif"
        )


def write_png(picture: Picture, path: Path, film: Path | None = None) -> None:
    """Write uint8 [H, W, 3 or 4] as a picture file, which notes the `film` that it was made with.

    UserError: the name ends in what is no picture.
    """
    check_picture(path)
    form, exif = Image.registered_extensions()[path.suffix.lower()], Image.Exif()
    if film is not None:
        exif[_NOTE] = _digest(film)
    with atomic_path(path, durable=False) as aside:  # it can be made again
        # With optimize it takes six times as long and saves 5 % of the size.
        Image.fromarray(_grounded(picture, path.suffix)).save(aside, format=form, exif=exif)


def _digest(film: Path) -> str:
    with film.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def film_beside(still: Path, moving: Moving, videos: Sequence[Path]) -> Path:
    """Where the moving picture beside a still one is written; never over one of `videos`.

    UserError: a file is there that was not made with this still, or as :func:`check_still`.
    """
    check_still(still)
    film = still.with_suffix(f".{moving}")
    while film.resolve() in (still.resolve(), *(video.resolve() for video in videos)):
        film = film.with_stem(f"{film.stem}_moving")
    if film.exists():
        try:
            with Image.open(still) as image:
                made_with = image.getexif().get(_NOTE)
        except OSError:
            made_with = None
        if made_with is None or made_with != _digest(film):
            raise UserError(
                f"{film}: is there, and was not made with {still}: give another --out, or remove it"
            )
    return film


def _grounded(picture: Picture, suffix: str) -> Picture:
    """The picture on dark ground, for a file that cannot be transparent."""
    if suffix.lower() in _TRANSPARENT or picture.shape[-1] == 3:
        return picture
    alpha = picture[..., 3:] / 255.0
    mixed = alpha * picture[..., :3] + (1 - alpha) * _DARK_GROUND
    return mixed.round().astype(np.uint8)


def write_moving(frames: Iterable[Picture], path: Path, seconds_each: float) -> None:
    """Write frames uint8 [H, W, 3 or 4] of one size as a moving .webp, .gif or .mp4 (H.264).

    It begins again at its end, but for .mp4, where the player decides; and only an .mp4 is written
    frame by frame, as long as it may be. The file is whole or not there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = (_grounded(frame, path.suffix) for frame in frames)
    with atomic_path(path) as aside:
        if path.suffix == ".mp4":
            write_mp4(frames, aside, Fraction(1 / seconds_each).limit_denominator(1000))
            return
        _save_moving(frames, aside, path.suffix[1:], seconds_each)


def _save_moving(
    frames: Iterable[Picture], target: Path | io.BytesIO, form: str, seconds_each: float
) -> None:
    images = [Image.fromarray(frame) for frame in frames]
    if form == "gif":  # of 256 colours, spread so that what is rare stays: red in a heat map
        how = Image.Quantize.MAXCOVERAGE
        images = [image.quantize(palette=image.quantize(256, how)) for image in images]
    images[0].save(
        target,
        kmax=1,  # webp: every frame whole; laid over each other, half-clear words grow bold
        format=form,
        save_all=True,
        append_images=images[1:],
        duration=round(1000 * seconds_each),
        loop=0,
    )


def write_side_by_side(
    rows: Sequence[tuple[str, Picture]], path: Path, in_a_line: int = 4, *, narrow: bool = False
) -> None:
    """Write named clips [T, H, W, 3] of one length as one moving picture, some side by side.

    `narrow` as for :func:`picture_of`.
    """
    lines = [moving_strip(rows[n : n + in_a_line]) for n in range(0, len(rows), in_a_line)]
    pages = []
    for time in range(len(rows[0][1])):
        now = [replace(line, frames=[clip[time] for clip in line.frames]) for line in lines]
        pages.append(picture_of(now, narrow=narrow))
    write_moving(pages, path, SECONDS_EACH)


def write_rows(
    rows: Sequence[tuple[str, Picture]],
    still: Path,
    film: Path,
    caption: str,
    in_a_line: int = 4,
    most: int = 4,
) -> str:
    """Named clips as a picture, below each other, and moving, some side by side; both names.

    Of each clip the still picture has at most so many frames; `film` is of :func:`film_beside`.
    """
    write_side_by_side(rows, film, in_a_line)
    write_png(picture_of([strip_of(*row, most) for row in rows], caption=caption), still, film)
    return f"{still}, {film}"


def write_mp4(
    frames: Iterable[Picture], path: Path, rate: Fraction, options: Mapping[str, str] | None = None
) -> None:
    """Write frames uint8 [H, W, 3] as H.264, a row or column less where a side is odd.

    `rate` is frames per second, and `options` are more of the encoder's.
    """
    import av  # not for every picture

    with av.open(str(path), mode="w", format="mp4") as container:
        how = {"crf": "18", **(options or {})}
        stream = container.add_stream("libx264", rate=rate, options=how)
        for number, picture in enumerate(frames):
            if number == 0:
                stream.height, stream.width = (side // 2 * 2 for side in picture.shape[:2])
                stream.pix_fmt = "yuv420p"
            even = np.ascontiguousarray(picture[: stream.height, : stream.width])
            frame = av.VideoFrame.from_ndarray(even, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def data_uri(picture: Picture) -> str:
    """A picture [H, W, 3] as PNG, or a clip [T, H, W, 3] as moving WebP, written as a data URI.

    So that a report is one file without references.
    """
    buffer, form = io.BytesIO(), "png"
    if picture.ndim == 4:
        form = "webp"
        _save_moving(picture, buffer, form, SECONDS_EACH)
    else:
        Image.fromarray(picture).save(buffer, format="PNG")
    return f"data:image/{form};base64," + base64.b64encode(buffer.getvalue()).decode()
