"""``vjepa doctor``: what is there, what is missing, and by its exit code whether that matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from vjepa.cli import doctor
from vjepa.runtime.environment import Finding, inspect_environment


def test_reports_versions_devices_and_decoders(vjepa: Callable) -> None:
    outcome = vjepa("doctor")
    assert outcome.code == 0
    for word in ("open-vjepa", "python", "torch ", "cpu:", "av ", "all that is needed is there"):
        assert word in outcome.out


def test_says_what_is_missing_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, vjepa: Callable
) -> None:
    lost = Finding("av", None, "reading videos", "pip install av")
    report = replace(inspect_environment(), decoders=[lost])
    monkeypatch.setattr(doctor, "inspect_environment", lambda: report)
    outcome = vjepa("doctor")
    assert outcome.code == 1
    assert "MISSING, needed for reading videos: pip install av" in outcome.out
    assert outcome.out.endswith("missing: av\n")
