"""Kernels are interpreted, unless the environment asks for a GPU or says otherwise."""

from __future__ import annotations

import os

import pytest

from tests.kernels.places import Place, require, wants_gpu

if not wants_gpu():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.param
    require(found)
    return found
