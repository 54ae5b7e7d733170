"""Records iterations of a run: what is there when one begins, and what its storages are called.

In: who takes part in the training. Out: a Recorded. Must not know: plans, budgets, which iterations
are worth it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import teraio._C as _C
from teraio.engine.adoption import Adoption
from teraio.engine.encoded_path import EncodedPath
from teraio.engine.participants import Participants
from teraio.engine.places import Places
from teraio.profiler.trace import Recorded, build_trace
from teraio.records import Kind


class Recorder:
    """Records one iteration at a time."""

    def __init__(
        self,
        participants: Participants,
        adoption: Adoption,
        places: Places,
        device: str,
        encoded: EncodedPath | None,
    ) -> None:
        """``encoded`` measures in the same iterations what its codecs gain."""
        self._participants = participants
        self._adoption = adoption
        self._places = places
        self._device = device
        self._encoded = encoded
        self._live_at_start: list[tuple[int, int, bool]] = []
        self._names_at_start: Mapping[int, tuple[Kind, str]] = {}

    def begin(self) -> None:
        """The iteration that begins is recorded."""
        # What has come since from elsewhere, from a checkpoint above all, is to move as well.
        self._adoption.adopt(self._participants.tensors())
        self._live_at_start = _C.live_blocks()
        self._names_at_start = self._participants.blocks()  # some may be replaced
        if self._encoded is not None:
            self._encoded.begin_measuring()
        _C.record(True)

    def cancel(self) -> None:
        """The iteration is not recorded, or not any more."""
        _C.record(False)

    def take(self) -> Mapping[str, Any]:
        """What the native core has recorded of the iteration, which is over."""
        return _C.take_recording()

    def recorded(self, recording: Mapping[str, Any]) -> Recorded:
        """The Trace of the iteration that began last, of which ``take()`` gave ``recording``."""
        names = {**self._names_at_start, **self._participants.blocks()}
        return build_trace(recording, self._live_at_start, names, self._places, self._device)
