"""Pages between memory and swap: entries of page tables, the swap cache, reading ahead (arch/x86/include/asm/pgtable_64.h, mm/swap_state.c of Linux 6.1).

A page that is swapped out is told by an entry that is not present and not empty. A page of the swap cache is in memory and has a slot: it counts one reference for it,
and is found by its slot in `Users.swap_cache`.
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, routine
from mmtwin.user.handles import users_state
from mmtwin.user.lru import set_flags, workingset_eviction, workingset_refault
from mmtwin.user.mm_tables import (
    ANON,
    IO_ROWS,
    IO_SWAP_IN,
    PG_DIRTY,
    PG_READAHEAD,
    PG_SWAPBACKED,
    PG_WRITEBACK,
    REF,
    SWAP_HAS_CACHE,
)
from mmtwin.user.pages import lru_add_drain, lru_cache_add, put_page, take_page
from mmtwin.user.swapfile import device_of, free_swap_slot, swap_count, swap_duplicate, swap_free, swapcache_free, vm_swap_full

GFP_HIGHUSER_MOVABLE = 0x100CCA
SWP_EXCLUSIVE = 1 << 3
"""_PAGE_SWP_EXCLUSIVE (64 bits): the page was the process's alone. 32-bit entries have no bit for it."""
OFFSET_BITS = (1 << 50) - 1
PAGE_SHIFT = 12


# Entries


@inner
def make_entry(m: Any, s: Any, slot: int) -> int:
    """``swp_entry_to_pte``: device and offset, the latter inverted on 64 bits (L1TF)."""
    d = device_of(s, slot)
    offset = slot - int(s.swap[d]["first"])
    if int(m.config[0]["bits"]) == 9:
        return ((~offset & OFFSET_BITS) << 9) | (d << 59)
    return (offset << 9) | (d << 1)


@inner
def entry_slot(m: Any, s: Any, entry: int) -> int:
    """``pte_to_swp_entry``: the slot that an entry means."""
    if int(m.config[0]["bits"]) == 9:
        return int(s.swap[(entry >> 59) & 31]["first"]) + (~(entry >> 9) & OFFSET_BITS)
    return int(s.swap[(entry >> 1) & 31]["first"]) + ((entry & 0xFFFFFFFF) >> 9)


@inner
def exclusive_bit(m: Any) -> int:
    """`SWP_EXCLUSIVE` where entries have it."""
    return SWP_EXCLUSIVE if int(m.config[0]["bits"]) == 9 else 0


# Contents


@inner
def note_io(s: Any, kind: int, place: int, pfn: int) -> None:
    """Tells the caller, who keeps the bytes, of a page that is written or read."""
    lruvec = s.lruvec[0]
    if int(lruvec["contents"]):
        n = int(lruvec["io"])
        if n < IO_ROWS:
            s.io[3 * n], s.io[3 * n + 1], s.io[3 * n + 2] = kind, place, pfn
        lruvec["io"] = n + 1


@inner
def io_full(s: Any) -> bool:
    """The caller must look at the contents before more is written: a batch of reclaim still has room."""
    return int(s.lruvec[0]["contents"]) != 0 and int(s.lruvec[0]["io"]) > IO_ROWS - 4096


# The swap cache


@inner
def add_to_swap_cache(s: Any, pfn: int, slot: int) -> None:
    """``add_to_swap_cache``: it holds the page."""
    s.frame[pfn] = int(s.frame[pfn]) + REF
    s.folio[pfn]["swap"] = slot + 1
    s.swap_cache[slot] = pfn


@routine
def delete_from_swap_cache(h: int, cpu: int, pfn: int, shadow: int) -> None:
    """``delete_from_swap_cache``: the page, which somebody else holds, has no slot any more."""
    s = users_state(h)
    slot = int(s.folio[pfn]["swap"]) - 1
    s.folio[pfn]["swap"] = 0
    s.swap_cache[slot] = shadow
    swapcache_free(h, cpu, slot)
    s.frame[pfn] = int(s.frame[pfn]) - REF


@routine
def folio_free_swap(h: int, cpu: int, pfn: int) -> bool:
    """``folio_free_swap``: gives up the slot of a page that no entry means; whether it did."""
    s = users_state(h)
    swap = int(s.folio[pfn]["swap"])
    if not swap or int(s.folio[pfn]["flags"]) & PG_WRITEBACK or swap_count(s, swap - 1):
        return False
    delete_from_swap_cache(h, cpu, pfn, -1)
    set_flags(s, pfn, PG_DIRTY, 0)
    return True


@routine
def free_swap_and_cache(h: int, cpu: int, slot: int) -> None:
    """``free_swap_and_cache``: an entry is gone; a page that only the swap cache still has goes with the last one."""
    s = users_state(h)
    left = int(s.swap_map[slot]) - 1
    s.swap_map[slot] = left
    if left == 0:
        free_swap_slot(h, cpu, slot)
    elif left == SWAP_HAS_CACHE:
        pfn = int(s.swap_cache[slot])
        if pfn >= 0 and (not int(s.folio[pfn]["mapcount"]) or vm_swap_full(s)):
            s.frame[pfn] = int(s.frame[pfn]) + REF
            folio_free_swap(h, cpu, pfn)
            put_page(h, cpu, pfn)


@inner
def swap_cache_page(s: Any, slot: int, row: int, address: int) -> int:
    """``swap_cache_get_folio``: the page, or a negative number. A hit of a page that was read ahead is remembered: by the area (`row`), or by all (disks)."""
    pfn = int(s.swap_cache[slot])
    if pfn < 0:
        return -1
    ahead, vma_ra = int(s.folio[pfn]["flags"]) & PG_READAHEAD != 0, row >= 0 and use_vma_readahead(s)
    if ahead:
        set_flags(s, pfn, 0, PG_READAHEAD)
        s.lruvec[0]["swap_ra_hit"] = int(s.lruvec[0]["swap_ra_hit"]) + 1
    if vma_ra:
        vma = s.vma[row]
        hits = ra_hits(s, row)
        if ahead:
            hits = min(hits + 1, (1 << 6) - 1)
        vma["ra_addr"], vma["ra_hits"] = address & -(1 << PAGE_SHIFT), hits
    elif ahead:
        s.lruvec[0]["readahead_hits"] = int(s.lruvec[0]["readahead_hits"]) + 1
    return pfn


# Reading ahead


@inner
def use_vma_readahead(s: Any) -> bool:
    """``swap_use_vma_readahead``: around the address if no device has moving parts, else around the slot."""
    return int(s.lruvec[0]["nr_rotate_swap"]) == 0


@inner
def ra_hits(s: Any, row: int) -> int:
    """SWAP_RA_HITS; 4 to begin with."""
    vma = s.vma[row]
    return int(vma["ra_hits"]) if int(vma["ra_addr"]) or int(vma["ra_win"]) or int(vma["ra_hits"]) else 4


@inner
def readahead_window(prev: int, offset: int, hits: int, most: int, last: int) -> int:
    """``__swapin_nr_pages``."""
    pages = hits + 2
    if pages == 2:
        if offset not in (prev + 1, prev - 1):
            pages = 1
    else:
        power = 4
        while power < pages:
            power <<= 1
        pages = power
    return max(min(pages, most), last // 2)


@routine
def read_swap_cache(h: int, cpu: int, slot: int, ahead: bool) -> int:
    """``__read_swap_cache_async``: the page of a slot in the swap cache, read if it is not there; -1: the slot is not used; below: no page."""
    s = users_state(h)
    pfn = int(s.swap_cache[slot])
    if pfn >= 0:
        return pfn
    if not swap_count(s, slot):
        return -1
    pfn = take_page(h, cpu, 0, GFP_HIGHUSER_MOVABLE)
    if pfn < 0:
        return pfn
    shadow = int(s.swap_cache[slot])
    s.swap_map[slot] = int(s.swap_map[slot]) | SWAP_HAS_CACHE
    s.frame[pfn] = ANON
    folio = s.folio[pfn]
    folio["flags"], folio["mapcount"], folio["mapping"], folio["index"] = PG_SWAPBACKED, 0, 0, 0
    add_to_swap_cache(s, pfn, slot)
    if shadow < -1:
        workingset_refault(h, pfn, shadow)
    lru_cache_add(h, cpu, pfn, 0)
    note_io(s, IO_SWAP_IN, slot, pfn)
    s.lruvec[0]["pswpin"] = int(s.lruvec[0]["pswpin"]) + 1
    if ahead:
        set_flags(s, pfn, PG_READAHEAD, 0)
        s.lruvec[0]["swap_ra"] = int(s.lruvec[0]["swap_ra"]) + 1
    return pfn


@routine
def swap_cluster_readahead(h: int, cpu: int, slot: int) -> int:
    """``swap_cluster_readahead``: reads an aligned cluster of slots; the page of `slot` in the swap cache, or a negative error."""
    s = users_state(h)
    lruvec, d = s.lruvec[0], device_of(s, slot)
    first, most = int(s.swap[d]["first"]), 1 << int(lruvec["page_cluster"])
    offset, window = slot - first, 1
    if most > 1:
        hits = int(lruvec["readahead_hits"])
        lruvec["readahead_hits"] = 0
        window = readahead_window(int(lruvec["readahead_offset"]), offset, hits, most, int(lruvec["readahead_pages"]))
        if not hits:
            lruvec["readahead_offset"] = offset
        lruvec["readahead_pages"] = window
    if window > 1:
        for at in range(max(offset & -window, 1), min(offset | (window - 1), int(s.swap[d]["max"]) - 1) + 1):
            pfn = read_swap_cache(h, cpu, first + at, at != offset)
            if pfn < -1:
                return pfn
        lru_add_drain(h, cpu)
    return read_swap_cache(h, cpu, slot, False)


__all__ = (
    "SWP_EXCLUSIVE",
    "add_to_swap_cache",
    "delete_from_swap_cache",
    "entry_slot",
    "exclusive_bit",
    "folio_free_swap",
    "free_swap_and_cache",
    "make_entry",
    "note_io",
    "read_swap_cache",
    "swap_cache_page",
    "swap_cluster_readahead",
    "swap_count",
    "swap_duplicate",
    "swap_free",
    "use_vma_readahead",
    "workingset_eviction",
)
