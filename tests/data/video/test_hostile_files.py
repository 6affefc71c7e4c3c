"""Files made to do harm: they may cost a row or a sample, never the machine, a run or a secret."""

from __future__ import annotations

import http.server
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.video_files import Spec, write_image, write_video

from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.loader.loader import ClipLoader, LoaderConfig
from vjepa.data.manifest.index import index_sources
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.decode import decode_frames
from vjepa.data.video.info import DecodeError, LimitsConfig, VideoInfo
from vjepa.data.video.inspect import InspectOrder, inspect_file, inspect_files
from vjepa.errors import UserError
from vjepa.runtime.workers import WorkerPool


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A real web server that offers a video, and the paths that were asked of it."""
    video = write_video(tmp_path / "remote.ts", Spec(container="mpegts"))
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(video.read_bytes())

        do_HEAD = do_GET  # noqa: N815 (http.server's name)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}", asked
        made.shutdown()
        thread.join()


def _play_lists(inside: str) -> dict[str, str]:
    return {
        "hls.m3u8.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{inside}\n#EXT-X-ENDLIST\n",
        "hls.mp4": f"#EXTM3U\n#EXTINF:9,\n{inside}\n",
        "concat.mp4": f"ffconcat version 1.0\nfile '{inside}'\n",
        "dash.mp4": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period>'
        f"<AdaptationSet><Representation><BaseURL>{inside}</BaseURL></Representation>"
        "</AdaptationSet></Period></MPD>",
        "session.mp4": f"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na={inside}\n",
        "pictures.avi": f"{inside}\n",
    }


@pytest.mark.parametrize("name", _play_lists(""))
def test_a_file_cannot_name_another_one_or_an_address(name, tmp_path, server):
    address, asked = server
    secret = write_video(tmp_path / "secret.ts", Spec(container="mpegts"))
    for inside in (f"{address}/remote.ts", str(secret), f"file:{secret}", f"subfile:{secret}"):
        path = tmp_path / name
        path.write_text(_play_lists(inside)[name])
        assert not inspect_file(str(path)).ok
    assert asked == []


def test_an_address_is_no_path(tmp_path, server):
    address, asked = server
    write_video(tmp_path / "good.mp4")
    (tmp_path / "list.csv").write_text(
        f"path\n{address}/remote.ts\nconcat:{tmp_path}/good.mp4\npipe:0\ngood.mp4\n"
    )
    try:
        manifest = index_sources([tmp_path / "list.csv"], tmp_path / "m.parquet", workers=1)
    except UserError as error:
        assert address in str(error)  # noqa: PT017 - either way is right, asking the server is not
    else:
        assert manifest.ok.tolist() == [False, False, False, True]
    assert asked == []


def test_a_manifest_that_names_an_address_costs_samples_only(tmp_path, server):
    address, asked = server
    good = inspect_file(str(write_video(tmp_path / "good.mp4")))
    bad = replace(good, path=f"{address}/remote.ts", bytes=0)
    rows = [ManifestRow(info=info) for info in (bad, good, good)]
    manifest = Manifest.from_rows(rows, tmp_path)
    clip, crop = ClipConfig(num_frames=4, stride=1), TransformConfig(crop_size=16)
    config = LoaderConfig(num_workers=0, max_bad_fraction=1.0)
    with ClipLoader([manifest], None, clip, crop, config, 3, 0) as loader:
        (batch,) = loader.batches(0, 1)
        assert 0 not in batch.rows[:, 1]
    assert asked == []


def _png_of(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes whose pixels, all zero, take as much memory as they say."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    packer = zlib.compressobj(9)
    row = bytes(1 + width * 3)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, content) for name, content in parts)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_of(12_000, 12_000))
    assert path.stat().st_size < 2_000_000
    assert "above max_pixels" in (inspect_file(str(path)).reason or "")


def test_an_image_that_was_swapped_after_indexing_is_refused_by_its_header(tmp_path):
    small = inspect_file(str(write_image(tmp_path / "a.png")))
    swapped = tmp_path / "b.png"
    swapped.write_bytes(_png_of(4000, 4000))
    with pytest.raises(DecodeError, match="4000 x 4000 pixels, 80 x 48 when indexed"):
        decode_frames(replace(small, path=str(swapped), bytes=0), [0])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to the limit")
def test_a_file_that_needs_too_much_memory_is_a_bad_file(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(_png_of(8000, 8000))
    good = write_video(tmp_path / "good.mp4")
    limits = LimitsConfig(max_memory_gigabytes=0.15)
    orders = [InspectOrder(path=str(name)) for name in (path, good)]
    found = list(inspect_files(orders, 1, limits, 60.0))
    assert [info.ok for info in found] == [False, True]


def _read(info: VideoInfo) -> str:
    try:
        return str(decode_frames(info, [0]).shape)
    except DecodeError as error:
        return error.reason


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to the limit")
def test_a_loader_worker_has_a_limit_to_its_memory_too(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(_png_of(8000, 8000))
    with closing(WorkerPool(_read, 1, 60.0, memory_gigabytes=0.1)) as pool:
        ((_, outcome),) = pool.map([inspect_file(str(path))], ahead=1)
    assert "memory" in outcome.value


def test_a_picture_is_read_though_its_exif_is_nonsense(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "make", 6  # to be turned by a quarter
    path = tmp_path / "a.jpg"
    Image.fromarray(np.full((8, 12, 3), 200, np.uint8)).save(path, exif=exif)
    # The maker's name becomes the width, which is no number.
    path.write_bytes(path.read_bytes().replace(b"\x01\x0f\x00\x02", b"\x01\x00\x00\x02"))
    info = inspect_file(str(path), deep=True)
    assert (info.ok, info.width, info.height) == (True, 8, 12), info.reason


def test_an_image_is_read_as_what_it_may_be_and_nothing_else(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    assert inspect_file(str(path)).reason == "not an image, or damaged beyond reading"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, format="GIF")
    assert not inspect_file(str(path)).ok
