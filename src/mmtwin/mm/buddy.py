"""The buddy lists: blocks of 2^order pages, one list per zone, order and migrate type (mm/page_alloc.c, under ``zone->lock``)."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow
from mmtwin.gfp import ALLOC_KSWAPD, ALLOC_NOFRAGMENT, HIGHATOMIC, ISOLATE, MIGRATE_TYPES, MOVABLE, PCPTYPES, RECLAIMABLE, UNMOVABLE
from mmtwin.mm.list import list_add, list_add_tail, list_del
from mmtwin.mm.tables import MAX_ORDER, NR_ORDERS, PG_ALLOCATED, PG_BUDDY, PG_LRU, PG_MOVABLE, ZONE_BOOSTED_WATERMARK
from mmtwin.mm.vmstat import mod_zone_free_pages

FALLBACKS = ((RECLAIMABLE, MOVABLE), (RECLAIMABLE, UNMOVABLE), (UNMOVABLE, MOVABLE))
"""Where UNMOVABLE, MOVABLE and RECLAIMABLE requests look when their own lists are empty; the other types never fall back."""


@inner
def page_zone(b: Any, pfn: int) -> int:
    """The zone of a page frame, or -1."""
    for z in range(len(b.zone)):
        zone = b.zone[z]
        if int(zone["start_pfn"]) <= pfn < int(zone["end_pfn"]):
            return z
    return -1


@inner
def pageblock_order(b: Any) -> int:
    """Order of the blocks that have a migrate type."""
    return int(b.config[0]["pageblock_order"])


@inner
def pageblock_row(b: Any, pfn: int) -> int:
    """Row of the pageblock that holds `pfn`.

    Without sparse memory each zone keeps the types of its own pageblocks (``zone->pageblock_flags``), so that one which two zones share has two types: i386's
    HighMem begins inside a pageblock. Rows from that frame on are one higher.
    """
    config = b.config[0]
    return (pfn >> int(config["pageblock_order"])) + (1 if pfn >= int(config["pageblock_split"]) else 0)


@inner
def get_pageblock_migratetype(b: Any, pfn: int) -> int:
    """The type of the pageblock that holds `pfn`."""
    return int(b.pageblock[pageblock_row(b, pfn)])


@inner
def free_list(b: Any, z: int, order: int, migratetype: int) -> int:
    """Row of the list head."""
    return int(b.config[0]["free_list_base"]) + (z * NR_ORDERS + order) * MIGRATE_TYPES + migratetype


@inner
def add_to_free_list(b: Any, pfn: int, z: int, order: int, migratetype: int, to_tail: bool) -> None:
    """Files a free block at the head or tail of its list."""
    entry = b.page[pfn]
    entry["order"] = order
    entry["flags"] = PG_BUDDY
    if to_tail:
        list_add_tail(b.page, pfn, free_list(b, z, order, migratetype))
    else:
        list_add(b.page, pfn, free_list(b, z, order, migratetype))
    area = b.free_area[z * NR_ORDERS + order]
    area["nr_free"] = int(area["nr_free"]) + 1


@inner
def move_to_free_list(b: Any, pfn: int, z: int, order: int, migratetype: int) -> None:
    """Moves a free block to the tail of another type's list; the number of free blocks does not change."""
    list_del(b.page, pfn)
    list_add_tail(b.page, pfn, free_list(b, z, order, migratetype))


@inner
def del_page_from_free_list(b: Any, pfn: int, z: int, order: int) -> None:
    """Takes a free block off its list."""
    list_del(b.page, pfn)
    b.page[pfn]["flags"] = 0
    area = b.free_area[z * NR_ORDERS + order]
    area["nr_free"] = int(area["nr_free"]) - 1


@inner
def is_free_block(b: Any, pfn: int, order: int) -> bool:
    """Whether a free block of exactly this order starts at `pfn` (page_is_buddy, without the zone)."""
    entry = b.page[pfn]
    return int(entry["flags"]) & PG_BUDDY != 0 and int(entry["order"]) == order


@inner
def is_buddy_in_zone(b: Any, pfn: int, z: int, order: int) -> bool:
    """page_is_buddy: a free block of this order in the same zone."""
    zone = b.zone[z]
    return int(zone["start_pfn"]) <= pfn < int(zone["end_pfn"]) and is_free_block(b, pfn, order)


@inner
def free_one_page(b: Any, pfn: int, z: int, cpu: int, order: int, migratetype: int, to_tail: bool) -> None:
    """``__free_one_page``: merges with free buddies, then files the block.

    A buddy is taken from whatever type's list it is on. At the end the block goes to the tail if the next merge looks likely
    (the buddy of the combined block is free), so that it is not split again at once.
    """
    if migratetype != ISOLATE:
        mod_zone_free_pages(b, z, cpu, 1 << order)
    b.page[pfn]["flags"] = 0  # merging may file the block under a lower frame
    block_order = pageblock_order(b)
    while order < MAX_ORDER:
        buddy = pfn ^ (1 << order)
        if not is_buddy_in_zone(b, buddy, z, order):
            break
        if order >= block_order:
            other = get_pageblock_migratetype(b, buddy)
            if migratetype != other and (migratetype >= PCPTYPES or other >= PCPTYPES):
                break
        del_page_from_free_list(b, buddy, z, order)
        pfn &= buddy
        order += 1
    if not to_tail and order < MAX_ORDER - 1:
        higher = (pfn & ~(1 << order)) ^ (1 << (order + 1))
        to_tail = is_buddy_in_zone(b, higher, z, order + 1)
    add_to_free_list(b, pfn, z, order, migratetype, to_tail)


@inner
def rmqueue_smallest(b: Any, z: int, order: int, migratetype: int) -> int:
    """``__rmqueue_smallest``: head of the first list of this type that has a block, split down; -1 if there is none.

    The lower half is kept at each split, the upper one goes to the head of the next lower order's list (``expand``).
    """
    head = free_list(b, z, order, migratetype)
    high = order
    while high <= MAX_ORDER:
        pfn = int(b.page[head]["next"])
        if pfn != head:
            del_page_from_free_list(b, pfn, z, high)
            while high > order:
                high -= 1
                add_to_free_list(b, pfn + (1 << high), z, high, migratetype, False)
            entry = b.page[pfn]
            entry["order"] = order
            entry["migratetype"] = migratetype
            return pfn
        high += 1
        head += MIGRATE_TYPES
    return -1


@inner
def find_suitable_fallback(b: Any, z: int, order: int, migratetype: int) -> int:
    """The first other type that has a free block of this order, or -1."""
    if int(b.free_area[z * NR_ORDERS + order]["nr_free"]) == 0:
        return -1
    for i in range(2):
        fallback = FALLBACKS[migratetype][i]
        head = free_list(b, z, order, fallback)
        if int(b.page[head]["next"]) != head:
            return fallback
    return -1


@inner
def can_steal_fallback(b: Any, order: int, start_type: int) -> bool:
    """Whether a fallback of this order may take the whole pageblock with it."""
    return order >= pageblock_order(b) // 2 or start_type == RECLAIMABLE or start_type == UNMOVABLE or int(b.config[0]["page_group_by_mobility_disabled"]) != 0


@slow
def boost_watermark(b: Any, z: int) -> bool:
    """Raises the zone's watermarks for a while, so that kswapd frees memory and the next fallback becomes less likely."""
    zone = b.zone[z]
    factor = int(b.config[0]["watermark_boost_factor"])
    block = 1 << pageblock_order(b)
    if factor == 0 or int(zone["managed_pages"]) < 4 * block:
        return False
    high = int(zone["wmark_high"])
    most = high // 10000 * factor + high % 10000 * factor // 10000
    if most == 0:
        return False
    most = max(block, most)
    zone["watermark_boost"] = min(int(zone["watermark_boost"]) + block, most)
    return True


@slow
def move_freepages_block(b: Any, pfn: int, z: int, migratetype: int) -> tuple[int, int]:
    """Moves all free blocks of a pageblock to the tails of `migratetype`'s lists, in ascending order.

    :returns: pages moved, and pages in use that could be migrated (on the LRU or marked movable). Nothing is moved when the pageblock
        crosses the end of the zone.
    """
    zone = b.zone[z]
    block = 1 << pageblock_order(b)
    start = pfn & ~(block - 1)
    end = start + block
    if start < int(zone["start_pfn"]):
        start = pfn
    if end > int(zone["end_pfn"]):
        return 0, 0
    moved = 0
    movable = 0
    at = start
    while at < end:
        entry = b.page[at]
        flags = int(entry["flags"])
        if flags & PG_BUDDY:
            order = int(entry["order"])
            move_to_free_list(b, at, z, order, migratetype)
            at += 1 << order
            moved += 1 << order
        else:
            movable += 1 if flags & (PG_LRU | PG_MOVABLE) else 0
            at += 1
    return moved, movable


@slow
def steal_suitable_fallback(b: Any, pfn: int, z: int, alloc_flags: int, start_type: int, whole_block: bool) -> None:
    """Takes a block, and if allowed what is free around it, from another type; retypes the pageblock when at least half of it is free or alike."""
    order = int(b.page[pfn]["order"])
    block_order = pageblock_order(b)
    old_type = get_pageblock_migratetype(b, pfn)
    single = True
    if old_type == HIGHATOMIC:
        pass
    elif order >= block_order:
        first = pageblock_row(b, pfn)
        for block in range(first, first + (1 << (order - block_order))):
            b.pageblock[block] = start_type
    else:
        if boost_watermark(b, z) and alloc_flags & ALLOC_KSWAPD:
            b.zone[z]["flags"] = int(b.zone[z]["flags"]) | ZONE_BOOSTED_WATERMARK
        if whole_block:
            free_pages, movable_pages = move_freepages_block(b, pfn, z, start_type)
            if free_pages:
                single = False
                alike = 0
                if start_type == MOVABLE:
                    alike = movable_pages
                elif old_type == MOVABLE:
                    alike = (1 << block_order) - (free_pages + movable_pages)
                if free_pages + alike >= 1 << (block_order - 1) or int(b.config[0]["page_group_by_mobility_disabled"]):
                    b.pageblock[pageblock_row(b, pfn)] = start_type
    if single:
        move_to_free_list(b, pfn, z, order, start_type)


@slow
def rmqueue_fallback(b: Any, z: int, order: int, start_type: int, alloc_flags: int) -> bool:
    """``__rmqueue_fallback``: makes a block of another type available to `start_type`; false if there is none.

    The largest block is taken, to leave as few mixed pageblocks as possible; a movable request that may not take the whole
    pageblock takes the smallest instead.
    """
    if start_type >= PCPTYPES:
        return False
    block_order = pageblock_order(b)
    least = block_order if order < block_order and alloc_flags & ALLOC_NOFRAGMENT else order
    current = MAX_ORDER
    while current >= least:
        fallback = find_suitable_fallback(b, z, current, start_type)
        if fallback >= 0:
            whole = can_steal_fallback(b, current, start_type)
            if not whole and start_type == MOVABLE and current > order:
                current = order
                fallback = find_suitable_fallback(b, z, current, start_type)
                while fallback < 0:
                    current += 1
                    fallback = find_suitable_fallback(b, z, current, start_type)
                whole = can_steal_fallback(b, current, start_type)
            pfn = int(b.page[free_list(b, z, current, fallback)]["next"])
            steal_suitable_fallback(b, pfn, z, alloc_flags, start_type, whole)
            b.config[0]["extfrag"] = int(b.config[0]["extfrag"]) + 1
            return True
        current -= 1
    return False


@inner
def rmqueue(b: Any, z: int, order: int, migratetype: int, alloc_flags: int) -> int:
    """``__rmqueue``: one block off the buddy lists, or -1. The caller accounts for it."""
    while True:
        pfn = rmqueue_smallest(b, z, order, migratetype)
        if pfn >= 0 or not rmqueue_fallback(b, z, order, migratetype, alloc_flags):
            return pfn


@slow
def reserve_highatomic_pageblock(b: Any, pfn: int, z: int) -> None:
    """Keeps the pageblock of a high-order atomic allocation for further ones, up to about 1 % of the zone."""
    zone = b.zone[z]
    block_order = pageblock_order(b)
    if int(zone["nr_reserved_highatomic"]) >= int(zone["managed_pages"]) // 100 + (1 << block_order):
        return
    if get_pageblock_migratetype(b, pfn) < PCPTYPES:
        zone["nr_reserved_highatomic"] = int(zone["nr_reserved_highatomic"]) + (1 << block_order)
        b.pageblock[pageblock_row(b, pfn)] = HIGHATOMIC
        move_freepages_block(b, pfn, z, HIGHATOMIC)


@slow
def unreserve_highatomic_pageblock(b: Any, pfn: int, z: int, migratetype: int) -> None:
    """Gives a reserved pageblock back to `migratetype` (the choice of the block belongs to direct reclaim, its caller)."""
    zone = b.zone[z]
    if get_pageblock_migratetype(b, pfn) == HIGHATOMIC:
        zone["nr_reserved_highatomic"] = int(zone["nr_reserved_highatomic"]) - min(1 << pageblock_order(b), int(zone["nr_reserved_highatomic"]))
    b.pageblock[pageblock_row(b, pfn)] = migratetype
    move_freepages_block(b, pfn, z, migratetype)


@slow
def isolate_free_page(b: Any, pfn: int, z: int, cpu: int, order: int) -> None:
    """``__isolate_free_page``: compaction takes a free block; a block of half a pageblock or more makes its pageblocks movable."""
    if get_pageblock_migratetype(b, pfn) != ISOLATE:
        mod_zone_free_pages(b, z, cpu, -(1 << order))
    del_page_from_free_list(b, pfn, z, order)
    b.page[pfn]["flags"] = PG_ALLOCATED
    if order >= pageblock_order(b) - 1:
        for block in range(pageblock_row(b, pfn), pageblock_row(b, pfn + (1 << order) - 1) + 1):
            if int(b.pageblock[block]) < PCPTYPES:
                b.pageblock[block] = UNMOVABLE if int(b.config[0]["page_group_by_mobility_disabled"]) else MOVABLE
