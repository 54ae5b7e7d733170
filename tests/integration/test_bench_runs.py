"""The benchmarks' smallest form: real runs in turns; those that are wrong are found out."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import all_ours_count
from benchmarks.comparison import Comparison, Entry
from benchmarks.models import new_model
from benchmarks.results import collect, load, save
from benchmarks.rotation import Place, run_each
from benchmarks.rows import Row, rows
from benchmarks.shapes import SHAPES
from benchmarks.tables import document

WRONG = "tests.integration.wrong_systems"
COMPARISON = Comparison(
    shape="llama-4m",
    dtype="fp32",
    entries=(
        Entry(system="teraio", share=1.25),
        Entry(system=f"{WRONG}:altered"),
        Entry(system=f"{WRONG}:greedy", share=1.0),
        Entry(system=f"{WRONG}:crashing"),
        Entry(system="swap", share=0.5),
    ),
    warm_up=3,
    timed=5,
)


@pytest.fixture(scope="module")
def found(spill: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Row], str]:
    """The rows by system, and the document that the results' file becomes."""
    place = Place(device="cpu", threads=1, ssd=(spill,))
    results = collect("quick", place, tuple(run_each([COMPARISON], place, lambda text: None)))
    assert all_ours_count(results)
    path: Path = tmp_path_factory.mktemp("results") / "quick.json"
    save(results, path)
    (compared,) = load(path).compared
    return {row.system.removeprefix(f"{WRONG}:"): row for row in rows(compared)}, document(results)


def test_teraio_gives_the_ideal_runs_losses_below_its_limit(
    found: tuple[dict[str, Row], str],
) -> None:
    row = found[0]["teraio"]
    assert row.faults == ()
    assert row.loss_difference == 0.0
    assert row.peak_bytes is not None and row.limit_bytes is not None
    assert row.peak_bytes <= row.limit_bytes
    assert row.speed is not None and row.speed.written_bytes > 0


def test_altered_losses_are_found_out(found: tuple[dict[str, Row], str]) -> None:
    row = found[0]["altered"]
    assert row.ran and row.speed is None
    assert "losses differ" in row.faults[0]


def test_memory_above_the_limit_is_found_out(found: tuple[dict[str, Row], str]) -> None:
    row = found[0]["greedy"]
    assert row.ran and row.speed is None
    assert row.loss_difference == 0.0
    assert "the limit is" in row.faults[0]


def test_a_run_that_ends_early_is_a_row_with_its_last_words(
    found: tuple[dict[str, Row], str],
) -> None:
    row = found[0]["crashing"]
    assert not row.ran
    assert "out of luck" in row.faults[0]


def test_what_can_not_run_says_why(
    found: tuple[dict[str, Row], str],
) -> None:
    row = found[0]["swap"]
    assert row.speed is not None or row.faults[0].startswith("unavailable: ")


def test_the_document_shows_every_row(found: tuple[dict[str, Row], str]) -> None:
    by_system, text = found
    assert all(f"| {row.name} |" in text for row in by_system.values())
    assert text.count("| invalid: ") == 2


@pytest.mark.parametrize("shape", [SHAPES["llama-3m"], SHAPES["gpt-3m"]], ids=["llama", "gpt"])
def test_matrices_are_all_parameters_but_tables_and_vectors(shape) -> None:  # type: ignore[no-untyped-def]
    model = new_model(shape)
    tables = {"model.embed_tokens.weight", "transformer.wte.weight", "transformer.wpe.weight"}
    counted = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and name not in tables
    )
    assert counted == shape.matrix_parameters
    assert max(parameter.numel() for parameter in model.parameters()) == shape.largest_parameter
