"""The folders that spill files lie in: which, and whether they will do.

In: what the user passed as ``ssd``. Out: usable folders. Must not know: torch, the native core.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from teraio.errors import ConfigurationError, SpillError

ENVIRONMENT = "TERAIO_SSD"
# File systems whose files are memory: spilling there saves nothing.
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


def spill_folders(
    ssd: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
) -> list[Path]:
    """The folders to spill to: as passed, else ``$TERAIO_SSD`` (colon-separated), else the user's
    cache."""
    if ssd is None:
        named = os.environ.get(ENVIRONMENT)
        if not named:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teraio"
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            return [cache]
        ssd = named.split(":")
    if isinstance(ssd, str | os.PathLike):
        ssd = [ssd]
    folders = [Path(folder) for folder in ssd]
    if not folders:
        raise ConfigurationError("ssd is empty; pass at least one folder on an SSD.")
    return folders


def check_folder(folder: Path, *, allow_tmpfs: bool) -> None:
    """Raises SpillError for a folder that can't hold spill files."""
    if not folder.exists():
        raise SpillError(
            f"the spill folder {folder} does not exist; create it or pass another as `ssd`."
        )
    if not folder.is_dir():
        raise SpillError(f"the spill folder {folder} is not a folder; pass one as `ssd`.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SpillError(f"the spill folder {folder} is not writable; pass another as `ssd`.")
    kind = file_system(folder)
    if kind in _IN_MEMORY and not allow_tmpfs:
        raise SpillError(
            f"the spill folder {folder} is on {kind}, which is memory itself, so nothing would be "
            f"saved; "
            "pass a folder on an SSD as `ssd`, or allow_tmpfs=True to use it all the same."
        )


@dataclass(frozen=True, slots=True)
class Mount:
    """The file system that a folder lies on, such as ``ext4``, and how it is mounted."""

    kind: str
    options: tuple[str, ...]


def file_system(folder: Path) -> str:
    """The type of the file system that ``folder`` lies on, such as ``ext4``; empty when unknown."""
    found = mount(folder)
    return found.kind if found else ""


def mount(folder: Path) -> Mount | None:
    """What ``folder`` lies on; None when unknown."""
    path = os.path.realpath(folder)
    best, found = "", None
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split(maxsplit=2)
        point = fields[4].encode().decode("unicode_escape")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        # Of mounts on one point the last one is what is seen.
        if inside and len(point) >= len(best):
            best, found = point, Mount(kind, (*fields[5].split(","), *options.split(",")))
    return found
