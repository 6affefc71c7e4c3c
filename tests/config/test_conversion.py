"""Plain values become a typed config or one clear line; and back without loss."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.config.sample import Mask, Masking, Optim, Root

from vjepa.config import diff, dump_yaml, from_dict, to_dict
from vjepa.errors import UserError
from vjepa.strict_yaml import parse_yaml

_OPTIM = {"steps": 3}


def _error(mapping: dict) -> str:
    with pytest.raises(UserError) as caught:
        from_dict(Root, mapping, "run.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_values_take_the_types_of_their_fields() -> None:
    config = from_dict(
        Root,
        {
            "optim": {"steps": 3, "peak_lr": 1, "betas": [0, 0.5]},
            "masking": {"masks": [{"kind": "tube"}]},
            "probe": {"num_blocks": 1},
            "folder": "a/b",
            "device": 2,
            "tags": ["x"],
        },
    )
    assert config == Root(
        optim=Optim(steps=3, peak_lr=1.0, betas=(0.0, 0.5)),
        masking=Masking(masks=(Mask(kind="tube"),), count="fixed"),
        probe=Mask(num_blocks=1),
        folder=Path("a/b"),
        device=2,
        tags=("x",),
    )
    assert isinstance(config.optim.peak_lr, float)


def test_a_group_keeps_what_its_parent_gave_it() -> None:
    """Root's default masking counts 'fixed': naming another field must not undo that."""
    config = from_dict(Root, {"optim": _OPTIM, "masking": {"masks": []}})
    assert config.masking == Masking(masks=(), count="fixed")


def test_null_leaves_out_an_optional_group() -> None:
    assert from_dict(Root, {"optim": _OPTIM, "probe": None}).probe is None


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"optim": {"steps": 3, "peek_lr": 1e-4}},
            "run.yaml: optim.peek_lr: unknown setting (value 0.0001); did you mean optim.peak_lr?",
        ),
        (
            {"optim": _OPTIM, "peak_lr": 1},
            "run.yaml: peak_lr: unknown setting (value 1); did you mean optim.peak_lr?",
        ),
        ({"optim": _OPTIM, "zzz": 1}, "known here: optim, masking, probe,"),
        (
            {"optim": {"steps": "many"}},
            "run.yaml: optim.steps: 'many' is not valid here: expected an integer",
        ),
        ({"optim": {"steps": 3.0}}, "optim.steps: 3.0 is not valid here"),
        ({"optim": {"steps": True}}, "optim.steps: True is not valid here"),
        ({"optim": {"steps": None}}, "optim.steps: None is not valid here"),
        ({"optim": {"steps": 3, "peak_lr": float("nan")}}, "expected a finite number"),
        ({"optim": {"steps": 3, "fused": 1}}, "optim.fused: 1 is not valid here: expected true or"),
        ({"optim": {"steps": 3, "betas": [0.1]}}, "optim.betas: [0.1]"),
        ({"optim": {"steps": 3, "betas": [0.1, "b"]}}, "optim.betas.1: 'b'"),
        ({"optim": 3}, "run.yaml: optim: 3 is not valid here: expected a group of settings (steps"),
        ({"optim": _OPTIM, "masking": {"masks": {"kind": "tube"}}}, "expected a list of groups"),
        (
            {"optim": _OPTIM, "masking": {"masks": [{}, {"kind": "tubes"}]}},
            "masking.masks.1.kind: 'tubes' is not valid here: expected one of multiblock, tube;"
            " did you mean tube?",
        ),
        ({"optim": _OPTIM, "device": "gpu"}, "expected one of auto, cpu or an integer"),
        ({"optim": _OPTIM, "name": 7}, "name: 7 is not valid here: expected a text"),
        ({"optim": _OPTIM, "folder": ""}, "folder: '' is not valid here: expected a path"),
        (
            {"optim": {"steps": 3, "peak_lr": -1}},
            "run.yaml: optim.peak_lr must be positive, got -1.0",
        ),
        (
            {"optim": {"steps": 3, "betas": [0.9, 0.1]}},
            "run.yaml: optim.betas must ascend (value [0.9, 0.1])",
        ),
        ({"optim": {"steps": 13}}, "run.yaml: optim: an unlucky choice"),
        (
            {"optim": {"steps": 1, "fused": True}, "name": "bad"},
            "run.yaml: optim.fused: cannot go with this name (value True)",
        ),
        (
            {"optim": _OPTIM, "name": "tubes"},
            "run.yaml: masking.masks.1.kind must be tube for this name (value 'multiblock')",
        ),
        ({}, "optim.steps: missing; it has no default"),
    ],
)
def test_every_mistake_is_one_line_with_source_field_value(mapping: dict, message: str) -> None:
    assert message in _error(mapping)


def test_long_values_are_cut_short() -> None:
    assert len(_error({"optim": {"steps": "x" * 5000}})) < 250


@given(
    st.builds(
        Root,
        optim=st.builds(
            Optim,
            steps=st.integers(14),
            peak_lr=st.floats(min_value=1e-12, max_value=1e12),
            betas=st.just((0.1, 0.3)),
            fused=st.booleans(),
        ),
        masking=st.builds(
            Masking,
            masks=st.lists(st.builds(Mask, num_blocks=st.integers()), max_size=3).map(tuple),
        ),
        probe=st.none() | st.builds(Mask, kind=st.sampled_from(["multiblock", "tube"])),
        name=st.none() | st.sampled_from(["1e-3", "null", "no", "", "7", "a: b", "# c"]),
        device=st.sampled_from(["auto", "cpu", 0, 3]),
        tags=st.lists(st.sampled_from(["x", "2024", "true"]), max_size=2).map(tuple),
    )
)
def test_dump_loads_back_equal(config: Root) -> None:
    assert from_dict(Root, parse_yaml(dump_yaml(config), "dump")) == config
    assert from_dict(Root, to_dict(config)) == config
    assert diff(config, config) == []


def test_diff_names_each_changed_setting() -> None:
    a = Root(optim=Optim(steps=3), probe=Mask())
    b = Root(
        optim=Optim(steps=3, peak_lr=2e-3),
        masking=Masking(masks=(Mask(num_blocks=4),), count="fixed"),
    )
    assert diff(a, b) == [
        "optim.peak_lr: 0.001 -> 0.002",
        "masking.masks.0.num_blocks: 8 -> 4",
        "masking.masks.1.kind: multiblock -> (absent)",
        "masking.masks.1.num_blocks: 2 -> (absent)",
        "probe.kind: multiblock -> (absent)",
        "probe.num_blocks: 8 -> (absent)",
        "probe: (absent) -> None",
    ]
