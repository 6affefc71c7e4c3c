"""Image models of timm as video encoders. Skipped where timm is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vjepa.checkpoint.timm_models import load_timm_encoder
from vjepa.errors import UserError
from vjepa.evaluation.video_features import stretches
from vjepa.models import PIXEL_MEAN, PIXEL_STD


def test_without_timm_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs timm: pip install 'open-vjepa\[baselines\]'"):
        load_timm_encoder("vit_tiny_patch16_224")


class TestWithTimm:
    @pytest.fixture(autouse=True)
    def _timm(self) -> None:
        self.timm = pytest.importorskip("timm")

    @pytest.mark.parametrize(
        ("name", "width", "grid"),
        [
            ("vit_tiny_patch16_224", 192, 14),  # a class token, which is left out
            ("resnet18", 512, 7),  # [B, C, h, w]
            ("swin_tiny_patch4_window7_224", 768, 7),  # [B, h, w, C]
        ],
    )
    def test_tokens_are_the_models_own_feature_map(self, name: str, width: int, grid: int) -> None:
        encoder = load_timm_encoder(name, seed=3)
        config = encoder.config
        assert (config.width, config.image_size // config.patch_size) == (width, grid)
        assert config.is_image_model
        assert stretches(encoder) == (name == "resnet18")
        pixels = torch.rand(1, 3, 2, 224, 224)
        ours = (pixels - _column(PIXEL_MEAN)) / _column(PIXEL_STD)
        with torch.no_grad():
            tokens = encoder(ours)
            torch.manual_seed(3)
            model = self.timm.create_model(name, num_classes=0).eval()
            settings = model.pretrained_cfg
            theirs = (pixels - _column(settings["mean"])) / _column(settings["std"])
            features = model.forward_features(theirs[:, :, 1])
        if features.ndim == 3:
            wanted = features[:, 1:]
        elif features.shape[1] == width:
            wanted = features.flatten(2).transpose(1, 2)
        else:
            wanted = features.flatten(1, 2)
        assert tokens.shape == (1, 2 * grid * grid, width)
        torch.testing.assert_close(tokens[:, grid * grid :], wanted, atol=1e-4, rtol=1e-4)

    def test_weights_from_a_file_strictly_and_without_their_classifier(
        self, tmp_path: Path
    ) -> None:
        torch.manual_seed(8)
        whole = self.timm.create_model("vit_tiny_patch16_224", num_classes=10).eval()
        save_file(whole.state_dict(), tmp_path / "a.safetensors")
        wrapped = {f"module.{name}": tensor for name, tensor in whole.state_dict().items()}
        torch.save({"state_dict": wrapped}, tmp_path / "a.pth")
        video = torch.randn(1, 3, 1, 224, 224)
        results = []
        for name in ("a.safetensors", "a.pth"):
            encoder = load_timm_encoder("vit_tiny_patch16_224", tmp_path / name)
            with torch.no_grad():
                results.append(encoder(video))
        assert torch.equal(*results)
        random = load_timm_encoder("vit_tiny_patch16_224")
        assert not torch.equal(random(video), results[0])
        with pytest.raises(UserError, match="another model"):
            load_timm_encoder("resnet18", tmp_path / "a.safetensors")
        counted = self.timm.create_model("resnet18").state_dict()
        save_file(counted, tmp_path / "c.safetensors")
        loaded = load_timm_encoder("resnet18", tmp_path / "c.safetensors").state_dict()
        assert {t.dtype for n, t in loaded.items() if "num_batches" in n} == {torch.int64}
        partial = dict(list(whole.state_dict().items())[:-4])
        save_file(partial, tmp_path / "b.safetensors")
        with pytest.raises(UserError, match="missing"):
            load_timm_encoder("vit_tiny_patch16_224", tmp_path / "b.safetensors")
        with pytest.raises(UserError, match="no such file"):
            load_timm_encoder("resnet18", tmp_path / "none.pth")

    def test_random_weights_are_a_function_of_the_seed_and_change_no_generator(self) -> None:
        torch.manual_seed(1)
        before = torch.get_rng_state()
        one, same, other = (load_timm_encoder("resnet18", seed=seed) for seed in (0, 0, 1))
        assert torch.equal(before, torch.get_rng_state())
        video = torch.randn(1, 3, 1, 224, 224)
        with torch.no_grad():
            assert torch.equal(one(video), same(video))
            assert not torch.equal(one(video), other(video))

    def test_an_unknown_name_gets_the_nearest(self) -> None:
        with pytest.raises(UserError, match="did you mean resnet18"):
            load_timm_encoder("resnet_18")


def _column(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None]
