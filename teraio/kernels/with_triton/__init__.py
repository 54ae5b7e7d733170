"""Packing by Triton's kernels: one launch for any number of storages.

In: checked storages and offsets. Out: filled buffers. Must not know: the twins in plain torch.

Importing this loads Triton. The kernels take storages as rows of a table, see ``tables``.
"""

from teraio.kernels.with_triton import copying, lossless, lossy

__all__ = ["copying", "lossless", "lossy"]
