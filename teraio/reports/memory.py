"""Memory of an iteration, op by op: by kind, by module, and how much of it is in use.

In: a Trace, and moves to carry out on it. Out: numpy arrays of bytes. Must not know: rendering.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import get_args

import numpy as np
import numpy.typing as npt

from teraio.planner.memory import away_length, carried_twins, pieces
from teraio.records import Kind, Move, Storage, Trace

Bytes = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.float64]

KINDS: tuple[Kind, ...] = get_args(Kind)
# Rows of `memory_by_kind`: the kinds, what ops need while they run, what is too small to move.
ROWS = (*KINDS, "workspace", "small")
ROW_TITLES = {
    "parameter": "parameters",
    "gradient": "gradients",
    "optimizer_state": "optimizer states",
    "activation": "activations",
    "buffer": "buffers",
    "input": "inputs",
    "workspace": "workspace of ops",
    "small": "too small to move",
}


def kind_name(kind: str) -> str:
    """What people call a storage of this kind."""
    return kind.replace("_", " ")


def memory_by_kind(trace: Trace, moves: Iterable[Move] = ()) -> Bytes:
    """Bytes in memory during each op, one line for each of ROWS, with ``moves`` carried out."""
    n = len(trace.ops)
    steps = np.zeros((len(ROWS), n + 1), dtype=np.int64)
    row = {kind: index for index, kind in enumerate(KINDS)}
    for storage in trace.storages:
        line = steps[row[storage.kind]]
        line[storage.birth or 0] += storage.nbytes
        line[n if storage.death is None else storage.death + 1] -= storage.nbytes
    twins = carried_twins(trace)
    for move in moves:
        storage = trace.storages[move.storage]
        for low, high in pieces(move.gone_before, away_length(trace, twins, move), n):
            steps[row[storage.kind], low] -= storage.nbytes
            steps[row[storage.kind], high] += storage.nbytes
    memory = np.cumsum(steps, axis=1)[:, :n]
    memory[ROWS.index("workspace")] = [op.workspace_bytes for op in trace.ops]
    memory[ROWS.index("small")] = trace.base_bytes
    return memory


def active_by_op(trace: Trace) -> Bytes:
    """Bytes of the storages that each op uses, and of its workspace."""
    n = len(trace.ops)
    counts = [len(storage.uses) for storage in trace.storages]
    ops = np.fromiter(chain.from_iterable(s.uses for s in trace.storages), np.int64, sum(counts))
    sizes = np.repeat(np.array([s.nbytes for s in trace.storages], dtype=np.float64), counts)
    # Sums of whole numbers below 2**53 are exact in floats.
    active = np.bincount(ops, weights=sizes, minlength=n).astype(np.int64)
    return active + np.fromiter((op.workspace_bytes for op in trace.ops), np.int64, n)


def op_seconds(trace: Trace) -> Seconds:
    """Seconds that each op takes."""
    return np.fromiter((op.duration_ns for op in trace.ops), np.float64, len(trace.ops)) * 1e-9


def op_starts(trace: Trace) -> Seconds:
    """Seconds from the start of the iteration to the start of each op, and to the end of all."""
    return np.concatenate(([0.0], np.cumsum(op_seconds(trace))))


def alive(storage: Storage, op: int) -> bool:
    """Whether the storage takes memory during ``op`` when nothing moves."""
    return (storage.birth or 0) <= op and (storage.death is None or op <= storage.death)


def module_of(storage: Storage) -> str:
    """The module a storage belongs to, by its name; empty where the name tells none."""
    if storage.kind in ("activation", "input"):
        module, slash, _ = storage.name.rpartition("/")
        return module if slash else ""
    return storage.name.partition(":")[0].rpartition(".")[0]


def storage_name(trace: Trace, index: int | None) -> str:
    """The name of a storage; None and numbers beyond the trace are storages that it lacks."""
    if index is None or index >= len(trace.storages):
        return "a storage that the trace lacks"
    return trace.storages[index].name


def by_module(storages: Sequence[Storage], op: int) -> dict[str, int]:
    """Bytes of the storages alive during ``op`` for each module that has some."""
    found: dict[str, int] = {}
    for storage in storages:
        if alive(storage, op):
            module = module_of(storage)
            found[module] = found.get(module, 0) + storage.nbytes
    return found
