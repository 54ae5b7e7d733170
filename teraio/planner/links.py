"""Transfers to and from one tier, played through in time.

In: transfers as they are asked for, and times. Out: when each begins and is complete. Must not
know: ops, memory, plans.

A tier has a write and a read channel, each first come, first served. While both are busy both are
slowed by the same factor, so that their rates add up to the tier's mixed rate, and that the device
encodes for one and decodes for the other no more than one at a time. Latency is the time
from a transfer's last byte on the channel until it is complete; meanwhile the channel serves the
next one, because several requests are in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from teraio.records import Tier

# Part of the clock's time below which a rest of a transfer is rounding.
_RESOLUTION = 1e-14
_NEVER = float("inf")


@dataclass(slots=True, eq=False)
class Transfer:
    """``key`` is the asker's own name for it. Times are in seconds; None: not yet.

    ``coding`` is the part of its time during which the device encodes or decodes.
    """

    key: int
    left_s: float
    coding: float
    begun_s: float | None = None
    done_s: float | None = None


class Channel:
    """One direction of a tier; the first transfer of the queue is under way."""

    def __init__(self) -> None:
        self.queue: deque[Transfer] = deque()
        self.busy_s = 0.0

    def put(self, key: int, seconds: float, coding_s: float = 0.0) -> Transfer:
        """Ask for a transfer after all others, which takes ``seconds`` by itself."""
        transfer = Transfer(key, seconds, coding_s / seconds if coding_s else 0.0)
        self.queue.append(transfer)
        return transfer

    def hurry(self, transfer: Transfer) -> None:
        """Put a transfer that has not begun next after the one under way."""
        if transfer.begun_s is None and self.queue[0] is not transfer:
            self.queue.remove(transfer)
            self.queue.insert(
                1 if self.queue and self.queue[0].begun_s is not None else 0, transfer
            )


class Link:
    """The two channels of a tier, and the time up to which they have been played through."""

    def __init__(self, tier: Tier) -> None:
        self.write, self.read = Channel(), Channel()
        self._slowed = tier.mixed_share
        self._latency_s = tier.latency_s
        self._completing: list[tuple[float, int, Transfer]] = []
        self._counter = 0
        self.now_s = 0.0

    def run_until(self, time_s: float) -> Sequence[Transfer]:
        """Play on until ``time_s``; returns the transfers that are complete by then, in order."""
        served_s = self._served_s()
        while served_s <= max(0.0, time_s - self.now_s):
            self._serve(time_s, served_s)
            served_s = self._served_s()
        if self.now_s < time_s and served_s < _NEVER:
            self._serve(time_s, served_s)  # a part of the transfers under way
        self.now_s = max(self.now_s, time_s)
        if not self._completing or self._completing[0][0] > self.now_s:
            return ()
        done = []
        while self._completing and self._completing[0][0] <= self.now_s:
            done.append(heappop(self._completing)[2])
        return done

    def next_s(self) -> float:
        """When the next transfer will be complete if no more are asked for; infinite if none."""
        first = self._completing[0][0] if self._completing else _NEVER
        return min(first, self.now_s + self._served_s() + self._latency_s)

    def _served_s(self) -> float:
        """Seconds until a channel has served its first transfer; infinite if there is none."""
        write, read = self.write.queue, self.read.queue
        if write and read:
            return min(write[0].left_s, read[0].left_s) / self._speed()
        if write:
            return write[0].left_s
        return read[0].left_s if read else _NEVER

    def _speed(self) -> float:
        """Of what each channel does alone, what it does now."""
        if not (self.write.queue and self.read.queue):
            return 1.0
        coding = self.write.queue[0].coding + self.read.queue[0].coding
        return min(self._slowed, 1.0 / coding) if coding > 1.0 else self._slowed

    def _serve(self, limit_s: float, served_s: float) -> None:
        """Play on until a channel has served its first transfer, in ``served_s``, or the limit."""
        speed = self._speed()
        step_s = max(0.0, min(limit_s - self.now_s, served_s))
        end_s = max(self.now_s, min(limit_s, self.now_s + served_s))
        # What is left may be less than a step that changes the clock.
        least_s = _RESOLUTION * max(end_s, 1e-6)
        for channel in (self.write, self.read):
            if not channel.queue:
                continue
            first = channel.queue[0]
            if first.begun_s is None:
                first.begun_s = self.now_s
            channel.busy_s += step_s
            first.left_s -= step_s * speed
            if first.left_s <= least_s:
                channel.queue.popleft()
                first.done_s = end_s + self._latency_s
                self._counter += 1
                heappush(self._completing, (first.done_s, self._counter, first))
        self.now_s = end_s
