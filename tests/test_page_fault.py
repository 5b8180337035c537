"""Faults, and the reports that real kernels of Linux 6.1 printed for the same accesses (oracle/module/faults.c)."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for plain `pytest`, which does not put the directory there

from mmtwin.errors import (
    GeneralProtection,
    GuardPage,
    NotExecutable,
    NotPresent,
    NullPointerDereference,
    PageFault,
    ReportedError,
    RequestError,
    UnmappedArea,
    UserAccess,
    WriteToReadOnly,
)
from mmtwin.mm.mmu import flush_tlb_kernel_range_entry
from mmtwin.mm.pgtable_tables import PAGE_KERNEL, PAGE_KERNEL_RO, PAGE_NX, signed
from mmtwin.page_fault import Area
from tests.mmu_box import Box

DATA = Path(__file__).parent / "data"
GUESTS = {"4level": "4-level", "5level": "5-level", "nosmap": "4-level", "686": "i386", "686pae": "i386-pae"}
USER_BINARY = 0x400000
"""Where the guests' busybox lies, which decides which tables its PGD has."""
FRAMES = {64: (1 << 52) - 4096, 32: 0xFFFFF000}


def cases(guest: str) -> dict[str, tuple[int, list[str]]]:
    """By case: the address, and what the kernel said."""
    found: dict[str, tuple[int, list[str]]] = {}
    lines: list[str] = []
    for line in (DATA / f"faults-6.1-{guest}.txt").read_text().splitlines():
        head = re.match(r"faults: case (\w+) address ([0-9a-f]+)", line)
        if head:
            lines = []
            found[head[1]] = int(head[2], 16), lines
        elif line == "faults: end":
            break
        else:
            lines.append(line)
    return found


def normalise(lines: list[str], bits: int) -> list[str]:
    """Page frames in entries become FRAME, the number of the oops N."""
    found = []
    for line in lines:
        if re.match(r"PGD |\*pd", line):
            frames = FRAMES[bits] if "pdpt" not in line else FRAMES[64]

            def entry(match: re.Match[str], frames: int = frames) -> str:
                value = int(match[0], 16)
                return f"FRAME|{value & ~frames:x}" if value & frames else match[0]

            line = re.sub(r"(?<= )[0-9a-f]+(?= |$)", entry, line)
        found.append(re.sub(r"\[#\d+\]", "[#N]", line).rstrip())
    return found


def twin(guest: str, name: str, address: int) -> tuple[list[str], ReportedError | None, Box]:
    """The same situation in the twin, and what it says."""
    kind = GUESTS[guest]
    box = Box(kind, ram="512MiB", cpus=1)
    space = box.space
    box.mmu.config[0]["smap"] = box.mmu.config[0]["smep"] = guest != "nosmap"
    root = box.process()
    for page in (USER_BINARY, 0x8048000 if space.bits == 32 else USER_BINARY + 4096):
        box.map(page, box.frame(), 0x25, root)
    box.switch(root)
    page = address & -4096
    if name.startswith("guard"):
        box.map(page - 4096, box.frame())
        box._area_at = lambda at: Area(page - 4096, page + 4096) if page - 4096 <= at < page + 4096 else None  # type: ignore[method-assign]
    elif name in ("freed_read", "purged_read", "stale_read"):
        pfn = box.frame()
        box.map(page, pfn)
        if name != "freed_read":
            box.write(page, b"\x77")
        box.unmap(page, page + 8192)
        if name == "purged_read":
            flush_tlb_kernel_range_entry(box.mmu, signed(page), signed(page + 8192))
    elif name.startswith("ro_"):
        box.map(page, box.frame(), PAGE_KERNEL_RO)
    elif name == "nx_exec":
        box.map(page, box.frame(), PAGE_KERNEL)
    elif name in ("user_read", "user_write", "user_exec", "user_nx_exec"):
        nx = PAGE_NX if space.bits == 64 and name != "user_exec" else 0
        box.map(page, box.frame(), (0x867 if space.bits == 64 else 0x67) | nx, root)
        box.switch(int(box.mmu.config[0]["root"]))
        box.switch(root)
    said: list[str] = []
    try:
        if name.endswith("_write"):
            box.write(address, b"\x5a")
            said.append("faults: written")
        elif name.endswith("_exec"):
            box.translate(address, "exec")
        else:
            wanted = b"\x55" if name == "user_read" else box.read(address, 1)
            box.read(address, 1)
            said.append(f"faults: read {wanted.hex()}")
        said.append("faults: nothing happened")
    except ReportedError as error:
        return error.report.splitlines(), error, box
    return said, None, box


@pytest.mark.parametrize("guest", GUESTS)
def test_reports_equal_a_real_kernels(guest: str) -> None:
    found = cases(guest)
    if GUESTS[guest].startswith("i386"):
        found = {name: case for name, case in found.items() if not name.startswith("noncanonical")}
        del found["nx_direct_exec"]  # there the module's own allocations have split the direct map's entries
        if guest == "686":
            del found["nx_exec"]  # without NX it executes what it finds
    else:
        del found["nx_direct_exec"]
    assert len(found) >= 18
    for name, (address, lines) in found.items():
        said, _error, box = twin(guest, name, address)
        bits = box.space.bits
        assert normalise(said, bits) == normalise(lines, bits), f"{guest} {name}"


def test_kinds_of_errors() -> None:
    found = cases("4level")
    kinds = {
        "null_read": NullPointerDereference, "null_exec": NullPointerDereference, "guard_read": GuardPage, "guard_write": GuardPage, "freed_read": UnmappedArea,
        "never_read": UnmappedArea, "ro_write": WriteToReadOnly, "nx_exec": NotExecutable, "user_read": UserAccess, "user_write": UserAccess,
        "user_exec": UserAccess, "user_nx_exec": NotExecutable, "user_unmapped_read": NotPresent, "beyond_read": NotPresent, "noncanonical_read": GeneralProtection,
    }  # fmt: skip
    for name, kind in kinds.items():
        _, error, _ = twin("4level", name, found[name][0])
        assert type(error) is kind, name
        assert "\n" not in str(error)
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.report) == (str(error), error.report)  # type: ignore[union-attr]
        if isinstance(error, PageFault):
            assert (error.cr2, again.cr2, again.error_code) == (found[name][0], error.cr2, error.error_code)


def test_direct_map_of_the_guests() -> None:
    """/proc/meminfo's DirectMap lines: what the boot maps, but for the huge entries that protection of the kernel's text has split since."""
    from mmtwin.mm.init_mm import direct_map_bytes

    for guest, huge in (("4level", 2048), ("5level", 2048), ("686", 4096), ("686pae", 2048)):
        text = (DATA / f"faults-6.1-{guest}.txt").read_text()
        small, large = (int(kib) for kib in re.findall(r"DirectMap(?:4k|2M|4M): (\d+) kB", text))
        box = Box(GUESTS[guest], ram="512MiB", cpus=1)
        mapped = direct_map_bytes(box.mmu, box.space)
        assert sum(mapped.values()) == (small + large) * 1024, guest
        assert (small * 1024 - mapped[1]) % (huge * 1024) == 0, guest
        assert 0 < small * 1024 - mapped[1] <= 12 * huge * 1024, guest


def test_other_errors() -> None:
    box = Box()
    with pytest.raises(RequestError, match="expected one of read, write, exec"):
        box.translate(box.PAGE_OFFSET, "fetch")
    with pytest.raises(RequestError):
        box.translate(1 << 64)
