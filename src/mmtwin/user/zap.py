"""Pages leave a process: munmap, exit, madvise; and rights change: mprotect (mm/memory.c, mm/huge_memory.c, mm/mprotect.c, mm/mremap.c of Linux 6.1)."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, routine
from mmtwin.mm.pgtable import count_writes, next_boundary, populate, table_index
from mmtwin.mm.pgtable_tables import PAGE_ACCESSED, PAGE_DIRTY, PAGE_PRESENT, PAGE_PSE, PAGE_RW, PAGE_SHIFT, PFN_BITS
from mmtwin.user.handles import tables_and_users
from mmtwin.user.huge import HPAGE_PMD_NR, PAGE_PROTNONE, PMD_SIZE, deposit, flush_tlb_range, page_prot, pmd_of, split_huge_pmd, withdraw
from mmtwin.user.mm_tables import ANON, DIRTY, EXCLUSIVE, REF, TAIL, VM_SHARED, VM_WRITE
from mmtwin.user.pages import add_rss, compound_head, gather, tlb_flush_mmu
from mmtwin.user.tables import free_user_table, table_above, user_table

PRESENT = PAGE_PRESENT | PAGE_PROTNONE
"""``pte_present``: without rights (PROT_NONE) an entry is present to the kernel, not to the processor."""


@inner
def is_huge(entry: int) -> bool:
    """``pmd_trans_huge``."""
    return entry & PAGE_PSE != 0 and entry & PRESENT != 0


@inner
def huge_pfn(entry: int) -> int:
    """``pmd_pfn`` of a huge entry."""
    return (entry & PFN_BITS) >> PAGE_SHIFT & ~1


@inner
def is_zero_page(s: Any, pfn: int) -> bool:
    """``vm_normal_page`` would give none: the zero pages belong to nobody."""
    return pfn == int(s.config[0]["zero_pfn"]) or pfn == int(s.config[0]["huge_zero_pfn"])


@routine
def zap_pte_range(h: int, cpu: int, mm: int, row: int, address: int, end: int) -> None:
    """``zap_pte_range``: what the entries of one table map is gathered; dirty pages of a file are flushed from the TLBs at once."""
    m, s = tables_and_users(h)
    while address < end:
        force = False
        while address < end:
            i = table_index(m, address, 1)
            entry = int(m.entry[row, i])
            address += 1 << PAGE_SHIFT
            if entry & PRESENT == 0:
                continue
            m.entry[row, i] = 0
            count_writes(m, 1)
            pfn = (entry & PFN_BITS) >> PAGE_SHIFT
            if is_zero_page(s, pfn):
                continue
            word = int(s.frame[pfn])
            if entry & PAGE_DIRTY and not int(s.frame[compound_head(s, pfn)]) & ANON:
                force = True
                s.frame[compound_head(s, pfn)] = int(s.frame[compound_head(s, pfn)]) | DIRTY
            add_rss(s, mm, pfn, -1)
            if word & TAIL:
                s.frame[pfn] = word - REF
            if gather(h, cpu, pfn):
                force = True
                break
        if force:
            tlb_flush_mmu(h, cpu)


@routine
def zap_huge_pmd(h: int, cpu: int, mm: int, pmd: int, i: int) -> None:
    """``zap_huge_pmd``: the reserved table is freed at once, the page is gathered."""
    m, s = tables_and_users(h)
    pfn = huge_pfn(int(m.entry[pmd, i]))
    m.entry[pmd, i] = 0
    count_writes(m, 1)
    row = withdraw(m, pmd)
    s.mm[mm]["pgtables"] = int(s.mm[mm]["pgtables"]) - 1
    free_user_table(h, cpu, row)
    if is_zero_page(s, pfn):
        return
    add_rss(s, mm, pfn, -HPAGE_PMD_NR)
    if gather(h, cpu, pfn):
        tlb_flush_mmu(h, cpu)


@routine
def unmap_page_range(h: int, cpu: int, row: int, start: int, end: int) -> None:
    """``unmap_page_range``: everything that an area maps between two addresses is gathered; tables stay."""
    m, s = tables_and_users(h)
    mm, flags = int(s.vma[row]["vm_mm"]), int(s.vma[row]["vm_flags"])
    pgd, address = int(s.mm[mm]["pgd"]), start
    while address < end:
        table, level = pgd, int(m.config[0]["levels"])
        while level > 1:
            i = table_index(m, address, level)
            entry = int(m.entry[table, i])
            if level == 2 and is_huge(entry):
                if next_boundary(m, address, end, 2) - address == PMD_SIZE:
                    zap_huge_pmd(h, cpu, mm, table, i)
                    break
                split_huge_pmd(m, s, mm, table, i, flags, address)
                entry = int(m.entry[table, i])
            if not entry & PAGE_PRESENT:
                break
            table = int(m.child[table, i])
            level -= 1
        stop = next_boundary(m, address, end, max(level, 2))
        if level == 1:
            zap_pte_range(h, cpu, mm, table, address, stop)
        address = stop
    flush_tlb_range(m, pgd, start, end)


@inner
def pte_modified(entry: int, prot: int) -> int:
    """``pte_modify``: frame, accessed and dirty stay, rights are the new ones."""
    kept = entry & (PFN_BITS | PAGE_ACCESSED | PAGE_DIRTY | PAGE_PSE)
    return kept | (prot & ~PAGE_ACCESSED) | (prot & entry & PAGE_ACCESSED)


@routine
def change_protection(h: int, row: int, start: int, end: int) -> None:
    """``change_protection``: entries get the area's rights; those of pages that are the process's own, and dirty, may be written without a fault."""
    m, s = tables_and_users(h)
    mm, flags = int(s.vma[row]["vm_mm"]), int(s.vma[row]["vm_flags"])
    pgd, prot, address = int(s.mm[mm]["pgd"]), page_prot(m, flags), start
    try_writable = flags & VM_WRITE != 0 and not flags & VM_SHARED
    while address < end:
        table, level = pgd, int(m.config[0]["levels"])
        while level > 1:
            i = table_index(m, address, level)
            entry = int(m.entry[table, i])
            if level == 2 and is_huge(entry):
                if next_boundary(m, address, end, 2) - address == PMD_SIZE:
                    m.entry[table, i] = pte_modified(entry, prot) | PAGE_PSE
                    count_writes(m, 1)
                    break
                split_huge_pmd(m, s, mm, table, i, flags, address)
                change_ptes(h, int(m.child[table, i]), table_index(m, address, 1), next_boundary(m, address, end, 2) - address, prot, try_writable)
                break
            if not entry & PAGE_PRESENT:
                break
            table = int(m.child[table, i])
            level -= 1
        stop = next_boundary(m, address, end, max(level, 2))
        if level == 1:
            change_ptes(h, table, table_index(m, address, 1), stop - address, prot, try_writable)
        address = stop
    flush_tlb_range(m, pgd, start, end)


@routine
def change_ptes(h: int, table: int, first: int, size: int, prot: int, try_writable: bool) -> None:
    """``change_pte_range``."""
    m, s = tables_and_users(h)
    for i in range(first, first + (size >> PAGE_SHIFT)):
        entry = int(m.entry[table, i])
        if entry & PRESENT == 0:
            continue
        new = pte_modified(entry, prot)
        pfn = (entry & PFN_BITS) >> PAGE_SHIFT
        if try_writable and new & PAGE_PRESENT and new & PAGE_DIRTY and not is_zero_page(s, pfn):
            head = int(s.frame[compound_head(s, pfn)])
            if head & ANON and int(s.frame[pfn]) & EXCLUSIVE:
                new |= PAGE_RW
        m.entry[table, i] = new
        count_writes(m, 1)


@routine
def move_page_tables(h: int, cpu: int, row: int, start: int, new_start: int, size: int) -> int:
    """``move_page_tables``: mremap moves entries, whole PTE tables where both ends are aligned to them, and whole PMD tables: 0 or a negative error."""
    m, s = tables_and_users(h)
    mm, flags, bits = int(s.vma[row]["vm_mm"]), int(s.vma[row]["vm_flags"]), int(m.config[0]["bits"])
    pgd, at, to, end = int(s.mm[mm]["pgd"]), start, new_start, start + size
    pmd_size, top = 1 << (PAGE_SHIFT + bits), int(m.config[0]["levels"])
    pud_size = pmd_size << bits
    while at < end:
        extent = min(next_boundary(m, at, end, 2) - at, pmd_size - (to & (pmd_size - 1)))
        if top >= 4:
            whole = min(((at + pud_size) & -pud_size) - at, end - at)
            whole = min(whole, pud_size - (to & (pud_size - 1)))
            pud = table_above(m, pgd, at, 3)
            i = table_index(m, at, 3)
            if pud < 0 or not int(m.entry[pud, i]) & PAGE_PRESENT:  # get_old_pud
                at, to = at + whole, to + whole
                continue
            new = user_table(h, cpu, mm, to, 3)
            if new < 0:
                return new
            j = table_index(m, to, 3)
            if whole == pud_size and not int(m.entry[new, j]) & PAGE_PRESENT:
                populate(m, new, j, int(m.child[pud, i]))
                m.entry[pud, i] = 0
                at, to = at + whole, to + whole
                continue
        pmd = pmd_of(m, pgd, at)
        i = table_index(m, at, 2)
        if pmd < 0 or not int(m.entry[pmd, i]) & PRESENT:  # get_old_pmd
            at, to = at + extent, to + extent
            continue
        new_pmd = user_table(h, cpu, mm, to, 2)
        if new_pmd < 0:
            return new_pmd
        j = table_index(m, to, 2)
        if is_huge(int(m.entry[pmd, i])):
            if extent == pmd_size and not int(m.entry[new_pmd, j]) & PRESENT:
                m.entry[new_pmd, j] = m.entry[pmd, i]
                m.entry[pmd, i] = 0
                if new_pmd != pmd:
                    deposit(m, new_pmd, withdraw(m, pmd))
                at, to = at + extent, to + extent
                continue
            split_huge_pmd(m, s, mm, pmd, i, flags, at)
        elif extent == pmd_size and not int(m.entry[new_pmd, j]) & PRESENT:
            populate(m, new_pmd, j, int(m.child[pmd, i]))
            m.entry[pmd, i] = 0
            at, to = at + extent, to + extent
            continue
        old, new = int(m.child[pmd, i]), user_table(h, cpu, mm, to, 1)
        if new < 0:
            return new
        first, second = table_index(m, at, 1), table_index(m, to, 1)
        for k in range(extent >> PAGE_SHIFT):
            entry = int(m.entry[old, first + k])
            if entry:
                m.entry[old, first + k] = 0
                m.entry[new, second + k] = entry
        count_writes(m, 2 * (extent >> PAGE_SHIFT))
        at, to = at + extent, to + extent
    flush_tlb_range(m, pgd, start, end)
    return 0


@routine
def madvise_free(h: int, row: int, start: int, end: int) -> int:
    """``madvise_free_pte_range``: pages become clean and old, so that reclaim may drop them, also those that others have, too (as none is marked dirty itself, outside of
    page tables). Huge entries are left alone. Returns how many."""
    m, s = tables_and_users(h)
    mm, done, address = int(s.vma[row]["vm_mm"]), 0, start
    pgd = int(s.mm[mm]["pgd"])
    while address < end:
        stop = next_boundary(m, address, end, 2)
        pmd = pmd_of(m, pgd, address)
        i = table_index(m, address, 2)
        if pmd >= 0 and int(m.entry[pmd, i]) & PAGE_PRESENT and not is_huge(int(m.entry[pmd, i])):
            table = int(m.child[pmd, i])
            for k in range(table_index(m, address, 1), table_index(m, address, 1) + ((stop - address) >> PAGE_SHIFT)):
                entry = int(m.entry[table, k])
                pfn = (entry & PFN_BITS) >> PAGE_SHIFT
                if entry & PRESENT and not is_zero_page(s, pfn) and int(s.frame[pfn]) & (ANON | TAIL) == ANON:
                    m.entry[table, k] = entry & ~(PAGE_ACCESSED | PAGE_DIRTY)
                    done += 1
        address = stop
    flush_tlb_range(m, pgd, start, end)
    return done
