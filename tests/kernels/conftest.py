"""A place to run kernels as a fixture."""

from __future__ import annotations

import pytest

from tests.kernels.places import Place, require


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.param
    require(found)
    return found
