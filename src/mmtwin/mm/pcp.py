"""Per-CPU page lists: a cache of orders 0 to 3 and of huge pages before each zone's buddy lists (mm/page_alloc.c, under ``pcp->lock``)."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow
from mmtwin.gfp import MOVABLE, PCPTYPES
from mmtwin.mm.buddy import free_one_page, pageblock_order, rmqueue
from mmtwin.mm.list import list_add, list_add_tail, list_del
from mmtwin.mm.tables import NR_PCP_LISTS, PAGE_ALLOC_COSTLY_ORDER, PG_PCP, ZONE_RECLAIM_ACTIVE
from mmtwin.mm.vmstat import mod_zone_free_pages


@inner
def pcp_allowed_order(b: Any, order: int) -> bool:
    """Orders that have per-CPU lists."""
    return order <= PAGE_ALLOC_COSTLY_ORDER or (order == pageblock_order(b) and int(b.config[0]["thp"]) != 0)


@inner
def order_to_pindex(migratetype: int, order: int) -> int:
    """Index of the list: three types for each of the orders 0 to 3, then huge pages, not movable and movable."""
    if order > PAGE_ALLOC_COSTLY_ORDER:
        return NR_PCP_LISTS - 1 if migratetype == MOVABLE else NR_PCP_LISTS - 2
    return PCPTYPES * order + migratetype


@inner
def pindex_to_order(b: Any, pindex: int) -> int:
    """Order of the blocks on a list."""
    return pageblock_order(b) if pindex >= NR_PCP_LISTS - 2 else pindex // PCPTYPES


@inner
def pcp_list(b: Any, row: int, pindex: int) -> int:
    """Row of the list head; `row` is zone * nr_cpus + cpu."""
    return int(b.config[0]["pcp_list_base"]) + row * NR_PCP_LISTS + pindex


@inner
def rmqueue_bulk(b: Any, z: int, cpu: int, order: int, count: int, head: int, migratetype: int, alloc_flags: int) -> int:
    """Moves up to `count` blocks from the buddy lists to the tail of a per-CPU list, in the order obtained; returns how many."""
    taken = 0
    while taken < count:
        pfn = rmqueue(b, z, order, migratetype, alloc_flags)
        if pfn < 0:
            break
        b.page[pfn]["flags"] = PG_PCP
        list_add_tail(b.page, pfn, head)
        taken += 1
    mod_zone_free_pages(b, z, cpu, -(taken << order))
    return taken


@inner
def rmqueue_pcplist_locked(b: Any, z: int, cpu: int, order: int, migratetype: int, alloc_flags: int) -> int:
    """``__rmqueue_pcplist``: the head of the list, refilled first if it is empty; -1 if the zone has nothing for it."""
    row = z * int(b.config[0]["nr_cpus"]) + cpu
    pcp = b.pcp[row]
    head = pcp_list(b, row, order_to_pindex(migratetype, order))
    pfn = int(b.page[head]["next"])
    if pfn == head:
        batch = int(pcp["batch"])
        if batch > 1:
            batch = max(batch >> order, 2)
        taken = rmqueue_bulk(b, z, cpu, order, batch, head, migratetype, alloc_flags)
        pcp["count"] = int(pcp["count"]) + (taken << order)
        pfn = int(b.page[head]["next"])
        if pfn == head:
            return -1
    list_del(b.page, pfn)
    pcp["count"] = int(pcp["count"]) - (1 << order)
    return pfn


@inner
def rmqueue_pcplist(b: Any, z: int, cpu: int, order: int, migratetype: int, alloc_flags: int) -> int:
    """One block from this CPU's lists, or -1. Each allocation halves the number of pages that the next drain gives back."""
    pcp = b.pcp[z * int(b.config[0]["nr_cpus"]) + cpu]
    pcp["free_factor"] = int(pcp["free_factor"]) >> 1
    return rmqueue_pcplist_locked(b, z, cpu, order, migratetype, alloc_flags)


@inner
def free_pcppages_bulk(b: Any, z: int, cpu: int, here: int, count: int, pindex: int) -> None:
    """Gives `count` pages of `cpu`'s lists back to the buddy lists, oldest first, list after list from `pindex` on.

    A list is emptied before the next one is begun (it was one page of each list in turn before Linux 5.19). A high-order block
    may exceed `count`. `here` is the CPU that does the work: its counter differences change.
    """
    row = z * int(b.config[0]["nr_cpus"]) + cpu
    pcp = b.pcp[row]
    count = min(int(pcp["count"]), count)
    empty = 0
    while count > 0 and empty < NR_PCP_LISTS:
        head = pcp_list(b, row, pindex)
        order = pindex_to_order(b, pindex)
        pfn = int(b.page[head]["prev"])
        empty = empty + 1 if pfn == head else 0
        while pfn != head and count > 0:
            list_del(b.page, pfn)
            count -= 1 << order
            pcp["count"] = int(pcp["count"]) - (1 << order)
            free_one_page(b, pfn, z, here, order, int(b.page[pfn]["migratetype"]), False)
            pfn = int(b.page[head]["prev"])
        pindex = pindex + 1 if pindex + 1 < NR_PCP_LISTS else 0


@inner
def nr_pcp_high(b: Any, z: int, pcp: Any, free_high: bool) -> int:
    """How many pages the lists may hold now."""
    high = int(pcp["high"])
    if high == 0 or free_high:
        return 0
    if int(b.zone[z]["flags"]) & ZONE_RECLAIM_ACTIVE:
        return min(int(pcp["batch"]) << 2, high)
    return high


@inner
def nr_pcp_free(b: Any, pcp: Any, high: int, free_high: bool) -> int:
    """How many pages to give back: doubles with each drain that no allocation interrupts, up to what keeps one batch on the lists."""
    if free_high:
        return int(pcp["count"])
    batch = int(pcp["batch"])
    if high < batch:
        return 1
    most = high - batch
    factor = int(pcp["free_factor"])
    wanted = batch << factor
    if wanted < most and factor < int(b.config[0]["pcp_batch_scale_max"]):
        pcp["free_factor"] = factor + 1
    return min(max(wanted, batch), most)


@inner
def pindex_of_free(b: Any, pfn: int, order: int) -> int:
    """The list of a freed block: that of the type cached in the page; HIGHATOMIC waits among the movable ones (and is given back under its own type)."""
    migratetype = int(b.page[pfn]["migratetype"])
    return order_to_pindex(migratetype if migratetype < PCPTYPES else MOVABLE, order)


@inner
def add_to_pcp_list(b: Any, z: int, cpu: int, pfn: int, order: int) -> None:
    """Puts a block at the head of its per-CPU list."""
    row = z * int(b.config[0]["nr_cpus"]) + cpu
    pcp = b.pcp[row]
    entry = b.page[pfn]
    entry["order"] = order
    entry["flags"] = PG_PCP
    list_add(b.page, pfn, pcp_list(b, row, pindex_of_free(b, pfn, order)))
    pcp["count"] = int(pcp["count"]) + (1 << order)


@inner
def pcp_surplus(b: Any, z: int, cpu: int, order: int) -> int:
    """How many pages the CPU's lists have to give back, now that a block of `order` has been added; 0 while there is room."""
    pcp = b.pcp[z * int(b.config[0]["nr_cpus"]) + cpu]
    free_high = int(pcp["free_factor"]) != 0 and 0 < order <= PAGE_ALLOC_COSTLY_ORDER
    high = nr_pcp_high(b, z, pcp, free_high)
    if int(pcp["count"]) >= high:
        return nr_pcp_free(b, pcp, high, free_high)
    return 0


@inner
def free_unref_page_commit(b: Any, z: int, cpu: int, pfn: int, order: int) -> None:
    """Puts a block at the head of its per-CPU list; when the lists are full, gives the oldest pages back, those of its own list first."""
    add_to_pcp_list(b, z, cpu, pfn, order)
    surplus = pcp_surplus(b, z, cpu, order)
    if surplus:
        free_pcppages_bulk(b, z, cpu, cpu, surplus, pindex_of_free(b, pfn, order))


@slow
def drain_pages_zone(b: Any, z: int, cpu: int, here: int) -> None:
    """Empties `cpu`'s lists of a zone, in pieces, each starting at the first list."""
    pcp = b.pcp[z * int(b.config[0]["nr_cpus"]) + cpu]
    while int(pcp["count"]) > 0:
        free_pcppages_bulk(b, z, cpu, here, min(int(pcp["count"]), int(pcp["batch"]) << int(b.config[0]["pcp_batch_scale_max"])), 0)
