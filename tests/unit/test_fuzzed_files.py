"""Damaged and hostile files: every command that reads one shows it or says in one sentence why not.

Never a crash, a hang, or code that runs. Files are broken byte by byte, and value by value where
the bytes are sound.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from teraio.errors import TeraioError
from teraio.files import load_any, save
from teraio.reports.comparison import compare
from teraio.reports.comparison_text import comparison_text
from teraio.reports.life import life
from teraio.reports.module_tree import module_tree
from teraio.reports.overview import overview
from teraio.reports.overview_text import overview_text
from teraio.reports.page import page
from teraio.reports.perfetto import timeline_document
from teraio.reports.planning import planning
from teraio.reports.planning_text import planning_text
from teraio.reports.subject import Subject, subject_of
from tests.unit.cli import run
from tests.unit.test_cli import planned

HUGE = (0, 1, -1, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**70, 1e300, -0.0, 0.5)
ODD = (None, True, "", "x" * 5000, "\x00\ud7ff<script>[red]{{data}}", [], {}, [[[]]])

patient = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@cache
def document() -> dict[str, Any]:
    """The document of a small plan with its trace."""
    with tempfile.TemporaryDirectory() as folder:
        save(planned(), Path(folder) / "plan")
        packed = (Path(folder) / "plan").read_bytes()
    found: dict[str, Any] = json.loads(gzip.decompress(packed))
    return found


def all_reports(subject: Subject) -> None:
    """Whatever can be shown of a subject."""
    overview_text(overview(subject.trace), subject.name)
    module_tree(subject.trace)
    comparison_text(compare(subject, subject))
    for index in range(len(subject.trace.storages)):
        life(subject, index)
    if subject.plan is not None:
        planning_text(planning(subject), subject.name)
    json.dumps(timeline_document(subject), allow_nan=False)
    page(subject)


def shown_or_refused(path: Path) -> None:
    try:
        subject = subject_of(load_any(path), "fuzzed")
    except TeraioError as error:
        assert "\n" not in str(error)
        return
    all_reports(subject)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a document."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The document with one value replaced."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def test_a_plan_slower_than_it_says_it_can_be(tmp_path: Path) -> None:
    """A bar is no longer than its column, whatever the file claims."""
    changed = replaced(document(), ("record", "plan", "ideal_s"), 2**31)
    (tmp_path / "file").write_bytes(gzip.compress(json.dumps(changed).encode(), 1))
    shown_or_refused(tmp_path / "file")


@given(st.data())
@patient
def test_any_value_in_place_of_any_other(tmp_path: Path, data: st.DataObject) -> None:
    changed: Any = document()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(changed)))
        changed = replaced(changed, place, data.draw(st.sampled_from(HUGE + ODD)))
    (tmp_path / "file").write_bytes(gzip.compress(json.dumps(changed).encode(), 1))
    shown_or_refused(tmp_path / "file")


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8))
@patient
@example([(0, 0)])
def test_any_byte_in_place_of_any_other(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    content = bytearray(json.dumps(document()).encode())
    for at, byte in edits:
        content[at % len(content)] = byte
    (tmp_path / "file").write_bytes(gzip.compress(bytes(content), 1))
    shown_or_refused(tmp_path / "file")


@given(st.integers(0, 2000), st.integers(0, 255), st.integers(0, 2000))
@patient
def test_any_byte_of_the_packed_file_and_any_cut(
    tmp_path: Path, at: int, byte: int, length: int
) -> None:
    save(planned(), tmp_path / "file")
    packed = bytearray((tmp_path / "file").read_bytes())
    packed[at % len(packed)] = byte
    (tmp_path / "file").write_bytes(bytes(packed[: max(length, at + 1)]))
    shown_or_refused(tmp_path / "file")


@given(st.binary(max_size=400))
@patient
def test_any_bytes_at_all(tmp_path: Path, noise: bytes) -> None:
    for content in (noise, gzip.compress(noise, 1)):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(TeraioError):
            load_any(tmp_path / "file")


@pytest.mark.parametrize("command", ["inspect", "report", "plan", "compare"])
def test_the_tool_refuses_a_bomb(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bomb = gzip.compress(gzip.compress(b"\0" * (300 << 20), 9), 9)
    (tmp_path / "bomb").write_bytes(gzip.compress(b" " * (300 << 20), 9))
    (tmp_path / "bombs").write_bytes(bomb)
    for name in ("bomb", "bombs"):
        others = (tmp_path / name,) if command == "compare" else ()
        ran = run(capsys, command, tmp_path / name, *others)
        assert ran.code == 2
        assert ran.err.count("\n") == 1


def test_a_device_or_folder_in_place_of_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in ("/dev/zero", tmp_path):
        ran = run(capsys, "inspect", path)
        assert ran.code == 2
        assert ran.err.count("\n") == 1
