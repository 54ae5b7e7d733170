"""Runs the native core under sanitizers: ``python -m tests.sanitizers.run asan tsan``.

In: which ones; the sources. Out: an instrumented copy of the package in build/<sanitizer>, its
reports in build/<sanitizer>/reports; fails if there are any, or if a test fails. Must not know:
single tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.sanitizers.reports import reports

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

# -O1 and frame pointers for stacks that can be read.
COMMON_FLAGS = "-g1 -O1 -fno-omit-frame-pointer"

STRESS = [str(HERE / "stress.py"), "20"]
# The package under test comes by PYTHONPATH, which pytest's own setting would precede.
PYTEST = ["-m", "pytest", "-q", "-o", "pythonpath="]
DEVICE = [f"tests/device/test_{name}.py" for name in ("memory", "copies", "streams")]


@dataclass(frozen=True)
class Sanitizer:
    flags: str
    libraries: tuple[str, ...]
    environment: dict[str, str]
    suites: tuple[list[str], ...]
    canary: tuple[str, ...]  # what it has to say of canary.cpp
    prefix: tuple[str, ...] = ()


SANITIZERS = {
    "asan": Sanitizer(
        # What is undefined ends in an illegal instruction, which AddressSanitizer reports.
        # UndefinedBehaviorSanitizer itself, beside it, writes to stderr, which pytest hides.
        flags="-fsanitize=address,undefined -fsanitize-undefined-trap-on-error",
        libraries=("libasan.so",),
        environment={
            # Off is what Python and PyTorch fail: they keep memory until the process ends, define
            # symbols twice, mix new with free. Tests ask for more memory than there is. The
            # quarantine's default of 256 MB is more than some budgets allow for.
            "ASAN_OPTIONS": "log_path={logs}:exitcode=99:detect_leaks=0:detect_odr_violation=0:"
            "alloc_dealloc_mismatch=0:allocator_may_return_null=1:quarantine_size_mb=64:"
            # Not even pytest may handle these itself.
            "handle_segv=2:handle_sigill=2",
            # Python's pools would hide what happens inside them.
            "PYTHONMALLOC": "malloc",
        },
        suites=(STRESS, [*PYTEST, "tests/native"], [*PYTEST, *DEVICE]),
        canary=("AddressSanitizer: ILL", "heap-use-after-free"),
    ),
    "tsan": Sanitizer(
        # It does not know fences, of which the compiler would warn.
        flags="-fsanitize=thread -Wno-tsan",
        libraries=("libtsan.so",),
        environment={
            # Only calls from instrumented code count: it cannot know which locks of Python and
            # PyTorch keep theirs apart. So it sees too little of a forked child as well.
            "TSAN_OPTIONS": f"log_path={{logs}}:suppressions={HERE}/tsan.supp:exitcode=0:"
            "ignore_noninstrumented_modules=1:history_size=4:second_deadlock_stack=1:"
            "report_thread_leaks=0:report_signal_unsafe=0:die_after_fork=0",
            # OpenMP's barriers are not instrumented either.
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        },
        suites=(STRESS, [*PYTEST, "tests/native"]),
        canary=("data race",),
        # It needs the addresses that programs have without randomisation.
        prefix=("setarch", "-R"),
    ),
}


class Run:
    """One sanitizer at work in its folder."""

    def __init__(self, name: str) -> None:
        self.name, self.sanitizer = name, SANITIZERS[name]
        self.folder = ROOT / "build" / name
        self.logs = self.folder / "reports"
        self.flags = f"{COMMON_FLAGS} {self.sanitizer.flags}"

    def build(self) -> None:
        """The package with an instrumented extension; the one in the source tree stays as it is."""
        environment = {"TERAIO_CXXFLAGS": self.flags, "LDFLAGS": self.sanitizer.flags}
        base = ["--build-base", str(self.folder), "--build-lib", str(self.folder / "lib")]
        subprocess.run(
            [sys.executable, "setup.py", "--quiet", "build", *base],
            cwd=ROOT,
            env=os.environ | environment,
            check=True,
        )

    def python(self, *arguments: str) -> int:
        """Runs Python with the copy and the sanitizer, gives its exit status."""
        files = [*self.sanitizer.libraries, "libstdc++.so.6"]
        preload = [_output("gcc", f"-print-file-name={file}") for file in files]
        environment = {
            "LD_PRELOAD": ":".join(preload),
            "PYTHONPATH": f"{self.folder / 'lib'}:{ROOT}",
            # Else the working folder, with the package as it is, comes before PYTHONPATH.
            "PYTHONSAFEPATH": "1",
        }
        for name, value in self.sanitizer.environment.items():
            environment[name] = value.format(logs=self.logs / "log")
        return subprocess.run(
            [*self.sanitizer.prefix, sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | environment,
        ).returncode

    def check_canary(self) -> None:
        """A sanitizer that is not at work finds nothing either. Exits if it is not."""
        self._clear()
        library = self.folder / "canary.so"
        source = HERE / "csrc" / "canary.cpp"
        command = ["g++", "-shared", "-fPIC", *self.flags.split(), str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        for value in (1, -9999):  # the first overflows, which may end the process
            self.python("-c", f"import ctypes; ctypes.CDLL({str(library)!r}).mistakes({value})")
        found = "".join(reports(self.logs))
        missing = [mistake for mistake in self.sanitizer.canary if mistake not in found]
        if missing:
            sys.exit(f"{self.name} does not work here: it did not report {', '.join(missing)}")

    def check(self) -> bool:
        """Runs the suites; whether they passed and nothing was reported."""
        self._clear()
        failed = []
        for suite in self.sanitizer.suites:
            started = time.monotonic()
            status = self.python(*suite)
            print(f"{self.name}: {' '.join(suite)}: {time.monotonic() - started:.0f} s", flush=True)
            if status != 0:
                failed.append(" ".join(suite))
        found = reports(self.logs)
        print(*found, sep="\n")
        print(f"{self.name}: {len(found)} reports; failed: {', '.join(failed) or 'nothing'}")
        return not found and not failed

    def _clear(self) -> None:
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(parents=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    runs = [Run(name) for name in sys.argv[1:] or SANITIZERS]
    # Under a sanitizer the compiler would run with it, too.
    subprocess.run(
        [sys.executable, "-c", "from tests.device.sim import load; load()"], cwd=ROOT, check=True
    )
    for run in runs:
        run.build()
        run.check_canary()
    # All of them run, so that one finding does not hide another.
    if not all([run.check() for run in runs]):
        sys.exit(1)


if __name__ == "__main__":
    main()
