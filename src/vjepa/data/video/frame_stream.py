"""Frames of one video one after another, each decoded once, in memory that does not grow with it.

For long videos that are looked at from end to end. :func:`~vjepa.data.video.decode.decode_frames`
gives the same frames; it is the way to a few of them, this the way to all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vjepa.data.video.container import RgbConverter, VideoFile, open_video
from vjepa.data.video.decode import MAX_LOST_TAIL, limits_of, usable_info
from vjepa.data.video.images import decode_images
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.data.video.inspect import scan_packets

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# Images of a folder read at a time: the folder is listed once for so many.
_IMAGES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class StreamedFrame:
    """One frame.

    frame: uint8 [H, W, 3], RGB, upright; not to be written to.
    seconds: When it is shown, in seconds since the video's first frame.
    """

    frame: NDArray[np.uint8]
    seconds: float


def stream_frames(info: VideoInfo, numbers: NDArray[np.int64]) -> Iterator[StreamedFrame]:
    """The frames with the given numbers, in their order.

    Groups of pictures without a wanted frame are not decoded; a file whose key frames turn out to
    be none is read once more from its start.

    Args:
        info: A manifest row, or what probing a file has found.
        numbers: int64 [n], from 0, never falling; a repeated number gives its frame again. For a
            still image any number is its one picture.

    Yields:
        n frames.

    Raises:
        DecodeError: The file cannot give a frame; those before it have been given.
        ValueError: `numbers` fall or are negative.
    """
    usable_info(info)
    if len(numbers) and (numbers[0] < 0 or np.any(np.diff(numbers) < 0)):
        raise ValueError("numbers must rise from 0 on")
    if info.kind == "image":
        numbers = np.zeros_like(numbers)
    if len(numbers) and numbers[-1] >= info.num_frames:
        raise DecodeError(
            info.path, f"frame {numbers[-1]} asked for, but it has {info.num_frames} frames"
        )
    unique, counts = np.unique(numbers, return_counts=True)
    frames = _video_frames(info, unique) if info.kind == "video" else _image_frames(info, unique)
    for frame, count in zip(frames, counts.tolist(), strict=True):
        for _ in range(count):
            yield frame


def _image_frames(info: VideoInfo, numbers: NDArray[np.int64]) -> Iterator[StreamedFrame]:
    for start in range(0, len(numbers), _IMAGES_AT_ONCE):
        some = numbers[start : start + _IMAGES_AT_ONCE]
        for number, frame in zip(some.tolist(), decode_images(info, some), strict=True):
            yield StreamedFrame(frame, number / info.fps)


def _video_frames(info: VideoInfo, wanted: NDArray[np.int64]) -> Iterator[StreamedFrame]:
    """Wanted frames (ascending, each once): first with jumps, and if one is missing without."""
    converter = RgbConverter(info.width, info.height)
    done = 0
    latest: tuple[int, VideoFrame] | None = None
    for may_jump in (True, False):
        for number, frame in _decoded(info, wanted[done:], may_jump):
            latest = number, frame
            if number < wanted[done]:
                continue
            if number > wanted[done]:
                break
            yield StreamedFrame(converter.convert(frame), _seconds(info, number, frame))
            done += 1
            if done == len(wanted):
                return
    # As everywhere: the last good frame stands in for a few that are missing at the very end.
    for number in wanted[done:].tolist():
        near_end = latest is not None and info.num_frames - 1 - latest[0] <= MAX_LOST_TAIL
        if latest is None or not near_end or number < latest[0]:
            raise DecodeError(
                info.path, f"frame {number} of {info.num_frames} cannot be decoded (damaged file)"
            )
        yield StreamedFrame(converter.convert(latest[1]), _seconds(info, *latest))


def _seconds(info: VideoInfo, number: int, frame: VideoFrame) -> float:
    if info.num_keyframes and frame.pts is not None:
        return float((frame.pts - info.start_pts) * info.time_base)
    return number / info.fps


def _decoded(
    info: VideoInfo, wanted: NDArray[np.int64], may_jump: bool
) -> Iterator[tuple[int, VideoFrame]]:
    """Frames with their numbers in display order, all wanted ones that come out among them."""
    limits = limits_of(info)
    if not info.num_keyframes:
        with open_video(info.path, limits) as video:
            yield from enumerate(video.frames())
        return
    with open_video(info.path, limits) as video:
        shown = np.sort(scan_packets(video).shown_pts)
    with open_video(info.path, limits) as video:
        frames = _jumping(video, info, wanted, shown) if may_jump else video.frames()
        for frame in frames:
            number = None if frame.pts is None else int(np.searchsorted(shown, frame.pts))
            if number is not None and number < len(shown) and shown[number] == frame.pts:
                yield number, frame


def _jumping(
    video: VideoFile, info: VideoInfo, wanted: NDArray[np.int64], shown: NDArray[np.int64]
) -> Iterator[VideoFrame]:
    """Decode only the groups of pictures that are needed for the wanted frames.

    The packets from one key frame to the next may hold frames shown before that key frame, so the
    group after a wanted one is decoded, too.
    """
    groups = np.searchsorted(info.keyframe_index, wanted, side="right") - 1
    needed = set(groups.tolist()) | set((groups + 1).tolist())
    group_of = {pts: group for group, pts in enumerate(info.keyframe_pts.tolist())}
    inside = wanted[wanted < len(shown)]
    wanted_pts = set(shown[inside].tolist())
    # Hevc's frames that FFmpeg calls unreferenced may still serve frames of a higher sub-layer.
    can_skip = video.decoder.name == "h264"
    group, fed = 0, False
    for packet in video.packets():
        if packet.is_keyframe and packet.pts in group_of:
            group = group_of[packet.pts]
        if group not in needed:
            if fed:
                yield from video.feed(None)
                video.decoder.flush_buffers()
                fed = False
            continue
        if can_skip:
            # Frames that nobody wants and no other frame refers to are not decoded at all.
            video.decoder.skip_frame = "DEFAULT" if packet.pts in wanted_pts else "NONREF"
        fed = True
        yield from video.feed(packet)
    if fed:
        yield from video.feed(None)
