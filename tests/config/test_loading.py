"""Files merge in order, overrides go on top, and every error names the source of its value."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.config.sample import Mask, Root

from vjepa.config import load_config, recipe_names, recipe_path
from vjepa.errors import UserError


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text("optim: {steps: 3, peak_lr: 1e-4}\nmasking:\n  masks: [{}, {kind: tube}]\n")
    return path


def _error(files: list, overrides: object = ()) -> str:
    with pytest.raises(UserError) as caught:
        load_config(Root, files, overrides)
    return str(caught.value)


def test_later_files_win_field_by_field_and_replace_lists(base: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("optim: {peak_lr: 2}\nmasking: {masks: [{num_blocks: 1}]}\n")
    config = load_config(Root, [base, second])
    assert config.optim.steps == 3
    assert config.optim.peak_lr == 2.0
    assert config.masking.masks == (Mask(num_blocks=1),)


def test_overrides_from_the_command_line(base: Path) -> None:
    config = load_config(
        Root,
        [base],
        [
            "optim.peak-lr=1e-3",
            "name=2024",
            "folder=7",
            "device=3",
            "tags=[a, '1']",
            "probe.kind=tube",
            "masking.masks.1.num-blocks=5",
            "masking.count=prefix",
        ],
    )
    assert config.optim.peak_lr == 1e-3
    assert (config.name, config.folder, config.device) == ("2024", Path("7"), 3)
    assert config.tags == ("a", "1")
    assert config.probe == Mask(kind="tube")
    assert config.masking.masks == (Mask(), Mask(kind="tube", num_blocks=5))
    assert config.masking.count == "prefix"


def test_the_last_override_wins(base: Path) -> None:
    assert load_config(Root, [base], ["optim.steps=4", "optim.steps=5"]).optim.steps == 5


def test_an_index_reaches_into_a_default_list() -> None:
    config = load_config(Root, [], ["optim.steps=1", "masking.masks.0.num_blocks=4"])
    assert config.masking.masks == (Mask(num_blocks=4), Mask(num_blocks=2))
    assert config.masking.count == "fixed"


def test_the_next_index_adds_an_item(base: Path) -> None:
    config = load_config(
        Root, [base], ["masking.masks.2.kind=tube", "masking.masks.2.num_blocks=1", "tags.0=a"]
    )
    assert config.masking.masks[2] == Mask(kind="tube", num_blocks=1)
    assert len(config.masking.masks) == 3
    assert config.tags == ("a",)


def test_a_group_may_be_given_as_yaml() -> None:
    config = load_config(Root, [], ["optim={steps: 1, fused: true}", "optim.peak_lr=3"])
    assert (config.optim.steps, config.optim.fused, config.optim.peak_lr) == (1, True, 3.0)


@pytest.mark.parametrize(
    "overrides",
    [
        ["probe=tube", "probe.num_blocks=3"],
        ["probe.num_blocks=3", "probe=tube"],
        ["probe={kind: multiblock, num_blocks: 3}", "probe=tube"],
        ["probe.kind=tube", "probe.num_blocks=3"],
    ],
)
def test_a_text_may_stand_for_a_group_that_says_what_it_means(
    base: Path, overrides: list[str]
) -> None:
    assert load_config(Root, [base], overrides).probe == Mask(kind="tube", num_blocks=3)


def test_a_text_that_stands_for_a_group_is_checked(base: Path) -> None:
    assert _error([base], ["probe=tub"]).startswith("command line: probe.kind: tub is not valid")
    assert "expected a group of settings" in _error([base], ["masking=tube"])
    assert "expected a group of settings" in _error([base], ["masking.count=prefix", "masking=a"])


def test_null_and_regaining_a_group(base: Path) -> None:
    assert load_config(Root, [base], ["probe.kind=tube", "probe=null"]).probe is None
    assert load_config(Root, [base], ["probe=null", "probe.kind=tube"]).probe == Mask(kind="tube")


def test_overrides_as_a_mapping_take_python_values(base: Path) -> None:
    config = load_config(
        Root, [base], {"optim.steps": 9, "masking": {"masks": [Mask(num_blocks=3)]}, "name": "8"}
    )
    assert config.optim.steps == 9
    assert config.masking.masks == (Mask(num_blocks=3),)
    assert config.name == "8"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optim.lr=1",
            "command line: optim.lr: unknown setting (value 1); did you mean optim.peak_lr?",
        ),
        ("optim.steps=x", "command line: optim.steps: x is not valid here: expected an integer"),
        ("optim.peak_lr=-1", "command line: optim.peak_lr must be positive, got -1.0"),
        ("masking.masks.3.kind=tube", "there is no such item (value tube): the list has 2"),
        ("masking.masks.0.knd=tube", "masking.masks.0.knd: unknown setting (value tube); did you"),
        ("optim.0.steps=1", "optim.0.steps: optim is not a list"),
        ("optim..steps=1", "'optim..steps' is not the name of a setting"),
        ("steps", "steps: expected NAME=VALUE"),
        ("folder=~no_such_user_of_ours/x", "folder: ~no_such_user_of_ours/x: no such user"),
    ],
)
def test_mistakes_on_the_command_line(base: Path, override: str, message: str) -> None:
    error = _error([base], [override])
    assert error.startswith("command line: ")
    assert message in error


def test_an_error_names_the_file_that_set_the_value(base: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("masking: {masks: [{num_blocks: x}]}\n")
    assert _error([base, wrong]).startswith(f"{wrong}: masking.masks.0.num_blocks")
    assert _error([wrong, base], ["optim.fused=3"]).startswith("command line: optim.fused")
    # The index override touches item 1 only: the mistake in item 0 is still the file's.
    two = tmp_path / "two.yaml"
    two.write_text("optim: {steps: 1}\nmasking: {masks: [{num_blocks: x}, {}]}\n")
    assert _error([two], ["masking.masks.1.kind=tube"]).startswith(f"{two}: masking.masks.0")


def test_unusable_files(base: Path, tmp_path: Path) -> None:
    assert "no such config file" in _error([tmp_path / "absent.yaml"])
    assert "is a folder" in _error([tmp_path])
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in _error([binary])
    twice = tmp_path / "twice.yaml"
    twice.write_text("name: a\nname: b\n")
    assert f"{twice}:2:1: not valid YAML: the key 'name' stands twice" in _error([base, twice])


def test_recipes_by_name() -> None:
    assert "vitl16_224" in recipe_names("pretrain")
    assert recipe_path("pretrain", "vitl16_224").is_file()
    for wrong in ("vitl16_2224", "vitl16-224", "vitl16_22.yaml"):
        with pytest.raises(
            UserError, match=r"recipes of pretrain: .*h16.*; did you mean vitl16_224\?"
        ):
            load_config(Root, [wrong], recipes="pretrain")
