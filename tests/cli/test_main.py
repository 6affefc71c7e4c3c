"""The front door: help, exit codes, errors in one line."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vjepa.cli import commands
from vjepa.cli.main import COMMANDS, main
from vjepa.version import __version__


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, vjepa: Callable) -> None:
    summary = COMMANDS[name][0].partition("\n")[0]
    assert summary in " ".join(vjepa("--help").out.split())
    helped = vjepa(name, "--help")
    assert helped.code == 0
    assert summary in helped.out


def test_every_action_explains_itself_with_an_example(vjepa: Callable) -> None:
    actions = {
        "data": ["index", "check", "prepare", "synth"],
        "probe": ["train", "eval", "predict"],
        "show": ["masks", "features", "predictions", "run"],
        "bench": ["step", "loader", "encode"],
    }
    for name, found in actions.items():
        assert vjepa(name).code == 2, "without an action nothing was done"
        for action in found:
            helped = vjepa(name, action, "--help")
            assert helped.code == 0
            assert f"vjepa {name} {action}" in helped.out.partition("example")[2], (name, action)


def test_no_arguments_show_the_help(vjepa: Callable) -> None:
    outcome = vjepa()
    assert outcome.code == 2
    assert "vjepa demo" in outcome.out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pretrian"], "unknown command pretrian; did you mean pretrain? (see vjepa --help)"),
        (["data", "idnex"], "unknown command idnex; did you mean index? (see vjepa data --help)"),
        (["convert", "a"], "the following arguments are required: DST"),
        (["convert", "a", "b", "--num-head", "3"], "unknown argument --num-head; did you mean"),
        (["doctor", "now"], "unknown argument now (see vjepa doctor --help)"),
        (["show", "features", "m", "v", "--which", "both"], "argument --which: invalid choice"),
        (["data", "check", "m", "--workers", "two"], "argument --workers: invalid int value"),
    ],
)
def test_a_wrong_command_line_is_one_line(argv: list, message: str, vjepa: Callable) -> None:
    assert message in vjepa(*argv).error


def _doctor_raises(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(args: object) -> int:
        raise error

    patch.setattr(commands, "_doctor", run)


def test_a_name_that_is_no_text_is_printed_in_any_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: object) -> int:
        print("caf\udce9.mp4")
        return 0

    monkeypatch.setattr(commands, "_doctor", run)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8", write_through=True))
    assert main(["doctor"]) == 0
    assert written.getvalue() == b"caf\\udce9.mp4\n"


def test_what_runs_in_one_process_is_refused_under_a_launcher(
    monkeypatch: pytest.MonkeyPatch, vjepa: Callable, tmp_path: Path
) -> None:
    """Each process would do all of it, and write over the others' files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    (tmp_path / "a.mp4").touch()
    out = ["--out", str(tmp_path / "out.parquet")]
    for argv in (
        ["data", "index", str(tmp_path), *out],
        ["finetune", "predict", "run", "a.mp4", *out],
        ["probe", "predict", "run", "a.mp4"],
        ["show", "masks", "a.mp4"],
        ["export", "run", "--format", "onnx", "--out", str(tmp_path / "a.onnx")],
    ):
        outcome = vjepa(*argv)
        name = " ".join(word for word in argv[:2] if word != "run")
        assert f"error: WORLD_SIZE=2: `vjepa {name}` runs in one process" in outcome.err
        assert outcome.code == 2
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    for argv in (["pretrain"], ["finetune"], ["detect", "train"]):  # these share their work
        assert vjepa(*argv, "--print-config").code == 0
    assert "MASTER_ADDR" in vjepa("finetune", "eval", "run", "m.parquet").err


def test_interrupt(monkeypatch: pytest.MonkeyPatch, vjepa: Callable) -> None:
    _doctor_raises(monkeypatch, KeyboardInterrupt())
    outcome = vjepa("doctor")
    assert outcome.code == 130
    assert outcome.err.strip() == "interrupted: stopped at your request"


@pytest.fixture
def _usual_signals() -> Iterator[None]:
    """As in a process of the command's own: a test before may have left a handler (Ray does)."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler or signal.SIG_DFL)


@pytest.mark.usefixtures("_usual_signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_every_command_says_that_the_system_stopped_it(
    name: str, monkeypatch: pytest.MonkeyPatch, vjepa: Callable
) -> None:
    number = signal.Signals[name]
    monkeypatch.setattr(commands, "_doctor", lambda _: signal.raise_signal(number))
    outcome = vjepa("doctor")
    assert outcome.code == 75
    assert outcome.err.strip() == "interrupted: stopped by the system"
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.usefixtures("_usual_signals")
def test_of_several_processes_each_dies_of_a_signal_until_it_trains(
    monkeypatch: pytest.MonkeyPatch, vjepa: Callable
) -> None:
    """A launcher sends it when one of them failed: 75 would start that failure again for ever."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    found = []

    def run(args: object) -> int:
        found.append(signal.getsignal(signal.SIGTERM))
        return 0

    monkeypatch.setattr(commands, "_pretrain", run)
    assert vjepa("pretrain").code == 0
    assert found == [signal.SIG_DFL]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "x.bin: No space left on device: free some space and run the same command"),
        (errno.EACCES, "x.bin: Permission denied"),
        (errno.EROFS, "x.bin: Read-only file system"),
        (errno.ESTALE, "x.bin: Stale file handle"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    number: int, said: str, monkeypatch: pytest.MonkeyPatch, vjepa: Callable
) -> None:
    _doctor_raises(monkeypatch, OSError(number, os.strerror(number), "x.bin"))
    assert vjepa("doctor").error.startswith(said)


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate it.\nSee"),
            " on the GPU",
        ),
        (RuntimeError("[enforce fail at x.cpp:1] DefaultCPUAllocator: can't allocate memory"), ""),
    ],
)
def test_memory_that_is_used_up_is_one_line_with_what_to_do(
    error: RuntimeError, place: str, monkeypatch: pytest.MonkeyPatch, vjepa: Callable
) -> None:
    _doctor_raises(monkeypatch, error)
    result = vjepa("doctor")
    assert result.code == 2
    assert result.err.startswith(f"error: memory is used up{place}: use smaller batches (--data.b")
    assert result.err.count("\n") == 1
    assert "allocate" in result.err


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), RuntimeError("a defect")])
def test_our_own_defects_keep_their_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    _doctor_raises(monkeypatch, error)
    with pytest.raises(type(error)):
        main(["doctor"])


def _process(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, check=False, env={**os.environ}
    )


def test_python_m_vjepa() -> None:
    done = _process("-m", "vjepa", "--version")
    assert (done.returncode, done.stdout) == (0, f"vjepa {__version__}\n")
    assert _process("-m", "vjepa", "no-such").returncode == 2


def test_output_into_a_closed_pipe_is_quiet() -> None:
    """``vjepa ... | head`` must not end in a traceback."""
    code = f"{sys.executable} -m vjepa pretrain --help | head -n 1"
    done = subprocess.run(["sh", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("usage: vjepa pretrain")


def test_public_names_are_loaded_on_first_use() -> None:
    done = _process(
        "-c",
        "import sys, vjepa\n"
        "assert 'torch' not in sys.modules\n"
        "assert {'load_model', 'load_encoder', 'load_clip'} <= set(dir(vjepa))\n"
        "vjepa.load_model, vjepa.load_encoder, vjepa.load_clip\n"
        "assert 'torch' in sys.modules\n"
        "try: vjepa.load_everything\n"
        "except AttributeError as error: print(error)\n",
    )
    assert done.stderr == ""
    assert done.stdout == "module 'vjepa' has no attribute 'load_everything'\n"
