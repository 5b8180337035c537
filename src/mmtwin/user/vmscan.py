"""Reclaim: which pages go when memory runs short, and how (mm/vmscan.c of Linux 6.1).

`try_to_free_pages` is direct reclaim, `balance_pgdat` a round of kswapd; their progress is in the one row of `SCAN_CONTROL`. Names and order of steps are the kernel's.
There is one node and one memory cgroup. What the twin decides where the kernel leaves it to time:

- a write to a swap device ends when the batch of pages it belongs to goes back to the lists (a fast disk), at once on a synchronous one; the page is then moved to the
  tail of the inactive list, and freed when it is met again, as in the kernel;
- the flusher has written a dirty page of a file by then, too;
- nobody else runs meanwhile: no throttling, no lock is contended. Caches of the slab allocator have no shrinkers.
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, routine
from mmtwin.mm.buddy import page_zone
from mmtwin.mm.kswapd import pgdat_balanced
from mmtwin.mm.list import list_add, list_add_tail, list_del, list_empty
from mmtwin.mm.page_alloc import free_pages_prepare, free_the_page_cold
from mmtwin.mm.tables import PAGE_ALLOC_COSTLY_ORDER, ZONE_RECLAIM_ACTIVE
from mmtwin.mm.watermark import int_sqrt
from mmtwin.user.compact_rules import COMPACT_SKIPPED, compact_gap, compaction_ready, compaction_suitable
from mmtwin.user.handles import page_state, pages_and_users, users_state
from mmtwin.user.lru import (
    is_file_lru,
    lru_add,
    lru_del,
    lru_head,
    lru_note_cost,
    lru_size,
    set_flags,
    workingset_eviction,
    zones_lru_size,
)
from mmtwin.user.mm_tables import (
    ANON,
    IO_FILE_OUT,
    IO_SWAP_OUT,
    L_ACTIVE,
    L_FOLIOS,
    L_FREE,
    L_HOLD,
    L_INACTIVE,
    L_KEEP,
    L_SKIPPED,
    LRU_ACTIVE_ANON,
    LRU_ACTIVE_FILE,
    LRU_INACTIVE_ANON,
    LRU_INACTIVE_FILE,
    LRU_UNEVICTABLE,
    PG_ACTIVE,
    PG_DIRTY,
    PG_RECLAIM,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_UNEVICTABLE,
    PG_WORKINGSET,
    PG_WRITEBACK,
    REF,
    VM_EXEC,
    VM_LOCKED,
)
from mmtwin.user.pages import free_large, lru_add_drain, note_request
from mmtwin.user.rmap import folio_pages, folio_referenced, split_huge_page, try_to_unmap
from mmtwin.user.swap import add_to_swap_cache, folio_free_swap, io_full, note_io
from mmtwin.user.swapfile import NO_SLOT, device_of, folio_alloc_swap, swap_duplicate, swapcache_free, vm_swap_full

SWAP_CLUSTER_MAX = 32
DEF_PRIORITY = 12
GFP_IO, GFP_FS, GFP_KERNEL = 0x40, 0x80, 0xCC0
DEACTIVATE_ANON, DEACTIVATE_FILE = 1, 2
RECLAIM, RECLAIM_CLEAN, KEEP, ACTIVATE = range(4)
"""``enum folio_references``."""
GIGABYTE_SHIFT = 30 - 12


# Sizes


@inner
def can_reclaim_anon_pages(s: Any) -> bool:
    """``can_reclaim_anon_pages``: there is a free slot."""
    return int(s.lruvec[0]["nr_swap_pages"]) > 0


@routine
def inactive_is_low(h: int, inactive_lru: int) -> bool:
    """``inactive_is_low``: the larger the lists, the smaller the inactive part may be."""
    inactive, active = lru_size(h, inactive_lru), lru_size(h, inactive_lru + 1)
    gb = (inactive + active) >> GIGABYTE_SHIFT
    return inactive * (int_sqrt(10 * gb) if gb else 1) < active


# Isolation and the way back


@routine
def isolate_lru_folios(h: int, lru: int, to_scan: int, target: int) -> int:
    """``isolate_lru_folios``: takes pages from the tail of a list to list `target`, holding each; returns how many it looked at. `nr_taken` says how many it has.

    Pages of zones that the request cannot use are put back to the front.
    """
    b, s = pages_and_users(h)
    sc, lruvec = s.scan[0], s.lruvec[0]
    src, dst, skipped = lru_head(b, lru), lru_head(b, target), lru_head(b, L_SKIPPED)
    scan = total = taken = 0
    while scan < to_scan and not list_empty(b.page, src):
        pfn = int(b.page[src]["prev"])
        pages = folio_pages(b, pfn)
        total += pages
        if page_zone(b, pfn) > int(sc["reclaim_idx"]):
            lruvec["pgscan_skip"] = int(lruvec["pgscan_skip"]) + pages
            list_del(b.page, pfn)
            list_add(b.page, pfn, skipped)
            continue
        scan += pages
        if not int(sc["may_unmap"]) and int(s.folio[pfn]["mapcount"]):
            list_del(b.page, pfn)
            list_add(b.page, pfn, src)
            continue
        lru_del(h, pfn)
        s.frame[pfn] = int(s.frame[pfn]) + REF
        list_add(b.page, pfn, dst)
        taken += pages
    while not list_empty(b.page, skipped):
        pfn = int(b.page[skipped]["prev"])
        list_del(b.page, pfn)
        list_add(b.page, pfn, src)
    sc["nr_taken"] = taken
    return total


@routine
def end_writeback(h: int, pfn: int) -> None:
    """``folio_end_writeback``: a page that was written to make room goes to the tail of the inactive list (``folio_rotate_reclaimable``)."""
    b, s = pages_and_users(h)
    flags = int(s.folio[pfn]["flags"])
    set_flags(s, pfn, 0, PG_WRITEBACK | PG_RECLAIM)
    if flags & PG_RECLAIM and not flags & (PG_DIRTY | PG_UNEVICTABLE) and int(b.page[pfn]["lru"]):
        lru_del(h, pfn)
        set_flags(s, pfn, 0, PG_ACTIVE)
        lru_add(h, pfn, True)
        s.lruvec[0]["pgrotated"] = int(s.lruvec[0]["pgrotated"]) + 1


@inner
def write_file_page(s: Any, pfn: int) -> None:
    """The flusher writes a dirty page of a file."""
    set_flags(s, pfn, 0, PG_DIRTY)
    note_io(s, IO_FILE_OUT, int(s.file[int(s.folio[pfn]["mapping"])]["first"]) + int(s.folio[pfn]["index"]), pfn)
    s.lruvec[0]["file_written"] = int(s.lruvec[0]["file_written"]) + 1


@routine
def move_folios_to_lru(h: int, cpu: int, source: int) -> int:
    """``move_folios_to_lru``: isolated pages go back to the lists their flags name; those that nobody else holds are freed. Returns how many pages went back."""
    b, s = pages_and_users(h)
    head, free, moved = lru_head(b, source), lru_head(b, L_FREE), 0
    while not list_empty(b.page, head):
        pfn = int(b.page[head]["prev"])
        list_del(b.page, pfn)
        left = int(s.frame[pfn]) - REF
        s.frame[pfn] = left
        if left < REF:
            if int(b.page[pfn]["order"]):
                free_large(h, cpu, pfn, int(b.page[pfn]["order"]))
            else:
                list_add(b.page, pfn, free)
            continue
        if int(s.folio[pfn]["flags"]) & PG_UNEVICTABLE:
            set_flags(s, pfn, 0, PG_ACTIVE)
            s.lruvec[0]["unevictable_pgs_culled"] = int(s.lruvec[0]["unevictable_pgs_culled"]) + folio_pages(b, pfn)
        lru_add(h, pfn, False)
        moved += folio_pages(b, pfn)
        flags = int(s.folio[pfn]["flags"])
        if flags & PG_ACTIVE:
            s.lruvec[0]["nonresident_age"] = int(s.lruvec[0]["nonresident_age"]) + folio_pages(b, pfn)
        if flags & PG_WRITEBACK:
            end_writeback(h, pfn)
        elif flags & PG_DIRTY and flags & PG_RECLAIM and not flags & PG_SWAPBACKED:
            write_file_page(s, pfn)
            end_writeback(h, pfn)
    free_folio_list(h, cpu)
    return moved


@routine
def free_folio_list(h: int, cpu: int) -> None:
    """``free_unref_page_list`` of the pages that nobody holds any more."""
    b, s = pages_and_users(h)
    head = lru_head(b, L_FREE)
    pfn, n = int(b.page[head]["next"]), 0
    while pfn != head:
        s.frame[pfn] = 0
        note_request(s, 0, -1, pfn)
        flags_next = int(b.page[pfn]["next"])
        free_pages_prepare(b, pfn, 0)
        pfn = flags_next
        n += 1
    for _ in range(n):
        pfn = int(b.page[head]["next"])
        list_del(b.page, pfn)
        free_the_page_cold(b, cpu, pfn, 0)


# One page's fate


@routine
def folio_check_references(h: int, pfn: int) -> int:
    """``folio_check_references``."""
    s = users_state(h)
    sc = s.scan[0]
    used = folio_referenced(h, pfn)
    marked = int(s.folio[pfn]["flags"]) & PG_REFERENCED != 0
    set_flags(s, pfn, 0, PG_REFERENCED)
    if int(sc["vm_flags"]) & VM_LOCKED:
        return ACTIVATE
    file = is_file_lru(s, pfn) != 0
    if used:
        set_flags(s, pfn, PG_REFERENCED, 0)
        if marked or used > 1 or (int(sc["vm_flags"]) & VM_EXEC and file):
            return ACTIVATE
        return KEEP
    return RECLAIM_CLEAN if marked and file else RECLAIM


@routine
def activate_locked(h: int, cpu: int, pfn: int) -> None:
    """The page is not to go now: it becomes active, and gives up its slot if slots are short."""
    b, s = pages_and_users(h)
    if int(s.folio[pfn]["swap"]) and (vm_swap_full(s) or int(s.folio[pfn]["flags"]) & PG_UNEVICTABLE):
        folio_free_swap(h, cpu, pfn)
    if not int(s.folio[pfn]["flags"]) & PG_UNEVICTABLE:
        set_flags(s, pfn, PG_ACTIVE, 0)
        s.lruvec[0]["pgactivate"] = int(s.lruvec[0]["pgactivate"]) + folio_pages(b, pfn)


@routine
def swap_writepage(h: int, pfn: int) -> None:
    """``swap_writepage``: clean from now on; under writeback, unless the device is synchronous."""
    s = users_state(h)
    slot = int(s.folio[pfn]["swap"]) - 1
    set_flags(s, pfn, PG_RECLAIM, PG_DIRTY)
    note_io(s, IO_SWAP_OUT, slot, pfn)
    s.lruvec[0]["pswpout"] = int(s.lruvec[0]["pswpout"]) + 1
    if int(s.swap[device_of(s, slot)]["synchronous"]):
        set_flags(s, pfn, 0, PG_RECLAIM)
    else:
        set_flags(s, pfn, PG_WRITEBACK, 0)


@routine
def shmem_writepage(h: int, cpu: int, pfn: int) -> bool:
    """``shmem_writepage``: a page of shared memory moves from its file to a slot; false: there is none."""
    s = users_state(h)
    slot = folio_alloc_swap(h, cpu)
    if slot == NO_SLOT:
        return False
    folio, file = s.folio[pfn], s.file[int(s.folio[pfn]["mapping"])]
    add_to_swap_cache(s, pfn, slot)
    swap_duplicate(s, slot)
    s.cache[int(file["first"]) + int(folio["index"])] = -2 - slot
    file["cached"] = int(file["cached"]) - 1
    s.frame[pfn] = int(s.frame[pfn]) - REF
    swap_writepage(h, pfn)
    return True


@routine
def remove_mapping(h: int, cpu: int, pfn: int) -> bool:
    """``__remove_mapping``: swap cache or page cache let go of a clean page that nobody else holds."""
    s = users_state(h)
    if int(s.frame[pfn]) // REF != 2 or int(s.folio[pfn]["flags"]) & PG_DIRTY:
        return False
    folio = s.folio[pfn]
    if int(folio["swap"]):
        slot = int(folio["swap"]) - 1
        s.swap_cache[slot] = workingset_eviction(s, pfn)
        folio["swap"] = 0
        swapcache_free(h, cpu, slot)
    else:
        file = s.file[int(folio["mapping"])]
        at = int(file["first"]) + int(folio["index"])
        s.cache[at] = workingset_eviction(s, pfn) if is_file_lru(s, pfn) else -1
        file["cached"] = int(file["cached"]) - 1
    s.frame[pfn] = int(s.frame[pfn]) - REF
    return True


FREED, KEPT, ACTIVATED = range(3)


@routine
def shrink_folio(h: int, cpu: int, pfn: int) -> int:
    """The body of ``shrink_folio_list``: one page is freed, kept or made active."""
    b, s = pages_and_users(h)
    sc, lruvec = s.scan[0], s.lruvec[0]
    pages = folio_pages(b, pfn)
    sc["nr_scanned"] = int(sc["nr_scanned"]) + pages
    if int(s.folio[pfn]["flags"]) & PG_UNEVICTABLE:
        return ACTIVATED
    if not int(sc["may_unmap"]) and int(s.folio[pfn]["mapcount"]):
        return KEPT
    if int(s.folio[pfn]["flags"]) & PG_WRITEBACK:
        set_flags(s, pfn, PG_RECLAIM, 0)
        return ACTIVATED
    references = folio_check_references(h, pfn)
    if references == ACTIVATE:
        return ACTIVATED
    if references == KEEP:
        return KEPT
    anon, gfp = int(s.frame[pfn]) & ANON != 0, int(sc["gfp_mask"])
    if anon and int(s.folio[pfn]["flags"]) & PG_SWAPBACKED and not int(s.folio[pfn]["swap"]):
        if not gfp & GFP_IO:
            return KEPT
        if pages > 1:
            if not split_huge_page(h, pfn, lru_head(b, L_FOLIOS)):
                return ACTIVATED
            sc["nr_scanned"] = int(sc["nr_scanned"]) - (pages - 1)
        if not int(s.folio[pfn]["mapcount"]) and int(s.frame[pfn]) // REF == 1:  # a part of a huge page that was unmapped
            s.frame[pfn] = int(s.frame[pfn]) - REF
            return FREED
        slot = folio_alloc_swap(h, cpu)
        if slot == NO_SLOT:
            return ACTIVATED
        add_to_swap_cache(s, pfn, slot)
        set_flags(s, pfn, PG_DIRTY, 0)
    if int(s.folio[pfn]["mapcount"]):
        try_to_unmap(h, pfn)
        if int(s.folio[pfn]["mapcount"]):
            return ACTIVATED
    if int(s.folio[pfn]["flags"]) & PG_DIRTY:
        if is_file_lru(s, pfn) and not anon:
            set_flags(s, pfn, PG_RECLAIM, 0)
            return ACTIVATED
        if references == RECLAIM_CLEAN or not (gfp & GFP_FS or (int(s.folio[pfn]["swap"]) and gfp & GFP_IO)) or not int(sc["may_writepage"]):
            return KEPT
        if int(s.frame[pfn]) // REF != 2:  # is_page_cache_freeable
            return KEPT
        if int(s.folio[pfn]["swap"]):
            swap_writepage(h, pfn)
        elif not shmem_writepage(h, cpu, pfn):
            return ACTIVATED
        sc["nr_pageout"] = int(sc["nr_pageout"]) + 1
        if int(s.folio[pfn]["flags"]) & PG_WRITEBACK:
            return KEPT
    if anon and not int(s.folio[pfn]["flags"]) & PG_SWAPBACKED:
        if int(s.frame[pfn]) // REF != 1:
            return KEPT
        lruvec["pglazyfreed"] = int(lruvec["pglazyfreed"]) + 1
    elif not remove_mapping(h, cpu, pfn):
        return KEPT
    s.frame[pfn] = int(s.frame[pfn]) - REF
    return FREED


@routine
def shrink_folio_list(h: int, cpu: int) -> int:
    """``shrink_folio_list``: returns how many of the isolated pages were freed; the others are isolated still. `nr_pageout` says how many were written."""
    b, s = pages_and_users(h)
    source, keep, free = lru_head(b, L_FOLIOS), lru_head(b, L_KEEP), lru_head(b, L_FREE)
    freed = 0
    s.scan[0]["nr_pageout"] = 0
    while not list_empty(b.page, source):
        pfn = int(b.page[source]["prev"])
        list_del(b.page, pfn)
        done = shrink_folio(h, cpu, pfn)
        if done == FREED:
            freed += 1
            list_add(b.page, pfn, free)
            continue
        if done == ACTIVATED:
            activate_locked(h, cpu, pfn)
        list_add(b.page, pfn, keep)
    free_folio_list(h, cpu)
    while not list_empty(b.page, keep):
        pfn = int(b.page[keep]["next"])
        list_del(b.page, pfn)
        list_add_tail(b.page, pfn, source)
    return freed


# Lists


@routine
def shrink_inactive_list(h: int, cpu: int, lru: int, to_scan: int) -> int:
    """``shrink_inactive_list``: returns how many pages were freed."""
    s = users_state(h)
    sc, lruvec, file = s.scan[0], s.lruvec[0], lru >= LRU_INACTIVE_FILE
    lru_add_drain(h, cpu)
    scanned = isolate_lru_folios(h, lru, to_scan, L_FOLIOS)
    taken = int(sc["nr_taken"])
    if int(sc["kswapd"]):
        lruvec["pgscan_kswapd"] = int(lruvec["pgscan_kswapd"]) + scanned
    else:
        lruvec["pgscan_direct"] = int(lruvec["pgscan_direct"]) + scanned
    if file:
        lruvec["pgscan_file"] = int(lruvec["pgscan_file"]) + scanned
    else:
        lruvec["pgscan_anon"] = int(lruvec["pgscan_anon"]) + scanned
    if taken == 0:
        return 0
    freed = shrink_folio_list(h, cpu)
    written = int(sc["nr_pageout"])
    move_folios_to_lru(h, cpu, L_FOLIOS)
    if int(sc["kswapd"]):
        lruvec["pgsteal_kswapd"] = int(lruvec["pgsteal_kswapd"]) + freed
    else:
        lruvec["pgsteal_direct"] = int(lruvec["pgsteal_direct"]) + freed
    if file:
        lruvec["pgsteal_file"] = int(lruvec["pgsteal_file"]) + freed
    else:
        lruvec["pgsteal_anon"] = int(lruvec["pgsteal_anon"]) + freed
    lru_note_cost(h, 1 if file else 0, written)
    return freed


@routine
def shrink_active_list(h: int, cpu: int, lru: int, to_scan: int) -> None:
    """``shrink_active_list``: pages become inactive, but for programs' pages that were used: those go around once more."""
    b, s = pages_and_users(h)
    sc, lruvec = s.scan[0], s.lruvec[0]
    lru_add_drain(h, cpu)
    lruvec["pgrefill"] = int(lruvec["pgrefill"]) + isolate_lru_folios(h, lru, to_scan, L_HOLD)
    hold, active, inactive = lru_head(b, L_HOLD), lru_head(b, L_ACTIVE), lru_head(b, L_INACTIVE)
    while not list_empty(b.page, hold):
        pfn = int(b.page[hold]["prev"])
        list_del(b.page, pfn)
        if folio_referenced(h, pfn) and int(sc["vm_flags"]) & VM_EXEC and is_file_lru(s, pfn):
            list_add(b.page, pfn, active)
            continue
        set_flags(s, pfn, PG_WORKINGSET, PG_ACTIVE)
        list_add(b.page, pfn, inactive)
    move_folios_to_lru(h, cpu, L_ACTIVE)
    lruvec["pgdeactivate"] = int(lruvec["pgdeactivate"]) + move_folios_to_lru(h, cpu, L_INACTIVE)


@routine
def prepare_scan_count(h: int) -> None:
    """``prepare_scan_count``."""
    b, s = pages_and_users(h)
    sc, lruvec = s.scan[0], s.lruvec[0]
    sc["anon_cost"], sc["file_cost"] = lruvec["anon_cost"], lruvec["file_cost"]
    may = 0
    if int(sc["force_deactivate"]):
        may = DEACTIVATE_ANON | DEACTIVATE_FILE
    else:
        if int(lruvec["workingset_activate_anon"]) != int(lruvec["refaults_anon"]) or inactive_is_low(h, LRU_INACTIVE_ANON):
            may |= DEACTIVATE_ANON
        if int(lruvec["workingset_activate_file"]) != int(lruvec["refaults_file"]) or inactive_is_low(h, LRU_INACTIVE_FILE):
            may |= DEACTIVATE_FILE
    sc["may_deactivate"] = may
    priority = int(sc["priority"])
    sc["cache_trim_mode"] = 1 if lru_size(h, LRU_INACTIVE_FILE) >> priority and not may & DEACTIVATE_FILE else 0
    free = high = 0
    for z in range(len(b.zone)):
        if int(b.zone[z]["managed_pages"]):
            free += int(b.zone[z]["nr_free_pages"])
            high += int(b.zone[z]["wmark_high"]) + int(b.zone[z]["watermark_boost"])
    file = lru_size(h, LRU_ACTIVE_FILE) + lru_size(h, LRU_INACTIVE_FILE)
    anon = lru_size(h, LRU_INACTIVE_ANON)
    sc["file_is_tiny"] = 1 if file + free <= high and not may & DEACTIVATE_ANON and anon >> priority else 0


@routine
def scan_count(h: int, lru: int) -> int:
    """``get_scan_count`` of one list: how many of its pages this priority looks at."""
    s = users_state(h)
    sc, lruvec = s.scan[0], s.lruvec[0]
    swappiness, file = int(lruvec["swappiness"]), lru >= LRU_INACTIVE_FILE
    scan = zones_lru_size(h, lru, int(sc["reclaim_idx"])) >> int(sc["priority"])
    if not int(sc["may_swap"]) or not can_reclaim_anon_pages(s):
        return scan if file else 0
    if not int(sc["priority"]) and swappiness:
        return scan
    if int(sc["file_is_tiny"]):
        return 0 if file else scan
    if int(sc["cache_trim_mode"]):
        return scan if file else 0
    total = int(sc["anon_cost"]) + int(sc["file_cost"])
    anon_cost, file_cost = total + int(sc["anon_cost"]), total + int(sc["file_cost"])
    total = anon_cost + file_cost
    anon_part, file_part = swappiness * (total + 1) // (anon_cost + 1), (200 - swappiness) * (total + 1) // (file_cost + 1)
    return scan * (file_part if file else anon_part) // (anon_part + file_part)


@routine
def shrink_lruvec(h: int, cpu: int) -> None:
    """``shrink_lruvec``."""
    s = users_state(h)
    sc = s.scan[0]
    a, aa, f, fa = scan_count(h, LRU_INACTIVE_ANON), scan_count(h, LRU_ACTIVE_ANON), scan_count(h, LRU_INACTIVE_FILE), scan_count(h, LRU_ACTIVE_FILE)
    target_a, target_aa, target_f, target_fa = a, aa, f, fa
    proportional = not int(sc["kswapd"]) and int(sc["priority"]) == DEF_PRIORITY
    reclaimed, goal = 0, int(sc["nr_to_reclaim"])
    while (a or fa or f) and not io_full(s):
        for lru in range(LRU_UNEVICTABLE):
            left = a if lru == 0 else aa if lru == 1 else f if lru == 2 else fa
            n = min(left, SWAP_CLUSTER_MAX)
            if not n:
                continue
            left -= n
            if lru == LRU_INACTIVE_ANON:
                a = left
            elif lru == LRU_ACTIVE_ANON:
                aa = left
            elif lru == LRU_INACTIVE_FILE:
                f = left
            else:
                fa = left
            if lru == LRU_INACTIVE_ANON or lru == LRU_INACTIVE_FILE:
                reclaimed += shrink_inactive_list(h, cpu, lru, n)
            elif int(sc["may_deactivate"]) & (DEACTIVATE_FILE if lru == LRU_ACTIVE_FILE else DEACTIVATE_ANON):
                shrink_active_list(h, cpu, lru, n)
            else:
                sc["skipped_deactivate"] = 1
        if reclaimed < goal or proportional:
            continue
        file, anon = f + fa, a + aa
        if not file or not anon:
            break
        if file > anon:
            percentage = anon * 100 // (target_a + target_aa + 1)
            a = aa = 0
            done = target_f - f
            f = target_f * (100 - percentage) // 100
            f -= min(f, done)
            done = target_fa - fa
            fa = target_fa * (100 - percentage) // 100
            fa -= min(fa, done)
        else:
            percentage = file * 100 // (target_f + target_fa + 1)
            f = fa = 0
            done = target_a - a
            a = target_a * (100 - percentage) // 100
            a -= min(a, done)
            done = target_aa - aa
            aa = target_aa * (100 - percentage) // 100
            aa -= min(aa, done)
    sc["nr_reclaimed"] = int(sc["nr_reclaimed"]) + reclaimed
    if int(s.lruvec[0]["total_swap_pages"]) and inactive_is_low(h, LRU_INACTIVE_ANON):
        shrink_active_list(h, cpu, LRU_ACTIVE_ANON, SWAP_CLUSTER_MAX)


# The node


@routine
def should_continue_reclaim(h: int, reclaimed: int) -> bool:
    """``should_continue_reclaim``: for a block, until there are pages enough to move."""
    b, s = pages_and_users(h)
    sc = s.scan[0]
    order = int(sc["order"])
    if not (int(sc["gfp_mask"]) & GFP_IO and order and (order > PAGE_ALLOC_COSTLY_ORDER or int(sc["priority"]) < DEF_PRIORITY - 2)) or not reclaimed:
        return False
    for z in range(int(sc["reclaim_idx"]) + 1):
        if int(b.zone[z]["managed_pages"]) and compaction_suitable(b, z, order, 0, int(sc["reclaim_idx"])) != COMPACT_SKIPPED:
            return False
    inactive = lru_size(h, LRU_INACTIVE_FILE)
    if can_reclaim_anon_pages(s):
        inactive += lru_size(h, LRU_INACTIVE_ANON)
    return inactive > compact_gap(order)


@routine
def shrink_node(h: int, cpu: int) -> None:
    """``shrink_node``."""
    b, s = pages_and_users(h)
    sc = s.scan[0]
    began = int(sc["nr_reclaimed"])
    while True:
        before = int(sc["nr_reclaimed"])
        prepare_scan_count(h)
        shrink_lruvec(h, cpu)
        if io_full(s) or not should_continue_reclaim(h, int(sc["nr_reclaimed"]) - before):
            break
    if int(sc["nr_reclaimed"]) > began:
        b.config[0]["kswapd_failures"] = 0


@inner
def snapshot_refaults(s: Any) -> None:
    """``snapshot_refaults``."""
    lruvec = s.lruvec[0]
    lruvec["refaults_anon"], lruvec["refaults_file"] = lruvec["workingset_activate_anon"], lruvec["workingset_activate_file"]


@inner
def new_scan(s: Any, gfp: int, order: int, reclaim_idx: int, goal: int, kswapd: int) -> None:
    """A fresh `SCAN_CONTROL`."""
    sc = s.scan[0]
    sc["nr_to_reclaim"], sc["gfp_mask"], sc["order"], sc["reclaim_idx"], sc["priority"] = goal, gfp, order, reclaim_idx, DEF_PRIORITY
    sc["may_writepage"], sc["may_unmap"], sc["may_swap"], sc["force_deactivate"], sc["skipped_deactivate"] = 1, 1, 1, 0, 0
    sc["compaction_ready"], sc["nr_scanned"], sc["nr_reclaimed"], sc["kswapd"] = 0, 0, 0, kswapd


@routine
def try_to_free_pages(h: int, cpu: int, order: int, gfp: int, highest_zoneidx: int) -> int:
    """``try_to_free_pages``: direct reclaim; how many pages it freed (1: none, but compaction may go ahead)."""
    b, s = pages_and_users(h)
    new_scan(s, gfp, order, highest_zoneidx, SWAP_CLUSTER_MAX, 0)
    sc = s.scan[0]
    while True:
        s.lruvec[0]["allocstall"] = int(s.lruvec[0]["allocstall"]) + 1
        while int(sc["priority"]) >= 0:
            sc["nr_scanned"] = 0
            shrink = False
            for z in range(highest_zoneidx, -1, -1):
                if not int(b.zone[z]["managed_pages"]):
                    continue
                if order > PAGE_ALLOC_COSTLY_ORDER and compaction_ready(b, z, order, gfp, highest_zoneidx):
                    sc["compaction_ready"] = 1
                    continue
                shrink = True
                break
            if shrink:
                shrink_node(h, cpu)
            if int(sc["nr_reclaimed"]) >= int(sc["nr_to_reclaim"]) or int(sc["compaction_ready"]) or io_full(s):
                break
            sc["priority"] = int(sc["priority"]) - 1
        snapshot_refaults(s)
        if int(sc["nr_reclaimed"]):
            return int(sc["nr_reclaimed"])
        if int(sc["compaction_ready"]) or io_full(s):
            return 1
        if not int(sc["skipped_deactivate"]):
            return 0
        sc["priority"], sc["force_deactivate"], sc["skipped_deactivate"] = DEF_PRIORITY, 1, 0


# kswapd


@inner
def set_reclaim_active(b: Any, highest_zoneidx: int, active: bool) -> None:
    """``set_reclaim_active`` and ``clear_reclaim_active``."""
    for z in range(highest_zoneidx + 1):
        flags = int(b.zone[z]["flags"])
        if int(b.zone[z]["managed_pages"]):
            b.zone[z]["flags"] = flags | ZONE_RECLAIM_ACTIVE if active else flags & ~ZONE_RECLAIM_ACTIVE


@routine
def kswapd_shrink_node(h: int, cpu: int) -> bool:
    """``kswapd_shrink_node``: whether it has looked at as many pages as it was to free."""
    b, s = pages_and_users(h)
    sc, goal = s.scan[0], 0
    for z in range(int(sc["reclaim_idx"]) + 1):
        if int(b.zone[z]["managed_pages"]):
            goal += max(int(b.zone[z]["wmark_high"]) + int(b.zone[z]["watermark_boost"]), SWAP_CLUSTER_MAX)
    sc["nr_to_reclaim"] = goal
    shrink_node(h, cpu)
    if int(sc["order"]) and int(sc["nr_reclaimed"]) >= compact_gap(int(sc["order"])):
        sc["order"] = 0
    return int(sc["nr_scanned"]) >= goal


@routine
def balance_pgdat(h: int, cpu: int, order: int, highest_zoneidx: int) -> int:
    """``balance_pgdat``: frees pages until a zone is balanced or nothing helps; the order it ended with."""
    b, s = pages_and_users(h)
    new_scan(s, GFP_KERNEL, order, highest_zoneidx, 0, 1)
    sc, boost = s.scan[0], 0
    s.lruvec[0]["pageoutrun"] = int(s.lruvec[0]["pageoutrun"]) + 1
    for z in range(highest_zoneidx + 1):
        boost += int(b.zone[z]["watermark_boost"])
        b.zone[z]["boost_at_balance"] = b.zone[z]["watermark_boost"]
    boosted, gave_up = boost != 0, True
    set_reclaim_active(b, highest_zoneidx, True)
    while int(sc["priority"]) >= 1:
        before, raise_priority = int(sc["nr_reclaimed"]), True
        balanced = pgdat_balanced(b, int(sc["order"]), highest_zoneidx)
        if not balanced and boost:
            boost = 0
            sc["priority"] = DEF_PRIORITY
            continue
        if not boost and balanced:
            gave_up = False
            break
        if boost and int(sc["priority"]) == DEF_PRIORITY - 2:
            raise_priority = False
        sc["may_writepage"] = 1 if not boost or int(sc["priority"]) < DEF_PRIORITY - 2 else 0
        sc["may_swap"] = 0 if boost else 1
        if int(s.lruvec[0]["total_swap_pages"]) and inactive_is_low(h, LRU_INACTIVE_ANON):
            shrink_active_list(h, cpu, LRU_ACTIVE_ANON, SWAP_CLUSTER_MAX)
        sc["nr_scanned"] = 0
        if kswapd_shrink_node(h, cpu):
            raise_priority = False
        freed = int(sc["nr_reclaimed"]) - before
        boost -= min(boost, freed)
        if (boost and not freed) or io_full(s):
            break
        if raise_priority or not freed:
            sc["priority"] = int(sc["priority"]) - 1
    if gave_up and not int(sc["nr_reclaimed"]) and not io_full(s):
        b.config[0]["kswapd_failures"] = int(b.config[0]["kswapd_failures"]) + 1
    set_reclaim_active(b, highest_zoneidx, False)
    if boosted:
        for z in range(highest_zoneidx + 1):
            zone = b.zone[z]
            zone["watermark_boost"] = int(zone["watermark_boost"]) - min(int(zone["watermark_boost"]), int(zone["boost_at_balance"]))
    snapshot_refaults(s)
    return int(sc["order"])


@routine
def zone_reclaimable_pages(h: int, z: int) -> int:
    """``zone_reclaimable_pages``: pages of a zone that reclaim could look at."""
    s = users_state(h)
    base = z * (LRU_UNEVICTABLE + 1)
    n = int(s.lru_size[base + LRU_INACTIVE_FILE]) + int(s.lru_size[base + LRU_ACTIVE_FILE])
    if can_reclaim_anon_pages(s):
        n += int(s.lru_size[base + LRU_INACTIVE_ANON]) + int(s.lru_size[base + LRU_ACTIVE_ANON])
    return n if n else int(page_state(h).zone[z]["nr_free_pages"])
