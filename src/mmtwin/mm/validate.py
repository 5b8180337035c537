"""Invariants of the page allocator's tables; the only functions of mm/ that check.

Everything is vectorised: lists are followed by pointer doubling, so a list of n blocks costs log2(n) steps over the listed blocks,
and the cost is one pass over the page table and a sort of the blocks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin.errors import InvariantError
from mmtwin.gfp import HIGHATOMIC, ISOLATE, MAX_NR_ZONES, MIGRATE_TYPES, MOVABLE, PCPTYPES
from mmtwin.mm.tables import (
    FREE_AREA,
    MAX_ORDER,
    NR_LRU_HEADS,
    NR_ORDERS,
    NR_PCP_LISTS,
    PAGE,
    PAGE_ALLOC_COSTLY_ORDER,
    PCP,
    PG_BUDDY,
    PG_FREEING,
    PG_PCP,
    ZONE,
    Pgdat,
    nr_pageblocks,
    pageblock_rows,
    pageblock_starts,
)

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

HUGE_LISTS = NR_PCP_LISTS - 2
"""The first of the two per-CPU lists for pageblock-order blocks."""


class Listed(NamedTuple):
    """Every block on a list, sorted by list and position.

    :param number: of the list, from the first head row on: the free lists, then the per-CPU lists.
    :param position: 0 is the head of the list.
    :param pfn: first page frame.
    """

    number: Int
    position: Int
    pfn: Int


class FreeBlocks(NamedTuple):
    """The blocks on the buddy lists, sorted by zone, order, migrate type and position in the list."""

    zone: Int
    order: Int
    migratetype: Int
    position: Int
    pfn: Int


class PcpBlocks(NamedTuple):
    """The blocks on per-CPU lists, sorted by zone, CPU, list index and position; `order` and the cached `migratetype` of each."""

    zone: Int
    cpu: Int
    list_index: Int
    position: Int
    pfn: Int
    order: Int
    migratetype: Int


def validate(state: Pgdat, allow_unmerged_pageblocks: bool = False) -> None:
    """Checks that the tables are consistent, as the kernel's own structures always are between two operations.

    Checked, in this order: shapes of the tables; zones and their watermarks; pageblock types; the lists' links; every block's flags, order,
    alignment and zone; nothing free twice or marked inside a free block; no free buddies that should have merged; the counts of the lists; the number of free
    pages with the CPUs' differences; the pageblocks reserved for atomic requests.

    :param allow_unmerged_pageblocks: accept free buddies of pageblock order that are alike now but were not when they were freed: giving a
        HIGHATOMIC or ISOLATE pageblock back makes such pairs.
    :raises InvariantError: naming the first broken invariant, with indices and values.
    """
    _check_tables(state)
    _check_zones(state)
    listed = walk_lists(state)
    free, pcp = free_blocks(state, listed), pcp_blocks(state, listed)
    _check_free(state, free)
    _check_pcp(state, pcp)
    _check_overlap(state, free, pcp)
    _check_merged(state, free, allow_unmerged_pageblocks)
    _check_counts(state, free, pcp)


def walk_lists(state: Pgdat) -> Listed:
    """Follows every list.

    :raises InvariantError: a link leaves the table, next and prev disagree, or blocks form a ring without a head.
    """
    frames = int(state.config[0]["nr_frames"])
    page = state.page
    heads = np.arange(frames, int(state.config[0]["lru_base"]), dtype=np.int64)
    rows = np.concatenate((np.flatnonzero(page["flags"][:frames] & (PG_BUDDY | PG_PCP)), heads))
    following, preceding = page["next"][rows].astype(np.int64), page["prev"][rows].astype(np.int64)
    links = (("next", following, "prev"), ("prev", preceding, "next"))
    for name, linked, _ in links:
        _check_range(rows, name, linked, len(page))
    for name, linked, back in links:
        _check_links(rows, name, linked, back, page[back][linked].astype(np.int64))
    first = len(rows) - len(heads)
    up = np.minimum(np.searchsorted(rows, preceding), len(rows) - 1)
    _first(rows[up] != preceding, lambda i: f"page[{rows[i]}].prev is {preceding[i]}, which is neither free nor a list head")
    up[first:] = np.arange(first, len(rows))
    distance = np.ones(len(rows), dtype=np.int64)
    distance[first:] = 0
    for _ in range(max(len(rows), 2).bit_length()):
        if (up >= first).all():
            break
        distance += distance[up]
        up = up[up]
    _first(up < first, lambda i: f"page[{rows[i]}] is on no list: following prev never reaches a list head")
    owner, position, pfn = up[:first] - first, distance[:first] - 1, rows[:first]
    order = np.lexsort((position, owner))
    return Listed(owner[order], position[order], pfn[order])


def _check_range(rows: Int, name: str, linked: Int, size: int) -> None:
    _first((linked < 0) | (linked >= size), lambda i: f"page[{rows[i]}].{name} is {linked[i]}, outside the table of {size} rows")


def _check_links(rows: Int, name: str, linked: Int, back: str, returned: Int) -> None:
    _first(returned != rows, lambda i: f"page[{rows[i]}].{name} is {linked[i]}, but page[{linked[i]}].{back} is {returned[i]}")


def free_blocks(state: Pgdat, listed: Listed | None = None) -> FreeBlocks:
    """The blocks on the buddy lists. :raises InvariantError: as `walk_lists`."""
    listed = walk_lists(state) if listed is None else listed
    mine = listed.number < MAX_NR_ZONES * NR_ORDERS * MIGRATE_TYPES
    number = listed.number[mine]
    return FreeBlocks(
        number // (NR_ORDERS * MIGRATE_TYPES), number // MIGRATE_TYPES % NR_ORDERS, number % MIGRATE_TYPES, listed.position[mine], listed.pfn[mine]
    )


def pcp_blocks(state: Pgdat, listed: Listed | None = None) -> PcpBlocks:
    """The blocks on per-CPU lists. :raises InvariantError: as `walk_lists`."""
    listed = walk_lists(state) if listed is None else listed
    base = MAX_NR_ZONES * NR_ORDERS * MIGRATE_TYPES
    mine = listed.number >= base
    number = listed.number[mine] - base
    index, row, cpus = number % NR_PCP_LISTS, number // NR_PCP_LISTS, int(state.config[0]["nr_cpus"])
    pfn = listed.pfn[mine]
    order = np.where(index >= HUGE_LISTS, int(state.config[0]["pageblock_order"]), index // PCPTYPES)
    return PcpBlocks(row // cpus, row % cpus, index, listed.position[mine], pfn, order, state.page["migratetype"][pfn].astype(np.int64))


def _first(bad: Bool, message: Any) -> None:
    if bad.any():
        raise InvariantError(message(int(bad.argmax())))


def _check_tables(state: Pgdat) -> None:
    config = state.config[0]
    frames, cpus = int(config["nr_frames"]), int(config["nr_cpus"])
    lists = MAX_NR_ZONES * (NR_ORDERS * MIGRATE_TYPES + cpus * NR_PCP_LISTS)
    for name, table, dtype, rows in (
        ("page", state.page, PAGE, frames + lists + NR_LRU_HEADS),
        ("pageblock", state.pageblock, np.dtype(np.int8), nr_pageblocks(frames, int(config["pageblock_order"]), int(config["pageblock_split"]))),
        ("zone", state.zone, ZONE, MAX_NR_ZONES),
        ("free_area", state.free_area, FREE_AREA, MAX_NR_ZONES * NR_ORDERS),
        ("pcp", state.pcp, PCP, MAX_NR_ZONES * cpus),
    ):
        if table.dtype != dtype or table.shape != (rows,):
            raise InvariantError(f"{name} has shape {table.shape}; expected {rows} rows for {frames} page frames and {cpus} CPUs")
    base = frames + MAX_NR_ZONES * NR_ORDERS * MIGRATE_TYPES
    if int(config["free_list_base"]) != frames or int(config["pcp_list_base"]) != base:
        raise InvariantError(f"config: lists begin at rows {config['free_list_base']} and {config['pcp_list_base']}; expected {frames} and {base}")
    if not 1 <= int(config["online_cpus"]) <= cpus:
        raise InvariantError(f"config: {config['online_cpus']} online CPUs of {cpus}")


def _check_zones(state: Pgdat) -> None:
    before = 0
    for z, zone in enumerate(state.zone):
        start, end, present, managed = (int(zone[name]) for name in ("start_pfn", "end_pfn", "present_pages", "managed_pages"))
        if not 0 <= managed <= present <= end - start:
            raise InvariantError(f"zone[{z}]: managed {managed} <= present {present} <= spanned {end - start} does not hold")
        if not present:
            continue
        if start < before or end > int(state.config[0]["nr_frames"]):
            raise InvariantError(f"zone[{z}]: frames {start} to {end} overlap the zone before or leave the table")
        before = end
        marks = [int(zone[name]) for name in ("wmark_min", "wmark_low", "wmark_high", "wmark_promo")]
        if marks != sorted(marks) or marks[0] < 0:
            raise InvariantError(f"zone[{z}]: watermarks min {marks[0]}, low {marks[1]}, high {marks[2]}, promo {marks[3]} are not ascending")
        if int(zone["watermark_boost"]) < 0:
            raise InvariantError(f"zone[{z}]: watermark_boost is {zone['watermark_boost']}")
    _first(
        (state.pageblock < 0) | (state.pageblock >= MIGRATE_TYPES), lambda i: f"pageblock[{i}] has type {state.pageblock[i]}; expected 0 to {MIGRATE_TYPES - 1}"
    )
    _first(np.any(state.lowmem_reserve < 0, axis=1), lambda i: f"lowmem_reserve[{i}] has a negative entry")


def _in_zone(state: Pgdat, zone: Int, pfn: Int, order: Int) -> Bool:
    inside: Bool = (pfn >= state.zone["start_pfn"][zone]) & (pfn + (1 << order) <= state.zone["end_pfn"][zone])
    return inside


def _check_free(state: Pgdat, free: FreeBlocks) -> None:
    def name(i: int) -> str:
        return f"free list of zone {free.zone[i]}, order {free.order[i]}, type {free.migratetype[i]}, position {free.position[i]}: page[{free.pfn[i]}]"

    flags, order = state.page["flags"][free.pfn], state.page["order"][free.pfn]
    _first(flags != PG_BUDDY, lambda i: f"{name(i)} has flags {flags[i]}; expected {PG_BUDDY} (buddy)")
    _first(order != free.order, lambda i: f"{name(i)} has order {order[i]}")
    _first(free.pfn & ((1 << free.order) - 1) != 0, lambda i: f"{name(i)} is not aligned to its order")
    _first(~_in_zone(state, free.zone, free.pfn, free.order), lambda i: f"{name(i)} is not inside the zone")


def _check_pcp(state: Pgdat, pcp: PcpBlocks) -> None:
    def name(i: int) -> str:
        return f"per-CPU list {pcp.list_index[i]} of zone {pcp.zone[i]}, CPU {pcp.cpu[i]}, position {pcp.position[i]}: page[{pcp.pfn[i]}]"

    flags, order = state.page["flags"][pcp.pfn], state.page["order"][pcp.pfn]
    _first(flags != PG_PCP, lambda i: f"{name(i)} has flags {flags[i]}; expected {PG_PCP} (per-CPU list)")
    _first(order != pcp.order, lambda i: f"{name(i)} has order {order[i]}; expected {pcp.order[i]}")
    _first(pcp.pfn & ((1 << pcp.order) - 1) != 0, lambda i: f"{name(i)} is not aligned to its order")
    _first(~_in_zone(state, pcp.zone, pcp.pfn, pcp.order), lambda i: f"{name(i)} is not inside the zone")
    waits = np.where(pcp.migratetype >= PCPTYPES, MOVABLE, pcp.migratetype)
    expected = np.where(pcp.order > PAGE_ALLOC_COSTLY_ORDER, np.where(waits == MOVABLE, HUGE_LISTS + 1, HUGE_LISTS), pcp.order * PCPTYPES + waits)
    _first(expected != pcp.list_index, lambda i: f"{name(i)} has cached type {pcp.migratetype[i]}, which belongs on list {expected[i]}")


def _check_overlap(state: Pgdat, free: FreeBlocks, pcp: PcpBlocks) -> None:
    pfn, order = np.concatenate((free.pfn, pcp.pfn)), np.concatenate((free.order, pcp.order))
    by_pfn = np.argsort(pfn)
    start, order = pfn[by_pfn], order[by_pfn]
    end = start + (1 << order)
    _first(
        start[1:] < end[:-1],
        lambda i: f"page frame {start[i + 1]} is free twice: block {start[i]} of order {order[i]} and block {start[i + 1]} of order {order[i + 1]} overlap",
    )
    marked = np.flatnonzero(state.page["flags"][: int(state.config[0]["nr_frames"])])
    if len(start) == 0:
        return
    block = np.searchsorted(start, marked, side="right") - 1
    inside = (block >= 0) & (marked > start[block]) & (marked < end[block])
    _first(
        inside,
        lambda i: f"page[{marked[i]}] has flags {state.page['flags'][marked[i]]} but is inside the free block {start[block[i]]} of order {order[block[i]]}",
    )
    freeing = state.page["flags"][marked] & PG_FREEING != 0
    _first(freeing, lambda i: f"page[{marked[i]}] is still being freed")


def _check_merged(state: Pgdat, free: FreeBlocks, allow_unmerged_pageblocks: bool) -> None:
    buddy = free.pfn ^ (1 << free.order)
    within = _in_zone(state, free.zone, buddy, free.order) & (free.order < MAX_ORDER)
    row = np.where(within, buddy, free.pfn)
    pair = within & (state.page["flags"][row] & PG_BUDDY != 0) & (state.page["order"][row] == free.order)
    block_order = int(state.config[0]["pageblock_order"])
    mine, other = state.pageblock[pageblock_rows(state, free.pfn)], state.pageblock[pageblock_rows(state, row)]
    # a block of a pageblock or more does not merge with one of another type unless both types are ordinary; compared with the list's type
    # as well, because the pageblock may have been retyped while its block was on the list
    special = (mine >= PCPTYPES) | (other >= PCPTYPES) | (free.migratetype >= PCPTYPES)
    excused = (free.order >= block_order) & ((special & (mine != other)) | allow_unmerged_pageblocks)
    _first(pair & ~excused, lambda i: f"free buddies {free.pfn[i]} and {buddy[i]} of order {free.order[i]} in zone {free.zone[i]} are not merged")


def _check_counts(state: Pgdat, free: FreeBlocks, pcp: PcpBlocks) -> None:
    cpus = int(state.config[0]["nr_cpus"])
    listed = np.bincount(free.zone * NR_ORDERS + free.order, minlength=MAX_NR_ZONES * NR_ORDERS)
    nr_free = state.free_area["nr_free"]
    _first(
        nr_free != listed, lambda i: f"free_area of zone {i // NR_ORDERS}, order {i % NR_ORDERS}: nr_free is {nr_free[i]}, the lists hold {listed[i]} blocks"
    )
    held = _sum(pcp.zone * cpus + pcp.cpu, 1 << pcp.order, MAX_NR_ZONES * cpus)
    count = state.pcp["count"]
    _first(count != held, lambda i: f"pcp of zone {i // cpus}, CPU {i % cpus}: count is {count[i]}, its lists hold {held[i]} pages")
    counted = free.migratetype != ISOLATE
    pages = _sum(free.zone[counted], 1 << free.order[counted], MAX_NR_ZONES)
    difference = state.pcp["nr_free_pages_diff"].astype(np.int64).reshape(MAX_NR_ZONES, cpus).sum(axis=1)
    total = state.zone["nr_free_pages"] + difference
    _first(
        total != pages,
        lambda i: (
            f"zone[{i}]: nr_free_pages {state.zone['nr_free_pages'][i]} and the CPUs' differences {difference[i]} make {total[i]}, the free lists hold {pages[i]} pages"
        ),
    )
    _first(pages > state.zone["managed_pages"], lambda i: f"zone[{i}]: {pages[i]} pages are free but only {state.zone['managed_pages'][i]} are managed")
    size = 1 << int(state.config[0]["pageblock_order"])
    blocks = pageblock_starts(state)[state.pageblock == HIGHATOMIC]
    for z, zone in enumerate(state.zone):
        first, last = int(zone["start_pfn"]), int(zone["end_pfn"])
        first = first if first == int(state.config[0]["pageblock_split"]) else first & -size
        reserved = int(((blocks >= first) & (blocks < last)).sum()) * size
        if reserved != int(zone["nr_reserved_highatomic"]):
            raise InvariantError(f"zone[{z}]: nr_reserved_highatomic is {zone['nr_reserved_highatomic']}, its HIGHATOMIC pageblocks hold {reserved} pages")


def _sum(groups: Int, values: Int, size: int) -> Int:
    return np.bincount(groups, weights=values, minlength=size).astype(np.int64)
