"""The public functions: argument checks and wiring, nothing else.

In: what users pass. Out: the same model, now under a budget, and reports. Must not know: how it is
done.
"""

from __future__ import annotations

import inspect
import logging
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import SupportsIndex, TypedDict, TypeVar

import torch

import teraio._C as _C
from teraio.engine.accelerator import accelerator_for
from teraio.engine.compression import compression
from teraio.engine.devices import device_for
from teraio.engine.folders import check_folder, spill_folders
from teraio.engine.materialize import StoredTensor, stored_tensors
from teraio.engine.wrappers import unwrapped
from teraio.errors import ConfigurationError
from teraio.profiler.hardware import free_memory_bytes, memory_bytes
from teraio.records import RunReport
from teraio.runtime import Runtime
from teraio.sizes import format_size, parse_size
from teraio.watch import Stopped, Watch

log = logging.getLogger("teraio")

_Model = TypeVar("_Model", bound=torch.nn.Module)
# Of the memory that is free, this part is left to everything that is no tensor.
_DEFAULT_RESERVE = 0.15
# Weights, gradients and the two states of Adam: what a run spills at most beside its activations.
_BYTES_PER_WEIGHT_BYTE = 4
# Above any machine's memory: a run under this budget moves nothing.
_NO_LIMIT = 1 << 62


class _HowToAdd(TypedDict):
    stored: dict[str, StoredTensor] | None
    to_device: bool
    optimizer_in_backward: bool


_runtime: Runtime | None = None
_settings: dict[str, object] = {}  # of the run; further models share them
_watch: Watch | None = None


def offload(
    model: _Model,
    *,
    memory_budget: int | str | None = None,
    ssd: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    host_memory: int | str = 0,
    profile_iterations: int = 2,
    allow_tmpfs: bool = False,
    require_gds: bool = False,
    device: str | torch.device | None = None,
    weights: str | os.PathLike[str] | None = None,
    optimizer_in_backward: bool = False,
    compress: str | Mapping[str, str] | None = None,
    recompute: bool = True,
) -> _Model:
    """Puts training of ``model`` under a memory budget; returns the same object.

    Storages that are not in use move to files in the ``ssd`` folders and come back when they are
    used; every result stays the same to the last bit. ``memory_budget`` is the memory that tensors
    may take, as bytes, ``"24GiB"`` or ``"60%"`` of the machine's memory; by default what is free,
    less a reserve. For a model on an accelerator it is the device's memory, and ``host_memory``
    (bytes, or a share of the machine's) may serve as a tier between it and the drives. ``ssd`` is
    one folder per drive; by default ``$TERAIO_SSD`` (colon-separated), else the user's cache
    folder. The first ``profile_iterations`` (at least 2: the first makes the optimizer's states)
    are watched to make the plan. A further model shares the run of the first, with its budget and
    all settings but ``device``, ``weights`` and ``optimizer_in_backward``. With
    ``require_gds`` any way to the SSDs but GPUDirect Storage is an error; without it the fastest
    way is taken, and the report's ``hardware.tiers[...].folders`` say for each folder which one
    that is and why.

    Where the drives are too slow, ``recompute`` lets the plan give up results of ops that give the
    same bits again (pointwise ones, casts, norms, softmax, products of matrices, attention), and
    run the op once more when they are needed.

    ``device`` is where the model is to be trained; by default where it is. Its tensors get there
    one after the other and within the budget, so a model on the CPU or on the meta device may be
    larger than the memory of ``device``. One on the meta device has no data yet; it goes to the GPU
    if there is one. ``weights`` is a safetensors file, or a folder of them, that its tensors are
    read from; without it ``reset_parameters()`` of each module, or ``_init_weights`` of
    transformers, fills them.

    With ``optimizer_in_backward`` each parameter is stepped during the backward pass, as soon as
    its gradient is complete; the loop and its results stay the same. Loops that need all gradients
    at once (clipping, accumulation, GradScaler) raise a ConfigurationError then.

    ``compress`` encodes what goes to the SSDs, so that less is written and read. ``"lossless"``
    changes no bit. Lossy codecs are used only for the storages that they are named for: a mapping
    from their kind (``"parameter"``, ``"gradient"``, ``"optimizer_state"``, ``"activation"``,
    ``"buffer"``, ``"input"``), or from a state such as ``"optimizer_state:exp_avg"``, to the name
    of a codec; ``teraio.kernels.CODECS`` states the error of each.

    Raises ConfigurationError for arguments that can't be used, for weights that don't fit the model
    and for tensors that nothing fills, FileFormatError for damaged weights and SpillError for
    folders that can't be used.
    """
    global _runtime, _settings
    if not isinstance(model, torch.nn.Module):
        raise ConfigurationError(f"offload() takes a torch.nn.Module, not {type(model).__name__}.")
    profile_iterations = _iterations("profile_iterations", profile_iterations)
    for name, value in (
        ("allow_tmpfs", allow_tmpfs),
        ("require_gds", require_gds),
        ("optimizer_in_backward", optimizer_in_backward),
        ("recompute", recompute),
    ):
        if not isinstance(value, bool):
            raise ConfigurationError(f"{name}={value!r}: pass True or False.")
    if _C.forked():
        raise ConfigurationError(
            "this process was forked off one that trains under teraio, whose files and threads "
            "stay there; start it with multiprocessing's method 'spawn'."
        )
    encoded = compression(compress)
    target = device_for(model, device)
    how: _HowToAdd = {
        "stored": None if weights is None else stored_tensors(weights),
        "to_device": device is not None,
        "optimizer_in_backward": optimizer_in_backward,
    }
    if _watch is not None and _runtime is _watch.runtime and _runtime.phase != "closed":
        if not _runtime.has_model(model):
            # A program that is profiled keeps to the profile's settings.
            _runtime.add_model(model, **how)
        return model
    accelerator = accelerator_for(target)
    free, total = accelerator.free_and_total_bytes() if accelerator else (None, memory_bytes())
    budget = _budget(memory_budget, total)
    host_bytes = parse_size(host_memory, whole=memory_bytes(), what="host_memory")
    folders = None if ssd is None else spill_folders(ssd)
    settings: dict[str, object] = {
        "memory_budget": budget,
        "ssd": None if folders is None else _places(folders),
        "host_memory": host_bytes,
        "profile_iterations": profile_iterations,
        "require_gds": require_gds,
        "compress": encoded,
        "recompute": recompute,
    }
    if _runtime is not None and _runtime.phase != "closed":
        if _runtime.has_model(model):
            raise ConfigurationError(
                "this model is offloaded already; call teraio.restore(model) before offloading it "
                "anew."
            )
        if torch.device(_runtime.device) != target:
            raise ConfigurationError(
                f"another model runs under a budget on {_runtime.device}, this one is on {target}; "
                "one process offloads from one device. Restore the other model first."
            )
        _check_shared(settings)
        _runtime.add_model(model, **how)
        return model
    _check_host(host_bytes, target)
    folders = folders or spill_folders(None)
    for folder in folders:
        check_folder(folder, allow_tmpfs=allow_tmpfs, consent="allow_tmpfs=True")
    if budget is None:
        budget = int((free_memory_bytes() if free is None else free) * (1 - _DEFAULT_RESERVE))
    _runtime = Runtime(
        budget_bytes=budget,
        folders=folders,
        spill_bytes=_spill_bytes(model, budget),
        profile_iterations=profile_iterations,
        device=str(target),
        host_bytes=host_bytes,
        require_gds=require_gds,
        compress=encoded,
        recompute=recompute,
    )
    _settings = {**settings, "memory_budget": budget, "ssd": _places(folders)}
    try:
        _runtime.add_model(model, **how)
    except BaseException:
        _runtime.close()
        raise
    return model


def restore(model: torch.nn.Module) -> None:
    """Ends offloading of ``model``. With the last model of a run everything comes back into memory,
    and hooks and files go.

    Raises BudgetError where it can't all come back, SpillError for what can't be read, and
    ConfigurationError in a process that was forked off.
    """
    runtime = _runtime_of(model)
    if _C.forked():
        raise ConfigurationError(
            "this process was forked off the one that trains under teraio; call restore() there."
        )
    runtime.remove_model(model)


def report(model: torch.nn.Module) -> RunReport:
    """What the run did so far, with its Trace and its Plan once there are any.

    ``print(report(model).where_time_goes())`` says it in words. Raises ConfigurationError for a
    model that is not offloaded.
    """
    return _runtime_of(model).report()


def iteration(model: torch.nn.Module) -> AbstractContextManager[None]:
    """``with teraio.iteration(model): ...`` marks one iteration of a loop that no optimizer step
    ends."""
    return _runtime_of(model).iteration()


@contextmanager
def resident(*tensors: torch.Tensor) -> Iterator[None]:
    """Holds tensors in memory for code that reads or writes raw memory, such as a C extension.

    Raises ConfigurationError for anything that is no tensor.
    """
    holds = []
    try:
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor):
                raise ConfigurationError(
                    f"resident() takes tensors, not {type(tensor).__name__}; pass each by itself."
                )
            holds += [_C.Hold(inner, True) for _, inner in unwrapped(tensor)]
        yield
    finally:
        for hold in holds:
            hold.release()


@contextmanager
def profile(
    *,
    memory_budget: int | str | None = None,
    ssd: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    iterations: int = 3,
    stop: bool = False,
) -> Iterator[Watch]:
    """``with teraio.profile() as run: train()`` records what one iteration does with memory.

    The code inside needs no change: models are found at their first call, iterations end with the
    optimizer's step. It watches the CPU's memory, so models must be on the CPU. Enter it before the
    model is made, so that all of its memory is counted. The
    last of ``iterations`` (at least 2) is recorded; from then on ``run.trace`` is its Trace. With
    ``stop`` the block ends there. ``memory_budget`` and ``ssd`` are those of ``offload``; without a
    budget nothing moves.

    Raises ConfigurationError and SpillError as ``offload`` does.
    """
    global _runtime, _watch
    if _runtime is not None and _runtime.phase != "closed":
        raise ConfigurationError("a model is offloaded in this process; restore it first.")
    iterations = _iterations("iterations", iterations)
    budget = _budget(memory_budget, memory_bytes())
    folders = spill_folders(ssd)
    for folder in folders:
        check_folder(folder, allow_tmpfs=budget is None)
    _watch = Watch(
        budget_bytes=_NO_LIMIT if budget is None else budget,
        folders=folders,
        iterations=iterations,
        stop=stop,
    )
    _runtime = _watch.runtime
    try:
        yield _watch
    except Stopped:
        pass
    finally:
        _watch.close()
        _watch = None


def _places(folders: Sequence[Path]) -> list[Path]:
    return [folder.resolve() for folder in folders]


def _check_shared(asked: dict[str, object]) -> None:
    """What a further model asks for must be what the run has."""
    defaults = inspect.signature(offload).parameters
    for name, value in asked.items():
        if value not in (defaults[name].default, None, _settings[name]):
            raise ConfigurationError(
                f"another model runs with another {name}, and models of one process share it; "
                f"leave {name} out, or restore the other model first."
            )


def _iterations(what: str, iterations: SupportsIndex) -> int:
    """The integer that ``iterations`` is, such as one of numpy."""
    try:
        count = operator.index(iterations)
    except TypeError:
        count = 0
    if count < 2:
        raise ConfigurationError(
            f"{what}={iterations!r}: pass 2 or more; the first iteration makes "
            "the optimizer's states, so it is not like the others."
        )
    return count


def _check_host(nbytes: int, device: torch.device) -> None:
    if nbytes and device.type == "cpu":
        raise ConfigurationError(
            "host_memory is a tier beside a device's memory, and the model is on the CPU; leave it "
            "out."
        )
    if nbytes > free_memory_bytes():
        raise ConfigurationError(
            f"host_memory is {format_size(nbytes)}, and {format_size(free_memory_bytes())} are "
            "free; pass less."
        )


def _budget(memory_budget: int | str | None, total_bytes: int) -> int | None:
    if memory_budget is None:
        return None
    budget = parse_size(memory_budget, whole=total_bytes, what="memory_budget")
    if budget == 0:
        raise ConfigurationError("memory_budget is 0; pass the bytes that tensors may take.")
    if budget > total_bytes:
        log.warning(
            "memory_budget is %s, and there are %s of memory in all, so nothing keeps the program "
            "from running out of memory. Pass less.",
            format_size(budget),
            format_size(total_bytes),
        )
    return budget


def _runtime_of(model: torch.nn.Module) -> Runtime:
    if _runtime is None or not _runtime.has_model(model):
        raise ConfigurationError("this model is not offloaded; call teraio.offload(model) first.")
    return _runtime


def _spill_bytes(model: torch.nn.Module, budget: int) -> int:
    """Spill space to reserve before the first step: what surely won't fit the budget."""
    weights = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    return max(0, _BYTES_PER_WEIGHT_BYTE * weights - budget)
