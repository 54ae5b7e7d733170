"""Work on a channel, as late as it can be.

In: when each piece of work can begin, when it must be done, how long it takes, all again in each
iteration. Out: when to begin. Must not know: ops, storages, memory.
"""

from __future__ import annotations

import heapq

from teraio.planner.arrays import Floats

# Looked at from behind, the first iterations don't know yet what those after them leave to do.
_LAPS = 3


def latest_begins(ready_s: Floats, due_s: Floats, work_s: Floats, lap_s: float) -> Floats:
    """When to begin each piece so that all are done in time, but none earlier than it must be.

    What can't be done in time begins when it is ready. Pieces come again every ``lap_s``; a begin
    may lie before the iteration. The channel does one piece at a time: looked at from behind,
    always the one that is ready last, which is the earliest deadline in time turned round.
    """
    begins = ready_s.copy()
    ready, work = ready_s.tolist(), work_s.tolist()
    coming = sorted(
        (due + lap * lap_s, lap, index)
        for lap in range(_LAPS)
        for index, due in enumerate(due_s.tolist())
    )
    waiting: list[tuple[float, int, int, float]] = []  # ready, negated; lap; index; work left
    now = float("inf")
    while coming or waiting:
        if not waiting:
            now = min(now, coming[-1][0])
        while coming and coming[-1][0] >= now:
            _, lap, index = coming.pop()
            heapq.heappush(waiting, (-ready[index] - lap * lap_s, lap, index, work[index]))
        key, lap, index, left = heapq.heappop(waiting)
        until = max(now - left, coming[-1][0]) if coming else now - left
        if until > now - left:
            heapq.heappush(waiting, (key, lap, index, left - (now - until)))
        elif lap == 0:
            begins[index] = max(ready_s[index], until)
        now = until
    return begins
