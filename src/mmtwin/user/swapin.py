"""A page that is swapped out is touched again (``do_swap_page`` of mm/memory.c, ``swap_vma_readahead`` of mm/swap_state.c, Linux 6.1)."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, routine
from mmtwin.mm.pgtable import count_writes, table_index
from mmtwin.mm.pgtable_tables import PAGE_DIRTY, PAGE_PRESENT, PAGE_RW, PAGE_SHIFT
from mmtwin.mm.tables import PG_LRU
from mmtwin.user.handles import state, tables_and_users, users_state
from mmtwin.user.huge import PAGE_PROTNONE, page_prot
from mmtwin.user.lru import workingset_refault
from mmtwin.user.mm_tables import ANON, EXCLUSIVE, IO_SWAP_IN, PG_SWAPBACKED, PG_UNEVICTABLE, REF, SHMEM, VM_LOCKED, VM_WRITE
from mmtwin.user.pages import lru_add_drain, lru_cache_add, set_anon_rmap, take_page
from mmtwin.user.swap import (
    GFP_HIGHUSER_MOVABLE,
    entry_slot,
    exclusive_bit,
    folio_free_swap,
    note_io,
    ra_hits,
    read_swap_cache,
    readahead_window,
    swap_cache_page,
    swap_cluster_readahead,
    use_vma_readahead,
)
from mmtwin.user.swapfile import device_of, swap_count, swap_free, vm_swap_full


@routine
def swap_vma_readahead(h: int, cpu: int, row: int, table: int, address: int, slot: int) -> int:
    """``swap_vma_readahead``: reads what is swapped out around the address, within one PTE table and the area."""
    m, s = tables_and_users(h)
    vma, fpfn = s.vma[row], address >> PAGE_SHIFT
    most = 1 << min(int(s.lruvec[0]["page_cluster"]), 5)
    if most > 1:
        pfn = int(vma["ra_addr"]) >> PAGE_SHIFT
        window = readahead_window(pfn, fpfn, ra_hits(s, row), most, int(vma["ra_win"]))
        vma["ra_addr"], vma["ra_win"], vma["ra_hits"] = address & -(1 << PAGE_SHIFT), window, 0
        if window > 1:
            if fpfn == pfn + 1:
                start, end = fpfn, fpfn + window
            elif pfn == fpfn + 1:
                start, end = fpfn - window + 1, fpfn + 1
            else:
                left = (window - 1) // 2
                start, end = fpfn - left, fpfn + window - left
            span = 1 << int(m.config[0]["bits"])
            start = max(start, int(vma["vm_start"]) >> PAGE_SHIFT, fpfn & -span)
            end = min(end, int(vma["vm_end"]) >> PAGE_SHIFT, (fpfn & -span) + span)
            for at in range(start, end):
                entry = int(m.entry[table, table_index(m, at << PAGE_SHIFT, 1)])
                if entry and entry & (PAGE_PRESENT | PAGE_PROTNONE) == 0 and read_swap_cache(h, cpu, entry_slot(m, s, entry), at != fpfn) < -1:
                    return -11  # -EAGAIN: the fault is taken again once there is memory
            lru_add_drain(h, cpu)
    return read_swap_cache(h, cpu, slot, False)


@inner
def swap_synchronous(s: Any, slot: int) -> bool:
    """SWP_SYNCHRONOUS_IO, and nobody else has an entry for it: the page needs no swap cache."""
    return int(s.swap[device_of(s, slot)]["synchronous"]) != 0 and swap_count(s, slot) == 1


@routine
def read_synchronously(h: int, cpu: int, slot: int) -> int:
    """A page of its own, read at once."""
    s = users_state(h)
    pfn = take_page(h, cpu, 0, GFP_HIGHUSER_MOVABLE)
    if pfn < 0:
        return pfn
    shadow = int(s.swap_cache[slot])
    s.frame[pfn] = ANON
    folio = s.folio[pfn]
    folio["flags"], folio["mapcount"], folio["swap"] = PG_SWAPBACKED, 0, 0
    if shadow < -1:
        workingset_refault(h, pfn, shadow)
    s.frame[pfn] = int(s.frame[pfn]) + REF
    lru_cache_add(h, cpu, pfn, 0)
    note_io(s, IO_SWAP_IN, slot, pfn)
    s.lruvec[0]["pswpin"] = int(s.lruvec[0]["pswpin"]) + 1
    return pfn


@routine
def do_swap_page(h: int, cpu: int, row: int, mm: int, table: int, i: int, address: int, write: bool) -> int:
    """``do_swap_page``: 0, or a negative error. What a write still needs (a copy, if others have the page too) is the caller's."""
    b, m, s = state(h)
    entry, flags = int(m.entry[table, i]), int(s.vma[row]["vm_flags"])
    slot = entry_slot(m, s, entry)
    pfn = swap_cache_page(s, slot, row, address)
    cached = True
    if pfn < 0:
        if swap_synchronous(s, slot):
            pfn, cached = read_synchronously(h, cpu, slot), False
        elif use_vma_readahead(s):
            pfn = swap_vma_readahead(h, cpu, row, table, address, slot)
        else:
            pfn = swap_cluster_readahead(h, cpu, slot)
        if pfn < 0:
            return pfn
        s.mm[mm]["maj_flt"] = int(s.mm[mm]["maj_flt"]) + 1
        s.lruvec[0]["pgmajfault"] = int(s.lruvec[0]["pgmajfault"]) + 1
    if cached:
        s.frame[pfn] = int(s.frame[pfn]) + REF
        if write and not int(b.page[pfn]["flags"]) & PG_LRU:
            lru_add_drain(h, cpu)
    exclusive = not cached or entry & exclusive_bit(m) != 0
    swap_free(h, cpu, slot)
    if cached and (vm_swap_full(s) or flags & VM_LOCKED or int(s.folio[pfn]["flags"]) & PG_UNEVICTABLE or (write and int(s.frame[pfn]) < 3 * REF)):
        folio_free_swap(h, cpu, pfn)
    s.mm[mm]["rss_anon"] = int(s.mm[mm]["rss_anon"]) + 1
    s.mm[mm]["rss_swap"] = int(s.mm[mm]["rss_swap"]) - 1
    exclusive = exclusive or int(s.frame[pfn]) < 2 * REF
    word = (int(s.frame[pfn]) | ANON) & ~SHMEM
    if not int(s.folio[pfn]["mapcount"]):
        set_anon_rmap(s, pfn, row, address, exclusive)
    s.folio[pfn]["mapcount"] = int(s.folio[pfn]["mapcount"]) + 1
    bits = page_prot(m, flags)
    if exclusive:
        word |= EXCLUSIVE
        if write:
            bits |= PAGE_DIRTY | PAGE_RW if flags & VM_WRITE else PAGE_DIRTY
    s.frame[pfn] = word
    m.entry[table, i] = (pfn << PAGE_SHIFT) | bits
    count_writes(m, 1)
    return 0
