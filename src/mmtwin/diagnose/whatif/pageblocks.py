"""``pageblock_order``: the start state with pageblocks of another order, as a kernel whose huge pages have another size would have it from boot.

A smaller pageblock has the type of the one that it was cut from. A larger one has the type that most of its page frames had; where two have as many, the one
that the kernel moves least readily (Unmovable, Reclaimable, Movable), since one unmovable page keeps a whole pageblock from being free. A HIGHATOMIC reserve is
given back first, as Movable. Blocks in use stay where they are: what another pageblock order would have put elsewhere since boot is not known.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.diagnose.whatif.machine import retype, user_set_min_free
from mmtwin.gfp import HIGHATOMIC, MIGRATE_TYPES, MOVABLE
from mmtwin.mm.buddy import del_page_from_free_list, free_one_page, is_buddy_in_zone, is_free_block
from mmtwin.mm.list import list_del
from mmtwin.mm.tables import MAX_ORDER, NR_ORDERS, NR_PCP_LISTS, Pgdat, nr_pageblocks, pageblock_rows
from mmtwin.mm.watermark import calculate_min_free_kbytes, set_recommended_min_free_kbytes, setup_per_zone_wmarks
from mmtwin.profiles import Profile
from mmtwin.recording.model import Recording
from mmtwin.recording.state import pcp_pages
from mmtwin.replay.free_run import Start


def with_pageblocks(start: Start, recording: Recording, order: int, kernel: Profile) -> Start:
    """The start with pageblocks of 2^`order` pages.

    :param kernel: the profile of the machine, which says whether zones share pageblocks (`Profile.flatmem`).
    """
    old = start.pages
    had, frames = int(old.config[0]["pageblock_order"]), int(old.config[0]["nr_frames"])
    if order == had:
        return start
    types = old.pageblock[pageblock_rows(old, np.arange(frames))].astype(np.int64)
    types[types == HIGHATOMIC] = MOVABLE
    _leave_huge_lists(old, had)
    high = next((int(z["start_pfn"]) for z in old.zone if int(z["is_highmem"]) and int(z["present_pages"])), 0)
    split = high if kernel.flatmem and high & ((1 << order) - 1) else 0
    config = old.config.copy()
    config[0]["pageblock_order"], config[0]["pageblock_split"] = order, split or frames
    pages = old._replace(pageblock=np.full(nr_pageblocks(frames, order, split), MOVABLE, dtype=np.int8), config=config)
    retype(pages, types)
    pages.zone["nr_reserved_highatomic"] = 0
    _refile(pages, types, had)
    _khugepaged(pages, recording, had, order)
    return Start(pages, start.slub, start.table, start.objects, start.blocks, start.fixed)


def _type_of(pages: Pgdat, pfn: int) -> int:
    return int(pages.pageblock[int(pageblock_rows(pages, np.array([pfn]))[0])])


def _leave_huge_lists(pages: Pgdat, order: int) -> None:
    """Blocks of the old pageblock order, which have per-CPU lists of their own, go to the buddy lists."""
    listed = pcp_pages(pages).filter(pl.col("list") >= NR_PCP_LISTS - 2)
    for zone, cpu, pfn in listed.select("zone", "cpu", "pfn").iter_rows():
        list_del(pages.page, pfn)
        pages.pcp[zone * int(pages.config[0]["nr_cpus"]) + cpu]["count"] -= 1 << order
        free_one_page(pages, pfn, zone, cpu, order, _type_of(pages, pfn), False)


def _refile(pages: Pgdat, types: npt.NDArray[np.int64], had: int) -> None:
    """Free blocks of pageblocks whose type is new go to that type's lists; those that only the old pageblocks kept apart merge."""
    base = int(pages.config[0]["free_list_base"])
    order_now = int(pages.config[0]["pageblock_order"])
    listed: list[tuple[int, int]] = []
    for place in range(len(pages.free_area) * MIGRATE_TYPES):
        at = int(pages.page[base + place]["next"])
        while at != base + place:
            listed.append((at, place))
            at = int(pages.page[at]["next"])
    for pfn, place in listed:
        order, kind = place // MIGRATE_TYPES % NR_ORDERS, place % MIGRATE_TYPES
        zone = place // MIGRATE_TYPES // NR_ORDERS
        if not is_free_block(pages, pfn, order):
            continue  # merged with one before it
        want = _type_of(pages, pfn)
        retyped = kind == HIGHATOMIC or (order < order_now and int(types[pfn]) != want)
        apart = had <= order < min(order_now, MAX_ORDER) and is_buddy_in_zone(pages, pfn ^ (1 << order), zone, order)
        if retyped or apart:
            del_page_from_free_list(pages, pfn, zone, order)
            pages.zone[zone]["nr_free_pages"] -= 1 << order
            free_one_page(pages, pfn, zone, 0, order, want, True)


def _khugepaged(pages: Pgdat, recording: Recording, had: int, order: int) -> None:
    """khugepaged's min_free_kbytes is a number of pageblocks: where it is in force, it is so anew."""
    if user_set_min_free(recording):
        return
    trial = pages._replace(config=pages.config.copy(), zone=pages.zone.copy(), pcp=pages.pcp.copy(), lowmem_reserve=pages.lowmem_reserve.copy())
    trial.zone["wmark_high"] = 0  # as when the kernel first counts the pages above it
    calculate_min_free_kbytes(trial)
    setup_per_zone_wmarks(trial)
    first = int(trial.config[0]["min_free_kbytes"])
    set_recommended_min_free_kbytes(trial, 1 << had)
    raised = int(trial.config[0]["min_free_kbytes"])
    if raised == first or int(pages.config[0]["min_free_kbytes"]) <= first:
        return  # it raised nothing, or was off
    trial.config[0]["min_free_kbytes"] = first
    setup_per_zone_wmarks(trial)
    set_recommended_min_free_kbytes(trial, 1 << order)
    if int(trial.config[0]["min_free_kbytes"]) == raised:
        return  # a twentieth of memory both times
    pages.config[0]["min_free_kbytes"] = int(trial.config[0]["min_free_kbytes"])
    boost = pages.zone["watermark_boost"].copy()
    setup_per_zone_wmarks(pages)
    pages.zone["watermark_boost"] = boost
