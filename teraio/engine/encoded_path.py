"""Storages encoded on their way to the spill files, and decoded on their way back.

In: which codec for which storages, an open spill space. Out: a codec for its threads, with a
staging buffer for each in the memory of the device. Must not know: plans, extents, when what
moves. The native side is in ``csrc/encoding.h``.

A piece of a storage is encoded into the buffer of the I/O thread that moves it, by Triton on a GPU
and by plain torch elsewhere, and the buffer goes to the file. A piece that does not become smaller
by a page goes as it is.
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

import teraio._C as _C
from teraio.engine.coder import NAMES, PAGE, Coder
from teraio.engine.compression import Compression
from teraio.engine.kvikio_path import KvikioPath
from teraio.errors import ConfigurationError
from teraio.kernels import implementation
from teraio.records import Trace
from teraio.sizes import format_size

log = logging.getLogger("teraio")

# All buffers together take this part of the budget, as far as pieces are within these sizes: larger
# ones need fewer calls of Python, smaller ones less memory. Plain torch is no faster with more.
_BUFFERS_SHARE = 1 / 64
_LEAST_PIECE_BYTES = 64 << 10
_LARGEST_PIECE_BYTES = {"triton": 32 << 20, "torch": 128 << 10}
# What encoding and decoding take beside their buffers. Plain torch has temporary tensors, so many
# times as large as a piece in all, in one thread at a time.
_TORCH_PIECES = 30
# Tables of the kernels, in small segments of the allocator.
_TRITON_THREAD_BYTES = 4 << 20


class EncodedPath:
    """The codec of one run. Close it after the spill space is closed.

    ``reserved_bytes`` is what it takes of the budget and nobody else counts.
    """

    def __init__(
        self,
        compression: Compression,
        space: _C.SpillSpace,
        *,
        device: str,
        budget_bytes: int,
        kvikio: KvikioPath | None = None,
    ) -> None:
        """Sets it up for the threads of ``space``.

        Buffers that go by GPUDirect Storage through ``kvikio`` are registered with cuFile once.
        Raises ConfigurationError for a budget of which it would take the most.
        """
        self.compression = compression
        threads = space.encoding_threads()
        how = implementation(torch.device(device))
        piece = piece_nbytes(how, budget_bytes, threads)
        nbytes = 2 * piece
        self._memory = torch.empty(threads * nbytes + PAGE, dtype=torch.uint8, device=device)
        first = -(-self._memory.data_ptr() // PAGE) * PAGE
        self.reserved_bytes = workspace_nbytes(how, self._memory.device, piece, threads)
        if self._memory.device.type == "cpu":  # a device's allocator counts them itself
            self.reserved_bytes += self._memory.nbytes
        if self.reserved_bytes > budget_bytes // 2:
            raise ConfigurationError(
                f"compress takes {format_size(self.reserved_bytes)} to encode in, which is more "
                f"than half of a budget of {format_size(budget_bytes)}; raise memory_budget, or "
                "leave compress out."
            )
        self._told_missing: list[str] = []
        self._coder = Coder()
        self._try_out(nbytes, piece)
        self._native = _C.Codec(self._coder.encode, self._coder.decode)
        space.set_codec(self._native, [first + i * nbytes for i in range(threads)], nbytes, piece)
        # Threads that ask for Python when it ends would never return.
        atexit.register(self._native.close)
        if kvikio is not None:
            self._register(kvikio)

    @property
    def default(self) -> int:
        """The number of the codec for storages that no trace knows yet."""
        return NAMES.index(self.compression.default)

    def numbers(self, trace: Trace) -> list[int]:
        """The numbers of the codecs for the storages of a trace."""
        return [NAMES.index(self.compression.codec_of(storage)) for storage in trace.storages]

    def begin_measuring(self) -> None:
        """What codecs gain is that of the iteration which begins, as far as it shows."""
        self._coder.begin_measuring()

    def encoded(self, trace: Trace, dtypes: Sequence[str | None]) -> Trace:
        """``trace`` with what has been measured of the codecs of its storages.

        ``dtypes`` are theirs; None where a storage has several, or none that is known.
        """
        self._tell_missing(trace)
        kinds = list(zip(self.numbers(trace), dtypes, strict=True))
        # Asked once for each, as I/O threads go on coding.
        found = {
            (number, dtype): self._coder.encoding(number, dtype)
            for number, dtype in dict.fromkeys(kinds)
            if number and dtype
        }
        known = {kind: encoding for kind, encoding in found.items() if encoding is not None}
        places: dict[tuple[int, str | None], int] = {kind: i for i, kind in enumerate(known)}
        storages = tuple(
            replace(storage, encoding=places.get(kind))
            for storage, kind in zip(trace.storages, kinds, strict=True)
        )
        return replace(trace, storages=storages, encodings=tuple(known.values()))

    def _tell_missing(self, trace: Trace) -> None:
        # No earlier: it is the first steps that show what states there are.
        missing, there = self.compression.missing(trace.storages)
        if missing and missing != self._told_missing:
            log.warning(
                "compress names %s, and no storage of the training is such a state; there are %s.",
                ", ".join(missing),
                ", ".join(there) or "none",
            )
        self._told_missing = missing

    def close(self) -> None:
        """Gives the buffers back."""
        atexit.unregister(self._native.close)
        self._native.close()
        del self._memory

    def _try_out(self, nbytes: int, piece: int) -> None:
        """Loads and compiles what the I/O threads will need, and measures it."""
        device = self._memory.device
        buffer = self._memory[-self._memory.data_ptr() % PAGE :][:nbytes]
        seed = torch.Generator().manual_seed(0)
        for name in self.compression.codecs:
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                values = self._memory[-piece:].view(dtype)
                # Without a sign, as one codec has none.
                values.copy_(torch.randn(len(values), generator=seed).abs())
                found = self._coder.try_out(values, buffer, NAMES.index(name))
                if found is not None:
                    log.info(
                        "compress: %s makes %.2f of %s, at %.3g GB/s, and back at %.3g GB/s on %s",
                        name,
                        found.share,
                        found.dtype,
                        found.encode_bytes_per_s / 1e9,
                        found.decode_bytes_per_s / 1e9,
                        device,
                    )

    def _register(self, kvikio: KvikioPath) -> None:
        memory = self._memory
        try:
            kvikio.register(memory.data_ptr(), memory.nbytes, memory.device.index)
        except RuntimeError as error:
            log.warning(
                "cuFile did not register the staging buffers (%s): what is encoded moves slower "
                "than it could. See cufile.log.",
                error,
            )


def piece_nbytes(how: str, budget_bytes: int, threads: int) -> int:
    """The most that is encoded in one piece, whole pages; a buffer has twice as much.

    ``how`` is an implementation of ``teraio.kernels``.
    """
    share = int(budget_bytes * _BUFFERS_SHARE) // (2 * threads)
    return max(_LEAST_PIECE_BYTES, min(_LARGEST_PIECE_BYTES[how], share // PAGE * PAGE))


def workspace_nbytes(how: str, device: torch.device, piece: int, threads: int) -> int:
    """The most that encoding and decoding take beside the buffers."""
    if how == "triton":
        return _TRITON_THREAD_BYTES * threads
    # A device's allocator keeps what it gave to a stream for that stream.
    streams = 1 if device.type == "cpu" else 2
    return streams * _TORCH_PIECES * piece
