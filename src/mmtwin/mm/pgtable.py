"""Kernel page tables: mapping, unmapping, walking (mm/vmalloc.c, arch/x86/mm/pgtable.c, include/linux/pgtable.h).

Missing tables are allocated on the way down, page by page upwards through the range, each an order-0 page of GFP_PGTABLE_KERNEL; ``vfree`` never frees
one. Errors are negative: what `alloc_pages` said, -EBUSY (something is mapped there already), NO_ROOM (see `pgtable_tables.reserve_tables`).
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow
from mmtwin.mm.page_alloc import EBUSY, alloc_pages_cold, free_pages_prepare, free_the_page_cold
from mmtwin.mm.pgtable_tables import NO_ROOM, PAGE_PAT, PAGE_PRESENT, PAGE_PSE, PAGE_SHIFT, PAGE_TABLE, PFN_BITS
from mmtwin.mm.tables import PG_ALLOCATED, PG_TABLE
from mmtwin.mm.tlb import flush_tlb_kernel_range

# Entries


@inner
def level_shift(m: Any, level: int) -> int:
    """Address bits below the index of this level: 12 for PTEs, 21 for PMDs (22 with 4-byte entries), 30, 39, 48."""
    return PAGE_SHIFT + (level - 1) * int(m.config[0]["bits"])


@inner
def table_index(m: Any, address: int, level: int) -> int:
    """``pte_index``, ``pmd_index`` and so on."""
    bits = int(m.config[0]["bits"])
    return (address >> (PAGE_SHIFT + (level - 1) * bits)) & ((1 << bits) - 1)


@inner
def next_boundary(m: Any, address: int, end: int, level: int) -> int:
    """``pmd_addr_end`` and so on: where the part that one entry of this level maps ends, or `end` if that comes first."""
    size = 1 << level_shift(m, level)
    boundary = (address + size) & ~(size - 1)
    return boundary if boundary < end else end


@inner
def entry_pfn(entry: int, level: int) -> int:
    """``pte_pfn``; in a huge entry bit 12 is no part of the address."""
    pfn = (entry & PFN_BITS) >> PAGE_SHIFT
    return pfn if level == 1 else pfn & ~1


@inner
def is_leaf(entry: int, level: int) -> bool:
    """Whether a present entry maps memory rather than a table."""
    return level == 1 or entry & PAGE_PSE != 0


@inner
def leaf_entry(m: Any, pfn: int, prot: int, level: int) -> int:
    """``mk_pte``, or a huge entry (``pmd_set_huge``): the frame with the rights that the processor knows."""
    if level > 1:
        prot = (prot & ~PAGE_PAT) | ((prot & PAGE_PAT) << 5) | PAGE_PSE  # protval_4k_2_large
    return (pfn << PAGE_SHIFT) | (prot & int(m.config[0]["supported"]))


@inner
def count_writes(m: Any, n: int) -> None:
    """`n` entries that map memory were written."""
    config = m.config[0]
    config["pte_writes"] = int(config["pte_writes"]) + n


# Tables


@slow
def new_table(b: Any, m: Any, cpu: int, level: int) -> int:
    """``pte_alloc_one_kernel``, ``pmd_alloc_one`` and so on: row of an empty table, or a negative error."""
    config = m.config[0]
    row = int(config["free_row"])
    if row < 0 and int(config["tables"]) == len(m.table):
        return NO_ROOM
    pfn = alloc_pages_cold(b, cpu, 0, int(config["gfp"]), False)
    if pfn < 0:
        return pfn
    if row >= 0:
        config["free_row"] = int(m.table[row]["next"])
        for i in range(m.entry.shape[1]):
            m.entry[row, i] = 0
    else:
        row = int(config["tables"])
        config["tables"] = row + 1
    table = m.table[row]
    table["pfn"] = pfn
    table["level"] = level
    table["next"] = -1
    table["boot"] = 0
    b.page[pfn]["flags"] = PG_ALLOCATED | PG_TABLE
    b.page[pfn]["next"] = row
    config["table_pages"] = int(config["table_pages"]) + 1
    return row


@slow
def free_table(b: Any, m: Any, cpu: int, row: int) -> None:
    """``pte_free_kernel``: the table's page goes back, unless it was made while booting."""
    table, config = m.table[row], m.config[0]
    if not int(table["boot"]):
        pfn = int(table["pfn"])
        free_pages_prepare(b, pfn, 0)
        free_the_page_cold(b, cpu, pfn, 0)
    table["level"] = 0
    table["next"] = int(config["free_row"])
    config["free_row"] = row
    config["table_frees"] = int(config["table_frees"]) + 1


@inner
def populate(m: Any, row: int, i: int, child: int) -> None:
    """``pmd_populate_kernel``, ``pud_populate`` and so on; the PGD entries of PAE have no rights (bits 1 and 2 are reserved)."""
    config = m.config[0]
    rights = PAGE_PRESENT if int(config["levels"]) == 3 and int(m.table[row]["level"]) == 3 else PAGE_TABLE
    m.entry[row, i] = (int(m.table[child]["pfn"]) << PAGE_SHIFT) | rights
    m.child[row, i] = child
    config["table_writes"] = int(config["table_writes"]) + 1


@slow
def grow(b: Any, m: Any, cpu: int, row: int, i: int, address: int) -> int:
    """A new table for entry `i` of table `row`; one that hangs on the PGD is shown to the processes at once."""
    level = int(m.table[row]["level"])
    child = new_table(b, m, cpu, level - 1)
    if child < 0:
        return child
    populate(m, row, i, child)
    if row == int(m.config[0]["root"]) and not int(m.config[0]["lazy_sync"]):
        arch_sync_kernel_mappings(m, address)
    return child


@slow
def arch_sync_kernel_mappings(m: Any, address: int) -> None:
    """``arch_sync_kernel_mappings`` for the one PGD entry that changed: it is copied to every process's PGD that lacks it.

    The kernel does it when the whole range is mapped, for all of its entries; nobody else has run until then.
    """
    config = m.config[0]
    config["sync_calls"] = int(config["sync_calls"]) + 1
    root, i = int(config["root"]), table_index(m, address, int(config["levels"]))
    other = int(config["pgd_list"])
    while other >= 0:
        if (m.entry[other, i] ^ m.entry[root, i]) & PAGE_PRESENT:
            m.entry[other, i] = m.entry[root, i]
            m.child[other, i] = m.child[root, i]
            config["sync_writes"] = int(config["sync_writes"]) + 1
        other = int(m.table[other]["next"])


@slow
def pgd_alloc(b: Any, m: Any, cpu: int) -> int:
    """``pgd_alloc``: a process's PGD with the kernel's half of init_mm's; row, or a negative error."""
    config = m.config[0]
    row = new_table(b, m, cpu, int(config["levels"]))
    if row < 0:
        return row
    root = int(config["root"])
    for i in range(int(config["kernel_index"]), m.entry.shape[1]):
        m.entry[row, i] = m.entry[root, i]
        m.child[row, i] = m.child[root, i]
    m.table[row]["next"] = int(config["pgd_list"])
    config["pgd_list"] = row
    return row


# Walks


@inner
def walk_from(m: Any, row: int, address: int) -> tuple[int, int, int, int]:
    """``lookup_address_in_pgd``: the entry where the walk ends, its level, its table and its index; not present where the level has no table."""
    level, bits = int(m.config[0]["levels"]), int(m.config[0]["bits"])
    shift, mask = PAGE_SHIFT + (level - 1) * bits, (1 << bits) - 1
    while True:
        i = (address >> shift) & mask
        entry = int(m.entry[row, i])
        if level == 1 or not entry & PAGE_PRESENT or entry & PAGE_PSE:
            return entry, level, row, i
        row = int(m.child[row, i])
        level -= 1
        shift -= bits


@inner
def walk(m: Any, address: int) -> tuple[int, int]:
    """``lookup_address`` in init_mm: the entry where the walk ends, and its level (1: a PTE)."""
    entry, level, _, _ = walk_from(m, int(m.config[0]["root"]), address)
    return entry, level


@inner
def vmalloc_to_pfn(m: Any, address: int) -> int:
    """``vmalloc_to_pfn``: the frame behind a mapped kernel address, also in the middle of a huge entry; -1 if nothing is mapped."""
    entry, level = walk(m, address)
    if not entry & PAGE_PRESENT:
        return -1
    return entry_pfn(entry, level) + ((address & ((1 << level_shift(m, level)) - 1)) >> PAGE_SHIFT)


# Mapping


@inner
def table_of(b: Any, m: Any, cpu: int, root: int, address: int, level: int) -> int:
    """Row of the table of this level for an address, made on the way if needed (``pmd_alloc_track``, ``pte_alloc_kernel_track``); negative: error."""
    row, at = root, int(m.config[0]["levels"])
    while at > level:
        i = table_index(m, address, at)
        entry = int(m.entry[row, i])
        if not entry & PAGE_PRESENT:
            row = grow(b, m, cpu, row, i, address)
            if row < 0:
                return row
        elif entry & PAGE_PSE:
            return -EBUSY
        else:
            row = int(m.child[row, i])
        at -= 1
    return row


@inner
def set_pte(m: Any, row: int, address: int, pfn: int, prot: int) -> int:
    """``set_pte_at`` of a PTE that must be none: 0 or -EBUSY."""
    i = table_index(m, address, 1)
    if m.entry[row, i]:
        return -EBUSY
    m.entry[row, i] = leaf_entry(m, pfn, prot, 1)
    count_writes(m, 1)
    return 0


@inner
def map_page(b: Any, m: Any, cpu: int, address: int, pfn: int, prot: int) -> int:
    """Maps one page in init_mm: 0, or a negative error (what was mapped before it stays)."""
    row = table_of(b, m, cpu, int(m.config[0]["root"]), address, 1)
    return row if row < 0 else set_pte(m, row, address, pfn, prot)


@inner
def map_page_in(b: Any, m: Any, cpu: int, root: int, address: int, pfn: int, prot: int) -> int:
    """As `map_page`, in the tables of the PGD in row `root`: a process's, if the address is one of its half."""
    row = table_of(b, m, cpu, root, address, 1)
    return row if row < 0 else set_pte(m, row, address, pfn, prot)


@inner
def map_pages(b: Any, m: Any, cpu: int, address: int, pfns: Any, prot: int) -> int:
    """``vmap_small_pages_range_noflush``: the frames of an array one behind the other: 0, or a negative error with those before it mapped."""
    row, left = -1, 0
    for n in range(len(pfns)):
        at = address + (n << PAGE_SHIFT)
        if left == 0:
            row = table_of(b, m, cpu, int(m.config[0]["root"]), at, 1)
            if row < 0:
                return row
            left = (1 << int(m.config[0]["bits"])) - table_index(m, at, 1)
        error = set_pte(m, row, at, int(pfns[n]), prot)
        if error:
            return error
        left -= 1
    return 0


@inner
def map_huge(b: Any, m: Any, cpu: int, address: int, pfn: int, prot: int, level: int) -> int:
    """``pmd_set_huge`` and ``pud_set_huge``: 1 if a huge entry of this level now maps the address, 0 if it must not, or a negative error.

    On 64 bits an empty table that hangs there is freed for it (``pmd_free_pte_page``); on 32 bits it stays, and small pages are used. What would
    have to be torn down below a PUD entry is left in place: small pages again.
    """
    config = m.config[0]
    if level > int(config["huge_levels"]) or pfn & ((1 << (level_shift(m, level) - PAGE_SHIFT)) - 1):
        return 0
    row = table_of(b, m, cpu, int(config["root"]), address, level)
    if row < 0:
        return row
    i = table_index(m, address, level)
    entry = int(m.entry[row, i])
    if entry & PAGE_PRESENT and not entry & PAGE_PSE:
        if level != 2 or int(config["levels"]) < 4:
            return 0
        m.entry[row, i] = 0
        config["table_writes"] = int(config["table_writes"]) + 1
        flush_tlb_kernel_range(m, address, address + (1 << PAGE_SHIFT) - 1)
        free_table(b, m, cpu, int(m.child[row, i]))
    m.entry[row, i] = leaf_entry(m, pfn, prot, level)
    count_writes(m, 1)
    return 1


@inner
def map_range(b: Any, m: Any, cpu: int, start: int, end: int, physical: int, prot: int, max_level: int) -> int:
    """``vmap_range_noflush``: adjacent physical memory with the largest entries that alignment and `max_level` allow: 0 or a negative error."""
    address, row = start, -1
    while address < end:
        level = max_level
        while level > 1:
            size = 1 << level_shift(m, level)
            if address & (size - 1) == 0 and end - address >= size and physical & (size - 1) == 0:
                done = map_huge(b, m, cpu, address, physical >> PAGE_SHIFT, prot, level)
                if done < 0:
                    return done
                if done:
                    address += size
                    physical += size
                    row = -1
                    break
            level -= 1
        if level > 1:
            continue
        if row < 0 or table_index(m, address, 1) == 0:
            row = table_of(b, m, cpu, int(m.config[0]["root"]), address, 1)
            if row < 0:
                return row
        error = set_pte(m, row, address, physical >> PAGE_SHIFT, prot)
        if error:
            return error
        address += 1 << PAGE_SHIFT
        physical += 1 << PAGE_SHIFT
    return 0


@inner
def unmap_range(m: Any, start: int, end: int) -> int:
    """``vunmap_range_noflush``: clears every entry of the range, present or not, in tables that exist; tables stay. Returns how many were present.

    Each PTE is exchanged with 0 even if it is none, so an area's guard page costs a write too. No TLB is flushed.
    """
    address, present = start, 0
    while address < end:
        row, level = int(m.config[0]["root"]), int(m.config[0]["levels"])
        while level > 1:
            i = table_index(m, address, level)
            entry = int(m.entry[row, i])
            if not entry & PAGE_PRESENT:
                break
            if entry & PAGE_PSE:
                m.entry[row, i] = 0
                count_writes(m, 1)
                present += 1
                break
            row = int(m.child[row, i])
            level -= 1
        if level > 1:
            address = next_boundary(m, address, end, level)
            continue
        stop = next_boundary(m, address, end, 2)
        i = table_index(m, address, 1)
        n = (stop - address) >> PAGE_SHIFT
        for k in range(i, i + n):
            present += int(m.entry[row, k]) & PAGE_PRESENT
            m.entry[row, k] = 0
        count_writes(m, n)
        address = stop
    return present
