"""The recorder itself needs QEMU and is not started here: what comes before it and after it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mmtwin.cli import record
from mmtwin.errors import CaptureError
from mmtwin.recording import store
from mmtwin.recording.model import Recording

CAPTURE = "mmtwin.recording.capture"


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    (tmp_path / "work.sh").write_text("true\n")
    return tmp_path / "work.sh"


class Vm(ModuleType):
    """In place of recording.capture.vm."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(f"{CAPTURE}.vm")
        self.guests: list[tuple[Any, ...]] = []
        self.recording, self.error = recording, ""

    def Guest(self, **parts: Any) -> tuple[Any, ...]:
        assert list(parts) == ["kernel", "workload", "memory", "cpus", "slab", "vmap", "sites", "swap", "modules", "cmdline", "timeout"]
        return tuple(parts.values())

    def record(self, guest: tuple[Any, ...], progress: Callable[[str], None]) -> Recording:
        self.guests.append(guest)
        progress("booting")
        if self.error:
            raise CaptureError(self.error)
        return self.recording


@pytest.fixture
def vm(monkeypatch: pytest.MonkeyPatch, demo_recording: Recording) -> Vm:
    fake = Vm(replace(demo_recording, provenance=replace(demo_recording.provenance, lost_events=7)))
    monkeypatch.setitem(sys.modules, f"{CAPTURE}.vm", fake)
    return fake


def test_all_options_arrive(mmtwin: Callable[..., tuple[int, str, str]], vm: Vm, workload: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.mmrec"
    options = (
        "--mem",
        "1G",
        "--smp",
        "4",
        "--slab",
        "--vmap",
        "--sites",
        "--swap",
        "64M",
        "--module",
        "a.ko",
        "--module",
        "b/c.ko",
        "--cmdline",
        "-x preempt=none",
        "--timeout",
        "9",
    )
    code, out, err = mmtwin("record", "--vm", tmp_path, "--workload", workload, *options, "-o", target)
    assert code == 0
    assert vm.guests == [(tmp_path, workload, 1 << 30, 4, True, True, True, 64 << 20, (Path("a.ko"), Path("b/c.ko")), "-x preempt=none", 9.0)]
    assert out == f"{len(vm.recording.events):,} events, 7 lost, 0 probes missed\nWrote {target}\n"
    assert [line.split(" s  ")[1] for line in err.splitlines()] == ["booting", "writing", "done"]
    assert store.load(target).provenance.lost_events == 7


def test_defaults(mmtwin: Callable[..., tuple[int, str, str]], vm: Vm, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = mmtwin("--quiet", "record", "--vm", "k", "--workload", workload)
    assert (code, err) == (0, "")
    assert vm.guests == [(Path("k"), workload, 256 << 20, 1, False, False, False, 0, (), "", 600.0)]
    assert out.endswith("Wrote work.mmrec\n")


def test_nothing_is_started_in_vain(fails: Callable[..., str], vm: Vm, workload: Path, tmp_path: Path) -> None:
    def refused(code: int, *words: object) -> str:
        return fails(code, "record", "--vm", tmp_path, "--workload", workload, *words)

    target = tmp_path / "x.mmrec"
    target.write_text("mine")
    assert "x.mmrec: exists" in refused(1, "-o", target)
    assert "cannot be written" in refused(1, "-o", tmp_path / "no" / "x.mmrec")
    assert "is a directory" in refused(1, "-o", tmp_path)
    for memory in ("0", "63M", "17G", "100.5M", "lots", "-1"):
        assert "--mem" in refused(2, f"--mem={memory}")
    for cpus in (0, -1, 17):
        assert f"--smp {cpus}: expected 1 to 16 CPUs" in refused(2, f"--smp={cpus}")
    for seconds in ("0", "-1", "nan", "inf"):
        assert "--timeout" in refused(2, f"--timeout={seconds}")
    assert target.read_text() == "mine"
    assert vm.guests == []


def test_what_is_not_built(fails: Callable[..., str], tmp_path: Path) -> None:
    assert fails(2, "record") == record.NOT_BUILT
    assert fails(2, "record", "--workload", "x") == record.NOT_BUILT
    assert "--workload FILE" in fails(2, "record", "--vm", tmp_path)


def test_a_failed_recording_leaves_no_file(mmtwin: Callable[..., tuple[int, str, str]], vm: Vm, workload: Path, tmp_path: Path) -> None:
    vm.error = "the guest ended before @@DONE"
    code, out, err = mmtwin("record", "--vm", tmp_path, "--workload", workload, "-o", tmp_path / "x.mmrec")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "mmtwin: the guest ended before @@DONE"
    assert list(tmp_path.iterdir()) == [workload]


@pytest.fixture
def fresh_capture() -> Iterator[None]:
    """Imports of the recorder happen anew, and leave no trace."""
    kept = {name: module for name, module in sys.modules.items() if name.startswith(f"{CAPTURE}.")}
    for name in kept:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if name.startswith(f"{CAPTURE}.")]:
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.mark.usefixtures("fresh_capture")
@pytest.mark.parametrize("package", ["elftools", "drgn"])
def test_missing_extra(package: str, fails: Callable[..., str], workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if package == "drgn":
        pytest.importorskip("elftools")
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert "pip install -e '.[record]'" in fails(1, "record", "--vm", tmp_path, "--workload", workload, "-o", tmp_path / "x.mmrec")


def test_limits_are_the_recorders(tmp_path: Path, workload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("drgn")
    vm = pytest.importorskip(f"{CAPTURE}.vm")
    monkeypatch.setattr(vm, "NEEDED", {})
    kernel = tmp_path / "kernel"
    kernel.mkdir()
    with pytest.raises(CaptureError, match="has no vmlinuz"):
        vm.check_host(vm.Guest(kernel, workload))
    for name in ("vmlinuz", "vmlinux", "config", "release", "modules"):
        (kernel / name).write_text("6.1.0")
    for memory in record.MEMORY:
        for cpus in record.CPUS:
            vm.check_host(vm.Guest(kernel, workload, memory, cpus))
    for memory, cpus in ((record.MEMORY[0] - 1, 1), (record.MEMORY[1] + 1, 1), (record.MEMORY[0], record.CPUS[0] - 1), (record.MEMORY[0], record.CPUS[1] + 1)):
        with pytest.raises(CaptureError, match="is outside"):
            vm.check_host(vm.Guest(kernel, workload, memory, cpus))
