"""A run in a process of its own, seen from the process that gives the turns.

In: a Job. Out: its answers, or why there are none. Must not know: torch, which system runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import Any

from benchmarks.codec import decode, encode
from benchmarks.control_group import ControlGroup, read_ahead_pages, why_not
from benchmarks.job import Job, Outcome, Step
from benchmarks.systems import Unavailable, system_of

ROOT = Path(__file__).resolve().parents[1]
ANSWER_S = 600.0
# PyTorch's option for large tensors in huge pages. teraio's always are, so plain PyTorch would be
# no ideal without.
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
_SHOWN_CHARACTERS = 2000


class RunFailed(RuntimeError):
    """The process ended, or fell silent, before it was done; the message has its last words."""


class Worker:
    """One child process. It is stopped whenever it isn't asked for something: all of its threads,
    or what still moves after a step would take from the step of another one, and cost nothing."""

    def __init__(self, job: Job, answer_s: float = ANSWER_S) -> None:
        """Returns once libraries are loaded. Raises Unavailable or RunFailed."""
        _check(job)
        self.job = job
        self._answer_s = answer_s
        self._silent = False
        self._group: ControlGroup | None = None
        self._errors = tempfile.TemporaryFile(  # noqa: SIM115 (close() closes it)
            "w+", encoding="utf-8", errors="replace"
        )
        # DeepSpeed's files have fixed names: two runs in one folder destroy each other's.
        self._folders = [tempfile.TemporaryDirectory(dir=folder) for folder in job.ssd]
        own = replace(job, ssd=tuple(folder.name for folder in self._folders))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child", json.dumps(encode(own))],
            cwd=ROOT,
            env=_environment(job),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )
        with self._closing_on_error():
            self._answer("loaded")

    def build(self) -> None:
        """Makes the model and its system, under the limit if the job is to be confined."""
        with self._closing_on_error():
            if self.job.confined and self.job.limit_bytes is not None:
                self._group = ControlGroup(self._process.pid, self.job.limit_bytes)
            self._ask("build", "built")
            self._pause()

    def step(self, turn: int) -> Step:
        with self._closing_on_error():
            step = decode(Step, self._ask(f"step {turn}", "step"))
            self._pause()
            return step

    def finish(self) -> Outcome:
        with self._closing_on_error():
            outcome = decode(Outcome, self._ask("finish", "outcome"))
            self._process.wait(self._answer_s)
        self.close()
        return outcome

    def close(self) -> None:
        """Ends the process if it is still there."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None and not stream.closed:
                stream.close()
        for folder in self._folders:
            folder.cleanup()
        if self._group is not None:
            self._group.close()
            self._group = None

    def _closing_on_error(self) -> _ClosingOnError:
        return _ClosingOnError(self)

    def _pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def _ask(self, word: str, key: str) -> Any:
        if self._process.stdin is None:
            raise RunFailed("the run has no input")
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # It has ended; reading its answer says how.
        return self._answer(key)

    def _answer(self, key: str) -> Any:
        if self._process.stdout is None:
            raise RunFailed("the run has no output")
        silence = Timer(self._answer_s, self._end_silence)
        silence.start()
        try:
            line = self._process.stdout.readline()
        finally:
            silence.cancel()
        message = json.loads(line) if line else {}
        if "unavailable" in message:
            raise Unavailable(message["unavailable"])
        if key not in message:
            raise RunFailed(self._last_words())
        return message[key]

    def _end_silence(self) -> None:
        self._silent = True
        self._process.kill()

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        text = self._errors.read().strip()[-_SHOWN_CHARACTERS:]
        end = f"ended with status {status}"
        if self._silent:
            end = f"no answer within {self._answer_s:.0f} s"
        elif self._group is not None and status == -signal.SIGKILL:
            return (
                "killed by the kernel, which found no memory within the limit, swap space or not"
                f" (it reads {read_ahead_pages()} pages ahead; sysctl vm.page-cluster=0 stops that)"
            )
        return f"{end}: {text}" if text else end


class _ClosingOnError:
    """Whatever goes wrong, no process is left behind."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is not None:
            self._worker.close()


def _check(job: Job) -> None:
    """Raises Unavailable for what can't run here, so that no process is started in vain."""
    if job.device == "cpu" and system_of(job.system).from_gpu:
        raise Unavailable("moves from a GPU to host memory; this run has no GPU")
    reason = why_not() if job.confined else None
    if reason:
        raise Unavailable(reason)


def _environment(job: Job) -> dict[str, str]:
    """Alike for all. Waiting threads of OpenMP must not spin: other runs have the turn."""
    on_gpu = {
        # Equal bits need it; and an allocator that can divide its memory holds less of it.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }
    return {
        **os.environ,
        **(on_gpu if job.device == "cuda" else {}),
        "OMP_NUM_THREADS": str(job.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        **HUGE_PAGES,
        "TOKENIZERS_PARALLELISM": "false",
        **system_of(job.system).environment,
    }
