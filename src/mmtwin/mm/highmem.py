"""High memory of 32-bit kernels: ``kmap`` with its table of permanent mappings and ``kmap_local_page`` with slots of the fixmap (mm/highmem.c of Linux 6.1).

``kunmap`` leaves the page mapped, for the next ``kmap`` of it; only when the search for a free place comes past the table's end are all unused mappings removed, and
all TLBs flushed. ``kunmap_local`` unmaps at once, on the own CPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin._jit import inner, kernel, slow
from mmtwin.mm.page_alloc import EBUSY, EINVAL
from mmtwin.mm.pgtable import count_writes, set_pte, table_index, table_of
from mmtwin.mm.pgtable_tables import PAGE_KERNEL, PAGE_SHIFT, Mmu
from mmtwin.mm.tlb import drop, flush_tlb_kernel_range
from mmtwin.profiles.layout import AddressSpace

KM_MAX_IDX = 16
"""Slots of ``kmap_local_page`` per CPU (arch/x86/include/asm/kmap_size.h)."""
FIX_KMAP_BEGIN = 68
"""First of them in the fixmap of i386: behind a hole, two early consoles, the local APIC and 64 I/O APICs (asm/fixmap.h)."""

PKMAP = np.dtype([("count", "i8"), ("pfn", "i8")])
"""pkmap_count: 0 free, 1 mapped but unused, more: users + 1; and the frame that is mapped."""
KMAP_CTRL = np.dtype([("idx", "i8")])
HIGHMEM_CONFIG = np.dtype(
    [
        ("max_low_pfn", "i8"),
        ("pkmap_base", "i8"),
        ("last_pkmap", "i8"),
        ("last_pkmap_nr", "i8"),
        ("kmap_begin", "i8"),  # __fix_to_virt(FIX_KMAP_BEGIN)
        ("flushes", "i8"),  # flush_all_zero_pkmaps that removed something
    ]
)


class HighMem(NamedTuple):
    """Mappings of high memory.

    :param pkmap: `PKMAP`, LAST_PKMAP rows.
    :param cpu: `KMAP_CTRL`: how many slots are in use on each CPU.
    :param slot: the frames in the slots, KM_MAX_IDX per CPU.
    :param config: `HIGHMEM_CONFIG`, one row.
    """

    pkmap: npt.NDArray[np.void]
    cpu: npt.NDArray[np.void]
    slot: npt.NDArray[np.int64]
    config: npt.NDArray[np.void]


def new_highmem(space: AddressSpace, nr_cpus: int) -> HighMem:
    """Nothing mapped; without high memory support the tables have no places."""
    config = np.zeros(1, dtype=HIGHMEM_CONFIG)
    config["max_low_pfn"], config["pkmap_base"], config["last_pkmap"] = space.max_low_pfn, space.pkmap_base, space.last_pkmap
    config["kmap_begin"] = space.fixaddr_top - (FIX_KMAP_BEGIN << PAGE_SHIFT) if space.bits == 32 else 0
    slots = KM_MAX_IDX * nr_cpus if space.last_pkmap else 0
    return HighMem(np.zeros(space.last_pkmap, dtype=PKMAP), np.zeros(nr_cpus, dtype=KMAP_CTRL), np.zeros(slots, dtype=np.int64), config)


def copy_highmem(h: HighMem) -> HighMem:
    """An independent copy."""
    return HighMem._make(table.copy() for table in h)


@inner
def pkmap_addr(h: Any, nr: int) -> int:
    """PKMAP_ADDR."""
    return int(h.config[0]["pkmap_base"]) + (nr << PAGE_SHIFT)


@inner
def find_pkmap(h: Any, pfn: int) -> int:
    """Where a page of high memory is mapped permanently, -1 if nowhere (the kernel's page_address_htable)."""
    for nr in range(len(h.pkmap)):
        if int(h.pkmap[nr]["count"]) and int(h.pkmap[nr]["pfn"]) == pfn:
            return nr
    return -1


@inner
def pte_clear(m: Any, row: int, address: int) -> None:
    """``pte_clear``."""
    m.entry[row, table_index(m, address, 1)] = 0
    count_writes(m, 1)


@slow
def flush_all_zero_pkmaps(b: Any, m: Any, h: Any, cpu: int) -> None:
    """``flush_all_zero_pkmaps``: removes the mappings nobody uses, and flushes the table's whole range if there were any."""
    need_flush = False
    for nr in range(len(h.pkmap)):
        if int(h.pkmap[nr]["count"]) == 1:
            h.pkmap[nr]["count"] = 0
            address = pkmap_addr(h, nr)
            pte_clear(m, table_of(b, m, cpu, int(m.config[0]["root"]), address, 1), address)
            need_flush = True
    if need_flush:
        h.config[0]["flushes"] = int(h.config[0]["flushes"]) + 1
        flush_tlb_kernel_range(m, pkmap_addr(h, 0), pkmap_addr(h, len(h.pkmap)))


@slow
def map_new_virtual(b: Any, m: Any, h: Any, cpu: int, pfn: int) -> int:
    """``map_new_virtual``: the next free place behind the last one; -EBUSY if all are in use, where the kernel sleeps until one is given back."""
    config, last = h.config[0], len(h.pkmap)
    left = last
    while True:
        nr = (int(config["last_pkmap_nr"]) + 1) & (last - 1)
        config["last_pkmap_nr"] = nr
        if nr == 0:
            flush_all_zero_pkmaps(b, m, h, cpu)
            left = last
        if int(h.pkmap[nr]["count"]) == 0:
            break
        left -= 1
        if left == 0:
            return -EBUSY
    address = pkmap_addr(h, nr)
    error = set_pte(m, table_of(b, m, cpu, int(m.config[0]["root"]), address, 1), address, pfn, PAGE_KERNEL)
    if error:
        return error
    h.pkmap[nr]["count"] = 1
    h.pkmap[nr]["pfn"] = pfn
    return nr


@kernel
def kmap_high(b: Any, m: Any, h: Any, cpu: int, pfn: int) -> int:
    """``kmap_high``: the address of a page of high memory, or -EBUSY (all places are in use)."""
    nr = find_pkmap(h, pfn)
    if nr < 0:
        nr = map_new_virtual(b, m, h, cpu, pfn)
        if nr < 0:
            return nr
    h.pkmap[nr]["count"] = int(h.pkmap[nr]["count"]) + 1
    return pkmap_addr(h, nr)


@kernel
def kunmap_high(h: Any, pfn: int) -> int:
    """``kunmap_high``: 0, or -EINVAL where the kernel has a BUG: the page is not mapped, or nobody uses the mapping."""
    nr = find_pkmap(h, pfn)
    if nr < 0 or int(h.pkmap[nr]["count"]) < 2:
        return -EINVAL
    h.pkmap[nr]["count"] = int(h.pkmap[nr]["count"]) - 1
    return 0


@kernel
def page_address_high(h: Any, pfn: int) -> int:
    """``page_address`` of a page of high memory: where it is mapped permanently, 0 if nowhere."""
    nr = find_pkmap(h, pfn)
    return pkmap_addr(h, nr) if nr >= 0 else 0


@kernel
def kmap_local_pfn(b: Any, m: Any, h: Any, cpu: int, pfn: int) -> int:
    """``__kmap_local_pfn_prot``: an address in the CPU's next slot, or -EBUSY if it has none left (a BUG in the kernel)."""
    idx = int(h.cpu[cpu]["idx"])
    if idx == KM_MAX_IDX:
        return -EBUSY
    address = int(h.config[0]["kmap_begin"]) - ((idx + KM_MAX_IDX * cpu) << PAGE_SHIFT)
    error = set_pte(m, table_of(b, m, cpu, int(m.config[0]["root"]), address, 1), address, pfn, PAGE_KERNEL)
    if error:
        return error
    h.cpu[cpu]["idx"] = idx + 1
    h.slot[KM_MAX_IDX * cpu + idx] = pfn
    return address


@kernel
def kunmap_local(b: Any, m: Any, h: Any, cpu: int, address: int) -> int:
    """``kunmap_local_indexed``: 0, or -EINVAL if this is not the CPU's newest mapping (the kernel warns, and unmaps that one)."""
    idx = int(h.cpu[cpu]["idx"]) - 1
    if idx < 0 or (address >> PAGE_SHIFT << PAGE_SHIFT) != int(h.config[0]["kmap_begin"]) - ((idx + KM_MAX_IDX * cpu) << PAGE_SHIFT):
        return -EINVAL
    pte_clear(m, table_of(b, m, cpu, int(m.config[0]["root"]), address, 1), address)
    drop(m, cpu, address)
    m.config[0]["invlpg"] = int(m.config[0]["invlpg"]) + 1
    h.cpu[cpu]["idx"] = idx
    return 0


def mapped_high(m: Mmu, h: HighMem) -> int:
    """How many pages of high memory are mapped, used or not."""
    return int((h.pkmap["count"] > 0).sum()) + int(h.cpu["idx"].sum())
