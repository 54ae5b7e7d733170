"""The environment of a distributed world that has one process.

In: nothing. Out: environment variables. Must not know: torch.
"""

from __future__ import annotations

import os
import socket


def alone() -> None:
    """Sets what launchers set, with a port of this process's own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
