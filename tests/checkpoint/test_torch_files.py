from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.checkpoint.samples import released_file

from vjepa.checkpoint import load_model, load_probe
from vjepa.errors import UserError


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path / "absent.pth.tar")
    with pytest.raises(UserError, match="no such file"):
        load_probe(tmp_path / "absent.pth.tar")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused_by_name(tmp_path: Path, share: float) -> None:
    path = released_file(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"released\.pth\.tar: .*truncated"):
        load_model(path, num_heads=3)


@pytest.mark.parametrize(
    "content", [b"hello, this is text\n", b"PK\x05\x06" + b"\0" * 18, bytes(range(256)) * 40]
)
def test_foreign_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pth.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.pth\.tar"):
        load_model(path)


@pytest.mark.parametrize("new_format", [True, False])
def test_damaged_files_never_raise_anything_else(tmp_path: Path, new_format: bool) -> None:
    path = released_file(tmp_path)
    whole = torch.load(path, weights_only=True)
    torch.save(whole, path, _use_new_zipfile_serialization=new_format)
    content = path.read_bytes()
    start = content.find(b"encoder") - 40  # the pickled structure, where damage is worst
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        for place in random.integers(start, start + 600, size=3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            load_model(path, num_heads=3)
        except UserError:
            refused += 1
    assert refused > 20


class _Harmful:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_file_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_format: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth.tar"
    torch.save({"encoder": _Harmful()}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(UserError, match="could run code"):
        load_model(path)
    path.write_bytes(pickle.dumps(_Harmful(), protocol=2))
    with pytest.raises(UserError, match=r"model\.pth\.tar"):
        load_model(path)
    assert not (tmp_path / "harmed").exists()


def test_old_format_files_are_read(tmp_path: Path) -> None:
    path = released_file(tmp_path)
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    load_model(path, num_heads=3)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([torch.zeros(1)], "holds a list"),
        ({"model": {}}, "it holds model"),
        ({}, "it holds nothing"),
        ({"encoder": {"a": 1}}, "'encoder' is not a dict of tensors"),
        ({"encoder": torch.zeros(2)}, "'encoder' is not a dict of tensors"),
        ({"encoder": {"conv.weight": torch.zeros(2)}, "predictor": {}, "target_encoder": {}}, "V-"),
        ({"classifier": {}}, "this is a probe"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: object, says: str) -> None:
    path = tmp_path / "model.pth.tar"
    torch.save(content, path)
    with pytest.raises(UserError, match=says):
        load_model(path)


def test_weights_without_configuration_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="without their configuration"):
        load_model(path)
