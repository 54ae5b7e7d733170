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
import threading
import time
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

import teraio._C as _C
from teraio.engine.compression import LOSSLESS, RAW, Compression
from teraio.engine.kvikio_path import KvikioPath
from teraio.errors import ConfigurationError
from teraio.kernels import CODECS, Packed, Piece, implementation, lossless_format, pack, unpack
from teraio.records import Trace
from teraio.sizes import format_size

log = logging.getLogger("teraio")

# The native core knows codecs by number, and 0 is none.
NAMES = tuple(CODECS)
_PAGE = 4096
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

# Where the codec takes much memory, one piece at a time.
_torch_codec = threading.Lock()


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
        self._memory = torch.empty(threads * nbytes + _PAGE, dtype=torch.uint8, device=device)
        first = -(-self._memory.data_ptr() // _PAGE) * _PAGE
        self.reserved_bytes = workspace_nbytes(how, self._memory.device, piece, threads)
        if self._memory.device.type == "cpu":  # a device's allocator counts them itself
            self.reserved_bytes += self._memory.nbytes
        if self.reserved_bytes > budget_bytes // 2:
            raise ConfigurationError(
                f"compress takes {format_size(self.reserved_bytes)} to encode in, which is more "
                f"than half of a budget of {format_size(budget_bytes)}; raise memory_budget, or "
                "leave compress out."
            )
        self._try_out(nbytes, piece)
        self._native = _C.Codec(_encode, _decode)
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

    def close(self) -> None:
        """Gives the buffers back."""
        atexit.unregister(self._native.close)
        self._native.close()
        del self._memory

    def _try_out(self, nbytes: int, piece: int) -> None:
        """Loads and compiles what the I/O threads will need, and says how fast it is."""
        device = self._memory.device
        buffer = self._memory[-self._memory.data_ptr() % _PAGE :][:nbytes]
        for name in self.compression.codecs:
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                values = self._memory[-piece:].view(dtype)
                values.copy_(torch.linspace(-1, 1, len(values), dtype=dtype))
                _seconds_both_ways(values, buffer, NAMES.index(name))
            seconds = _seconds_both_ways(values, buffer, NAMES.index(name))
            log.info(
                "compress: %s encodes and decodes at %.3g GB/s on %s; plans take storages as if "
                "they moved as they are",
                name,
                piece / seconds / 1e9,
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
    return max(_LEAST_PIECE_BYTES, min(_LARGEST_PIECE_BYTES[how], share // _PAGE * _PAGE))


def workspace_nbytes(how: str, device: torch.device, piece: int, threads: int) -> int:
    """The most that encoding and decoding take beside the buffers."""
    if how == "triton":
        return _TRITON_THREAD_BYTES * threads
    # A device's allocator keeps what it gave to a stream for that stream.
    streams = 1 if device.type == "cpu" else 2
    return streams * _TORCH_PIECES * piece


def _seconds_both_ways(values: Tensor, buffer: Tensor, number: int) -> float:
    begin = time.perf_counter()
    encoded = _encode(values, buffer, number)
    if encoded:
        _decode(values, buffer, number, encoded)
    torch.get_device_module(values.device).synchronize()
    return time.perf_counter() - begin


def _encode(values: Tensor, buffer: Tensor, number: int) -> int:
    """Bytes that ``values`` took in ``buffer``, or 0 where they did not become fewer."""
    name = NAMES[number]
    if not _encodes(name, values.dtype):
        return 0
    try:
        with _turn(values.device):
            copy = _copied(values, buffer)
            piece = pack([copy], buffer[: len(buffer) // 2], codecs=name).pieces[0]
    except torch.OutOfMemoryError:
        return 0  # what goes as it is needs no memory
    return 0 if piece.codec == RAW else piece.nbytes


def _copied(values: Tensor, buffer: Tensor) -> Tensor:
    """``values`` in the second half of ``buffer``.

    An op may write to them while they are encoded, and encoders look at them twice: what they find
    the first time is where they write the second time.
    """
    copy = buffer[len(buffer) // 2 :][: values.nbytes].view(values.dtype)
    return copy.copy_(values)


def _decode(values: Tensor, buffer: Tensor, number: int, nbytes: int) -> None:
    piece = Piece(
        offset=0,
        nbytes=nbytes,
        codec=NAMES[number],
        dtype=str(values.dtype).removeprefix("torch."),
        raw_nbytes=values.nbytes,
    )
    with _turn(values.device):
        unpack(Packed(pieces=(piece,), nbytes=nbytes), buffer, [values])


def _encodes(name: str, dtype: torch.dtype) -> bool:
    if name == LOSSLESS:
        return dtype in lossless_format.DTYPES
    return str(dtype).removeprefix("torch.") in CODECS[name].dtypes


def _turn(device: torch.device) -> AbstractContextManager[object]:
    return _torch_codec if implementation(device) == "torch" else nullcontext()
