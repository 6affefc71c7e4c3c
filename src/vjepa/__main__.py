"""``python -m vjepa`` is the ``vjepa`` command."""

from __future__ import annotations

import sys

from vjepa.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
