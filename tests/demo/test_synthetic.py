"""Synthetic clips: pure functions of their index, with labels that the pixels obey."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from vjepa.demo import synthetic
from vjepa.demo.synthetic import (
    APPEARANCE_CLASSES,
    MOTION_CLASSES,
    SPLITS,
    SyntheticConfig,
    Track,
    clip_labels,
    digit_coverage,
    draw_tracks,
    load_digits,
    render_clip,
)
from vjepa.errors import UserError

CONFIG = SyntheticConfig(num_clips_train=300, num_clips_validation=5, num_clips_test=5, size=32)


def tracks(motion, seed):
    return draw_tracks(CONFIG, motion, np.random.default_rng(seed))


def distances(motion, seed):
    a, b = tracks(motion, seed)
    return np.linalg.norm(a.centre - b.centre, axis=1)


def test_frames_have_the_declared_form_and_the_labels_are_known_without_drawing():
    for index in range(5):
        clip = render_clip(CONFIG, "validation", index)
        assert clip.frames.shape == (CONFIG.num_frames, 32, 32, 3)
        assert clip.frames.dtype == np.uint8
        assert clip.centre_a.shape == clip.centre_b.shape == (CONFIG.num_frames, 2)
        assert clip_labels(CONFIG, "validation", index) == (clip.motion, clip.appearance)


def test_a_clip_depends_on_seed_split_and_index_and_on_nothing_else():
    variants = [
        (CONFIG, "train", 1),
        (CONFIG, "train", 2),
        (CONFIG, "test", 1),
        (replace(CONFIG, seed=1), "train", 1),
    ]
    frames = [render_clip(*variant).frames for variant in variants]
    for one, other in itertools.combinations(frames, 2):
        assert not np.array_equal(one, other)
    again = render_clip(replace(CONFIG, num_clips_train=9000), "train", 1).frames
    assert np.array_equal(again, frames[0])


def test_colours_are_what_the_label_says_and_change_nothing_else(monkeypatch):
    plain, coloured = (replace(CONFIG, colours=colours) for colours in (False, True))
    painted = []
    monkeypatch.setattr(synthetic, "paint", lambda frames, mask, colour: painted.append(colour))
    for index in range(30):
        painted.clear()
        before = render_clip(plain, "train", index)
        after = render_clip(coloured, "train", index)
        assert clip_labels(coloured, "train", index)[:2] == clip_labels(plain, "train", index)
        assert (before.centre_a == after.centre_a).all()
        usual, mine = painted[len(painted) // 2 - 1], painted[-1]
        name = clip_labels(coloured, "train", index)[2]
        np.testing.assert_allclose(mine, usual * synthetic.COLOURS[name])


@pytest.mark.parametrize("place", [(0.02, 0.6), (0.5, 0.5), (1.4, 0.1), (0.9, 1.05)])
def test_a_digit_at_the_border_is_the_part_of_it_that_is_inside(place):
    digit, angle = load_digits("train").images[3], np.array([0.4, 2.0])
    centre, side = np.array([place, place]), np.array([0.3, 0.5])
    # The same pixels in the middle of a frame twice as large, where the digit is whole.
    larger = digit_coverage(digit, Track(centre / 2 + 0.25, side / 2, angle), 96)
    inside = digit_coverage(digit, Track(centre, side, angle), 48)
    np.testing.assert_allclose(inside, larger[:, 24:72, 24:72], atol=1e-4)


def test_classes_are_balanced_and_the_labels_independent():
    config = replace(CONFIG, num_clips_train=6000)
    labels = [clip_labels(config, "train", index) for index in range(6000)]
    counts = np.zeros((len(MOTION_CLASSES), len(APPEARANCE_CLASSES)))
    for motion, appearance in labels:
        counts[MOTION_CLASSES.index(motion), APPEARANCE_CLASSES.index(appearance)] += 1
    expected = 6000 / counts.size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 109 + 4 * np.sqrt(2 * 109)


def test_splits_share_no_object_and_hold_every_digit():
    sets = [load_digits(split) for split in SPLITS]
    assert sum(len(part.ids) for part in sets) == 1797
    for one, other in itertools.combinations(sets, 2):
        assert not set(one.ids) & set(other.ids)
    for part in sets:
        assert set(part.labels) == set(range(10))
        assert part.images.shape[1:] == (8, 8)
        assert part.images.min() == 0
        assert part.images.max() == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("move_left", 0, -1), ("move_right", 0, 1), ("move_up", 1, -1), ("move_down", 1, 1)],
)
def test_a_moves_in_the_named_direction_inside_the_frame(motion, axis, sign, seed):
    a, b = tracks(motion, seed)
    assert (sign * np.diff(a.centre[:, axis]) > 0).all()
    assert np.ptp(a.centre[:, 1 - axis]) == 0
    assert a.centre.min() > 0.05
    assert a.centre.max() < 0.95
    assert np.ptp(b.centre, axis=0).max() == 0


@pytest.mark.parametrize("seed", range(5))
def test_rotation_and_zoom_have_the_named_sense(seed):
    assert (np.diff(tracks("rotate_clockwise", seed)[0].angle) > 0).all()
    assert (np.diff(tracks("rotate_counterclockwise", seed)[0].angle) < 0).all()
    assert (np.diff(tracks("approach", seed)[0].side) > 0).all()
    assert (np.diff(tracks("recede", seed)[0].side) < 0).all()


def test_a_clockwise_turn_looks_clockwise_on_the_screen():
    bar_up = np.zeros((8, 8), np.float32)
    bar_up[:4, 3:5] = 1
    pose = Track(np.full((2, 2), 0.5), np.full(2, 0.8), np.array([0.0, np.pi / 2]))
    start, end = digit_coverage(bar_up, pose, 32)
    assert start[:16].sum() > 10 * start[16:].sum()
    assert end[:, 16:].sum() > 10 * end[:, :16].sum()


@pytest.mark.parametrize("seed", range(5))
def test_relations_to_b(seed):
    passing = distances("pass_in_front", seed)
    assert passing.min() < 0.1 < min(passing[0], passing[-1])
    stopping = distances("stop_at", seed)
    assert (np.diff(stopping) <= 1e-9).all()
    assert stopping[-1] == pytest.approx(stopping[-2])
    turning = distances("turn_back", seed)
    nearest = int(turning.argmin())
    assert 0 < nearest < len(turning) - 1
    assert turning[0] == pytest.approx(turning[-1])
    assert min(stopping.min(), turning.min()) > 0.5 * CONFIG.object_size


def test_a_is_painted_last_and_so_covers_b(monkeypatch):
    coverages = []
    monkeypatch.setattr(
        synthetic, "paint", lambda frames, coverage, colour: coverages.append(coverage)
    )
    index = next(i for i in range(99) if clip_labels(CONFIG, "train", i)[0] == "move_left")
    clip = render_clip(CONFIG, "train", index)
    assert len(coverages) == CONFIG.num_distractors + 2
    grid = (np.arange(CONFIG.size) + 0.5) / CONFIG.size
    for coverage, centre in ((coverages[-1], clip.centre_a), (coverages[-2], clip.centre_b)):
        ink = coverage[0] / coverage[0].sum()
        found = (ink.sum(0) @ grid, ink.sum(1) @ grid)
        assert found == pytest.approx(tuple(centre[0]), abs=0.1)


def test_every_knob_changes_the_pixels():
    base = [render_clip(CONFIG, "train", index).frames for index in range(30)]
    ours = {"num_distractors": 3, "object_size": 0.3, "travel": 0.3, "rotation_degrees": 90.0}
    ours |= {"zoom": 1.5, "flicker": 0.1, "noise": 0.1}
    ours |= {"background_contrast": 0.05, "background_speed": 0.1, "background_grain": 16}
    for name, value in ours.items():
        changed = replace(CONFIG, **{name: value})
        frames = [render_clip(changed, "train", index).frames for index in range(30)]
        assert any(not np.array_equal(a, b) for a, b in zip(base, frames, strict=True)), name


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_frames", 1), ("size", 33), ("size", 8), ("zoom", 1.0), ("num_clips_test", -1)],
)
def test_impossible_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        SyntheticConfig(**{field: value})


def test_what_only_sets_with_or_without_boxes_have():
    with pytest.raises(ValueError, match="colours: a set with boxes has none"):
        SyntheticConfig(boxes=True, colours=True)
    with pytest.raises(ValueError, match="num_segments: is of a set with boxes"):
        SyntheticConfig(num_segments=2)
    assert SyntheticConfig(boxes=True, num_segments=2).num_segments == 2


@pytest.mark.parametrize("name", ["unknown split 'val'", "clip 5 of split 'test'"])
def test_unknown_split_and_index_are_refused(name):
    with pytest.raises(UserError, match=name):
        render_clip(CONFIG, name.split("'")[1], 5)
