"""Encoded copies in plans: cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from teraio.planner import lower_bound_s, plan, simulate, validate
from teraio.planner.columns import columns
from teraio.planner.relaxation import relaxation
from teraio.records import Hardware, Move, Trace
from tests.unit.small import machine, move, storage, trace
from tests.unit.traces import SSD, encoded, hardware, transformer_trace


def encoding_machine(budget_bytes: int, *, both: float = 2e6) -> Hardware:
    """1,000 bytes take 1 ms each way."""
    plain = machine(budget_bytes, both=both)
    return replace(plain, tiers=(replace(plain.tiers[0], encodes=True),))


def one_away() -> Trace:
    """A storage of 1,000 bytes is away between the two ops that write it; each takes 10 ms."""
    return trace([10, 0, 10], storage([0, 2], [0, 2]))


MOVES = [move(0, 0, 1, 0, 2)]


@pytest.mark.parametrize(
    ("share", "bytes_per_s", "ms"),
    [
        (1.0, 1e12, 2.0),  # as it is: 1 ms there, 1 ms back
        (0.4, 1e12, 0.8),
        (0.4, 2e6, 1.0),  # 0.5 ms of encoding, while 0.4 ms of bytes move
        (0.4, 1e5, 20.0),  # the codec is the slower one
    ],
)
def test_a_copy_takes_as_long_as_the_slower_of_codec_and_channel(
    share: float, bytes_per_s: float, ms: float
) -> None:
    on = encoded(one_away(), share=share, bytes_per_s=bytes_per_s)
    found = simulate(on, encoding_machine(0), MOVES)
    assert found.stall_s == pytest.approx(ms * 1e-3)
    assert (found.read_bytes, found.written_bytes) == (1000 * share, 1000 * share)


def test_a_tier_that_does_not_encode_takes_storages_as_they_are() -> None:
    on = encoded(one_away(), share=0.4)
    found = simulate(on, machine(0), MOVES)
    assert found.stall_s == pytest.approx(2e-3)
    assert found.read_bytes == 1000


def test_a_storage_without_an_encoding_goes_as_it_is() -> None:
    on = replace(encoded(one_away(), share=0.4), storages=one_away().storages)
    assert simulate(on, encoding_machine(0), MOVES).read_bytes == 1000


def test_one_codec_serves_both_directions() -> None:
    # While one storage is read, another is written: 10 ms each of coding, 1 ms each of bytes.
    on = trace([0, 30, 0], storage([0, 2], [0, 2]), storage([1], [1]))
    moves = [move(0, 2, 0, 0, 2, write=False), move(1, 0, 2, 0, 1, offset=4096)]
    alone = simulate(encoded(on, share=1.0, bytes_per_s=1e5), encoding_machine(0), moves[:1])
    both = simulate(encoded(on, share=1.0, bytes_per_s=1e5), encoding_machine(0), moves)
    ends = [moved.end_s - moved.begin_s for moved in both.transfers]
    assert [moved.end_s - moved.begin_s for moved in alone.transfers] == [pytest.approx(10e-3)]
    assert max(ends) > 15e-3


def test_bounds_count_encoded_bytes() -> None:
    weights = [storage([k], [k]) for k in range(8)]
    plain = trace([0.1] * 8, *weights)
    on, target = encoded(plain, share=0.5), encoding_machine(3000, both=1e6)
    assert relaxation(columns(on), target).bound_s == pytest.approx(
        relaxation(columns(plain), target).bound_s / 2, rel=2e-3
    )
    assert lower_bound_s(on, target) == pytest.approx(lower_bound_s(plain, target) / 2)


def slow_drive(budget_bytes: int) -> Hardware:
    drive = replace(
        SSD,
        read_bytes_per_s=SSD.read_bytes_per_s / 10,
        write_bytes_per_s=SSD.write_bytes_per_s / 10,
        mixed_bytes_per_s=SSD.mixed_bytes_per_s / 10,
        encodes=True,
    )
    return hardware(budget_bytes, drive)


@pytest.mark.parametrize("share", [0.25, 0.7])
def test_a_codec_makes_plans_faster_where_the_drive_is_the_limit(share: float) -> None:
    plain = transformer_trace(layers=4)
    target = slow_drive(int(columns(plain).live.max()) // 2)
    on = encoded(plain, share=share)
    as_it_is, gained = plan(plain, target), plan(on, target)
    assert as_it_is.predicted_s > 1.4 * as_it_is.ideal_s
    lost = gained.predicted_s - gained.ideal_s
    assert lost < (share + 0.1) * (as_it_is.predicted_s - as_it_is.ideal_s)
    validate(on, target, gained)


def test_of_what_could_leave_that_moves_which_encodes_best() -> None:
    plain = transformer_trace(layers=4)
    target = slow_drive(int(columns(plain).live.max()) // 2)
    # Every other storage becomes a tenth.
    small = encoded(plain, share=0.1)
    pairs = zip(plain.storages, small.storages, strict=True)
    some = tuple(pair[index % 2] for index, pair in enumerate(pairs))
    on = replace(small, storages=some)

    def encoding_moved(moves: tuple[Move, ...]) -> float:
        sizes = [(some[move.storage].nbytes, some[move.storage].encoding) for move in moves]
        return sum(n for n, e in sizes if e is not None) / sum(n for n, _ in sizes)

    assert encoding_moved(plan(on, target).moves) > 1.2 * encoding_moved(plan(plain, target).moves)
