"""``vjepa convert``: the authors' layout to ours and back, and files that are neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import vjepa as package
from vjepa.checkpoint import load, released_layout
from vjepa.models import VJEPA


def test_there_and_back(golden_dir: Path, tmp_path: Path, vjepa: Callable) -> None:
    released = golden_dir / "pretrain_tiny.pth.tar"
    there = vjepa("convert", released, tmp_path / "ours", "--num-heads", 3)
    assert there.code == 0, there.err
    assert "matched" in there.out
    assert there.out.endswith(f"done: {tmp_path / 'ours'}\n")
    back = vjepa("convert", tmp_path / "ours", tmp_path / "back.pth.tar")
    assert back.code == 0, back.err
    first = package.load_model(released, num_heads=3).state_dict()
    last = package.load_model(tmp_path / "back.pth.tar", num_heads=3).state_dict()
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_the_spacing_of_frames_that_a_layout_does_not_hold_is_named(
    tmp_path: Path, vjepa: Callable
) -> None:
    """Read back, the model would take every fourth frame where it was trained on every one."""
    assert package.load_encoder("demo").preprocess.clip.stride == 1
    done = vjepa("convert", "demo", tmp_path / "demo.pth.tar")
    assert "left out    how its frames are spaced (stride 1)" in done.out
    assert "left out" not in vjepa("convert", "demo", tmp_path / "ours").out


def test_nothing_is_overwritten(golden_dir: Path, tmp_path: Path, vjepa: Callable) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "precious").write_text("x")
    released = golden_dir / "pretrain_tiny.pth.tar"
    assert "ours" in vjepa("convert", released, tmp_path / "ours", "--num-heads", 3).error
    assert (tmp_path / "ours" / "precious").read_text() == "x"
    both = vjepa("convert", released, tmp_path / "new", "--num-heads", 3, "--which", "context")
    assert "which: 'context' is for the layout huggingface" in both.error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_a_file_that_is_no_checkpoint(content: bytes, tmp_path: Path, vjepa: Callable) -> None:
    source = tmp_path / "odd.pth.tar"
    source.write_bytes(content)
    assert str(source) in vjepa("convert", source, tmp_path / "ours").error
    assert not (tmp_path / "ours").exists()


def test_a_bad_write_is_noticed(
    golden_dir: Path, tmp_path: Path, vjepa: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(model: VJEPA) -> dict:
        content = released_layout(model)
        content["encoder"]["module.backbone.norm.bias"] = torch.ones(model.config.encoder.width)
        return content

    monkeypatch.setattr(load, "released_layout", damaged)
    released, written = golden_dir / "pretrain_tiny.pth.tar", tmp_path / "x.pth.tar"
    error = vjepa("convert", released, written, "--num-heads", 3).error
    assert error.startswith(f"{written}: encoder.norm.bias differs")
