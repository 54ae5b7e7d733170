"""Models with the same start weights in every process, and the text they train on.

In: a Shape. Out: a torch module, batches. Must not know: systems.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from benchmarks.shapes import VOCABULARY, Shape
from benchmarks.text import standard_library_text

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SEED = 1234
_SPREAD = 0.02
_TEXT_BYTES = 1 << 22

_RANDOM = ("normal_", "uniform_", "kaiming_uniform_", "trunc_normal_")

Hold = Callable[[torch.nn.Parameter], AbstractContextManager[None]]


def new_model(shape: Shape) -> torch.nn.Module:
    """In fp32 on the default device, with weights that ``fill`` has yet to set."""
    return _llama(shape) if shape.family == "llama" else _gpt(shape)


def fill(model: torch.nn.Module, source: str, hold: Hold | None = None) -> None:
    """Sets every matrix from a generator that its name seeds; vectors keep the values of new ones.

    The generator is one of the device ``source``: other devices give other values.
    ``hold(parameter)`` is entered around the write, for systems that keep parameters elsewhere. The
    shape is taken inside, as it may be another outside.
    """
    for name, parameter in model.named_parameters():
        with (hold or nullcontext)(parameter), torch.no_grad():
            if parameter.dim() < 2:
                continue
            generator = torch.Generator(source).manual_seed(_SEED ^ zlib.crc32(name.encode()))
            values = torch.randn(parameter.shape, generator=generator, device=source) * _SPREAD
            parameter.copy_(values)


def build_model(
    shape: Shape, dtype: str, device: str, source: str | None = None
) -> torch.nn.Module:
    """Made on the CPU, so that buffers are the same to the last bit wherever it is trained.

    ``source``: as in ``fill``, by default the model's device.
    """
    with _Unfilled():
        model = new_model(shape)
    fill(model, source or device)
    return model.to(DTYPES[dtype]).to(device)


class _Unfilled(TorchFunctionMode):
    """Leaves matrices without start weights of their own, which take longer than all the rest."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        filled = kwargs.get("tensor", args[0] if args else None)
        if getattr(func, "__name__", "") in _RANDOM and filled.dim() > 1:
            return filled
        return func(*args, **kwargs)


class Batches:
    """The text of Python's standard library in consecutive batches, over and over."""

    def __init__(self, shape: Shape, device: str) -> None:
        text = bytearray(standard_library_text(_TEXT_BYTES))
        self._bytes = torch.frombuffer(text, dtype=torch.uint8)
        self._shape = shape
        self._device = device

    def __getitem__(self, step: int) -> torch.Tensor:
        """Token numbers of shape (batch, sequence)."""
        shape = self._shape
        start = step % (len(self._bytes) // shape.tokens) * shape.tokens
        tokens = self._bytes[start : start + shape.tokens].to(self._device, torch.int64)
        return tokens.view(shape.batch, shape.sequence)


def warm_up(device: str) -> None:
    """Loads what torch loads at its first step, so that no run has to pay for it."""
    shape = Shape(
        family="llama", hidden=64, layers=1, heads=2, feed_forward=128, batch=1, sequence=16
    )
    model = build_model(shape, "fp32", device)
    optimizer = adamw(model.parameters())
    tokens = torch.arange(shape.tokens, device=device).view(shape.batch, shape.sequence)
    for _ in range(2):
        torch.autograd.backward(loss_of(model, tokens))
        optimizer.step()


LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = 3e-4, (0.9, 0.999), 1e-8, 0.01


def adamw(parameters: Iterable[torch.Tensor]) -> torch.optim.AdamW:
    """torch's AdamW with the figures that every system is given."""
    return torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY
    )


def loss_of(model: Callable[..., object], tokens: torch.Tensor) -> torch.Tensor:
    loss = model(input_ids=tokens, labels=tokens).loss  # type: ignore[attr-defined]
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"the model's loss is {loss!r}, not a tensor")
    return loss


def _llama(shape: Shape) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.feed_forward,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.sequence,
        tie_word_embeddings=False,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def _gpt(shape: Shape) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=shape.hidden,
        n_layer=shape.layers,
        n_inner=shape.feed_forward,
        n_head=shape.heads,
        n_positions=shape.sequence,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)
