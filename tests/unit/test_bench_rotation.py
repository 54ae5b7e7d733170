"""Who has the turn: the rotation with runs that are scripted instead of made."""

from __future__ import annotations

import time

import pytest

from benchmarks import rotation
from benchmarks.comparison import Compared, Comparison, Entry
from benchmarks.job import Job, Outcome, Step
from benchmarks.rotation import Place, Rotation
from benchmarks.systems import Unavailable
from benchmarks.worker import RunFailed
from tests.unit.bench_records import outcome

STEP = outcome().steps[0]


class Script:
    """What the workers did, in order, and what they are to do wrong."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, str]] = []
        self.alive: set[str] = set()
        self.most_alive = 0
        self.unavailable: set[str] = set()
        self.fails_at: dict[str, int] = {}


class ScriptedWorker:
    script: Script

    def __init__(self, job: Job, answer_s: float) -> None:
        if job.name in self.script.unavailable:
            raise Unavailable("not here")
        self.job = job
        self.script.alive.add(job.name)
        self.script.most_alive = max(self.script.most_alive, len(self.script.alive))

    def build(self) -> None:
        pass

    def step(self, turn: int) -> Step:
        if self.script.fails_at.get(self.job.name) == turn:
            self.script.alive.discard(self.job.name)
            raise RunFailed("out of luck")
        self.script.steps.append((turn, self.job.name))
        return STEP

    def finish(self) -> Outcome:
        self.script.alive.discard(self.job.name)
        return outcome()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    ScriptedWorker.script = Script()
    monkeypatch.setattr(rotation, "Worker", ScriptedWorker)
    return ScriptedWorker.script


def compare(*systems: str, deadline: float = float("inf"), device: str = "cpu") -> Compared:
    entries = tuple(Entry(system=system) for system in systems)
    comparison = Comparison(shape="llama-3m", dtype="fp32", entries=entries, warm_up=1, timed=5)
    place = Place(device=device, threads=1, ssd=("/",), deadline=deadline)
    return Rotation(comparison, place, lambda text: None).run()


def statuses(compared: Compared) -> dict[str, str]:
    return {result.entry.name: result.status for result in compared.results}


def test_in_every_turn_each_run_makes_one_step_and_the_first_one_changes(script: Script) -> None:
    compare("zero2", "zero3")
    turns = [[name for turn, name in script.steps if turn == number] for number in range(5)]
    assert all(sorted(turn) == ["ideal", "zero2", "zero3"] for turn in turns)
    assert {turn[0] for turn in turns} == {"ideal", "zero2", "zero3"}


def test_on_a_gpu_a_step_that_is_not_timed_comes_right_before(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "free_gpu_bytes", lambda: 1 << 40)
    compare("zero2", device="cuda")
    turns = script.steps[2:]  # after one step each to warm up
    pairs = list(zip(turns[::2], turns[1::2], strict=True))
    assert len(pairs) == 10
    assert all(untimed == (-1, name) for untimed, (_, name) in pairs)
    assert all(turn >= 0 for _, (turn, _) in pairs)


def test_without_memory_for_all_groups_take_turns_and_the_ideal_run_is_in_each(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rotation, "_has_room", lambda self: False)
    compared = compare("zero2", "zero3")
    assert script.most_alive == 2
    assert set(statuses(compared).values()) == {"ran"}
    timed = [(turn, name) for turn, name in script.steps if turn >= 0]
    assert {turn for turn, name in timed if name == "ideal"} == set(range(10))
    assert not script.alive


def test_a_run_that_fails_loses_its_turns_and_the_others_go_on(script: Script) -> None:
    script.fails_at["zero2"] = 2
    script.unavailable.add("fsdp")
    compared = compare("zero2", "fsdp", "zero3")
    assert statuses(compared) == {
        "ideal": "ran",
        "zero2": "failed",
        "fsdp": "unavailable",
        "zero3": "ran",
    }
    assert sum(name == "zero3" and turn >= 0 for turn, name in script.steps) == 5


def test_without_an_ideal_run_nothing_else_is_started(script: Script) -> None:
    script.unavailable.add("ideal")
    assert statuses(compare("zero2")) == {"ideal": "unavailable", "zero2": "left out"}
    assert script.steps == []


def test_the_ideal_run_is_timed_even_if_it_is_the_only_one(script: Script) -> None:
    script.unavailable.add("zero2")
    compare("zero2")
    assert sum(turn >= 0 for turn, _ in script.steps) == 5


def test_an_ideal_run_that_fails_ends_the_comparison(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rotation, "_has_room", lambda self: False)
    script.fails_at["ideal"] = 1
    compared = compare("zero2", "zero3")
    assert statuses(compared) == {
        "ideal": "failed",
        "zero2": "ran",
        "zero3": "left out",
    }
    assert compared.results[2].reason == "the ideal run did not work"


def test_after_the_deadline_nothing_more_is_started(script: Script) -> None:
    compared = compare("zero2", deadline=time.monotonic() - 1)
    assert statuses(compared) == {"ideal": "left out", "zero2": "left out"}
    assert compared.results[1].reason == "no time was left"
    assert script.steps == []
