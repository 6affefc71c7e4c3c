"""What the exit code of a command says."""

from __future__ import annotations

EXIT_BAD_INPUT = 2
"""The input was bad; one line on stderr says what and what to do."""

EXIT_INTERRUPTED = 130
"""The user stopped the work before it was done (Ctrl-C)."""

EXIT_LOST_PROCESS = 1
"""Another process of the same job ended or hung; its own message says why."""

EXIT_REQUEUE = 75
"""The system asked for an end (SIGTERM, SIGUSR1), the state is saved: start the job again.

The number is that of EX_TEMPFAIL in sysexits.h."""
