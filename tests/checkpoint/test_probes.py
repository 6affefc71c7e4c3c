from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models.tiny import shaken

from vjepa.checkpoint import load_probe, read_probe
from vjepa.errors import UserError
from vjepa.models import AttentiveClassifier


def _probe(width: int, depth: int) -> AttentiveClassifier:
    torch.manual_seed(0)
    return shaken(AttentiveClassifier(width, 3, 5, depth))


def _released_probe(folder: Path, width: int = 24, depth: int = 1, **changes: object) -> Path:
    probe = _probe(width, depth)
    state = {f"module.{k}": v.detach().clone() for k, v in probe.state_dict().items()}
    unused = "module.pooler.cross_attention_block.xattn.proj"
    state |= {f"{unused}.weight": torch.randn(width, width), f"{unused}.bias": torch.randn(width)}
    path = folder / "probe.pth.tar"
    torch.save({"classifier": state | changes, "opt": {}, "scaler": None, "epoch": 7}, path)
    return path


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_width_and_classes_are_inferred(tmp_path: Path, depth: int) -> None:
    loaded, report = read_probe(_released_probe(tmp_path, depth=depth), num_heads=3)
    assert loaded.pooler.depth == depth
    assert loaded.linear.weight.shape == (5, 24)
    assert report.is_complete
    assert len(report.dropped) == 2
    assert "trained     7 epochs" in str(report)
    wanted = _probe(24, depth)
    tokens = torch.randn(2, 6, 24)
    assert torch.equal(loaded(tokens), wanted(tokens))


def test_heads_come_from_the_preset_of_the_width(tmp_path: Path) -> None:
    assert load_probe(_released_probe(tmp_path, width=192)).pooler.heads == 3
    with pytest.raises(UserError, match=r"width 24.*num-heads"):
        load_probe(_released_probe(tmp_path))
    with pytest.raises(UserError, match="no probe can be built"):
        load_probe(_released_probe(tmp_path), num_heads=5)


def test_probes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = _released_probe(tmp_path, **{"module.pooler.extra": torch.zeros(1)})
    with pytest.raises(UserError, match=r"1 unexpected \(pooler\.extra\)"):
        load_probe(path, num_heads=3)
    path = _released_probe(tmp_path, **{"module.linear.bias": torch.zeros(4)})
    with pytest.raises(UserError, match=r"linear\.bias: file \[4\], model \[5\]"):
        load_probe(path, num_heads=3)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"classifiers": [{}]}, "V-JEPA 2"),
        ({"encoder": {}}, "not a probe"),
        ({"classifier": {}}, "linear.weight is missing"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: dict, says: str) -> None:
    path = tmp_path / "probe.pth.tar"
    torch.save(content, path)
    with pytest.raises(UserError, match=says):
        load_probe(path)
