"""The folders that spill files lie in: which, and whether they will do.

In: what the user passed as ``ssd``. Out: usable folders. Must not know: torch, the native core.
"""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from teraio.errors import ConfigurationError, SpillError

ENVIRONMENT = "TERAIO_SSD"
# File systems whose files are memory: spilling there saves nothing.
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


def spill_folders(
    ssd: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    *,
    what: str = "ssd",
) -> list[Path]:
    """The folders to spill to: as passed, else ``$TERAIO_SSD`` (colon-separated), else the user's
    cache.

    ``what`` names the setting in the ConfigurationError that anything but names of folders raises,
    names that no folder can have, and a folder that is named twice. Raises SpillError where the
    user's cache can't be made.
    """
    if ssd is None:
        named = os.environ.get(ENVIRONMENT)
        if not named:
            return [_cache()]
        ssd = [name for name in named.split(":") if name]
    if isinstance(ssd, str | os.PathLike):
        ssd = [ssd]
    if not isinstance(ssd, Sequence) or not all(isinstance(f, str | os.PathLike) for f in ssd):
        raise ConfigurationError(
            f"{what}={ssd!r} names no folders; pass a path, or a list of paths."
        )
    if not ssd or "" in ssd:
        raise ConfigurationError(f"{what} is empty; pass at least one folder on an SSD.")
    folders = [_folder(name, what) for name in ssd]
    places = [folder.resolve() for folder in folders]
    for place in places:
        if places.count(place) > 1:
            raise ConfigurationError(
                f"{what} names the folder {place} more than once; pass one folder per drive."
            )
    return folders


def _cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teraio"
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SpillError(
            f"the default spill folder {cache} can't be made: {error.strerror}; pass ssd=, or set "
            f"${ENVIRONMENT}, to a folder on an SSD."
        ) from None
    return cache


def _folder(name: str | os.PathLike[str], what: str) -> Path:
    try:
        folder = Path(name).expanduser()
        folder.resolve().exists()  # which the system may not even be able to tell
    except (OSError, RuntimeError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error).rstrip(".")
        raise ConfigurationError(
            f"{what}={reprlib.repr(os.fspath(name))} can't be a folder: {reason}; pass another."
        ) from None
    return folder


def check_folder(folder: Path, *, allow_tmpfs: bool, consent: str = "") -> None:
    """Raises SpillError for a folder that can't hold spill files.

    ``consent`` says how the user may ask for memory all the same, if that can be.
    """
    if not folder.exists():
        raise SpillError(f"the spill folder {folder} does not exist; create it or pass another.")
    if not folder.is_dir():
        raise SpillError(f"the spill folder {folder} is not a folder; pass one.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SpillError(f"the spill folder {folder} is not writable; pass another.")
    kind = file_system(folder)
    if kind in _IN_MEMORY and not allow_tmpfs:
        raise SpillError(
            f"the spill folder {folder} is on {kind}, which is memory itself, so nothing would be "
            f"saved; pass a folder on an SSD"
            + (f", or {consent} to use it all the same." if consent else ".")
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
        lines = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).splitlines()
    except OSError:
        return None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split(maxsplit=2)
        # Spaces and the like are written as octal numbers.
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        # Of mounts on one point the last one is what is seen.
        if inside and len(point) >= len(best):
            best, found = point, Mount(kind, (*fields[5].split(","), *options.split(",")))
    return found
