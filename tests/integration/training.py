"""Trains small transformers models with and without teraio, so that tests can compare results.

In: a Case and a budget. Out: an Outcome: losses, digests of parameters and optimizer states, and
the report of the run. Must not know: what is being proven.
"""

from __future__ import annotations

import functools
import gc
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

import teraio

# Above any machine's memory, so nothing moves and the counted peak is that of the program itself.
NO_LIMIT = 1 << 46

VOCABULARY = 512
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One way to train. ``features`` are names that ``Training`` looks for.

    ``scale`` widens the model, and the batch half as much: an allocator that takes 20 MiB at a time
    can't keep the budgets of models as small as those for the CPU.
    """

    model: str
    optimizer: str = "adamw"
    features: frozenset[str] = frozenset()
    steps: int = 10
    device: str = "cpu"
    scale: int = 1

    def __str__(self) -> str:
        device = () if self.device == "cpu" else (self.device,)
        return "-".join((self.model, self.optimizer, *sorted(self.features), *device))


@dataclass
class Outcome:
    """``digests``: one per parameter, buffer and optimizer state; ``extras``: what ran in between.

    All of it compares bit for bit.
    """

    losses: list[str] = field(default_factory=list)
    extras: list[Any] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    report: teraio.RunReport | None = None

    def numbers(self) -> tuple[list[str], list[Any], dict[str, str]]:
        return self.losses, self.extras, self.digests


def make_llama(features: frozenset[str], scale: int = 1) -> torch.nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192 * scale,
        num_hidden_layers=2 if "shallow" in features else 4,
        intermediate_size=512 * scale,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        attention_dropout=0.1 if "dropout" in features else 0.0,
        tie_word_embeddings="tied" in features,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config)


def make_gpt2(features: frozenset[str], scale: int = 1) -> torch.nn.Module:
    dropout = 0.1 if "dropout" in features else 0.0
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=192 * scale,
        n_layer=2 if "shallow" in features else 4,
        n_head=4,
        n_positions=256,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.GPT2LMHeadModel(config)


def make_t5(features: frozenset[str], scale: int = 1) -> torch.nn.Module:
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=192 * scale,
        d_kv=48 * scale,
        d_ff=512 * scale,
        num_layers=3,
        num_heads=4,
        dropout_rate=0.1 if "dropout" in features else 0.0,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def make_mixtral(features: frozenset[str], scale: int = 1) -> torch.nn.Module:
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=128 * scale,
        num_hidden_layers=4,
        intermediate_size=256 * scale,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        attention_dropout=0.1 if "dropout" in features else 0.0,
        output_router_logits=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.MixtralForCausalLM(config)


def make_vit(features: frozenset[str], scale: int = 1) -> torch.nn.Module:
    config = transformers.ViTConfig(
        hidden_size=192 * scale,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512 * scale,
        image_size=64,
        patch_size=8,
        num_labels=10,
        hidden_dropout_prob=0.1 if "dropout" in features else 0.0,
    )
    return transformers.ViTForImageClassification(config)


MODELS: dict[str, Callable[[frozenset[str], int], torch.nn.Module]] = {
    "llama": make_llama,
    "gpt2": make_gpt2,
    "t5": make_t5,
    "mixtral": make_mixtral,
    "vit": make_vit,
}

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}

FEATURES = (
    "clip",
    "scheduler",
    "accumulate",
    "autocast",
    "checkpointing",
    "dropout",
    "tied",
    "frozen",
    "evaluate",
    "generate",
    "last_batch",
)


def make_batch(model: str, size: int, generator: torch.Generator) -> Batch:
    if model == "vit":
        pixels = torch.randn(size, 3, 64, 64, generator=generator)
        return {
            "pixel_values": pixels,
            "labels": torch.randint(0, 10, (size,), generator=generator),
        }
    tokens = torch.randint(3, VOCABULARY, (size, 64), generator=generator)
    return {"input_ids": tokens, "labels": tokens.flip(1) if model == "t5" else tokens}


class Training:
    """A model, its optimizer and a loop; the same numbers each time it is made and run."""

    def __init__(self, case: Case) -> None:
        self.case = case
        torch.manual_seed(0)
        self.model = MODELS[case.model](case.features, case.scale).train().to(case.device)
        if "frozen" in case.features:
            self._freeze()
        if "checkpointing" in case.features:
            self.model.gradient_checkpointing_enable()  # type: ignore[operator]
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = OPTIMIZERS[case.optimizer](trainable)
        self.scheduler = (
            torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=case.steps)
            if "scheduler" in case.features
            else None
        )
        self.data = torch.Generator().manual_seed(1)
        self.outcome = Outcome()
        self.done = 0
        torch.manual_seed(2)

    def _freeze(self) -> None:
        """The embeddings and every second parameter of the first block."""
        named = list(self.model.named_parameters())
        for index, (name, parameter) in enumerate(named):
            if "embed" in name or "wte" in name or ("0." in name and index % 2):
                parameter.requires_grad_(False)

    def run(self, steps: int | None = None) -> Outcome:
        """``steps`` more steps, by default all of the case."""
        for _ in range(self.case.steps if steps is None else steps):
            self.step()
        return self.outcome

    def step(self) -> None:
        features = self.case.features
        micro_batches = 4 if "accumulate" in features else 1
        losses = [self.forward_and_backward(micro_batches) for _ in range(micro_batches)]
        if "clip" in features:
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            losses.append(float(norm))
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.optimizer.zero_grad()
        self.done += 1
        self.outcome.losses += [loss.hex() for loss in losses]
        if self.done in (4, 7):
            self._in_between()

    def forward_and_backward(self, micro_batches: int = 1) -> float:
        with self._autocast():
            loss = self.model(**self._there(self.next_batch())).loss / micro_batches
        loss.backward()
        return float(loss.detach())

    def _there(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.case.device) for name, tensor in batch.items()}

    def next_batch(self) -> Batch:
        # Epochs of five batches whose last one is smaller.
        last = "last_batch" in self.case.features and self.done % 5 == 4
        size = max(1, self.case.scale // 2) * (3 if last else 8)
        return make_batch(self.case.model, size, self.data)

    def _autocast(self) -> AbstractContextManager[Any]:
        if "autocast" in self.case.features:
            return torch.autocast(self.case.device, dtype=torch.bfloat16)
        return nullcontext()

    def _in_between(self) -> None:
        if "evaluate" in self.case.features:
            self.outcome.extras.append(self.evaluate())
        if "generate" in self.case.features:
            self.outcome.extras.append(self.generate())

    def evaluate(self) -> list[str]:
        self.model.eval()
        with torch.no_grad():
            batches = (make_batch(self.case.model, 4, self.data) for _ in range(2))
            losses = [float(self.model(**self._there(batch)).loss).hex() for batch in batches]
        self.model.train()
        return losses

    def generate(self) -> list[list[int]]:
        self.model.eval()
        prompt = self._there(make_batch(self.case.model, 2, self.data))["input_ids"][:, :8]
        tokens = self.model.generate(  # type: ignore[operator]
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=6,
            do_sample=False,
        )
        self.model.train()
        return [list(map(int, row)) for row in tokens.tolist()]

    def take_digests(self) -> None:
        """Call it when nothing is away any more."""
        self.outcome.digests = digests(self.model, self.optimizer)


def digest(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(data).hexdigest()}"


def digests(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, str]:
    tensors = dict(_flat("model", model.state_dict()))
    tensors.update(_flat("optimizer", optimizer.state_dict()["state"]))
    return {
        name: digest(value) if isinstance(value, torch.Tensor) else repr(value)
        for name, value in tensors.items()
    }


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{prefix}/{key}", inner)
    else:
        yield prefix, value


@functools.cache
def plain(case: Case) -> Outcome:
    """The outcome without teraio."""
    training = Training(case)
    training.run()
    training.take_digests()
    return training.outcome


def offloaded(case: Case, budget: int, spill: str) -> Outcome:
    """The outcome under a budget; the run is closed again when this returns."""
    training = Training(case)
    teraio.offload(training.model, memory_budget=budget, ssd=[spill])
    try:
        training.run()
        training.outcome.report = teraio.report(training.model)
    finally:
        teraio.restore(training.model)
    training.take_digests()
    outcome = training.outcome
    del training
    gc.collect()
    return outcome


@functools.cache
def unlimited(case: Case, spill: str) -> Outcome:
    """The outcome under teraio with a budget that everything fits into."""
    return offloaded(case, NO_LIMIT, spill)


def unlimited_peak(case: Case, spill: str) -> int:
    report = unlimited(case, spill).report
    if report is None:
        raise RuntimeError("an offloaded run without a report")
    return max(step.peak_bytes for step in report.steps)
