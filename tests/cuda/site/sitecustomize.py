"""Processes in which CUDA is the double get its kernels as they start; Python looks for this file.

In: what ``tests.cuda.double`` has put into the environment. Out: kernels for CUDA's ops.
"""

import os

if "TERAIO_CUDA_DOUBLE" in os.environ:
    from tests.cuda import double

    double.load_kernels()
