"""What all integration tests share: a spill folder on a real file system, and one thread.

In: $TERAIO_SSD or the build folder. Out: fixtures. Must not know: single tests.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from teraio import api

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # More gain nothing for models this small, and where cores are shared OpenMP's barriers spin.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_run_left_over(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails in the middle of a run must not make the next one fail as well."""
    yield
    runtime = api._runtime
    if "engine" not in request.fixturenames and runtime is not None:
        runtime.close()
    gc.collect()


@pytest.fixture(scope="session")
def spill() -> Iterator[str]:
    """One folder for spill files; not under /tmp, which is a tmpfs on many machines."""
    base = Path(os.environ.get("TERAIO_SSD", ROOT / "build" / "spill"))
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base) as folder:
        yield folder
