"""Huge pages in a process's page tables: the table kept in reserve for each, and its splitting into small entries (mm/huge_memory.c, mm/pgtable-generic.c)."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow
from mmtwin.mm.pgtable import count_writes, table_index
from mmtwin.mm.pgtable_tables import PAGE_ACCESSED, PAGE_DIRTY, PAGE_PRESENT, PAGE_PSE, PAGE_RW, PAGE_SHIFT, PAGE_TABLE, PFN_BITS
from mmtwin.mm.tlb import drop, flush_tlb_local
from mmtwin.user.mm_tables import EXCLUSIVE, REF, VM_EXEC, VM_READ, VM_SHARED, VM_WRITE

PAGE_USER, PAGE_PROTNONE = 4, 1 << 8
PAGE_NX = -(1 << 63)
HPAGE_PMD_NR = 512
PMD_SIZE = 1 << 21


@inner
def page_prot(m: Any, flags: int) -> int:
    """``vm_get_page_prot``: rights of an area's entries. A private area's are read-only until a write has made the page the process's own."""
    if flags & (VM_READ | VM_WRITE | VM_EXEC) == 0:
        return PAGE_ACCESSED | PAGE_PROTNONE
    prot = PAGE_PRESENT | PAGE_USER | PAGE_ACCESSED
    if flags & VM_WRITE and flags & VM_SHARED:
        prot |= PAGE_RW
    if not flags & VM_EXEC:
        prot |= PAGE_NX
    return prot & int(m.config[0]["supported"])


@inner
def pmd_of(m: Any, pgd: int, address: int) -> int:
    """Row of the table of level 2 for an address, -1 if there is none."""
    row, level = pgd, int(m.config[0]["levels"])
    while level > 2:
        i = table_index(m, address, level)
        if not int(m.entry[row, i]) & PAGE_PRESENT:
            return -1
        row = int(m.child[row, i])
        level -= 1
    return row


@inner
def deposit(m: Any, pmd: int, row: int) -> None:
    """``pgtable_trans_huge_deposit``: behind the one that is next; links are in the idle table's own row and first entry."""
    head = int(m.table[pmd]["next"])
    if head < 0:
        m.table[row]["next"] = row
        m.entry[row, 0] = row
    else:
        after = int(m.table[head]["next"])
        m.table[row]["next"] = after
        m.entry[row, 0] = head
        m.table[head]["next"] = row
        m.entry[after, 0] = row
    m.table[pmd]["next"] = row


@inner
def withdraw(m: Any, pmd: int) -> int:
    """``pgtable_trans_huge_withdraw``: the one deposited last, then around the ring."""
    row = int(m.table[pmd]["next"])
    after, before = int(m.table[row]["next"]), int(m.entry[row, 0])
    if after == row:
        m.table[pmd]["next"] = -1
    else:
        m.table[before]["next"] = after
        m.entry[after, 0] = before
        m.table[pmd]["next"] = after
    m.table[row]["next"] = -1
    m.entry[row, 0] = 0
    return row


@slow
def flush_tlb_range(m: Any, pgd: int, start: int, end: int) -> None:
    """``flush_tlb_mm_range`` on the CPUs that walk from this PGD: page by page, or all of it above tlb_single_page_flush_ceiling."""
    config = m.config[0]
    full = end - start > int(config["ceiling"]) << PAGE_SHIFT
    for cpu in range(len(m.cpu)):
        if int(m.cpu[cpu]["root"]) != pgd or not int(m.cpu[cpu]["tlb_fills"]):
            continue
        if full:
            flush_tlb_local(m, cpu, True)
            continue
        address = start
        while address < end:
            drop(m, cpu, address)
            config["invlpg"] = int(config["invlpg"]) + 1
            address += 1 << PAGE_SHIFT


@slow
def split_huge_pmd(m: Any, s: Any, mm: int, pmd: int, i: int, flags: int, address: int) -> None:
    """``__split_huge_pmd_locked``: 512 small entries in the reserved table; the page stays a compound one, each part of which now counts."""
    entry = int(m.entry[pmd, i])
    row = withdraw(m, pmd)
    pfn = (entry & PFN_BITS) >> PAGE_SHIFT & ~1
    prot, config = page_prot(m, flags), s.config[0]
    if pfn == int(config["huge_zero_pfn"]):
        for k in range(HPAGE_PMD_NR):
            m.entry[row, k] = (int(config["zero_pfn"]) << PAGE_SHIFT) | prot
    else:
        prot |= entry & (PAGE_RW | PAGE_DIRTY)
        if not entry & PAGE_ACCESSED:
            prot &= ~PAGE_ACCESSED
        shared = int(s.frame[pfn]) & EXCLUSIVE
        s.frame[pfn] = int(s.frame[pfn]) + (HPAGE_PMD_NR - 1) * REF
        for k in range(HPAGE_PMD_NR):
            m.entry[row, k] = ((pfn + k) << PAGE_SHIFT) | prot
            if k:
                s.frame[pfn + k] = (int(s.frame[pfn + k]) + REF) | shared
    count_writes(m, HPAGE_PMD_NR)
    m.entry[pmd, i] = (int(m.table[row]["pfn"]) << PAGE_SHIFT) | PAGE_TABLE
    m.child[pmd, i] = row
    config["thp_splits"] = int(config["thp_splits"]) + 1
    flush_tlb_range(m, int(s.mm[mm]["pgd"]), address & -PMD_SIZE, (address & -PMD_SIZE) + PMD_SIZE)


@slow
def split_huge_pmd_address(m: Any, s: Any, row: int, address: int) -> None:
    """``split_huge_pmd_if_needed``: no huge entry may reach over the border of two areas."""
    if int(m.config[0]["bits"]) != 9 or address & (PMD_SIZE - 1) == 0:
        return
    mm, start = int(s.vma[row]["vm_mm"]), address & -PMD_SIZE
    if int(s.vma[row]["vm_start"]) > start or int(s.vma[row]["vm_end"]) < start + PMD_SIZE:
        return
    pmd = pmd_of(m, int(s.mm[mm]["pgd"]), address)
    if pmd < 0:
        return
    i = table_index(m, address, 2)
    entry = int(m.entry[pmd, i])
    if entry & PAGE_PSE and entry & (PAGE_PRESENT | PAGE_PROTNONE):
        split_huge_pmd(m, s, mm, pmd, i, int(s.vma[row]["vm_flags"]), address)
