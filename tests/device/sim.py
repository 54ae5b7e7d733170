"""A device for tests whose memory is the host's but which computes asynchronously, as a GPU does.

In: the sources in csrc/, a C++ compiler. Out: ``torch.sim``, the device ``"sim:0"``. Must not know:
teraio.

A kernel runs later than its op, on the thread of its stream; memory that is freed is filled with
NaN and reused, in stream order and at once. So what would be a race on a GPU is one here.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests import cpp_sources

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ["-O1", *os.environ.get("TERAIO_CXXFLAGS", "").split()]

_MEMORY_BYTES = 4 << 30


class SimModule(types.ModuleType):
    """``torch.sim``: what PyTorch asks of a device's module, and what tests ask of this device."""

    def __init__(self, native: Any) -> None:
        super().__init__("torch.sim", __doc__)
        self._native = native
        self._initialized = True
        for name in (
            "set_delay",
            "allocated",
            "peak",
            "reserved",
            "reset_peak",
            "empty_cache",
            "host_register",
            "host_unregister",
        ):
            setattr(self, name, getattr(native, name))

    # What PyTorch asks for.

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def set_device(device: object) -> None:
        """There is one device."""

    def device(self, device: object) -> contextlib.AbstractContextManager[None]:
        """There is one device."""
        return contextlib.nullcontext()

    def synchronize(self, device: object = None) -> None:
        """Until all streams are done. Raises what a kernel raised since the last call."""
        self._native.synchronize()

    @staticmethod
    def current_stream(device: object = None) -> torch.Stream:
        return torch.accelerator.current_stream()

    @staticmethod
    def stream(stream: torch.Stream) -> torch.Stream:
        """The context in which ``stream`` is the current one: streams are that themselves."""
        return stream

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @property
    def default_generators(self) -> tuple[torch.Generator]:
        return (self._native.default_generator(),)

    def manual_seed(self, seed: int) -> None:
        self.default_generators[0].manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        self.manual_seed(seed)

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return self.default_generators[0].get_state()

    def set_rng_state(self, new_state: torch.Tensor, device: object = None) -> None:
        self.default_generators[0].set_state(new_state)

    # What tests ask for.

    @staticmethod
    def Stream() -> torch.Stream:
        return torch.Stream(device="sim:0")

    @staticmethod
    def Event(enable_timing: bool = False) -> torch.Event:
        return torch.Event(device="sim:0", enable_timing=enable_timing)

    def idle(self, stream: torch.Stream | None = None) -> bool:
        """Whether all work of the stream, by default the current one, is done."""
        return self._native.idle(_id_of(stream))

    @contextlib.contextmanager
    def paused(self, stream: torch.Stream | None = None, most_s: float = 60.0) -> Iterator[None]:
        """No kernel of the stream, by default the current one, starts before the end of the block.

        What waits for the stream inside the block fails after ``most_s``.
        """
        number = _id_of(stream)
        late = threading.Event()

        def resume() -> None:
            late.set()
            self._native.resume(number)

        timer = threading.Timer(most_s, resume)
        self._native.pause(number)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            if not late.is_set():
                self._native.resume(number)
        assert not late.is_set(), "something waited for the paused device"

    def get_memory_info(self) -> tuple[int, int]:
        """Bytes that are free, and all: as much as tests may need."""
        return _MEMORY_BYTES - int(self._native.reserved()), _MEMORY_BYTES

    def set_memory_limit(self, nbytes: int | None) -> None:
        """Bytes that this process may take of the device's; more: ``torch.OutOfMemoryError``."""
        self._native.set_memory_limit(-1 if nbytes is None else nbytes)

    def set_free_memory_callback(self, address: int | None, *, every_miss: bool = False) -> None:
        """The address of a C function ``bool (*)(void)`` that may free memory of the device.

        It is called, under the allocator's lock, when no free block fits and a new one would break
        the limit; with ``every_miss``, whenever no free block fits.
        """
        self._native.set_free_memory_callback(address or 0, every_miss)

    def reset(self) -> None:
        """As after loading: no delay, no limit, no callback, nothing cached, seed 0."""
        self._native.set_delay(0)
        self.set_memory_limit(None)
        self.set_free_memory_callback(None)
        self._native.synchronize()
        self._native.empty_cache()
        self._native.reset_peak()
        self.manual_seed(0)


def _id_of(stream: torch.Stream | None) -> int:
    return (stream or torch.accelerator.current_stream()).stream_id


@functools.cache
def load() -> SimModule:
    """Builds the device if this was not done before, and registers it. Raises: RuntimeError."""
    module = SimModule(cpp_sources.load("teraio_sim_device", SOURCES, FLAGS))
    torch.utils.rename_privateuse1_backend("sim")
    torch._register_device_module("sim", module)
    torch.utils.generate_methods_for_privateuse1_backend()
    atexit.register(module.synchronize)
    return module
