"""Low-shot probes on several draws of the labels, in one job (paper, Table 7)."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from vjepa.config import to_dict
from vjepa.errors import UserError
from vjepa.evaluation.results import RESULT_FILE, ProbeResult, SplitsResult, load_result, summarise
from vjepa.evaluation.saved_probe import CONFIG_FILE
from vjepa.jobs.probe.config import ProbeConfig
from vjepa.jobs.probe.inputs import rows_of_all_splits
from vjepa.jobs.probe.probe import train

_TEMPORARY_CACHE = "features"


def train_splits(config: ProbeConfig, out: Path) -> SplitsResult:
    """Train and test one probe on each draw of the labels; seeds ``seed``, ``seed + 1``, ...

    Every video is encoded once for all draws: in the job's own cache folder, or in a temporary one
    below `out`, which then holds only the rows that a draw uses. An interrupted job goes on where
    it stopped when it is started again with the same config. Each draw has a folder
    ``split_<seed>`` in `out`, as `train` makes it.
    """
    single = replace(config, data=replace(config.data, num_splits=1))
    seeds = range(config.seed, config.seed + config.data.num_splits)
    rows = None
    own_cache = out / _TEMPORARY_CACHE
    if config.features.cache_dir is None and not config.features.online:
        rows = rows_of_all_splits(config)
        single = replace(single, features=replace(single.features, cache_dir=own_cache))
    results = []
    for seed in seeds:
        folder, own = out / f"split_{seed}", replace(single, seed=seed)
        done = _finished(folder, own)
        results.append(done or train(own, folder, cached_rows=rows))
    found = summarise(results, seeds)
    found.save(out)
    shutil.rmtree(own_cache, ignore_errors=True)
    return found


def _finished(folder: Path, config: ProbeConfig) -> ProbeResult | None:
    """The result of a draw that an earlier call has trained; an unfinished one is made anew."""
    if not (folder / RESULT_FILE).exists():
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        return None
    result = load_result(folder)
    wanted = to_dict(config)
    # Clip and view may have been null and are resolved in the result.
    for name, value in wanted["data"].items():
        if value is None:
            wanted["data"][name] = result.config["data"].get(name)
    if result.config != wanted:
        raise UserError(f"{folder}: holds a probe of another config; give another --out")
    return result
