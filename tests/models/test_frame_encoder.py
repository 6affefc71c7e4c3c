from __future__ import annotations

import pytest
import torch

from vjepa.models import Encoder, EncoderConfig
from vjepa.models.encoder import FrameEncoder

IMAGE = EncoderConfig(
    width=24, depth=2, heads=2, image_size=32, num_frames=1, patch_size=16, tubelet_size=1
)


def _image_encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(IMAGE).eval()


@pytest.mark.parametrize("at_once", [1, 4, 256])
def test_every_frame_is_encoded_alone_and_maps_are_joined_in_time(at_once: int) -> None:
    encoder = _image_encoder()
    video = torch.randn(2, 3, 5, 32, 32)
    with torch.no_grad():
        tokens = FrameEncoder(encoder, IMAGE, at_once)(video)
        assert tokens.shape == (2, 5 * 4, 24)
        for clip in range(2):
            for frame in range(5):
                alone = encoder(video[clip : clip + 1, :, frame : frame + 1])[0]
                torch.testing.assert_close(tokens[clip, frame * 4 : frame * 4 + 4], alone)


def test_a_video_model_is_refused() -> None:
    with pytest.raises(ValueError, match="image model"):
        FrameEncoder(_image_encoder(), EncoderConfig(width=24, depth=1, heads=2))
