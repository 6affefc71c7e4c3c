from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.data.video_files import barcode, numbers_of, write_image, write_image_folder

from vjepa.data.video import images
from vjepa.data.video.decode import DecodeError, decode_clip, decode_frames
from vjepa.data.video.info import LimitsConfig, is_numbered_sequence, kind_of, natural_key
from vjepa.data.video.inspect import inspect_file


def test_a_still_image_is_one_frame_that_repeats(tmp_path):
    info = inspect_file(str(write_image(tmp_path / "a.png", 37)))
    assert (info.ok, info.kind, info.num_frames, info.codec) == (True, "image", 1, "png")
    assert (info.width, info.height, info.fps, info.duration_seconds) == (80, 48, 1.0, 1.0)
    clip = decode_clip(info, np.arange(16))
    np.testing.assert_array_equal(clip.frames, np.stack([barcode(37)] * 16))
    assert clip.times.tolist() == [0] * 16


@pytest.mark.parametrize("name", ["a.jpg", "a.bmp", "a.webp", "a.tif", "a.ppm", "A.JPEG"])
def test_image_formats(name, tmp_path):
    assert numbers_of(decode_frames(str(write_image(tmp_path / name, 613)), [0])) == [613]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(barcode(613)[..., 0].astype(np.uint16) * 257).save(path)
    else:
        write_image(path, 613, mode)
    frame = decode_frames(str(path), [0])[0]
    assert frame.dtype == np.uint8
    assert numbers_of(frame[None]) == [613]
    assert frame.max() == 255


@pytest.mark.parametrize(
    ("name", "kind", "white"),
    [
        ("a.png", np.uint16, 65535),
        ("a.tif", np.uint16, 65535),
        ("a.tif", ">u2", 65535),
        ("a.pgm", np.uint16, 65535),
        ("a.tif", np.float32, 1),
        ("a.tif", np.float32, 255),
    ],
)
def test_more_than_eight_bits_are_scaled_not_clipped(tmp_path, name, kind, white):
    levels = np.linspace(0, white, 256)
    levels = levels.astype(kind) if kind is np.float32 else levels.round().astype(kind)
    Image.fromarray(np.tile(levels, (4, 1))).save(tmp_path / name)
    frame = decode_frames(str(tmp_path / name), [0])[0]
    np.testing.assert_array_equal(frame[0, :, 0], np.arange(256))


@pytest.mark.parametrize(
    "levels",
    [np.arange(256) * 257, np.linspace(0, 2000, 256, dtype=np.float32), np.full(9, np.nan, "f4")],
)
def test_an_image_whose_white_is_not_known_is_refused(tmp_path, levels):
    kind = levels.dtype if levels.dtype.kind == "f" else np.int32
    Image.fromarray(np.tile(levels.astype(kind), (4, 1))).save(tmp_path / "a.tif")
    assert "save it with 8 or 16 bits" in (inspect_file(str(tmp_path / "a.tif")).reason or "")


def test_alpha_is_laid_over_black(tmp_path):
    rgba = np.full((8, 8, 4), 200, dtype=np.uint8)
    rgba[:, :4, 3], rgba[:, 4:, 3] = 0, 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    frame = decode_frames(str(tmp_path / "a.png"), [0])[0]
    assert (frame[:, :4] == 0).all()
    assert (frame[:, 4:] == round(200 * 128 / 255)).all()


def test_a_transparent_colour_is_black(tmp_path):
    white = Image.fromarray(np.full((8, 8, 3), 255, dtype=np.uint8))
    white.save(tmp_path / "a.png", transparency=(255, 255, 255))
    assert (decode_frames(str(tmp_path / "a.png"), [0]) == 0).all()


@pytest.mark.parametrize("is_whole", [True, False])
def test_the_first_of_several_pictures_is_read_whatever_the_others_are(tmp_path, is_whole):
    pages = [Image.new("RGB", (48, 32), (shade,) * 3) for shade in (10, 200)]
    path = tmp_path / "pages.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    if not is_whole:  # nothing of the second is left
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    info = inspect_file(str(path))
    assert info.ok
    assert "the first is read" in info.note
    assert decode_frames(info, [0])[0].mean() == 10
    pages[0].save(tmp_path / "one.tif")
    assert not inspect_file(str(tmp_path / "one.tif")).note


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_exif_orientation(tmp_path, name, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    write_image(tmp_path / name, 9, exif=exif)
    info = inspect_file(str(tmp_path / name))
    assert (info.ok, info.width, info.height) == (True, 48, 80)
    across = barcode(9).swapaxes(0, 1)
    turned = {5: across, 6: across[:, ::-1], 7: across[::-1, ::-1], 8: across[::-1]}
    np.testing.assert_array_equal(decode_frames(info, [0])[0], turned[turn])


def test_an_image_of_another_size_once_turned_is_refused(tmp_path, monkeypatch):
    info = inspect_file(str(write_image(tmp_path / "a.png")))
    monkeypatch.setattr(images, "_upright_size", lambda _: (48, 80))
    with pytest.raises(DecodeError, match="80 x 48 pixels, 48 x 80 by its header"):
        decode_frames(replace(info, width=48, height=80), [0])


def test_a_folder_of_images_is_a_clip_in_order_of_numbers(tmp_path):
    folder = write_image_folder(tmp_path / "clip", 12)
    info = inspect_file(str(folder), image_folder_fps=12.0)
    assert (info.ok, info.kind, info.num_frames, info.fps) == (True, "image_folder", 12, 12.0)
    assert info.duration_seconds == pytest.approx(1.0)
    assert info.bytes == sum(path.stat().st_size for path in folder.iterdir())
    clip = decode_clip(info, [11, 2, 2, 10, 0])
    assert numbers_of(clip.frames) == [11, 2, 2, 10, 0]
    np.testing.assert_allclose(clip.times, np.array([11, 2, 2, 10, 0]) / 12)


def test_a_folder_that_changed_is_refused(tmp_path):
    folder = write_image_folder(tmp_path / "clip", 4)
    info = inspect_file(str(folder))
    (folder / "frame_2.png").unlink()
    with pytest.raises(DecodeError, match="3 images, 4 when indexed"):
        decode_frames(info, [0])


def test_a_frame_that_is_broken_names_its_file(tmp_path):
    folder = write_image_folder(tmp_path / "clip", 4)
    info = inspect_file(str(folder))
    good = (folder / "frame_2.png").read_bytes()
    (folder / "frame_2.png").write_bytes(good[: len(good) // 2])
    assert numbers_of(decode_frames(info, [0, 1, 3])) == [0, 1, 3]
    with pytest.raises(DecodeError, match=r"frame_2\.png"):
        decode_frames(info, [1, 2])


def test_bad_images(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").touch()
    data = write_image(tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    write_image(tmp_path / "large.png")
    for name, reason, limits in (
        ("text.jpg", "not an image", None),
        ("empty.png", "empty file", None),
        ("cut.png", "damaged image|not an image", None),
        ("missing.png", "No such file", None),
        ("large.png", "80 x 48 pixels are above max_pixels", LimitsConfig(max_pixels=100)),
    ):
        info = inspect_file(str(tmp_path / name), limits)
        assert not info.ok, name
        with pytest.raises(DecodeError, match=f"{name}.*({reason})"):
            decode_frames(info, [0])


def test_bad_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "without images" in (inspect_file(str(tmp_path / "empty")).reason or "")
    folder = write_image_folder(tmp_path / "sizes", 3)
    Image.new("RGB", (20, 20)).save(folder / "frame_2.png")
    reason = inspect_file(str(folder)).reason or ""
    assert "frame_2.png has 20 x 20 pixels, frame_0.png 80 x 48" in reason
    many = str(write_image_folder(tmp_path / "many", 5))
    assert "max_frames = 4" in (inspect_file(many, LimitsConfig(max_frames=4)).reason or "")


def test_what_is_a_clip(tmp_path):
    assert is_numbered_sequence(["f_1.jpg", "f_2.jpg", "f_3.jpg"])
    assert is_numbered_sequence(["0010.png", "0000.png", "0005.png"])
    stills = ["n01440764_10026.JPEG", "n01440764_10027.JPEG", "n01440764_9.JPEG"]
    assert not is_numbered_sequence(stills)
    assert not is_numbered_sequence(["a1.jpg", "b2.jpg"])
    assert not is_numbered_sequence(["1.jpg"])
    assert not is_numbered_sequence(["a.jpg", "b.jpg"])
    ordered = ["f1.png", "f9.png", "f10.png"]
    assert sorted(["f10.png", "f9.png", "f1.png"], key=natural_key) == ordered
    paths = ["/a/b.MP4", "/a/b.PNG", "/a/b.unknown", str(tmp_path)]
    assert [kind_of(path) for path in paths] == ["video", "image", "video", "image_folder"]
