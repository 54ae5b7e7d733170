"""What an implementation offers: modules with these functions.

In: nothing. Out: protocols for type checkers, and the contract in words. Must not know: any
implementation.

All arguments have been checked. ``storages`` are not empty, neither as a list nor each of them, and
in calls that encode they have the same dtype. ``offsets`` are those of their pieces in ``staging``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class Copying(Protocol):
    def pack(self, storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor) -> None: ...

    def unpack(
        self, storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor
    ) -> None: ...


class Lossless(Protocol):
    def describe(self, storages: Sequence[Tensor]) -> Tensor:
        """Descriptors (int64) of all blocks of all storages, without places."""
        ...

    def encode(
        self,
        storages: Sequence[Tensor],
        tables: Sequence[Tensor],
        offsets: Sequence[int],
        staging: Tensor,
    ) -> None:
        """``tables`` are the descriptors of each storage, with places."""
        ...

    def decode(
        self, storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor
    ) -> None: ...


class Lossy(Protocol):
    def encode(
        self, codec: str, storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor
    ) -> None: ...

    def decode(
        self, codec: str, storages: Sequence[Tensor], offsets: Sequence[int], staging: Tensor
    ) -> None: ...


class Implementation(NamedTuple):
    copying: Copying
    lossless: Lossless
    lossy: Lossy
