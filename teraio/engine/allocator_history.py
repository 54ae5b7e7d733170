"""Records of what CUDA's allocator does (``torch.cuda.memory._record_memory_history``).

With them on it takes Python's lock while it holds its own and asks a run for memory: another thread
that has Python's lock and frees a tensor would wait for ever. In: PyTorch's functions that turn
records on. Out: the same, refusing during a run. Must not know: plans, budgets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from teraio.engine.patches import Patches
from teraio.errors import ConfigurationError

_REFUSED = (
    "recording what CUDA's allocator does (torch.cuda.memory._record_memory_history, observers of "
    "its out-of-memory errors) can block a run of teraio's for ever. Turn it off before "
    "teraio.offload, by torch.cuda.memory._record_memory_history(None), and on again after "
    "teraio.restore(model)."
)
_TURN_ON = (
    "_cuda_record_memory_history",
    "_cuda_record_memory_history_legacy",
    "_cuda_attach_out_of_memory_observer",
)
_patches = Patches()


def run_begins() -> None:
    """Raises ConfigurationError where records are on; from now on they can't be turned on."""
    is_on = getattr(torch._C, "_cuda_isHistoryEnabled", None)
    if is_on is not None and is_on():
        raise ConfigurationError(_REFUSED)
    if not _patches:
        for name in _TURN_ON:
            if hasattr(torch._C, name):
                _patches.replace(torch._C, name, _only_off)


def run_ends() -> None:
    """They can be turned on again."""
    _patches.undo()


def _only_off(original: Callable[..., Any]) -> Callable[..., Any]:
    def turn(*args: Any, **kwargs: Any) -> Any:
        if (args[0] if args else kwargs.get("enabled")) not in (None, False):
            raise ConfigurationError(_REFUSED)
        return original(*args, **kwargs)

    return turn
