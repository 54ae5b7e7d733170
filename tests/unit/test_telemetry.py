"""Telemetry: real figures of this machine; the GPU's through a double of NVML's package alone."""

from __future__ import annotations

import mmap
import os
import sys
import threading
import time
import types
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teraio.records import Reading, Telemetry
from teraio.telemetry import Gpu, Sampler, Unmeasured, sampler_for
from teraio.telemetry.host import Drives, Machine, drive_bytes
from teraio.telemetry.measure import Measure

MIB = 1 << 20


def by_name(telemetry: Telemetry) -> dict[str, Reading]:
    return {f"{reading.of} {reading.what}": reading for reading in telemetry.readings}


def values(measures: Iterable[Measure | Unmeasured]) -> dict[str, float]:
    return {m.what: m.value for m in measures if isinstance(m, Measure)}


# ---------------------------------------------------------------- this machine


def test_memory_that_the_process_takes_is_seen() -> None:
    machine = Machine()
    before = values(machine.measures())
    taken = mmap.mmap(-1, 64 * MIB)
    taken.write(b"x" * (64 * MIB))
    now = values(machine.measures())
    taken.close()
    assert now["resident memory"] - before["resident memory"] > 60 * MIB
    assert 0 < now["memory available"] < 1 << 50


def test_processor_time_becomes_cores() -> None:
    sampler = Sampler([Machine().measures], clock=time.process_time)
    sampler.sample()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        sum(range(1000))
    sampler.sample()
    # Its clock is the same processor time, so there is one core, up to the kernel's clock ticks.
    assert by_name(sampler.telemetry())["process CPU"].mean == pytest.approx(1.0, abs=0.2)


def test_what_is_written_to_a_drive_is_counted(tmp_path: Path) -> None:
    counted = drive_bytes(str(tmp_path))
    if counted is None:
        pytest.skip("the temporary folder is on no drive")
    before = values(Drives([str(tmp_path)]).measures())
    with open(tmp_path / "file", "wb") as file:
        file.write(os.urandom(8 * MIB))
        file.flush()
        os.fsync(file.fileno())
    now = values(Drives([str(tmp_path)]).measures())
    assert now["written"] - before["written"] >= 8 * MIB
    assert now["read"] >= before["read"]


def test_two_folders_on_one_drive_are_counted_once(tmp_path: Path) -> None:
    folders = [str(tmp_path), str(tmp_path / "b")]
    (tmp_path / "b").mkdir()
    names = {m.of for m in Drives(folders).measures() if isinstance(m, Measure)}
    assert names in ({f"drive of {', '.join(folders)}"}, set())


def test_a_folder_without_a_drive_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or drive_bytes(str(shared)) is not None:
        pytest.skip("no tmpfs at /dev/shm")
    (found,) = Drives([str(shared)]).measures()
    assert isinstance(found, Unmeasured)
    assert str(found) == "drive of /dev/shm: the kernel has no counters for its file system"


# ---------------------------------------------------------------- samples


class Script:
    """A probe that plays values at times."""

    def __init__(self, looks: list[tuple[float, float]], counter: bool) -> None:
        self.looks, self.counter = iter(looks), counter
        self.now_s, self.value = 0.0, 0.0

    def __call__(self) -> Iterator[Measure]:
        yield Measure("it", "figure", "bytes/s", self.value, self.counter)

    def play(self, sampler: Sampler) -> None:
        for now_s, value in self.looks:
            self.now_s, self.value = now_s, value
            sampler.sample()

    def clock(self) -> float:
        return self.now_s


def played(looks: list[tuple[float, float]], counter: bool = False) -> Telemetry:
    script = Script(looks, counter)
    sampler = Sampler([script], clock=script.clock)
    script.play(sampler)
    return sampler.telemetry()


amounts = st.floats(0, 1e15)


@given(st.lists(amounts, min_size=1))
def test_a_figure_is_told_by_its_last_mean_least_and_most(looks: list[float]) -> None:
    telemetry = played([(float(i), value) for i, value in enumerate(looks)])
    (reading,) = telemetry.readings
    assert (reading.last, reading.least, reading.most) == (looks[-1], min(looks), max(looks))
    assert reading.mean == pytest.approx(sum(looks) / len(looks))
    assert reading.least <= reading.mean <= reading.most
    assert (telemetry.samples, telemetry.seconds) == (len(looks), len(looks) - 1)


@given(st.lists(st.tuples(st.floats(0.01, 10), amounts), min_size=1))
def test_a_counter_is_told_by_its_growth(steps: list[tuple[float, float]]) -> None:
    looks, now_s, value = [(0.0, 5.0)], 0.0, 5.0
    for seconds, grown in steps:
        now_s, value = now_s + seconds, value + grown
        looks.append((now_s, value))
    (reading,) = played(looks, counter=True).readings
    rates = [(value - before) / (now - then) for (then, before), (now, value) in pairwise(looks)]
    assert reading.mean == pytest.approx((looks[-1][1] - 5.0) / looks[-1][0], rel=1e-6, abs=1e-3)
    assert (reading.last, reading.least, reading.most) == (rates[-1], min(rates), max(rates))


def test_one_look_at_a_counter_tells_nothing() -> None:
    telemetry = played([(1.0, 10.0)], counter=True)
    assert (telemetry.samples, telemetry.readings) == (1, ())


def test_a_counter_that_starts_anew_gives_no_negative_rate() -> None:
    (reading,) = played([(0.0, 10.0), (1.0, 12.0), (2.0, 1.0), (3.0, 4.0)], counter=True).readings
    assert (reading.least, reading.most) == (2.0, 3.0)


def test_the_thread_looks_again_and_again_until_it_is_stopped() -> None:
    sampler = Sampler([Machine().measures], interval_s=0.01)
    sampler.start()
    _until(lambda: sampler.telemetry().samples > 3)
    sampler.begin()
    assert sampler.telemetry().samples < 3
    _until(lambda: sampler.telemetry().samples > 3)
    sampler.stop()
    _until(lambda: all(t.name != "teraio-telemetry" for t in threading.enumerate()))


def test_a_new_window_is_looked_at_at_once() -> None:
    sampler = Sampler([Machine().measures], interval_s=1000)
    sampler.start()
    _until(lambda: sampler.telemetry().samples == 1)
    sampler.begin()
    _until(lambda: sampler.telemetry().samples == 1)
    sampler.stop()


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("wrong")])
def test_a_probe_that_fails_ends_the_watch_and_nothing_else(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Iterator[Measure]:
        raise error

    sampler = Sampler([broken])
    sampler.start()
    _until(lambda: "stops watching" in caplog.text)
    assert sampler.telemetry() == Telemetry(seconds=0.0, samples=0)
    assert str(error) in caplog.text
    assert ("Traceback" in caplog.text) == isinstance(error, ValueError)
    sampler.stop()


def test_a_forked_child_reads_what_was_seen_and_never_waits() -> None:
    sampler = Sampler([Machine().measures], interval_s=0.001)
    sampler.start()
    _until(lambda: sampler.telemetry().samples > 3)
    for _ in range(20):  # the thread may be anywhere when the process forks
        child = os.fork()
        if child == 0:
            seen = sampler.telemetry().samples > 3
            sampler.begin()
            sampler.stop()
            os._exit(0 if seen else 1)
        assert os.waitpid(child, 0)[1] == 0
    sampler.stop()


def _until(condition: object, most_s: float = 30) -> None:
    end = time.monotonic() + most_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.002)


# ---------------------------------------------------------------- GPU


class FakeNvml(types.ModuleType):
    """The part of the package that is used, for one GPU; ``lacking`` names calls that fail."""

    NVML_PCIE_UTIL_TX_BYTES, NVML_PCIE_UTIL_RX_BYTES = 0, 1

    class NVMLError(Exception):
        pass

    def __init__(self, uuid: str = "GPU-1b2c", lacking: tuple[str, ...] = ()) -> None:
        super().__init__("pynvml")
        self._uuid, self._lacking, self.energy_mj = uuid, lacking, 5_000_000

    def _check(self, name: str) -> None:
        if name in self._lacking:
            raise self.NVMLError("Not Supported")

    def nvmlInit(self) -> None:
        self._check("nvmlInit")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"handle {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != self._uuid:
            raise self.NVMLError("Not Found")
        return f"handle of {uuid}"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> types.SimpleNamespace:
        self._check("memory")
        return types.SimpleNamespace(total=80 << 30, free=30 << 30, used=50 << 30)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> types.SimpleNamespace:
        self._check("utilization")
        return types.SimpleNamespace(gpu=87, memory=40)

    def nvmlDeviceGetPcieThroughput(self, handle: str, counter: int) -> int:
        self._check("pcie")
        return {self.NVML_PCIE_UTIL_TX_BYTES: 2_000_000, self.NVML_PCIE_UTIL_RX_BYTES: 9_000_000}[
            counter
        ]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self._check("energy")
        self.energy_mj += 350_000
        return self.energy_mj


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    return put(monkeypatch, FakeNvml())


def put(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml) -> FakeNvml:
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_a_gpu_tells_memory_load_pcie_both_ways_and_power(nvml: FakeNvml) -> None:
    clock = iter((0.0, 1.0))
    sampler = Sampler([Gpu("1b2c").measures], clock=lambda: next(clock))
    sampler.sample()
    sampler.sample()
    assert sampler.telemetry().missing == ()
    found = {name: (r.last, r.unit) for name, r in by_name(sampler.telemetry()).items()}
    assert found == {
        "GPU memory in use": (50 << 30, "bytes"),
        "GPU busy": (0.87, "share"),
        "GPU PCIe in": (9e9, "bytes/s"),
        "GPU PCIe out": (2e9, "bytes/s"),
        "GPU power": (350.0, "W"),
    }


def test_energy_is_in_joules(nvml: FakeNvml) -> None:
    gpu = Gpu("1b2c")
    assert -(gpu.energy_joules() - gpu.energy_joules()) == 350.0


def test_a_part_of_a_gpu_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, FakeNvml(uuid="MIG-1b2c"))
    assert values(Gpu("1b2c").measures())["memory in use"] == 50 << 30


def test_figures_that_a_gpu_lacks_are_named_and_the_others_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(monkeypatch, FakeNvml(lacking=("pcie", "energy")))
    sampler = Sampler([Gpu("1b2c").measures])
    sampler.sample()
    telemetry = sampler.telemetry()
    assert set(by_name(telemetry)) == {"GPU memory in use", "GPU busy"}
    assert telemetry.missing == (
        "GPU: no figure for PCIe in (Not Supported)",
        "GPU: no figure for PCIe out (Not Supported)",
        "GPU: no figure for power (Not Supported)",
    )
    with pytest.raises(Unmeasured, match="no figure for energy"):
        Gpu("1b2c").energy_joules()


@pytest.mark.parametrize(
    ("device", "uuid", "reason"),
    [
        ("cpu", None, "GPU: none is used, the run is on cpu"),
        ("cuda:0", "1b2c", "GPU: no figures from NVIDIA's driver (Not Supported)"),
        ("cuda:0", "other", "GPU: no figures from NVIDIA's driver (Not Supported)"),
    ],
)
def test_without_a_driver_the_rest_is_told_and_why_the_gpu_is_not(
    device: str, uuid: str | None, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(monkeypatch, FakeNvml(lacking=("nvmlInit",)))
    sampler = sampler_for(device, uuid, [str(tmp_path)])
    sampler.sample()
    telemetry = sampler.telemetry()
    assert telemetry.missing[0] == reason
    assert "process resident memory" in by_name(telemetry)
    assert not any(reading.of == "GPU" for reading in telemetry.readings)


def test_without_the_package_the_reason_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(Unmeasured, match="pip install nvidia-ml-py"):
        Gpu()


def test_the_real_package_without_a_driver_gives_the_reason() -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        with pytest.raises(Unmeasured) as caught:
            Gpu("1b2c")
        assert str(error) in str(caught.value)
    else:
        pytest.skip("there is a driver")


def test_the_real_package_has_all_that_the_double_has() -> None:
    pynvml = pytest.importorskip("pynvml")
    names = [name for name in vars(FakeNvml) if name.lower().startswith("nvml")]
    assert len(names) > 8
    for name in names:
        assert hasattr(pynvml, name), name
    for name in ("NVML_PCIE_UTIL_TX_BYTES", "NVML_PCIE_UTIL_RX_BYTES"):
        assert getattr(pynvml, name) == getattr(FakeNvml, name)
