"""Watermarks: how they are set, and whether a request may take from a zone (mm/page_alloc.c)."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow
from mmtwin.gfp import (
    ALLOC_HIGHATOMIC,
    ALLOC_MIN_RESERVE,
    ALLOC_NON_BLOCK,
    ALLOC_OOM,
    ALLOC_RESERVES,
    ALLOC_WMARK_LOW,
    ALLOC_WMARK_MASK,
    ALLOC_WMARK_MIN,
    HIGHATOMIC,
    MIGRATE_TYPES,
    PCPTYPES,
)
from mmtwin.mm.list import list_empty
from mmtwin.mm.tables import NR_ORDERS


@inner
def wmark_pages(b: Any, z: int, alloc_flags: int) -> int:
    """The watermark that `alloc_flags` names, with the zone's current boost."""
    zone = b.zone[z]
    which = alloc_flags & ALLOC_WMARK_MASK
    if which == ALLOC_WMARK_MIN:
        mark = int(zone["wmark_min"])
    elif which == ALLOC_WMARK_LOW:
        mark = int(zone["wmark_low"])
    else:
        mark = int(zone["wmark_high"])
    return mark + int(zone["watermark_boost"])


@slow
def zone_watermark_ok(b: Any, z: int, order: int, mark: int, highest_zoneidx: int, alloc_flags: int, free_pages: int) -> bool:
    """``__zone_watermark_ok``: above the mark after the request's reserves, and for order > 0 a block of that size on some list."""
    zone = b.zone[z]
    free_pages -= (1 << order) - 1
    if not alloc_flags & ALLOC_RESERVES:
        free_pages -= int(zone["nr_reserved_highatomic"])
    least = mark
    if alloc_flags & ALLOC_RESERVES:
        if alloc_flags & ALLOC_MIN_RESERVE:
            least -= least // 2
            if alloc_flags & ALLOC_NON_BLOCK:
                least -= least // 4
        if alloc_flags & ALLOC_OOM:
            least -= least // 2
    if free_pages <= least + int(b.lowmem_reserve[z, highest_zoneidx]):
        return False
    if order == 0:
        return True
    for o in range(order, NR_ORDERS):
        if int(b.free_area[z * NR_ORDERS + o]["nr_free"]) == 0:
            continue
        head = int(b.config[0]["free_list_base"]) + (z * NR_ORDERS + o) * MIGRATE_TYPES
        for migratetype in range(PCPTYPES):
            if not list_empty(b.page, head + migratetype):
                return True
        if alloc_flags & (ALLOC_HIGHATOMIC | ALLOC_OOM) and not list_empty(b.page, head + HIGHATOMIC):
            return True
    return False


zone_watermark_ok_hot = inner(zone_watermark_ok)  # each request for more than one page comes here


@inner
def zone_watermark_fast(b: Any, z: int, order: int, mark: int, highest_zoneidx: int, alloc_flags: int, gfp: int) -> bool:
    """The allocator's own test. It reads the global counter, which lags behind by what the CPUs hold back."""
    zone = b.zone[z]
    free_pages = int(zone["nr_free_pages"])
    if order == 0:
        reserved = 0 if alloc_flags & ALLOC_RESERVES else int(zone["nr_reserved_highatomic"])
        if free_pages - min(free_pages, reserved) > mark + int(b.lowmem_reserve[z, highest_zoneidx]):
            return True
    if zone_watermark_ok_hot(b, z, order, mark, highest_zoneidx, alloc_flags, free_pages):
        return True
    if order == 0 and gfp & 0x200 and int(zone["watermark_boost"]) and alloc_flags & ALLOC_WMARK_MASK == ALLOC_WMARK_MIN:
        return zone_watermark_ok(b, z, order, int(zone["wmark_min"]), highest_zoneidx, alloc_flags, free_pages)
    return False


@slow
def int_sqrt(x: int) -> int:
    """Integer square root (lib/math/int_sqrt.c), exact where a floating-point root is not."""
    root = 0
    bit = 1
    while bit <= x >> 2:
        bit <<= 2
    while bit:
        if x >= root + bit:
            x -= root + bit
            root = (root >> 1) + bit
        else:
            root >>= 1
        bit >>= 2
    return root


@slow
def nr_free_buffer_pages(b: Any) -> int:
    """Pages above the high watermark in the zones that GFP_USER may use."""
    total = 0
    for z in range(int(b.gfp_zone[0]) + 1):
        zone = b.zone[z]
        total += max(0, int(zone["managed_pages"]) - int(zone["wmark_high"]))
    return total


@slow
def calculate_min_free_kbytes(b: Any) -> None:
    """min_free_kbytes grows with the square root of memory."""
    b.config[0]["min_free_kbytes"] = min(max(int_sqrt(nr_free_buffer_pages(b) * 4 * 16), 128), 262144)


@slow
def set_recommended_min_free_kbytes(b: Any, pageblock_nr_pages: int) -> None:
    """khugepaged raises min_free_kbytes at start, when transparent huge pages are on (mm/khugepaged.c)."""
    zones = 0
    for z in range(int(b.gfp_zone[0]) + 1):
        zones += int(b.zone[z]["present_pages"]) > 0
    recommended = pageblock_nr_pages * zones * 2 + pageblock_nr_pages * zones * PCPTYPES * PCPTYPES
    recommended = min(recommended, nr_free_buffer_pages(b) // 20) * 4
    if recommended > int(b.config[0]["min_free_kbytes"]):
        b.config[0]["min_free_kbytes"] = recommended
    setup_per_zone_wmarks(b)


@slow
def setup_per_zone_wmarks(b: Any) -> None:
    """Watermarks from min_free_kbytes, then what follows from them: reserves and the sizes of the per-CPU lists. Ends any boost."""
    pages_min = int(b.config[0]["min_free_kbytes"]) >> 2
    scale = int(b.config[0]["watermark_scale_factor"])
    lowmem_pages = 0
    for z in range(len(b.zone)):
        if not int(b.zone[z]["is_highmem"]):
            lowmem_pages += int(b.zone[z]["managed_pages"])
    for z in range(len(b.zone)):
        zone = b.zone[z]
        managed = int(zone["managed_pages"])
        share = pages_min * managed // max(lowmem_pages, 1)
        zone["wmark_min"] = min(max(managed // 1024, 32), 128) if int(zone["is_highmem"]) else share
        gap = max(share >> 2, managed // 10000 * scale + managed % 10000 * scale // 10000)
        zone["watermark_boost"] = 0
        zone["wmark_low"] = int(zone["wmark_min"]) + gap
        zone["wmark_high"] = int(zone["wmark_low"]) + gap
        zone["wmark_promo"] = int(zone["wmark_high"]) + gap
        if int(zone["present_pages"]):
            zone_set_pageset_high_and_batch(b, z)
    calculate_totalreserve_pages(b)


@slow
def calculate_totalreserve_pages(b: Any) -> None:
    """Pages that page cache and overcommit may not count on."""
    total = 0
    for z in range(len(b.zone)):
        most = 0
        for j in range(z, len(b.zone)):
            most = max(most, int(b.lowmem_reserve[z, j]))
        zone = b.zone[z]
        total += min(int(zone["managed_pages"]), most + int(zone["wmark_high"]) + int(zone["watermark_boost"]))
    b.config[0]["totalreserve_pages"] = total


@slow
def setup_per_zone_lowmem_reserve(b: Any, ratio: Any) -> None:
    """lowmem_reserve: what a zone keeps from requests that could have been served higher up."""
    for i in range(len(b.zone) - 1):
        above = 0
        for j in range(i + 1, len(b.zone)):
            above += int(b.zone[j]["managed_pages"])
            b.lowmem_reserve[i, j] = above // int(ratio[i]) if int(ratio[i]) and int(b.zone[i]["managed_pages"]) else 0
    calculate_totalreserve_pages(b)


@slow
def zone_batchsize(managed_pages: int) -> int:
    """How many pages a per-CPU list takes and gives back at a time: one less than a power of two, so that lists of neighbouring sizes do not march in step."""
    batch = max(min(managed_pages >> 10, 256) // 4, 1)
    batch += batch // 2
    power = 1
    while power * 2 <= batch:
        power *= 2
    return max(1, power - 1)


@slow
def zone_highsize(b: Any, z: int, batch: int) -> int:
    """When a per-CPU list gives pages back: the low watermark shared out among the CPUs, at least four batches."""
    zone = b.zone[z]
    fraction = int(b.config[0]["percpu_pagelist_high_fraction"])
    total = int(zone["managed_pages"]) // fraction if fraction else int(zone["wmark_low"]) + int(zone["watermark_boost"])
    return max(total // int(b.config[0]["online_cpus"]), batch << 2)


@slow
def zone_set_pageset_high_and_batch(b: Any, z: int) -> None:
    """Gives every CPU's lists of a zone their size."""
    batch = zone_batchsize(int(b.zone[z]["managed_pages"]))
    high = zone_highsize(b, z, batch)
    cpus = int(b.config[0]["nr_cpus"])
    for cpu in range(cpus):
        b.pcp[z * cpus + cpu]["batch"] = batch
        b.pcp[z * cpus + cpu]["high"] = high
