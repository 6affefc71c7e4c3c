"""Small real inputs of many kinds for ``fuzz_inputs.py``, and the ways to damage them."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from vjepa.checkpoint import save_model
from vjepa.config import dump_yaml, load_config
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.info import VideoInfo
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.models import VJEPA, EncoderConfig, ModelConfig, PredictorConfig

# Name of the file -> (encoder, pixel format).
_VIDEOS: dict[str, tuple[str, str]] = {
    "h264.mp4": ("libx264", "yuv420p"),
    "h264.mkv": ("libx264", "yuv420p"),
    "h264.avi": ("libx264", "yuv420p"),
    "h264.flv": ("libx264", "yuv420p"),
    "h264.ts": ("libx264", "yuv420p"),
    "hevc.mp4": ("libx265", "yuv420p"),
    "mpeg4.mp4": ("mpeg4", "yuv420p"),
    "mpeg4.avi": ("mpeg4", "yuv420p"),
    "mjpeg.avi": ("mjpeg", "yuvj420p"),
    "mpeg2.mpg": ("mpeg2video", "yuv420p"),
    "wmv2.wmv": ("wmv2", "yuv420p"),
    "vp8.webm": ("libvpx", "yuv420p"),
    "vp9.webm": ("libvpx-vp9", "yuv420p"),
    "av1.mkv": ("libsvtav1", "yuv420p"),
    "ffv1.mkv": ("ffv1", "yuv420p"),
    "theora.ogv": ("libtheora", "yuv420p"),
    "animation.gif": ("gif", "rgb8"),
}
_CONTAINERS = {".mpg": "mpeg", ".ts": "mpegts"}
_IMAGES = ("a.png", "a.jpg", "a.bmp", "a.webp", "a.tif", "a.ppm", "a.jp2")
_NUM_FRAMES = 24
# Values that headers use for sizes and counts when somebody means harm.
_EXTREMES = (
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\0",
    b"\0\1\0\0",
)


def _picture(number: int) -> NDArray[np.uint8]:
    """A smooth picture that changes from frame to frame: uint8 [48, 64, 3]."""
    rows, columns = np.mgrid[0:48, 0:64] / 9
    waves = [np.sin(rows + number / 4 + c) * np.cos(columns - number / 7 + c) for c in range(3)]
    return (np.stack(waves, axis=-1) * 120 + 128).astype(np.uint8)


def _write_video(path: Path, codec: str, pix_fmt: str) -> None:
    with av.open(str(path), "w", format=_CONTAINERS.get(path.suffix)) as container:
        stream = container.add_stream(codec, rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        stream.codec_context.gop_size = 8
        stream.codec_context.thread_count = 1
        for number in range(_NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(_picture(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_media(folder: Path) -> list[Path]:
    """Videos and images, as many formats as this FFmpeg can write."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, (codec, pix_fmt) in _VIDEOS.items():
        try:
            _write_video(folder / name, codec, pix_fmt)
        except (av.error.FFmpegError, ValueError) as error:
            print(f"{name}: left out, {error}")
            continue
        made.append(folder / name)
    for name in _IMAGES:
        Image.fromarray(_picture(3)).save(folder / name)
        made.append(folder / name)
    return made


def _write_manifest(path: Path) -> None:
    rows = [
        ManifestRow(
            info=VideoInfo(
                path=f"/videos/{number}.mp4",
                num_frames=100 + number,
                fps=25.0,
                width=64,
                height=48,
                codec="h264",
                bytes=1000,
                keyframe_pts=np.arange(3) * 10,
                keyframe_index=np.arange(3) * 10,
                time_base=Fraction(1, 25),
            ),
            split="train" if number % 3 else "test",
            labels={"motion": f"class {number % 4}"},
        )
        for number in range(40)
    ]
    Manifest.from_rows(rows, path.parent).write(path)
    plain = pq.read_table(path)
    pq.write_table(plain, path.with_name("plain.parquet"), compression="none")


def _tiny_model() -> VJEPA:
    torch.manual_seed(0)
    encoder = EncoderConfig(
        num_frames=4, image_size=16, patch_size=8, tubelet_size=2, width=12, depth=2, heads=2
    )
    return VJEPA(ModelConfig(encoder=encoder, predictor=PredictorConfig(width=8, depth=1)))


def write_others(folder: Path) -> list[Path]:
    """Lists, manifests, configs, checkpoints and logs; the name says what opens it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "list.csv").write_text(
        "path,split,weight,motion\n" + "".join(f'"v {n}.mp4",train,1.5,up\n' for n in range(20))
    )
    (folder / "list.jsonl").write_text(
        "".join(json.dumps({"path": f"v{n}.mp4", "label": n % 3}) + "\n" for n in range(20))
    )
    (folder / "list.txt").write_text("".join(f"videos/v {n}.mp4 {n % 5}\n" for n in range(20)))
    _write_manifest(folder / "rows.parquet")
    recipe = load_config(PretrainConfig, ["vitl16_224"], [], recipes="pretrain")
    (folder / "config.yaml").write_text(dump_yaml(recipe))
    lines = [{"kind": "train", "step": n, "loss": 1.0 / (n + 1)} for n in range(20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if not (folder / "model").exists():
        save_model(folder / "model", _tiny_model())
    (folder / "config.json").write_bytes((folder / "model" / "config.json").read_bytes())
    (folder / "weights.safetensors").write_bytes(
        (folder / "model" / "model.safetensors").read_bytes()
    )
    state = {f"module.backbone.{n}": t for n, t in _tiny_model().encoder.state_dict().items()}
    torch.save({"encoder": state, "epoch": 3}, folder / "released.tar")
    save_file({"a": torch.zeros(3)}, folder / "plain.safetensors")
    (folder / "row.txt").write_bytes(bytes(range(256)))
    names = (
        "row.txt list.csv list.jsonl list.txt rows.parquet plain.parquet config.yaml metrics.jsonl"
        " config.json weights.safetensors plain.safetensors released.tar"
    )
    return [folder / name for name in names.split()]


def mutate(content: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """A damaged copy: one change (half of the copies) to five, small ones and large ones."""
    data = bytearray(content)
    for _ in range(1 if rng.random() < 0.5 else int(rng.integers(2, 6))):
        if len(data) < 8:
            break
        # Headers are where sizes stand: half of the changes fall into the first 512 bytes.
        reach = min(len(data), 512) if rng.random() < 0.5 else len(data)
        at = int(rng.integers(reach))
        length = int(rng.integers(1, max(2, len(data) // 8 if rng.random() < 0.3 else 32)))
        match int(rng.integers(9)):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at] = int(rng.integers(256))
            case 2:
                extreme = _EXTREMES[int(rng.integers(len(_EXTREMES)))]
                data[at : at + 4] = extreme
            case 3:
                del data[max(8, at) :]
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length]
            case 6:
                data[at : at + length] = rng.bytes(min(length, 256))
            case 7:
                other = others[int(rng.integers(len(others)))]
                begin = int(rng.integers(len(other)))
                data[at : at + length] = other[begin : begin + length]
            case _:
                _raise_number(data, rng)
    return bytes(data)


def _raise_number(data: bytearray, rng: np.random.Generator) -> None:
    """Make a number that stands as text negative, huge or no number at all."""
    digits = [place for place, value in enumerate(data[:20_000]) if 48 <= value < 58]
    if digits:
        at = digits[int(rng.integers(len(digits)))]
        texts = (b"-1", b"1e999", b"9" * 30, b"nan", b"[[[[", b'"', b"0" * 5000, b"[" * 60_000)
        data[at : at + 1] = texts[int(rng.integers(len(texts)))]
