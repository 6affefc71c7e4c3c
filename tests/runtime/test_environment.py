"""What `vjepa doctor` knows."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from importlib import metadata
from types import ModuleType

import pytest

from vjepa.runtime import environment
from vjepa.runtime.device import set_up_device
from vjepa.runtime.environment import inspect_environment
from vjepa.version import __version__


def test_report_of_this_machine() -> None:
    report = inspect_environment()
    assert report.versions["open-vjepa"] == __version__
    found = {finding.name: finding.found for finding in report.packages}
    assert found["torch"] == metadata.version("torch")
    assert report.devices[0].startswith("cpu: ")
    assert "torch uses" in report.devices[0]
    usual = set_up_device("cpu", "auto").precision
    assert report.devices[0].endswith(
        {"bfloat16": " with", "float32": " without"}[usual] + " bfloat16"
    )
    assert len(report.devices) >= 2


def test_missing_things_are_listed_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    absent = ("av", "tensorboard", "yaml")
    monkeypatch.setattr(
        environment, "find_spec", lambda name: None if name in absent else real(name)
    )
    monkeypatch.setattr(shutil, "which", lambda name: None)
    report = inspect_environment()
    looked_for = (*report.packages, *report.decoders, *report.tools)
    missing = {finding.name: finding for finding in looked_for if finding.found is None}
    assert set(missing) == {"av", "tensorboard", "pyyaml", "C++ compiler"}
    assert missing["pyyaml"].remedy == "pip install pyyaml"
    assert missing["av"].needed_for == "reading videos"


def test_decoder_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise OSError("libavcodec.so.62: cannot open shared object file")

    monkeypatch.setattr(environment, "find_spec", lambda name: object())
    monkeypatch.setattr(environment, "import_module", fail)
    (decoder,) = inspect_environment().decoders
    assert decoder.found is None
    assert "libavcodec.so.62" in decoder.remedy


def test_decoder_lists_what_it_reads() -> None:
    pytest.importorskip("av")
    (decoder,) = inspect_environment().decoders
    assert decoder.found is not None
    assert "h264" in decoder.found
    assert "av" in sys.modules
