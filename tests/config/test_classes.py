"""A config class checks types and ranges however it is built, and explains its settings."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field
from tests.config.sample import Mask, Masking, Root

from vjepa.config import REQUIRED, config_dataclass, from_dict, settings
from vjepa.errors import UserError, nearest


@config_dataclass
class Ranges:
    """Every kind of bound."""

    count: Annotated[int, Field(ge=1)] = 1
    index: Annotated[int, Field(ge=0)] | None = None
    rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    tiny: Annotated[float, Field(le=1e-3)] = 0.0
    device: Literal["auto", "cpu"] | Annotated[int, Field(ge=0)] = "auto"
    pair: tuple[float, float] = (0.0, 1.0)
    corner: tuple[Annotated[float, Field(lt=1)], Annotated[float, Field(lt=1)]] = (0.0, 0.0)
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.count == 2 and self.index is None:
            raise ValueError("index: needed with count 2")


BAD = [
    ({"count": 0}, "count must be at least 1, got 0"),
    ({"index": -1}, "index must not be negative, got -1"),
    ({"rates": (1.0, 0.0)}, "rates.1 must be above 0, got 0.0"),
    ({"share": 1.5}, "share must be below 1, got 1.5"),
    ({"corner": (2.0,)}, "corner: [2.0] is not valid here: expected a list of 2 values"),
    ({"corner": (0.5, 2.0)}, "corner.1 must be below 1, got 2.0"),
    ({"tiny": 1}, "tiny must be at most 0.001, got 1"),
    ({"device": -1}, "device must not be negative, got -1"),
    ({"device": "gpu"}, "device: 'gpu' is not valid here: expected one of auto, cpu or an integer"),
    ({"count": True}, "count: True is not valid here: expected an integer"),
    ({"share": float("inf")}, "share: inf is not valid here: expected a finite number"),
    ({"pair": (1.0,)}, "pair: [1.0] is not valid here: expected a list of 2 values"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_a_bad_value_is_one_line_from_a_file_and_from_python(values: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Ranges(**values)
    assert str(caught.value) == message
    with pytest.raises(UserError) as refused:
        from_dict(Ranges, values, "run.yaml")
    assert str(refused.value) == f"run.yaml: {message}"


def test_a_combination_is_refused_in_its_own_words() -> None:
    with pytest.raises(ValueError, match=r"^index: needed with count 2$"):
        Ranges(count=2)
    with pytest.raises(UserError, match=r"^a: index: needed with count 2 \(value None\)$"):
        from_dict(Ranges, {"count": 2}, "a")


def test_a_misspelt_or_positional_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="Ranges: cuont"):
        Ranges(cuont=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Ranges(1)  # type: ignore[misc]


def test_it_behaves_like_a_frozen_dataclass() -> None:
    config = Ranges(share=0, device=3)
    assert isinstance(config.share, float)
    assert dataclasses.replace(config, count=4) == Ranges(share=0.0, device=3, count=4)
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(Ranges(share=0.0, device=3))
    assert [field.name for field in dataclasses.fields(Ranges)][:2] == ["count", "index"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.count = 5  # type: ignore[misc]


def test_lists_are_taken_as_tuples() -> None:
    config = Ranges(rates=[1, 2.5], pair=[0.0, 0.5])
    assert config == Ranges(rates=(1.0, 2.5), pair=(0.0, 0.5))
    assert hash(config) == hash(dataclasses.replace(config, rates=[1.0, 2.5]))
    assert Masking(masks=[Mask(num_blocks=3)]).masks == (Mask(num_blocks=3),)
    with pytest.raises(ValueError, match=r"^rates\.1 must be above 0, got 0\.0$"):
        Ranges(rates=[1.0, 0.0])
    with pytest.raises(
        ValueError, match=r"^pair: \[1\.0\] is not valid here: expected a list of 2"
    ):
        Ranges(pair=[1.0])


def test_plain_values_are_refused_by_naming_what_is_taken() -> None:
    with pytest.raises(
        ValueError, match=r"^folder: 'a' .* expected a path, pathlib\.Path\(\.\.\.\)$"
    ):
        Ranges(folder="a")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"^masks\.0: \{\} .* a group of settings, Mask\(\.\.\.\); .*dict"
    ):
        Masking(masks=[{}])  # type: ignore[list-item]


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
    @dataclasses.dataclass(frozen=True)
    class Odd:
        table: bytes = b""

    with pytest.raises(TypeError, match="cannot have the type"):
        list(settings(Odd))
