"""Every arrow between rooms points down, and is one that the design lists."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

from tests.architecture.source_tree import PACKAGE, ROOT, Module, modules, nodes, place

_BELOW_JOBS = {
    "reporting",
    "evaluation",
    "training",
    "tasks",
    "checkpoint",
    "models",
    "masking",
    "data",
    "runtime",
    "config",
}
MAY_IMPORT: dict[str, set[str]] = {
    "config": set(),
    "runtime": {"config"},
    "masking": {"config"},
    "models": {"config"},
    "checkpoint": {"models", "runtime", "config"},
    "tasks": {"models", "masking", "runtime", "config"},
    "training": {"tasks", "checkpoint", "runtime", "config"},
    "data": {"masking", "runtime", "config"},
    "evaluation": {"models", "data", "checkpoint", "runtime", "config"},
    "reporting": {"checkpoint", "runtime", "config"},
    "jobs": _BELOW_JOBS,
    "demo": _BELOW_JOBS | {"jobs"},
    "cli": {"demo", "jobs", "reporting", "checkpoint", "runtime", "config"},
}
"""Rooms and the rooms that each may import (besides itself)."""

LEAVES = {"errors", "counter_random", "version", "strict_yaml", "paths"}
"""Small modules that every room may import; they import nothing of ours but each other."""

ENTRANCES = {"__init__", "__main__"}
"""The package's own front door: it may import any room, lazily."""

TORCH_ONLY = ("models", "masking", "tasks", "training", "checkpoint")
"""Rooms that work where no decoder and no Parquet reader is installed."""


def _imported_rooms(module: Module) -> list[tuple[str, ast.AST]]:
    """Rooms that a module imports anywhere in it, with the import."""
    found: list[tuple[str, ast.AST]] = []
    for node in nodes(module.tree, (ast.Import, ast.ImportFrom)):
        assert not (isinstance(node, ast.ImportFrom) and node.level), (
            f"{place(module, node)}: import by the full name"
        )
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.module == "vjepa":
            names = [f"vjepa.{alias.name}" for alias in node.names]
        else:
            names = [node.module or ""]
        found += [(name.split(".")[1], node) for name in names if name.startswith("vjepa.")]
    return found


def test_every_room_is_listed() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if any(path.rglob("*.py"))}
    assert rooms <= set(MAY_IMPORT), "a new room: say in MAY_IMPORT what it may import"


def test_arrows_point_down() -> None:
    wrong = []
    for module in modules():
        if module.room in ENTRANCES:
            continue
        allowed = LEAVES | MAY_IMPORT.get(module.room, set()) | {module.room}
        wrong += [
            f"{place(module, node)}: {module.room} imports {room}"
            for room, node in _imported_rooms(module)
            if room not in allowed
        ]
    assert not wrong, "\n".join(wrong)


def test_the_table_has_no_circle() -> None:
    order: list[str] = []
    while len(order) < len(MAY_IMPORT):
        ready = [
            room for room, below in MAY_IMPORT.items() if room not in order and below <= set(order)
        ]
        assert ready, f"a circle among {set(MAY_IMPORT) - set(order)}"
        order += ready


def _python(code: str) -> str:
    """Output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rooms_import_without_decoder_and_parquet_and_gpu_tests_without_decoder() -> None:
    """``benchmarks/on_gpu.sh`` is meant for machines that have torch and little else."""
    names = [f"vjepa.{module.name}" for module in modules() if module.room in TORCH_ONLY]
    blocked = ["av", "torchcodec", "webdataset", "pyarrow", "matplotlib", "tensorboard", "rich"]
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "@pytest.mark." + "gpu" in path.read_text(encoding="utf-8")
    ]
    assert len(files) > 3
    _python(
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        f"import importlib\nfor name in {names}: importlib.import_module(name)\n"
        f"for name in {blocked[3:]}: del sys.modules[name]\n"
        "sys.path.insert(0, 'benchmarks')\n"
        "import bench_step, profile_step, curve_precision\n"
        "import vjepa.jobs.bench_encode\n"
        "import pytest\n"
        "options = ['--collect-only', '-q', '-m', 'gpu', '-p', 'no:cacheprovider']\n"
        f"sys.exit(pytest.main([*options, *{files}]))"
    )


def test_the_command_line_starts_without_torch() -> None:
    loaded = _python(
        "import sys, vjepa, vjepa.cli.main\n"
        "vjepa.cli.main.build_parser().format_help()\n"
        "print(*(name for name in ('torch', 'numpy', 'av', 'pyarrow', 'rich', 'pydantic')"
        " if name in sys.modules))"
    )
    assert loaded.split() == []


def test_what_hands_out_files_to_be_looked_into_starts_without_a_decoder() -> None:
    """The processes that look into them import it; once more beside them would be for nothing."""
    loaded = _python(
        "import sys, vjepa.jobs.videos\n"
        "print(*(name for name in ('torch', 'av', 'PIL') if name in sys.modules))"
    )
    assert loaded.split() == []


def test_importing_changes_nothing_and_loads_no_compiler() -> None:
    """No output, thread, file, environment variable, log handler or random draw.

    Torch's compiler takes seconds, in every worker process and at every start of the command line.
    """
    names = [f"vjepa.{module.name}" for module in modules() if module.name != "__main__"]
    output = _python(f"""
import importlib, logging, os, random, signal, sys, tempfile, threading
import av, matplotlib, numpy as np, pyarrow, rich, torch, torch.distributed.checkpoint

def state():
    return {{
        "environment": dict(os.environ), "files": os.listdir("."),
        "threads": threading.active_count(), "torch threads": torch.get_num_threads(),
        "handlers": list(logging.getLogger().handlers), "level": logging.getLogger().level,
        "python draws": random.getstate(), "numpy draws": str(np.random.get_state()),
        "torch draws": torch.get_rng_state().tolist(), "dtype": torch.get_default_dtype(),
        "signals": [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)],
        "backend": dict.__getitem__(matplotlib.rcParams, "backend"),
    }}

os.chdir(tempfile.mkdtemp())
before = state()
for name in {names}:
    importlib.import_module(name)
after = state()
print(*(key for key in before if before[key] != after[key]))
if "torch._dynamo" in sys.modules:
    print("torch's compiler is loaded before it is used")
""")
    assert output.strip() == ""


def test_scripts_import_nothing_that_only_tests_find() -> None:
    """``python benchmarks/X.py`` finds what lies beside it and what is installed."""
    scripts = [
        path for name in ("benchmarks", "studies", "docs") for path in (ROOT / name).glob("*.py")
    ]
    assert len(scripts) > 30
    wrong = re.compile(r"^\s*(from|import) (tests|benchmarks|studies|docs)\b", re.M)
    assert not [path.name for path in scripts if wrong.search(path.read_text())]
