from __future__ import annotations

import numpy as np
import pytest
import torch

from vjepa.data.clips.augment import AugmentConfig, augment_clip, draw_clips
from vjepa.data.clips.auto_augment import NUM_UNIFORMS, PAIRS, auto_augment
from vjepa.data.clips.dataset import ClipViews, ViewRequest
from vjepa.data.clips.views import ViewConfig

_NAMES = {
    "Posterize": "posterize",
    "Rotate": "rotate",
    "Solarize": "solarize",
    "AutoContrast": "auto contrast",
    "Equalize": "equalize",
    "Color": "colour",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    "Invert": "invert",
    "ShearX": "shear x",
}


def _image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, 24, 24), generator=generator, dtype=torch.uint8)


def test_the_table_is_torchvisions() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.AutoAugment(transforms.AutoAugmentPolicy.IMAGENET).policies
    wanted = tuple(
        tuple((_NAMES[name], share, magnitude or 0) for name, share, magnitude in pair)
        for pair in theirs
    )
    assert wanted == PAIRS


def test_operations_are_torchvisions() -> None:
    pytest.importorskip("torchvision")
    from torchvision.transforms.v2 import functional as tv

    image = _image()

    def run(pair: int, first: bool, second: bool) -> torch.Tensor:
        u = [(pair + 0.5) / len(PAIRS), 0.0 if first else 0.999, 0.0 if second else 0.999, 0.9, 0.9]
        return auto_augment(image, np.array(u))

    assert torch.equal(run(0, True, False), tv.posterize(image, 4))
    assert torch.equal(run(4, True, False), tv.equalize(image))
    colourful = tv.adjust_saturation(image, 1 + 0.9 * 4 / 9)
    strong = tv.adjust_contrast(colourful, 1 + 0.9 * 8 / 9)
    assert torch.equal(run(23, True, False), strong)  # the contrast's probability is 1
    assert torch.equal(run(13, True, False), tv.equalize(tv.invert(image)))  # 1.0: always
    assert torch.equal(run(12, True, False), image)  # 0.0: never


@pytest.mark.parametrize("policy", ["image_paper", "image_released"])
def test_the_image_policies_crop_flip_and_augment(policy: str) -> None:
    pytest.importorskip("torchvision")
    frames = _image().permute(0, 2, 3, 1).numpy()
    config = AugmentConfig(policy=policy)
    assert config.flips
    seen = []
    for row in range(40):
        draws = draw_clips(0, row, 0, 1)
        clip = augment_clip(frames, config, 16, "antialias", draws.pixels[0], draws.noise_seeds[0])
        assert clip.shape == (3, 1, 16, 16)
        assert clip.dtype == torch.uint8
        again = augment_clip(frames, config, 16, "antialias", draws.pixels[0], draws.noise_seeds[0])
        assert torch.equal(clip, again)
        seen.append(clip)
    assert len({clip.numpy().tobytes() for clip in seen}) == 40
    assert len(draws.pixels[0]) >= NUM_UNIFORMS


def test_a_still_clip_is_one_picture_repeated(tmp_path) -> None:
    pytest.importorskip("torchvision")
    from PIL import Image

    from vjepa.data.clips.plan import ClipConfig
    from vjepa.data.video.inspect import probe

    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    info = probe(str(tmp_path / "a.png"))
    for augment in (None, AugmentConfig(policy="image_released")):
        for count in (16, 2):
            read = ClipViews(ClipConfig(num_frames=count), ViewConfig(crop_size=32), augment)
            clip = read(ViewRequest(info, row=3))
            assert clip.shape == (1, 3, count, 32, 32)
            assert np.array_equal(clip, np.repeat(clip[:, :, :1], count, axis=2))
