"""Tests that need what not every machine has: skipped there, unless its presence was promised.

In: $TERAIO_REQUIRE, such as ``gpu`` or ``chromium,kvikio``. Out: a skip or a failure. Must not
know: single tests.
"""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def promised(what: str) -> bool:
    return what in os.environ.get("TERAIO_REQUIRE", "")


def lacking(what: str, reason: str) -> NoReturn:
    """Skips the test that is running, or fails it where TERAIO_REQUIRE asks for ``what``."""
    if promised(what):
        pytest.fail(f"TERAIO_REQUIRE asks for {what}: {reason}")
    pytest.skip(reason)
