"""What is known of the file systems that folders lie on."""

from __future__ import annotations

from pathlib import Path

import pytest

from teraio.engine.folders import Mount, mount

MOUNTS = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:25 / /mnt rw - tmpfs tmpfs rw,size=9k
31 22 0:26 / /mnt/données\040a rw - xfs /dev/a rw
32 22 0:27 / /mnt/donnéesb rw,noatime - btrfs /dev/b rw,ssd
33 22 0:28 / /mnt/donnéesb rw - ext4 /dev/c rw
"""


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/nowhere/at/all", Mount("ext4", ("rw", "relatime", "rw"))),
        ("/mnt/données", Mount("tmpfs", ("rw", "rw", "size=9k"))),
        ("/mnt/données a/spill", Mount("xfs", ("rw", "rw"))),
        ("/mnt/donnéesb", Mount("ext4", ("rw", "rw"))),
    ],
)
def test_the_mount_of_a_folder_is_the_last_one_that_holds_it(
    folder: str, expected: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(Path, "read_bytes", lambda _: MOUNTS.encode())
    assert mount(Path(folder)) == expected
