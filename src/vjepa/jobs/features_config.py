"""The root config of `vjepa features`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vjepa.evaluation.feature_files import StoredType
from vjepa.evaluation.framing import FramingConfig
from vjepa.evaluation.window_reading import Pool
from vjepa.evaluation.windows import WindowConfig
from vjepa.jobs.probe_config import EncoderSourceConfig
from vjepa.runtime.device import DeviceName, Precision

Engine = Literal["local", "ray"]


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Everything that `vjepa features` needs to know."""

    encoder: EncoderSourceConfig = field(default_factory=EncoderSourceConfig)
    """The frozen encoder."""
    window: WindowConfig = field(default_factory=WindowConfig)
    """Which frames, in which windows."""
    framing: FramingConfig = field(default_factory=FramingConfig)
    """Which part of the frames."""
    pool: Pool = "none"
    """`none`: every token, [t, h, w, D]; `space`: a row for each tubelet, [t, D]; `video`: one for
    each file, [D]. Means over tokens."""
    format: Literal["safetensors", "npz", "parquet"] = "safetensors"
    """One `safetensors` or `npz` file for each source; `parquet`: a folder of parts, pooled rows
    only, which other tools read as one table."""
    stored: StoredType = "float32"
    """Type of the stored numbers; `float16` takes half the space."""
    precision: Precision = "float32"
    """Of the encoder's computation."""
    batch_size: int = 8
    """Windows per call of the encoder."""
    readers: int = 2
    """Files that are decoded at the same time, each by a thread."""
    timeout_seconds: float = 60.0
    """A file that gives no window for so long is given up."""
    compile: bool = False
    """Compile the encoder's blocks; the first minute is slow, the rest faster on a GPU."""
    device: DeviceName = "auto"
    """Where the encoder runs; `auto` takes a GPU when there is one."""
    num_threads: int | None = None
    """CPU threads of torch; null: torch's choice."""
    engine: Engine = "local"
    """`local`: this process; `ray`: workers of a Ray cluster, or of a Ray started on this machine
    (needs the extra `ray`)."""
    ray_workers: int = 2
    """Processes of `engine: ray`, each with its own encoder; on GPUs each takes one."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "readers", "ray_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if not self.timeout_seconds > 0:
            raise ValueError(f"timeout_seconds: must be above 0, got {self.timeout_seconds}")
        if self.format == "parquet" and self.pool == "none":
            raise ValueError(
                "format: a table holds pooled rows; choose pool: space or video, or format: "
                "safetensors or npz for every token"
            )
