"""Allocating and freeing pages: which zone, which reserve, which list (mm/page_alloc.c).

Results are page frame numbers, or negative error numbers: -ENOMEM when Linux would return NULL, -EAGAIN when the request would
enter direct reclaim or compaction: the machine is then unchanged but for the walk that failed, and the caller reclaims (reclaim.py) and asks again.
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, kernel, slow
from mmtwin.gfp import (
    ALLOC_HIGHATOMIC,
    ALLOC_KSWAPD,
    ALLOC_NO_WATERMARKS,
    ALLOC_NOFRAGMENT,
    ALLOC_NON_BLOCK,
    ALLOC_OOM,
    ALLOC_WMARK_LOW,
    HIGHATOMIC,
    ISOLATE,
    UNMOVABLE,
    gfp_migratetype,
    gfp_to_alloc_flags,
)
from mmtwin.mm.buddy import free_one_page, get_pageblock_migratetype, page_zone, reserve_highatomic_pageblock, rmqueue, rmqueue_smallest
from mmtwin.mm.kswapd import wakeup_kswapd
from mmtwin.mm.pcp import drain_pages_zone, free_unref_page_commit, pcp_allowed_order, rmqueue_pcplist, rmqueue_pcplist_locked
from mmtwin.mm.tables import MAX_ORDER, PG_ALLOCATED, PG_BUDDY, PG_FREEING, PG_PCP, ZONE_BOOSTED_WATERMARK
from mmtwin.mm.vmstat import mod_zone_free_pages
from mmtwin.mm.watermark import wmark_pages, zone_watermark_fast

ENOENT, ENOMEM, EAGAIN, EINVAL, EBUSY = 2, 12, 11, 22, 16

GFP_DIRECT_RECLAIM = 0x400
GFP_MEMALLOC = 0x20000
GFP_NOMEMALLOC = 0x80000


@inner
def highest_zone(b: Any, gfp: int) -> int:
    """``gfp_zone``: the highest zone a request may use, or -1 for an impossible combination of zone bits."""
    return int(b.gfp_zone[gfp & 0xF])


@inner
def request_migratetype(b: Any, gfp: int) -> int:
    """The type a request is served from; machines too small for grouping by mobility have only one."""
    return UNMOVABLE if int(b.config[0]["page_group_by_mobility_disabled"]) else gfp_migratetype(gfp)


@inner
def preferred_zone(b: Any, highest_zoneidx: int) -> int:
    """The first zone of the zonelist: the highest one that has memory."""
    z = highest_zoneidx
    while z >= 0 and int(b.zone[z]["present_pages"]) == 0:
        z -= 1
    return z


@inner
def rmqueue_buddy(b: Any, z: int, cpu: int, order: int, migratetype: int, alloc_flags: int) -> int:
    """One block straight from the buddy lists, or -1."""
    pfn = -1
    if alloc_flags & ALLOC_HIGHATOMIC:
        pfn = rmqueue_smallest(b, z, order, HIGHATOMIC)
    if pfn < 0:
        pfn = rmqueue(b, z, order, migratetype, alloc_flags)
        if pfn < 0 and alloc_flags & (ALLOC_OOM | ALLOC_NON_BLOCK):
            pfn = rmqueue_smallest(b, z, order, HIGHATOMIC)
    if pfn >= 0:
        mod_zone_free_pages(b, z, cpu, -(1 << order))
    return pfn


@inner
def mark_allocated(b: Any, pfn: int, order: int) -> None:
    """The block now belongs to the caller."""
    entry = b.page[pfn]
    entry["flags"] = PG_ALLOCATED
    entry["order"] = order


@inner
def rmqueue_zone(b: Any, z: int, cpu: int, order: int, migratetype: int, alloc_flags: int, contended: bool) -> int:
    """``rmqueue``: from the per-CPU list, else from the buddy lists. `contended`: the per-CPU lock was taken, so the list is passed by."""
    pfn = -1
    if pcp_allowed_order(b, order) and not contended:
        pfn = rmqueue_pcplist(b, z, cpu, order, migratetype, alloc_flags)
    if pfn < 0:
        pfn = rmqueue_buddy(b, z, cpu, order, migratetype, alloc_flags)
    zone = b.zone[z]
    if int(zone["flags"]) & ZONE_BOOSTED_WATERMARK:
        zone["flags"] = int(zone["flags"]) & ~ZONE_BOOSTED_WATERMARK
        wakeup_kswapd(b, 0, z)
    return pfn


@inner
def next_zone(b: Any, z: int, order: int, gfp: int, highest_zoneidx: int, alloc_flags: int) -> int:
    """The first zone from `z` downwards that is above the watermark the flags name, or -1."""
    while z >= 0:
        if int(b.zone[z]["present_pages"]) and (
            zone_watermark_fast(b, z, order, wmark_pages(b, z, alloc_flags), highest_zoneidx, alloc_flags, gfp) or alloc_flags & ALLOC_NO_WATERMARKS
        ):
            return z
        z -= 1
    return -1


@inner
def get_page_from_zones(b: Any, z: int, cpu: int, order: int, gfp: int, highest_zoneidx: int, alloc_flags: int, contended: bool) -> int:
    """The walk of `get_page_from_freelist` once zone `z` has been found fit (-1: none was)."""
    while True:
        while z >= 0:
            pfn = rmqueue_zone(b, z, cpu, order, request_migratetype(b, gfp), alloc_flags, contended)
            if pfn >= 0:
                zone = b.zone[z]
                zone["pgalloc"] = int(zone["pgalloc"]) + (1 << order)
                mark_allocated(b, pfn, order)
                if alloc_flags & ALLOC_HIGHATOMIC:
                    reserve_highatomic_pageblock(b, pfn, z)
                return pfn
            z = next_zone(b, z - 1, order, gfp, highest_zoneidx, alloc_flags)
        if not alloc_flags & ALLOC_NOFRAGMENT:
            return -1
        alloc_flags &= ~ALLOC_NOFRAGMENT
        z = next_zone(b, preferred_zone(b, highest_zoneidx), order, gfp, highest_zoneidx, alloc_flags)


@inner
def get_page_from_freelist(b: Any, cpu: int, order: int, gfp: int, highest_zoneidx: int, alloc_flags: int, contended: bool) -> int:
    """Walks the zones downwards and takes from the first that is above its watermark; -1 if none is.

    With ALLOC_NOFRAGMENT the walk is repeated without it before giving up.
    """
    z = next_zone(b, preferred_zone(b, highest_zoneidx), order, gfp, highest_zoneidx, alloc_flags)
    return get_page_from_zones(b, z, cpu, order, gfp, highest_zoneidx, alloc_flags, contended)


get_page_from_freelist_cold = slow(get_page_from_freelist)


@slow
def alloc_pages_slowpath(b: Any, cpu: int, order: int, gfp: int, highest_zoneidx: int, contended: bool) -> int:
    """The part of the slow path before direct reclaim: down to the minimum watermark, then the reserves the request is entitled to."""
    if gfp & 0x600 == 0x600:  # __GFP_ATOMIC with __GFP_DIRECT_RECLAIM: the kernel warns and drops the first
        gfp &= ~0x200
    flags = gfp_to_alloc_flags(gfp, order)
    if flags & ALLOC_KSWAPD:
        wakeup_kswapd(b, order, highest_zoneidx)
    pfn = get_page_from_freelist_cold(b, cpu, order, gfp, highest_zoneidx, flags, contended)
    if pfn < 0 and gfp & GFP_MEMALLOC and not gfp & GFP_NOMEMALLOC:
        pfn = get_page_from_freelist_cold(b, cpu, order, gfp, highest_zoneidx, ALLOC_NO_WATERMARKS | flags & ALLOC_KSWAPD, contended)
    if pfn < 0:
        if not gfp & GFP_DIRECT_RECLAIM:
            return -ENOMEM
        b.config[0]["waiting_order"], b.config[0]["waiting_gfp"] = order, gfp
        return -EAGAIN
    return pfn


@inner
def alloc_pages(b: Any, cpu: int, order: int, gfp: int, contended: bool) -> int:
    """``__alloc_pages``: a block of 2^order pages for `gfp` on `cpu`; see the module's text for errors (-EINVAL for impossible zone bits)."""
    highest_zoneidx = highest_zone(b, gfp)
    if highest_zoneidx < 0 or gfp & 0x18 == 0x18:
        return -EINVAL
    if order > MAX_ORDER:
        return -ENOMEM
    flags = ALLOC_WMARK_LOW | gfp & ALLOC_KSWAPD
    if preferred_zone(b, highest_zoneidx) == int(b.config[0]["nofragment_zone"]):
        flags |= ALLOC_NOFRAGMENT
    pfn = get_page_from_freelist(b, cpu, order, gfp, highest_zoneidx, flags, contended)
    if pfn < 0:
        pfn = alloc_pages_slowpath(b, cpu, order, gfp, highest_zoneidx, contended)
    return pfn


alloc_pages_cold = slow(alloc_pages)


@inner
def bulk_zone(b: Any, gfp: int, count: int) -> int:
    """The zone a bulk request is served from: above its low watermark by `count` pages; -1 if none is."""
    top = preferred_zone(b, highest_zone(b, gfp))
    z = top
    while z >= 0:
        if int(b.zone[z]["present_pages"]) and zone_watermark_fast(b, z, 0, wmark_pages(b, z, ALLOC_WMARK_LOW) + count, top, ALLOC_WMARK_LOW, gfp):
            return z
        z -= 1
    return -1


@inner
def bulk_page(b: Any, z: int, cpu: int, migratetype: int) -> int:
    """One page of a bulk request: from the per-CPU list as ever, but the drain's doubling is not halved."""
    pfn = rmqueue_pcplist_locked(b, z, cpu, 0, migratetype, ALLOC_WMARK_LOW)
    if pfn >= 0:
        mark_allocated(b, pfn, 0)
        b.zone[z]["pgalloc"] = int(b.zone[z]["pgalloc"]) + 1
    return pfn


@inner
def free_pages_prepare(b: Any, pfn: int, order: int) -> None:
    """The block leaves its owner: pages leave the LRU and the pageblock's type is cached in the page.

    It may reach its list later (frees of whole lists), under the type it had now.
    """
    for i in range(pfn, pfn + (1 << order)):
        b.page[i]["flags"] = 0
    entry = b.page[pfn]
    entry["order"] = order
    entry["flags"] = PG_FREEING
    entry["migratetype"] = get_pageblock_migratetype(b, pfn)


@inner
def free_the_page(b: Any, cpu: int, pfn: int, order: int) -> None:
    """A prepared block goes to its per-CPU list, or to the buddy lists if its order has none or its pageblock is isolated."""
    z = page_zone(b, pfn)
    zone = b.zone[z]
    zone["pgfree"] = int(zone["pgfree"]) + (1 << order)
    migratetype = int(b.page[pfn]["migratetype"])
    if pcp_allowed_order(b, order) and migratetype != ISOLATE:
        free_unref_page_commit(b, z, cpu, pfn, order)
    else:
        free_one_page(b, pfn, z, cpu, order, migratetype, False)


free_the_page_cold = slow(free_the_page)


@slow
def check_free(b: Any, pfn: int, order: int) -> int:
    """Whether a block may be freed: 0, -EINVAL (no such block in memory), -EBUSY (it is free already), -ENOENT (allocated with another order, or inside an allocated block)."""
    if order < 0 or order > MAX_ORDER or pfn & ((1 << order) - 1) or pfn < 0 or pfn + (1 << order) > int(b.config[0]["nr_frames"]) or page_zone(b, pfn) < 0:
        return -EINVAL
    flags = int(b.page[pfn]["flags"])
    if flags & (PG_BUDDY | PG_PCP | PG_FREEING):
        return -EBUSY
    if flags & PG_ALLOCATED and int(b.page[pfn]["order"]) != order:
        return -ENOENT
    for i in range(pfn + 1, pfn + (1 << order)):
        flags = int(b.page[i]["flags"])
        if flags & (PG_BUDDY | PG_PCP | PG_FREEING):
            return -EBUSY
        if flags & PG_ALLOCATED:
            return -ENOENT
    for above in range(1, MAX_ORDER + 1):
        head = pfn & ~((1 << above) - 1)
        if head != pfn and int(b.page[head]["order"]) >= above:
            flags = int(b.page[head]["flags"])
            if flags & (PG_BUDDY | PG_PCP):
                return -EBUSY
            if flags & PG_ALLOCATED:
                return -ENOENT
    return 0


@kernel
def alloc_pages_kernel(b: Any, cpu: int, order: int, gfp: int) -> int:
    """`alloc_pages` for callers outside compiled code."""
    return alloc_pages(b, cpu, order, gfp, False)


@kernel
def free_pages_kernel(b: Any, cpu: int, pfn: int, order: int) -> int:
    """`check_free`, then the free; 0 or what `check_free` says."""
    error = check_free(b, pfn, order)
    if error == 0:
        free_pages_prepare(b, pfn, order)
        free_the_page(b, cpu, pfn, order)
    return error


@kernel
def free_pages_list_kernel(b: Any, cpu: int, pfns: Any) -> int:
    """``free_unref_page_list``: order-0 pages freed together: all are prepared first, then each goes to its list. Returns how many were freed
    (the first that `check_free` refuses ends the list)."""
    good = 0
    while good < len(pfns) and check_free(b, int(pfns[good]), 0) == 0:
        free_pages_prepare(b, int(pfns[good]), 0)
        good += 1
    for i in range(good):
        free_the_page(b, cpu, int(pfns[i]), 0)
    return good


@slow
def alloc_pages_bulk(b: Any, cpu: int, gfp: int, out: Any) -> int:
    """``__alloc_pages_bulk``: fills `out` with order-0 pages; returns how many, or a negative error if not even one could be had."""
    if highest_zone(b, gfp) < 0:
        return -EINVAL
    z = bulk_zone(b, gfp, len(out)) if len(out) > 1 else -1
    got = 0
    while z >= 0 and got < len(out):
        pfn = bulk_page(b, z, cpu, request_migratetype(b, gfp))
        if pfn < 0:
            break
        out[got] = pfn
        got += 1
    if got == 0 and len(out):
        pfn = alloc_pages_cold(b, cpu, 0, gfp, False)
        if pfn < 0:
            return pfn
        out[0] = pfn
        got = 1
    return got


@kernel
def alloc_pages_bulk_kernel(b: Any, cpu: int, gfp: int, out: Any) -> int:
    """`alloc_pages_bulk` for callers outside compiled code."""
    return alloc_pages_bulk(b, cpu, gfp, out)


@inner
def split_page(b: Any, pfn: int, order: int) -> None:
    """``split_page``: an allocated block becomes single pages, each to be freed by itself."""
    for i in range(pfn, pfn + (1 << order)):
        mark_allocated(b, i, 0)


@kernel
def alloc_pages_exact_kernel(b: Any, cpu: int, pages: int, gfp: int) -> int:
    """``alloc_pages_exact``: a block of the next order, split into single pages; those beyond `pages` go back to the tails of the buddy lists."""
    order = 0
    while 1 << order < pages:
        order += 1
    pfn = alloc_pages(b, cpu, order, gfp, False)
    if pfn >= 0:
        z = page_zone(b, pfn)
        split_page(b, pfn, order)
        for i in range(pfn + pages, pfn + (1 << order)):
            free_pages_prepare(b, i, 0)
            b.zone[z]["pgfree"] = int(b.zone[z]["pgfree"]) + 1
            free_one_page(b, i, z, cpu, 0, int(b.page[i]["migratetype"]), True)
    return pfn


@kernel
def drain_pages_kernel(b: Any, first: int, last: int, here: int) -> None:
    """``drain_all_pages`` for CPUs `first` to `last`: CPU `here` empties their lists, zone after zone."""
    for cpu in range(first, last + 1):
        for z in range(len(b.zone)):
            drain_pages_zone(b, z, cpu, here)
