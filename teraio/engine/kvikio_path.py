"""Moves bytes between memory and spill files through kvikio.

In: open spill files, requests of the native I/O threads. Out: bytes moved. Must not know: torch,
storages, why kvikio was chosen.

kvikio's POSIX path copies device memory through pinned buffers of its own; with ``gds`` cuFile
moves it without a copy. Host memory goes by pread and pwrite either way. kvikio needs a CUDA driver
library for any of it, but for host memory no GPU.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from teraio.engine import gds
from teraio.errors import ConfigurationError

_PAGE = 4096
# A window on host memory, as large as the largest request. One type for all sizes: ctypes would
# make a new one for each, and types are garbage only the cyclic collector can remove.
_Window = ctypes.c_char * (64 << 20)
# kvikio has one pool of threads for the whole process.
_pool = threading.Lock()


class KvikioMissing(ConfigurationError):
    """kvikio can't be used: it, or the driver or memory that it needs, is not there."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How kvikio works on a request: in tasks of ``task_bytes``, by ``threads`` threads."""

    threads: int
    task_bytes: int


@dataclass(frozen=True, slots=True)
class _DeviceMemory:
    """Device memory as kvikio takes it."""

    __cuda_array_interface__: dict[str, Any]


def load() -> Any:
    """The package kvikio. Raises KvikioMissing where it, or a driver for it, is missing."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise KvikioMissing(
            "kvikio can't move any bytes without a CUDA driver (libcuda.so.1), not even of host "
            "memory; install the driver."
        ) from None
    try:
        kvikio = import_module("kvikio")
        import_module("kvikio.defaults")
    except Exception as error:  # its loader of libraries has exceptions of its own
        raise KvikioMissing(
            f"kvikio can't be imported ({type(error).__name__}: {error}); "
            "pip install kvikio-cu13, or kvikio-cu12 for CUDA 12."
        ) from error
    _watch_forks()
    return kvikio


@cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_end_without_kvikio)


def _end_without_kvikio() -> None:
    """Makes a process that was forked off end behind Python, before kvikio's library does.

    There kvikio would end its threads, which live in the parent only, and hang or crash.
    """
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):  # on_exit is glibc's
        libc.on_exit(libc._exit, None)


def configure(settings: Settings) -> AbstractContextManager[None]:
    """Sets kvikio up for the whole process; leaving the context gives back what was set before.

    Reads are direct like writes: extents are aligned to pages, and the page cache would hold what
    was just sent away to save memory.
    """
    defaults = load().defaults
    with _pool:
        changed: AbstractContextManager[None] = defaults.set(
            {
                "num_threads": settings.threads,
                "task_size": settings.task_bytes,
                "bounce_buffer_size": settings.task_bytes,
                "auto_direct_io_read": True,
                "auto_direct_io_write": True,
            }
        )
    return changed


def try_out(fd: int) -> None:
    """Writes a page to a spill file. Raises KvikioMissing where kvikio can't do even that.

    An old driver is found so: kvikio looks for what it needs in it at its first request.
    """
    page = bytearray(_PAGE)
    with closing(_open(fd, by_gds=False)) as file:
        try:
            file.pwrite(page, _PAGE, 0).get()
        except (RuntimeError, OSError) as error:
            raise KvikioMissing(
                f"kvikio can't move any bytes ({error}); update the CUDA driver, or install the "
                "kvikio that is made for it: kvikio-cu13 or kvikio-cu12."
            ) from error


class KvikioPath:
    """The path of all spill files of a run; call it with a request. See ``csrc/python_path.h``.

    ``fds`` are the spill files. They have no names, so kvikio opens them through /proc. With
    ``uses_gds[i]`` file ``i`` goes by cuFile, which must have been found to work
    (``gds.obstacle``): else it may crash or never return. Raises RuntimeError as kvikio does.
    """

    def __init__(self, fds: Sequence[int], uses_gds: Sequence[bool]) -> None:
        self._idle = threading.Condition()
        self._in_flight = 0
        self._closed = False
        self._files = [_open(fd, by_gds) for fd, by_gds in zip(fds, uses_gds, strict=True)]
        self._registered: list[_DeviceMemory] = []
        self._registers = any(uses_gds)
        self._process = os.getpid()
        # Threads that are in kvikio when the interpreter ends would never return to it.
        atexit.register(self.close)

    def __call__(
        self, folder: int, write: bool, address: int, device: int, nbytes: int, offset: int
    ) -> int:
        """Moves ``nbytes`` and gives their number; raises OSError with kvikio's text."""
        with self._idle:
            if self._closed:
                raise OSError(errno.ESHUTDOWN, "kvikio's files are closed")
            self._in_flight += 1
        try:
            return self._move(
                self._files[folder], write, _memory(address, device, nbytes), nbytes, offset
            )
        finally:
            with self._idle:
                self._in_flight -= 1
                self._idle.notify_all()

    def _move(self, file: Any, write: bool, memory: object, nbytes: int, offset: int) -> int:
        # The future keeps neither memory nor file alive: both are held here until it is done.
        move = file.pwrite if write else file.pread
        try:
            return int(move(memory, nbytes, offset).get())
        except (RuntimeError, OSError) as error:
            self._wait_for_tasks(file)
            raise _with_errno(error) from error

    def _wait_for_tasks(self, file: Any) -> None:
        """Waits until no task of kvikio's that was there before touches memory or files.

        Before kvikio 26.10 a request of several tasks fails as soon as one does, while others may
        still run. Tasks begin in order, so once a later one is done all earlier ones have begun;
        and to set the number of threads, even to what it is, kvikio waits for what runs.
        """
        defaults = load().defaults
        page = bytearray(_PAGE)
        with _pool:
            with suppress(RuntimeError, OSError):
                file.pread(page, _PAGE, 0).get()
            threads = defaults.get("num_threads")
            defaults.set("num_threads", threads)

    def register(self, address: int, nbytes: int, device: int) -> None:
        """Tells cuFile of device memory that will be used again and again, such as a staging
        buffer.

        ``address`` is that of an allocation of at least ``nbytes``. Without GPUDirect Storage
        there is nothing to do. Raises RuntimeError as kvikio does.
        """
        if not self._registers:
            return
        memory = _memory(address, device, nbytes)
        kvikio = load()
        with _mode(kvikio, gds_on=True):
            kvikio.memory_register(memory)
        if isinstance(memory, _DeviceMemory):
            self._registered.append(memory)

    def close(self) -> None:
        """Waits for requests that run, refuses further ones, and closes the files.

        In a process forked off there is nobody to wait for: there it does nothing.
        """
        if os.getpid() != self._process:
            return
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: self._in_flight == 0)
        atexit.unregister(self.close)
        if self._registered:
            kvikio = load()
            with _mode(kvikio, gds_on=True):
                while self._registered:
                    kvikio.memory_deregister(self._registered.pop())
        while self._files:
            self._files.pop().close()


def _open(fd: int, by_gds: bool) -> Any:
    kvikio = load()
    if by_gds:
        gds.forbid_compatibility()
    with _mode(kvikio, gds_on=by_gds):
        return kvikio.CuFile(f"/proc/self/fd/{fd}", "r+")


def _mode(kvikio: Any, gds_on: bool) -> AbstractContextManager[None]:
    """kvikio's own compatibility mode, which a file keeps from when it was opened.

    Never AUTO: that tries cuFile wherever its library is, and where no GPU answers it may spin for
    ever.
    """
    mode = kvikio.CompatMode.OFF if gds_on else kvikio.CompatMode.ON
    changed: AbstractContextManager[None] = kvikio.defaults.set("compat_mode", mode)
    return changed


def _memory(address: int, device: int, nbytes: int) -> object:
    if device < 0:
        return _Window.from_address(address)
    return _DeviceMemory(
        {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}
    )


def _with_errno(error: Exception) -> OSError:
    """kvikio's errors have no number, only the system's words for it."""
    text = str(error)
    if isinstance(error, OSError) and error.errno:
        return OSError(error.errno, f"kvikio: {text}")
    if text.endswith("EOF"):
        return OSError(
            errno.ENODATA, f"kvikio: {text}, the file is shorter than what was written to it"
        )
    if "POSIX error: Operation not permitted" in text:  # so it calls a bad file descriptor
        return OSError(errno.EBADF, f"kvikio: {text}")
    words = {os.strerror(number): number for number in errno.errorcode}
    found = max((word for word in words if word in text), key=len, default="")
    return OSError(words.get(found, errno.EIO), f"kvikio: {text}")
