"""Files: what is saved comes back, and what is damaged is refused in one sentence."""

from __future__ import annotations

import copy
import gzip
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teraio.errors import ConfigurationError, FileFormatError
from teraio.files import AnyRecord, load, save
from teraio.planner import live_by_op, plan
from teraio.records import (
    Bound,
    Encoding,
    Hardware,
    MeasuredStall,
    Plan,
    PlanOptions,
    Reading,
    RunReport,
    SpillFolder,
    Stall,
    StepReport,
    Telemetry,
    TierUse,
    Trace,
)
from tests.unit import strategies
from tests.unit.traces import HOST, SSD, hardware, transformer_trace

PLAIN = transformer_trace(layers=1)
ENCODING = Encoding(
    codec="lossless",
    dtype="float32",
    share=0.86,
    encode_bytes_per_s=2e11,
    decode_bytes_per_s=3e11,
)
TRACE = replace(
    PLAIN,
    encodings=(ENCODING,),
    storages=tuple(
        replace(storage, encoding=0 if storage.kind == "parameter" else None)
        for storage in PLAIN.storages
    ),
)
SPILL_FOLDER = SpillFolder(folder="/mnt/nvme0", path="GPUDirect Storage", reason="the faster one")
HARDWARE = replace(
    hardware(
        int(live_by_op(TRACE).max() * 0.5),
        HOST,
        replace(SSD, rated_write_bytes=10**15, folders=(SPILL_FOLDER,), encodes=True),
    ),
    max_write_bytes_per_day=1e12,
)
PLAN = replace(
    plan(TRACE, HARDWARE),
    bounds=(Bound(name="ops", seconds=1.0),),
    stalls=(Stall(op=1, storage=2, waits_for="data", seconds=0.5),),
    tiers=(
        TierUse(
            tier="host", space_bytes=1, read_bytes=2, written_bytes=3, read_s=0.5, write_s=0.25
        ),
    ),
)
STEP = StepReport(
    iteration=3,
    phase="run",
    duration_s=1.25,
    stall_s=0.5,
    peak_bytes=10,
    read_bytes=20,
    written_bytes=30,
    ops=40,
    drift_ops=0,
    stalls=(
        MeasuredStall(op=5, storage=None, waits_for="memory", seconds=0.25),
        MeasuredStall(op=7, storage=2, waits_for="data", seconds=0.125),
    ),
)
TELEMETRY = Telemetry(
    seconds=59.5,
    samples=60,
    readings=(
        Reading(
            of="process",
            what="resident memory",
            unit="bytes",
            last=3e9,
            mean=2.5e9,
            least=2e9,
            most=4e9,
        ),
    ),
    missing=("GPU: none is used, the run is on cpu",),
)
RUN = RunReport(
    budget_bytes=HARDWARE.budget_bytes,
    phase="run",
    hardware=HARDWARE,
    trace=TRACE,
    plan=PLAN,
    steps=(STEP, replace(STEP, iteration=4)),
    telemetry=TELEMETRY,
)
EARLY = replace(RUN, phase="profile", trace=None, plan=None, steps=(), telemetry=None)
RECORDS: list[AnyRecord] = [TRACE, HARDWARE, PLAN, STEP, RUN, EARLY]

within_one_folder = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_equal(record: Any, tmp_path: Path) -> None:
    save(record, tmp_path / "file")
    assert load(tmp_path / "file", type(record)) == record


@given(strategies.traces())
@within_one_folder
def test_any_trace_comes_back_equal(tmp_path: Path, trace: Trace) -> None:
    save(trace, tmp_path / "file")
    assert load(tmp_path / "file", Trace) == trace


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(PLAN, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(STEP, tmp_path / "file")

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        save(PLAN, tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]
    assert load(tmp_path / "file", StepReport) == STEP


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="can't be saved"):
        save(replace(STEP, duration_s=float("nan")), tmp_path / "file")
    with pytest.raises(FileFormatError, match="can't be saved"):
        save(replace(TRACE, base_bytes=-1), tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_a_missing_file_is_an_error_of_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none", Trace)


def test_where_nothing_can_be_written_the_file_is_named_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        save(TRACE, tmp_path / "none" / "run.trace")
    assert caught.value.filename == str(tmp_path / "none" / "run.trace")


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"dict is no kind of record, .*RunReport"):
        save({}, tmp_path / "file")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="int is no kind of record"):
        load(tmp_path / "file", int)  # type: ignore[type-var]
    assert os.listdir(tmp_path) == []


def refused(path: Path, kind: Any, reason: str) -> None:
    with pytest.raises(FileFormatError, match=reason) as caught:
        load(path, kind)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


DAMAGED = {
    "empty": (b"", "not a gzip file"),
    "text": (b"hello", "not a gzip file"),
    "only a header": (b"\x1f\x8b", "cut off|damaged"),
    "no JSON": (gzip.compress(b"{nonsense"), "no valid JSON"),
    "not UTF-8": (gzip.compress(b'{"a": "\xff"}'), "no valid JSON"),
    "NaN": (gzip.compress(b'{"format": NaN}'), "NaN is not a number"),
    "a huge integer": (gzip.compress(b"1" * 100_000), "no valid JSON"),
    "deep nesting": (gzip.compress(b"[" * 200_000), "no valid JSON"),
    "very many lists": (gzip.compress(b"[" + b"[]," * 5_000_000), "more lists"),
    "another format": (gzip.compress(b'{"format": "other"}'), "not a file of teraio"),
    "a list": (gzip.compress(b"[]"), "not a file of teraio"),
    "two files": (gzip.compress(b"[]") * 2, "goes on after its end"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    data, reason = DAMAGED[name]
    (tmp_path / "file").write_bytes(data)
    refused(tmp_path / "file", Trace, reason)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teraio.files.document.MAX_BYTES", 1 << 20)
    (tmp_path / "file").write_bytes(gzip.compress(b" " * (64 << 20)))
    refused(tmp_path / "file", Trace, "unpacks to more than 1048576 bytes")
    (tmp_path / "file").write_bytes(os.urandom((1 << 20) + 1))
    refused(tmp_path / "file", Trace, "larger than 1048576 bytes")


def test_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    save(PLAN, tmp_path / "file")
    refused(tmp_path / "file", Trace, "holds a 'plan', not a 'trace'")


@pytest.mark.parametrize("version", [0, 6, "1", True, None, 1.0])
def test_another_version_is_refused(version: object, tmp_path: Path) -> None:
    write(tmp_path / "file", {**document(STEP, tmp_path), "version": version})
    refused(tmp_path / "file", StepReport, "versions 1 to 5 can be read")


LATER_MEMBERS = {
    Plan: ("options", "bounds", "stalls", "tiers"),
    Hardware: ("max_write_bytes_per_day",),
}


def without_later_members(record: Plan | Hardware) -> Plan | Hardware:
    if isinstance(record, Plan):
        return replace(record, options=PlanOptions(), bounds=(), stalls=(), tiers=())
    without = {"rated_write_bytes": None, "folders": (), "encodes": False}
    tiers = tuple(replace(tier, **without) for tier in record.tiers)
    return replace(record, tiers=tiers, max_write_bytes_per_day=None)


@pytest.mark.parametrize("record", [HARDWARE, PLAN], ids=lambda record: type(record).__name__)
def test_a_file_of_version_1_loads_with_defaults_for_what_it_lacks(
    record: Any, tmp_path: Path
) -> None:
    content = document(record, tmp_path)
    body = content["record"]
    for name in LATER_MEMBERS[type(record)]:
        del body[name]
    for tier in body.get("tiers", ()):
        del tier["rated_write_bytes"], tier["folders"]
        tier.pop("encodes", None)
    write(tmp_path / "file", {**content, "version": 1})
    assert load(tmp_path / "file", type(record)) == without_later_members(record)


def test_a_trace_of_version_4_loads_without_encodings(tmp_path: Path) -> None:
    content = document(TRACE, tmp_path)
    del content["record"]["encodings"], content["record"]["storages"]["encoding"]
    write(tmp_path / "file", {**content, "version": 4})
    assert load(tmp_path / "file", Trace) == PLAIN


def test_a_report_of_version_3_loads_without_telemetry(tmp_path: Path) -> None:
    content = document(RUN, tmp_path)
    del content["record"]["telemetry"]
    write(tmp_path / "file", {**content, "version": 3})
    assert load(tmp_path / "file", RunReport) == replace(RUN, telemetry=None)


def document(record: AnyRecord, folder: Path) -> dict[str, Any]:
    save(record, folder / "original")
    found: dict[str, Any] = json.loads(gzip.decompress((folder / "original").read_bytes()))
    return found


def write(path: Path, content: object) -> None:
    path.write_bytes(gzip.compress(json.dumps(content).encode(), 1))


WRONG: list[tuple[AnyRecord, tuple[str, ...], object, str]] = [
    (TRACE, ("ops", "phase", "0"), "asleep", "phase is not a list of forward"),
    (TRACE, ("ops", "duration_ns", "0"), -1, "duration_ns is not a list of integers"),
    (TRACE, ("ops", "duration_ns", "0"), 1.5, "duration_ns is not a list of integers"),
    (TRACE, ("ops", "duration_ns", "0"), True, "duration_ns is not a list of integers"),
    (TRACE, ("ops", "duration_ns", "0"), 1 << 63, "duration_ns is not a list of integers"),
    (TRACE, ("ops", "name"), [], "different lengths"),
    (TRACE, ("ops", "name", "0"), None, "name is not a list of texts"),
    (TRACE, ("ops",), [], "ops is not an object"),
    (TRACE, ("storages", "uses", "0"), 10**6, "uses is not a list of integers"),
    (TRACE, ("storages", "use_counts", "0"), 0, "ops where"),
    (TRACE, ("storages", "nbytes", "0"), (1 << 63) - 1, "adds up to more"),
    (TRACE, ("storages", "birth", "0"), 5, "used outside of its life"),
    (TRACE, ("storages", "death", "0"), -1, "used outside of its life"),
    (TRACE, ("storages", "death", "0"), -2, "death is not a list of integers"),
    (TRACE, ("storages", "kind", "0"), {}, "kind is not a list of texts"),
    (TRACE, ("anchors", "op", "0"), 10**6, "op is not a list of integers"),
    (TRACE, ("storages", "encoding", "0"), 1, "encoding is not a list of integers from 0 to 0"),
    (TRACE, ("encodings", "0", "share"), 1.5, "share is above 1"),
    (TRACE, ("encodings", "0", "share"), 0, "share is not a number above 0"),
    (TRACE, ("encodings", "0", "decode_bytes_per_s"), 0.5, "not between 1 and 1e.15 bytes/s"),
    (TRACE, ("device",), 3, "device is not a text"),
    (HARDWARE, ("tiers",), {}, "tiers is not a list"),
    (HARDWARE, ("tiers", "0", "read_bytes_per_s"), 0, "not a number above 0"),
    (HARDWARE, ("tiers", "0", "read_bytes_per_s"), 10**400, "not a number|no valid JSON"),
    (HARDWARE, ("tiers", "0", "mixed_bytes_per_s"), 1e16, "not between 1 and 1e.15 bytes/s"),
    (HARDWARE, ("tiers", "0", "write_bytes_per_s"), 0.5, "not between 1 and 1e.15 bytes/s"),
    (HARDWARE, ("tiers", "0", "latency_s"), "fast", "latency_s is not a number"),
    (HARDWARE, ("tiers", "0", "name"), "ssd0", "two tiers of the same name"),
    (PLAN, ("moves", "write", "0"), 1, "write is not a list of flags"),
    (PLAN, ("moves", "offset", "0"), 1, "multiple of 4096"),
    (PLAN, ("moves", "needed_by", "0"), None, "only one of fetch_after and needed_by"),
    (PLAN, ("predicted_s",), -1.0, "predicted_s is not a number"),
    (PLAN, ("options", "bound"), "tight", "bound is not one of relaxation, simple"),
    (PLAN, ("options", "improve"), 1, "improve is not true or false"),
    (PLAN, ("options", "resident_state_share"), 1.5, "resident_state_share is above 1"),
    (PLAN, ("stalls", "0", "waits_for"), "luck", "waits_for is not one of memory, data"),
    (PLAN, ("bounds", "0", "seconds"), -1, "seconds is not a number from 0"),
    (PLAN, ("tiers", "0", "space_bytes"), 0.5, "space_bytes is not an integer"),
    (HARDWARE, ("max_write_bytes_per_day",), "much", "max_write_bytes_per_day is not a number"),
    (HARDWARE, ("tiers", "1", "folders", "0", "path"), 3, "path is not a text"),
    (HARDWARE, ("tiers", "1", "folders", "0", "path"), None, "path is not a text"),
    (HARDWARE, ("tiers", "0", "rated_write_bytes"), -5, "rated_write_bytes is not an integer"),
    (STEP, ("phase",), "closed", "phase is not one of profile, run"),
    (STEP, ("iteration",), 1.0, "iteration is not an integer"),
    (RUN, ("steps", "0"), [], r"steps\[0\] is not an object"),
    (RUN, ("trace", "base_bytes"), "x", "base_bytes is not an integer"),
    (RUN, ("trace", "storages", "use_counts", "0"), 0, r"run report\.trace\.storages\.uses has"),
    (RUN, ("telemetry",), [], "telemetry is not an object"),
    (RUN, ("telemetry", "samples"), -1, "samples is not an integer"),
    (RUN, ("telemetry", "missing", "0"), 5, "missing is not a list of texts"),
    (RUN, ("telemetry", "readings", "0", "unit"), "miles", "unit is not one of bytes, bytes/s"),
    (RUN, ("telemetry", "readings", "0", "most"), -1, "most is not a number from 0"),
]


@pytest.mark.parametrize(
    ("record", "where", "value", "reason"), WRONG, ids=lambda part: str(part)[:40]
)
def test_a_wrong_value_is_refused_by_name(
    record: AnyRecord, where: tuple[str, ...], value: object, reason: str, tmp_path: Path
) -> None:
    content = document(record, tmp_path)
    put(content["record"], where, value)
    write(tmp_path / "file", content)
    refused(tmp_path / "file", type(record), reason)


def put(at: Any, where: tuple[str, ...], value: object) -> None:
    for key in where[:-1]:
        at = at[int(key)] if isinstance(at, list) else at[key]
    at[int(where[-1]) if isinstance(at, list) else where[-1]] = value


def test_unknown_and_missing_members_are_refused(tmp_path: Path) -> None:
    content = document(STEP, tmp_path)
    content["record"]["more"] = 1
    write(tmp_path / "file", content)
    refused(tmp_path / "file", StepReport, "unknown members: more")
    del content["record"]["more"], content["record"]["ops"]
    write(tmp_path / "file", content)
    refused(tmp_path / "file", StepReport, "missing or unknown members: ops")


def test_ops_out_of_order_are_refused(tmp_path: Path) -> None:
    content = document(TRACE, tmp_path)
    counts = content["record"]["storages"]["use_counts"]
    index = next(i for i, count in enumerate(counts) if count > 1)
    at = sum(counts[:index])
    uses = content["record"]["storages"]["uses"]
    uses[at], uses[at + 1] = uses[at + 1], uses[at]
    write(tmp_path / "file", content)
    refused(tmp_path / "file", Trace, "not in ascending order")


SMALL: list[AnyRecord] = [
    HARDWARE,
    STEP,
    PLAN,
    transformer_trace(layers=0),
    replace(RUN, trace=None),
]


@given(st.sampled_from(SMALL), st.data())
@within_one_folder
def test_a_file_with_changed_bytes_loads_or_is_refused(
    tmp_path: Path, record: AnyRecord, data: st.DataObject
) -> None:
    save(record, tmp_path / "file")
    content = bytearray((tmp_path / "file").read_bytes())
    cut = data.draw(st.integers(0, len(content)))
    if data.draw(st.booleans()):
        del content[cut:]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "file").write_bytes(content)
    loads_or_is_refused(tmp_path / "file", type(record))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.sampled_from(SMALL), JSON, st.data())
@within_one_folder
def test_a_file_with_any_value_anywhere_loads_or_is_refused(
    tmp_path: Path, record: AnyRecord, value: object, data: st.DataObject
) -> None:
    content = copy.deepcopy(document(record, tmp_path))
    at: Any = content
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        inner = at[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.integers(0, 3)) == 0:
            break
        at = inner
    at[key] = value
    write(tmp_path / "file", content)
    loads_or_is_refused(tmp_path / "file", type(record))


def loads_or_is_refused(path: Path, kind: Any) -> None:
    try:
        assert isinstance(load(path, kind), kind)
    except FileFormatError as error:
        assert str(path) in str(error)


def test_a_trace_of_100_000_ops_loads_in_about_a_second(tmp_path: Path) -> None:
    trace = transformer_trace(layers=820, hidden=64, ffn=128)
    assert len(trace.ops) >= 100_000
    save(trace, tmp_path / "file")
    started = time.process_time()
    assert isinstance(load(tmp_path / "file", Trace), Trace)
    assert time.process_time() - started < 5
