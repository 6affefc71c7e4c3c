"""Notes that survive being cut off anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from vjepa.data.prepare.stages import Journal
from vjepa.errors import UserError


def test_answers_are_found_again(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.jsonl"
    with Journal(file) as journal:
        journal.add("a", {"x": 1})
        assert journal.get("a") == {"x": 1}
        assert journal.get("b") is None
    with Journal(file) as journal:
        assert journal.get("a") == {"x": 1}
        journal.add("b", {"x": 2})
    with Journal(file) as journal:
        assert journal.get("b") == {"x": 2}


def test_a_line_cut_off_anywhere_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    with Journal(file) as journal:
        journal.add("a", {"text": "one"})
        start = file.stat().st_size
        journal.add("b", {"text": "ü\n"})
    whole = file.read_bytes()
    for end in range(start, len(whole)):
        file.write_bytes(whole[:end])
        with Journal(file) as journal:
            assert journal.get("a") == {"text": "one"}
            assert journal.get("b") is None
            journal.add("c", {})
        with Journal(file) as journal:
            assert journal.get("c") == {}


def test_rubbish_at_the_end_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"key": "a", "x": 1}\n\0\0\0\n[1]\n{"key": "b"}\n')
    with Journal(file) as journal:
        assert journal.get("a") == {"x": 1}
        assert journal.get("b") is None


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="cannot be written"), Journal(tmp_path / "a" / "b.jsonl"):
        pass
