"""Claims about the speed that SSDs show beside ops."""

from __future__ import annotations

import pytest

from teraio.profiler.hardware import Work, at_share_of_speed, share_of_speed
from teraio.records import Tier

MB = 1_000_000
TIER = Tier(
    name="ssd",
    capacity_bytes=1 << 40,
    read_bytes_per_s=1000 * MB,
    write_bytes_per_s=2000 * MB,
    mixed_bytes_per_s=1500 * MB,
    latency_s=1e-4,
)


@pytest.mark.parametrize(
    ("work", "share"),
    [
        (Work(1.0, 0.0, 0.0, 1000 * MB, 0), 1.0),
        (Work(0.0, 1.0, 0.0, 0, 1000 * MB), 0.5),
        # Together as much as the mixed rate, in any parts.
        (Work(0.0, 0.0, 1.0, 500 * MB, 1000 * MB), 1.0),
        (Work(0.0, 0.0, 2.0, 1200 * MB, 300 * MB), 0.5),
        (Work(1.0, 1.0, 1.0, 900 * MB, 2700 * MB), 0.8),
        (Work(0.1, 0.0, 0.0, 150 * MB, 0), 1.5),
    ],
)
def test_the_share_is_what_was_moved_of_what_the_rates_allow(work: Work, share: float) -> None:
    assert share_of_speed(TIER, work) == pytest.approx(share)


def test_little_work_tells_nothing() -> None:
    assert share_of_speed(TIER, Work(0.01, 0.01, 0.0, 1 * MB, 1 * MB)) is None
    assert share_of_speed(TIER, Work(0.0, 0.0, 0.0, 0, 0)) is None


def test_a_tier_at_a_share_of_its_speed_has_all_of_its_share_again() -> None:
    work = Work(1.0, 1.0, 1.0, 900 * MB, 2700 * MB)
    slower = at_share_of_speed(TIER, 0.8)
    assert share_of_speed(slower, work) == pytest.approx(1.0)
    assert slower.mixed_share == TIER.mixed_share
    assert slower.capacity_bytes == TIER.capacity_bytes
