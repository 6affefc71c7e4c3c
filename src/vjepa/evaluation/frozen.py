"""Features on disk: written once per (weights, data, clip, view), then mapped, not computed.

A cache folder holds one sub-folder per key. The key is the hash of everything that the numbers
depend on, so features of other weights can never be taken for these. Inside are shards of a fixed
number of manifest rows, each a safetensors file written aside and renamed: an extraction that was
interrupted goes on with the first missing shard and ends with the same bytes. Each pass of random
views is a folder of its own, so that more passes are added to those that are there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vjepa.data.clips.dataset import BadVideo, ClipRows
from vjepa.errors import UserError
from vjepa.models import normalise_clip
from vjepa.runtime.device import Precision, to_device

if TYPE_CHECKING:
    from vjepa.data import Manifest


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of a module's weights, independent of device, file format and key order.

    Args:
        module: Its ``state_dict`` is hashed: names, types, shapes and values.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    state: Mapping[str, Tensor] = module.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu").contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def settings_hash(settings: Mapping[str, object]) -> str:
    """SHA-256 of plain settings (numbers, texts, lists, mappings), independent of key order.

    Returns:
        64 hexadecimal digits.
    """
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all)."""


class ClipSource(Protocol):
    """Gives evaluation clips in row order; a pure function of the rows asked for."""

    def __len__(self) -> int:
        """Number of rows n that it gives."""
        ...

    @property
    def clips_per_video(self) -> int:
        """R, clips of each video."""
        ...

    def path(self, row: int) -> str:
        """The file of a manifest row."""
        ...

    def batches(self, start: int, stop: int, batch_size: int) -> Iterable[ClipRows]:
        """Clips of its rows number `start` to before `stop`, `batch_size` rows at a time."""
        ...


@dataclass(frozen=True)
class FeatureSet:
    """Token maps of n videos.

    Attributes:
        shards: Tensors [n_i, R, N, D], float32 or bfloat16, together n rows in order. Large ones
            from a cache are mapped from disk, so that a set may be larger than the memory.
        rows: int64 [n], ascending rows of the manifest.
        paths: The n files.
        bad: Videos that are missing because they could not be read.
    """

    shards: tuple[Tensor, ...]
    rows: NDArray[np.int64]
    paths: tuple[str, ...]
    bad: tuple[BadVideo, ...] = ()

    def __post_init__(self) -> None:
        held = sum(int(shard.shape[0]) for shard in self.shards)
        if not held == len(self.rows) == len(self.paths):
            raise ValueError(
                f"features of {held} clips, {len(self.rows)} rows and {len(self.paths)} paths "
                "do not fit together"
            )

    def __len__(self) -> int:
        """The number of videos n."""
        return len(self.paths)

    @property
    def tokens(self) -> Tensor:
        """All token maps as one tensor [n, R, N, D]; copies when there are several shards."""
        return self.shards[0] if len(self.shards) == 1 else torch.cat(self.shards)

    def gather(self, indices: NDArray[np.int64]) -> Tensor:
        """Token maps at the given places of this set.

        Args:
            indices: int64 [b], each in [0, n).

        Returns:
            [b, R, N, D] in the given order, in the stored type.
        """
        if len(self.shards) == 1:
            return self.shards[0].index_select(0, torch.from_numpy(indices))
        ends = np.cumsum([shard.shape[0] for shard in self.shards])
        which = np.searchsorted(ends, indices, side="right")
        first = self.shards[0]
        out = torch.empty((len(indices), *first.shape[1:]), dtype=first.dtype)
        for shard in np.unique(which):
            places = np.flatnonzero(which == shard)
            inside = indices[places] - (ends[shard] - self.shards[shard].shape[0])
            out[torch.from_numpy(places)] = self.shards[shard][torch.from_numpy(inside)]
        return out

    def pooled(self) -> Tensor:
        """Mean over all tokens of each video: float32 [n, D]."""
        return torch.cat([shard.float().flatten(1, -2).mean(dim=1) for shard in self.shards])


@torch.no_grad()
def encode_clips(
    encoder: nn.Module, clips: Tensor, device: torch.device, precision: Precision
) -> Tensor:
    """Features of one batch, without autograd.

    Args:
        encoder: Frozen encoder, normalised float video [B, C, T, H, W] -> tokens [B, N, D].
        clips: uint8 [B, C, T, S, S].
        device: Where to compute.
        precision: ``bfloat16`` runs the encoder under autocast.

    Returns:
        float32 [B, N, D] on `device`.
    """
    video = normalise_clip(to_device(clips, device))
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        tokens = encoder(video)
    return tokens.float()


def encode_rows(
    encoder: nn.Module,
    batches: Iterable[ClipRows],
    *,
    device: torch.device,
    precision: Precision,
    storage: Precision,
    clips_per_call: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> EncodedRows:
    """Run the encoder over batches of clips.

    Args:
        encoder: As for :func:`encode_clips`; put into evaluation mode for the time of the call.
        batches: Clips in row order.
        device, precision: As for :func:`encode_clips`.
        storage: Type in which features are kept.
        clips_per_call: Most clips in one forward call.
        on_batch: Called after each batch with the number of rows dealt with, bad ones included.

    Returns:
        The features.
    """
    tokens: list[Tensor] = []
    rows: list[NDArray[np.int64]] = []
    bad: list[BadVideo] = []
    was_training = encoder.training
    encoder.eval()
    try:
        for batch in batches:
            bad.extend(batch.bad)
            if len(batch.rows):
                calls = batch.clips.flatten(0, 1).split(clips_per_call)
                parts = [encode_clips(encoder, call, device, precision) for call in calls]
                kept = torch.cat([part.to("cpu", _DTYPES[storage]) for part in parts])
                tokens.append(kept.unflatten(0, batch.clips.shape[:2]))
                rows.append(batch.rows)
            if on_batch is not None:
                on_batch(len(batch.rows) + len(batch.bad))
    finally:
        encoder.train(was_training)
    return EncodedRows(
        tokens=torch.cat(tokens) if tokens else torch.empty(0, 0, 0, 0, dtype=_DTYPES[storage]),
        rows=np.concatenate(rows) if rows else np.empty(0, dtype=np.int64),
        bad=tuple(bad),
    )


@dataclass(frozen=True)
class EncodedRows:
    """Features of a span of manifest rows.

    Attributes:
        tokens: [n, R, N, D] on the CPU; [0, 0, 0, 0] when no video of the span could be read.
        rows: int64 [n].
        bad: The videos of the span that could not be read.
    """

    tokens: Tensor
    rows: NDArray[np.int64]
    bad: tuple[BadVideo, ...]


_MOST_IN_MEMORY_BYTES = 1 << 30
_FORMAT = "vjepa-features-2"


@dataclass(frozen=True, kw_only=True)
class FeatureKey:
    """Everything that features depend on.

    Attributes:
        weights_hash: Of the encoder (:func:`vjepa.evaluation.frozen.weights_hash`).
        encoder: The encoder's config as plain values.
        data_hash: Of the videos and of the rows taken (:func:`data_hash`).
        clip: How the frames were chosen, as plain values.
        view: How they were cropped, as plain values.
        precision, storage: Type of the computation and of what is kept.
        batch_size: Clips per forward call: it can change the last bits of a matrix product.
        shard_clips: About how many clips a shard holds.
        device: ``cpu`` or ``cuda``, for the same reason as `batch_size`.
        augment: What is random about the clips, with the number of the pass; None: nothing.
        compile: Whether the encoder was compiled.
    """

    weights_hash: str
    encoder: dict[str, object]
    data_hash: str
    clip: dict[str, object]
    view: dict[str, object]
    precision: Precision
    storage: Precision
    batch_size: int
    shard_clips: int
    device: str
    augment: dict[str, object] | None = None
    compile: bool = False

    @property
    def digest(self) -> str:
        """Hash of all fields, 64 hexadecimal digits."""
        return settings_hash({"format": _FORMAT, **asdict(self)})


def data_hash(manifest: Manifest, rows: NDArray[np.int64]) -> str:
    """Hash of the rows that features are computed from.

    Besides the manifest's content hash it holds sizes and frame counts, so that files which were
    replaced by others of the same name are noticed once they have been indexed again.

    Args:
        manifest: The selected manifest.
        rows: int64 [n], its rows that are used.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(manifest.content_hash.encode())
    for column in (rows, manifest.numeric("bytes")[rows], manifest.numeric("num_frames")[rows]):
        digest.update(np.ascontiguousarray(column, dtype=np.int64).tobytes())
    return digest.hexdigest()


def extract_features(
    encoder: nn.Module,
    source: ClipSource,
    key: FeatureKey,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> FeatureSet:
    """Features of all videos of a source, from the cache where they are there already.

    Args:
        encoder: Frozen encoder, float video [B, C, T, H, W] -> tokens [B, N, D].
        source: Gives the clips.
        key: What the features depend on; also says how to compute them.
        cache_dir: Folder of the cache; None keeps everything in memory only.
        progress: Told how many videos are done.

    Returns:
        The features in manifest order.

    Raises:
        UserError: Not one video could be read, or the cache is not readable.
    """
    return _join(list(feature_shards(encoder, source, key, cache_dir, progress)), source)


def feature_shards(
    encoder: nn.Module,
    source: ClipSource,
    key: FeatureKey,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[EncodedRows]:
    """The same one shard at a time, so that nothing larger than a shard need be in memory.

    Args:
        encoder, source, key, cache_dir, progress: As in :func:`extract_features`.
        share: (rank, world size): every world-size-th shard, starting with the rank-th. The shards
            are the same at any world size, and so is every number in them.

    Yields:
        Features of a span of rows, in manifest order.
    """
    device = torch.device(key.device)
    folder = None if cache_dir is None else _open_folder(cache_dir, key)
    batch_rows = max(1, key.batch_size // source.clips_per_video)
    # Whole batches per shard, so that a resumed extraction forms the very same batches.
    shard_rows = batch_rows * max(1, key.shard_clips // (batch_rows * source.clips_per_video))
    starts = range(share[0] * shard_rows, len(source), share[1] * shard_rows)
    total = sum(min(shard_rows, len(source) - start) for start in starts)
    counter = _Counter(total, progress)
    for start in starts:
        stop = min(start + shard_rows, len(source))
        path = None if folder is None else folder / f"shard_{start // shard_rows:05d}.safetensors"
        if path is not None and path.exists():
            yield _read_shard(path)
            counter.add(stop - start)
            continue
        part = encode_rows(
            encoder,
            source.batches(start, stop, batch_rows),
            device=device,
            precision=key.precision,
            storage=key.storage,
            clips_per_call=key.batch_size,
            on_batch=counter.add,
        )
        if path is not None:
            _write_shard(path, part)
            part = _read_shard(path)
        yield part


class _Counter:
    """Adds up finished rows and passes them on."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def add(self, rows: int) -> None:
        self._done += rows
        if self._progress is not None:
            self._progress(self._done, self._total)


def _join(parts: list[EncodedRows], source: ClipSource) -> FeatureSet:
    full = [part for part in parts if len(part.rows)]
    bad = tuple(video for part in parts for video in part.bad)
    if not full:
        reason = f" (first: {bad[0].path}: {bad[0].reason})" if bad else ""
        raise UserError(f"not one video could be read{reason}")
    rows = np.concatenate([part.rows for part in full])
    shards = tuple(part.tokens for part in full)
    if sum(shard.nbytes for shard in shards) <= _MOST_IN_MEMORY_BYTES:
        # Small sets are read once: gathering from one tensor is several times faster.
        shards = (torch.cat(shards),)
    return FeatureSet(
        shards=shards,
        rows=rows,
        paths=tuple(source.path(int(row)) for row in rows),
        bad=bad,
    )


def _open_folder(cache_dir: Path, key: FeatureKey) -> Path:
    """The folder of a key, made when new; a shortened digest is checked against the whole key."""
    folder = cache_dir / key.digest[:20]
    description = json.dumps({"format": _FORMAT, **asdict(key)}, indent=1, sort_keys=True)
    described = folder / "features.json"
    if described.exists():
        if described.read_text(encoding="utf-8") != description:
            raise UserError(
                f"{described}: made with {_difference(described, key)} than this folder's name "
                "says; delete the folder"
            )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"features.{os.getpid()}.partial"  # several processes may share a cache
    aside.write_text(description, encoding="utf-8")
    aside.replace(described)
    return folder


def _difference(described: Path, key: FeatureKey) -> str:
    """In which fields a stored description differs from a key, for a message."""
    try:
        stored = json.loads(described.read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(asdict(key)))
        names = [name for name, value in wanted.items() if stored.get(name) != value]
    except (ValueError, AttributeError):
        return "other settings"
    return "another " + ", ".join(names) if names else "other settings"


def _write_shard(path: Path, part: EncodedRows) -> None:
    """Write aside and rename, so that a shard that exists is whole."""
    aside = path.with_suffix(f".{os.getpid()}.partial")
    tensors: dict[str, Tensor] = {
        "tokens": part.tokens.contiguous(),
        "rows": torch.from_numpy(part.rows),
    }
    save_file(tensors, aside, metadata={"bad": json.dumps([asdict(video) for video in part.bad])})
    aside.replace(path)


def _read_shard(path: Path) -> EncodedRows:
    """Map a shard; its pages are read when they are used."""
    try:
        with safe_open(path, framework="pt") as file:
            bad = json.loads((file.metadata() or {})["bad"])
            return EncodedRows(
                tokens=file.get_tensor("tokens"),
                rows=file.get_tensor("rows").numpy(),
                bad=tuple(BadVideo(**video) for video in bad),
            )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a readable feature shard ({error}); delete it") from error
