"""From a page to the entries that map it: who has used it, and taking it away from all (mm/rmap.c, mm/huge_memory.c of Linux 6.1)."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, routine, slow
from mmtwin.mm.list import list_add_tail
from mmtwin.mm.pgtable import count_writes, table_index
from mmtwin.mm.pgtable_tables import PAGE_ACCESSED, PAGE_DIRTY, PAGE_PRESENT, PAGE_PSE, PAGE_SHIFT, PFN_BITS
from mmtwin.mm.tables import PG_ALLOCATED
from mmtwin.mm.vmap_tables import NIL
from mmtwin.user.handles import state, users_state
from mmtwin.user.huge import HPAGE_PMD_NR, PAGE_PROTNONE, flush_tlb_range, split_huge_pmd
from mmtwin.user.mm_tables import (
    ANON,
    EXCLUSIVE,
    PG_DIRTY,
    PG_SWAPBACKED,
    PG_UNEVICTABLE,
    REF,
    VM_LOCKED,
)
from mmtwin.user.pages import add_rss
from mmtwin.user.swap import exclusive_bit, make_entry, swap_duplicate

PRESENT = PAGE_PRESENT | PAGE_PROTNONE


@routine
def first_mapping(h: int, pfn: int) -> int:
    """Where the walk over the areas that may map a page begins: a link of its anon_vma, or for a file's page a row of the areas."""
    s = users_state(h)
    if int(s.frame[pfn]) & ANON:
        return int(s.anon[int(s.folio[pfn]["mapping"])]["first"])
    return next_area(h, pfn, 0)


@routine
def next_area(h: int, pfn: int, row: int) -> int:
    """The next area of the page's file. (The kernel keeps a tree of them per file; there are few.)"""
    s = users_state(h)
    file = int(s.folio[pfn]["mapping"])
    row += 1
    while row < int(s.config[0]["vmas"]):
        vma = s.vma[row]
        if int(vma["vm_file"]) == file and int(vma["vm_end"]) and int(vma["vm_mm"]) >= 0:
            return row
        row += 1
    return NIL


@routine
def next_mapping(h: int, pfn: int, at: int) -> int:
    """The next one; NIL behind the last."""
    s = users_state(h)
    if int(s.frame[pfn]) & ANON:
        return int(s.avc[at]["rb_next"])
    return next_area(h, pfn, at)


@inner
def mapping_area(s: Any, pfn: int, at: int) -> int:
    """The area of this step of the walk."""
    return int(s.avc[at]["vma"]) if int(s.frame[pfn]) & ANON else at


@slow
def find_entry(m: Any, pgd: int, address: int) -> tuple[int, int, int]:
    """The table, index and level of the entry that maps an address or could; (-1, 0, 0): there is no table."""
    table, level = pgd, int(m.config[0]["levels"])
    while True:
        i = table_index(m, address, level)
        entry = int(m.entry[table, i])
        if level == 1 or (level == 2 and entry & PAGE_PSE and entry & PRESENT):
            return table, i, level
        if not entry & PAGE_PRESENT:
            return -1, 0, 0
        table = int(m.child[table, i])
        level -= 1


@inner
def maps(m: Any, table: int, i: int, level: int, pfn: int) -> bool:
    """``check_pte``: whether the entry maps this frame."""
    if table < 0:
        return False
    entry = int(m.entry[table, i])
    if entry & PRESENT == 0:
        return False
    found = (entry & PFN_BITS) >> PAGE_SHIFT
    return found == pfn if level == 1 else found & ~1 == pfn & -HPAGE_PMD_NR


@inner
def folio_pages(b: Any, pfn: int) -> int:
    """``folio_nr_pages``."""
    return 1 << int(b.page[pfn]["order"])


@inner
def area_address(s: Any, row: int, index: int) -> int:
    """``vma_address``: where an area has this page offset (it may lie outside)."""
    vma = s.vma[row]
    return int(vma["vm_start"]) + ((index - int(vma["vm_pgoff"])) << PAGE_SHIFT)


@routine
def folio_referenced(h: int, pfn: int) -> int:
    """``folio_referenced``: how many areas have used the page since the last time: accessed bits are cleared. `SCAN_CONTROL.vm_flags`: flags of those areas,
    VM_LOCKED among them if one has locked it, which ends the walk. (TLBs are not flushed, as on x86.)"""
    b, m, s = state(h)
    sc = s.scan[0]
    sc["vm_flags"] = 0
    referenced = 0
    if not int(s.folio[pfn]["mapcount"]):
        return 0
    index, pages = int(s.folio[pfn]["index"]), folio_pages(b, pfn)
    at = first_mapping(h, pfn)
    while at != NIL:
        row = mapping_area(s, pfn, at)
        vma = s.vma[row]
        pgd, found, k = int(s.mm[int(vma["vm_mm"])]["pgd"]), 0, 0
        while k < pages:
            address = area_address(s, row, index + k)
            step = 1
            if int(vma["vm_start"]) <= address < int(vma["vm_end"]):
                table, i, level = find_entry(m, pgd, address)
                if maps(m, table, i, level, pfn + k):
                    if int(vma["vm_flags"]) & VM_LOCKED:
                        s.folio[pfn]["flags"] = int(s.folio[pfn]["flags"]) | PG_UNEVICTABLE
                        sc["vm_flags"] = int(sc["vm_flags"]) | VM_LOCKED
                        return referenced
                    entry = int(m.entry[table, i])
                    if entry & PAGE_ACCESSED:
                        found += 1
                        m.entry[table, i] = entry & ~PAGE_ACCESSED
                    if level == 2:
                        step = pages
            k += step
        if found:
            referenced += 1
            sc["vm_flags"] = int(sc["vm_flags"]) | int(vma["vm_flags"])
        at = next_mapping(h, pfn, at)
    return referenced


@routine
def try_to_unmap(h: int, pfn: int) -> None:
    """``try_to_unmap`` of a single page: every entry goes. One of anonymous memory means its slot then; one that was given to MADV_FREE and is clean, nothing.

    A dirty entry makes the page dirty. A page given to MADV_FREE that was written since is no longer free to go: it stays mapped.
    """
    _, m, s = state(h)
    index, at = int(s.folio[pfn]["index"]), first_mapping(h, pfn)
    while at != NIL and int(s.folio[pfn]["mapcount"]):
        row = mapping_area(s, pfn, at)
        vma = s.vma[row]
        mm, address = int(vma["vm_mm"]), area_address(s, row, index)
        following = next_mapping(h, pfn, at)
        if int(vma["vm_start"]) <= address < int(vma["vm_end"]):
            table, i, level = find_entry(m, int(s.mm[mm]["pgd"]), address)
            if level == 1 and maps(m, table, i, level, pfn) and not unmap_one(m, s, mm, table, i, pfn, address):
                return
        at = following


@inner
def unmap_one(m: Any, s: Any, mm: int, table: int, i: int, pfn: int, address: int) -> bool:
    """``try_to_unmap_one`` behind the walk; false: the page has to stay."""
    entry, pgd = int(m.entry[table, i]), int(s.mm[mm]["pgd"])
    m.entry[table, i] = 0
    count_writes(m, 1)
    flush_tlb_range(m, pgd, address, address + (1 << PAGE_SHIFT))
    folio = s.folio[pfn]
    if entry & PAGE_DIRTY:
        folio["flags"] = int(folio["flags"]) | PG_DIRTY
    if int(s.frame[pfn]) & ANON:
        if int(folio["swap"]):
            slot = int(folio["swap"]) - 1
            swap_duplicate(s, slot)
            s.mm[mm]["rss_swap"] = int(s.mm[mm]["rss_swap"]) + 1
            bits = exclusive_bit(m) if int(s.frame[pfn]) & EXCLUSIVE else 0
            m.entry[table, i] = make_entry(m, s, slot) | bits
            s.frame[pfn] = int(s.frame[pfn]) & ~EXCLUSIVE
        elif int(folio["flags"]) & PG_DIRTY or int(s.frame[pfn]) // REF != 1 + int(folio["mapcount"]):
            m.entry[table, i] = entry
            folio["flags"] = int(folio["flags"]) | PG_SWAPBACKED
            return False
    add_rss(s, mm, pfn, -1)
    s.frame[pfn] = int(s.frame[pfn]) - REF
    return True


@routine
def split_huge_page(h: int, pfn: int, head: int) -> bool:
    """``split_huge_page_to_list`` of an isolated huge page: its parts become pages of their own, chained behind it on the list it is on; whether it could be done.

    :param head: head of that list.
    """
    b, m, s = state(h)
    at = first_mapping(h, pfn)
    while at != NIL:
        row = mapping_area(s, pfn, at)
        vma = s.vma[row]
        address, mm = area_address(s, row, int(s.folio[pfn]["index"])), int(vma["vm_mm"])
        if int(vma["vm_start"]) <= address < int(vma["vm_end"]):
            table, i, level = find_entry(m, int(s.mm[mm]["pgd"]), address)
            if level == 2 and maps(m, table, i, level, pfn):
                split_huge_pmd(m, s, mm, table, i, int(vma["vm_flags"]), address)
        at = next_mapping(h, pfn, at)
    folio = s.folio[pfn]
    total = int(folio["mapcount"])
    if int(s.frame[pfn]) // REF != total + 1:
        return False
    flags, mine = int(folio["flags"]), total
    for k in range(1, HPAGE_PMD_NR):
        word = int(s.frame[pfn + k])
        mapped = word // REF
        mine -= mapped
        s.frame[pfn + k] = (mapped + 1) * REF | ANON | (word & EXCLUSIVE)
        part = s.folio[pfn + k]
        part["flags"], part["mapcount"], part["mapping"], part["swap"] = flags, mapped, folio["mapping"], 0
        part["index"] = int(folio["index"]) + k
        b.page[pfn + k]["order"], b.page[pfn + k]["flags"], b.page[pfn + k]["lru"] = 0, PG_ALLOCATED, 0
        list_add_tail(b.page, pfn + k, head)
    s.frame[pfn] = (mine + 1) * REF | ANON | (int(s.frame[pfn]) & EXCLUSIVE)
    folio["mapcount"] = mine
    b.page[pfn]["order"] = 0
    s.lruvec[0]["thp_split_page"] = int(s.lruvec[0]["thp_split_page"]) + 1
    return True
