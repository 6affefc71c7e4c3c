"""Preparing videos: index, check, synthetic sets; what ``vjepa data`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vjepa.data.index import IndexConfig, index_sources
from vjepa.data.manifest import Manifest
from vjepa.data.synthetic import SyntheticConfig, write_synthetic_set
from vjepa.errors import UserError
from vjepa.runtime.progress import open_progress
from vjepa.runtime.threads import usable_cpus

__all__ = ["IndexConfig", "SyntheticConfig", "check", "describe", "index", "synthesise"]


def index(
    sources: Sequence[str | Path],
    out: Path,
    config: IndexConfig,
    *,
    names: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    workers: int | None = None,
) -> str:
    """Probe every file of the sources and write a manifest.

    Args:
        sources: Folders, lists of files, or media files.
        out: The manifest to write.
        config: How to read the sources.
        names: Name of each source; None takes their file names.
        weights: Relative share of each source; None draws every video equally often.
        workers: Processes; None takes one for each CPU core.

    Returns:
        A summary for the user.

    Raises:
        UserError: A bad source, or `out` cannot be written.
    """
    with open_progress("index", total=0) as progress:

        def show(done: int, total: int, bad: int) -> None:
            progress.update(done, f"{bad} bad" if bad else None)

        manifest = index_sources(
            sources,
            out,
            workers=checked_workers(workers),
            config=config,
            names=names,
            weights=weights,
            progress=show,
        )
    return describe(manifest)
