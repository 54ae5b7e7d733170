"""Models train on the simulated device to the CPU's bits, whatever the kernels' delays.

In: small models. Out: losses, norms of gradients and parameters, compared bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.device.sim import SimModule

VOCABULARY = 128


class Mlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY, 32)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.LayerNorm(64)
        )
        self.head = torch.nn.Linear(64, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(tokens)))


def mlp(_dropout: float) -> torch.nn.Module:
    return Mlp()


def llama(dropout: float) -> torch.nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_dropout=dropout,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def gpt2(dropout: float) -> torch.nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_positions=64,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


Make = Callable[[float], torch.nn.Module]


def train(
    make: Make, device: str, dropout: float = 0.0, kind: str = "foreach", mixed: bool = False
) -> list[str]:
    """Losses and norms of the gradients, then the parameters; as text that shows every bit."""
    torch.manual_seed(0)
    model = make(dropout).to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-2, foreach=kind == "foreach", fused=kind == "fused"
    )
    data = torch.Generator().manual_seed(1)
    torch.manual_seed(2)
    numbers = []
    for _ in range(3):
        tokens = torch.randint(0, VOCABULARY, (4, 32), generator=data).to(device)
        with (
            sdpa_kernel(SDPBackend.MATH),
            torch.autocast(device, dtype=torch.bfloat16, enabled=mixed),
        ):
            outputs = model(tokens)
            logits = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        numbers += [loss.item().hex(), norm.item().hex()]
    parameters = [p.detach().cpu().flatten() for p in model.parameters()]
    return [*numbers, *map(str, torch.cat(parameters).view(torch.int32).tolist())]


@pytest.mark.parametrize("make", [mlp, llama, gpt2])
@pytest.mark.parametrize("kind", ["foreach", "single", "fused"])
def test_training_gives_the_bits_of_the_cpu(sim: SimModule, make: Make, kind: str) -> None:
    expected = train(make, "cpu", kind=kind)
    assert train(make, "sim", kind=kind) == expected
    sim.set_delay(100)
    assert train(make, "sim", kind=kind) == expected


@pytest.mark.parametrize("make", [llama, gpt2])
def test_training_with_dropout_gives_the_same_bits_each_time(sim: SimModule, make: Make) -> None:
    expected = train(make, "sim", dropout=0.1)
    assert expected != train(make, "sim", dropout=0.0)
    sim.set_delay(100)
    assert train(make, "sim", dropout=0.1) == expected


@pytest.mark.parametrize("make", [llama, gpt2])
def test_mixed_precision_gives_the_same_bits_each_time(sim: SimModule, make: Make) -> None:
    expected = train(make, "sim", mixed=True)
    assert expected != train(make, "sim")
    sim.set_delay(100)
    assert train(make, "sim", mixed=True) == expected


def test_autocast_multiplies_in_low_and_sums_in_full_precision(sim: SimModule) -> None:
    x = torch.ones(4, 4, device="sim")
    with torch.autocast("sim", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        assert (x @ x).softmax(0).dtype == torch.float32


def test_nothing_is_left_in_memory(sim: SimModule) -> None:
    train(llama, "sim")
    assert sim.allocated() == 0


def test_tied_parameters_stay_tied(sim: SimModule) -> None:
    model = gpt2(0.0).to("sim")
    assert model.lm_head.weight is model.transformer.wte.weight
