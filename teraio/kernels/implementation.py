"""Which implementation serves a device: Triton's kernels, or their twins in plain torch.

In: a device. Out: ``"triton"`` or ``"torch"``. Must not know: what is packed.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os

import torch

from teraio.errors import ConfigurationError

_log = logging.getLogger("teraio")
NAMES = ("torch", "triton")


def implementation(device: torch.device, wanted: str | None = None) -> str:
    """``wanted`` if ``device`` can run it; without a wish, Triton on CUDA devices where it is
    installed.

    ``"triton"`` on the CPU means Triton's interpreter, which is slow and there for tests; it needs
    ``TRITON_INTERPRET=1`` in the environment before the kernels are first used.
    Raises ConfigurationError for any other wish that can't be met.
    """
    if wanted is None:
        return _default(device.type)
    if wanted not in NAMES:
        raise ConfigurationError(f"implementation={wanted!r} is unknown; pass one of {NAMES}.")
    if wanted == "triton":
        _check_triton(device)
    return wanted


def interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter, on tensors in host memory."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes")


@functools.cache
def _default(device_type: str) -> str:
    if device_type != "cuda" or interpreting():
        return "torch"
    if not _installed():
        _log.warning(
            "Triton is not installed: storages on the GPU are packed by plain torch, with one copy "
            "each. pip install 'teraio[gpu]' brings it."
        )
        return "torch"
    return "triton"


def _check_triton(device: torch.device) -> None:
    if not _installed():
        raise ConfigurationError(
            "implementation='triton': Triton is not installed; pip install 'teraio[gpu]'."
        )
    if device.type == "cuda":
        if interpreting():
            raise ConfigurationError(
                "implementation='triton': the interpreter can't reach memory of a GPU; unset "
                "TRITON_INTERPRET, or pass 'torch'."
            )
        return
    if device.type != "cpu":
        raise ConfigurationError(
            f"implementation='triton': there are no kernels for {device}; pass 'torch'."
        )
    if not interpreting():
        raise ConfigurationError(
            "implementation='triton': tensors on the CPU need Triton's interpreter; start with "
            "TRITON_INTERPRET=1, or pass 'torch'."
        )


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
