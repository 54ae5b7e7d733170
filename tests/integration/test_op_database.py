"""Every operator that PyTorch's own database knows works on storages that are away.

In: samples of ``op_db`` whose inputs were all sent to the SSD tier before the op. Out: results and
gradients equal bit for bit to those of the same op with its inputs in memory.
"""

from __future__ import annotations

import ctypes
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import teraio
from teraio.engine import testing
from tests.integration.training import NO_LIMIT

SAMPLES = 2
# They return memory as it is.
UNINITIALISED = {
    "empty",
    "empty_like",
    "empty_permuted",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
}
# Ops whose schema doesn't say that they write an input, though they do (running statistics).
UNDECLARED_WRITES = ("batch_norm",)
OPS = [
    op
    for op in op_db
    if torch.float32 in op.supported_dtypes("cpu") and op.name not in UNINITIALISED
]
each_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.formatted_name)


@pytest.fixture(scope="module")
def engine(spill: str) -> Iterator[None]:
    """A running engine whose budget everything fits, so that only the tests send storages away."""
    model = torch.nn.Linear(4, 4)
    teraio.offload(model, memory_budget=NO_LIMIT, ssd=[spill])
    yield
    teraio.restore(model)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def samples(op: Any, requires_grad: bool = False) -> list[Any]:
    torch.manual_seed(0)
    try:
        made = op.sample_inputs("cpu", torch.float32, requires_grad=requires_grad)
        return list(itertools.islice(made, SAMPLES))
    except (RuntimeError, ImportError, ModuleNotFoundError) as error:
        pytest.skip(f"torch can't make samples here: {error}")


def tensors_in(*values: Any) -> list[torch.Tensor]:
    return [
        leaf
        for leaf in tree_flatten(values)[0]
        if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided
    ]


def own_copy(value: Any) -> Any:
    """Tensors of their own memory, so that an op that writes its input changes only its copy."""

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.layout != torch.strided:
            return leaf
        twin = leaf.detach().clone(memory_format=torch.preserve_format)
        return twin.requires_grad_(leaf.requires_grad)

    return tree_map(copied, value)


def assert_equal(ours: Any, theirs: Any) -> None:
    left, right = tree_flatten(ours)[0], tree_flatten(theirs)[0]
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        if isinstance(b, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def called(op: Any, sample: Any, before: Callable[[Any], None]) -> Any:
    value, args, kwargs = own_copy((sample.input, sample.args, sample.kwargs))
    before((value, args, kwargs))
    torch.manual_seed(0)
    return op(value, *args, **kwargs)


def expected(op: Any, sample: Any) -> Any:
    try:
        return called(op, sample, lambda inputs: None)
    except Exception as error:
        pytest.skip(f"torch can't run this sample here: {error}")


def send_away(inputs: Any) -> None:
    testing.send_away(*tensors_in(inputs))


@each_op
@pytest.mark.usefixtures("engine")
def test_an_op_gives_the_same_result_when_its_inputs_were_away(op: Any) -> None:
    for sample in samples(op):
        theirs = expected(op, sample)
        assert_equal(called(op, sample, send_away), theirs)


def gradients(op: Any, sample: Any, before: Callable[[Any], None]) -> list[torch.Tensor | None]:
    """The gradients of all inputs that want one, for a fixed gradient of each output."""
    inputs = own_copy((sample.input, sample.args, sample.kwargs))
    wanted = [leaf for leaf in tensors_in(inputs) if leaf.requires_grad]
    before(inputs)
    torch.manual_seed(0)
    value, args, kwargs = inputs
    result = op(value, *args, **kwargs)
    if sample.output_process_fn_grad is not None:
        result = sample.output_process_fn_grad(result)
    outputs = [leaf for leaf in tensors_in(result) if leaf.requires_grad]
    if not outputs or not wanted:
        return []
    torch.manual_seed(1)
    seeds = [torch.randn_like(output) for output in outputs]
    # The inputs again: the tensors that autograd saved share their storages, most of the time.
    before((inputs, outputs, seeds))
    return list(torch.autograd.grad(outputs, wanted, seeds, allow_unused=True))


@pytest.mark.parametrize(
    "op", [op for op in OPS if op.supports_autograd], ids=lambda op: op.formatted_name
)
@pytest.mark.usefixtures("engine")
def test_an_op_gives_the_same_gradients_when_its_inputs_were_away(op: Any) -> None:
    for sample in samples(op, requires_grad=True):
        try:
            theirs = gradients(op, sample, lambda inputs: None)
        except Exception as error:
            pytest.skip(f"torch can't run this sample here: {error}")
        assert_equal(gradients(op, sample, send_away), theirs)


class UndeclaredWrites(TorchDispatchMode):
    """Collects the names of ops that change an input which their schema calls read-only."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        read_only = _read_only_arguments(func._schema, args, kwargs)
        before = [_bytes(tensor) for tensor in read_only]
        result = func(*args, **kwargs)
        if any(_bytes(t) != b for t, b in zip(read_only, before, strict=True)):
            self.found.add(func._schema.name)
        return result


def _read_only_arguments(schema: Any, args: Any, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    values = [*zip(schema.arguments, args, strict=False)]
    values += [(one, kwargs[one.name]) for one in schema.arguments if one.name in kwargs]
    written = {
        tensor.untyped_storage()._cdata
        for argument, value in values
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in _plain_tensors(value)
    }
    return [
        tensor
        for argument, value in values
        if argument.alias_info is None or not argument.alias_info.is_write
        for tensor in _plain_tensors(value)
        if tensor.untyped_storage()._cdata not in written
    ]


def _plain_tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tensors_in(value) if leaf.device.type == "cpu"]


def _bytes(tensor: torch.Tensor) -> bytes:
    storage = tensor.untyped_storage()
    return ctypes.string_at(storage.data_ptr(), storage.nbytes())


def listed(name: str) -> bool:
    return any(entry in name for entry in UNDECLARED_WRITES)


@each_op
def test_an_op_writes_only_what_its_schema_or_the_engines_list_declares(op: Any) -> None:
    for sample in samples(op, requires_grad=op.supports_autograd):
        inputs = own_copy((sample.input, sample.args, sample.kwargs))
        with UndeclaredWrites() as writes:
            try:
                value, args, kwargs = inputs
                outputs = [t for t in tensors_in(op(value, *args, **kwargs)) if t.requires_grad]
                if outputs:
                    sum(output.abs().sum() for output in outputs).backward()
            except Exception as error:
                pytest.skip(f"torch can't run this sample here: {error}")
        assert [name for name in writes.found if not listed(name)] == []
