"""Files of records: traces, plans, hardware and reports, as gzip'd JSON.

In: a record and a path, or a path and the kind that it must hold. Out: a file, or a checked record.
Must not know: torch, or what anyone does with the records.

A file holds ``{"format": "teraio", "kind": ..., "version": 5, "record": ...}``. The long lists
(ops, storages, moves) are stored by column. What is loaded is checked once, here: types, ranges,
order of ops. Files of older versions are read too: members that they lack get the defaults of the
record. A file from elsewhere can't harm: its size is limited, and whatever is wrong with it is a
FileFormatError.
"""

from __future__ import annotations

import gzip
import json
import os
import secrets
import zlib
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar, cast, get_args

from teraio.errors import FileFormatError
from teraio.records import (
    Anchor,
    Bound,
    BoundKind,
    Encoding,
    Extent,
    Hardware,
    Kind,
    MeasuredStall,
    Move,
    Op,
    Phase,
    Plan,
    PlanOptions,
    Reading,
    Recomputation,
    RunReport,
    SpillFolder,
    Stall,
    StepReport,
    Storage,
    Telemetry,
    Tier,
    TierUse,
    Trace,
    Unit,
    WaitsFor,
)

VERSION = 5
_READABLE = (1, 2, 3, 4, 5)
MAX_BYTES = 256 << 20
_MAX_BRACKETS = 4_000_000
_MAX_INT = (1 << 63) - 1
_MAX_RATE = 1e15
_LEVEL = 4

Value = TypeVar("Value")
Record = TypeVar("Record", Trace, Plan, Hardware, StepReport, RunReport)
AnyRecord = Trace | Plan | Hardware | StepReport | RunReport


class _Fault(Exception):
    """What is wrong with a file; becomes a FileFormatError that names the path."""


def save(record: AnyRecord, path: str | os.PathLike[str]) -> None:
    """Write ``record`` to ``path``, which holds either the old file or the whole new one at any
    time.

    Raises FileFormatError for a record that could not be loaded again, OSError as the file system
    does.
    """
    kind, write, read = _KINDS[type(record)]
    body = write(record)
    target = Path(path)
    try:
        read(body)
        document = {"format": "teraio", "kind": kind, "version": VERSION, "record": body}
        text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    except (_Fault, ValueError) as error:
        raise FileFormatError(f"{target}: this {kind} can't be saved: {error}") from None
    _replace(target, gzip.compress(text.encode(), _LEVEL, mtime=0))


def load(path: str | os.PathLike[str], kind: type[Record]) -> Record:
    """Read a record of type ``kind`` (such as ``Trace``) from ``path``.

    Raises FileFormatError, with path and reason, for a file that is damaged, of another kind or
    version, or breaks a rule of the record; OSError as the file system does.
    """
    name, _, read = _KINDS[kind]
    try:
        record = read(_open_document(_parse(_unpack(Path(path))), name))
    except _Fault as fault:
        raise FileFormatError(f"{os.fspath(path)}: {fault}") from None
    return cast(Record, record)


def load_any(path: str | os.PathLike[str]) -> AnyRecord:
    """Read the record that ``path`` holds, whichever it is. Raises as ``load`` does."""
    try:
        document = _parse(_unpack(Path(path)))
        name = document.get("kind") if isinstance(document, dict) else None
        read = next((read for kind, _, read in _KINDS.values() if kind == name), None)
        if read is None:
            _fail("this is not a file of teraio, or of a kind that this version does not know")
        return read(_open_document(document, str(name)))
    except _Fault as fault:
        raise FileFormatError(f"{os.fspath(path)}: {fault}") from None


def _replace(target: Path, data: bytes) -> None:
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with open(draft, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _unpack(path: Path) -> bytes:
    """The file's content, unpacked up to the limit and no further."""
    with open(path, "rb") as file:
        packed = file.read(MAX_BYTES + 1)
    if len(packed) > MAX_BYTES:
        _fail(f"the file is larger than {MAX_BYTES} bytes")
    if packed[:2] != b"\x1f\x8b":
        _fail("this is not a gzip file, so not a file of teraio")
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        data = unpacker.decompress(packed, MAX_BYTES + 1)
    except zlib.error as error:
        _fail(f"the file is damaged ({error})")
    if len(data) > MAX_BYTES:
        _fail(f"the file unpacks to more than {MAX_BYTES} bytes")
    if not unpacker.eof:
        _fail("the file is cut off")
    if unpacker.unused_data:
        _fail("the file goes on after its end")
    return data


def _parse(data: bytes) -> object:
    if data.count(b"[") + data.count(b"{") > _MAX_BRACKETS:
        _fail("the file holds more lists than a record can")
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError, MemoryError) as error:
        _fail(f"the file holds no valid JSON ({type(error).__name__}: {str(error)[:80]})")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number here")


def _open_document(document: object, kind: str) -> object:
    if not isinstance(document, dict) or document.get("format") != "teraio":
        _fail("this is not a file of teraio")
    if document.get("kind") != kind:
        _fail(f"the file holds a {str(document.get('kind'))[:40]!r}, not a {kind!r}")
    version = document.get("version")
    if type(version) is not int or version not in _READABLE:
        _fail(
            f"the file has version {str(version)[:40]}; "
            f"versions {_READABLE[0]} to {_READABLE[-1]} can be read"
        )
    return document.get("record")


def _fail(reason: str) -> NoReturn:
    raise _Fault(reason)


class _Fields:
    """A JSON object whose members are taken out one by one, each with its type checked."""

    def __init__(
        self,
        value: object,
        where: str,
        names: tuple[str, ...],
        later: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """``later`` are members of ``names`` that older versions lack, and what they are there."""
        if not isinstance(value, dict):
            _fail(f"{where} is not an object")
        value = {**later, **value}
        if value.keys() != set(names):
            odd = sorted(value.keys() ^ set(names))
            _fail(f"{where} has missing or unknown members: {', '.join(odd)[:80]}")
        self._value: dict[str, Any] = value
        self.where = where

    def _bad(self, name: str, what: str) -> NoReturn:
        _fail(f"{self.where}.{name} is not {what}")

    def raw(self, name: str) -> object:
        return self._value[name]

    def text(self, name: str) -> str:
        value = self._value[name]
        if type(value) is not str:
            self._bad(name, "a text")
        return value

    def one_of(self, name: str, names: tuple[str, ...]) -> Any:
        value = self._value[name]
        if type(value) is not str or value not in names:
            self._bad(name, f"one of {', '.join(names)}")
        return value

    def integer(self, name: str) -> int:
        value = self._value[name]
        if type(value) is not int or not 0 <= value <= _MAX_INT:
            self._bad(name, f"an integer from 0 to {_MAX_INT}")
        return value

    def number(self, name: str, above_zero: bool = False) -> float:
        value = self._value[name]
        if type(value) not in (int, float) or not 0 <= value <= 1e300:
            self._bad(name, "a number from 0 on")
        if above_zero and value == 0:
            self._bad(name, "a number above 0")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self._value[name]
        if type(value) is not bool:
            self._bad(name, "true or false")
        return value

    def optional(self, name: str, read: Callable[[str], Value]) -> Value | None:
        return None if self._value[name] is None else read(name)

    def items(self, name: str, read: Callable[[object, str], Any]) -> tuple[Any, ...]:
        value = self._value[name]
        if type(value) is not list:
            self._bad(name, "a list")
        where = f"{self.where}.{name}"
        return tuple(read(item, f"{where}[{index}]") for index, item in enumerate(value))

    def texts(self, name: str) -> list[str]:
        def right(column: list[Any]) -> bool:
            return set(map(type, column)) <= {str}

        return self._column(name, right, "a list of texts")

    def names(self, name: str, names: tuple[str, ...]) -> list[Any]:
        texts = self.texts(name)
        if not set(texts) <= set(names):
            self._bad(name, f"a list of {', '.join(names)}")
        return texts

    def flags(self, name: str) -> list[bool]:
        def right(column: list[Any]) -> bool:
            return set(map(type, column)) <= {bool}

        return self._column(name, right, "a list of flags")

    def integers(self, name: str, least: int = 0, most: int = _MAX_INT) -> list[int]:
        def right(column: list[int]) -> bool:
            whole = set(map(type, column)) <= {int}
            return whole and (not column or (min(column) >= least and max(column) <= most))

        return self._column(name, right, f"a list of integers from {least} to {most}")

    def optional_integers(self, name: str, least: int, most: int) -> list[int | None]:
        def right(column: list[int | None]) -> bool:
            known = [value for value in column if value is not None]
            whole = set(map(type, known)) <= {int}
            return whole and (not known or (min(known) >= least and max(known) <= most))

        return self._column(name, right, f"a list of integers from {least} to {most} or null")

    def _column(self, name: str, right: Callable[[list[Any]], bool], what: str) -> list[Any]:
        value = self._value[name]
        if type(value) is not list or not right(value):
            self._bad(name, what)
        return value

    def same_length(self, *columns: list[Any]) -> None:
        if len({len(column) for column in columns}) > 1:
            _fail(f"{self.where} has columns of different lengths")


def _objects(items: tuple[Any, ...], names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{name: getattr(item, name) for name in names} for item in items]


def _columns(items: tuple[Any, ...], names: tuple[str, ...]) -> dict[str, list[Any]]:
    return {name: [getattr(item, name) for item in items] for name in names}


_TRACE_LATER: dict[str, object] = {"encodings": []}
_TRACE = ("device", "ops", "storages", "anchors", "base_bytes", *_TRACE_LATER)
_OPS = ("name", "module", "phase", "duration_ns", "workspace_bytes")
_STORAGES_LATER = {"repeatable": None, "encoding": None}
_STORAGES = ("nbytes", "kind", "name", "birth", "death", *_STORAGES_LATER)
_LISTS = ("use_counts", "uses", "write_counts", "writes")
_ANCHORS = ("key", "occurrence", "op")
_ENCODING = ("codec", "dtype", "share", "encode_bytes_per_s", "decode_bytes_per_s")


def _write_trace(trace: Trace) -> dict[str, Any]:
    storages = _columns(trace.storages, _STORAGES)
    storages["use_counts"] = [len(s.uses) for s in trace.storages]
    storages["uses"] = [op for s in trace.storages for op in s.uses]
    storages["write_counts"] = [len(s.writes) for s in trace.storages]
    storages["writes"] = [op for s in trace.storages for op in s.writes]
    return {
        "device": trace.device,
        "ops": _columns(trace.ops, _OPS),
        "storages": storages,
        "anchors": _columns(trace.anchors, _ANCHORS),
        "base_bytes": trace.base_bytes,
        "encodings": _objects(trace.encodings, _ENCODING),
    }


def _read_trace(value: object, where: str = "trace") -> Trace:
    fields = _Fields(value, where, _TRACE, _TRACE_LATER)
    ops = _read_ops(fields.raw("ops"), f"{where}.ops")
    encodings = fields.items("encodings", _read_encoding)
    storages = _read_storages(fields.raw("storages"), f"{where}.storages", len(ops), len(encodings))
    return Trace(
        device=fields.text("device"),
        ops=ops,
        storages=storages,
        anchors=_read_anchors(fields.raw("anchors"), f"{where}.anchors", len(ops)),
        base_bytes=fields.integer("base_bytes"),
        encodings=encodings,
    )


def _read_encoding(value: object, where: str) -> Encoding:
    fields = _Fields(value, where, _ENCODING)
    share = fields.number("share", above_zero=True)
    if share > 1:
        _fail(f"{where}.share is above 1")
    return Encoding(
        codec=fields.text("codec"),
        dtype=fields.text("dtype"),
        share=share,
        encode_bytes_per_s=_rate(fields, "encode_bytes_per_s"),
        decode_bytes_per_s=_rate(fields, "decode_bytes_per_s"),
    )


def _read_ops(value: object, where: str) -> tuple[Op, ...]:
    fields = _Fields(value, where, _OPS)
    names, modules = fields.texts("name"), fields.texts("module")
    phases = fields.names("phase", get_args(Phase))
    durations, workspaces = fields.integers("duration_ns"), fields.integers("workspace_bytes")
    fields.same_length(names, modules, phases, durations, workspaces)
    if sum(durations) > _MAX_INT:
        _fail(f"{where}.duration_ns adds up to more than {_MAX_INT}")
    return tuple(
        Op(name=name, module=module, phase=phase, duration_ns=duration, workspace_bytes=workspace)
        for name, module, phase, duration, workspace in zip(
            names, modules, phases, durations, workspaces, strict=True
        )
    )


def _read_storages(value: object, where: str, n: int, encodings: int) -> tuple[Storage, ...]:
    fields = _Fields(value, where, _STORAGES + _LISTS, _STORAGES_LATER)
    names, nbytes = fields.texts("name"), fields.integers("nbytes")
    missing = fields.raw("repeatable") is None
    repeatable = [False] * len(names) if missing else fields.flags("repeatable")
    encoding: list[int | None] = [None] * len(names)
    if fields.raw("encoding") is not None:
        encoding = fields.optional_integers("encoding", 0, encodings - 1)
    if sum(nbytes) > _MAX_INT:
        _fail(f"{where}.nbytes adds up to more than {_MAX_INT}")
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


def _split(fields: _Fields, part: str, n: int) -> list[tuple[int, ...]]:
    """The flat list of ops, cut into one tuple for each storage."""
    counts = fields.integers(f"{part}_counts", 0, n)
    ops = fields.integers(f"{part}s", 0, n - 1)
    ends = list(accumulate(counts, initial=0))
    if ends[-1] != len(ops):
        _fail(f"trace.storages.{part}s has {len(ops)} ops where {ends[-1]} are expected")
    return [tuple(ops[start:end]) for start, end in pairwise(ends)]


def _check_storage(storage: Storage, where: str, n: int) -> None:
    for ops in (storage.uses, storage.writes):
        if any(one >= other for one, other in pairwise(ops)):
            _fail(f"{where} has ops that are not in ascending order")
    if not set(storage.writes).issubset(storage.uses):
        _fail(f"{where} is written by an op that does not use it")
    first = storage.birth or 0
    last = n - 1 if storage.death is None else storage.death
    if storage.birth is not None and last < first:
        _fail(f"{where} dies before it is born")
    if storage.uses and (storage.uses[0] < first or storage.uses[-1] > last):
        _fail(f"{where} is used outside of its life")


def _read_anchors(value: object, where: str, n: int) -> tuple[Anchor, ...]:
    fields = _Fields(value, where, _ANCHORS)
    keys, occurrences = fields.texts("key"), fields.integers("occurrence")
    ops = fields.integers("op", 0, n)
    fields.same_length(keys, occurrences, ops)
    return tuple(
        Anchor(key=key, occurrence=occurrence, op=op)
        for key, occurrence, op in zip(keys, occurrences, ops, strict=True)
    )


_TIER_RATES = ("read_bytes_per_s", "write_bytes_per_s", "mixed_bytes_per_s")
_TIER_LATER: dict[str, object] = {"rated_write_bytes": None, "folders": [], "encodes": False}
_TIER = ("name", "capacity_bytes", *_TIER_RATES, "latency_s", *_TIER_LATER)
_HARDWARE_LATER = {"max_write_bytes_per_day": None}
_SPILL_FOLDER = ("folder", "path", "reason")
_HARDWARE = ("name", "budget_bytes", "tiers", *_HARDWARE_LATER)


def _write_hardware(hardware: Hardware) -> dict[str, Any]:
    body = {name: getattr(hardware, name) for name in _HARDWARE}
    tiers = _objects(hardware.tiers, _TIER)
    for tier in tiers:
        tier["folders"] = _objects(tier["folders"], _SPILL_FOLDER)
    return {**body, "tiers": tiers}


def _read_hardware(value: object, where: str = "hardware") -> Hardware:
    fields = _Fields(value, where, _HARDWARE, _HARDWARE_LATER)
    tiers = fields.items("tiers", _read_tier)
    if len({tier.name for tier in tiers}) < len(tiers):
        _fail(f"{where}.tiers has two tiers of the same name")
    return Hardware(
        name=fields.text("name"),
        budget_bytes=fields.integer("budget_bytes"),
        tiers=tiers,
        max_write_bytes_per_day=fields.optional("max_write_bytes_per_day", fields.number),
    )


def _rate(fields: _Fields, name: str) -> float:
    """Bytes per second; so slow or fast that clocks stand still is no rate of a drive."""
    rate = fields.number(name, above_zero=True)
    if not 1 <= rate <= _MAX_RATE:
        _fail(f"{fields.where}.{name} is not between 1 and {_MAX_RATE:.0e} bytes/s")
    return rate


def _read_tier(value: object, where: str) -> Tier:
    fields = _Fields(value, where, _TIER, _TIER_LATER)
    return Tier(
        name=fields.text("name"),
        capacity_bytes=fields.integer("capacity_bytes"),
        read_bytes_per_s=_rate(fields, "read_bytes_per_s"),
        write_bytes_per_s=_rate(fields, "write_bytes_per_s"),
        mixed_bytes_per_s=_rate(fields, "mixed_bytes_per_s"),
        latency_s=fields.number("latency_s"),
        rated_write_bytes=fields.optional("rated_write_bytes", fields.integer),
        folders=fields.items("folders", _read_spill_folder),
        encodes=fields.flag("encodes"),
    )


def _read_spill_folder(value: object, where: str) -> SpillFolder:
    fields = _Fields(value, where, _SPILL_FOLDER)
    return SpillFolder(
        folder=fields.text("folder"), path=fields.text("path"), reason=fields.text("reason")
    )


_MOVE_OPS = ("offload_after", "gone_before", "fetch_after", "needed_by")
_MOVES = ("storage", "tier", "offset", "nbytes", "write", *_MOVE_OPS)
_PLAN_BYTES = (
    "budget_bytes",
    "unlimited_peak_bytes",
    "peak_bytes",
    "spill_bytes",
    "read_bytes",
    "written_bytes",
)
_PLAN_TIMES = ("ideal_s", "bound_s", "predicted_s")
_OPTIONS_LATER = {"recompute": False}
_OPTIONS = (
    "bound",
    "improve",
    "reuse_copies",
    "capacity_by_time",
    "resident_state_share",
    *_OPTIONS_LATER,
)
_RECOMPUTATION = ("storage", "drop_after", "needed_by")
_BOUND = ("name", "seconds")
_STALL = ("op", "storage", "waits_for", "seconds")
_TIER_USE = ("tier", "space_bytes", "read_bytes", "written_bytes", "read_s", "write_s")


def _write_plan(plan: Plan) -> dict[str, Any]:
    moves = _columns(plan.moves, ("storage", "tier", "write", *_MOVE_OPS))
    moves["offset"] = [move.extent.offset for move in plan.moves]
    moves["nbytes"] = [move.extent.nbytes for move in plan.moves]
    rest = {name: getattr(plan, name) for name in (*_PLAN_BYTES, *_PLAN_TIMES)}
    return {"moves": moves, **rest, **_write_reasons(plan)}


def _write_reasons(plan: Plan) -> dict[str, Any]:
    return {
        "options": _objects((plan.options,), _OPTIONS)[0],
        "bounds": _objects(plan.bounds, _BOUND),
        "stalls": _objects(plan.stalls, _STALL),
        "tiers": _objects(plan.tiers, _TIER_USE),
        "recomputations": _columns(plan.recomputations, _RECOMPUTATION),
    }


def _read_plan(value: object, where: str = "plan") -> Plan:
    later = {
        "options": _objects((PlanOptions(),), _OPTIONS)[0],
        "bounds": [],
        "stalls": [],
        "tiers": [],
        "recomputations": _columns((), _RECOMPUTATION),
    }
    fields = _Fields(value, where, ("moves", *_PLAN_BYTES, *_PLAN_TIMES, *later), later)
    numbers: dict[str, Any] = {name: fields.integer(name) for name in _PLAN_BYTES}
    numbers.update((name, fields.number(name)) for name in _PLAN_TIMES)
    return Plan(
        moves=_read_moves(fields.raw("moves"), f"{where}.moves"),
        options=_read_options(fields.raw("options"), f"{where}.options"),
        bounds=fields.items("bounds", _read_bound),
        stalls=fields.items("stalls", _read_stall),
        tiers=fields.items("tiers", _read_tier_use),
        recomputations=_read_recomputations(
            fields.raw("recomputations"), f"{where}.recomputations"
        ),
        **numbers,
    )


def _read_recomputations(value: object, where: str) -> tuple[Recomputation, ...]:
    fields = _Fields(value, where, _RECOMPUTATION)
    columns = [fields.integers(name) for name in _RECOMPUTATION]
    fields.same_length(*columns)
    return tuple(
        Recomputation(storage=storage, drop_after=drop_after, needed_by=needed_by)
        for storage, drop_after, needed_by in zip(*columns, strict=True)
    )


def _read_options(value: object, where: str) -> PlanOptions:
    fields = _Fields(value, where, _OPTIONS, _OPTIONS_LATER)
    share = fields.number("resident_state_share")
    if share > 1:
        _fail(f"{where}.resident_state_share is above 1")
    return PlanOptions(
        bound=fields.one_of("bound", get_args(BoundKind)),
        improve=fields.flag("improve"),
        reuse_copies=fields.flag("reuse_copies"),
        capacity_by_time=fields.flag("capacity_by_time"),
        resident_state_share=share,
        recompute=fields.flag("recompute"),
    )


def _read_bound(value: object, where: str) -> Bound:
    fields = _Fields(value, where, _BOUND)
    return Bound(name=fields.text("name"), seconds=fields.number("seconds"))


def _read_stall(value: object, where: str) -> Stall:
    fields = _Fields(value, where, _STALL)
    return Stall(storage=fields.integer("storage"), **_wait(fields))


def _read_measured_stall(value: object, where: str) -> MeasuredStall:
    fields = _Fields(value, where, _STALL)
    return MeasuredStall(storage=fields.optional("storage", fields.integer), **_wait(fields))


def _wait(fields: _Fields) -> dict[str, Any]:
    """What stalls of plans and of step reports have in common."""
    return {
        "op": fields.integer("op"),
        "waits_for": fields.one_of("waits_for", get_args(WaitsFor)),
        "seconds": fields.number("seconds"),
    }


def _read_tier_use(value: object, where: str) -> TierUse:
    fields = _Fields(value, where, _TIER_USE)
    return TierUse(
        tier=fields.text("tier"),
        space_bytes=fields.integer("space_bytes"),
        read_bytes=fields.integer("read_bytes"),
        written_bytes=fields.integer("written_bytes"),
        read_s=fields.number("read_s"),
        write_s=fields.number("write_s"),
    )


def _read_moves(value: object, where: str) -> tuple[Move, ...]:
    fields = _Fields(value, where, _MOVES)
    storages, tiers = fields.integers("storage"), fields.texts("tier")
    writes = fields.flags("write")
    offsets, sizes = fields.integers("offset"), fields.integers("nbytes")
    if any(nbytes % 4096 for nbytes in (*offsets, *sizes)):
        _fail(f"{where} has an extent that is not a multiple of 4096 bytes")
    leave, gone = fields.integers("offload_after"), fields.integers("gone_before")
    fetch, need = (fields.optional_integers(name, 0, _MAX_INT) for name in _MOVE_OPS[2:])
    columns: tuple[list[Any], ...] = (storages, tiers, writes, offsets, sizes)
    columns += (leave, gone, fetch, need)
    fields.same_length(*columns)
    if any((f is None) != (n is None) for f, n in zip(fetch, need, strict=True)):
        _fail(f"{where} has a move with only one of fetch_after and needed_by")
    return tuple(
        Move(
            storage=storage,
            tier=tier,
            extent=Extent(offset=offset, nbytes=nbytes),
            write=write,
            offload_after=offload_after,
            gone_before=gone_before,
            fetch_after=fetch_after,
            needed_by=needed_by,
        )
        for (
            storage, tier, write, offset, nbytes, offload_after, gone_before, fetch_after, needed_by
        ) in zip(*columns, strict=True)
    )  # fmt: skip


_STEP_INTEGERS = (
    "iteration",
    "peak_bytes",
    "read_bytes",
    "written_bytes",
    "ops",
    "drift_ops",
    "recomputed_bytes",
)
_STEP_LATER = {"stalls": [], "recomputed_bytes": 0}
_STEP = ("phase", "duration_s", "stall_s", *_STEP_INTEGERS)


def _write_step(step: StepReport) -> dict[str, Any]:
    stalls = _objects(step.stalls, _STALL)
    return {"stalls": stalls, **{name: getattr(step, name) for name in _STEP}}


def _read_step(value: object, where: str = "step report") -> StepReport:
    fields = _Fields(value, where, ("stalls", *_STEP), _STEP_LATER)
    return StepReport(
        phase=fields.one_of("phase", ("profile", "run")),
        duration_s=fields.number("duration_s"),
        stall_s=fields.number("stall_s"),
        stalls=fields.items("stalls", _read_measured_stall),
        **{name: fields.integer(name) for name in _STEP_INTEGERS},
    )


_READING_NUMBERS = ("last", "mean", "least", "most")
_READING = ("of", "what", "unit", *_READING_NUMBERS)


def _write_telemetry(telemetry: Telemetry) -> dict[str, Any]:
    return {
        "seconds": telemetry.seconds,
        "samples": telemetry.samples,
        "readings": _objects(telemetry.readings, _READING),
        "missing": list(telemetry.missing),
    }


def _read_telemetry(value: object, where: str = "telemetry") -> Telemetry:
    fields = _Fields(value, where, ("seconds", "samples", "readings", "missing"))
    return Telemetry(
        seconds=fields.number("seconds"),
        samples=fields.integer("samples"),
        readings=fields.items("readings", _read_reading),
        missing=tuple(fields.texts("missing")),
    )


def _read_reading(value: object, where: str) -> Reading:
    fields = _Fields(value, where, _READING)
    return Reading(
        of=fields.text("of"),
        what=fields.text("what"),
        unit=fields.one_of("unit", get_args(Unit)),
        **{name: fields.number(name) for name in _READING_NUMBERS},
    )


_RUN_LATER = {"telemetry": None}
_RUN = ("budget_bytes", "phase", "hardware", "trace", "plan", "steps", *_RUN_LATER)


def _write_run(run: RunReport) -> dict[str, Any]:
    return {
        "budget_bytes": run.budget_bytes,
        "phase": run.phase,
        "hardware": _write_hardware(run.hardware),
        "trace": _write_trace(run.trace) if run.trace else None,
        "plan": _write_plan(run.plan) if run.plan else None,
        "steps": [_write_step(step) for step in run.steps],
        "telemetry": _write_telemetry(run.telemetry) if run.telemetry else None,
    }


def _read_run(value: object, where: str = "run report") -> RunReport:
    fields = _Fields(value, where, _RUN, _RUN_LATER)
    trace, plan, telemetry = (fields.raw(name) for name in ("trace", "plan", "telemetry"))
    return RunReport(
        budget_bytes=fields.integer("budget_bytes"),
        phase=fields.one_of("phase", ("planned", "profile", "run", "closed")),
        hardware=_read_hardware(fields.raw("hardware"), f"{where}.hardware"),
        trace=None if trace is None else _read_trace(trace, f"{where}.trace"),
        plan=None if plan is None else _read_plan(plan, f"{where}.plan"),
        steps=fields.items("steps", _read_step),
        telemetry=None if telemetry is None else _read_telemetry(telemetry, f"{where}.telemetry"),
    )


_KINDS: dict[type, tuple[str, Callable[[Any], dict[str, Any]], Callable[[object], AnyRecord]]] = {
    Trace: ("trace", _write_trace, _read_trace),
    Plan: ("plan", _write_plan, _read_plan),
    Hardware: ("hardware", _write_hardware, _read_hardware),
    StepReport: ("step report", _write_step, _read_step),
    RunReport: ("run report", _write_run, _read_run),
}
