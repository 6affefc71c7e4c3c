"""Frozen features: made once per (weights, videos, clips), kept on disk, then mapped, not computed.

A cache folder holds one sub-folder per key. The key is the hash of everything that the numbers
depend on, so features of other weights can never be taken for these. Inside are shards of a fixed
number of manifest rows, each a safetensors file that is whole or not there: an extraction that was
interrupted goes on with the first missing shard and ends with the same bytes. Each pass of random
views is a folder of its own, so that more passes are added to those that are there.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vjepa.checkpoint.folder import Tokens
from vjepa.config import config_dataclass, to_dict
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import AugmentConfig, ViewConfig
from vjepa.data.loader.evaluation import BadVideo, ClipRows, EvaluationClips, OnBadVideo
from vjepa.data.loader.reading import ReadingConfig
from vjepa.data.video.inspect import stamp_of
from vjepa.errors import UserError
from vjepa.models import EncoderConfig, authors_name, far_from_input, normalise_clip
from vjepa.runtime.device import DeviceSetup, Precision, to_device
from vjepa.runtime.files import atomic_path, atomic_write, read_json, save_tensors
from vjepa.runtime.progress import Progress

if TYPE_CHECKING:
    from vjepa.data import Manifest
    from vjepa.evaluation.labels import Split

_LOGGER = logging.getLogger(__name__)
_MOST_IN_MEMORY_BYTES = 1 << 30
_FORMAT = "vjepa-features-2"
_TRIED: set[Path] = set()
"""Shards that this process has made: it waits only once for a video that takes too long."""


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of names, types, shapes and values of a module's ``state_dict``, as hexadecimal.

    It depends on neither device, file format nor the order of keys.
    """
    digest = hashlib.sha256()
    state: Mapping[str, Tensor] = module.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu").contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def settings_hash(settings: Mapping[str, object]) -> str:
    """SHA-256 of plain settings (numbers, texts, lists, mappings), independent of key order."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def data_hash(manifest: Manifest, rows: NDArray[np.int64]) -> str:
    """Hash of the rows that features are computed from.

    Besides the manifest's content hash it holds sizes and frame counts, so that files which were
    replaced by others of the same name are noticed once they have been indexed again.
    """
    digest = hashlib.sha256(manifest.content_hash.encode())
    for column in (rows, manifest.numeric("bytes")[rows], manifest.numeric("num_frames")[rows]):
        digest.update(np.ascontiguousarray(column, dtype=np.int64).tobytes())
    if "image_folder" in manifest.categories("kind").classes:  # their rate is what was said
        digest.update(manifest.numeric("fps")[rows].tobytes())
    return digest.hexdigest()


_FIRST_FIELDS = frozenset(
    [
        "width",
        "depth",
        "heads",
        "mlp_ratio",
        "image_size",
        "num_frames",
        "patch_size",
        "tubelet_size",
        "position_split",
        "channels",
        "patch_init_std",
    ]
)
"""Those of an encoder's config that caches and databases have always named. Whatever has come or
comes later is named where it is not as usual: what is stored of usual encoders stays valid."""


@config_dataclass
class EncoderIdentity:
    """Which encoder features are of.

    Attributes:
        weights_hash: SHA-256 of its weights; a probe works with no other.
        config: Its sizes.
        path: Where it was found, for the reader of the file; None for random weights.
        which: ``target``, ``context`` or ``random`` weights.
        seed: Of random weights; None otherwise.
        timm: Name of the model in timm, for image models of that library; None for ours. `path` is
            then the file of its weights.
        file: The checkpoint folder or file that the weights were read from.
        model: Which published model of others it is; None for V-JEPA and our own.
        file_hash: SHA-256 of that file; None for a folder, whose weights have their hash.
        assumed: What neither its file nor the caller said.
        tokens: Which token map, where it is not the model's usual one.
    """

    weights_hash: str
    config: EncoderConfig
    path: str | None
    which: str
    seed: int | None = None
    timm: str | None = None
    file: str | None = None
    model: str | None = None
    file_hash: str | None = None
    assumed: tuple[str, ...] = ()
    tokens: Tokens | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The config as plain values; what was added to configs later is named only if unusual."""
        usual = to_dict(EncoderConfig())
        values = {
            name: value
            for name, value in to_dict(self.config).items()
            if name in _FIRST_FIELDS or value != usual[name]
        }
        named = {"model": self.model, "tokens": self.tokens, "timm": self.timm}
        return values | {name: value for name, value in named.items() if value is not None}

    @property
    def source(self) -> str:
        """What to call it in messages."""
        origin = self.path or "random weights"
        return origin if self.timm is None else f"timm {self.timm} ({origin})"

    @property
    def sentence(self) -> str:
        """Which encoder a number is of: file, weights and their hash, or that it is untrained."""
        name = "" if self.timm is None else f"timm {self.timm}, "
        if self.model is not None:
            name = f"{self.model}{'' if self.tokens is None else f', tokens {self.tokens}'}, "
        elif self.file_hash is not None and self.timm is None:  # of our own there are folders
            name = f"{authors_name(self.config)}, "
        if self.which == "random":
            sizes = "" if self.path is None else f" with the sizes of {self.path}"
            name += f"UNTRAINED, random weights of seed {self.seed or 0}{sizes}"
        else:
            name += f"{self.file or self.path}"
            if self.file_hash is not None:
                name += f" (SHA-256 {self.file_hash[:12]})"
            name += "" if self.timm or self.model else f", {self.which} encoder"
        name += "".join(f", assumed {what}" for what in self.assumed)
        return f"{name} (weights {self.weights_hash[:12]})"


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder that is only looked through: in evaluation mode, without gradients.

    It takes normalised float video [B, C, T, H, W] and gives tokens [B, N, D]. An image model sees
    every frame alone.
    """

    encoder: nn.Module
    identity: EncoderIdentity


@config_dataclass
class EncodingConfig:
    """How the encoder is run and its features kept: what the same numbers need besides the clips.

    The number of clips per call and compiling may change the last bits.
    """

    precision: Precision = "float32"
    """Of the encoder's computation."""
    storage: Precision = "float32"
    """Type in which features are kept; `bfloat16` takes half the space."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Clips per forward call of the encoder."""
    shard_clips: Annotated[int, Field(ge=1)] = 512
    """About how many clips make a shard of the cache; a test set without cache is dealt with shard
    by shard, so that this bounds the memory."""
    compile: bool = False
    """Compile the encoder's blocks; the first minute is slow, the rest faster on a GPU."""

    @property
    def encoding(self) -> EncodingConfig:
        """These settings alone: what a probe file and a cache keep of a job's."""
        names = (field.name for field in fields(EncodingConfig))
        return EncodingConfig(**{name: getattr(self, name) for name in names})


@config_dataclass
class ClipSettings:
    """What is seen of each video and how it is encoded: a probe's input is this of any video."""

    clip: ClipConfig
    view: ViewConfig
    features: EncodingConfig


@dataclass(frozen=True)
class FeatureSet:
    """Token maps of some videos.

    Attributes:
        shards: Tensors [n_i, R, N, D] on the CPU, float32 or bfloat16, together n rows in order.
            Large ones from a cache are mapped from disk, so that a set may be larger than memory.
        rows: int64 [n], rows of the manifest.
        bad: Videos that are missing because they could not be read.
    """

    shards: tuple[Tensor, ...]
    rows: NDArray[np.int64]
    bad: tuple[BadVideo, ...] = ()

    def __post_init__(self) -> None:
        held = sum(len(shard) for shard in self.shards)
        if held != len(self.rows):
            raise ValueError(f"features of {held} clips do not fit to {len(self.rows)} rows")

    @classmethod
    def joined(cls, parts: Sequence[FeatureSet]) -> FeatureSet:
        """Sets of some rows after one another, without a copy."""
        shards = [shard for part in parts for shard in part.shards if len(shard)]
        return cls(
            tuple(shards) or parts[0].shards,
            np.concatenate([part.rows for part in parts]),
            tuple(video for part in parts for video in part.bad),
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> Tensor:
        """All token maps as one tensor [n, R, N, D]; copies when there are several shards."""
        return self.shards[0] if len(self.shards) == 1 else torch.cat(self.shards)

    def whole(self) -> FeatureSet:
        """The same in one shard."""
        return replace(self, shards=(self.tokens,))

    def gather(self, rows: NDArray[np.int64]) -> Tensor:
        """Token maps [b, R, N, D] of rows int64 [b] in the given order, in the stored type.

        The set's own rows must be in ascending order.
        """
        indices = np.searchsorted(self.rows, rows)
        if len(rows) and not np.array_equal(self.rows[indices.clip(max=len(self) - 1)], rows):
            raise ValueError("rows: some are not in this set of features")
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

    def parts(self, rows: NDArray[np.int64], size: int = 64) -> Iterator[FeatureSet]:
        """The features of rows, some at a time."""
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            yield FeatureSet((self.gather(part),), part)


@contextmanager
def in_evaluation(encoder: nn.Module) -> Generator[None]:
    """Evaluation mode inside; then each part's own: some may be held in evaluation for good."""
    in_training = [part for part in encoder.modules() if part.training]
    encoder.eval()
    try:
        yield
    finally:
        for part in in_training:
            part.training = True


@torch.no_grad()
def encode_clips(
    encoder: nn.Module,
    clips: Tensor,
    precision: Precision,
    read: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Features float32 [B, N, D] of clips uint8 [B, 3, T, S, S], where the encoder's weights lie.

    `read` makes other features of the encoder's input, such as those of boxes.

    The encoder's ``config.input`` says how it is shown pixels. It computes in the type of its
    weights, which may be half precision; ``bfloat16`` runs it under autocast. Whether the numbers
    are finite is for :func:`check_finite`, once they are waited for.
    """
    config, weight = encoder.config, next(encoder.parameters())
    assert isinstance(config, EncoderConfig)
    video = normalise_clip(to_device(clips, weight.device), weight.dtype, how=config.input)
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        found = (read or encoder)(video)
    if not isinstance(found, Tensor):  # somebody's own encoder
        given = f"{type(encoder).__name__}: gives a {type(found).__name__}"
        raise UserError(f"{given}, not a tensor [clips, tokens, width]; return the tokens alone")
    return found.float()


def check_finite(features: Tensor, source: str = "the encoder") -> Tensor:
    """The features, or UserError: some are NaN or infinite. `source` says whose they are."""
    if not bool(torch.isfinite(features).all()):
        raise UserError(
            f"{source}: gives features that are not finite: its weights have diverged or are "
            "damaged, or need a wider type; give another checkpoint, or float32"
        )
    return features


@dataclass(frozen=True)
class FeatureExtractor:
    """Makes features of one encoder, always in the same way.

    They are kept below `cache_dir`, if anywhere; `augment` says what is random about the clips.
    """

    frozen: FrozenEncoder
    settings: ClipSettings
    setup: DeviceSetup
    reading: ReadingConfig
    on_bad_video: OnBadVideo = "error"
    cache_dir: Path | None = None
    augment: AugmentConfig | None = None

    @property
    def is_random(self) -> bool:
        """Whether another pass gives other features."""
        return self.augment is not None and self.augment.policy != "none"

    def open_clips(
        self, split: Split, rows: NDArray[np.int64] | None, pass_index: int = 0
    ) -> EvaluationClips:
        """The clips of some rows (int64, ascending; None: all); with a cache those that it holds.

        Nothing is read yet. `pass_index` is the number of the pass, for random clips.
        """
        return EvaluationClips(
            split.manifest,
            self.settings.clip,
            self.settings.view,
            self.reading,
            rows=rows if self.cache_dir is None else split.cached_rows,
            on_bad_video=self.on_bad_video,
            augment=self.augment,
            pass_index=pass_index,
        )

    def encode(self, clips: ClipRows) -> FeatureSet:
        """The features of some clips, on the CPU as they are kept."""
        kept: torch.dtype = getattr(torch, self.settings.features.storage)
        if len(clips.rows) == 0:
            return FeatureSet((torch.empty(0, 0, 0, 0, dtype=kept),), clips.rows, clips.bad)
        encoder, how = self.frozen.encoder.to(self.setup.device), self.settings.features
        calls = clips.clips.flatten(0, 1).split(how.batch_size)
        parts = [encode_clips(encoder, call, how.precision).to("cpu", kept) for call in calls]
        found = check_finite(torch.cat(parts), self.frozen.identity.source)
        tokens = found.unflatten(0, clips.clips.shape[:2])
        return FeatureSet((tokens,), clips.rows, clips.bad)

    def shards(
        self,
        split: Split,
        rows: NDArray[np.int64] | None = None,
        *,
        pass_index: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[FeatureSet]:
        """Features one shard at a time, from the cache where they are: a set need not fit memory.

        With a cache more rows are encoded, so that another choice of rows finds them there.

        Args:
            split, rows, pass_index: As for :meth:`open_clips`.
            share: (rank, world size): every world-size-th shard, starting with the rank-th. The
                shards are the same at any world size, and so is every number in them.

        Yields:
            Features of at least these rows, less the videos that cannot be read, in row order.
        """
        how = self.settings.features
        with self.open_clips(split, rows, pass_index) as source:
            key = self._key(split, source.rows, pass_index)
            folder = self.cache_dir and open_cache_folder(self.cache_dir, key)
            batch_rows = max(1, how.batch_size // source.clips_per_video)
            # Whole batches per shard, so that a resumed extraction forms the very same batches.
            batch_clips = batch_rows * source.clips_per_video
            shard_rows = batch_rows * max(1, how.shard_clips // batch_clips)
            starts = range(share[0] * shard_rows, len(source), share[1] * shard_rows)
            total = sum(min(shard_rows, len(source) - start) for start in starts)
            which = f", pass {pass_index + 1}" if self.is_random else ""
            with Progress(f"features of {split.name}{which}", total) as progress:
                done, has_looked = 0, False
                for start in starts:
                    stop = min(start + shard_rows, len(source))
                    name = f"shard_{start // shard_rows:05d}.safetensors"
                    path = folder and folder / name
                    kept = kept_shard(path, split.manifest, self.on_bad_video)
                    if kept is not None:
                        done += stop - start
                        progress.update(done)
                        yield kept
                        continue
                    parts = []
                    for batch in source.batches(start, stop, batch_rows):
                        if not has_looked and len(batch.rows):
                            has_looked = True
                            how_shown = self.frozen.identity.config.input
                            if said := far_from_input(batch.clips.flatten(0, 1), how_shown):
                                _LOGGER.warning("%s: %s", self.frozen.identity.source, said)
                        parts.append(self.encode(batch))
                        done += len(batch.rows) + len(batch.bad)
                        progress.update(done)
                    yield stored_shard(path, split.manifest, FeatureSet.joined(parts))

    def features(
        self, split: Split, rows: NDArray[np.int64] | None = None, pass_index: int = 0
    ) -> FeatureSet:
        """All shards together; refused when not one video can be read."""
        found = FeatureSet.joined(list(self.shards(split, rows, pass_index=pass_index)))
        if not len(found):
            reason = "".join(f" (first: {bad.path}: {bad.reason})" for bad in found.bad[:1])
            raise UserError(f"not one video could be read{reason}; name other videos")
        if sum(shard.nbytes for shard in found.shards) > _MOST_IN_MEMORY_BYTES:
            return found
        # Small sets are read once: gathering from one tensor is several times faster.
        return found.whole()

    def _key(self, split: Split, rows: NDArray[np.int64], pass_index: int) -> dict[str, Any]:
        """Everything that the numbers depend on, as plain values."""
        augment = None
        if self.augment is not None and self.is_random:
            augment = {**to_dict(self.augment), "pass": pass_index}
        settings = to_dict(self.settings)
        # How segments are joined comes after the features.
        settings["view"].pop("join")
        return {
            "format": _FORMAT,
            "weights_hash": self.frozen.identity.weights_hash,
            "encoder": self.frozen.identity.settings,
            "data_hash": data_hash(split.manifest, rows),
            **({"sums": "float32"} if self.frozen.identity.config.is_rotary else {}),
            "clip": settings["clip"],
            "view": settings["view"],
            **settings["features"],
            # A GPU may give other last bits than a CPU.
            "device": self.setup.device.type,
            "augment": augment,
        }


def open_cache_folder(cache_dir: Path, key: Mapping[str, Any]) -> Path:
    """The folder of a key, made when new; a shortened digest is checked against the whole key."""
    folder = cache_dir / settings_hash(key)[:20]
    described = folder / "features.json"
    if not described.exists():
        atomic_write(described, json.dumps(key, indent=1, sort_keys=True))
        return folder
    stored, wanted = read_json(described, "delete it"), json.loads(json.dumps(key))
    if names := ", ".join(name for name, value in wanted.items() if stored.get(name) != value):
        raise UserError(
            f"{described}: made with another {names} than this folder's name says; delete it"
        )
    return folder


def stored_shard(path: Path | None, manifest: Manifest, part: FeatureSet) -> FeatureSet:
    """A part of a cache as one shard, written whole and mapped; without a path it is in memory."""
    part = part.whole()
    if path is None:
        return part
    tensors = {"tokens": part.tokens.contiguous(), "rows": torch.from_numpy(part.rows)}
    about = {
        "bad": json.dumps([asdict(video) for video in part.bad]),
        "stamps": json.dumps(_stamps(manifest, part.bad)),
    }
    with atomic_path(path) as aside:
        save_tensors(aside, tensors, about)
    _TRIED.add(path)
    return _read_shard(path)[0]


def kept_shard(
    path: Path | None, manifest: Manifest, on_bad_video: OnBadVideo
) -> FeatureSet | None:
    """A shard that is there; None: it has to be made, perhaps anew for its bad videos.

    That is where those are an error, or where one may be read now: its file was away or another
    when it failed, or time or memory did not suffice in another process.
    """
    if path is None or not path.exists():
        return None
    found, stamps = _read_shard(path)
    if found.bad and on_bad_video == "error":
        return None
    if path not in _TRIED and any(
        video.kind != "decode" or "out of memory" in video.reason for video in found.bad
    ):
        return None
    now = _stamps(manifest, found.bad)
    pairs = zip(now, stamps, strict=False)  # older shards have none
    return None if any(new not in (None, old) for new, old in pairs) else found


def _stamps(manifest: Manifest, bad: Sequence[BadVideo]) -> list[list[int] | None]:
    """Size and time of each bad video's file as it is now; None: it is not there."""
    found: list[list[int] | None] = []
    for info in (manifest.row(video.row) for video in bad):
        try:
            stamp = stamp_of(info.path, info.kind)
            found.append([stamp.bytes, stamp.mtime_ns])
        except OSError:
            found.append(None)
    return found


def _read_shard(path: Path) -> tuple[FeatureSet, list[list[int] | None]]:
    """Map a shard, whose pages are read when used; and :func:`_stamps` when its bad ones failed."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            found = FeatureSet(
                (file.get_tensor("tokens"),),
                file.get_tensor("rows").numpy(),
                tuple(BadVideo(**video) for video in json.loads(about["bad"])),
            )
            return found, json.loads(about.get("stamps", "[]"))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a readable feature shard ({error}); delete it") from error
