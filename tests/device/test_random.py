"""Random numbers depend on the seed and the order of ops, never on when kernels run."""

from __future__ import annotations

import pytest
import torch

from tests.device.sim import SimModule


def draw() -> list[torch.Tensor]:
    x = torch.ones(256, device="sim")
    return [
        torch.randn(256, device="sim"),
        torch.nn.functional.dropout(x, 0.5),
        torch.rand(256, device="sim"),
        torch.randint(100, (256,), device="sim"),
        torch.randperm(256, device="sim"),
        torch.multinomial(x, 64),
        x.clone().bernoulli_(0.3),
    ]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(one, other, strict=True)]


def test_the_same_seed_gives_the_same_numbers_with_and_without_delays(sim: SimModule) -> None:
    torch.manual_seed(3)
    expected = draw()
    sim.set_delay(500)
    torch.manual_seed(3)
    assert all(equal(draw(), expected))
    torch.manual_seed(4)
    assert not any(equal(draw(), expected))


def test_numbers_are_drawn_in_the_order_of_ops_not_of_streams(sim: SimModule) -> None:
    other = sim.Stream()

    def on_two_streams() -> list[torch.Tensor]:
        with sim.paused(other):
            with other:
                first = torch.rand(64, device="sim")
            second = torch.rand(64, device="sim")
            sim.current_stream().synchronize()
        sim.synchronize()
        return [first, second]

    torch.manual_seed(3)
    expected = [torch.rand(64, device="sim") for _ in range(2)]
    torch.manual_seed(3)
    assert all(equal(on_two_streams(), expected))


def test_the_state_can_be_kept_and_set(sim: SimModule) -> None:
    state = sim.get_rng_state()
    first = torch.rand(64, device="sim")
    sim.set_rng_state(state)
    assert torch.equal(torch.rand(64, device="sim"), first)


def test_a_generator_of_its_own_is_independent(sim: SimModule) -> None:
    one = torch.rand(64, device="sim", generator=torch.Generator("sim").manual_seed(5))
    torch.rand(64, device="sim")
    two = torch.rand(64, device="sim", generator=torch.Generator("sim").manual_seed(5))
    assert torch.equal(one, two)
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(64, device="sim", generator=torch.Generator())


def test_dropout_recomputed_by_a_checkpoint_drops_the_same(sim: SimModule) -> None:
    x = torch.ones(512, device="sim", requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(
        lambda t: torch.nn.functional.dropout(t, 0.5) * t, x, use_reentrant=False
    )
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach() * 2)
