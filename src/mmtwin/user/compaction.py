"""Compaction: pages of processes and files move to the end of a zone, so that free memory at its beginning is in one piece (mm/compaction.c, mm/migrate.c of Linux 6.1).

Two scanners walk towards each other: one takes pages that can move from the zone's beginning, the other free pages from its end. The kernel's shortcuts
(``fast_isolate_freepages``, ``fast_find_migrateblock``, the skip bits of pageblocks) are left out: the same pages move in the end, in another order.
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, routine
from mmtwin.gfp import ISOLATE, MOVABLE
from mmtwin.mm.buddy import find_suitable_fallback, free_list, get_pageblock_migratetype, isolate_free_page, pageblock_order
from mmtwin.mm.list import list_add, list_add_tail, list_del, list_empty
from mmtwin.mm.page_alloc import free_pages_prepare, free_the_page_cold, request_migratetype
from mmtwin.mm.pcp import drain_pages_zone
from mmtwin.mm.pgtable import count_writes
from mmtwin.mm.pgtable_tables import PAGE_SHIFT, PFN_BITS
from mmtwin.mm.tables import MAX_ORDER, PG_ALLOCATED, PG_BUDDY
from mmtwin.mm.vmap_tables import NIL
from mmtwin.mm.watermark import zone_watermark_ok
from mmtwin.user.compact_rules import (
    COMPACT_COMPLETE,
    COMPACT_CONTINUE,
    COMPACT_DEFERRED,
    COMPACT_PARTIAL_SKIPPED,
    COMPACT_SKIPPED,
    COMPACT_SUCCESS,
    compaction_defer_reset,
    compaction_deferred,
    compaction_suitable,
    defer_compaction,
)
from mmtwin.user.handles import pages_and_users, state
from mmtwin.user.huge import flush_tlb_range
from mmtwin.user.lru import lru_add, lru_del, lru_head
from mmtwin.user.mm_tables import ANON, IO_COPY, L_FREEPAGES, L_MIGRATE, LRU_UNEVICTABLE, REF, SHMEM
from mmtwin.user.pages import lru_add_drain, note_request
from mmtwin.user.rmap import area_address, find_entry, first_mapping, mapping_area, maps, next_mapping
from mmtwin.user.swap import io_full, note_io

ASYNC, SYNC_LIGHT, SYNC = range(3)
"""``enum migrate_mode``, from the weakest."""
COMPACT_CLUSTER_MAX = 32
GFP_IO = 0x40


@inner
def can_move(b: Any, s: Any, pfn: int) -> bool:
    """Whether the page can be migrated: a single page on an LRU list whose owners are all known, and mapped or in a cache."""
    if int(b.page[pfn]["order"]) or not int(b.page[pfn]["lru"]) or int(b.page[pfn]["lru"]) == LRU_UNEVICTABLE + 1:
        return False
    word, folio = int(s.frame[pfn]), s.folio[pfn]
    caches = (1 if int(folio["swap"]) else 0) + (0 if word & ANON or (int(folio["swap"]) and word & SHMEM) else 1)
    return word // REF == int(folio["mapcount"]) + caches


@routine
def isolate_migratepages(h: int, z: int, pfn: int, end: int) -> int:
    """``isolate_migratepages_block``: up to 32 pages that can move are taken from ``pfn`` on; returns where the scanner stands then."""
    b, s = pages_and_users(h)
    head, taken, lruvec = lru_head(b, L_MIGRATE), 0, s.lruvec[0]
    while pfn < end and taken < COMPACT_CLUSTER_MAX:
        lruvec["compact_migrate_scanned"] = int(lruvec["compact_migrate_scanned"]) + 1
        flags = int(b.page[pfn]["flags"])
        if flags & (PG_BUDDY | PG_ALLOCATED) and int(b.page[pfn]["order"]) > 0:
            pfn += 1 << int(b.page[pfn]["order"])
            continue
        if can_move(b, s, pfn):
            lru_del(h, pfn)
            s.frame[pfn] = int(s.frame[pfn]) + REF
            list_add(b.page, pfn, head)
            taken += 1
            lruvec["compact_isolated"] = int(lruvec["compact_isolated"]) + 1
        pfn += 1
    return pfn


@routine
def isolate_freepages(h: int, cpu: int, z: int, wanted: int, lowest: int) -> int:
    """``isolate_freepages``: single free pages from the zone's end downwards, from movable pageblocks above `lowest`; returns how many."""
    b, s = pages_and_users(h)
    head, zone, got = lru_head(b, L_FREEPAGES), b.zone[z], 0
    block = int(zone["compact_cached_free_pfn"])
    size = 1 << pageblock_order(b)
    while got < wanted and block > lowest:
        end = min(block + size, int(zone["end_pfn"]))
        whole = int(b.page[block]["flags"]) & PG_BUDDY and int(b.page[block]["order"]) >= pageblock_order(b)
        pfn = block
        if get_pageblock_migratetype(b, block) == MOVABLE and not whole:
            while pfn < end:
                s.lruvec[0]["compact_free_scanned"] = int(s.lruvec[0]["compact_free_scanned"]) + 1
                if not int(b.page[pfn]["flags"]) & PG_BUDDY:
                    pfn += 1
                    continue
                order = int(b.page[pfn]["order"])
                mark = int(zone["wmark_min"]) + int(zone["watermark_boost"]) + (1 << order)
                if not zone_watermark_ok(b, z, 0, mark, 0, 0, int(zone["nr_free_pages"])):
                    return got
                isolate_free_page(b, pfn, z, cpu, order)
                for k in range(pfn, pfn + (1 << order)):
                    b.page[k]["order"], b.page[k]["flags"] = 0, PG_ALLOCATED
                    list_add_tail(b.page, k, head)
                got += 1 << order
                pfn += 1 << order
                if got >= wanted:
                    break
        if got < wanted:
            block = max(block - size, lowest)
    zone["compact_cached_free_pfn"] = block
    return got


@routine
def move_page(h: int, cpu: int, old: int, new: int) -> None:
    """``migrate_pages`` of one page, isolated, to a free one: entries and caches lead to the new one, which goes to the lists; the old one is freed."""
    b, m, s = state(h)
    index, at, copies = int(s.folio[old]["index"]), first_mapping(h, old) if int(s.folio[old]["mapcount"]) else NIL, int(s.folio[old]["mapcount"])
    while at != NIL and copies:
        row = mapping_area(s, old, at)
        vma = s.vma[row]
        address, pgd = area_address(s, row, index), int(s.mm[int(vma["vm_mm"])]["pgd"])
        if int(vma["vm_start"]) <= address < int(vma["vm_end"]):
            table, i, level = find_entry(m, pgd, address)
            if level == 1 and maps(m, table, i, level, old):
                m.entry[table, i] = (int(m.entry[table, i]) & ~PFN_BITS) | (new << PAGE_SHIFT)
                count_writes(m, 2)
                flush_tlb_range(m, pgd, address, address + (1 << PAGE_SHIFT))
                copies -= 1
        at = next_mapping(h, old, at)
    s.frame[new] = int(s.frame[old]) - REF
    target, source = s.folio[new], s.folio[old]
    target["flags"], target["mapcount"], target["mapping"], target["swap"], target["index"] = (
        source["flags"],
        source["mapcount"],
        source["mapping"],
        source["swap"],
        source["index"],
    )
    if int(source["swap"]):
        s.swap_cache[int(source["swap"]) - 1] = new
    elif not int(s.frame[new]) & ANON:
        s.cache[int(s.file[int(source["mapping"])]["first"]) + index] = new
    s.frame[old] = 0
    note_io(s, IO_COPY, old, new)
    lru_add(h, new, False)
    note_request(s, 0, -1, old)
    free_pages_prepare(b, old, 0)
    free_the_page_cold(b, cpu, old, 0)
    s.lruvec[0]["pgmigrate_success"] = int(s.lruvec[0]["pgmigrate_success"]) + 1


@inner
def compact_finished(b: Any, z: int, order: int, migratetype: int) -> bool:
    """``__compact_finished``: a block of the request's type is free, or one that it may steal."""
    for o in range(order, MAX_ORDER + 1):
        head = free_list(b, z, o, migratetype)
        if int(b.page[head]["next"]) != head or find_suitable_fallback(b, z, o, migratetype) >= 0:
            return True
    return False


@routine
def give_back(h: int, cpu: int) -> None:
    """``release_freepages`` and ``putback_movable_pages``: what was isolated and not used."""
    b, s = pages_and_users(h)
    free, kept = lru_head(b, L_FREEPAGES), lru_head(b, L_MIGRATE)
    while not list_empty(b.page, free):
        pfn = int(b.page[free]["next"])
        list_del(b.page, pfn)
        free_pages_prepare(b, pfn, 0)
        free_the_page_cold(b, cpu, pfn, 0)
    while not list_empty(b.page, kept):
        pfn = int(b.page[kept]["prev"])
        list_del(b.page, pfn)
        s.frame[pfn] = int(s.frame[pfn]) - REF
        lru_add(h, pfn, False)
        s.lruvec[0]["pgmigrate_fail"] = int(s.lruvec[0]["pgmigrate_fail"]) + 1


@routine
def compact_zone(h: int, cpu: int, z: int, order: int, migratetype: int, mode: int, direct: bool, whole: bool) -> int:
    """``compact_zone``: moves pages until the request can be served or the scanners meet.

    :param migratetype: of the request; a weak (asynchronous) direct attempt leaves pageblocks of other types alone.
    :param whole: from the zone's ends, not from where the last attempt stopped.
    """
    b, s = pages_and_users(h)
    zone, size = b.zone[z], 1 << pageblock_order(b)
    top = (int(zone["end_pfn"]) - 1) & -size
    pfn = int(zone["compact_cached_migrate_pfn"])
    if whole or not int(zone["start_pfn"]) <= pfn < int(zone["end_pfn"]):
        pfn = int(zone["start_pfn"])
    if whole or not int(zone["start_pfn"]) <= int(zone["compact_cached_free_pfn"]) <= top:
        zone["compact_cached_free_pfn"] = top
    began = pfn
    lru_add_drain(h, cpu)
    sources, targets = lru_head(b, L_MIGRATE), lru_head(b, L_FREEPAGES)
    result = COMPACT_CONTINUE
    while result == COMPACT_CONTINUE:
        if pfn >= int(zone["compact_cached_free_pfn"]):
            result = COMPACT_COMPLETE if began == int(zone["start_pfn"]) else COMPACT_PARTIAL_SKIPPED
            zone["compact_cached_migrate_pfn"], zone["compact_cached_free_pfn"] = zone["start_pfn"], top
            break
        end = min((pfn & -size) + size, int(zone["end_pfn"]))
        kind = get_pageblock_migratetype(b, pfn)
        if (direct and mode == ASYNC and kind != migratetype) or kind == ISOLATE:
            pfn = end
        else:
            pfn = isolate_migratepages(h, z, pfn, end)
        short = False
        while not list_empty(b.page, sources):
            if list_empty(b.page, targets) and not isolate_freepages(h, cpu, z, COMPACT_CLUSTER_MAX, (pfn - 1) & -size):
                short = True
                break
            old, new = int(b.page[sources]["prev"]), int(b.page[targets]["next"])
            list_del(b.page, old)
            list_del(b.page, new)
            move_page(h, cpu, old, new)
        if short:
            result = COMPACT_COMPLETE if began == int(zone["start_pfn"]) else COMPACT_PARTIAL_SKIPPED
            zone["compact_cached_migrate_pfn"], zone["compact_cached_free_pfn"] = zone["start_pfn"], top
        elif pfn & (size - 1) == 0 or pfn == end:
            zone["compact_cached_migrate_pfn"] = pfn
            drain_pages_zone(b, z, cpu, cpu)
            if order >= 0 and compact_finished(b, z, order, migratetype):
                result = COMPACT_SUCCESS
        if io_full(s):
            result = COMPACT_PARTIAL_SKIPPED
    give_back(h, cpu)
    return result


@routine
def try_to_compact_pages(h: int, cpu: int, order: int, gfp: int, alloc_flags: int, highest_zoneidx: int, mode: int) -> int:
    """``try_to_compact_pages``: the best result of the zones that the request may use."""
    b, s = pages_and_users(h)
    lruvec, best = s.lruvec[0], COMPACT_SKIPPED
    if not gfp & GFP_IO:
        return best
    lruvec["compact_stall"] = int(lruvec["compact_stall"]) + 1
    for z in range(highest_zoneidx, -1, -1):
        if not int(b.zone[z]["managed_pages"]):
            continue
        if mode != SYNC and compaction_deferred(b, z, order):
            best = max(best, COMPACT_DEFERRED)
            continue
        status = compaction_suitable(b, z, order, alloc_flags, highest_zoneidx)
        if status == COMPACT_CONTINUE:
            status = compact_zone(h, cpu, z, order, request_migratetype(b, gfp), mode, True, mode == SYNC)
        best = max(best, status)
        if status == COMPACT_SUCCESS:
            compaction_defer_reset(b, z, order, False)
            break
        if mode != ASYNC and (status == COMPACT_COMPLETE or status == COMPACT_PARTIAL_SKIPPED):
            defer_compaction(b, z, order)
    if best == COMPACT_SUCCESS:
        lruvec["compact_success"] = int(lruvec["compact_success"]) + 1
    elif best > COMPACT_DEFERRED:
        lruvec["compact_fail"] = int(lruvec["compact_fail"]) + 1
    return best


@routine
def kcompactd_do_work(h: int, cpu: int, order: int, highest_zoneidx: int) -> None:
    """``kcompactd_do_work``: what kswapd leaves to be done for a block."""
    b, _ = pages_and_users(h)
    for z in range(highest_zoneidx + 1):
        if not int(b.zone[z]["present_pages"]) or compaction_deferred(b, z, order) or compaction_suitable(b, z, order, 0, z) != COMPACT_CONTINUE:
            continue
        status = compact_zone(h, cpu, z, order, MOVABLE, SYNC_LIGHT, False, False)
        if status == COMPACT_SUCCESS:
            compaction_defer_reset(b, z, order, False)
        else:
            for other in range(int(b.config[0]["online_cpus"])):
                drain_pages_zone(b, z, other, cpu)
            defer_compaction(b, z, order)
