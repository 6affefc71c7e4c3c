from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.checkpoint.samples import model, same_outputs

from vjepa.checkpoint import convert, load_model, read_config, released_layout, save_model
from vjepa.errors import UserError


def test_ours_to_theirs_and_back(tmp_path: Path) -> None:
    made = model()
    save_model(tmp_path / "ours", made, step=12)
    report = convert(tmp_path / "ours", tmp_path / "theirs.pth.tar")
    assert report.is_complete
    assert same_outputs(load_model(tmp_path / "theirs.pth.tar", num_heads=3), made)
    convert(tmp_path / "theirs.pth.tar", tmp_path / "again", num_heads=3)
    back = load_model(tmp_path / "again")
    assert back.config == made.config
    for name, tensor in made.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"ours", "theirs.pth.tar", "again"}


def test_the_step_goes_along(tmp_path: Path) -> None:
    save_model(tmp_path / "ours", model(), step=12)
    convert(tmp_path / "ours", tmp_path / "copy")
    assert read_config(tmp_path / "copy").step == 12


def test_files_without_an_optimiser_can_be_converted(tmp_path: Path) -> None:
    layout = released_layout(model())
    del layout["opt"]
    torch.save(layout, tmp_path / "a.pth.tar")
    convert(tmp_path / "a.pth.tar", tmp_path / "b", num_heads=3)
    assert read_config(tmp_path / "b").step == 0


def test_nothing_is_overwritten_or_left_half_done(tmp_path: Path) -> None:
    save_model(tmp_path / "ours", model())
    (tmp_path / "b.pth.tar").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        convert(tmp_path / "ours", tmp_path / "b.pth.tar")
    assert (tmp_path / "b.pth.tar").read_text() == "precious"
    with pytest.raises(UserError, match="cannot be written"):
        convert(tmp_path / "ours", tmp_path / "b.pth.tar" / "c.pth.tar")


def test_exported_optimiser_has_the_authors_groups(tmp_path: Path) -> None:
    layout = released_layout(model())
    groups = layout["opt"]["param_groups"]
    assert [group.get("WD_exclude", False) for group in groups] == [False, False, True, True]
    assert [group["weight_decay"] for group in groups[2:]] == [0, 0]
    assert sum(len(group["params"]) for group in groups) == len(layout["encoder"]) + len(
        layout["predictor"]
    )
    assert layout["opt"]["state"] == {}
