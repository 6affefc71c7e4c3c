from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint.samples import model, same_outputs
from tests.models.tiny import MODEL, clips

from vjepa.checkpoint import (
    find_checkpoint,
    load_encoder,
    load_model,
    read_config,
    read_model,
    save_model,
)
from vjepa.checkpoint import (
    folder as folders,
)
from vjepa.errors import UserError


def test_saved_models_come_back_identical(tmp_path: Path) -> None:
    made = model()
    folder = save_model(tmp_path / "a" / "b", made, step=7, run={"optim": {"steps": 9}})
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded, report = read_model(folder)
    assert loaded.config == MODEL
    assert same_outputs(loaded, made)
    assert not any(p.requires_grad for p in loaded.target_encoder.parameters())
    assert "step 7" in str(report)
    config = read_config(folder)
    assert (config.step, config.objective) == (7, "vjepa")
    assert config.run == {"optim": {"steps": 9}}
    assert same_outputs(load_model(folder / "model.safetensors"), made)


def test_one_encoder_can_be_read_alone(tmp_path: Path) -> None:
    made = model()
    folder = save_model(tmp_path / "m", made)
    video = clips(1)
    with torch.no_grad():
        assert torch.equal(load_encoder(folder)(video), made.target_encoder(video))
        assert torch.equal(load_encoder(folder, which="context")(video), made.encoder(video))


def test_a_run_folder_means_its_latest_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (90, 1000, 200):
        save_model(run / "checkpoints" / f"step_{step:08d}", model(), step=step)
    (run / "checkpoints" / "step_00009999").mkdir()
    (run / "checkpoints" / "step_00009999.partial").mkdir()
    (run / "config.yaml").write_text("")
    assert find_checkpoint(run).name == "step_00001000"
    assert read_config(find_checkpoint(run)).step == 1000
    load_model(run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_model(run)


def test_pixel_checkpoints_have_one_encoder(tmp_path: Path) -> None:
    made = model()
    folder = save_model(tmp_path / "m", made)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"objective": "pixel"}))
    tensors = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not k.startswith("target_encoder.")}
    save_file(kept, folder / "model.safetensors")
    video = clips(1)
    with torch.no_grad():
        assert torch.equal(load_encoder(folder)(video), made.encoder(video))
    with pytest.raises(UserError, match="pixel-prediction"):
        load_model(folder)


def test_heads_are_known_from_the_folder(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", model())
    load_model(folder, num_heads=3)
    with pytest.raises(UserError, match="has 3 heads, not 6"):
        load_model(folder, num_heads=6)


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", model())
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        save_model(folder, model(), step=1)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "save_file", full)
    with pytest.raises(UserError, match=r"m: cannot be written .*No space left"):
        save_model(tmp_path / "m", model())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_weights_are_refused(tmp_path: Path, share: float) -> None:
    path = save_model(tmp_path / "m", model()) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"model\.safetensors: truncated"):
        load_model(tmp_path / "m")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", model())
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["model"]["encoder"]["depth"] = 3
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"24 missing \(encoder\.blocks\.2"):
        load_model(folder)
    config["model"]["encoder"] |= {"depth": 2, "patch_size": 8}
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"file \[24, 3, 2, 4, 4\], model \[24, 3, 2, 8, 8\]"):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("not json", "cannot be read as JSON"),
        ("[]", "not written by vjepa"),
        ('{"model_type": "vjepa2", "hidden_size": 1024}', "V-JEPA 2.*rotary"),
        ('{"model_type": "videomae"}', r"not written by vjepa \(model_type videomae\)"),
        ('{"format": "vjepa", "objective": "vjepa"}', "no group 'model'"),
        ('{"format": "vjepa", "objective": "vjepa", "model": {"encoder": {"widht": 3}}}', "width"),
        ('{"format": "vjepa", "objective": 3, "model": {}}', "objective 3"),
        ('{"format": "vjepa", "objective": "pixel", "step": "1", "model": {}}', "step '1'"),
    ],
)
def test_bad_configurations_are_refused(tmp_path: Path, content: str, says: str) -> None:
    folder = save_model(tmp_path / "m", model())
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        load_model(folder)
    assert str(folder / "config.json") in str(caught.value)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_folders_without_both_files_are_refused(tmp_path: Path, missing: str) -> None:
    folder = save_model(tmp_path / "m", model())
    (folder / missing).unlink()
    with pytest.raises(UserError, match=f"{missing} is missing"):
        load_model(folder)
