"""Address translation as the processor does it: TLB, page walk, rights, accessed and dirty bits; and what counts as a fault.

An access is told by the bits of the page fault's error code, so that a fault's code follows from it: WRITE, USER, EXEC; AC is EFLAGS.AC, with which SMAP lets the
kernel touch a process's pages (``stac``). Addresses are two's complement here. Results are physical addresses; below 0: ``-1 - error code``, or
GENERAL_PROTECTION for an address that is not canonical.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmtwin._jit import carray, inner, kernel, maker, pointer, slow
from mmtwin.mm.pgtable import entry_pfn, is_leaf, level_shift, map_page_in, pgd_alloc, table_index, unmap_range, walk_from
from mmtwin.mm.pgtable_tables import (
    MMU_CONFIG,
    MMU_CPU,
    PAGE_ACCESSED,
    PAGE_DIRTY,
    PAGE_NX,
    PAGE_PRESENT,
    PAGE_RW,
    PAGE_SHIFT,
    PAGE_USER,
    TABLE,
    TLB,
    Mmu,
)
from mmtwin.mm.tables import PAGE, PG_TABLE, Pgdat
from mmtwin.mm.tlb import drop, fill, fill_l1, flush_tlb_kernel_range, l1_lookup, l2_lookup, switch_mm, touch

READ, WRITE, USER, EXEC, AC = 0, 2, 4, 16, 1 << 18
PF_PROT = 1
"""X86_PF_PROT of the error code: the page is present, but not for this access; WRITE, USER and EXEC are its other bits."""
GENERAL_PROTECTION = -4096
TABLE_MARK = 1 << 60

INT32, INT64 = np.dtype("i4"), np.dtype("i8")


@inner
def is_canonical(m: Any, address: int) -> bool:
    """Whether the bits above the highest one that tables translate repeat it. (32-bit addresses always are.)"""
    levels = int(m.config[0]["levels"])
    if levels < 4:
        return True
    top = address >> (PAGE_SHIFT + 9 * levels - 1)
    return top == 0 or top == -1


@inner
def permitted(m: Any, entry: int, access: int) -> bool:
    """Whether an entry with the rights of all levels combined allows this access. The kernel runs with CR0.WP: read-only is so for it, too."""
    if access & WRITE and not entry & PAGE_RW:
        return False
    if access & EXEC and entry & PAGE_NX:
        return False
    if access & USER:
        return entry & PAGE_USER != 0
    if entry & PAGE_USER:
        if access & EXEC:
            return int(m.config[0]["smep"]) == 0
        return int(m.config[0]["smap"]) == 0 or access & AC != 0
    return True


@inner
def error_code(m: Any, access: int, present: bool) -> int:
    """The page fault's error code: the fetch bit exists only with NX or SMEP."""
    code = access & (WRITE | USER)
    if access & EXEC and (int(m.config[0]["supported"]) < 0 or int(m.config[0]["smep"])):
        code |= EXEC
    return code | PF_PROT if present else code


@inner
def physical_address(m: Any, entry: int, level: int, address: int) -> int:
    """The byte's physical address."""
    return (entry_pfn(entry, level) << PAGE_SHIFT) | (address & ((1 << level_shift(m, level)) - 1))


@slow
def vmalloc_fault(m: Any, root: int, address: int) -> bool:
    """``vmalloc_fault`` (32 bits): copies a PGD entry that this process lacks from init_mm; whether there was one."""
    config = m.config[0]
    top = int(config["levels"])
    i, init = table_index(m, address, top), int(config["root"])
    if top != 2 or root == init or i < int(config["kernel_index"]) or int(m.entry[root, i]) & PAGE_PRESENT or not int(m.entry[init, i]) & PAGE_PRESENT:
        return False
    m.entry[root, i] = m.entry[init, i]
    m.child[root, i] = m.child[init, i]
    config["vmalloc_faults"] = int(config["vmalloc_faults"]) + 1
    return True


@inner
def set_bits(m: Any, row: int, i: int, bits: int) -> None:
    """Accessed and dirty bits are set by the processor, where they are not set."""
    entry = int(m.entry[row, i])
    if entry & bits != bits:
        m.entry[row, i] = entry | bits
        m.config[0]["accessed_writes"] = int(m.config[0]["accessed_writes"]) + 1


@inner
def page_walk(m: Any, cpu: int, address: int, access: int) -> int:
    """Walks from CR3, fills the TLB: the physical address or a fault."""
    config = m.config[0]
    config["walks"] = int(config["walks"]) + 1
    row, level = int(m.cpu[cpu]["root"]), int(config["levels"])
    rights, forbidden = PAGE_RW | PAGE_USER, 0
    while True:
        i = table_index(m, address, level)
        entry = int(m.entry[row, i])
        if not entry & PAGE_PRESENT:
            return -1 - error_code(m, access, False)
        if level == 3 and int(config["levels"]) == 3:  # the PDPT of PAE: no rights, no accessed bit
            row = int(m.child[row, i])
            level = 2
            continue
        rights &= entry
        forbidden |= entry & PAGE_NX
        if is_leaf(entry, level):
            break
        set_bits(m, row, i, PAGE_ACCESSED)
        row = int(m.child[row, i])
        level -= 1
    combined = (entry & ~(PAGE_RW | PAGE_USER)) | rights | forbidden
    if not permitted(m, combined, access):
        return -1 - error_code(m, access, True)
    bits = PAGE_ACCESSED | PAGE_DIRTY if access & WRITE else PAGE_ACCESSED
    set_bits(m, row, i, bits)
    fill(m, cpu, address, level, combined | bits)
    return physical_address(m, entry, level, address)


@inner
def tlb_entry(m: Any, cpu: int, row: int, address: int, access: int) -> int:
    """What a TLB's entry makes of an access: a physical address, or -1 if the tables must be asked (rights, or the dirty bit)."""
    entry, tag = int(m.tlb[row]["entry"]), int(m.tlb[row]["tag"])
    if not permitted(m, entry, access) or (access & WRITE and not entry & PAGE_DIRTY):
        return -1
    touch(m, cpu, row)
    return physical_address(m, entry, tag & 15, address)


@slow
def translate_miss(m: Any, cpu: int, address: int, access: int) -> int:
    """The part of `translate` behind the first-level TLB."""
    counts = m.cpu[cpu]
    if not is_canonical(m, address):
        return GENERAL_PROTECTION
    row = l2_lookup(m, cpu, address)
    if row >= 0:
        physical = tlb_entry(m, cpu, row, address, access)
        if physical >= 0:
            counts["tlb_hits_l2"] = int(counts["tlb_hits_l2"]) + 1
            fill_l1(m, cpu, int(m.tlb[row]["tag"]), int(m.tlb[row]["entry"]))
            return physical
        drop(m, cpu, address)
    counts["tlb_misses"] = int(counts["tlb_misses"]) + 1
    physical = page_walk(m, cpu, address, access)
    if physical < 0 and vmalloc_fault(m, int(counts["root"]), address):
        physical = page_walk(m, cpu, address, access)
    return physical


@inner
def translate(m: Any, cpu: int, address: int, access: int) -> int:
    """The physical address that `cpu` reaches, from its TLB or by a walk; negative: a fault."""
    row = l1_lookup(m, cpu, address)
    if row >= 0 and is_canonical(m, address):
        physical = tlb_entry(m, cpu, row, address, access)
        if physical >= 0:
            m.cpu[cpu]["tlb_hits"] = int(m.cpu[cpu]["tlb_hits"]) + 1
            return physical
        drop(m, cpu, address)
    return translate_miss(m, cpu, address, access)


# Python's side


def mmu_handle(b: Pgdat, m: Mmu) -> npt.NDArray[np.int64]:
    """Address, rows and columns of each table, the page table of the page allocator last (as `handle.address_table`): its own address is what the entries
    below take. Keep it, and the tables."""
    tables = (*m, b.page)
    assert all(a.flags.c_contiguous and a.flags.writeable for a in tables)
    return np.array([(a.ctypes.data, len(a), a.shape[-1]) for a in tables], dtype=np.int64)


@maker
def mmu_at(handle: int) -> Any:
    """The tables behind a handle."""
    t = carray(pointer(handle), (7, 3), INT64)
    return Mmu(
        carray(pointer(t[0, 0]), (t[0, 1], t[0, 2]), INT64),
        carray(pointer(t[1, 0]), (t[1, 1], t[1, 2]), INT32),
        carray(pointer(t[2, 0]), t[2, 1], TABLE),
        carray(pointer(t[3, 0]), t[3, 1], TLB),
        carray(pointer(t[4, 0]), t[4, 1], MMU_CPU),
        carray(pointer(t[5, 0]), t[5, 1], MMU_CONFIG),
    )


@maker
def pages_at(handle: int) -> Any:
    """The page frames behind a handle."""
    t = carray(pointer(handle), (7, 3), INT64)
    return carray(pointer(t[6, 0]), t[6, 1], PAGE)


@inner
def told_apart(m: Any, pages: Any, physical: int) -> int:
    """A physical address with TABLE_MARK if its frame is a page table, whose bytes are not kept as others are."""
    pfn = physical >> PAGE_SHIFT
    if physical >= 0 and pfn < len(pages) and int(pages[pfn]["flags"]) & PG_TABLE:
        row = int(pages[pfn]["next"])
        if int(m.table[row]["pfn"]) == pfn:
            return physical | TABLE_MARK
    return physical


@kernel
def translate_entry(handle: int, cpu: int, address: int, access: int) -> int:
    """`translate`; with TABLE_MARK if the frame is a page table."""
    m = mmu_at(handle)
    return told_apart(m, pages_at(handle), translate(m, cpu, address, access))


@kernel
def translate_pages(handle: int, cpu: int, address: int, access: int, out: Any) -> int:
    """Translates `address` and the beginnings of the pages that follow, one for each place of `out`; stops behind the first fault. Returns how many."""
    m, pages = mmu_at(handle), pages_at(handle)
    for n in range(len(out)):
        out[n] = told_apart(m, pages, translate(m, cpu, address, access))
        if out[n] < 0:
            return n + 1
        address = (address & -(1 << PAGE_SHIFT)) + (1 << PAGE_SHIFT)
    return len(out)


@kernel
def walk_entry(handle: int, root: int, address: int) -> tuple[int, int, int, int]:
    """`walk_from`: entry, level, table, index."""
    return walk_from(mmu_at(handle), root, address)


@kernel
def pgd_alloc_entry(b: Any, m: Any, cpu: int) -> int:
    """`pgd_alloc`."""
    return pgd_alloc(b, m, cpu)


@kernel
def switch_mm_entry(m: Any, cpu: int, root: int) -> None:
    """`switch_mm`."""
    switch_mm(m, cpu, root)


@kernel
def map_page_entry(b: Any, m: Any, cpu: int, root: int, address: int, pfn: int, prot: int) -> int:
    """`map_page_in`."""
    return map_page_in(b, m, cpu, root, address, pfn, prot)


@kernel
def unmap_range_entry(m: Any, start: int, end: int) -> int:
    """`unmap_range`."""
    return unmap_range(m, start, end)


@kernel
def flush_tlb_kernel_range_entry(m: Any, start: int, end: int) -> None:
    """`flush_tlb_kernel_range`."""
    flush_tlb_kernel_range(m, start, end)
