"""When compaction is worth while, and when it is put off (mm/compaction.c, mm/vmstat.c of Linux 6.1)."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow
from mmtwin.mm.kswapd import zone_watermark_ok_safe
from mmtwin.mm.tables import NR_ORDERS, PAGE_ALLOC_COSTLY_ORDER
from mmtwin.mm.watermark import wmark_pages, zone_watermark_ok

COMPACT_SKIPPED, COMPACT_DEFERRED, COMPACT_NO_SUITABLE_PAGE, COMPACT_CONTINUE, COMPACT_COMPLETE, COMPACT_PARTIAL_SKIPPED, COMPACT_CONTENDED, COMPACT_SUCCESS = (
    1, 2, 3, 4, 5, 6, 8, 9,
)  # fmt: skip
"""``enum compact_result``."""
EXTFRAG_THRESHOLD = 500
MAX_DEFER_SHIFT = 6
GFP_IO = 0x40


@inner
def compact_gap(order: int) -> int:
    """``compact_gap``: free pages that moving pages for a block of this order may need."""
    return 2 << order


@slow
def fragmentation_index(b: Any, z: int, order: int) -> int:
    """``fragmentation_index``: -1000 there is such a block; near 0 memory is short, near 1000 it is in pieces."""
    total = free = suitable = 0
    for o in range(NR_ORDERS):
        n = int(b.free_area[z * NR_ORDERS + o]["nr_free"])
        total += n
        free += n << o
        if o >= order:
            suitable += n << (o - order)
    if not total:
        return 0
    if suitable:
        return -1000
    return 1000 - (1000 + free * 1000 // (1 << order)) // total


@slow
def compaction_suitable(b: Any, z: int, order: int, alloc_flags: int, highest_zoneidx: int) -> int:
    """``compaction_suitable``: COMPACT_SUCCESS (the request would succeed), COMPACT_SKIPPED (too little is free, or memory is not in pieces) or COMPACT_CONTINUE."""
    zone = b.zone[z]
    free = int(zone["nr_free_pages"])
    if zone_watermark_ok(b, z, order, wmark_pages(b, z, alloc_flags), highest_zoneidx, alloc_flags, free):
        return COMPACT_SUCCESS
    mark = int(zone["wmark_low"]) if order > PAGE_ALLOC_COSTLY_ORDER else int(zone["wmark_min"])
    if not zone_watermark_ok(b, z, 0, mark + int(zone["watermark_boost"]) + compact_gap(order), highest_zoneidx, 0, free):
        return COMPACT_SKIPPED
    if order > PAGE_ALLOC_COSTLY_ORDER and 0 <= fragmentation_index(b, z, order) <= EXTFRAG_THRESHOLD:
        return COMPACT_SKIPPED
    return COMPACT_CONTINUE


@slow
def compaction_ready(b: Any, z: int, order: int, gfp: int, highest_zoneidx: int) -> bool:
    """``compaction_ready``: direct reclaim for a large block leaves this zone alone: enough is free in it."""
    if not gfp & GFP_IO:
        return False
    suitable = compaction_suitable(b, z, order, 0, highest_zoneidx)
    if suitable != COMPACT_CONTINUE:
        return suitable == COMPACT_SUCCESS
    mark = int(b.zone[z]["wmark_high"]) + int(b.zone[z]["watermark_boost"]) + compact_gap(order)
    return zone_watermark_ok_safe(b, z, 0, mark, highest_zoneidx)


# Deferral


@inner
def compaction_deferred(b: Any, z: int, order: int) -> bool:
    """``compaction_deferred``: after failures, only every 2nd, 4th, ... 64th attempt is made."""
    zone = b.zone[z]
    limit = 1 << int(zone["compact_defer_shift"])
    if order < int(zone["compact_order_failed"]):
        return False
    considered = int(zone["compact_considered"]) + 1
    if considered >= limit:
        zone["compact_considered"] = limit
        return False
    zone["compact_considered"] = considered
    return True


@inner
def defer_compaction(b: Any, z: int, order: int) -> None:
    """``defer_compaction``: it did not help."""
    zone = b.zone[z]
    zone["compact_considered"] = 0
    zone["compact_defer_shift"] = min(int(zone["compact_defer_shift"]) + 1, MAX_DEFER_SHIFT)
    zone["compact_order_failed"] = min(int(zone["compact_order_failed"]), order)


@inner
def compaction_defer_reset(b: Any, z: int, order: int, alloc_success: bool) -> None:
    """``compaction_defer_reset``: it helped, or even the request succeeded."""
    zone = b.zone[z]
    if alloc_success:
        zone["compact_considered"], zone["compact_defer_shift"] = 0, 0
    zone["compact_order_failed"] = max(int(zone["compact_order_failed"]), order + 1)
