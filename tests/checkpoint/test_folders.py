"""Folders of ours: written, read, refused; converted; the one that comes with the package."""

from __future__ import annotations

import copy
import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint.samples import model, released_file, same_outputs, with_encoder
from tests.models.tiny import MODEL, clips
from torch import nn

import vjepa
from vjepa import load_encoder
from vjepa.checkpoint import (
    convert,
    find_checkpoint,
    read_config,
    read_encoder,
    read_model,
    save_model,
    shipped_weights,
)
from vjepa.checkpoint import folder as folders
from vjepa.checkpoint.load import Layout
from vjepa.config import from_dict
from vjepa.errors import UserError
from vjepa.evaluation.preprocess import load_model
from vjepa.jobs.pretrain import ContinueConfig
from vjepa.jobs.probe.config import EncoderSourceConfig
from vjepa.models import InputConfig

TAKEN = {"heads": 1, "shared_mask_token": 0}
STRETCHED = {"position": "rotary", "position_reference": 16}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "m", model())


def test_what_is_loaded_in_inference_mode_can_be_trained(folder: Path) -> None:
    with torch.inference_mode():
        loaded = load_model(folder), load_encoder(folder)
    for encoder in (loaded[0].encoder, loaded[1]):
        encoder(clips(1)).sum().backward()


def test_saved_models_come_back_identical(tmp_path: Path) -> None:
    made, video = model(), clips(1)
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
    (run / "config.json").write_text("{}")  # figures that somebody has written there
    assert find_checkpoint(run).name == "step_00001000"
    assert read_config(find_checkpoint(run)).step == 1000
    load_model(run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_model(run)


def test_pixel_checkpoints_have_one_encoder(folder: Path) -> None:
    context = load_encoder(folder, which="context")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"objective": "pixel"}))
    tensors = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not k.startswith("target_encoder.")}
    save_file(kept, folder / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(load_encoder(folder)(clips(1)), context(clips(1)))
    with pytest.raises(UserError, match="'pixel', which predicts no features"):
        load_model(folder)


def test_heads_are_known_from_the_folder(folder: Path) -> None:
    load_model(folder, num_heads=3)
    with pytest.raises(UserError, match="has 3 heads, not 6"):
        load_model(folder, num_heads=6)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "save_tensors", full)
    with pytest.raises(UserError, match=r"m: could not be written: the disk is full"):
        save_model(tmp_path / "m", model())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_weights_are_refused(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"model\.safetensors: truncated"):
        load_model(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
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
        ('{"model_type": "videomae"}', r"not written by vjepa \(model_type videomae\)"),
        ('{"format": "vjepa", "objective": "vjepa"}', "no group 'model'"),
        ('{"format": "vjepa", "objective": "detection"}', r"a detector, .*\(encoder\.path in"),
        ('{"format": "vjepa", "objective": "vjepa", "model": {"encoder": {"widht": 3}}}', "width"),
        ('{"format": "vjepa", "objective": 3, "model": {}}', "objective 3"),
        ('{"format": "vjepa", "objective": "pixel", "step": "1", "model": {}}', "step '1'"),
    ],
)
def test_bad_configurations_are_refused(folder: Path, content: str, says: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        load_model(folder)
    assert str(folder / "config.json") in str(caught.value)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_folders_without_both_files_are_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(UserError, match=f"{missing} is missing"):
        load_model(folder)
    (folder / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{missing} is missing"):
        load_model(folder)


def test_a_folder_of_learn_means_its_run(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "mine" / "run"
    shutil.copytree(folder, run / "checkpoints" / "step_00000003")
    assert find_checkpoint(tmp_path / "mine") == find_checkpoint(run)
    assert find_checkpoint(run).name == "step_00000003"


def test_a_size_that_there_is_not_is_named(folder: Path) -> None:
    for load in (load_model, read_encoder):
        with pytest.raises(UserError, match="img_size: no such size; give image_size or num_f"):
            load(folder, img_size=32)


@pytest.mark.parametrize("wrapped", ["whole", "part", "blocks", "parallel", "tied"])
def test_compiled_and_wrapped_models_are_saved_as_plain_ones(tmp_path: Path, wrapped: str) -> None:
    made = model()
    plain, whole = copy.deepcopy(made), made
    if wrapped == "part":
        made.encoder = torch.compile(made.encoder, backend="eager")
    elif wrapped == "tied":  # one module under two names
        made.target_encoder, plain.target_encoder = made.encoder, plain.encoder
    elif wrapped == "blocks":
        made.predictor.predictor_blocks[0] = torch.compile(made.predictor.predictor_blocks[0])
    else:
        whole = torch.compile(made, backend="eager")
        whole = nn.DataParallel(whole) if wrapped == "parallel" else whole
    folder = save_model(tmp_path / "m", whole)
    assert not [name for name in load_file(folder / "model.safetensors") if "_orig_mod" in name]
    assert same_outputs(load_model(folder), plain)


def test_what_no_reader_would_take_is_not_written(tmp_path: Path) -> None:
    made = model()
    made.encoder.norm.adapter = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"2 unexpected \(encoder\.norm\.adapter.*adapters"):
        save_model(tmp_path / "m", made)
    with pytest.raises(UserError, match="a Encoder is no whole model"):
        save_model(tmp_path / "m", made.target_encoder)
    assert not list(tmp_path.iterdir())


def test_folders_that_were_written_with_wrappers_names_are_read(folder: Path) -> None:
    plain, tensors = load_model(folder), load_file(folder / "model.safetensors")
    names = {
        k: k.replace("encoder.", "encoder._orig_mod.").replace("blocks.1.", "blocks.1.module.")
        for k in tensors
    }
    save_file({names[k]: v for k, v in tensors.items()}, folder / "model.safetensors")
    assert same_outputs(load_model(folder), plain)
    assert torch.equal(load_encoder(folder)(clips(1)), plain.target_encoder(clips(1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    made = model().to(dtype)
    made.target_encoder.blocks[0].mlp.fc1.weight.data[0, :2] = torch.tensor([torch.nan, torch.inf])
    folder = save_model(tmp_path / "m", made)
    with pytest.raises(UserError, match=r"blocks\.0\.mlp\.fc1\.weight holds 2 of .*not finite"):
        load_encoder(folder)
    load_encoder(folder, "context")


def test_a_newer_version_is_named_where_reading_fails(folder: Path) -> None:
    path = folder / "config.json"
    good = json.loads(path.read_text())
    for version, newer in (("9.9.0", True), (good["version"], False), ("0.0.1", False)):
        path.write_text(json.dumps(good | {"version": version}))
        load_model(folder)
        unknown = json.loads(json.dumps(good | {"version": version}))
        unknown["model"]["encoder"]["register_tokens"] = 4
        deeper = json.loads(json.dumps(good | {"version": version}))
        deeper["model"]["encoder"]["depth"] = 3
        for content in (unknown, deeper):
            path.write_text(json.dumps(content))
            with pytest.raises(UserError) as caught:
                load_model(folder)
            told = "written by vjepa 9.9.0, which is newer than this" in str(caught.value)
            assert told == newer, str(caught.value)


def test_ours_to_theirs_and_back(tmp_path: Path) -> None:
    made = model()
    said: dict = {"run": {"seed": 3}, "preprocess": {"clip": {"num_frames": 4, "stride": 2}}}
    save_model(tmp_path / "ours", made, step=12, **said)
    report = convert(tmp_path / "ours", tmp_path / "theirs.pth.tar")
    assert report.is_complete
    assert same_outputs(load_model(tmp_path / "theirs.pth.tar", num_heads=3), made)
    convert(tmp_path / "theirs.pth.tar", tmp_path / "again", num_heads=3)
    back = load_model(tmp_path / "again")
    assert back.config == made.config
    for name, tensor in made.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    convert(tmp_path / "ours", tmp_path / "copy")
    copied = read_config(tmp_path / "copy")
    assert (copied.step, copied.run, copied.preprocess) == (12, *said.values())
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"ours", "theirs.pth.tar", "again", "copy"}


def test_a_cls_token_and_causal_attention_are_kept_and_older_folders_have_none(
    tmp_path: Path,
) -> None:
    made = model(with_encoder(cls=True, attention="block_causal"))
    save_model(tmp_path / "ours", made)
    assert load_model(tmp_path / "ours").config == made.config
    assert same_outputs(load_model(tmp_path / "ours"), made)
    with pytest.raises(UserError, match=r"no place for encoder\.cls, encoder\.attention:"):
        convert(tmp_path / "ours", tmp_path / "theirs.pth.tar")
    plain = model()
    old = save_model(tmp_path / "old", plain)
    content = json.loads((old / "config.json").read_text())
    for name in ("cls", "attention"):
        del content["model"]["encoder"][name]
    (old / "config.json").write_text(json.dumps(content))
    assert same_outputs(load_model(old), plain)


def test_an_input_of_its_own_is_not_lost_in_the_authors_layout(tmp_path: Path) -> None:
    made = model(with_encoder(input=InputConfig(content="rgb_without_mean")))
    save_model(tmp_path / "ours", made)
    with pytest.raises(UserError, match=r"authors has no place for encoder\.input:"):
        convert(tmp_path / "ours", tmp_path / "theirs.pth.tar")
    convert(tmp_path / "ours", tmp_path / "copy")
    assert load_model(tmp_path / "copy").config == made.config


@pytest.mark.parametrize(
    ("layout", "encoder", "predictor", "lost"),
    [
        ("authors", {}, {"heads": 2}, "predictor.heads"),
        ("authors", {}, {"shared_mask_token": 1}, "predictor.shared_mask_token"),
        ("authors", {"position": "rotary"}, {"shared_mask_token": 0}, "predictor.heads"),
        ("authors", {"position": "rotary"}, {"heads": 1}, "predictor.shared_mask_token"),
        ("authors", {"position": "rotary_pairs"}, TAKEN, "encoder.position"),
        ("authors", {"levels": (0, 1)}, {}, "is known of"),
        ("huggingface", {"position": "rotary"}, {}, "predictor.shared_mask_token"),
        ("huggingface", STRETCHED, TAKEN, "encoder.position_reference"),
    ],
)
def test_what_a_layout_would_read_otherwise_is_refused(
    layout: Layout, encoder: dict, predictor: dict, lost: str, tmp_path: Path
) -> None:
    sizes = replace(MODEL.predictor, width=24, **predictor)
    save_model(tmp_path / "ours", model(with_encoder(sizes, **encoder)))
    with pytest.raises(UserError, match=lost):
        convert(tmp_path / "ours", tmp_path / "theirs.pt", layout=layout)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    if layout == "huggingface":
        taken = replace(sizes, **TAKEN)
        save_model(tmp_path / "fit", model(with_encoder(taken, position="rotary")))
        convert(tmp_path / "fit", tmp_path / "hub", layout=layout)


def test_files_without_an_optimiser_can_be_converted(tmp_path: Path) -> None:
    convert(released_file(tmp_path, opt=None), tmp_path / "b", num_heads=3)
    assert read_config(tmp_path / "b").step == 0


def test_a_downloaded_model_is_converted_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vjepa_vitl16").mkdir()
    released_file(tmp_path / "vjepa_vitl16", opt={"state": {0: {"step": 7}}})
    monkeypatch.setenv("VJEPA_MODELS", str(tmp_path))
    monkeypatch.setattr("vjepa.checkpoint.load.require_sizes", lambda held, name: None)
    convert("vjepa_vitl16", tmp_path / "b", num_heads=3)
    assert read_config(tmp_path / "b").step == 7
    assert load_model(tmp_path / "b").config == MODEL


def test_nothing_is_overwritten_or_left_half_done(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "b.pth.tar").write_text("precious")
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        save_model(folder, model(), step=1)
    with pytest.raises(UserError, match="exists already"):
        convert(folder, tmp_path / "b.pth.tar")
    with pytest.raises(UserError, match="could not be written"):
        convert(folder, tmp_path / "b.pth.tar" / "c.pth.tar")
    assert (folder / "model.safetensors").read_bytes() == before
    assert (tmp_path / "b.pth.tar").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.pth.tar", "m"]


def test_the_model_loads_whole_and_takes_the_clips_that_its_card_names() -> None:
    model = vjepa.load_model("demo").eval()
    size = model.config.encoder
    assert (size.num_frames, size.image_size, size.width, size.depth) == (8, 32, 96, 3)
    encoder = vjepa.load_encoder("demo").eval()
    assert encoder.preprocess == load_encoder(shipped_weights() / "model.safetensors").preprocess
    clips = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        features = encoder(clips)
        assert features.shape == (2, 64, 96)
        assert torch.equal(features, model.target_encoder(clips))
    assert features.isfinite().all()
    # Trained: clips differ in their features far beyond what position does.
    assert features.std(dim=0).mean() > 0.1


def test_a_name_goes_before_a_file_and_unknown_names_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, what in (("vitl16", "names a recipe"), ("demos", "no such file or folder")):
        names = r"\(demo, garments, vizdoom, vizdoom_hour\)"
        with pytest.raises(UserError, match=f"{name}: {what}.*{names}"):
            load_model(name)
    assert load_encoder("demo").preprocess == load_encoder(shipped_weights()).preprocess
    Path("config.yaml").write_text("seed: 0")
    with pytest.raises(UserError, match=r"config\.yaml: a configuration, .*give the folder"):
        load_encoder("config.yaml")
    folders._say_taken.cache_clear()
    convert(save_model("a", model()), "demo")
    assert "the model of that name" not in caplog.text
    assert load_model("demo").config == read_config(shipped_weights()).model != MODEL
    assert "demo: the model of that name is taken; what lies here is ./demo" in caplog.text
    for here in ("./demo", tmp_path / "demo"):
        assert load_model(here).config == load_model("a").config == MODEL
        assert load_encoder(here).config == MODEL.encoder
    for config in (EncoderSourceConfig, ContinueConfig):
        place = from_dict(config, {"path": "./demo"}).path
        assert place is not None
        assert find_checkpoint(place) == tmp_path / "demo"
        assert find_checkpoint(from_dict(config, {"path": "demo"}).path) == shipped_weights()
    (tmp_path / "dinov2_vitg14").mkdir()
    with pytest.raises(UserError, match=r"dinov2_vitg14: .* was not downloaded yet"):
        load_encoder("dinov2_vitg14")
    with pytest.raises(UserError, match=r"dinov2_vitg14: not a checkpoint folder"):
        load_encoder("./dinov2_vitg14")


def test_the_folder_says_what_was_trained_and_how() -> None:
    folder = shipped_weights()
    assert find_checkpoint(folder) == folder
    config = read_config(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{config.step:,} updates" in card
    assert 0 < config.step <= config.run["optim"]["steps"]
    assert config.run["data"]["sources"] == [], "no path of the machine that it was trained on"
    for part in ("Trained on", "How", "What it can do", "What it cannot", "Licence"):
        assert part in card
    # The package must stay small.
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8 << 20


def test_a_layout_that_is_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="layout: 'hf' is none of ours, authors, huggingface"):
        convert("demo", tmp_path / "out", layout="hf")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
