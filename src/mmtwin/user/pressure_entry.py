"""The compiled entry point of memory pressure. All of it is one function, because compiled reclaim is large: what is to be done is its second argument."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import kernel, routine, slow
from mmtwin.gfp import HIGHATOMIC
from mmtwin.mm.buddy import free_list, pageblock_order, unreserve_highatomic_pageblock
from mmtwin.mm.kswapd import MAX_RECLAIM_RETRIES, pgdat_balanced, zone_free_pages_exact
from mmtwin.mm.list import list_empty
from mmtwin.mm.tables import MAX_ORDER, PAGE_ALLOC_COSTLY_ORDER
from mmtwin.mm.vmstat import set_pgdat_percpu_threshold
from mmtwin.mm.watermark import wmark_pages, zone_watermark_ok
from mmtwin.user import compaction, fault, vmscan
from mmtwin.user.compact_rules import compact_gap
from mmtwin.user.handles import page_state, pages_and_users, users_state
from mmtwin.user.mm_tables import REF
from mmtwin.user.pages import lru_add_drain, put_page
from mmtwin.user.swap import folio_free_swap, io_full
from mmtwin.user.swapfile import drain_slots_cache
from mmtwin.user.vmscan import balance_pgdat, zone_reclaimable_pages

KSWAPD, DIRECT_RECLAIM, COMPACT, COMPACT_ZONE, RECLAIM_RETRY, COMPACT_RETRY, UNRESERVE_HIGHATOMIC, DRAIN_SLOTS, DROP_SWAP_CACHE = range(9)


@routine
def kswapd(h: int, cpu: int) -> None:
    """``kswapd`` from its wake-up until it sleeps again (or the contents it wrote must be looked at: then it is still pending)."""
    b, s = pages_and_users(h)
    config = b.config[0]
    set_pgdat_percpu_threshold(b, True)
    zones = len(b.zone)
    top = zones - 1
    while True:
        order = alloc_order = int(config["kswapd_order"])
        if int(config["kswapd_highest_zoneidx"]) >= 0:
            top = int(config["kswapd_highest_zoneidx"])
        config["kswapd_order"], config["kswapd_highest_zoneidx"] = 0, -1
        lru_add_drain(h, cpu)
        order = balance_pgdat(h, cpu, alloc_order, top)
        if io_full(s):
            config["kswapd_order"], config["kswapd_highest_zoneidx"] = order, top
            return
        if int(config["kswapd_failures"]) >= MAX_RECLAIM_RETRIES or pgdat_balanced(b, order, top):
            break
    if alloc_order:
        compaction.kcompactd_do_work(h, cpu, alloc_order, top)
    config["kswapd_pending"] = 0
    set_pgdat_percpu_threshold(b, False)


@routine
def reclaim_retry(h: int, order: int, alloc_flags: int, top: int) -> int:
    """The zones' part of ``should_reclaim_retry``."""
    b = page_state(h)
    for z in range(top, -1, -1):
        if not int(b.zone[z]["managed_pages"]):
            continue
        mark = int(b.zone[z]["wmark_min"]) + int(b.zone[z]["watermark_boost"])
        if zone_watermark_ok(b, z, order, mark, top, alloc_flags, zone_reclaimable_pages(h, z) + zone_free_pages_exact(b, z)):
            return 1
    return 0


@routine
def compact_retry(h: int, order: int, alloc_flags: int, top: int) -> int:
    """``compaction_zonelist_suitable``: whether compaction could go ahead somewhere if a little more were reclaimed."""
    b = page_state(h)
    for z in range(top, -1, -1):
        zone = b.zone[z]
        if not int(zone["managed_pages"]):
            continue
        available = zone_reclaimable_pages(h, z) // order + zone_free_pages_exact(b, z)
        if zone_watermark_ok(b, z, order, wmark_pages(b, z, alloc_flags), top, alloc_flags, int(zone["nr_free_pages"])):
            continue
        mark = int(zone["wmark_low"]) if order > PAGE_ALLOC_COSTLY_ORDER else int(zone["wmark_min"])
        if zone_watermark_ok(b, z, 0, mark + int(zone["watermark_boost"]) + compact_gap(order), top, 0, available):
            return 1
    return 0


@slow
def unreserve_highatomic(b: Any, top: int, migratetype: int, force: bool) -> int:
    """``unreserve_highatomic_pageblock``: a reserved pageblock goes back to the request's type; 1 if one did."""
    for z in range(top, -1, -1):
        if not int(b.zone[z]["managed_pages"]) or (not force and int(b.zone[z]["nr_reserved_highatomic"]) <= 1 << pageblock_order(b)):
            continue
        for order in range(MAX_ORDER + 1):
            head = free_list(b, z, order, HIGHATOMIC)
            if not list_empty(b.page, head):
                unreserve_highatomic_pageblock(b, int(b.page[head]["next"]), z, migratetype)
                return 1
    return 0


@routine
def drop_swap_cache(h: int, cpu: int, device: int) -> None:
    """Pages that have a slot of the device, and that no entry means, give it up."""
    s = users_state(h)
    si = s.swap[device]
    for slot in range(int(si["first"]), int(si["first"]) + int(si["max"])):
        pfn = int(s.swap_cache[slot])
        if pfn >= 0:
            s.frame[pfn] = int(s.frame[pfn]) + REF
            folio_free_swap(h, cpu, pfn)
            put_page(h, cpu, pfn)
    drain_slots_cache(h)


@kernel
def pressure(h: int, what: int, cpu: int, x: int, y: int, top: int, mode: int) -> int:
    """Does one of the above.

    :param x: order; DROP_SWAP_CACHE: device; COMPACT_ZONE: zone.
    :param y: gfp; RECLAIM_RETRY, COMPACT_RETRY: allocation flags; UNRESERVE_HIGHATOMIC: migrate type.
    :param top: highest zone; `mode`: of compaction, or force.
    """
    b, done = page_state(h), 0
    if what == KSWAPD:
        kswapd(h, cpu)
    elif what == DIRECT_RECLAIM:
        done = vmscan.try_to_free_pages(h, cpu, x, y, top)
    elif what == COMPACT:
        done = compaction.try_to_compact_pages(h, cpu, x, y, top >> 16, top & 0xFFFF, mode)
    elif what == COMPACT_ZONE:
        done = compaction.compact_zone(h, cpu, x, -1, 0, compaction.SYNC, False, True)
    elif what == RECLAIM_RETRY:
        done = reclaim_retry(h, x, y, top)
    elif what == COMPACT_RETRY:
        done = compact_retry(h, x, y, top)
    elif what == UNRESERVE_HIGHATOMIC:
        done = unreserve_highatomic(b, top, y, mode != 0)
    elif what == DRAIN_SLOTS:
        drain_slots_cache(h)
    elif what == DROP_SWAP_CACHE:
        drop_swap_cache(h, cpu, x)
    return done


@kernel
def shmem_swapin_entry(h: int, cpu: int, file: int, pgoff: int) -> int:
    """`fault.shmem_swapin`."""
    return fault.shmem_swapin(h, cpu, file, pgoff)
