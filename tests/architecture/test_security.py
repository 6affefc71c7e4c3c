"""What must not stand in the code: foreign pickles, shells, addresses, telemetry."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.architecture.source_tree import ROOT

_SOURCES = sorted((ROOT / "src" / "vjepa").rglob("*.py"))
_NETWORK = ("socket", "urllib", "http", "requests", "httpx", "ftplib", "smtplib", "aiohttp")
# `vjepa app` serves a page on this machine; torch's launcher and Ray talk to their own processes.
# Only `vjepa models get` fetches anything.
_MAY_SERVE = ("app", "ray", "download")


def _calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("file", _SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_dangerous_is_called(file: Path) -> None:
    for name, call in _calls(file):
        keywords = {key.arg: ast.unparse(key.value) for key in call.keywords}
        where = f"{file.name}:{call.lineno}"
        assert name not in ("eval", "exec", "os.system", "os.popen", "pickle.load"), where
        assert name not in ("pickle.loads", "yaml.unsafe_load", "marshal.loads"), where
        assert keywords.get("shell") in (None, "False"), where
        assert keywords.get("allow_pickle") in (None, "False"), where
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", where
        if name.endswith((".extractall", ".extract")) and name.startswith(
            ("tar", "zip", "archive")
        ):
            assert keywords.get("filter") == "'data'", where


@pytest.mark.parametrize("file", _SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_talks_to_the_network(file: Path) -> None:
    if any(part in file.parts or part == file.stem for part in _MAY_SERVE):
        return
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            assert name.partition(".")[0] not in _NETWORK, f"{file.name}:{node.lineno} {name}"
