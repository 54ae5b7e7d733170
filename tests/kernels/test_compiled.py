"""Kernels compile for GPUs that are not here: to vectors of 16 bytes, with hints, without spilling.

Triton's interpreter accepts what its compiler refuses, and says nothing of instructions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=["80", "90"])
def kernels(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """For one compute capability."""
    pytest.importorskip("triton")
    cache = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compiling", request.param],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_all_launches_compile(kernels: dict[str, Any]) -> None:
    """The copy; three kernels of the lossless codec for two dtypes; two of each other codec's."""
    assert len(kernels) == 1 + 3 * 2 + 2 * (1 + 3 * 3)


def test_floating_point_is_exact_or_rounded_as_by_the_twins(kernels: dict[str, Any]) -> None:
    assert {name: k["rounding"] for name, k in kernels.items() if k["rounding"]} == {}


def test_copies_and_the_lossless_codec_spill_nothing(kernels: dict[str, Any]) -> None:
    spilled = {name: kernel["spilled"] for name, kernel in kernels.items()}
    exact = {name: n for name, n in spilled.items() if "_tiles" in name or "_blocks" in name}
    assert len(exact) == 7
    assert set(exact.values()) == {0}


def test_copies_use_vectors_of_16_bytes_and_pass_the_caches(kernels: dict[str, Any]) -> None:
    """A thread has its eight vectors of a tile in flight before it stores the first."""
    memory = kernels["copy_tiles"]["memory"]
    vectors = {name: count for name, count in memory.items() if name.endswith(".v2.b64")}
    assert sum(n for name, n in vectors.items() if "ld." in name and "evict_first" in name) == 8
    assert sum(n for name, n in vectors.items() if "st." in name and ".cs" in name) == 8


@pytest.mark.parametrize("kernel", ["describe", "encode", "decode"])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_whole_blocks_are_read_and_written_by_vectors(
    kernels: dict[str, Any], kernel: str, dtype: str, size: int
) -> None:
    """1024 values of one block, 32 lanes, 16 bytes each."""
    memory = kernels[f"{kernel}_blocks {dtype}"]["memory"]
    side = "st." if kernel == "decode" else "ld."
    vectors = sum(n for name, n in memory.items() if side in name and name.endswith("v4.b32"))
    assert vectors >= 1024 * size // 32 // 16
