"""A path written in Python, for any memory that the CPU can reach by its address.

In: open spill files, requests. Out: bytes moved by os.preadv and os.pwritev, and a list of what was
asked for. Must not know: what a test claims.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

PAGE = 4096
# The native part asks for no more at once.
LARGEST = 64 << 20


@dataclass(frozen=True)
class Request:
    folder: int
    write: bool
    address: int
    device: int
    nbytes: int
    offset: int


class PythonPath:
    """Moves at most ``most`` bytes of each request, and remembers what it was asked for."""

    def __init__(self, fds: Sequence[int], most: int = LARGEST) -> None:
        self.fds, self.most = fds, most
        self.requests: list[Request] = []
        self.hook: Callable[[Request], int | None] = lambda _: None

    def __call__(self, *args: Any) -> int:
        request = Request(*args)
        self.requests.append(request)
        answer = self.hook(request)
        if answer is not None:
            return answer
        memory = (ctypes.c_char * min(request.nbytes, self.most)).from_address(request.address)
        move = os.pwritev if request.write else os.preadv
        return int(move(self.fds[request.folder], [memory], request.offset))
