"""Curves that are short enough to draw, with every peak kept.

In: values by op, transfers. Out: points in time. Must not know: charts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teraio.reports.memory import Bytes, Seconds
from teraio.reports.timeline import Busy

_POINTS = 1500
_BINS = 300

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One channel in equal parts of the iteration: bytes/s in each."""

    tier: str
    write: bool
    bytes_per_s: Seconds


def telling_ops(totals: Bytes, start_s: Seconds, points: int = _POINTS) -> Indices:
    """Some ops to draw: of each short stretch of time the one with the largest total."""
    n = len(totals)
    if n <= points:
        return np.arange(n)
    whole = float(start_s[-1]) or 1.0
    stretch = np.minimum((start_s / whole * points).astype(np.int64), points - 1)
    order = np.lexsort((-totals, stretch))
    firsts = np.unique(stretch[order], return_index=True)[1]
    return np.sort(order[firsts])


def channel_use(transfers: Iterable[Busy], iteration_s: float) -> list[Use]:
    """What each channel does over time, reads and writes of each tier apart."""
    edges = np.linspace(0.0, iteration_s, _BINS + 1)
    by_channel: dict[tuple[str, bool], list[Busy]] = {}
    for busy in transfers:
        by_channel.setdefault((busy.tier, busy.write), []).append(busy)
    return [
        Use(tier=tier, write=write, bytes_per_s=_rates(mine, edges))
        for (tier, write), mine in sorted(
            by_channel.items(), key=lambda item: (item[0][0], not item[0][1])
        )
    ]


def _rates(transfers: Sequence[Busy], edges: Seconds) -> Seconds:
    """The slope of the bytes done, which grow evenly over each transfer."""
    times, done = [0.0], [0.0]
    for busy in sorted(transfers, key=lambda busy: busy.span):
        times += [max(times[-1], busy.span[0]), max(times[-1], busy.span[1])]
        done += [done[-1], done[-1] + busy.nbytes]
    return np.diff(np.interp(edges, times, done)) / np.diff(edges)
