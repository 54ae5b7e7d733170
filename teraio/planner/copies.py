"""What copies of storages take on a tier: bytes, and seconds of its channels.

In: storages of a Trace, a Tier. Out: columns by storage. Must not know: periods, moves, plans.

An encoded copy is moved in pieces, some of which are encoded or decoded while others are on the
channel. So it takes as long as the slower of the two does alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from teraio.planner.arrays import Floats, Ints
from teraio.records import Storage, Tier, Trace

_NONE = -1


@dataclass(frozen=True, slots=True, eq=False)
class Seconds:
    """Of one direction: ``transfer`` is how long copies take with the channel to themselves.

    ``coding`` is how long the device encodes or decodes meanwhile; none is longer than
    ``transfer``.
    """

    transfer: Floats
    coding: Floats

    def pairs(self) -> list[tuple[float, float]]:
        """Both numbers of each copy."""
        return list(zip(self.transfer.tolist(), self.coding.tolist(), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """By storage: its bytes, which encoding its copies have (-1: none), and what that one does.

    ``share`` is the part of a byte that is moved, ``encode_s`` and ``decode_s`` are seconds a byte.
    """

    nbytes: Ints
    encoding: Ints
    share: Floats
    encode_s: Floats
    decode_s: Floats

    def bytes_on(self, tier: Tier) -> Ints:
        """Bytes of each copy there."""
        if not tier.encodes:
            return self.nbytes
        return np.ceil(self.nbytes * self.share).astype(np.int64)

    def write_costs(self, tier: Tier) -> Floats:
        """What a byte of each storage takes of the write channel, in bytes that it writes then."""
        return self._costs(tier, tier.write_bytes_per_s * self.encode_s)

    def read_costs(self, tier: Tier) -> Floats:
        """What a byte of each storage takes of the read channel, in bytes that it reads then."""
        return self._costs(tier, tier.read_bytes_per_s * self.decode_s)

    def _costs(self, tier: Tier, coding: Floats) -> Floats:
        return np.maximum(self.share, coding) if tier.encodes else np.ones(len(self.nbytes))

    def writes(self, tier: Tier) -> Seconds:
        """Seconds that each copy takes to be written."""
        transfer = self.nbytes * self.write_costs(tier) / tier.write_bytes_per_s
        return Seconds(transfer, self.nbytes * self.encode_s * tier.encodes)

    def reads(self, tier: Tier) -> Seconds:
        """Seconds that each copy takes to be read."""
        transfer = self.nbytes * self.read_costs(tier) / tier.read_bytes_per_s
        return Seconds(transfer, self.nbytes * self.decode_s * tier.encodes)

    def ways(self, tier: Tier) -> tuple[list[float], list[float]]:
        """Seconds of each copy to be written, and to be read."""
        return self.writes(tier).transfer.tolist(), self.reads(tier).transfer.tolist()


def copies(trace: Trace, storages: Iterable[Storage] | None = None) -> Copies:
    """The copies of some storages of a trace, or of all."""
    chosen = trace.storages if storages is None else tuple(storages)
    nbytes = np.fromiter((s.nbytes for s in chosen), np.int64, len(chosen))
    encoding = np.fromiter(
        (_NONE if s.encoding is None else s.encoding for s in chosen), np.int64, len(chosen)
    )
    # The last row is of those that have none.
    rows = [(e.share, 1 / e.encode_bytes_per_s, 1 / e.decode_bytes_per_s) for e in trace.encodings]
    share, encode_s, decode_s = np.array([*rows, (1.0, 0.0, 0.0)])[encoding].T
    return Copies(nbytes, encoding, share, encode_s, decode_s)
