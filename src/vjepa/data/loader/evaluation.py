"""Evaluation's batches: chosen rows in order, through fixed or random views."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.data.clips.dataset import ClipViews
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import AugmentConfig, ViewConfig
from vjepa.data.loader.failures import BadVideo, FailedVideo, FailureKind
from vjepa.data.loader.reading import BatchPlan, ClipReader, ReadingConfig, VideoJob
from vjepa.errors import UserError

if TYPE_CHECKING:
    from vjepa.data.manifest.manifest import Manifest

OnBadVideo = Literal["error", "list"]


@dataclass(frozen=True)
class ClipRows:
    """Clips of some manifest rows, as the encoder's input is made from them."""

    rows: NDArray[np.int64]  # [B], without those in `bad`
    clips: Tensor  # uint8 [B, R, C, T, S, S], RGB
    bad: tuple[BadVideo, ...] = ()


def refuse_bad(
    manifest: Manifest, rows: NDArray[np.int64] | None, on_bad_video: OnBadVideo
) -> None:
    """UserError: the manifest knows that one of these rows (None: of all) cannot be read.

    Not where such are to be listed. It need not wait until the videos before it are read.
    """
    bad = np.flatnonzero(~manifest.ok)
    bad = bad if rows is None else np.intersect1d(bad, rows)
    if on_bad_video == "error" and bad.size:
        first = manifest.row(int(bad[0]))
        others = f"; so is it with {bad.size - 1} more" if bad.size > 1 else ""
        raise _refusal(first.path, f"{first.reason}{others}")


def _refusal(path: str, reason: str) -> UserError:
    return UserError(
        f"{path}: cannot be evaluated ({reason}); mend it, take it out of the manifest, or set "
        "on_bad_video: list"
    )


class EvaluationClips(ClipReader):
    """The clips of manifest rows, int64 [n] `rows`, in order; R of each video."""

    def __init__(
        self,
        manifest: Manifest,
        clip: ClipConfig,
        view: ViewConfig,
        reading: ReadingConfig,
        *,
        rows: NDArray[np.int64] | None = None,
        on_bad_video: OnBadVideo = "error",
        augment: AugmentConfig | None = None,
        pass_index: int = 0,
    ) -> None:
        """Read nothing yet; `rows` None means all, also those that are known to be bad.

        `on_bad_video`: ``error`` stops at the first video that cannot be read, here at one that the
        manifest knows; ``list`` leaves it out and reports it. `pass_index` is the pass over the
        data that :meth:`batches` gives.
        """
        views = ClipViews(clip, view, augment)
        refuse_bad(manifest, rows, on_bad_video)
        self.rows = np.arange(len(manifest), dtype=np.int64) if rows is None else rows
        self.clips_per_video = views.clips_per_video
        self._pass_index, self._is_strict = pass_index, on_bad_video == "error"
        super().__init__([manifest], views, reading)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[ClipRows]:
        """Clips of ``rows[start:stop]``, `batch_size` rows at a time."""
        wanted = [(row, self._pass_index) for row in self.rows[start:stop].tolist()]
        firsts = range(0, len(wanted), batch_size)
        return self.stream((wanted[first : first + batch_size] for first in firsts), batch_size)

    def stream(
        self, batches: Iterable[Sequence[tuple[int, int]]], batch_size: int
    ) -> Iterator[ClipRows]:
        """The clips of any rows in any passes, a batch at a time, read ahead over their ends.

        `batches` gives for each the (manifest row, pass) of its samples, at most `batch_size`, and
        may never end; it is read by another thread. UserError: a video is bad, and such are not to
        be listed.
        """
        plans = (self._plan(number, batch) for number, batch in enumerate(batches))
        with closing(self._read(plans, batch_size * self.clips_per_video, self._prefetch)) as read:
            for plan, clips in read:
                rows = plan.places[:, 1]
                each = clips.unflatten(0, (len(rows), self.clips_per_video))
                if plan.failures:
                    good = np.setdiff1d(np.arange(len(rows)), list(plan.failures))
                    each = each[torch.from_numpy(good)]
                bad = (
                    BadVideo(int(rows[place]), failure.path, failure.reason, failure.kind)
                    for place, failure in sorted(plan.failures.items())
                )
                yield ClipRows(np.delete(rows, list(plan.failures)), each, tuple(bad))

    def _plan(self, number: int, wanted: Sequence[tuple[int, int]]) -> BatchPlan:
        """All clips of a video side by side."""
        (manifest,), each = self.manifests, self.clips_per_video
        jobs = [
            VideoJob(
                manifest.row(row),
                source=0,
                row=row,
                clips=slice(place * each, (place + 1) * each),
                numbers=np.array((row, pass_index)),
                slot=place,
            )
            for place, (row, pass_index) in enumerate(wanted)
        ]
        rows = np.array([(0, row) for row, _ in wanted], dtype=np.int64)
        return BatchPlan(number, np.arange(len(rows)), rows, jobs)

    def replace(
        self, plan: BatchPlan, job: VideoJob, reason: str, kind: FailureKind = "decode"
    ) -> None:
        """Note a failure; nothing is read instead."""
        plan.failures[job.slot] = FailedVideo(job.video.path, reason, plan.step, kind)

    def finish(self, plan: BatchPlan) -> None:
        """UserError: a video is bad, and such are not to be listed."""
        if plan.failures and self._is_strict:
            first = plan.failures[min(plan.failures)]
            raise _refusal(first.path, first.reason)
