"""What has to be settled before any test module is imported.

In: the environment. Out: Triton interprets its kernels, unless a GPU is asked for. Must not know:
single tests.
"""

from __future__ import annotations

import os

from tests.required import promised

# Triton looks when it is imported, and other libraries import it.
if not promised("gpu"):
    os.environ.setdefault("TRITON_INTERPRET", "1")
