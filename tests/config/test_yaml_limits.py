"""A small YAML file cannot become a large thing in memory, or a traceback."""

from __future__ import annotations

import pytest

from vjepa.errors import UserError
from vjepa.strict_yaml import parse_value, parse_yaml


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1, 1]\nb: *x\n", r"a\.yaml:2:4: not valid YAML: references"),
        ("a: " + "[" * 60_000, "nested more than 50 levels"),
        ("a: " + "9" * 10_000, "a number of 10000 digits"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_what_grows_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_yaml(text, "a.yaml")
    assert parse_value(text) is not None
