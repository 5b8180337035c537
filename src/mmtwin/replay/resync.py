"""Moving the twin to what the kernel did, after a difference: only lists and counters are mended, nothing is learnt."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import slow
from mmtwin.mm.buddy import add_to_free_list, del_page_from_free_list, free_one_page, get_pageblock_migratetype, page_zone
from mmtwin.mm.list import list_add, list_del
from mmtwin.mm.pcp import order_to_pindex, pcp_allowed_order, pcp_list
from mmtwin.mm.tables import MAX_ORDER, NR_PCP_LISTS, PG_BUDDY, PG_PCP
from mmtwin.mm.vmstat import mod_zone_free_pages

free_one_page_cold = slow(free_one_page)


@slow
def covered(b: Any, pfn: int, lists: int) -> int:
    """The head of the block that holds `pfn` on one of `lists` (PG_BUDDY, PG_PCP or both), or -1."""
    for order in range(MAX_ORDER + 1):
        head = pfn & ~((1 << order) - 1)
        entry = b.page[head]
        if int(entry["flags"]) & lists and head + (1 << int(entry["order"])) > pfn:
            return head
    return -1


@slow
def any_covered(b: Any, pfn: int, order: int) -> bool:
    """Whether any frame of a block is on a list."""
    if covered(b, pfn, PG_BUDDY | PG_PCP) >= 0:
        return True
    for i in range(pfn, pfn + (1 << order)):
        if int(b.page[i]["flags"]) & (PG_BUDDY | PG_PCP):
            return True
    return False


@slow
def put_back(b: Any, cpu: int, pfn: int, order: int) -> None:
    """Undoes an allocation: the block goes where the next request of its kind finds it first."""
    z = page_zone(b, pfn)
    migratetype = int(b.page[pfn]["migratetype"])
    if pcp_allowed_order(b, order) and migratetype < 3:
        row = z * int(b.config[0]["nr_cpus"]) + cpu
        list_add(b.page, pfn, pcp_list(b, row, order_to_pindex(migratetype, order)))
        b.page[pfn]["flags"] = PG_PCP
        b.page[pfn]["order"] = order
        b.pcp[row]["count"] = int(b.pcp[row]["count"]) + (1 << order)
    else:
        free_one_page_cold(b, pfn, z, cpu, order, get_pageblock_migratetype(b, pfn), False)


@slow
def take_off(b: Any, cpu: int, head: int) -> int:
    """Takes a block off whatever list it is on; returns the type of that list."""
    z = page_zone(b, head)
    entry = b.page[head]
    order = int(entry["order"])
    frames = int(b.config[0]["nr_frames"])
    at = int(entry["next"])
    steps = 0
    while at < frames and steps < frames:  # a list has a head; the limit is for a state that is broken already
        at = int(b.page[at]["next"])
        steps += 1
    if at < frames:
        entry["flags"] = 0
        return 1
    if int(entry["flags"]) & PG_PCP:
        row = (at - int(b.config[0]["pcp_list_base"])) // NR_PCP_LISTS
        migratetype = int(entry["migratetype"])
        list_del(b.page, head)
        b.pcp[row]["count"] = int(b.pcp[row]["count"]) - (1 << order)
    else:
        migratetype = (at - int(b.config[0]["free_list_base"])) % 5
        del_page_from_free_list(b, head, z, order)
        mod_zone_free_pages(b, z, cpu, -(1 << order))
    entry["flags"] = 0
    return migratetype


@slow
def extract(b: Any, cpu: int, pfn: int, order: int) -> None:
    """Makes sure that no frame of a block is on any list; what is left over of larger free blocks is filed again."""
    end = pfn + (1 << order)
    at = pfn
    while at < end:
        head = covered(b, at, PG_BUDDY | PG_PCP)
        if head < 0:
            at += 1
            continue
        size = 1 << int(b.page[head]["order"])
        migratetype = take_off(b, cpu, head)
        z = page_zone(b, head)
        rest = head
        while rest < head + size:
            if rest >= pfn and rest < end:
                rest = end
                continue
            piece = 0
            while piece < MAX_ORDER and rest & (1 << piece) == 0 and rest + (2 << piece) <= (pfn if rest < pfn else head + size):
                piece += 1
            add_to_free_list(b, rest, z, piece, migratetype, False)
            mod_zone_free_pages(b, z, cpu, 1 << piece)
            rest += 1 << piece
        at = max(end if head + size > end else head + size, at + 1)
