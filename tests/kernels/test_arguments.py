"""What can't be packed is refused in one sentence, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from teraio.errors import ConfigurationError
from teraio.kernels import implementation, pack, staging_nbytes, unpack

CPU = torch.device("cpu")
VALUES = torch.arange(64, dtype=torch.float32)


def _room(nbytes: int = 4096) -> Tensor:
    return torch.full((nbytes,), 0xA5, dtype=torch.uint8)


PACKS: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "room": (r"staging has 4,096 bytes.* can take 8,000", lambda s: pack([torch.ones(2000)], s)),
    "dtype of staging": (
        r"torch.uint8; this one is float32 of shape \(1024,\)",
        lambda s: pack([VALUES], s.view(torch.float32)),
    ),
    "shape of staging": (r"contiguous 1-D tensor", lambda s: pack([VALUES], s[::2])),
    "address of staging": (r"no multiple of 16", lambda s: pack([VALUES], s[1:])),
    "device": (
        r"storages\[1\] is on meta and staging on cpu",
        lambda s: pack([VALUES, VALUES.to("meta")], s),
    ),
    "both on meta": (
        r"storages\[0\] is on meta",
        lambda s: pack([VALUES.to("meta")], s.to("meta")),
    ),
    "shape": (r"storages\[0\] of shape \(8, 8\)", lambda s: pack([VALUES.view(8, 8)], s)),
    "strides": (r"no contiguous 1-D tensor", lambda s: pack([VALUES[::2]], s)),
    "conjugate": (
        r"no contiguous 1-D tensor",
        lambda s: pack([torch.ones(4, dtype=torch.complex64).conj()], s),
    ),
    "overlap": (r"storages\[1\] lies within the staging", lambda s: pack([VALUES, s[64:80]], s)),
    "alignment": (r"alignment=24 is no power of two", lambda s: pack([VALUES], s, alignment=24)),
    "small alignment": (r"alignment=8 is no", lambda s: pack([VALUES], s, alignment=8)),
    "codec": (r"codec 'zip' is unknown; there are raw", lambda s: pack([VALUES], s, codecs="zip")),
    "codec for dtype": (
        r"'fp8' encodes float32, .* storages\[0\] is int64",
        lambda s: pack([VALUES.long()], s, codecs="fp8"),
    ),
    "number of codecs": (
        r"2 codecs for 1 storages",
        lambda s: pack([VALUES], s, codecs=["raw", "raw"]),
    ),
    "implementation": (
        r"implementation='cuda' is unknown",
        lambda s: pack([VALUES], s, implementation="cuda"),
    ),
}


@pytest.mark.parametrize("case", PACKS)
def test_packing_refuses(case: str) -> None:
    message, call = PACKS[case]
    staging = _room()
    with pytest.raises(ConfigurationError, match=message):
        call(staging)
    assert staging.eq(0xA5).all()


UNPACKS: dict[str, tuple[str, Callable[[Any, Tensor], Any]]] = {
    "number": (r"2 pieces were packed, but 1 storages", lambda p, s: unpack(p, s, [VALUES])),
    "size": (
        r"storages\[1\] has 128 bytes of float32, but 256 bytes",
        lambda p, s: unpack(p, s, [VALUES.clone(), VALUES[:32].clone()]),
    ),
    "dtype": (
        r"storages\[1\] has 256 bytes of int32, but 256 bytes of float32",
        lambda p, s: unpack(p, s, [VALUES.clone(), VALUES.int()]),
    ),
    "overlap": (
        r"storages\[0\] and storages\[1\] share memory from 0x",
        lambda p, s: unpack(p, s, [VALUES, VALUES]),
    ),
    "overlap with staging": (
        r"storages\[1\] lies within the staging buffer",
        lambda p, s: unpack(p, s, [VALUES.clone(), s[1024:1280].view(torch.float32)]),
    ),
    "another buffer": (
        r"piece 0 \(raw, 256 bytes at 0\) does not lie in a staging buffer of 160 bytes",
        lambda p, s: unpack(p, s[:160], [VALUES.clone(), VALUES.clone()]),
    ),
    "a changed record": (
        r"piece 0 \(raw, 256 bytes at 8\) does not lie",
        lambda p, s: unpack(
            replace(p, pieces=(replace(p.pieces[0], offset=8), p.pieces[1])),
            s,
            [VALUES.clone(), VALUES.clone()],
        ),
    ),
}


@pytest.mark.parametrize("case", UNPACKS)
def test_unpacking_refuses(case: str) -> None:
    message, call = UNPACKS[case]
    staging = _room()
    packed = pack([VALUES, VALUES], staging, codecs=["raw", "bf16"])
    before = VALUES.clone()
    with pytest.raises(ConfigurationError, match=message):
        call(packed, staging)
    assert torch.equal(VALUES, before)


def test_plain_torch_serves_the_cpu() -> None:
    assert implementation(CPU) == "torch"
    assert implementation(CPU, "torch") == "torch"


def test_triton_on_the_cpu_needs_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ConfigurationError, match="TRITON_INTERPRET=1"):
        implementation(CPU, "triton")


def test_the_interpreter_does_not_serve_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would follow addresses of the GPU in host memory."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ConfigurationError, match="can't reach memory of a GPU"):
        implementation(torch.device("cuda"), "triton")


def test_there_are_no_kernels_for_other_devices() -> None:
    pytest.importorskip("triton")
    with pytest.raises(ConfigurationError, match="no kernels for meta"):
        implementation(torch.device("meta"), "triton")


def test_the_needed_room_is_that_of_the_raw_layout() -> None:
    storages = [torch.ones(3), torch.ones(10), torch.ones(0), torch.ones(1)]
    assert staging_nbytes(storages) == 16 + 48 + 0 + 16
    assert staging_nbytes(storages, alignment=64) == 64 + 64 + 0 + 64
    assert staging_nbytes([]) == 0
