from __future__ import annotations

import numpy as np

from vjepa.counter_random import uniforms
from vjepa.masking import LONG_RANGE, SHORT_RANGE, MaskConfig
from vjepa.masking.drawing import BlockKinds


def test_sizes_never_leave_the_grid_and_never_vanish() -> None:
    mask = MaskConfig(spatial_scale=(0.01, 1.0), temporal_scale=(0.01, 1.0), aspect_ratio=(0.1, 9))
    for grid in ((1, 1, 1), (3, 2, 5), (8, 14, 14)):
        sizes = BlockKinds([mask], grid).sizes(uniforms(0, "sizes", np.arange(500), 3))
        assert (sizes >= 1).all()
        assert (sizes <= np.array(grid)).all()


def test_scales_are_drawn_between_their_ends() -> None:
    mask = MaskConfig(
        spatial_scale=(0.25, 0.5), temporal_scale=(0.25, 0.75), aspect_ratio=(1.0, 1.0)
    )
    kinds = BlockKinds([mask], (8, 20, 20))
    low, high = kinds.sizes(np.array([[0.0, 0.0, 0.0], [1 - 1e-9, 1 - 1e-9, 0.0]]))[0]
    assert low.tolist() == [2, 10, 10]
    assert high.tolist() == [5, 14, 14]


def test_union_is_that_of_the_blocks_drawn_one_by_one() -> None:
    grid = (4, 6, 7)
    masks = [
        MaskConfig(num_blocks=3, spatial_scale=(0.1, 0.3), temporal_scale=(0.3, 0.9)),
        MaskConfig(num_blocks=1, spatial_scale=(0.4, 0.4), temporal_scale=(0.5, 1.0)),
    ]
    kinds = BlockKinds(masks, grid)
    assert kinds.words == 12
    draws = uniforms(0, "positions", np.arange(20), kinds.words)
    sizes = kinds.sizes(uniforms(0, "sizes", np.arange(20), 3))
    hidden = kinds.hidden(sizes, draws)
    assert hidden.shape == (2, 20, *grid)
    for clip in range(20):
        for kind, (first, count) in enumerate(((0, 3), (3, 1))):
            wanted = np.zeros(grid, dtype=bool)
            for block in range(first, first + count):
                size = sizes[kind, clip]
                room = np.array(grid) + 1 - size
                start = np.floor(draws[clip, 3 * block : 3 * block + 3] * room).astype(int)
                wanted[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
            assert (hidden[kind, clip] == wanted).all()


def test_blocks_that_span_the_clip_are_given_once() -> None:
    kinds = BlockKinds([SHORT_RANGE, LONG_RANGE], (8, 14, 14))
    draws = uniforms(0, "positions", np.arange(5), kinds.words)
    shared = kinds.sizes(np.array([[0.0, 0.0, 0.9]]))
    hidden = kinds.hidden(shared, draws)
    assert hidden.shape == (2, 5, 1, 14, 14)
    _, height, width = shared[1, 0]
    rows, columns = hidden[1, 0, 0].any(axis=1).sum(), hidden[1, 0, 0].any(axis=0).sum()
    assert height <= rows <= min(2 * height, 14)
    assert width <= columns <= min(2 * width, 14)


def test_every_position_is_used_equally_often() -> None:
    mask = MaskConfig(num_blocks=1, spatial_scale=(0.25, 0.25), aspect_ratio=(1.0, 1.0))
    kinds = BlockKinds([mask], (1, 6, 6))  # blocks of 3 x 3 at 4 x 4 places
    clips = 16_000
    hidden = kinds.hidden(
        kinds.sizes(np.zeros((1, 3))), uniforms(1, "positions", np.arange(clips), kinds.words)
    )
    corner = hidden[0, :, 0]
    places = corner.reshape(clips, 36).argmax(axis=1)  # the first hidden token is its top left
    numbers = np.bincount(places, minlength=36).reshape(6, 6)[:4, :4]
    assert numbers.sum() == clips
    chi_square = ((numbers - clips / 16) ** 2 / (clips / 16)).sum()
    assert chi_square < 37.7  # 15 degrees of freedom: exceeded once in 1 000 seeds


def test_the_number_of_places_is_rounded_down() -> None:
    mask = MaskConfig(num_blocks=1, spatial_scale=(0.207, 0.207), aspect_ratio=(1.0, 1.0))
    # 20.7 places make blocks of 4 x 4; 21 would make 5 x 5.
    assert BlockKinds([mask], (1, 10, 10)).sizes(np.zeros((1, 3))).tolist() == [[[1, 4, 4]]]
