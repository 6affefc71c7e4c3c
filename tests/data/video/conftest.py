"""Videos of every kind, written once, and what decoders are given."""

from __future__ import annotations

import pytest
from av.packet import Packet
from av.video.frame import VideoFrame
from tests.data.video_files import VideoLibrary

from vjepa.data.video.container import VideoFile


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> VideoLibrary:
    return VideoLibrary(tmp_path_factory.mktemp("library"))


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[Packet]:
    """The packets that decoders are given during the test."""
    found: list[Packet] = []
    feed = VideoFile.feed

    def counting(self: VideoFile, packet: Packet | None) -> list[VideoFrame]:
        if packet is not None:
            found.append(packet)
        return feed(self, packet)

    monkeypatch.setattr(VideoFile, "feed", counting)
    return found
