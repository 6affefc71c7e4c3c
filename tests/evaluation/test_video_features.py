"""Features of whole files agree with encoding by hand, and a bad file costs only itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.clip_files import hanging
from tests.evaluation.tiny_videos import write_video
from torch import nn

import vjepa
from vjepa.data.clips import windows
from vjepa.data.clips.cut import cut
from vjepa.data.clips.source import VideoSource
from vjepa.data.clips.windows import FramingConfig, Look, WindowConfig, plan_frame
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError
from vjepa.evaluation import video_features
from vjepa.evaluation.preprocess import Preprocess
from vjepa.evaluation.video_features import FileEncodingConfig, encode_files, tokens_and_times
from vjepa.models import Encoder, EncoderConfig, normalise_clip, still_clip
from vjepa.models.encoder import FrameEncoder

VIDEO = EncoderConfig(width=24, depth=2, heads=2, image_size=32, num_frames=8, patch_size=16)
IMAGE = EncoderConfig(
    width=24, depth=2, heads=2, image_size=32, num_frames=1, patch_size=16, tubelet_size=1
)


def _encoder(config: EncoderConfig = VIDEO) -> Encoder:
    torch.manual_seed(0)
    return Encoder(config).eval()


def _video(path: Path, count: int, size: tuple[int, int] = (36, 64), fps: int = 10) -> Path:
    generator = np.random.default_rng(count)
    write_video(path, generator.integers(0, 256, (count, *size, 3)).astype(np.uint8), fps)
    return path


def _by_hand(encoder: nn.Module, path: Path, numbers: list[int]) -> torch.Tensor:
    """Tokens [t, h, w, D] of one window of a file."""
    info = inspect_file(str(path))
    framing = plan_frame(FramingConfig(), info.height, info.width, image_size=32, patch_size=16)
    height, width = framing.size
    clip = torch.empty(1, 3, len(numbers), height, width, dtype=torch.uint8)
    cut(VideoSource(info), [replace(framing, frames=np.array(numbers))], clip)
    with torch.no_grad():
        tokens = encoder(normalise_clip(clip))[0]
    return tokens.reshape(-1, height // 16, width // 16, tokens.shape[-1])


def test_windows_are_the_encoders_own_tokens_and_overlaps_are_averaged(tmp_path: Path) -> None:
    encoder, path = _encoder(), _video(tmp_path / "a.mp4", 24)
    window = WindowConfig(stride=2, overlap=0.5)
    found = vjepa.extract_features(encoder, path, window=window)
    assert found.grid == tuple(found.tokens.shape[:3]) == (6, 2, 4)
    first = _by_hand(encoder, path, list(range(0, 16, 2)))
    second = _by_hand(encoder, path, list(range(8, 24, 2)))
    torch.testing.assert_close(found.tokens[:2], first[:2])
    torch.testing.assert_close(found.tokens[2:4], (first[2:] + second[:2]) / 2)
    torch.testing.assert_close(found.tokens[4:], second[2:])
    assert found.frame_numbers.tolist() == [[n, n + 2] for n in range(0, 24, 4)]
    np.testing.assert_allclose(found.times, [0.1, 0.5, 0.9, 1.3, 1.7, 2.1])
    assert found.box == (0, 0, 36, 64)
    encoder.preprocess = Preprocess()
    plain: Any = {"stride": 2}
    with pytest.raises(ValueError, match=r"window: .* expected a group of settings, WindowConfig"):
        vjepa.extract_features(encoder, path, window=plain)


@pytest.mark.parametrize("pool", ["space", "video"])
def test_pooling_is_the_mean_of_the_dense_tokens(tmp_path: Path, pool: str) -> None:
    encoder, path = _encoder(), _video(tmp_path / "a.mp4", 50)
    dense = vjepa.extract_features(encoder, path)
    pooled = vjepa.extract_features(encoder, path, pool=pool)
    wanted = dense.tokens.mean(dim=(1, 2) if pool == "space" else (0, 1, 2))
    torch.testing.assert_close(pooled.tokens, wanted)
    assert np.array_equal(pooled.times, dense.times)


def test_files_of_several_sizes_rates_and_lengths_together(tmp_path: Path) -> None:
    """Sharing batches changes nothing but last bits."""
    encoder = _encoder()
    paths = [
        _video(tmp_path / "a.mp4", 60),
        _video(tmp_path / "b.mp4", 3),
        _video(tmp_path / "c.mp4", 90, size=(64, 36), fps=25),
        _video(tmp_path / "d.mp4", 61),
    ]
    window = WindowConfig(stride=None, fps=5, overlap=0.25)
    together = vjepa.extract_features(encoder, paths, window=window, batch_size=3)
    for path, found in zip(paths, together, strict=True):
        alone = vjepa.extract_features(encoder, path, window=window, batch_size=1)
        torch.testing.assert_close(found.tokens, alone.tokens)
        assert found.grid == alone.grid
    assert together[1].grid == (1, 2, 4)
    assert together[2].grid[1:] == (4, 2)


@pytest.mark.parametrize("frames", [None, 2])
def test_a_still_image_is_a_clip_of_repeats(tmp_path: Path, frames: int | None) -> None:
    encoder, path = _encoder(), tmp_path / "a.png"
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    found = vjepa.extract_features(encoder, path, window=WindowConfig(still_frames=frames))
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    with torch.no_grad():
        wanted = encoder(normalise_clip(still_clip(image, frames or 8)))
    torch.testing.assert_close(found.tokens.flatten(0, 2), wanted[0])


def test_a_still_image_goes_through_the_patches_for_images_when_asked(tmp_path: Path) -> None:
    config = replace(VIDEO, position="rotary_pairs", position_reference=16, modalities=True)
    encoder, path, window = _encoder(config), tmp_path / "a.png", WindowConfig(still_frames=1)
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    video = _video(tmp_path / "a.mp4", 9)
    found, other = vjepa.extract_features(encoder, [path, video], window=window)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None, :, None]
    with torch.no_grad():
        wanted = encoder(normalise_clip(image))
    torch.testing.assert_close(found.tokens.flatten(0, 2), wanted[0])
    assert (found.grid, found.frame_numbers.shape, other.grid) == ((1, 2, 2), (1, 1), (2, 2, 4))
    with pytest.raises(UserError, match=r"window\.still_frames: 1 frames are not whole tubelets"):
        vjepa.extract_features(_encoder(), path, window=window)


def test_an_image_encoder_sees_every_frame_alone(tmp_path: Path) -> None:
    encoder, path = _encoder(IMAGE), _video(tmp_path / "a.mp4", 40)
    found = vjepa.extract_features(encoder, path, window=WindowConfig(stride=4, overlap=0.5))
    assert found.grid == (10, 2, 4)
    torch.testing.assert_close(found.tokens[3:4], _by_hand(encoder, path, [12]))
    wrapped = vjepa.extract_features(FrameEncoder(encoder, IMAGE), path)
    torch.testing.assert_close(wrapped.tokens, found.tokens)


def _encode_all(infos: list[VideoInfo], how: FileEncodingConfig) -> dict[int, Any]:
    """Of each file its tokens and times, or the reason of its failure."""
    found: dict[int, Any] = {}
    for index, look, parts in encode_files(_encoder(), infos, how):
        try:
            found[index] = tokens_and_times(parts)
        except DecodeError as error:
            found[index] = error.reason
        assert isinstance(look, DecodeError) == (not infos[index].ok)
    return found


def test_a_bad_file_is_an_error_in_python_and_an_outcome_in_a_job(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"none")
    good = _video(tmp_path / "a.mp4", 20)
    with pytest.raises(UserError, match=r"bad\.mp4"):
        vjepa.extract_features(_encoder(), [good, tmp_path / "bad.mp4"])
    infos = [inspect_file(str(tmp_path / name)) for name in ("bad.mp4", "a.mp4", "none.mp4")]
    found = _encode_all(infos, FileEncodingConfig())
    assert {index: isinstance(value, str) for index, value in found.items()} == {
        0: True,
        1: False,
        2: True,
    }


def test_a_file_that_breaks_off_midway_leaves_nothing_and_the_others_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [_video(tmp_path / f"{name}.mp4", 90 + place) for place, name in enumerate("abc")]
    monkeypatch.setattr(windows, "_PART_FRAMES", 64)
    original = windows.read_part

    def breaking(part: windows.FramePart):
        if part.info.path.endswith("b.mp4") and part.windows[0] > 0:
            return "breaks off"
        return original(part)

    monkeypatch.setattr(windows, "read_part", breaking)
    infos = [inspect_file(str(path)) for path in paths]
    found = _encode_all(infos, FileEncodingConfig(batch_size=5))
    assert sorted(found) == [0, 1, 2]
    assert found[1] == "breaks off"
    for place in (0, 2):
        alone = vjepa.extract_features(_encoder(), paths[place])
        torch.testing.assert_close(found[place][0], alone.tokens)


@pytest.mark.parametrize("readers", [0, 1])
def test_of_many_files_only_those_at_hand_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readers: int
) -> None:
    """A look holds a file's whole timeline."""
    made: list[weakref.ref[Look]] = []
    original = video_features.look_of

    def noted(*args: Any) -> Look:
        look = original(*args)
        made.append(weakref.ref(look))
        return look

    monkeypatch.setattr(video_features, "look_of", noted)
    infos = [inspect_file(str(_video(tmp_path / "a.mp4", 20)))] * 12
    how = FileEncodingConfig(batch_size=2, readers=readers)
    held = []
    for _, _, parts in encode_files(_encoder(), infos, how):
        tokens_and_times(parts)
        held.append(sum(look() is not None for look in made))
    assert len(held) == 12
    assert max(held) <= 6


def test_a_file_that_goes_away_before_its_turn_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, asked = video_features.look_of, list[str]()

    def looking(info: VideoInfo, *args: Any) -> Look:
        asked.append(info.path)
        if asked.count(info.path) == 2 and info.path.endswith("a.mp4"):
            raise DecodeError(info.path, "gone")
        return original(info, *args)

    monkeypatch.setattr(video_features, "look_of", looking)
    infos = [inspect_file(str(_video(tmp_path / f"{name}.mp4", 20))) for name in "ab"]
    looks = {
        index: look for index, look, _ in encode_files(_encoder(), infos, FileEncodingConfig())
    }
    assert str(looks[0]).endswith("gone; give another file")
    assert isinstance(looks[1], Look)


def test_what_foreign_bytes_make_of_a_decoder_is_their_files_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(*_: object) -> None:
        raise RuntimeError("a decoder's surprise")

    monkeypatch.setattr("vjepa.data.video.decode.read_frames", surprise)
    with pytest.raises(UserError, match="RuntimeError: a decoder's surprise"):
        vjepa.extract_features(_encoder(), _video(tmp_path / "a.mp4", 20))


def test_readers_give_the_same_and_one_that_hangs_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "_PART_FRAMES", 64)  # several parts, shared out among the readers
    good = _video(tmp_path / "a.mp4", 150)
    infos = [inspect_file(str(good)), hanging(tmp_path), inspect_file(str(good))]
    found = _encode_all(infos, FileEncodingConfig(readers=2, timeout_seconds=3.0))
    assert sorted(found) == [0, 1, 2]
    assert found[1] == "reading it did not end within 3 s"
    alone = vjepa.extract_features(_encoder(), good)
    for index in (0, 2):
        tokens, times = found[index]
        torch.testing.assert_close(tokens, alone.tokens)
        assert np.array_equal(times, alone.times)


@pytest.mark.parametrize("config", [VIDEO, IMAGE], ids=["video", "image"])
@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.bfloat16, 0.1), (torch.float16, 0.01), (torch.float64, 1e-5)]
)
def test_an_encoder_of_another_type_gives_float32(
    tmp_path: Path, config: EncoderConfig, dtype: torch.dtype, near: float
) -> None:
    encoder, path = _encoder(config), _video(tmp_path / "a.mp4", 20)
    wanted = vjepa.extract_features(encoder, path).tokens
    found = vjepa.extract_features(encoder.to(dtype), path).tokens
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=near, rtol=0)


def test_an_encoder_without_sizes_is_refused(tmp_path: Path) -> None:
    path = _video(tmp_path / "a.mp4", 9)
    with pytest.raises(UserError, match="config"):
        vjepa.extract_features(nn.Linear(2, 2), path)
    with pytest.raises(UserError, match=r"VJEPA has no `config` .*; give its \.target_encoder"):
        vjepa.extract_features(vjepa.load_model("demo"), path)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            lambda x: torch.cat([x[:, :4], x], dim=1),
            r"\(1, 20, 24\), .* \(1, 16, 24\)",
        ),  # as if by another grid
        (lambda x: x.mean(dim=1), r"\(1, 24\), .* \(1, 16, 24\)"),
        (lambda x: x[..., :12], r"\(1, 16, 12\), .* \(1, 16, 24\)"),
        (lambda x: [x], "a list, not a tensor"),
    ],
)
def test_an_encoder_that_gives_other_than_its_tokens_is_refused(
    tmp_path: Path, made: Callable[[torch.Tensor], Any], said: str
) -> None:
    path, encoder = _video(tmp_path / "a.mp4", 9), _encoder()
    encoder.register_forward_hook(lambda _module, _inputs, tokens: made(tokens))
    with pytest.raises(UserError, match=f"Encoder: gives {said}"):
        vjepa.extract_features(encoder, path, framing=FramingConfig(kind="centre"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"window": WindowConfig(num_frames=7)}, "window.num_frames: 7 .* tubelets of 2; take 6"),
        ({"window": WindowConfig(still_frames=3)}, "window.still_frames: 3 .* take 2"),
        ({"framing": FramingConfig(size=30)}, "framing.size: 30 .* patches of 16; take 16"),
    ],
)
def test_a_setting_that_fits_no_file_is_not_the_files_fault(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = _video(tmp_path / "a.mp4", 9)
    with pytest.raises(UserError, match=said) as raised:
        vjepa.extract_features(_encoder(), path, **changes)
    assert str(path) not in str(raised.value)


@pytest.mark.parametrize("config", [VIDEO, IMAGE])
def test_every_part_keeps_its_own_mode(tmp_path: Path, config: EncoderConfig) -> None:
    path, encoder = _video(tmp_path / "a.mp4", 9), _encoder(config)
    vjepa.extract_features(encoder, path)
    assert not any(part.training for part in encoder.modules())
    encoder.train()
    encoder.blocks[0].eval()
    before = [part.training for part in encoder.modules()]
    vjepa.extract_features(encoder, path)
    assert [part.training for part in encoder.modules()] == before


GIVEN = replace(VIDEO, position="given")


@pytest.mark.parametrize("size", [(36, 64), (64, 36), (16, 16)])
def test_an_encoder_of_one_size_sees_the_centre(tmp_path: Path, size: tuple[int, int]) -> None:
    """Also portrait, and frames smaller than its own."""
    path, encoder = _video(tmp_path / "a.mp4", 9, size), _encoder(GIVEN)
    found = vjepa.extract_features(encoder, path)
    assert found.grid == (2, 2, 2)
    side = min(size) * 32 / 36  # an evaluation shows the centre 32 of a short side of 36
    np.testing.assert_allclose(found.box[2:], side, rtol=0.02)
    asked = vjepa.extract_features(encoder, path, framing=FramingConfig(kind="centre"))
    assert torch.equal(found.tokens, asked.tokens)
    encoder.config = replace(GIVEN, position="given_stretched")
    assert vjepa.extract_features(encoder, path).box == (0, 0, *size)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"framing": FramingConfig(kind="whole")}, "framing.kind: whole .* for 32 x 32 pixels"),
        ({"framing": FramingConfig(size=48)}, "of 8 frames, 48 pixels.*framing.size.*or stretch"),
        ({"window": WindowConfig(num_frames=16)}, "clips of 16 frames, 32 pixels.*num_frames"),
        ({"window": WindowConfig(still_frames=16)}, "clips of 16 frames.*still_frames"),
    ],
)
def test_what_an_encoder_of_one_size_cannot_be_shown_is_said(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = _video(tmp_path / "a.mp4", 9)
    with pytest.raises(UserError, match=said):
        vjepa.extract_features(_encoder(GIVEN), path, **changes)
    shorter = vjepa.extract_features(_encoder(GIVEN), path, window=WindowConfig(num_frames=4))
    assert shorter.grid == (2, 2, 2)


def test_files_unlike_those_of_the_training_are_told_together(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a batch holds windows of one file alone; a single one may be an odd one."""
    frames = np.full((16, 36, 64, 3), 20, dtype=np.uint8)
    frames[:, :, 32:] = 90
    paths = [tmp_path / f"{number}.mp4" for number in range(4)]
    for path in paths:
        write_video(path, frames, 10)
    window = WindowConfig(stride=1)
    vjepa.extract_features(_encoder(), paths[:1], window=window, batch_size=2)
    assert "the first clips" not in caplog.text
    vjepa.extract_features(_encoder(), paths, window=window, batch_size=2)
    assert caplog.text.count("the first clips (4) have mean") == 1
