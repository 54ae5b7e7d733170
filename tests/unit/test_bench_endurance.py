"""Long runs are told in fifths, and memory that grows in them is noticed."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.demo import Run
from benchmarks.job import Job
from benchmarks.micro.endurance import grew, parts
from tests.unit.bench_records import outcome

JOB = Job(name="any", system="ideal", shape="llama-3m", dtype="fp32", threads=1)


def steps_of(seconds: list[float], peaks: list[int]) -> Run:
    losses = [float(step) for step in range(len(seconds))]
    return Run(JOB, outcome(losses=losses, wall_s=seconds, peak_bytes=peaks))


def test_fifths_have_all_steps_and_compare_those_of_one_turn() -> None:
    # The machine is half as fast from step 6 on, for both.
    plain = steps_of([1.0] * 6 + [2.0] * 6, [100] * 12)
    limited = steps_of([2.0] * 6 + [4.0] * 6, list(range(12)))
    made = parts(plain, limited)
    assert [(part.first, part.last) for part in made] == [(0, 1), (2, 3), (4, 6), (7, 8), (9, 11)]
    assert [part.of_ideal for part in made] == [0.5] * 5
    assert [part.teraio_peak_bytes for part in made] == [1, 3, 6, 8, 11]
    assert (made[-1].loss, made[-1].plain_s, made[-1].teraio_s) == (11.0, 2.0, 4.0)


def test_memory_that_grows_after_the_first_fifth_is_noticed() -> None:
    run = steps_of([1.0] * 10, [900, 900, *[1000] * 6, 1020, 1010])
    made = parts(run, run)
    assert not grew(made)
    assert grew([*made[:-1], replace(made[-1], teraio_peak_bytes=1031)])
