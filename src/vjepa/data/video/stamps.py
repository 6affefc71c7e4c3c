"""When frames are shown: the timestamps of a video's packets, and what of them can be believed."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vjepa.data.video.headers import UNKNOWN, HeaderReader
from vjepa.data.video.info import DecodeError
from vjepa.runtime.workers import going_on

if TYPE_CHECKING:
    from vjepa.data.video.container import VideoFile

NO_STAMP = -(1 << 62)

# As FFmpeg's own tool: a step of more seconds in a format whose clock may start anew is a splice,
# and elsewhere, where recordings may pause, one of half an hour. Either is many times the usual
# step: a frame a minute is a time-lapse.
_SPLICE_SECONDS, _SPLICE_STEPS = 10, 10
_JUMP_SECONDS, _JUMP_STEPS = 1800, 1000

_NO_TIMES = 0x80  # FFmpeg's AVFMT_NOTIMESTAMPS

# A stamp that goes back belongs to a splice if so many behind it stay back, too.
_NUM_BACK = 16


@dataclass(frozen=True, slots=True)
class PacketTable:
    """All packets of a video that hold data, in decoding order; every array is [n]."""

    pts: NDArray[np.int64]
    dts: NDArray[np.int64]  # `NO_STAMP` where there is none, in both
    is_flagged: NDArray[np.bool_]  # as a key frame, by the container
    entry: NDArray[np.int8]  # by the header, 1: decoding can begin here, 0: it cannot, -1: unknown
    is_closed: NDArray[np.bool_]
    is_shown: NDArray[np.bool_]
    is_field: NDArray[np.bool_]
    is_known: NDArray[np.bool_]  # the header was read
    places: NDArray[np.int64]  # of its first byte in the file, -1 where that is not known
    is_cut_off: bool  # the last packet is incomplete: the file ends in its middle
    has_pts: bool  # every packet has a presentation time, and that stands in the file

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def first(self) -> int:
        """The first packet that can be decoded: the first key frame (0 without any)."""
        flagged = self.is_flagged & (self.entry != 0)
        return int(np.argmax(flagged if flagged.any() else self.is_flagged))

    @property
    def shown(self) -> NDArray[np.int64]:
        """Numbers of the packets whose frames are shown, in decoding order.

        Frame 0 is the first key frame, or the first frame shown after it where an edit list hides
        it; what comes before cannot be decoded and is not counted.
        """
        is_later = (self.pts >= self.pts[self.first]) | (self.pts == NO_STAMP)
        numbers = np.arange(len(self))
        # From the second key frame on, a lower time is that of a clock which starts anew.
        is_later |= np.cumsum(self.is_flagged & (self.entry != 0) & (numbers > self.first)) > 0
        return np.flatnonzero(self.is_shown & (numbers >= self.first) & is_later)

    @property
    def stamps(self) -> NDArray[np.int64]:
        """Presentation times, or decoding times where any of those is missing: int64 [n]."""
        return self.dts if np.any(self.pts == NO_STAMP) else self.pts

    @property
    def is_late(self) -> bool:
        """Whether a decoding time is later than its frame is shown, or goes back."""
        both = (self.pts != NO_STAMP) & (self.dts != NO_STAMP)
        dts = self.dts[self.dts != NO_STAMP]
        return bool(np.any(self.dts[both] > self.pts[both]) or np.any(np.diff(dts) < 0))


def read_packets(
    video: VideoFile, max_frames: int | None = None, look_at_all: bool = False
) -> PacketTable:
    """Read all packets of a freshly opened video without decoding them.

    Headers are read of key frames, and of the others where they matter or if `look_at_all`.

    Raises:
        DecodeError: More than `max_frames` packets.
    """
    headers = HeaderReader(video.decoder)
    pts, dts, places, entry = array("q"), array("q"), array("q"), array("b")
    flags = bytearray()
    is_cut_off = False
    for packet in video.packets():
        going_on()
        if max_frames is not None and len(pts) == max_frames:
            raise DecodeError(video.path, f"more than max_frames = {max_frames} frames")
        is_flagged = packet.is_keyframe
        picture = UNKNOWN
        if is_flagged or look_at_all or headers.must_see_all:
            picture = headers.look(packet)
        pts.append(NO_STAMP if packet.pts is None else packet.pts)
        dts.append(NO_STAMP if packet.dts is None else packet.dts)
        places.append(-1 if packet.pos is None else packet.pos)
        entry.append(-1 if picture.is_entry is None else picture.is_entry)
        flags.append(
            is_flagged
            | picture.is_closed << 1
            | (picture.is_shown and not packet.is_discard) << 2
            | picture.is_field << 3
            | picture.is_known << 4
        )
        is_cut_off = packet.is_corrupt
    if headers.is_packed:
        entry = array("b", bytes(len(entry)))
    bits = np.frombuffer(bytes(flags), dtype=np.uint8)
    flagged, closed, shown, fields, known = (bits >> place & 1 > 0 for place in range(5))
    return PacketTable(
        pts=np.array(pts, dtype=np.int64),
        dts=np.array(dts, dtype=np.int64),
        is_flagged=flagged,
        entry=np.array(entry, dtype=np.int8),
        is_closed=closed,
        is_shown=shown,
        is_field=fields,
        is_known=known,
        places=np.array(places, dtype=np.int64),
        is_cut_off=is_cut_off,
        # An AVI counts its chunks, empty ones too, and a raw stream has no times at all: FFmpeg
        # guesses when frames are shown.
        has_pts=not (
            video.container.format.name == "avi"
            or video.container.format.flags & _NO_TIMES
            or NO_STAMP in pts
        ),
    )


def with_missing(stamps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Timestamps; one that is missing is the usual step behind the one before."""
    known, places = np.flatnonzero(stamps != NO_STAMP), np.arange(len(stamps))
    if not len(known):
        return stamps
    before = known[np.maximum(np.searchsorted(known, places, side="right") - 1, 0)]
    usual = int(np.median(np.diff(stamps[known]))) if len(known) > 1 else 1
    return stamps[before] + (places - before) * usual


def display_times(
    stamps: NDArray[np.int64], time_base: Fraction, may_splice: bool
) -> NDArray[np.int64]:
    """Timestamps of frames, in display order, so that they rise: the same array if they do.

    A clock that starts anew goes on without a gap: where stamps go back for good, and where they
    jump, which in a format that `may_splice` takes less. Single ones that repeat or go back lie
    evenly between their neighbours.
    """
    seconds, num_steps = (
        (_SPLICE_SECONDS, _SPLICE_STEPS) if may_splice else (_JUMP_SECONDS, _JUMP_STEPS)
    )
    limit = float(seconds / time_base) if time_base else np.inf
    given, stamps = stamps, stamps.copy()
    goes_back = np.zeros(max(0, len(stamps) - 1), dtype=bool)
    for place in np.flatnonzero(np.diff(stamps) < 0).tolist():
        stays_back = stamps[place + 1 :][:_NUM_BACK].max() <= stamps[: place + 1].max()
        if stays_back and place and stamps[place - 1] < stamps[place + 1]:  # one that is far ahead
            stamps[place] = (stamps[place - 1] + stamps[place + 1]) // 2
        else:
            goes_back[place] = stays_back
    steps = np.diff(stamps)
    if np.any(steps > limit):
        usual_step = float(np.percentile(steps[steps > 0], 50, method="lower"))
        limit = max(limit, num_steps * usual_step)
    is_splice = goes_back | (steps > limit)
    rising = steps[(steps > 0) & ~is_splice]
    if np.all(np.diff(given) > 0) and not is_splice.any():
        return given
    usual = int(np.median(rising)) if len(rising) else 1
    shifts = np.concatenate([[0], np.cumsum(np.where(is_splice, usual - steps, 0))])
    stamps = stamps + shifts
    highest = np.concatenate([[NO_STAMP], np.maximum.accumulate(stamps)[:-1]])
    good = np.flatnonzero(stamps > highest)
    times = np.interp(np.arange(len(stamps)), good, stamps[good])
    behind = np.arange(len(stamps)) - good[-1]
    times = times + np.where(behind > 0, behind * usual, 0)
    # Where ticks are too coarse for even places, each frame is still later than the last.
    whole = np.rint(times).astype(np.int64) - np.arange(len(times))
    return np.maximum.accumulate(whole) + np.arange(len(times))


def shown_later(times: NDArray[np.int64], delay: int) -> NDArray[np.int64]:
    """When frames come out of a decoder that gets its packets at `times` and is `delay` behind.

    Those at the end follow at the usual step.
    """
    delay = min(delay, len(times) - 1)
    usual = int(np.median(np.diff(times))) if len(times) > 1 else 1
    return np.concatenate([times[delay:], times[-1] + usual * np.arange(1, delay + 1)])
