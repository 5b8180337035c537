"""What experiments use beside a machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from mmtwin.errors import AllocationFailure, ReportedError
from mmtwin.machine import Machine
from mmtwin.mm.mmu import walk_entry
from mmtwin.process import Process
from mmtwin.process_text import user_entries
from mmtwin.units import PAGE_SIZE

PAGE_USER = 0x4


def frames(m: Machine, address: int, n: int) -> list[int]:
    """The page frame of each page of `n` bytes: by arithmetic in the direct map, by the page tables elsewhere."""
    if m.is_vmalloc_or_module_addr(address):
        return [m.vmalloc_to_pfn(at) for at in range(address, address + n, PAGE_SIZE)]
    return [m.virt_to_phys(at) // PAGE_SIZE for at in range(address, address + n, PAGE_SIZE)]


def runs(pages: Sequence[int]) -> int:
    """Stretches of adjacent page frames: 1 is contiguous."""
    return 1 + sum(b != a + 1 for a, b in pairwise(pages))


def region(m: Machine, address: int) -> str:
    """The part of the address space that an address is in."""
    return {"direct": "direct map"}.get(name := m.space.region(address).name, name)


def user_may(m: Machine, address: int) -> bool:
    """Whether the page table's entry lets a process touch the page (_PAGE_USER)."""
    m.translate(address)
    return bool(walk_entry(m._mmu_handle, int(m.mmu.config[0]["root"]), address if address < 1 << 63 else address - (1 << 64))[0] & PAGE_USER)


def served(request: Callable[..., int], *arguments: Any) -> int:
    """1 if a request is served, 0 if the kernel returns NULL."""
    try:
        request(*arguments)
    except AllocationFailure:
        return 0
    return 1


def outcome(request: Callable[..., Any], *arguments: Any) -> str:
    """ "served", "NULL", or the first words of the kernel's report."""
    try:
        request(*arguments)
    except AllocationFailure:
        return "NULL"
    except ReportedError as error:
        lines = [line for line in error.report.splitlines() if not line.startswith(("-----", "WARNING"))]
        return lines[0]
    return "served"


def page_table_entries(m: Machine) -> int:
    """Page-table entries written so far, of all levels."""
    counters = m.mmu_counters()
    return counters["pte_writes"] + counters["table_writes"]


def present(task: Process, pages: Sequence[int]) -> list[int]:
    """Those of a process's pages that have memory."""
    entries = user_entries(task.machine.mmu, int(task.users.mm[task.mm]["pgd"]))
    return [page for page in pages if page in entries]
