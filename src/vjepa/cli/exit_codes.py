"""What the exit code of a command says."""

from __future__ import annotations

EXIT_BAD_INPUT = 2
"""The input was bad; one line on stderr says what and what to do."""

EXIT_INTERRUPTED = 130
"""The user stopped the work before it was done (Ctrl-C or SIGTERM)."""
