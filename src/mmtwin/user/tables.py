"""Page tables of processes: made from the top down, freed with the areas that they served (mm/memory.c, arch/x86/mm/pgtable.c of Linux 6.1)."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, routine
from mmtwin.mm.page_alloc import free_pages_prepare, free_the_page_cold
from mmtwin.mm.pgtable import next_boundary, populate, table_index
from mmtwin.mm.pgtable_tables import NO_ROOM, PAGE_PRESENT, PAGE_PSE
from mmtwin.mm.tables import PG_ALLOCATED, PG_TABLE
from mmtwin.mm.tlb import switch_mm
from mmtwin.mm.vmap_tables import NIL
from mmtwin.user.handles import state, table_state, tables_and_users
from mmtwin.user.mm_tables import GATHER_TABLE
from mmtwin.user.pages import gather, note_request, release_table, take_page, tlb_flush_mmu


@routine
def new_user_table(h: int, cpu: int, level: int) -> int:
    """``pte_alloc_one``, ``pmd_alloc_one``, ``pud_alloc_one``, ``_pgd_alloc``: row of an empty table, or a negative error."""
    b, m, s = state(h)
    config, top = m.config[0], int(m.config[0]["levels"])
    row = int(config["free_row"])
    if row < 0 and int(config["tables"]) == len(m.table):
        return NO_ROOM
    gfp = int(s.config[0]["gfp_pte"]) if level == 1 else int(s.config[0]["gfp_table"])
    pfn = take_page(h, cpu, int(s.config[0]["pgd_order"]) if level == top else 0, gfp)
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
    table["pfn"], table["level"], table["next"], table["boot"] = pfn, level, -1, 0
    b.page[pfn]["flags"] = PG_ALLOCATED | PG_TABLE
    b.page[pfn]["next"] = row
    config["table_pages"] = int(config["table_pages"]) + 1
    return row


@routine
def user_table(h: int, cpu: int, mm: int, address: int, level: int) -> int:
    """Row of an address's table of this level, made on the way if needed; negative: error."""
    m, s = tables_and_users(h)
    row, at = int(s.mm[mm]["pgd"]), int(m.config[0]["levels"])
    while at > level:
        i = table_index(m, address, at)
        if int(m.entry[row, i]) & PAGE_PRESENT:
            row = int(m.child[row, i])
        else:
            child = new_user_table(h, cpu, at - 1)
            if child < 0:
                return child
            populate(m, row, i, child)
            s.mm[mm]["pgtables"] = int(s.mm[mm]["pgtables"]) + 1
            row = child
        at -= 1
    return row


@routine
def user_pgd_alloc(h: int, cpu: int) -> int:
    """``pgd_alloc``: row of a process's PGD with the kernel's half of init_mm's, or a negative error."""
    m = table_state(h)
    row = new_user_table(h, cpu, int(m.config[0]["levels"]))
    if row < 0:
        return row
    root = int(m.config[0]["root"])
    for i in range(int(m.config[0]["kernel_index"]), m.entry.shape[1]):
        m.entry[row, i] = m.entry[root, i]
        m.child[row, i] = m.child[root, i]
    m.table[row]["next"] = int(m.config[0]["pgd_list"])
    m.config[0]["pgd_list"] = row
    return row


@routine
def user_pgd_free(h: int, cpu: int, row: int) -> None:
    """``pgd_free``; a CPU that still walks from it goes on with init_mm's."""
    b, m, s = state(h)
    root = int(m.config[0]["root"])
    for other in range(len(m.cpu)):
        if int(m.cpu[other]["root"]) == row:
            switch_mm(m, other, root)
    at = int(m.config[0]["pgd_list"])
    if at == row:
        m.config[0]["pgd_list"] = int(m.table[row]["next"])
    else:
        while int(m.table[at]["next"]) != row:
            at = int(m.table[at]["next"])
        m.table[at]["next"] = int(m.table[row]["next"])
    pfn, order = int(m.table[row]["pfn"]), int(s.config[0]["pgd_order"])
    release_table(m, row)
    note_request(s, order, -1, pfn)
    free_pages_prepare(b, pfn, order)
    free_the_page_cold(b, cpu, pfn, order)


@routine
def free_pgd_range(h: int, cpu: int, mm: int, start: int, end: int, floor: int, ceiling: int) -> None:
    """``free_pgd_range``: gathers the tables of a range that serve nothing else between `floor` and `ceiling` (0: the end of addresses), the lower ones first."""
    m, s = tables_and_users(h)
    top = int(m.config[0]["levels"])
    size = 1 << (12 + int(m.config[0]["bits"]))
    start &= -size
    if start < floor:
        start += size
    if ceiling:
        ceiling &= -size
        if not ceiling:
            return
        if end > ceiling:
            end -= size
    if start >= end:
        return
    address = start
    while address < end:
        # down to the PTE table of this address, and up again as far as the range has come to the end of the upper ones
        row, level = int(s.mm[mm]["pgd"]), top
        while level > 1:
            i = table_index(m, address, level)
            if not int(m.entry[row, i]) & PAGE_PRESENT or int(m.entry[row, i]) & PAGE_PSE:
                break
            if level == 2:
                child = int(m.child[row, i])
                m.entry[row, i] = 0
                drop_table(h, cpu, mm, child)
                break
            row = int(m.child[row, i])
            level -= 1
        at = max(level, 2)
        next_ = next_boundary(m, address, end, at)
        while at < top and (next_ == end or next_ & ((1 << (12 + at * int(m.config[0]["bits"]))) - 1) == 0):
            # the table of level `at` (one entry of level at + 1) has been walked to its end: free it if all it covers is the range's
            span = 1 << (12 + at * int(m.config[0]["bits"]))
            lower = (next_ - 1) & -span
            if lower < floor or (ceiling and lower + span > (ceiling & -span)):
                break
            parent = table_above(m, int(s.mm[mm]["pgd"]), next_ - 1, at + 1)
            if parent >= 0:
                i = table_index(m, next_ - 1, at + 1)
                if int(m.entry[parent, i]) & PAGE_PRESENT:
                    child = int(m.child[parent, i])
                    m.entry[parent, i] = 0
                    drop_table(h, cpu, mm, child)
            at += 1
        address = next_


@inner
def table_above(m: Any, pgd: int, address: int, level: int) -> int:
    """Row of an address's table of this level, -1 if there is none."""
    row, at = pgd, int(m.config[0]["levels"])
    while at > level:
        i = table_index(m, address, at)
        if not int(m.entry[row, i]) & PAGE_PRESENT:
            return -1
        row = int(m.child[row, i])
        at -= 1
    return row


@routine
def drop_table(h: int, cpu: int, mm: int, row: int) -> None:
    """``pte_free_tlb`` and so on: the table goes with the gathered pages."""
    m, s = tables_and_users(h)
    m.config[0]["table_writes"] = int(m.config[0]["table_writes"]) + 1
    s.mm[mm]["pgtables"] = int(s.mm[mm]["pgtables"]) - 1
    if gather(h, cpu, GATHER_TABLE + row):
        tlb_flush_mmu(h, cpu)


@routine
def free_user_table(h: int, cpu: int, row: int) -> None:
    """``pte_free``: a table that was never used, or was kept in reserve."""
    b, m, s = state(h)
    pfn = int(m.table[row]["pfn"])
    release_table(m, row)
    note_request(s, 0, -1, pfn)
    free_pages_prepare(b, pfn, 0)
    free_the_page_cold(b, cpu, pfn, 0)


@routine
def free_pgtables(h: int, cpu: int, mm: int, first: int, last: int, floor: int, ceiling: int) -> None:
    """``free_pgtables`` for the areas from row `first` to `last`: areas less than a PTE table apart are taken together."""
    m, s = tables_and_users(h)
    row, pmd_size = first, 1 << (12 + int(m.config[0]["bits"]))
    while row != NIL:
        start, next_ = int(s.vma[row]["vm_start"]), NIL if row == last else int(s.vma[row]["next"])
        while next_ != NIL and int(s.vma[next_]["vm_start"]) <= int(s.vma[row]["vm_end"]) + pmd_size:
            row = next_
            next_ = NIL if row == last else int(s.vma[row]["next"])
        free_pgd_range(h, cpu, mm, start, int(s.vma[row]["vm_end"]), floor, int(s.vma[next_]["vm_start"]) if next_ != NIL else ceiling)
        row = next_
