"""Ways to a tensor's raw memory that are no ops: ``numpy()``, ``data_ptr()``, writing a checkpoint.

While a storage may be away, these must bring it in first and keep it there as long as the memory
is in use. In: PyTorch's methods. Out: the same methods, safe. Must not know: plans, budgets.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType, ModuleType
from typing import Any

import torch

import teraio._C as _C
from teraio.engine.patches import Patches
from teraio.engine.safetensors_files import write_by_tensor
from teraio.engine.when_loaded import WhenLoaded
from teraio.errors import BudgetError

_patches = Patches()
# What opens a window on memory is watched between runs as well: the next one must not move it.
_windows = Patches()
_awaited: list[WhenLoaded] = []


def install() -> None:
    """Puts the wrappers in place; does nothing when they are."""
    if _patches:
        return
    if not _windows:
        _windows.replace(torch.Tensor, "numpy", _shares_memory)
        _windows.replace(torch.UntypedStorage, "__getitem__", _gives_byte_or_slice)
        for function in (torch._C._to_dlpack, torch._C._to_dlpack_versioned):
            _windows.replace_everywhere(function, _gives_away)
    _patches.replace(torch.Tensor, "tolist", _held)
    # They call a function of Python's for each element of tensors of one size.
    for name, operands in (("apply_", 0), ("map_", 1), ("map2_", 2)):
        _patches.replace(torch.Tensor, name, functools.partial(_held, written=True))
        for operand in range(1, operands + 1):
            _patches.replace(torch.Tensor, name, functools.partial(_held, argument=operand))
    _patches.replace(torch.Tensor, "data_ptr", functools.partial(_gives_address, lent=True))
    # Checkpoints ask a storage for its address to tell which tensors share it.
    _patches.replace(
        torch.UntypedStorage, "data_ptr", functools.partial(_gives_address, lent=False)
    )
    _patches.replace(torch.UntypedStorage, "__setitem__", functools.partial(_held, written=True))
    for name in ("is_shared", "_write_file"):
        _patches.replace(torch.UntypedStorage, name, _held)
    # From then on its memory is another one, which teraio may not own.
    for name in ("resize_", "_share_fd_cpu_", "_share_filename_cpu_", "_share_cuda_"):
        _patches.replace(torch.UntypedStorage, name, functools.partial(_held, written=True))
    for name in ("_byteswap", "_set_from_file", "fill_"):
        _patches.replace(torch.UntypedStorage, name, functools.partial(_held, written=True))
    # Copies from its argument (deep copies of tensors do): looks at both addresses first.
    _patches.replace(torch.UntypedStorage, "copy_", functools.partial(_held, written=True))
    _patches.replace(torch.UntypedStorage, "copy_", functools.partial(_held, argument=1))
    # One storage at a time goes into a checkpoint file: write_record(self, name, data, ...).
    _patches.replace(
        torch._C.PyTorchFileWriter, "write_record", functools.partial(_held, argument=2)
    )
    if (safetensors := sys.modules.get("safetensors.torch")) is not None:
        _watch_safetensors(safetensors)
    else:
        _awaited.append(WhenLoaded("safetensors.torch", _safetensors_loads))
    _patches.replace(torch.autograd.profiler.profile, "_prepare_trace", _may_look_at_addresses)
    _patches.replace(torch.profiler.ExecutionTraceObserver, "start", _looks_at_addresses)


def uninstall() -> None:
    """Puts the original methods back, but for those that open windows."""
    while _awaited:
        _awaited.pop().give_up()
    _patches.undo()


def _watch_safetensors(module: ModuleType) -> None:
    if hasattr(module, "_to_ndarray"):
        _patches.replace(module, "_to_ndarray", _window_on_tensor)
    write_by_tensor(module, _patches)


@contextmanager
def _safetensors_loads(module: ModuleType) -> Iterator[None]:
    yield
    _watch_safetensors(module)


def _held(
    original: Callable[..., Any], *, written: bool = False, argument: int = 0
) -> Callable[..., Any]:
    """``original``, with the tensor or storage among its positional arguments in memory."""

    def method(*args: Any, **kwargs: Any) -> Any:
        target = args[argument] if argument < len(args) else None
        if not isinstance(target, torch.Tensor | torch.UntypedStorage):
            return original(*args, **kwargs)
        hold = _C.Hold(target, written)
        try:
            return original(*args, **kwargs)
        finally:
            hold.release()

    return method


def _shares_memory(original: Callable[..., Any]) -> Callable[..., Any]:
    """The result is a window on the tensor's memory: the memory stays as long as the window is
    open."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        hold = _C.Hold(self, True)
        try:
            window = original(self, *args, **kwargs)
        except BaseException:
            hold.release()
            raise
        weakref.finalize(window, hold.release).atexit = False
        return window

    return method


def _gives_byte_or_slice(original: Callable[..., Any]) -> Callable[..., Any]:
    """A slice is another storage, at the address that the memory had as the slice was made."""
    byte, part = _held(original), _shares_memory(original)

    def method(self: Any, index: Any) -> Any:
        return part(self, index) if isinstance(index, slice) else byte(self, index)

    return method


def _gives_away(original: Callable[..., Any]) -> Callable[..., Any]:
    """The result goes to another library, which drops a tensor when it is done with the memory."""

    def function(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return original(_C.window(tensor), *args, **kwargs)

    return function


def _gives_address(original: Callable[..., Any], *, lent: bool) -> Callable[..., Any]:
    """An address says which storage it is, too, so a storage keeps the one that was given out.

    One that is ``lent`` is there to be read and written: the data stays until the iteration ends.
    """

    def method(self: Any) -> Any:
        # The launcher of a graph's kernels gets addresses of what is pinned for the graph.
        if self.device.type != "cpu" and _C.in_graph():
            return original(self)
        _C.publish(self, lent and not _borrowing.get() and _caller() not in _TELL_APART)
        hold = _C.Hold(self, False)
        try:
            return original(self)
        finally:
            hold.release()

    return method


# PyTorch's modules that ask tensors for their addresses only to tell them apart.
_TELL_APART = frozenset(
    (
        "torch.autograd.graph",
        "torch.distributed._state_dict_utils",
        "torch.distributed.checkpoint._state_dict_stager",
        "torch.distributed.fsdp._runtime_utils",
        "torch.nn.modules.rnn",
    )
)
_WRAPPERS = frozenset((__name__, "torch._compile", "torch._dynamo.eval_frame"))


def _caller() -> str:
    """The module of the code that called a replaced function."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name not in _WRAPPERS:
            return name
        frame = frame.f_back
    return ""


def _may_look_at_addresses(original: Callable[..., Any]) -> Callable[..., Any]:
    """A profile notes addresses in C++ and without an op: with stacks those of all parameters, with
    shapes those of the tensors that an op gets, before the op brings them in."""

    def prepare(self: Any) -> Any:
        if self.with_stack or self.record_shapes:
            _C.guard_quietly()
        return original(self)

    return prepare


def _looks_at_addresses(original: Callable[..., Any]) -> Callable[..., Any]:
    """So does an observer of executions."""

    def start(self: Any) -> Any:
        _C.guard_quietly()
        return original(self)

    return start


# Whoever calls data_ptr() holds the data by other means.
_borrowing: ContextVar[bool] = ContextVar("_borrowing", default=False)


def _window_on_tensor(original: Callable[..., Any]) -> Callable[..., Any]:
    """``original`` makes an array of a tensor's memory: it stays as long as the array does."""

    def function(tensor: Any) -> Any:
        try:
            hold = _C.Hold(tensor, False)
        except BudgetError as error:
            raise BudgetError(
                "safetensors needs all tensors in memory at once here. Pass save_file() contiguous "
                "tensors that share no memory, which it writes one after the other, or use "
                f"torch.save. In detail: {error}"
            ) from None
        token = _borrowing.set(True)
        try:
            result = original(tensor)
            weakref.finalize(result[0], hold.release).atexit = False
            return result
        except BaseException:
            hold.release()
            raise
        finally:
            _borrowing.reset(token)

    return function
