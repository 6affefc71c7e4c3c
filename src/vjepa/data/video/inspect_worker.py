"""The reader process: probes one file after another for `inspect_pool`.

Run as ``python -m vjepa.data.video.inspect_worker LIMITS``; requests and replies are lines of JSON
on standard input and output. It holds nothing worth keeping: it may be killed at any time.
"""

from __future__ import annotations

import json
import os
import sys

from vjepa.data.video.info import LimitsConfig, info_to_json
from vjepa.data.video.inspect import probe, probe_deeply
from vjepa.runtime.device import limit_memory

READY = "ready"


def main() -> None:
    """Answer requests until standard input ends."""
    limits = LimitsConfig(**json.loads(sys.argv[1]))
    limit_memory(limits.max_memory_gigabytes)
    # The replies get a private copy of standard output; what a codec library prints goes to stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    replies.write(READY + "\n")
    replies.flush()
    for line in sys.stdin:
        request = json.loads(line)
        look = probe_deeply if request.pop("deep") else probe
        replies.write(json.dumps(info_to_json(look(limits=limits, **request))) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
