"""When the frames of a variable-rate video are shown, from its packets alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vjepa.data.video.container import open_video
from vjepa.data.video.decode import limits_of, usable_info
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.data.video.inspect import scan_packets


def frame_times(info: VideoInfo) -> NDArray[np.float64] | None:
    """When the frames of a variable-rate video are shown: float64 [L], seconds from 0, ascending.

    Reads every packet of the file, without decoding. None for everything else, which goes by
    `info.fps`: constant rates, images, files without usable timestamps.

    Raises:
        DecodeError: The file cannot be read, or is not the one that was indexed.
    """
    if info.kind != "video" or info.constant_rate or not info.num_keyframes:
        return None
    usable_info(info)
    with open_video(info.path, limits_of(info)) as video:
        shown = np.sort(scan_packets(video).shown_pts)
    if len(shown) != info.num_frames:
        raise DecodeError(info.path, "has changed since it was indexed; index it again")
    return (shown - info.start_pts) * info.time_base.numerator / info.time_base.denominator
