"""A run folder has one writer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vjepa.errors import UserError
from vjepa.runtime.files import locked_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")

_HOLD = """
import sys, time
from pathlib import Path
from vjepa.runtime.files import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="another process is at work"), locked_folder(tmp_path):
            pass
        holder.kill()
    with locked_folder(tmp_path):
        pass


def test_error_inside_passes_through(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mine"), locked_folder(tmp_path):
        raise UserError("mine")
