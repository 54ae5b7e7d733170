"""Encodes pieces of storages and decodes them, and measures what that gains and takes.

In: values, a buffer, the number of a codec. Out: bytes in the buffer, and the values again; what
has been measured, as Encodings. Must not know: files, threads, which storage a piece is of.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from teraio.engine.compression import LOSSLESS, RAW
from teraio.kernels import CODECS, Packed, Piece, implementation, lossless_format, pack, unpack
from teraio.records import Encoding

# The native core knows codecs by number, and 0 is none.
NAMES = tuple(CODECS)
PAGE = 4096

# Where the codec takes much memory, one piece at a time.
_torch_codec = threading.Lock()

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
# What was measured of a codec and a dtype: "share", "encode" or "decode".
_Key = tuple[str, int, str]


class Coder:
    """Serves several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[_Key, tuple[float, float]] = {}
        self._earlier: dict[_Key, tuple[float, float]] = {}

    def encode(self, values: Tensor, buffer: Tensor, number: int) -> int:
        """Bytes that ``values`` took in ``buffer``, or 0 where they did not become fewer.

        ``values`` may change meanwhile. They take at most half of ``buffer``.
        """
        name, dtype = NAMES[number], _name_of(values.dtype)
        if not encodes(name, dtype):
            return 0
        try:
            with _turn(values.device), self._timed("encode", values, number):
                copy = _copied(values, buffer)
                piece = pack([copy], buffer[: len(buffer) // 2], codecs=name).pieces[0]
        except torch.OutOfMemoryError:
            return 0  # what goes as it is needs no memory
        encoded = 0 if piece.codec == RAW else piece.nbytes
        # What is left is moved in whole pages, and not at all where that gains nothing.
        moved = min(-(-encoded // PAGE) * PAGE, values.nbytes) if encoded else values.nbytes
        self._add(("share", number, dtype), moved, values.nbytes)
        return encoded

    def decode(self, values: Tensor, buffer: Tensor, number: int, nbytes: int) -> None:
        """Puts ``values`` back that took ``nbytes`` of ``buffer``."""
        piece = Piece(
            offset=0,
            nbytes=nbytes,
            codec=NAMES[number],
            dtype=_name_of(values.dtype),
            raw_nbytes=values.nbytes,
        )
        with _turn(values.device), self._timed("decode", values, number):
            unpack(Packed(pieces=(piece,), nbytes=nbytes), buffer, [values])

    def try_out(self, values: Tensor, buffer: Tensor, number: int) -> Encoding | None:
        """What comes of ``values``, there and back; None where they can't be encoded.

        Kernels are loaded and compiled first.
        """
        for _ in range(2):
            encoded, encode_s = _seconds(values.device, self.encode, values, buffer, number)
            if not encoded:
                return None
            _, decode_s = _seconds(values.device, self.decode, values, buffer, number, encoded)
        dtype = _name_of(values.dtype)
        with self._lock:
            self._sums["encode", number, dtype] = values.nbytes, encode_s
            self._sums["decode", number, dtype] = values.nbytes, decode_s
        return self.encoding(number, dtype)

    def begin_measuring(self) -> None:
        """From now on, what was measured until now counts only where nothing is measured later."""
        with self._lock:
            self._earlier |= self._sums
            self._sums = {}

    def encoding(self, number: int, dtype: str) -> Encoding | None:
        """What the codec makes of storages of a dtype; None where it was never measured."""
        keys = [(what, number, dtype) for what in ("share", "encode", "decode")]
        with self._lock:
            sums = [self._sums.get(key) or self._earlier.get(key) for key in keys]
        ratios = [pair[0] / pair[1] for pair in sums if pair is not None and pair[1] > 0]
        if len(ratios) < len(keys):
            return None
        share, encode_bytes_per_s, decode_bytes_per_s = ratios
        return Encoding(
            codec=NAMES[number],
            dtype=dtype,
            share=share,
            encode_bytes_per_s=encode_bytes_per_s,
            decode_bytes_per_s=decode_bytes_per_s,
        )

    def _add(self, key: _Key, above: float, below: float) -> None:
        with self._lock:
            known = self._sums.get(key, (0.0, 0.0))
            self._sums[key] = known[0] + above, known[1] + below

    @contextmanager
    def _timed(self, what: str, values: Tensor, number: int) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        # What is issued to a device is not done yet.
        if values.device.type == "cpu":
            seconds = time.perf_counter() - begin
            self._add((what, number, _name_of(values.dtype)), values.nbytes, seconds)


def encodes(name: str, dtype: str) -> bool:
    """Whether a codec has another form for values of a dtype ("float32")."""
    if name == LOSSLESS:
        return any(dtype == _name_of(known) for known in lossless_format.DTYPES)
    return dtype in CODECS[name].dtypes


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _seconds(
    device: torch.device,
    call: Callable[_Arguments, _Result],
    *args: _Arguments.args,
    **kwargs: _Arguments.kwargs,
) -> tuple[_Result, float]:
    begin = time.perf_counter()
    result = call(*args, **kwargs)
    torch.get_device_module(device).synchronize()
    return result, time.perf_counter() - begin


def _copied(values: Tensor, buffer: Tensor) -> Tensor:
    """``values`` in the second half of ``buffer``.

    An op may write to them while they are encoded, and encoders look at them twice: what they find
    the first time is where they write the second time.
    """
    copy = buffer[len(buffer) // 2 :][: values.nbytes].view(values.dtype)
    return copy.copy_(values)


def _turn(device: torch.device) -> AbstractContextManager[object]:
    return _torch_codec if implementation(device) == "torch" else nullcontext()
