"""The models and batches that systems are compared on, and how much arithmetic a token takes.

In: nothing. Out: SHAPES by name. Must not know: torch, systems.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VOCABULARY = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama- or GPT-2-like model and the batch it trains on; tokens are bytes."""

    family: Literal["llama", "gpt"]
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    batch: int
    sequence: int

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch * self.sequence

    @property
    def matrix_parameters(self) -> int:
        """Parameters that multiply every token: all matrices, but not the tables of embeddings."""
        matrices = 3 if self.family == "llama" else 2
        layer = 4 * self.hidden**2 + matrices * self.hidden * self.feed_forward
        return self.layers * layer + self.hidden * VOCABULARY

    @property
    def largest_parameter(self) -> int:
        """Elements of the largest parameter; GPT-2 keeps query, key and value in one."""
        attention = self.hidden**2 * (3 if self.family == "gpt" else 1)
        table = self.hidden * max(VOCABULARY, self.sequence if self.family == "gpt" else 0)
        return max(attention, self.hidden * self.feed_forward, table)

    @property
    def flops_per_token(self) -> int:
        """Forward and backward, whatever a system computes in addition.

        Six per matrix parameter, and ``12 * layers * hidden * sequence`` for attention, causal or
        not (PaLM, arXiv 2204.02311, appendix B).
        """
        attention = 12 * self.layers * self.hidden * self.sequence
        return 6 * self.matrix_parameters + attention


def _llama(hidden: int, layers: int, heads: int, feed_forward: int, batch: int, seq: int) -> Shape:
    return Shape(
        family="llama",
        hidden=hidden,
        layers=layers,
        heads=heads,
        feed_forward=feed_forward,
        batch=batch,
        sequence=seq,
    )


def _gpt(hidden: int, layers: int, heads: int, batch: int, seq: int) -> Shape:
    return Shape(
        family="gpt",
        hidden=hidden,
        layers=layers,
        heads=heads,
        feed_forward=4 * hidden,
        batch=batch,
        sequence=seq,
    )


# Names say the family and about how many parameters; a suffix says what is unusual of the batch.
SHAPES = {
    "llama-3m": _llama(256, 4, 4, 688, 4, 128),
    "gpt-3m": _gpt(256, 4, 4, 4, 128),
    "llama-4m": _llama(512, 1, 8, 1376, 2, 128),
    "llama-13m": _llama(512, 4, 8, 1376, 4, 128),
    "gpt-13m": _gpt(512, 4, 8, 4, 128),
    "llama-25m": _llama(512, 8, 8, 1376, 3, 256),
    "llama-100m": _llama(768, 14, 12, 2048, 3, 256),
    "llama-100m-batch1": _llama(768, 14, 12, 2048, 1, 256),
    "llama-100m-seq768": _llama(768, 14, 12, 2048, 1, 768),
    "llama-100m-batch8-seq1024": _llama(768, 14, 12, 2048, 8, 1024),
    "gpt-100m": _gpt(768, 14, 12, 3, 256),
    "llama-1b": _llama(2048, 16, 32, 8192, 8, 1024),
    "gpt-1b": _gpt(2048, 20, 16, 8, 1024),
    "llama-2b": _llama(2048, 40, 32, 5440, 1, 512),
    "llama-3b": _llama(3072, 28, 24, 8192, 8, 1024),
    "llama-3b-batch2": _llama(3072, 28, 24, 8192, 2, 1024),
    "llama-3b-seq4096": _llama(3072, 28, 24, 8192, 2, 4096),
    # The layers of Llama-3-8B, with as many key and value heads as query heads.
    "llama-8b": _llama(4096, 32, 32, 14336, 8, 1024),
}
