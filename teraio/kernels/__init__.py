"""Many storages into one staging buffer and back, as they are or encoded.

In: 1-D tensors, a buffer of bytes on the same device, the name of a codec for each. Out: a
``Packed`` record of where each storage lies, and the storages again. Must not know: plans, tiers,
files.

A codec other than ``"raw"`` is used only where the caller names it; ``"lossless"`` gives back the
same bits, the others an approximation whose bound ``CODECS`` states. The layouts: docs/kernels.md.
"""

from teraio.kernels.codecs import CODECS, Codec
from teraio.kernels.implementation import implementation
from teraio.kernels.layout import Packed, Piece
from teraio.kernels.packing import pack, staging_nbytes, unpack

__all__ = [
    "CODECS",
    "Codec",
    "Packed",
    "Piece",
    "implementation",
    "pack",
    "staging_nbytes",
    "unpack",
]
