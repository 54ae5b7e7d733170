"""Ops on whole lists of tensors, run in parts where their operands together would not fit.

``_foreach_*`` and ``_fused_*`` name all parameters at once, so all of them would have to be
resident at once. They work element by element over the list, so parts of the list give the same
numbers. An optimizer that takes its step by a dozen such ops would go through all parameters and
states a dozen times, and keep whole lists between two of them; so it gets its lists in parts too,
and is done with one before it begins the next. That is for PyTorch's own optimizers that work
tensor by tensor: others may compute one figure for all of a group, and get it whole.

In: a limit in bytes. Out: patched functions of the torch module and of ``Optimizer``. Must not
know: plans, budgets.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch.jit._builtins import _find_builtin, _get_builtin_table, _register_builtin
from torch.optim import Optimizer

from teraio.engine.when_loaded import WhenLoaded

_PREFIXES = ("_foreach_", "_fused_adam", "_fused_sgd", "_fused_adagrad", "_amp_foreach_")
# Where PyTorch's optimizers get their lists from: a group for each device and dtype.
_GROUPING = "_group_tensors_by_device_and_dtype"
# The modules of those that work tensor by tensor: what they compute of a part is what they compute
# of it within the group. Adafactor puts groups together again.
_TENSOR_BY_TENSOR = frozenset(
    f"torch.optim.{name}"
    for name in (
        *("adadelta", "adagrad", "adam", "adamax", "adamw", "asgd"),
        *("nadam", "radam", "rmsprop", "rprop", "sgd"),
    )
)
# A list op, or an optimizer in one group, gets at most this part of the memory at once.
_MEMORY_SHARE = 8


class _Patch(NamedTuple):
    owner: Any
    name: str
    original: Any
    replacement: Any

    def set(self) -> None:
        setattr(self.owner, self.name, self.replacement)

    def undo(self) -> None:
        setattr(self.owner, self.name, self.original)


_patches: list[_Patch] = []
_awaited: list[WhenLoaded] = []


def limit_within(memory_bytes: int) -> int:
    """The limit for a program that may take so much memory."""
    return memory_bytes // _MEMORY_SHARE


def install(limit_bytes: int) -> None:
    """From now on, no list op has more than ``limit_bytes`` of operands at once (or one list
    element), and no optimizer of PyTorch's that works tensor by tensor more in one group."""
    uninstall()
    for name in dir(torch):
        if name.startswith(_PREFIXES):
            op = getattr(torch, name)
            _patches.append(_Patch(torch, name, op, _in_parts(op, limit_bytes)))
    if _GROUPING in vars(Optimizer):
        group = vars(Optimizer)[_GROUPING]
        parts = staticmethod(_in_small_groups(group.__func__, limit_bytes))
        _patches.append(_Patch(Optimizer, _GROUPING, group, parts))
    for patch in _patches:
        patch.set()
        # TorchScript knows PyTorch's functions by what objects they are.
        op_name = _find_builtin(patch.original)  # type: ignore[no-untyped-call]
        if op_name is not None:
            _register_builtin(patch.replacement, op_name)
    if "torch._dynamo" not in sys.modules:
        _awaited.append(WhenLoaded("torch._dynamo", _with_originals))


def uninstall() -> None:
    """Puts the original functions back."""
    while _awaited:
        _awaited.pop().give_up()
    while _patches:
        patch = _patches.pop()
        patch.undo()
        _get_builtin_table().pop(id(patch.replacement), None)  # type: ignore[no-untyped-call]


@contextmanager
def _with_originals(_dynamo: ModuleType) -> Iterator[None]:
    # What dynamo knows of torch's functions it keeps by the objects that it found as it was loaded.
    for patch in _patches:
        patch.undo()
    try:
        yield
    finally:
        for patch in _patches:  # none if the run has ended meanwhile
            patch.set()


def _in_parts(op: Callable[..., Any], limit_bytes: int) -> Callable[..., Any]:
    @functools.wraps(op)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*args, **kwargs)
        values = [value for value in (*args, *kwargs.values()) if _has_elements(value)]
        lists = [value for value in values if _is_tensor_list(value)]
        count = len(lists[0]) if lists else 0
        # What doesn't run along with the first list (scalars do) means something else, or is a
        # mistake, which the op itself is to find before it changes a tensor.
        if count < 2 or any(len(value) != count for value in values) or not _are_tensors(lists):
            return op(*args, **kwargs)
        sizes = [sum(_nbytes(value[i]) for value in lists) for i in range(count)]
        if sum(sizes) <= limit_bytes or not _are_alike(lists):
            return op(*args, **kwargs)
        results = [
            op(
                *(_part(value, count, part) for value in args),
                **{key: _part(value, count, part) for key, value in kwargs.items()},
            )
            for part in _parts(sizes, limit_bytes)
        ]
        if results[0] is None:
            return None
        return type(results[0])(tensor for result in results for tensor in result)

    return run


class _OneOfSeveral(tuple[Any, ...]):
    """The key of a group that is a part of another: device and dtype, but equal to itself only.

    Optimizers go over all groups, and look none up.
    """

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other


def _in_small_groups(group: Callable[..., Any], limit_bytes: int) -> Callable[..., Any]:
    @functools.wraps(group)
    def run(tensor_lists: Any, *args: Any, **kwargs: Any) -> Any:
        groups = group(tensor_lists, *args, **kwargs)
        # Whose step it is only its code tells: it asks the base class, and with no optimizer.
        if (
            torch.compiler.is_compiling()
            or sys._getframe(1).f_globals.get("__name__") not in _TENSOR_BY_TENSOR
        ):
            return groups
        small = {}
        for key, (lists, indices) in groups.items():
            # States that an optimizer has none of are empty lists.
            count = len(lists[0])
            along = [tensors for tensors in lists if len(tensors) == count]
            sizes = [
                sum(_nbytes(tensors[i]) for tensors in along if tensors[i] is not None)
                for i in range(count)
            ]
            if sum(sizes) <= limit_bytes or not _are_alike(along):
                small[key] = (lists, indices)
                continue
            for part in _parts(sizes, limit_bytes):
                own = [_part(tensors, count, part) for tensors in lists]
                small[_OneOfSeveral(key)] = (own, _part(indices, count, part))
        return small

    return run


def _are_alike(lists: Sequence[Sequence[torch.Tensor | None]]) -> bool:
    """Whether parts of the lists are computed as the whole is.

    An optimizer takes another way for all of a group if one state is still missing or one gradient
    is sparse, and CUDA another kernel if one tensor is laid out in its own way: other roundings.
    """
    rows = zip(*lists, strict=True)
    return len({tuple(_kind(tensor, row[0]) for tensor in row) for row in rows}) == 1


def _kind(tensor: torch.Tensor | None, first: torch.Tensor | None) -> object:
    if tensor is None or first is None or tensor.layout != torch.strided:
        return None if tensor is None else tensor.layout
    laid_out_alike = tensor.shape != first.shape or (
        tensor.stride() == first.stride() and _is_dense(tensor)
    )
    return tensor.dtype, laid_out_alike or not tensor.is_cuda


def _is_dense(tensor: torch.Tensor) -> bool:
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() in (0, last + 1)


def _has_elements(value: object) -> bool:
    """Whether it may hold something for each tensor of a list: lists, and scalars in a tensor."""
    if isinstance(value, torch.Tensor):
        return value.dim() == 1 and value.numel() > 1
    return isinstance(value, list | tuple) and bool(value)


def _is_tensor_list(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) and any(isinstance(v, torch.Tensor) for v in value)


def _are_tensors(lists: list[Any]) -> bool:
    return all(isinstance(value, torch.Tensor) for values in lists for value in values)


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _part(value: Any, count: int, part: slice) -> Any:
    """The part of what has one element per tensor of a list; everything else as it is."""
    return value[part] if _has_elements(value) and len(value) == count else value


def _parts(sizes: list[int], limit: int) -> Iterator[slice]:
    begin = 0
    total = 0
    for i, size in enumerate(sizes):
        if i > begin and total + size > limit:
            yield slice(begin, i)
            begin, total = i, 0
        total += size
    yield slice(begin, len(sizes))
