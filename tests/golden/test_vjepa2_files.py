"""Files and folders of V-JEPA 2 and 2.1: recognised, read strictly, written; their probes."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.golden.golden_files import FEATURES, tensors
from tests.golden.test_vjepa2 import sized
from tests.golden.vjepa2_files import TWO, TWO_ONE, read, two
from torch import Tensor
from torch.testing import assert_close

from vjepa.checkpoint import (
    convert,
    hub_classes,
    read_anticipation_probe,
    read_encoder,
    read_model,
    read_probe,
    released_layout,
    released_training_state,
)
from vjepa.cli.main import main
from vjepa.errors import UserError
from vjepa.jobs.probe.config import EncoderSourceConfig
from vjepa.jobs.probe.encoder import open_encoder, reopen_encoder
from vjepa.models import VJEPA2_MODELS, AttentiveClassifier, Encoder, Predictor, authors_name
from vjepa.models.anticipation import AnticipationClassifier, with_future

SIZES = {"num_heads": 2, "image_size": 64, "num_frames": 8}
LOGITS = {"atol": 5e-6, "rtol": 0.0}


@pytest.fixture(scope="module")
def folder(golden_dir: Path) -> Path:
    return golden_dir / "vjepa2"


@pytest.fixture(scope="module")
def recorded(folder: Path) -> dict[str, Tensor]:
    return tensors(folder, "v2_forward")


def test_authors_file_is_inferred_and_loaded(golden_dir: Path, folder: Path) -> None:
    model, report = read_model(folder / "v2_pretrain_tiny.pt", **SIZES)
    assert model.config == TWO
    assert (len(report.matched), report.assumed) == (120, ())
    wanted = two(golden_dir).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    _, report = read_encoder(folder / "v2_pretrain_tiny.pt", num_heads=2)
    assert [text.split(" (")[0] for text in report.assumed] == ["256 pixels", "64 frames"]


@torch.no_grad()
def test_two_one_files_are_inferred_and_loaded(folder: Path, recorded: dict[str, Tensor]) -> None:
    model, _ = read_model(folder / "v2_1_pretrain_tiny.pt", **SIZES)
    assert model.config == TWO_ONE
    later, clip = tensors(folder, "v2_1_forward"), recorded["input/clip"]
    assert_close(model.target_encoder(clip), later["target/full"], **FEATURES)
    model, report = read_model(folder / "v2_1_distilled_tiny.pt", **SIZES)
    predictor = replace(TWO_ONE.predictor, levels=1, out_width=48)
    assert model.config == replace(TWO_ONE, predictor=predictor)
    assert_close(model.encoder(clip), later["distilled/encoder"], **FEATURES)
    assert "ema_encoder" in str(report)


@pytest.mark.parametrize("name", ["v2_pretrain_tiny.pt", "v2_1_pretrain_tiny.pt"])
def test_authors_files_there_and_back(name: str, folder: Path, tmp_path: Path) -> None:
    convert(folder / name, tmp_path / "ours", **SIZES)
    convert(tmp_path / "ours", tmp_path / "theirs.pt")
    back = torch.load(tmp_path / "theirs.pt", weights_only=True)
    original = torch.load(folder / name, weights_only=True)
    for part in ("encoder", "predictor", "target_encoder"):
        assert back[part].keys() == original[part].keys()
        for key, tensor in back[part].items():
            assert torch.equal(tensor, original[part][key]), key


def test_moments_land_on_their_parameters(folder: Path) -> None:
    state = released_training_state(folder / "v2_pretrain_tiny.pt")
    content = torch.load(folder / "v2_pretrain_tiny.pt", weights_only=True)
    assert state.step == 2
    assert len(state.moments) == len(content["opt"]["state"])
    shapes = two(folder.parent).state_dict()
    for name, moments in state.moments.items():
        assert moments["exp_avg"].shape == shapes[name].shape
    tokens = [name for name in state.moments if "mask_tokens" in name]
    assert tokens == ["predictor.mask_tokens.0", "predictor.mask_tokens.1"]


@torch.no_grad()
def test_hugging_face_folder(folder: Path, recorded: dict[str, Tensor], tmp_path: Path) -> None:
    hub = tensors(folder, "hf_forward")
    model, report = read_model(folder / "hf_base_tiny")
    assert model.config == TWO
    assert report.assumed == ()
    clip = recorded["input/clip"]
    tokens = model.target_encoder(clip)
    assert_close(tokens, hub["base/last_hidden_state"], **FEATURES)
    context, target = recorded["masks/short/context"], recorded["masks/short/target"]
    # transformers gathers the context of features that have seen the whole clip.
    seen = tokens.gather(1, context[..., None].expand(-1, -1, tokens.shape[-1]))
    predicted = model.predictor(seen, context, target, 1)
    assert_close(predicted, hub["base/predictor_short"], **FEATURES)
    # Another resolution is right without asking; what transformers computes is another number.
    wide = sized(clip, "8x96x96")
    assert_close(model.encoder(wide), recorded["sizes/8x96x96/target"], **FEATURES)
    encoder, report = read_encoder(folder / "hf_classification_tiny")
    assert_close(encoder(clip), recorded["target/full"], **FEATURES)
    assert "of its probe" in report.dropped[0]
    # The same in several files.
    whole = load_file(folder / "hf_base_tiny" / "model.safetensors")
    names = sorted(whole)
    index = {name: f"model-{number % 2 + 1}-of-2.safetensors" for number, name in enumerate(names)}
    for file in set(index.values()):
        save_file({n: whole[n] for n in names if index[n] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    shutil.copy(folder / "hf_base_tiny" / "config.json", tmp_path)
    again, _ = read_encoder(tmp_path)
    assert_close(again(clip), tokens, atol=0, rtol=0)
    (tmp_path / "model-2-of-2.safetensors").unlink()
    with pytest.raises(UserError, match="is missing; download the whole folder"):
        read_encoder(tmp_path)


@torch.no_grad()
def test_probes(folder: Path, recorded: dict[str, Tensor]) -> None:
    results = tensors(folder, "v2_probe_forward")
    tokens = recorded["target/full"]
    for index in (0, 1):
        probe, report = read_probe(folder / "v2_probe_tiny.pt", 4, index)
        assert_close(probe(tokens), results[f"probe{index}/logits"], **LOGITS)
        assert f"number {index} of 2" in report.kind
    probe, _ = read_probe(folder / "v2_probe_tiny.pt", 4)
    levels = torch.cat([recorded[f"layers/out_layers_{level}"] for level in (0, 1, 2)], dim=1)
    assert_close(probe(levels), results["levels/logits"], **LOGITS)
    joined = probe(results["joined/view0/tokens"])
    assert_close(joined, results["joined/view0/logits"], **LOGITS)
    hub = folder / "hf_classification_tiny"
    right, _ = read_probe(hub, 4)
    assert_close(right(tokens), results["probe0/logits"], **LOGITS)
    theirs, _ = read_probe(hub, as_transformers=True)
    wanted = tensors(folder, "hf_forward")["classification/logits"]
    assert_close(theirs(tokens), wanted, **LOGITS)
    assert hub_classes(hub)[:2] == ("class 0", "class 1")
    with pytest.raises(UserError, match="there is no number 2"):
        read_probe(folder / "v2_probe_tiny.pt", 4, 2)


@torch.no_grad()
def test_anticipation(golden_dir: Path, folder: Path, recorded: dict[str, Tensor]) -> None:
    results, model = tensors(folder, "v2_probe_forward"), two(golden_dir)
    seconds = results["anticipation/times"].tolist()
    tokens = with_future(model.predictor, recorded["target/full"], (4, 4, 4), seconds, 4)
    assert_close(tokens, results["anticipation/tokens"], **FEATURES)
    probe, _ = read_anticipation_probe(folder / "v2_anticipation_probe_tiny.pt", 4)
    logits = probe(tokens)
    assert list(logits) == ["verb", "noun", "action"]
    for name, found in logits.items():
        assert_close(found, results[f"anticipation/logits_{name}"], atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="read_anticipation_probe"):
        read_probe(folder / "v2_anticipation_probe_tiny.pt", 4)


def _layout(part: dict) -> dict[str, list[int]]:
    """Names and shapes of a recorded part, all of its blocks written out."""
    found = dict(part["tensors"])
    for front, blocks in part.get("blocks", {}).items():
        for number in range(blocks["count"]):
            found |= {f"{front}.{number}.{n}": s for n, s in blocks["each"].items()}
    return found


def _entries(layout: dict, part: str) -> list[str]:
    """Where a file holds a part: models that were not distilled have two encoders."""
    if part == "predictor":
        return [part]
    distilled = layout["encoder_keys"] == ["ema_encoder"]
    return ["ema_encoder"] if distilled else ["encoder", "target_encoder"]


FILES = {
    "vitl.pt": "vjepa2_vitl16",
    "vith.pt": "vjepa2_vith16",
    "vitg.pt": "vjepa2_vitg16",
    "vitg-384.pt": "vjepa2_vitg16_384",
    "vjepa2_1_vitb_dist_vitG_384.pt": "vjepa2_1_vitb16",
    "vjepa2_1_vitl_dist_vitG_384.pt": "vjepa2_1_vitl16",
    "vjepa2_1_vitg_384.pt": "vjepa2_1_vitg16",
    "vjepa2_1_vitG_384.pt": "vjepa2_1_vitG16",
}


@pytest.mark.parametrize("file", FILES)
def test_layouts_of_the_released_files_fit(file: str, folder: Path, tmp_path: Path) -> None:
    """Their names and shapes, on the meta device, give the preset and all its tensors."""
    from vjepa.checkpoint.folder import Asked
    from vjepa.checkpoint.inference import generation, open_second

    layout = json.loads((folder / "released_layouts.json").read_text())[file]
    parts = {
        key: {
            name: torch.empty(shape, device="meta") for name, shape in _layout(layout[of]).items()
        }
        for of in ("encoder", "predictor")
        for key in _entries(layout, of)
    }
    of = generation(parts, Path(file))
    assert of == layout["family"]
    held = open_second(parts, Path(file), Asked(), of)
    preset = VJEPA2_MODELS[FILES[file]]
    assert (held.encoder, held.predictor) == (preset.encoder, preset.predictor)
    assert held.encoder.heads == layout["encoder_heads"]
    with torch.device("meta"):
        encoder, predictor = Encoder(preset.encoder), Predictor(preset.encoder, preset.predictor)
    for part, module in (("encoder", encoder), ("predictor", predictor)):
        wanted = {f"{part}.{n}": t.shape for n, t in module.state_dict().items()}
        found = {n: t.shape for n, t in held.tensors.items() if n.startswith(f"{part}.")}
        assert found == wanted


def test_layouts_of_the_released_probes_fit(folder: Path) -> None:
    layouts = json.loads((folder / "released_layouts.json").read_text())
    files = [file for file in layouts if file.startswith("evals/")]
    assert len(files) == 6
    for file in files:
        found = _layout(layouts[file]["classifiers[i]"])
        plain = {name.removeprefix("module."): tuple(shape) for name, shape in found.items()}
        width, heads = plain["pooler.query_tokens"][2], layouts[file]["heads"]
        end = "_classifier.weight"
        asked = {n.removesuffix(end): shape[0] for n, shape in plain.items() if n.endswith(end)}
        assert len(asked) == (3 if "ek100" in file else 0)
        with torch.device("meta"):
            if asked:
                probe = AnticipationClassifier(width, heads, asked, 4)
            else:
                probe = AttentiveClassifier(
                    width, heads, plain["linear.weight"][0], 4, "released_2"
                )
        assert {n: tuple(t.shape) for n, t in probe.state_dict().items()} == plain


def test_bad_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each that names the file and the remedy; nothing is loaded."""
    good = read(folder.parent, "v2_pretrain_tiny.pt")
    path = tmp_path / "bad.pt"

    def refused(content: dict, match: str, **how: object) -> None:
        torch.save(content, path)
        with pytest.raises(UserError, match=match) as caught:
            read_model(path, **(SIZES | how))
        assert "\n" not in str(caught.value)

    front = "module.backbone"
    robot = {**good["predictor"], f"{front}.action_encoder.weight": torch.zeros(2, 7)}
    refused({**good, "predictor": robot}, "V-JEPA 2-AC")
    lacking = dict(good["encoder"])
    del lacking[f"{front}.blocks.1.attn.qkv.weight"]
    refused({**good, "encoder": lacking}, r"1 missing \(encoder.blocks.1.attn.qkv.weight")
    shallow = {n: t for n, t in good["encoder"].items() if ".blocks.2." not in n}
    refused({**good, "encoder": shallow}, "unexpected")
    extra = {**good["encoder"], f"{front}.cls_token": torch.zeros(1, 1, 44)}
    refused({**good, "encoder": extra}, r"1 unexpected \(encoder.cls_token")
    refused({"encoder": good["encoder"]}, "has no entry 'target_encoder'")
    refused(good, "image_size: 65 must be a multiple of patch_size", image_size=65)
    refused(good, "heads of an encoder of width 44", num_heads=None)
    whole = (folder / "v2_pretrain_tiny.pt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated"):
        read_model(path, **SIZES)
    hub = tmp_path / "hub"
    shutil.copytree(folder / "hf_base_tiny", hub)
    processor = json.loads((hub / "video_preprocessor_config.json").read_text())
    (hub / "video_preprocessor_config.json").write_text(
        json.dumps(processor | {"do_rescale": False})
    )
    with pytest.raises(UserError, match="do_rescale"):
        read_encoder(hub)
    (hub / "config.json").unlink()
    assert main(["convert", str(hub), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "config.json is missing" in said
    assert "Traceback" not in said


def test_a_figure_names_the_encoder_of_a_folder(folder: Path) -> None:
    hub = folder / "hf_base_tiny"
    identity = open_encoder(EncoderSourceConfig(path=hub)).identity
    file = hub / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    named = f"{authors_name(TWO.encoder)}, {file} (SHA-256 {digest[:12]}), target encoder"
    assert identity.sentence.startswith(named)
    assert reopen_encoder(identity).identity == identity


def test_folder_for_transformers(folder: Path, recorded: dict[str, Tensor], tmp_path: Path) -> None:
    """The library loads what is written and gives the same numbers."""
    transformers = pytest.importorskip("transformers")
    source, out = str(folder / "v2_pretrain_tiny.pt"), tmp_path / "hub"
    sizes = ["--num-heads", "2", "--image-size", "64", "--num-frames", "8"]
    assert main(["convert", source, str(out), "--layout", "huggingface", *sizes]) == 0
    model = transformers.VJEPA2Model.from_pretrained(out).eval()
    original = transformers.VJEPA2Model.from_pretrained(folder / "hf_base_tiny").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, original[name]), name
    clip = recorded["input/clip"]
    with torch.no_grad():
        theirs = model(clip.transpose(1, 2), skip_predictor=True).last_hidden_state
    assert_close(theirs, recorded["target/full"], **FEATURES)
    ours, _ = read_model(out)
    assert ours.config == TWO
    for name in ("short", "long", "unsorted"):
        context, target = (recorded[f"masks/{name}/{part}"] for part in ("context", "target"))
        with torch.no_grad():
            found = model(clip.transpose(1, 2), context_mask=[context], target_mask=[target])
            # What it feeds its predictor: tokens that have seen the whole clip, and the second
            # mask token, which training never moves.
            every = ours.target_encoder(clip)
            seen = every.gather(1, context[..., None].expand(-1, -1, every.shape[-1]))
            same = ours.predictor(seen, context, target, 1)
            # What training does: the context encoded alone, the first mask token.
            alone = ours.predictor(ours.target_encoder(clip, context), context, target, 0)
        predicted = found.predictor_output
        assert_close(predicted.last_hidden_state, same, **FEATURES)
        gathered = every.gather(1, target[..., None].expand(-1, -1, every.shape[-1]))
        assert_close(predicted.target_hidden_state, gathered, **FEATURES)
        assert (alone - same).abs().max() > 0.1
    layout = released_layout(ours)
    assert layout["encoder"].keys() == read(folder.parent, "v2_pretrain_tiny.pt")["encoder"].keys()
    context = tmp_path / "context"
    convert(source, context, layout="huggingface", which="context", **SIZES)
    encoder, _ = read_encoder(context)
    with torch.no_grad():
        assert_close(encoder(clip), recorded["encoder/full"], **FEATURES)
