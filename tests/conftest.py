"""What has to be settled before any test module is imported.

In: the environment. Out: Triton interprets its kernels, unless a GPU is asked for; hypothesis tries
the same examples each time; collecting garbage is quick. Must not know: single tests.
"""

from __future__ import annotations

import gc
import os
import sys

import pytest
from hypothesis import settings

from tests.required import promised

# Triton looks when it is imported, and other libraries import it.
if promised("gpu"):
    # Equal bits need deterministic kernels. It is read when CUDA is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")
else:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A run judges a change, so it must not depend on luck. `pytest --hypothesis-profile=default` looks
# for what nobody has seen yet.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@pytest.fixture(scope="module", autouse=True)
def _what_is_imported_is_no_garbage() -> None:
    """Tests of runs collect garbage when they end: a third of their time went by in looking at the
    millions of objects that PyTorch and its operator samples are."""
    gc.collect()
    gc.freeze()
    if native := sys.modules.get("teraio._C"):  # they would count in the budgets of these tests
        assert not native.live_blocks(), "tests of another file have left storages alive"
