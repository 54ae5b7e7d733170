"""The doctor names what is missing with its remedy, works anywhere, and has an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from teraio import doctor
from teraio.doctor import Check, Diagnosis, gpu, memory, software, storage
from teraio.engine import folders, gds
from teraio.files import load
from teraio.profiler import hardware
from teraio.records import Hardware
from tests.unit.cli import run

CPU_LIMIT = 512 << 20


def by_name(checks: tuple[Check, ...]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_machine_can_do_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "file_system", lambda _: "ext4")  # tests may run on a tmpfs
    ran = run(capsys, "doctor", tmp_path, "--json", "-o", tmp_path / "this.hardware")
    assert ran.code == 0, ran.out
    found = json.loads(ran.out)
    names = {check["name"] for check in found["checks"]}
    assert names >= {
        "PyTorch", "native part", "RAM", "control group", "locked memory", "NUMA", "file system",
        "free space", "drive", "direct I/O", "speed", "driver", "CUDA in PyTorch", "Triton",
        "kvikio",
    }  # fmt: skip
    assert f"saved: {tmp_path / 'this.hardware'}\n" in ran.err  # JSON has standard output
    tier = load(tmp_path / "this.hardware", Hardware).tiers[0]
    assert tier.read_bytes_per_s > 0
    assert tier.latency_s > 0


def test_a_folder_that_can_not_be_used_gives_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(capsys, "doctor", tmp_path / "missing")
    assert ran.code == 1
    found, remedy = "does not exist", "Pass a folder on an SSD that is there"
    unwrapped = "".join(ran.out.split())  # a long path is folded, in the middle of words if need be
    assert found.replace(" ", "") in unwrapped
    assert remedy.replace(" ", "") in unwrapped
    assert "Does not work yet" in ran.out


def test_a_saved_machine_says_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "file_system", lambda _: "ext4")
    saved, missing = tmp_path / "this.hardware", tmp_path / "missing"
    ran = run(capsys, "doctor", tmp_path, missing, "-o", saved)
    assert ran.out.endswith(f"saved: {saved} (without {missing})\n")
    assert saved.exists()
    ran = run(capsys, "doctor", missing, "-o", tmp_path / "none.hardware")
    assert "not saved: " in ran.out
    assert not (tmp_path / "none.hardware").exists()


def test_folders_on_one_drive_are_told_to_share_its_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "file_system", lambda _: "ext4")
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    drives = [c for c in storage.examine([one, other], measure=False).checks if c.name == "drive"]
    assert [check.status for check in drives] == ["warn", "warn"]
    assert f"on the same drive as {other}: they share its speed" in drives[0].found
    assert f"on the same drive as {one}: " in drives[1].found
    (alone,) = [c for c in storage.examine([one], measure=False).checks if c.name == "drive"]
    assert "same drive" not in alone.found


def test_strict_counts_what_is_optional(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    optional = Check(group="GPU", name="driver", status="missing", found="none", remedy="Get one.")
    found = Diagnosis(checks=(optional,), hardware=None)
    monkeypatch.setattr(doctor, "diagnose", lambda _: found)
    assert run(capsys, "doctor").code == 0
    assert run(capsys, "doctor", "--strict").code == 1


def test_the_worst_status_decides() -> None:
    def diagnosis(*statuses: doctor.Status) -> Diagnosis:
        checks = tuple(Check(group="", name="", status=s, found="") for s in statuses)
        return Diagnosis(checks=checks, hardware=None)

    assert diagnosis().worst() == "ok"
    assert diagnosis("ok", "missing").worst() == "missing"
    assert diagnosis("warn", "missing", "ok").worst() == "warn"
    assert diagnosis("warn", "fail", "ok").worst() == "fail"


def test_without_pytorch_it_says_so_and_looks_at_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(software, "import_module", missing)
    monkeypatch.setattr(folders, "file_system", lambda _: "ext4")
    found = doctor.diagnose([tmp_path])
    checks = by_name(found.checks)
    assert (checks["PyTorch"].status, checks["PyTorch"].remedy) == ("fail", "pip install torch")
    assert "free space" in checks
    assert "speed" not in checks
    assert found.hardware is None


def test_an_old_pytorch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        __version__ = "2.4.1+cu121"

    monkeypatch.setattr(software, "import_module", lambda _: Old)
    assert by_name(software.checks())["PyTorch"].status == "fail"


def test_memory_itself_is_no_place_to_spill_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Training refuses it, so scripts that ask get an exit code of 1."""
    monkeypatch.setattr(folders, "file_system", lambda _: "tmpfs")
    check = by_name(storage.examine([tmp_path], measure=False).checks)["folder"]
    assert check.status == "fail"
    assert "is on tmpfs, which is memory itself" in check.found


def test_a_limit_of_any_group_above_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (tmp_path / "outer" / "memory.max").write_text(f"{CPU_LIMIT}\n")
    (tmp_path / "groups").write_text("0::/outer/inner\n")
    monkeypatch.setattr(hardware, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(hardware, "_GROUP_FILES", tmp_path)
    assert hardware.memory_bytes() == CPU_LIMIT
    assert hardware.free_memory_bytes() <= CPU_LIMIT
    assert "512.0 MiB" in by_name(memory.checks())["control group"].found


def test_mount_options_are_those_of_the_innermost_mount() -> None:
    proc = folders.mount(Path("/proc/self"))
    assert proc is not None
    assert proc.kind == "proc"
    assert "rw" in proc.options


@pytest.mark.parametrize(
    ("kind", "options", "status"),
    [
        ("ext4", ("rw", "relatime"), "ok"),
        ("ext4", ("rw", "data=ordered"), "ok"),
        ("ext4", ("rw", "data=writeback"), "missing"),
        ("xfs", ("rw",), "ok"),
        ("btrfs", ("rw",), "missing"),
    ],
)
def test_gpudirect_storage_needs_ordered_ext4_or_xfs(
    kind: str, options: tuple[str, ...], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gds, "mount", lambda _: folders.Mount(kind, options))
    assert gpu._folder(Path("/mnt/nvme0")).status == status


@pytest.mark.parametrize(
    ("text", "status", "found"),
    [
        ('{"properties": {"allow_compat_mode": false}} // end', "ok", "allow_compat_mode is false"),
        ('{ /* a */ "properties": {"allow_compat_mode": true}}', "ok", "forbids it"),
        ('{"denylist": "http://not/a/comment"}', "ok", "allow_compat_mode is none"),
        ("{", "warn", "Expecting property name"),
        ("[]", "warn", "no JSON object"),
    ],
)
def test_settings_of_cufile_are_read_with_their_comments(
    text: str, status: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cufile.json").write_text(text)
    monkeypatch.setenv("CUFILE_ENV_PATH_JSON", str(tmp_path / "cufile.json"))
    check = gpu._cufile_config()
    assert check.status == status
    assert found in check.found
