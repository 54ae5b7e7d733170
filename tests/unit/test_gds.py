"""Every obstacle to GPUDirect Storage is found before any trial, and named with its remedy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from teraio.engine import folders, gds

Change = Callable[[pytest.MonkeyPatch, Path], None]


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine on which nothing is in the way, as far as files and variables tell."""
    for name in list(os.environ):
        if name.startswith("CUFILE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CUFILE_ENV_PATH_JSON", str(tmp_path / "cufile.json"))
    monkeypatch.setattr(gds.platform, "release", lambda: "6.8.0-generic")
    monkeypatch.setattr(gds, "_UDEV", tmp_path)
    monkeypatch.setattr(gds, "NVIDIA_FS", tmp_path / "version")
    (tmp_path / "version").write_text("version: 2.25\n")
    return tmp_path


def no_module(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    (machine / "version").unlink()


def p2pdma_instead(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    no_module(monkeypatch, machine)
    (machine / "cufile.json").write_text('{"properties": {"use_pci_p2pdma": true /* new */}}')


def p2pdma_forbidden(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    p2pdma_instead(monkeypatch, machine)
    monkeypatch.setenv("CUFILE_USE_PCIP2PDMA", "false")


def damaged_settings(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    no_module(monkeypatch, machine)
    (machine / "cufile.json").write_text("[")


def in_a_container(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    monkeypatch.setattr(gds, "_UDEV", machine / "nothing")


def windows(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    monkeypatch.setattr(gds.platform, "release", lambda: "5.15.90.1-Microsoft-standard-WSL2")


def forced(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    (machine / "cufile.json").write_text('{"properties": {"force_compat_mode": true}}')


def allowed(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    monkeypatch.setenv("CUFILE_ALLOW_COMPAT_MODE", "TRUE")


@pytest.mark.parametrize(
    ("change", "cause", "remedy"),
    [
        (no_module, "nvidia-fs is not loaded", "modprobe nvidia-fs"),
        (p2pdma_forbidden, "nvidia-fs is not loaded", "modprobe nvidia-fs"),
        (damaged_settings, "nvidia-fs is not loaded", "modprobe nvidia-fs"),
        (in_a_container, "/run/udev can't be seen", "--volume /run/udev"),
        (windows, "Windows Subsystem", "Use Linux itself"),
        (forced, "force its compatibility mode", "force_compat_mode"),
        (allowed, "CUFILE_ALLOW_COMPAT_MODE is true", "Unset CUFILE_ALLOW_COMPAT_MODE"),
    ],
)
def test_an_obstacle_of_the_system_is_named(
    change: Change, cause: str, remedy: str, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch, ready)
    found = gds.system_obstacle()
    assert found is not None
    assert cause in found.cause
    assert remedy in found.remedy


def nothing(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    pass


@pytest.mark.parametrize("change", [nothing, p2pdma_instead])
def test_a_system_that_may_have_it_has_no_obstacle(
    change: Change, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch, ready)
    assert gds.system_obstacle() is None


@pytest.mark.parametrize(
    ("kind", "options", "cause"),
    [
        ("ext4", ("rw", "relatime"), None),
        ("ext4", ("rw", "data=ordered"), None),
        ("xfs", ("rw",), None),
        ("ext4", ("rw", "data=writeback"), "ext4 is mounted with data=writeback"),
        ("overlay", ("rw",), "overlay has no GPUDirect Storage"),
        ("btrfs", ("rw",), "btrfs has no GPUDirect Storage"),
    ],
)
def test_an_obstacle_of_the_file_system_is_named(
    kind: str, options: tuple[str, ...], cause: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gds, "mount", lambda _: folders.Mount(kind, options))
    found = gds.folder_obstacle(Path("/mnt/nvme0"))
    assert (found.cause if found else None) == cause


def test_cufile_must_not_fall_back_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUFILE_ALLOW_COMPAT_MODE", raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    gds.forbid_compatibility()
    assert os.environ["CUFILE_ALLOW_COMPAT_MODE"] == "false"
