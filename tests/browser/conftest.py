"""The browser as a fixture.

In: an installed Chromium. Out: ``chromium``. Must not know: pages.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.chromium import Browser, browser, find_chromium
from tests.required import lacking


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Skips where Chromium is missing; with TERAIO_REQUIRE=chromium that is a failure."""
    program = find_chromium()
    if program is None:
        lacking("chromium", "chromium is not installed")
    with browser(program) as opened:
        yield opened
