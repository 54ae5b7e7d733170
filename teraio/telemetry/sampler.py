"""A thread that looks at the machine once a second and keeps what it saw in a few figures.

In: probes, which give Measures. Out: Telemetry. Must not know: what is measured.

[Note: no lock] The thread alone adds to a window and then publishes the result as one object, which
others read. So nobody waits for the thread, and a process that forks never takes along a lock that
somebody holds: in the child, where the thread is gone, the last result stays readable.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from teraio.records import Reading, Telemetry, Unit
from teraio.telemetry.measure import Measure, Unmeasured

log = logging.getLogger("teraio")

Probe = Callable[[], Iterable[Measure | Unmeasured]]


class Sampler:
    """Telemetry since ``begin()`` was last called. ``start()`` it once, ``stop()`` it at the end.

    ``missing`` says what is not looked at and why.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        missing: Sequence[str] = (),
        *,
        interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probes = tuple(probes)
        self._missing = tuple(missing)
        self._interval_s = interval_s
        self._clock = clock
        self._pid = os.getpid()
        self._wake = threading.Event()
        self._stopped = False
        self._window = _Window(self._missing)

    def start(self) -> None:
        """Looks from now on, at once and then once in every interval."""
        threading.Thread(target=self._run, name="teraio-telemetry", daemon=True).start()

    def begin(self) -> None:
        """Forgets what was seen so far."""
        self._window = _Window(self._missing)
        self._wake_up()

    def stop(self) -> None:
        """The thread ends soon; nobody waits for it."""
        self._stopped = True
        self._wake_up()

    def telemetry(self) -> Telemetry:
        """What was seen since ``begin()``; without readings before the first look."""
        return self._window.published

    def sample(self) -> None:
        """One look; the thread's work."""
        window, now_s = self._window, self._clock()
        window.add([measure for probe in self._probes for measure in probe()], now_s)

    def _wake_up(self) -> None:
        if os.getpid() == self._pid:
            self._wake.set()

    def _run(self) -> None:
        while not self._stopped:
            try:
                self.sample()
            except OSError as error:  # the machine has no more open files, for example
                log.warning("teraio stops watching the machine: %s", error)
                return
            except Exception:  # no figure is worth a training run
                log.warning("teraio stops watching the machine", exc_info=True)
                return
            self._wake.wait(self._interval_s)
            self._wake.clear()


class _Window:
    """What was seen since one moment."""

    def __init__(self, missing: Sequence[str]) -> None:
        self._began_s: float | None = None
        self._samples = 0
        self._series: dict[tuple[str, str], _Series] = {}
        self._missing = dict.fromkeys(missing)
        self.published = Telemetry(seconds=0.0, samples=0, readings=(), missing=tuple(missing))

    def add(self, measures: Iterable[Measure | Unmeasured], now_s: float) -> None:
        self._began_s = now_s if self._began_s is None else self._began_s
        self._samples += 1
        for measure in measures:
            if isinstance(measure, Unmeasured):
                self._missing[str(measure)] = None
                continue
            key = (measure.of, measure.what)
            if key not in self._series:
                self._series[key] = _Series(measure.unit)
            self._series[key].add(measure, now_s)
        self.published = Telemetry(
            seconds=now_s - self._began_s,
            samples=self._samples,
            readings=tuple(
                series.reading(of, what) for (of, what), series in self._series.items() if series
            ),
            missing=tuple(self._missing),
        )


class _Series:
    """One figure over time; that of a counter exists from its second value on."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._before: tuple[float, float] | None = None
        self._last = self._sum = self._weight = 0.0
        self._least, self._most = float("inf"), float("-inf")

    def __bool__(self) -> bool:
        return self._weight > 0

    def add(self, measure: Measure, now_s: float) -> None:
        before, self._before = self._before, (measure.value, now_s)
        if not measure.counter:
            self._note(measure.value, 1.0)
        elif before is not None and now_s > before[1] and measure.value >= before[0]:
            span_s = now_s - before[1]
            self._note((measure.value - before[0]) / span_s, span_s)

    def _note(self, value: float, weight: float) -> None:
        self._last = value
        self._sum += value * weight
        self._weight += weight
        self._least, self._most = min(self._least, value), max(self._most, value)

    def reading(self, of: str, what: str) -> Reading:
        return Reading(
            of=of,
            what=what,
            unit=self._unit,
            last=self._last,
            # The sum of rounded parts may lie a hair outside of what it is the mean of.
            mean=min(max(self._sum / self._weight, self._least), self._most),
            least=self._least,
            most=self._most,
        )
