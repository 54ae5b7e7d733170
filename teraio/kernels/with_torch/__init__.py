"""Packing in plain torch: the reference for Triton's kernels, and what serves the CPU.

In: checked storages and offsets. Out: filled buffers. Must not know: Triton.
"""

from teraio.kernels.with_torch import copying, lossless, lossy

__all__ = ["copying", "lossless", "lossy"]
