"""Machines by name: complete, sourced, and never faster than their links."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teraio.errors import ConfigurationError
from teraio.whatif.configurations import load_config, model_names
from teraio.whatif.presets import accelerator, accelerators, drives, hardware

NAMED = {
    "h100-nvl",
    "h100-sxm",
    "h200",
    "b200",
    "a100-40gb",
    "a100-80gb",
    "rtx-4090",
    "rtx-5090",
    "l40s",
}
MODELS = {
    "llama3-8b",
    "llama3-70b",
    "granite-8b",
    "gpt2-40b",
    "t5-11b",
    "qwen3-14b",
    "mixtral-8x7b",
}


def test_the_named_machines_and_models_are_there() -> None:
    assert set(accelerators()) == NAMED
    assert set(model_names()) == MODELS
    assert {drive.link_generation for drive in drives().values()} == {"gen4", "gen5"}


def test_every_figure_has_a_source() -> None:
    machines = (*accelerators().values(), *drives().values())
    assert [machine.key for machine in machines if "http" not in machine.source] == []
    assert [name for name in model_names() if "http" not in load_config(name)["_source"]] == []


@given(
    st.sampled_from(sorted(NAMED)),
    st.integers(0, 8),
    st.sampled_from([None, *sorted(drives())]),
    st.integers(0, 1 << 40),
)
def test_no_machine_moves_more_than_its_link(gpu, ssds, drive, host) -> None:
    if ssds == 0 and host == 0:
        return
    made = hardware(gpu, ssds=ssds, drive=drive, host_bytes=host)
    link = accelerator(gpu).link_bytes_per_s
    assert sum(tier.read_bytes_per_s for tier in made.tiers) <= link * (1 + 1e-9)
    assert sum(tier.write_bytes_per_s for tier in made.tiers) <= link * (1 + 1e-9)
    for tier in made.tiers:
        assert tier.read_bytes_per_s > 0 and tier.write_bytes_per_s > 0
        assert tier.mixed_bytes_per_s <= tier.read_bytes_per_s + tier.write_bytes_per_s
    assert [tier.name for tier in made.tiers] == ["ssd"] * (ssds > 0) + ["host"] * (host > 0)


def test_drives_add_up_until_the_link_is_full() -> None:
    four = hardware("h100-sxm", ssds=4, drive="samsung-990-pro-4tb").tiers[0]
    assert four.read_bytes_per_s == pytest.approx(4 * 7.45e9)
    assert four.capacity_bytes == 16e12
    assert four.rated_write_bytes == 4 * 2400e12
    assert four.mixed_bytes_per_s == pytest.approx(4 * 7.45e9)
    eight = hardware("h100-sxm", ssds=8, drive="micron-9550-max-6tb").tiers[0]
    link = accelerator("h100-sxm").link_bytes_per_s
    assert eight.read_bytes_per_s == eight.write_bytes_per_s == link
    assert eight.mixed_bytes_per_s == 2 * link


def test_the_way_to_the_drives_can_be_limited() -> None:
    tier = hardware("h100-nvl", drive="samsung-990-pro-2tb", ssd_bytes_per_s=16e9).tiers[0]
    assert (tier.read_bytes_per_s, tier.write_bytes_per_s) == (16e9, 16e9)
    assert tier.mixed_bytes_per_s == pytest.approx(4 * 7.45e9)


def test_the_budget_leaves_room_for_what_is_no_tensor() -> None:
    assert hardware("rtx-4090").budget_bytes == (24564 << 20) - (3 << 30)
    assert hardware("rtx-4090", memory_budget_bytes=123).budget_bytes == 123


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"no accelerator called 'h100'.*h100-sxm"):
        hardware("h100")
    with pytest.raises(ConfigurationError, match=r"no drive called 'floppy'.*samsung-990-pro-4tb"):
        hardware("h200", drive="floppy")
    with pytest.raises(ConfigurationError, match=r"no model configuration nowhere.*llama3-8b"):
        load_config("nowhere")


def test_no_tier_at_all_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no place to move storages to"):
        hardware("h200", ssds=0)
