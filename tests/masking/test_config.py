from __future__ import annotations

import pytest

from vjepa.masking import LONG_RANGE, SHORT_RANGE, MaskConfig, MaskingConfig


def test_default_is_the_papers_pair() -> None:
    config = MaskingConfig()
    assert config.masks == (SHORT_RANGE, LONG_RANGE)
    assert config.count == "prefix"
    assert (SHORT_RANGE.num_blocks, SHORT_RANGE.spatial_scale) == (8, (0.15, 0.15))
    assert (LONG_RANGE.num_blocks, LONG_RANGE.spatial_scale) == (2, (0.7, 0.7))
    assert SHORT_RANGE.aspect_ratio == LONG_RANGE.aspect_ratio == (0.75, 1.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_blocks", 0),
        ("spatial_scale", (0.0, 0.5)),
        ("spatial_scale", (0.5, 0.2)),
        ("spatial_scale", (0.5, 1.1)),
        ("temporal_scale", (0.0, 1.0)),
        ("aspect_ratio", (-1.0, 1.0)),
        ("aspect_ratio", (2.0, 1.0)),
        ("tube_ratio", 1.0),
        ("tube_ratio", -0.1),
        ("context_frames", 0),
        ("max_context_tokens", 0),
        ("context_fraction", 1.0),
        ("target_fraction", 0.0),
    ],
)
def test_bad_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} "):
        MaskConfig(**{field: value})


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("multiblock", "tube_ratio", 0.5),
        ("tube", "num_blocks", 2),
        ("tube", "spatial_scale", (0.7, 0.7)),
        ("tube", "temporal_scale", (0.5, 1.0)),
        ("tube", "aspect_ratio", (1.0, 1.0)),
    ],
)
def test_a_setting_of_the_other_kind_is_refused_and_its_default_is_not(
    kind: str, field: str, value: object
) -> None:
    """Defaults stand in every `config.yaml`."""
    with pytest.raises(ValueError, match=rf"^{field} is not read by kind {kind}; leave it out"):
        MaskConfig(kind=kind, **{field: value})
    assert MaskConfig(kind=kind, **{field: getattr(SHORT_RANGE, field)}) == MaskConfig(kind=kind)


def test_fractions_that_overlap_and_no_masks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"context_fraction 0\.6 and target_fraction 0\.5"):
        MaskConfig(context_fraction=0.6, target_fraction=0.5)
    with pytest.raises(ValueError, match=r"^masks "):
        MaskingConfig(masks=())


@pytest.mark.parametrize("count", ["prefix", "packed"])
@pytest.mark.parametrize("field", ["context_fraction", "target_fraction"])
def test_a_fraction_that_nothing_reads_is_refused(count: str, field: str) -> None:
    masks = (SHORT_RANGE, MaskConfig(**{field: 0.2}))
    with pytest.raises(ValueError, match=rf"^masks\[1\]\.{field} .* fixed"):
        MaskingConfig(masks=masks, count=count)
