"""Real text that any machine has: the source files of Python's standard library, as bytes.

In: how many bytes. Out: the same bytes each time on one Python version. Must not know: torch.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Installed packages lie beside the standard library and differ from machine to machine.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


def standard_library_text(nbytes: int) -> bytes:
    """The first ``nbytes`` bytes of all source files in the order of their paths."""
    text = bytearray()
    for path in _source_files(Path(sysconfig.get_paths()["stdlib"])):
        text += path.read_bytes()
        if len(text) >= nbytes:
            return bytes(text[:nbytes])
    raise ValueError(f"the standard library holds {len(text)} bytes of source, {nbytes} wanted")


def _source_files(folder: Path) -> Iterator[Path]:
    files = (path for path in folder.rglob("*.py") if path.is_file())
    kept = (path for path in files if LEFT_OUT.isdisjoint(path.relative_to(folder).parts))
    return iter(sorted(kept, key=lambda path: path.relative_to(folder).as_posix()))
