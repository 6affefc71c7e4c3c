from __future__ import annotations

import subprocess
import sys

import pytest

import vjepa.data


@pytest.mark.parametrize("name", vjepa.data.__all__)
def test_every_name_can_be_had(name):
    assert getattr(vjepa.data, name) is not None
    assert name in dir(vjepa.data)


def test_unknown_names():
    with pytest.raises(AttributeError, match="no attribute 'Manifst'"):
        _ = vjepa.data.Manifst


def test_importing_the_room_needs_neither_decoder_nor_arrow():
    code = (
        "import sys, vjepa.data, vjepa.data.video.info;"
        "sys.exit(int(any(name in sys.modules for name in ('av', 'pyarrow', 'torch', 'PIL'))))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
