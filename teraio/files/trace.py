"""Traces in files: ops, storages and anchors by column.

In: a Trace, or JSON values. Out: JSON values, or a Trace whose ops are in order. Must not know:
files.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate, pairwise
from typing import Any, get_args

from teraio.files.fault import fail
from teraio.files.fields import MAX_INT, Fields, columns_of, objects_of
from teraio.records import Anchor, Encoding, Kind, Op, Phase, Storage, Trace

_TRACE_LATER: dict[str, object] = {"encodings": []}
_TRACE = ("device", "ops", "storages", "anchors", "base_bytes", *_TRACE_LATER)
_OPS = ("name", "module", "phase", "duration_ns", "workspace_bytes")
_STORAGES_LATER = {"repeatable": None, "encoding": None}
_STORAGES = ("nbytes", "kind", "name", "birth", "death", *_STORAGES_LATER)
_LISTS = ("use_counts", "uses", "write_counts", "writes")
_ANCHORS = ("key", "occurrence", "op")
_ENCODING = ("codec", "dtype", "share", "encode_bytes_per_s", "decode_bytes_per_s")


def write_trace(trace: Trace) -> dict[str, Any]:
    """The trace as JSON values."""
    storages = columns_of(trace.storages, _STORAGES)
    storages["use_counts"] = [len(s.uses) for s in trace.storages]
    storages["uses"] = [op for s in trace.storages for op in s.uses]
    storages["write_counts"] = [len(s.writes) for s in trace.storages]
    storages["writes"] = [op for s in trace.storages for op in s.writes]
    return {
        "device": trace.device,
        "ops": columns_of(trace.ops, _OPS),
        "storages": storages,
        "anchors": columns_of(trace.anchors, _ANCHORS),
        "base_bytes": trace.base_bytes,
        "encodings": objects_of(trace.encodings, _ENCODING),
    }


def read_trace(value: object, where: str) -> Trace:
    """The trace that ``write_trace`` gave; raises Fault for anything else."""
    fields = Fields(value, where, _TRACE, _TRACE_LATER)
    ops = fields.part("ops", _read_ops)
    encodings = fields.items("encodings", _read_encoding)
    read_storages = partial(_read_storages, n=len(ops), encodings=len(encodings))
    return Trace(
        device=fields.text("device"),
        ops=ops,
        storages=fields.part("storages", read_storages),
        anchors=fields.part("anchors", partial(_read_anchors, n=len(ops))),
        base_bytes=fields.integer("base_bytes"),
        encodings=encodings,
    )


def _read_encoding(value: object, where: str) -> Encoding:
    fields = Fields(value, where, _ENCODING)
    return Encoding(
        codec=fields.text("codec"),
        dtype=fields.text("dtype"),
        share=fields.share("share", above_zero=True),
        encode_bytes_per_s=fields.rate("encode_bytes_per_s"),
        decode_bytes_per_s=fields.rate("decode_bytes_per_s"),
    )


def _read_ops(value: object, where: str) -> tuple[Op, ...]:
    fields = Fields(value, where, _OPS)
    names, modules = fields.texts("name"), fields.texts("module")
    phases = fields.names("phase", get_args(Phase))
    durations, workspaces = fields.integers("duration_ns"), fields.integers("workspace_bytes")
    fields.same_length(names, modules, phases, durations, workspaces)
    if sum(durations) > MAX_INT:
        fail(f"{where}.duration_ns adds up to more than {MAX_INT}")
    return tuple(
        Op(name=name, module=module, phase=phase, duration_ns=duration, workspace_bytes=workspace)
        for name, module, phase, duration, workspace in zip(
            names, modules, phases, durations, workspaces, strict=True
        )
    )


def _read_storages(value: object, where: str, *, n: int, encodings: int) -> tuple[Storage, ...]:
    fields = Fields(value, where, _STORAGES + _LISTS, _STORAGES_LATER)
    names, nbytes = fields.texts("name"), fields.integers("nbytes")
    repeatable = fields.optional("repeatable", fields.flags)
    if repeatable is None:
        repeatable = [False] * len(names)
    read_encodings = partial(fields.optional_integers, least=0, most=encodings - 1)
    encoding = fields.optional("encoding", read_encodings)
    if encoding is None:
        encoding = [None] * len(names)
    if sum(nbytes) > MAX_INT:
        fail(f"{where}.nbytes adds up to more than {MAX_INT}")
    kinds = fields.names("kind", get_args(Kind))
    births = fields.optional_integers("birth", 0, n - 1)
    deaths = fields.optional_integers("death", -1, n - 1)
    uses, writes = (_split(fields, part, n) for part in ("use", "write"))
    columns = (nbytes, kinds, names, births, deaths, uses, writes, repeatable, encoding)
    fields.same_length(*columns)
    storages = tuple(
        Storage(
            nbytes=b,
            kind=k,
            name=name,
            birth=birth,
            death=death,
            uses=u,
            writes=w,
            repeatable=r,
            encoding=e,
        )
        for b, k, name, birth, death, u, w, r, e in zip(*columns, strict=True)
    )
    for index, storage in enumerate(storages):
        _check_storage(storage, f"{where}[{index}]", n)
    return storages


def _split(fields: Fields, part: str, n: int) -> list[tuple[int, ...]]:
    """The flat list of ops, cut into one tuple for each storage."""
    counts = fields.integers(f"{part}_counts", 0, n)
    ops = fields.integers(f"{part}s", 0, n - 1)
    ends = list(accumulate(counts, initial=0))
    if ends[-1] != len(ops):
        fail(f"{fields.where}.{part}s has {len(ops)} ops where {ends[-1]} are expected")
    return [tuple(ops[start:end]) for start, end in pairwise(ends)]


def _check_storage(storage: Storage, where: str, n: int) -> None:
    for ops in (storage.uses, storage.writes):
        if any(one >= other for one, other in pairwise(ops)):
            fail(f"{where} has ops that are not in ascending order")
    if not set(storage.writes).issubset(storage.uses):
        fail(f"{where} is written by an op that does not use it")
    first = storage.birth or 0
    last = n - 1 if storage.death is None else storage.death
    if storage.birth is not None and last < first:
        fail(f"{where} dies before it is born")
    if storage.uses and (storage.uses[0] < first or storage.uses[-1] > last):
        fail(f"{where} is used outside of its life")


def _read_anchors(value: object, where: str, *, n: int) -> tuple[Anchor, ...]:
    fields = Fields(value, where, _ANCHORS)
    keys, occurrences = fields.texts("key"), fields.integers("occurrence")
    ops = fields.integers("op", 0, n)
    fields.same_length(keys, occurrences, ops)
    return tuple(
        Anchor(key=key, occurrence=occurrence, op=op)
        for key, occurrence, op in zip(keys, occurrences, ops, strict=True)
    )
