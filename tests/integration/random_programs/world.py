"""What a random program works on: weights, running means and what it keeps between its steps.

In: a device and a width. Out: a World. Must not know: what is drawn.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import teraio

REGISTERS = 5
WEIGHTS = 6
MEANS = 3
MEAN_ROWS = 64

Function = Callable[[Tensor], Tensor]
"""What an instruction makes of one register; it keeps the shape."""

Instruction = Callable[[list[Tensor], int], None]
"""Reads some registers and replaces one; the number is that of the batch."""

T = TypeVar("T")


class Interruption(Exception):
    """What a program raises itself and gets over."""


@contextlib.contextmanager
def failure() -> Iterator[None]:
    """What is within fails, for a reason of PyTorch's or of the program."""
    try:
        yield
    except teraio.TeraioError:
        raise
    except (Interruption, IndexError, RuntimeError):
        return
    raise AssertionError("it does not fail")


class Window(NamedTuple):
    """Memory that a tensor and an array share."""

    tensor: Tensor
    array: np.ndarray[Any, Any]


class Model(nn.Module):
    """Its forward pass is what it is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(_matrix(width)) for _ in range(WEIGHTS))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(WEIGHTS))
        for i in range(MEANS):
            self.register_buffer(f"mean{i}", torch.zeros(MEAN_ROWS, width))

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()


class World:
    """What lasts between the steps of a program."""

    def __init__(self, device: str, width: int) -> None:
        self.device, self.width = device, width
        self.step = 0
        self.model = Model(width).to(device)
        self.weights, self.biases = self.model.weights, self.model.biases
        self.kept: dict[int, Tensor] = {}
        self.shadows: dict[int, Tensor] = {}
        self.inferred: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        self.windows: dict[int, Window] = {}
        self.seen: list[Any] = []
        self.streams: list[Any] = []
        self.hooks: list[RemovableHandle] = []

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"

    def mean(self, i: int) -> Tensor:
        return self.model.get_buffer(f"mean{i}")

    def state(self) -> Any:
        windows = [window.tensor for window in self.windows.values()]
        lasting = self.kept, self.shadows, self.inferred, self.outputs, windows
        return [self.model.state_dict(), *lasting]

    def join_streams(self) -> None:
        """Before gradients are freed: some may be memory of streams other than the current one."""
        for stream in self.streams:
            stream.wait_stream(torch.accelerator.current_stream())

    def end_backward(self) -> None:
        self.join_streams()
        self.streams.clear()
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()

    def in_thread(self, work: Callable[[], T]) -> T:
        """What ``work`` gives in another thread, on the same stream and with gradients or not."""
        graded, inferring = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        stream = contextlib.nullcontext() if self.on_cpu else torch.accelerator.current_stream()

        def there() -> T:
            with torch.inference_mode(inferring), torch.set_grad_enabled(graded), stream:
                return work()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(there).result()


def _matrix(width: int) -> Tensor:
    return torch.randn(width, width) / width**0.5


def register(draw: random.Random) -> int:
    return draw.randrange(REGISTERS)
