"""What this machine offers: versions, devices, decoders, and what is missing (`vjepa doctor`)."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec

from vjepa.runtime.process import usable_cpus
from vjepa.version import __version__


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    name: str
    found: str | None  # version or description; None: not there
    needed_for: str  # what does not work without it
    remedy: str = ""  # how to get it


@dataclass(frozen=True)
class EnvironmentReport:
    """Everything `vjepa doctor` prints."""

    versions: dict[str, str]  # of this package, Python and the platform
    devices: list[str]  # one line for the CPU and for each GPU
    packages: list[Finding]  # Python packages
    decoders: list[Finding]  # what can read videos
    tools: list[Finding]  # programs outside Python


_PACKAGES: Mapping[str, str] = {
    "torch": "everything",
    "numpy": "everything",
    "safetensors": "checkpoints",
    "pyarrow": "manifests",
    "pydantic": "configs",
    "yaml": "recipes and configs",
    "rich": "progress bars",
    "tensorboard": "event files (metrics.jsonl is written without it)",
    "matplotlib": "plots",
    "PIL": "still images and pictures in reports",
    "jinja2": "HTML reports",
}
_DISTRIBUTIONS: Mapping[str, str] = {"yaml": "pyyaml", "PIL": "pillow"}


def inspect_environment() -> EnvironmentReport:
    """Look at this machine.

    A decoder is imported, as its shared libraries may be missing; then it counts as missing, with
    the reason as remedy.
    """
    versions = {
        "open-vjepa": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    packages = [_package(name, use) for name, use in _PACKAGES.items()]
    compilers = map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))
    compiler = Finding(
        "C++ compiler",
        next(filter(None, compilers), None),
        "--training.compile true on a CPU",
        "install g++ or clang++ with the system's package manager",
    )
    return EnvironmentReport(versions, _devices(), packages, [_decoder()], [compiler])


def _package(name: str, needed_for: str) -> Finding:
    distribution = _DISTRIBUTIONS.get(name, name)
    if find_spec(name) is None:
        return Finding(distribution, None, needed_for, f"pip install {distribution}")
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        version = "unknown version"
    return Finding(distribution, version, needed_for)


def _decoder() -> Finding:
    if find_spec("av") is None:
        return Finding("av", None, "reading videos", "pip install av")
    try:
        module = import_module("av")
        codec = ".".join(str(part) for part in module.library_versions["libavcodec"])
        wanted = ("h264", "hevc", "vp9", "av1", "mpeg4", "gif")
        readable = ", ".join(name for name in wanted if name in module.codecs_available)
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Finding("av", None, "reading videos", f"installed, but its import fails: {reason}")
    found = f"{module.__version__} (libavcodec {codec}; reads {readable})"
    return Finding("av", found, "reading videos")


def _devices() -> list[str]:
    memory = "unknown"
    if "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    lines = [f"cpu: {usable_cpus()} usable cores, {platform.machine()}, {memory} memory"]
    if find_spec("torch") is None:
        return lines
    import torch

    from vjepa.runtime.device import set_up_device

    # Without it training takes about twice the time that the documentation names first.
    has_bfloat16 = set_up_device("cpu", "auto").precision == "bfloat16"
    lines[0] += f", torch uses {torch.get_num_threads()} threads"
    lines[0] += f", {'with' if has_bfloat16 else 'without'} bfloat16"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines.append(
            f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
            f"compute capability {properties.major}.{properties.minor}"
        )
    if len(lines) == 1:
        lines.append("cuda: no usable GPU")
    return lines
