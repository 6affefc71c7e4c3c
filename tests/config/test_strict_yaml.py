"""Scalars read as YAML 1.2 does, mistakes are refused with their place."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vjepa.errors import UserError
from vjepa.strict_yaml import parse_value, parse_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-2.5e+3", -2500.0),
        ("010", 10),
        ("-7", -7),
        ("yes", "yes"),
        ("off", "off"),
        ("12:30", "12:30"),
        ("0x1f", "0x1f"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("vitl16_224", "vitl16_224"),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
    ],
)
def test_scalars(text: str, value: object) -> None:
    read = parse_yaml(f"key: {text}", "f.yaml")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "f.yaml:2:1: not valid YAML: the key 'a' stands twice"),
        ("a:\n  b: 1\n  b: 1", "f.yaml:3:3: not valid YAML: the key 'b' stands twice"),
        ("1: a", "f.yaml:1:1: not valid YAML: the key '1' is not a name"),
        ("a: [1", "f.yaml:1:"),
        ("- a\n- b", "f.yaml: expected settings as 'name: value' lines, found a list"),
        ("just text", "found the value 'just text'"),
        ("a: !!python/object:os.system x", "f.yaml:1:4: not valid YAML"),
    ],
)
def test_mistakes_name_their_place(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "f.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_file_changes_nothing() -> None:
    assert parse_yaml("# only a comment\n", "f.yaml") == {}


_PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters() | st.sampled_from(" \n\x85\u2028\u2029\ufeff\udc80"), max_size=12)
    | st.sampled_from(["1e-3", "no", "010", "null", "~", "1_000", ".5", "true", "12:30", "-"]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@example({"key": "one\x85two \x85"})
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), _PLAIN, max_size=4))
def test_what_is_written_loads_back_equal(data: dict) -> None:
    data = {key: value for key, value in data.items() if key not in ("null", "true", "false")}
    assert parse_yaml(write_yaml(data), "f.yaml") == data


def test_one_value() -> None:
    assert parse_value("2024") == 2024
    assert parse_value("[1, x]") == [1, "x"]
    for text in ("a: b: c", "/d/set #2/f", "#c", "/a: b", "&a b"):
        assert parse_value(text) == text
    assert parse_value("'x # y'") == "x # y"
    assert [parse_value(text) for text in ("null", "~", "", "1e-3")] == [None, None, None, 1e-3]
    assert parse_value("{a: 1} # x") == {"a": 1}
    assert parse_value("- a") == ["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1, 1]\nb: *x\n", r"a\.yaml:2:4: not valid YAML: references"),
        ("a: " + "[" * 60_000, "nested more than 50 levels"),
        ("a: " + "9" * 10_000, "a number of 10000 digits"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_what_would_grow_in_memory_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_yaml(text, "a.yaml")
    assert parse_value(text) is not None
