"""Without a compiler the device says what is missing."""

from __future__ import annotations

import shutil

import pytest

from tests import cpp_sources
from tests.device import sim


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="needs g\\+\\+ and ninja"):
        cpp_sources.load("teraio_sim_device", sim.SOURCES, sim.FLAGS)
