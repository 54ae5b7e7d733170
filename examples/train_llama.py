"""Trains a small Llama on text: an ordinary script, which knows nothing of teraio.

In: the command line. Out: the loss of each step. The text is the source of Python's standard
library, one byte per token.

``python examples/train_llama.py --steps 20 --layers 8 --hidden 512``
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def model(layers: int, hidden: int, sequence: int) -> LlamaForCausalLM:
    """A Llama with random weights over bytes."""
    heads = hidden // 64
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=sequence,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def batches(batch: int, sequence: int) -> Iterator[torch.Tensor]:
    """Without end: ``batch`` x ``sequence`` bytes of text."""
    text = b"".join(
        path.read_bytes() for path in sorted(Path(argparse.__file__).parent.glob("*.py"))
    )
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    each = batch * sequence
    while True:
        for start in range(0, len(tokens) - each, each):
            yield tokens[start : start + each].view(batch, sequence).long()


def main() -> None:
    """Trains and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=256)
    options = parser.parse_args()
    torch.manual_seed(0)
    llama = model(options.layers, options.hidden, options.sequence)
    optimizer = torch.optim.AdamW(llama.parameters(), lr=3e-4)
    data = batches(options.batch, options.sequence)
    for step in range(options.steps):
        begin = time.perf_counter()
        tokens = next(data)
        loss = llama(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(
            f"step {step}: loss {loss.item():.4f}, {time.perf_counter() - begin:.2f} s", flush=True
        )


if __name__ == "__main__":
    main()
