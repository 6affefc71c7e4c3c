"""Pictures: exact pixels for small inputs."""

from __future__ import annotations

import base64
import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from vjepa.data.clips.dataset import load_clip
from vjepa.errors import UserError
from vjepa.reporting import pictures
from vjepa.reporting.pictures import Strip


def test_strips_keep_every_pixel_beside_a_margin_of_labels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3)).astype(np.uint8)
    other = frames[:1, :, :12]
    picture = pictures.picture_of([Strip("one", list(frames)), Strip("two", list(other))], gap=2)
    margin = picture.shape[1] - (30 + 2 + 30)
    assert picture.shape[0] == 20 + 2 + 20
    inside, ground = picture[:, margin:, :3], picture[:, margin:, 3] == 0
    np.testing.assert_array_equal(inside[:20, :30], frames[0])
    np.testing.assert_array_equal(inside[:20, 32:], frames[1])
    np.testing.assert_array_equal(inside[22:, :12], other[0])
    assert ground[:20, 30:32].all()
    assert ground[20:22].all()
    assert not ground[:20, :30].any()
    labels = picture[:20, :margin, 3], picture[22:, :margin, 3]
    assert all((label > 0).any() for label in labels)
    assert not np.array_equal(*labels)


def test_hide_masked_greys_only_the_masked_patches() -> None:
    frames = np.full((4, 8, 8, 3), 200, np.uint8)
    masked = np.zeros((2, 2, 2), bool)
    masked[1, 0, 1] = True
    shown = pictures.hide_masked(frames, masked)
    assert (shown[:2] == 200).all()
    assert (shown[2:, :4, 4:] == 128).all()
    assert (shown[2:, 4:] == 200).all()


def test_pca_colours_separate_two_groups_and_are_stable() -> None:
    tokens = np.zeros((2, 2, 2, 5))
    tokens[:, :, 1, 3] = 10.0
    tokens += np.random.default_rng(0).normal(scale=0.01, size=tokens.shape)
    colours = pictures.pca_colours(tokens)
    assert colours.shape == (2, 2, 2, 3)
    assert abs(int(colours[0, 0, 0, 0]) - int(colours[0, 0, 1, 0])) > 200
    np.testing.assert_array_equal(colours, pictures.pca_colours(tokens))


def test_pca_colours_of_fewer_than_three_directions() -> None:
    assert pictures.pca_colours(np.ones((1, 1, 2, 2))).shape == (1, 1, 2, 3)


def test_heat_draws_only_where_asked() -> None:
    frames = np.full((2, 4, 4, 3), 100, np.uint8)
    values, where = np.ones((1, 2, 2)), np.zeros((1, 2, 2), bool)
    where[0, 0, 0] = True
    drawn = pictures.heat(frames, values, where, limit=1.0)
    assert (drawn[:, :2, :2, 0] > drawn[:, :2, :2, 1] + 50).all()
    assert (drawn[:, 2:, :, 0] == drawn[:, 2:, :, 1]).all()
    for share in np.linspace(0, 1, 9):
        coloured = pictures.heat(frames, share * values, where, limit=1.0)[0, 0, 0]
        assert np.ptp(coloured.astype(int)) > 40, f"{share}: no value looks like what is not drawn"


def test_frames_are_resized_smoothly_and_shown_large_enough() -> None:
    frames = np.zeros((3, 4, 6, 3), np.uint8)
    frames[:, :, 3:] = 200
    larger = pictures.resized(frames, 12)
    assert larger.shape == (3, 12, 18, 3)
    assert len(np.unique(larger[0, 6])) > 2, "between the halves it is neither"
    assert pictures.resized(frames, 2).shape == (3, 2, 3, 3)
    strip = pictures.strip_of("x", frames, most=2)
    assert [frame.shape for frame in strip.frames] == [(192, 288, 3)] * 2
    assert pictures.strip_of("x", np.zeros((1, 300, 300, 3), np.uint8)).frames[0].shape[0] == 300


def test_a_mark_is_in_one_frame_around_its_place() -> None:
    frames = np.full((2, 100, 200, 3), 90, np.uint8)
    drawn = pictures.marked(frames, 1, (0.25, 0.5))
    np.testing.assert_array_equal(drawn[0], frames[0])
    changed = np.argwhere((drawn[1] != 90).any(-1))
    np.testing.assert_allclose(changed.mean(0), (50, 50), atol=1)


def test_notes_and_a_caption_stand_below(tmp_path: Path) -> None:
    frames = [np.zeros((30, 200, 3), np.uint8)] * 2
    plain = pictures.picture_of([Strip("", frames)])
    assert plain.shape == (30, 404, 4), "no label, no margin"
    more = pictures.picture_of([Strip("", frames, ("a", "b"))], caption="what is seen " * 20)
    assert more.shape[0] > 30 + 3 * 15
    assert (more[30:, :, 3] > 0).any()
    named = pictures.picture_of([Strip("a long name", frames, ("a", "b"))], narrow=True)
    assert named.shape == (94, 404, 4), "the name stands above, large"
    np.testing.assert_array_equal(named[36:66, :200, :3], frames[0])
    assert (named[:36, :, 3] > 0).any()


def test_notes_wider_than_their_frames_do_not_run_into_each_other() -> None:
    frames, note = [np.zeros((30, 40, 3), np.uint8)] * 2, "a_long_name_of_a_file.mp4"
    once = pictures.picture_of([Strip("", frames[:1], (note,))])
    twice = pictures.picture_of([Strip("", frames, (note, note))])
    words = (once[30:, :, 3] > 0).any(axis=0)
    assert not words[[0, -1]].any(), "nothing is cut off"
    assert twice.shape[1] >= 2 * once.shape[1]
    np.testing.assert_array_equal(twice[:, : once.shape[1]], once)
    np.testing.assert_array_equal(twice[:, -once.shape[1] :], once)


def test_a_long_name_makes_no_picture_wider_and_no_frame_leaves_its_column() -> None:
    frames, name = [np.full((192, 192, 3), 99, np.uint8)] * 4, "a_very_long_name_" * 14 + ".mp4"
    short = pictures.picture_of([Strip("one", frames, ["a"] * 4)])
    long = pictures.picture_of([Strip(name, frames, [name, *"bcd"]), Strip("b", frames)])
    assert long.shape[1] < 1.2 * short.shape[1]
    seen = (long[:, :, :3] == 99).all(-1) & (long[:, :, 3] == 255)
    columns = seen[:192].all(axis=0)
    assert columns.sum() == 4 * 192
    np.testing.assert_array_equal(seen[-192:].all(axis=0), columns)
    labels = (long[:, : -4 * 196, 3] > 0).any(axis=0)
    assert not labels[[0, -1]].any(), "nothing is cut off"
    font = pictures.words_font(14)
    lines = pictures.wrapped(
        "runs/of_the_first/day and\nmore", font, font.getlength("runs/of_the_f")
    )
    assert lines == ["runs/of_the_", "first/day and", "more"]
    long, started = "one of many words " * 3000, time.process_time()
    assert " ".join(pictures.wrapped(long, font, 200)) == long.strip()
    assert time.process_time() - started < 10, "not as the square of the length: minutes"


def test_letters_beyond_ascii_are_drawn_and_not_as_boxes() -> None:
    frame = [np.zeros((40, 200, 3), np.uint8)]
    drawn = [pictures.picture_of([Strip("", frame, (letter,))]) for letter in "ÜßéДλ"]
    assert len({picture.tobytes() for picture in drawn}) == 5


def _brightness(colour: tuple[int, ...]) -> float:
    """Of a colour, as contrast is reckoned from it (WCAG)."""
    shares = np.array(colour[:3]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722)) + 0.05


def test_words_are_read_on_white_and_on_dark_ground(tmp_path: Path) -> None:
    black = [np.zeros((40, 40, 3), np.uint8)]
    picture = pictures.picture_of([Strip("seen", black)])
    words = picture[:, :-40][picture[:, :-40, 3] > 250]
    word = _brightness(tuple(np.median(words, axis=0)))
    assert min(1.05 / word, word / _brightness((28, 31, 37))) > 3.5
    for name, ground in (("a.png", None), ("a.jpg", (12, 13, 16)), ("a.webp", None)):
        pictures.write_png(picture, tmp_path / name)
        drawn = Image.open(tmp_path / name)
        corner = drawn.getpixel((0, 0))
        assert isinstance(corner, tuple)
        if ground is None:
            assert corner[3] == 0, "the page is seen through it"
        else:
            np.testing.assert_allclose(corner, ground, atol=2)
    for suffix, alpha in ((".webp", 0), (".gif", 255)):
        pictures.write_moving([picture] * 2, tmp_path / f"b{suffix}", 0.25)
        frame = next(ImageSequence.Iterator(Image.open(tmp_path / f"b{suffix}"))).convert("RGBA")
        corner = frame.getpixel((0, 0))
        assert isinstance(corner, tuple)
        assert corner[3] == alpha


def test_a_picture_that_cannot_be_written_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, path = np.zeros((30, 40, 3), np.uint8), tmp_path / "a.png"
    pictures.write_png(picture, path)
    before = path.read_bytes()

    def cut(image: object, target: Path, **how: object) -> None:
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        pictures.write_png(picture + 9, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".mp4"])
def test_moving_pictures_have_every_frame(tmp_path: Path, suffix: str) -> None:
    frames = [np.full((40, 61, 3), 40 * n, np.uint8) for n in range(4)]
    path = tmp_path / "deep" / f"a{suffix}"
    pictures.write_moving(frames, path, 0.25)
    if suffix == ".mp4":
        clip = load_clip(path, 4, 1)
        means, times = clip.frames.float().mean((1, 2, 3)), clip.times
    else:
        moving = ImageSequence.all_frames(Image.open(path))
        means = [np.asarray(frame.convert("RGB")).mean() for frame in moving]
        times = [0.25 * n for n in range(len(moving))]
    np.testing.assert_allclose(means, [0, 40, 80, 120], atol=4)
    np.testing.assert_allclose(times, [0, 0.25, 0.5, 0.75])


def test_words_grow_with_a_picture_of_many_frames() -> None:
    frame = np.zeros((192, 192, 3), np.uint8)
    few, many = (pictures.picture_of([Strip("", [frame] * n)], caption="a") for n in (4, 16))
    assert few.shape[0] - 192 < 35
    assert many.shape[0] - 192 > 50
    assert few.shape[1] == 4 * 196 - 4


def test_words_on_no_ground_are_the_same_in_every_frame(tmp_path: Path) -> None:
    frame = np.add.outer(np.arange(96), np.arange(120))[..., None].repeat(3, -1).astype(np.uint8)
    moved = [np.roll(frame, 7 * n, axis=1) for n in range(4)]
    strips = [[Strip("", [one, one], ["a word", "another"])] * 2 for one in moved]
    pages = [pictures.picture_of(several) for several in strips]
    pictures.write_moving(pages, tmp_path / "a.webp", 0.25)
    for frame in ImageSequence.all_frames(Image.open(tmp_path / "a.webp")):
        clear = np.asarray(frame.convert("RGBA"))[..., 3]
        np.testing.assert_array_equal(clear, pages[0][..., 3])


def test_a_gif_keeps_a_colour_that_is_rare(tmp_path: Path) -> None:
    down, across = np.mgrid[0:240, 0:320]
    frame = np.stack([down / 2, 90 + across / 3, 120 + (down + across) / 6], axis=-1)
    frame[100:108, 200:208] = (225, 45, 30)  # of a heat map
    frames = [np.roll(frame, 9 * n, axis=1).round().astype(np.uint8) for n in range(2)]
    pictures.write_moving(frames, tmp_path / "a.gif", 0.25)
    shown = ImageSequence.all_frames(Image.open(tmp_path / "a.gif"))[1]
    found = np.asarray(shown.convert("RGB")).astype(float)
    np.testing.assert_allclose(found[101:107, 210:216].mean((0, 1)), (225, 45, 30), atol=12)
    assert np.abs(found - frames[1]).mean() < 8


def test_a_name_that_is_no_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.txt: no form of picture"):
        pictures.write_png(np.zeros((2, 2, 3), np.uint8), tmp_path / "a.txt")


def test_write_png_round_trip(tmp_path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    pictures.write_png(picture, tmp_path / "deep" / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep" / "a.png")), picture)
    assert pictures.data_uri(picture).startswith("data:image/png;base64,")


def test_a_clip_in_place_of_a_frame_moves_on_a_page_and_stands_still_in_a_file() -> None:
    clip = np.stack([np.full((40, 40, 3), 60 * n, np.uint8) for n in range(3)])
    strip = pictures.moving_strip([("a", clip), ("b", clip[::-1])])
    assert [frames.shape for frames in strip.frames] == [(3, 192, 192, 3)] * 2
    assert strip.notes == ["a", "b"]
    head, code = pictures.data_uri(strip.frames[0]).split(",")
    assert head == "data:image/webp;base64"
    moving = ImageSequence.all_frames(Image.open(io.BytesIO(base64.b64decode(code))))
    means = [np.asarray(frame.convert("RGB")).mean() for frame in moving]
    np.testing.assert_allclose(means, [0, 60, 120], atol=4)
    still = pictures.picture_of([Strip("", [clip, clip])])
    np.testing.assert_array_equal(still, pictures.picture_of([Strip("", [clip[1], clip[1]])]))
