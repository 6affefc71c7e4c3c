"""What the help shows: types in words, defaults, meanings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.config.sample import Root

from vjepa.config import REQUIRED, nearest, settings


def test_settings_in_words() -> None:
    found = {setting.path: setting for setting in settings(Root)}
    assert list(found)[:4] == ["optim.steps", "optim.peak_lr", "optim.betas", "optim.fused"]
    assert found["optim.steps"].default is REQUIRED
    assert found["optim.peak_lr"].kind == "a number"
    assert found["optim.peak_lr"].meaning == "Largest learning rate, reached after warm-up."
    assert found["masking.masks"].kind == "a list of groups"
    assert found["masking.masks.N.kind"].kind == "one of multiblock, tube"
    assert found["masking.masks.N.kind"].meaning == "shape of the mask, in two lines."
    assert found["masking.masks.N.num_blocks"].meaning == "how many blocks."
    assert found["probe"].kind == "a group of settings or null"
    assert found["probe.num_blocks"].default == 8
    assert found["folder"].default == Path("out")


def test_a_groups_shown_default_is_its_parents() -> None:
    """Root's default masking counts 'fixed', although the class alone says 'prefix'."""
    found = {setting.path: setting for setting in settings(Root)}
    assert found["masking.count"].default == "fixed"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("peek_lr", "peak_lr"), ("lr", "peak_lr"), ("STEPS", "steps"), ("zzzz", None)],
)
def test_nearest(name: str, expected: str | None) -> None:
    assert nearest(name, ["start_lr", "peak_lr", "steps"]) == expected


def test_a_field_type_that_is_not_supported_is_our_mistake() -> None:
    @dataclass(frozen=True)
    class Odd:
        table: bytes = b""

    with pytest.raises(TypeError, match="cannot have the type"):
        list(settings(Odd))
