"""Tables on consoles of any width: nothing is cut off where it can be folded."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from teraio.reports.table import bar, labelled, table

_NAME = "model.layers.11.self_attn.k_proj.weight:exp_avg_sq"
_ROWS = [
    (_NAME, "optimizer state", "256.0 KiB", bar(1, 1)),
    ("model.norm/mul#3.0", "activation", "1.0 MiB", bar(1, 2)),
]


def shown(what: RenderableType, width: int) -> list[str]:
    """The lines on a console of this width, without blanks at their ends."""
    written = io.StringIO()
    Console(file=written, width=width).print(what)
    return [line.rstrip() for line in written.getvalue().splitlines()]


def test_a_wide_console_gets_one_line_for_each_row() -> None:
    assert shown(table("Storages", ("storage", "kind", "size", ""), _ROWS), 200) == [
        "Storages",
        "storage                                              kind                   size",
        "─" * 107,
        f"{_NAME}   optimizer state   256.0 KiB   {bar(1, 1)}",
        f"{'model.norm/mul#3.0':50}   activation          1.0 MiB   {bar(1, 2)}",
    ]


def test_bars_go_where_there_is_no_room_for_them() -> None:
    lines = shown(table("Storages", ("storage", "kind", "size", ""), _ROWS), 100)
    assert lines[3] == f"{_NAME}   optimizer state   256.0 KiB"
    assert len(lines) == 5


@pytest.mark.parametrize("width", (60, 80))
def test_long_names_go_on_in_the_next_line(width: int) -> None:
    lines = shown(table("Storages", ("storage", "kind", "size", ""), _ROWS), width)
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if "…" in line]
    names = "".join(line[: lines[1].index("kind")].strip() for line in lines[3:])
    assert names == f"{_NAME}model.norm/mul#3.0"
    assert [line for line in lines if line.endswith("optimizer state   256.0 KiB")]


_WIDE_HEADS = ("tier", "per iteration", "of the iteration", "memory freed, on average", "at ")


@pytest.mark.parametrize("rows", [_ROWS, [(*row[:3], "812.5 MiB", "4,321") for row in _ROWS]])
@pytest.mark.parametrize("width", range(24, 120, 3))
def test_figures_are_never_cut(rows: list[tuple[str, ...]], width: int) -> None:
    heads = ("storage", "kind", "size", "") if rows is _ROWS else _WIDE_HEADS
    lines = shown(table("Storages", heads, rows), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    figures = [cell for row in rows for cell in row if cell[:1].isdigit()]
    assert all(figure in text for figure in figures)


def test_heads_go_on_in_the_next_line_before_figures_are_listed() -> None:
    rows = [("ssd write", "12.0 MiB", "8.39 ms")]
    heads = ("tier", "per iteration", "of the iteration")
    assert shown(table("Channels", heads, rows), 36)[1:] == [
        "                  per      of the",
        "tier        iteration   iteration",
        "─" * 33,
        "ssd write    12.0 MiB     8.39 ms",
    ]
    assert shown(table("Channels", heads, rows), 28)[1:] == [
        "ssd write",
        "  per iteration: 12.0 MiB",
        "  of the iteration: 8.39 ms",
    ]


def test_remarks_wrap_at_words() -> None:
    lines = shown(table("Times", ("", "time", " "), [("bound", "1.0 s", "no plan is faster")]), 30)
    assert lines[3:] == ["bound   1.0 s   no plan is", "                faster"]


def test_a_labelled_sentence_goes_on_below_its_own_beginning() -> None:
    text = labelled(("budget", "one two three"), ("to", "four"))
    assert shown(text, 16) == ["budget  one two", "        three", "to      four"]
