"""`vjepa export`: one file, equal to the original, used without this package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.clip_files import write_video
from tests.jobs.test_features import TINY

from vjepa.checkpoint import save_model
from vjepa.cli.main import main
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.errors import UserError
from vjepa.evaluation.evaluate import averaged_probabilities, join_clips
from vjepa.evaluation.frozen import ClipSettings, EncodingConfig
from vjepa.evaluation.heads import HeadConfig, build_head
from vjepa.evaluation.saved_probe import SavedProbe
from vjepa.jobs import export as export_module
from vjepa.jobs.export import export
from vjepa.jobs.probe.config import EncoderSourceConfig
from vjepa.jobs.probe.encoder import open_encoder
from vjepa.models import VJEPA, EncoderConfig, ModelConfig, PredictorConfig
from vjepa.models.encoder import FrameEncoder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, VJEPA(TINY))
    return folder


@pytest.fixture(scope="module")
def onnx_file(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder with a dynamic batch, by the command line."""
    out = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    assert main(["export", str(model), "--format", "onnx", "--out", str(out)]) == 0
    return out


def test_the_example_of_the_docs_needs_no_package_of_ours(onnx_file: Path) -> None:
    page = (ROOT / "docs" / "export.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert "vjepa" not in re.sub(r'"vjepa"', "", example)
    write_video(onnx_file.parent / "a.mp4")
    done = subprocess.run(
        [sys.executable, "-I", "-c", example],
        cwd=onnx_file.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "tokens, float32 [batch, 8, 24] (1, 8, 24)"


def test_any_number_of_clips_gives_the_originals_tokens(model: Path, onnx_file: Path) -> None:
    import onnxruntime

    import vjepa

    encoder = vjepa.load_encoder(model)
    session = onnxruntime.InferenceSession(str(onnx_file))
    sides = [side.shape[0] for side in (*session.get_inputs(), *session.get_outputs())]
    assert sides == ["batch", "batch"]
    for count in (1, 5):
        pixels = torch.randint(0, 256, (count, 3, 4, 32, 32), dtype=torch.uint8)
        (found,) = session.run(None, {"pixels": pixels.numpy()})
        wanted = encoder(encoder.normalise(pixels)).detach()
        torch.testing.assert_close(torch.from_numpy(found), wanted, atol=2e-5, rtol=0)


def test_a_program_of_torch_with_a_fixed_batch(model: Path, tmp_path: Path) -> None:
    import vjepa

    report = export(model, tmp_path / "e.pt2", "torch-export", batch=2)
    assert report.shape == (2, 3, 4, 32, 32)
    assert report.difference < 1e-5
    about = {export_module.META: ""}
    program = torch.export.load(tmp_path / "e.pt2", extra_files=about).module()
    assert json.loads(about[export_module.META])["preprocess"]["clip"]["num_frames"] == 4
    pixels = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    encoder = vjepa.load_encoder(model)
    wanted = encoder(encoder.normalise(pixels))
    torch.testing.assert_close(program(pixels), wanted, atol=2e-5, rtol=0)
    with pytest.raises(Exception, match=r"(?i)guard|shape|size"):
        program(pixels[:1])


@pytest.mark.parametrize(
    ("kind", "join", "form"),
    [
        ("attentive", "tokens", "onnx"),
        ("linear", "average", "torch-export"),
        ("knn", "average", "torch-export"),
    ],
)
def test_a_probe_gives_the_shares_of_its_classes(
    model: Path, tmp_path: Path, kind: str, join: str, form: export_module.Format
) -> None:
    """Two segments of three views of each video, as `vjepa probe` measures it."""
    frozen = open_encoder(EncoderSourceConfig(path=model))
    view = ViewConfig(crop_size=32, num_segments=2, num_views=3)
    torch.manual_seed(3)
    head = build_head(HeadConfig(kind=kind), 24, 2, 3, 12).eval()
    if kind == "knn":
        head.fit(torch.randn(12, 24), torch.arange(12) % 3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    clip, view = ClipConfig(num_frames=4), replace(view, join=join)
    SavedProbe(
        label="colour",
        classes=("red", "green", "blue"),
        encoder=frozen.identity,
        settings=ClipSettings(clip=clip, view=view, features=EncodingConfig()),
        form=HeadConfig(kind=kind),
        head=head,
        training={},
    ).save(tmp_path)
    with pytest.raises(UserError, match="a probe says itself how its encoder is opened"):
        export(tmp_path, tmp_path / "p.out", form, source=EncoderSourceConfig(which="context"))
    report = export(tmp_path, tmp_path / "p.out", form)
    assert report.shape == ("batch", 6, 3, 4, 32, 32)
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(tmp_path / "p.out"))
        told = session.get_modelmeta().custom_metadata_map[export_module.META]

        def program(pixels: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])

    else:
        about = {export_module.META: ""}
        program = torch.export.load(tmp_path / "p.out", extra_files=about).module()
        told = about[export_module.META]
    assert json.loads(told)["classes"] == ["red", "green", "blue"]
    pixels = torch.randint(0, 256, (2, 6, 3, 4, 32, 32), dtype=torch.uint8)
    pixels[1] //= 8
    with torch.inference_mode():
        tokens = frozen.encoder(frozen.encoder.normalise(pixels.flatten(0, 1)))
        joined = join_clips(tokens.unflatten(0, (2, 6)), 2, join)
        wanted = averaged_probabilities(head, joined)
    torch.testing.assert_close(program(pixels).double(), wanted, atol=1e-5, rtol=0)
    assert wanted.std(dim=0).max() > 1e-3, "the videos are told apart"


def test_an_image_model_sees_every_frame_alone(tmp_path: Path) -> None:
    import vjepa

    encoder = EncoderConfig(
        width=24, depth=1, heads=2, image_size=32, num_frames=1, patch_size=16, tubelet_size=1
    )
    torch.manual_seed(0)
    predictor = PredictorConfig(width=12, depth=1)
    save_model(tmp_path / "image", VJEPA(ModelConfig(encoder=encoder, predictor=predictor)))
    report = export(tmp_path / "image", tmp_path / "i.pt2", "torch-export")
    assert report.shape == ("batch", 3, 16, 32, 32)
    program = torch.export.load(tmp_path / "i.pt2").module()
    pixels = torch.randint(0, 256, (3, 3, 16, 32, 32), dtype=torch.uint8)
    loaded = vjepa.load_encoder(tmp_path / "image")
    wanted = FrameEncoder(loaded, loaded.config)(loaded.normalise(pixels)).detach()
    torch.testing.assert_close(program(pixels), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["openclip_tiny.bin", "dinov2_tiny.pth"])
def test_an_image_model_of_others_takes_any_number_of_clips(
    name: str, golden_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    source = EncoderSourceConfig(num_heads=3, image_size=56)
    report = export(
        golden_dir / "baselines" / name, tmp_path / "i.pt2", "torch-export", source=source
    )
    assert report.shape == ("batch", 3, 16, 56, 56)


def test_hiera_attends_in_five_dimensions(golden_dir: Path, tmp_path: Path) -> None:
    """For which ONNX has no fused operator; plain operations are written instead."""
    pytest.importorskip("timm")
    file = golden_dir / "baselines" / "hiera_tiny.pth"
    report = export(file, tmp_path / "h.onnx", batch=1, source=EncoderSourceConfig(num_heads=16))
    assert report.difference < 1e-5 * max(1.0, report.scale)


def test_what_differs_is_not_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export_module._write_torch

    def off_by_a_little(*given: object) -> export_module.Compute:
        compute = write(*given)
        return lambda pixels: compute(pixels) + np.float32(0.01)

    monkeypatch.setattr(export_module, "_write_torch", off_by_a_little)
    with pytest.raises(UserError, match=r"differs by 0\.01 of .* and was not kept"):
        export(model, tmp_path / "e.pt2", "torch-export")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nothing", "--out", "e.onnx"], "nothing: no such file or folder"),
        (["MODEL", "--out", "there.onnx"], "there.onnx: exists already; give another --out"),
        (["MODEL", "--out", "there.onnx/e.onnx"], "there.onnx"),
        (["MODEL", "--out", "large"], "large.data: exists already; give another --out"),
        (["MODEL", "--out", "e.onnx", "--batch", "0"], "--batch: must be at least 1"),
        (["MODEL", "--out", "e.onnx", "--image-size", "0"], "--image-size: must be at least 1"),
        (["MODEL", "--out", "e.onnx", "--num-frames", "0"], "--num-frames: must be at least 1"),
        (["MODEL", "--out", "e.onnx", "--encoder", "x"], "is no probe; leave it out"),
        (["MODEL", "--out", "e.onnx", "--format", "tensorrt"], "tensorrt"),
        (["MODEL", "--out", "e.onnx", "--num-frames", "4"], "num_frames"),
        (["MODEL"], "--out"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str],
    said: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = [tmp_path / "large.data", tmp_path / "there.onnx"]
    for path in mine:
        path.write_text("mine")
    assert main(["export", *(str(model) if word == "MODEL" else word for word in argv)]) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert said in line
    assert sorted(tmp_path.iterdir()) == mine
    assert [path.read_text() for path in mine] == ["mine", "mine"]


def test_without_the_extra_that_is_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'open-vjepa\[export\]'"):
        export(model, tmp_path / "e.onnx")


def test_an_unknown_kind_is_not_taken_for_another(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kind: 'ONNX' must be one of torch-export, onnx"):
        export(model, tmp_path / "e.onnx", "ONNX")  # type: ignore[arg-type]
