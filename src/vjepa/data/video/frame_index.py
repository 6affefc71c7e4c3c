"""Which frames a video has, when they are shown and where decoding can begin, verified once.

What a file says of itself is believed as far as its first frames, when decoded, and the headers of
its key frames agree with it. Each step that does not hold makes reading slower, never wrong: frames
are known by their timestamps; else counted from closed groups of pictures; else the whole file is
decoded, here and only here, to see which frames come out of it.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from av.error import FFmpegError
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vjepa.data.video.container import (
    BEST_STREAM,
    naming_the_file,
    open_video,
    orientation_of,
    to_rgb,
)
from vjepa.data.video.decode import frames_by_jumps, frames_from_start
from vjepa.data.video.info import DecodeError, LimitsConfig, Reading, VideoInfo
from vjepa.data.video.packets import WORTH_A_JUMP
from vjepa.data.video.stamps import (
    NO_STAMP,
    PacketTable,
    display_times,
    read_packets,
    shown_later,
    with_missing,
)
from vjepa.runtime.workers import going_on

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

    from vjepa.data.video.container import VideoFile

# Decoders whose key frames can be entry points. GIF and its like build each picture on the one
# before, whatever the flag says.
_TRUSTED = """h264 hevc vp8 vp9 libvpx libvpx-vp9 av1 libdav1d libaom-av1 mpeg1video mpeg2video
mpeg4 msmpeg4v1 msmpeg4v2 msmpeg4 wmv1 wmv2 wmv3 vc1 h263 flv theora mjpeg prores ffv1 dnxhd dvvideo
cinepak rawvideo huffyuv ffvhuff utvideo"""
_TRUSTED_KEYFRAMES = frozenset(_TRUSTED.split())

# So many of the first frames, as decoded, must be those that the timestamps announce: some formats
# (h264 in AVI) have made-up timestamps in decoding order. B-frames reach back at most 16 frames.
_NUM_VERIFIED = 24

# Where headers do not tell, so many entry points are tried, over so many packets each.
_NUM_TRIED, _TRIED_PACKETS = 2, 12

# Timestamps of which a larger part goes back, or is missing, are not those of a clock; of which a
# larger part repeats, those of one that ticks too slowly.
_MADE_UP, _FINER = 0.1, 1000

_FALLBACK_FPS = 25.0
_CLOCK_MAY_JUMP = 0x200  # FFmpeg's AVFMT_TS_DISCONT: formats made to be cut and joined


def index_frames(info: VideoInfo, limits: LimitsConfig) -> VideoInfo:
    """Fill in `info` for a video file.

    Raises:
        DecodeError: It cannot give frames, is truncated, or is above the limits.
    """
    with open_video(info.path, limits, BEST_STREAM) as video:
        table = read_packets(video, limits.max_frames)
        if not len(table):
            raise DecodeError(info.path, "no video data in it")
        # MP4 and its kin list their packets; those that an edit list takes out are not listed.
        is_listed = "mov" in video.container.format.name
        if table.is_cut_off or (is_listed and len(table) < len(video.stream.index_entries)):
            complete = len(table) - table.is_cut_off
            raise DecodeError(info.path, f"truncated: only {complete} frames are in the file")
        may_splice = bool(video.container.format.flags & _CLOCK_MAY_JUMP)
        stated = video.stream.average_rate or video.stream.guessed_rate
        is_trusted = video.decoder.name in _TRUSTED_KEYFRAMES
        info = replace(
            info,
            codec=video.stream.codec_context.name,
            stream=video.stream.index,
            time_base=video.stream.time_base or Fraction(0),
            fps=float(stated) if stated else _FALLBACK_FPS,
            note=video.choice,
        )
    start = _decode(info, limits, _NUM_VERIFIED)
    orientation = orientation_of(start.first)
    size = (start.first.width, start.first.height)
    width, height = size[::-1] if orientation.transpose else size
    if width * height > limits.max_pixels:
        raise DecodeError(
            info.path,
            f"frames of {width} x {height} pixels are above max_pixels = {limits.max_pixels}",
        )
    info = replace(info, width=width, height=height, rotation=orientation.rotation)
    order, whole = _by_stamps(table, start), None
    reading: Reading = "stamps"
    if order is not None and table.is_late:
        reading, whole = "groups", _decode(info, limits, None)
        order = order if np.array_equal(order, whole.order) else None
    keys = table.is_flagged & (table.entry == 1)
    if order is not None and not (table.has_pts or _ends_in_order(info, table, order, keys)):
        order, whole = None, _decode(info, limits, None)
    if order is None:
        reading = "counted"
        with open_video(info.path, limits, info.stream) as video:
            table = read_packets(video, look_at_all=True)
        order = None if whole else _by_groups(table, start)
        if order is None:
            order = (whole or _decode(info, limits, None)).order
        else:
            # Presentation times that are those of the first frames tell the order within a group.
            is_told = np.array_equal(order[: len(start.order)], start.order[: len(order)])
            pts = table.pts[order]
            if not is_told or np.any(pts == NO_STAMP) or np.any(np.diff(pts) == 0):
                closed = keys & table.is_closed
                if 2 * np.count_nonzero(closed) >= np.count_nonzero(keys):
                    keys = closed
                else:  # of groups that are open only decoding tells where their frames are
                    order = _decode(info, limits, None).order
    doubtful = np.flatnonzero(table.is_flagged & (table.entry < 0))
    if is_trusted and len(doubtful):
        keys[_tried(info, limits, doubtful)] = True
    info = _with_times(replace(info, reading=reading), table, order, start.delay, may_splice)
    info = _with_entries(info, table, order, np.flatnonzero(keys & is_trusted))
    if info.is_counted and info.num_keyframes < np.count_nonzero(keys & is_trusted):
        placed = _with_places(info, limits, table, order, np.flatnonzero(keys & is_trusted))
        info = placed if placed.num_keyframes > max(1, info.num_keyframes) else info
    false = int((table.is_flagged & (table.entry == 0)).sum())
    notes = [
        info.note,
        f"{false} of {int(table.is_flagged.sum())} key-frame flags are wrong" if false else "",
        "decoding times are wrong" if reading == "groups" else "",
        "frames are counted, timestamps do not tell them apart" if reading == "counted" else "",
    ]
    if len(info.frame_pts) and reading != "counted":
        mended = "timestamps jump or repeat: mended"
        notes.append(mended if table.has_pts else "frames were left out (empty chunks)")
    return replace(info, note="; ".join(filter(None, notes)))


@dataclass(frozen=True, slots=True)
class _Decoded:
    """What came out of the decoder."""

    first: VideoFrame
    order: NDArray[np.int64]  # numbers of the packets of the frames, in display order
    num_packets: int  # that were given to it
    num_frames: int  # that came out in all, `order` holds those whose order is final
    num_refused: int  # packets that are damaged
    delay: int  # how many packets it was given before the one with which the first frame came out


def _decode(info: VideoInfo, limits: LimitsConfig, most: int | None) -> _Decoded:
    """Decode a video from its start, at least `most` frames; None: all."""
    first: VideoFrame | None = None
    order: list[int] = []
    num_packets = delay = 0
    with open_video(info.path, limits, info.stream) as video:
        for packet in video.packets():
            going_on()
            packet.pts = num_packets  # so its frame tells from where it comes
            num_packets += 1
            for frame in video.feed(packet):
                delay = delay if first else num_packets - 1
                first = first or frame
                order.append(len(order) if frame.pts is None else frame.pts)
            if most is not None and len(order) >= most:
                break
        else:
            most = None
        rest = video.feed(None)
    num_frames = len(order) + len(rest)
    if most is None:
        order += [len(order) if frame.pts is None else frame.pts for frame in rest]
    first = first or (rest[0] if rest else None)
    if first is None:
        raise DecodeError(info.path, "no frame of it can be decoded")
    numbers = np.array(order, dtype=np.int64)
    return _Decoded(first, numbers, num_packets, num_frames, len(video.refused), delay)


def _by_stamps(table: PacketTable, start: _Decoded) -> NDArray[np.int64] | None:
    """The packets in display order by their timestamps, if these are what they should be."""
    shown = table.shown
    pts, keys = table.pts[shown], table.pts[table.is_flagged & (table.entry != 0)]
    is_usable = (
        len(shown) > 0
        and not np.any(table.pts == NO_STAMP)
        and not table.is_field.any()
        and len(np.unique(pts)) == len(pts)
        and np.all(np.diff(keys) > 0)
    )
    if not is_usable:
        return None
    order = shown[np.argsort(pts)]
    rank = np.full(len(table), -1)
    rank[order] = np.arange(len(order))
    found = rank[start.order]
    if start.num_refused:  # frames of damaged packets are lost, the others stay what they are
        return order if found.min() >= 0 and np.all(np.diff(found) > 0) else None
    return order if np.array_equal(found, np.arange(len(found))) else None


def _ends_in_order(
    info: VideoInfo, table: PacketTable, order: NDArray[np.int64], keys: NDArray[np.bool_]
) -> bool:
    """Whether the last frames come out of the decoder in the order of timestamps that were guessed.

    A guess is made of the packets that follow, and at the end there are none.
    """
    if np.all(np.diff(order) > 0):
        return True
    num_frames = len(order)
    info = replace(info, num_frames=num_frames)
    last = np.arange(max(0, num_frames - _NUM_VERIFIED), num_frames)
    indexed = _with_entries(info, table, order, np.flatnonzero(keys))
    numbers = [number for number, _ in frames_by_jumps(indexed, last)]
    return numbers == sorted(numbers)


def _by_groups(table: PacketTable, start: _Decoded) -> NDArray[np.int64] | None:
    """The packets, group by group, if every group is closed and every packet gives one frame."""
    shown = table.shown
    if not len(shown) or not table.is_closed[shown[0]] or not table.is_known.all():
        return None
    if table.is_field.any() or (shown < start.num_packets).sum() != start.num_frames:
        return None
    groups = np.cumsum(table.is_closed)[shown]
    return shown[np.lexsort((with_missing(table.stamps)[shown], groups))]


def _with_times(
    info: VideoInfo, table: PacketTable, order: NDArray[np.int64], delay: int, may_splice: bool
) -> VideoInfo:
    """Number, rate and times of the frames, which come from the packets in `order`.

    `delay` is of the decoder, in packets.
    """
    num_frames = len(order)
    info = replace(info, num_frames=num_frames, duration_seconds=num_frames / info.fps)
    given = stamps = table.stamps[order]
    # Where only times of decoding are known, and where those given follow the order of decoding, a
    # frame is shown at the time of the packet with which it comes out.
    is_decoding = not table.has_pts or (np.diff(given) < 0).sum() > _MADE_UP * num_frames
    if is_decoding:
        decoding = table.stamps if np.any(table.dts == NO_STAMP) else table.dts
        stamps = decoding[np.sort(order)]
    if np.any(is_missing := stamps == NO_STAMP):
        if is_missing.mean() > _MADE_UP:
            return replace(info, time_base=Fraction(0))
        stamps = with_missing(stamps)
    # Where many frames share a tick, finer ones are needed to tell them apart.
    finer = _FINER if info.is_counted and (np.diff(stamps) == 0).mean() > _MADE_UP else 1
    stamps, info = stamps * finer, replace(info, time_base=info.time_base / finer)
    times = display_times(stamps, info.time_base, may_splice)
    times = shown_later(times, delay) if is_decoding else times
    start, ticks = int(times[0]), int(times[-1] - times[0])
    fps = info.fps
    if ticks:
        fps = float(1 / (Fraction(ticks, num_frames - 1) * info.time_base))
    step = ticks / max(1, num_frames - 1)
    # Timestamps are rounded to ticks, so an even rate strays from the line by up to one; where a
    # tick is a frame, as in AVI, that much is a frame that is missing.
    strays = np.abs(times - start - step * np.arange(num_frames)).max()
    is_constant = bool(strays <= min(finer, step / 4))
    is_plain = is_constant if info.is_counted or is_decoding else True
    if not info.is_counted:
        is_plain = is_plain and np.array_equal(np.diff(times), np.diff(given))
    return replace(
        info,
        fps=fps,
        duration_seconds=num_frames / fps,
        constant_rate=is_constant,
        start_pts=start // finer if info.is_counted else int(given[0]),
        frame_pts=np.zeros(0, np.int64) if is_plain else times,
    )


def _with_entries(
    info: VideoInfo, table: PacketTable, order: NDArray[np.int64], keys: NDArray[np.int64]
) -> VideoInfo:
    """The entry points: numbers of their frames, and by what their packets are found."""
    stamps = np.where(table.pts == NO_STAMP, table.dts, table.pts)
    if not info.is_counted:
        if not len(keys) or keys[0] != table.first:
            keys = np.concatenate([[table.first], keys])
        numbers = np.searchsorted(table.pts[order], table.pts[keys])
        return replace(info, keyframe_pts=table.pts[keys], keyframe_index=numbers)
    if stamps[0] == NO_STAMP:
        return info
    rank = np.full(len(table), -1)
    rank[order] = np.arange(len(order))
    _, places, counts = np.unique(stamps, return_inverse=True, return_counts=True)
    pts, index = [int(stamps[0])], [0]
    for key in keys.tolist():
        if counts[places[key]] == 1 and stamps[key] > pts[-1] and rank[key] > index[-1]:
            pts.append(int(stamps[key]))
            index.append(int(rank[key]))
    return replace(info, keyframe_pts=np.array(pts), keyframe_index=np.array(index))


def _with_places(
    info: VideoInfo,
    limits: LimitsConfig,
    table: PacketTable,
    order: NDArray[np.int64],
    keys: NDArray[np.int64],
) -> VideoInfo:
    """The entry points by their places in the file: those that are found there.

    For joined streams, whose timestamps come twice, and streams without any.
    """
    rank = np.full(len(table), -1)
    rank[order] = np.arange(len(order))
    places, numbers = [max(0, int(table.places[order[0]]))], [0]
    with open_video(info.path, limits, info.stream) as video:
        for place, number in zip(table.places[keys].tolist(), rank[keys].tolist(), strict=True):
            going_on()
            if place <= places[-1] or number <= numbers[-1]:
                continue
            try:
                video.container.seek(place, stream=video.stream, unsupported_byte_offset=True)
            except FFmpegError:  # a format that is sought by time alone
                break
            packet = next(video.packets(), None)
            if packet is not None and packet.pos == place and packet.is_keyframe:
                places.append(place)
                numbers.append(number)
    return replace(
        info, reading="placed", keyframe_pts=np.array(places), keyframe_index=np.array(numbers)
    )


def _tried(info: VideoInfo, limits: LimitsConfig, doubtful: NDArray[np.int64]) -> list[int]:
    """Those of some packets from which decoding gives whole pictures, found by trying.

    Each must give an intra picture by itself; of the first ones the frames that follow must also be
    those of decoding from the file's start, else none is an entry point.
    """
    candidates, good = set(doubtful.tolist()), list[int]()
    runs: dict[int, list[Packet]] = {}
    whole: dict[int | None, bytes] = {}
    scaler = VideoReformatter()

    def pixels(frame: VideoFrame) -> bytes:
        return to_rgb(frame, info, scaler).tobytes()

    def decode_alone(alone: VideoFile, packets: list[Packet]) -> list[VideoFrame]:
        frames = [frame for packet in [*packets, None] for frame in alone.feed(packet)]
        alone.decoder.flush_buffers()
        return frames

    with (
        open_video(info.path, limits, info.stream) as video,
        open_video(info.path, limits, info.stream) as alone,
    ):
        is_going_on = True
        for number, packet in enumerate(video.packets()):
            going_on()
            packet.pts = number
            if number in candidates and any(
                frame.pts == number and frame.pict_type == PictureType.I
                for frame in decode_alone(alone, [packet])
            ):
                good.append(number)
                if len(runs) < _NUM_TRIED:
                    runs[number] = []
            if is_going_on:
                is_going_on = len(runs) < _NUM_TRIED or number < max(runs) + 2 * _TRIED_PACKETS
                frames = video.feed(packet) + ([] if is_going_on else video.feed(None))
                whole |= {frame.pts: pixels(frame) for frame in frames if runs}
            for key, run in runs.items():
                if number < key + _TRIED_PACKETS:
                    run.append(packet)
        whole |= {frame.pts: pixels(frame) for frame in (video.feed(None) if is_going_on else [])}
    for key, run in runs.items():
        # A decoder of its own: what the one above has read of the file's start, it keeps.
        with open_video(info.path, limits, info.stream) as alone:
            frames = decode_alone(alone, run)
            later = itertools.dropwhile(lambda frame, key=key: frame.pts != key, frames)
            if any(whole.get(frame.pts) != pixels(frame) for frame in later):
                return []
    return good


def check_every_frame(info: VideoInfo) -> None:
    """Decode a video from its start to its end; and again some frames behind each key frame.

    Raises:
        DecodeError: Frames are damaged, or are others when they are jumped to.
    """
    # Far enough from each other that each key frame is jumped to.
    places = info.keyframe_index[1:]
    places = places[np.diff(places, append=info.num_frames) > WORTH_A_JUMP + 2]
    wanted = np.stack([places, places + 1], axis=1).reshape(-1)
    scaler = VideoReformatter()

    def pixels(frame: VideoFrame) -> bytes:
        return hashlib.sha256(to_rgb(frame, info, scaler).tobytes()).digest()

    num_frames = 0
    seen: dict[int, bytes] = {}
    kept = set(wanted.tolist())
    with naming_the_file(info.path):
        for number, frame in frames_from_start(info):
            going_on()
            num_frames += 1
            if number in kept:
                seen[number] = pixels(frame)
        if num_frames < info.num_frames:
            lost = info.num_frames - num_frames
            raise DecodeError(info.path, f"{lost} of {info.num_frames} frames damaged")
        for number, frame in frames_by_jumps(info, wanted):
            going_on()
            if seen[number] != pixels(frame):
                reason = f"frame {number} is another one when it is jumped to; encode it anew"
                raise DecodeError(info.path, reason)
