"""Pictures: exact pixels for small inputs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vjepa.reporting import pictures


def test_filmstrip_and_rows_keep_every_pixel() -> None:
    frames = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    strip = pictures.filmstrip(frames, gap=1)
    assert strip.shape == (3, 9, 3)
    np.testing.assert_array_equal(strip[:, :4], frames[0])
    np.testing.assert_array_equal(strip[:, 5:], frames[1])
    assert (strip[:, 4] == 255).all()
    both = pictures.stack_rows([strip, strip[:, :4]], gap=2)
    assert both.shape == (8, 9, 3)
    np.testing.assert_array_equal(both[5:, :4], frames[0])


def test_labels_stand_in_a_margin_and_change_no_pixel_of_the_row() -> None:
    row = np.full((20, 30, 3), 7, np.uint8)
    plain = pictures.stack_rows([row, row])
    labelled = pictures.stack_rows([row, row], ["one", "two"])
    margin = labelled.shape[1] - plain.shape[1]
    np.testing.assert_array_equal(labelled[:, margin:], plain)
    assert (labelled[:20, :margin] < 128).any()
    assert not np.array_equal(labelled[:20, :margin], labelled[24:, :margin])


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


def test_upscale_by_whole_pixels() -> None:
    frames = np.zeros((1, 4, 6, 3), np.uint8)
    assert pictures.upscale(frames, 12).shape == (1, 12, 18, 3)
    assert pictures.upscale(frames, 2).shape == (1, 4, 6, 3)


def test_write_png_round_trip(tmp_path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    pictures.write_png(picture, tmp_path / "deep" / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep" / "a.png")), picture)
    assert pictures.png_data_uri(picture).startswith("data:image/png;base64,")
