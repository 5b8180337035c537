"""Between snapshots and the allocator's tables: `restore` makes a machine state from a snapshot, `capture` a snapshot from a state, `compare` tells two apart."""

from __future__ import annotations

import numpy as np
import polars as pl

from mmtwin import profiles
from mmtwin.gfp import MAX_NR_ZONES, MIGRATE_TYPES
from mmtwin.mm.tables import NR_ORDERS, NR_PCP_LISTS, PG_BUDDY, PG_LRU, PG_MOVABLE, PG_PCP, Pgdat, new_pgdat
from mmtwin.profiles import physical
from mmtwin.recording.model import Snapshot

ZONE_COLUMNS = (
    "present_pages",
    "managed_pages",
    "wmark_min",
    "wmark_low",
    "wmark_high",
    "wmark_promo",
    "watermark_boost",
    "nr_reserved_highatomic",
    "nr_free_pages",
    "percpu_drift_mark",
)
PCP_COLUMNS = ("count", "high", "batch", "free_factor", "stat_threshold", "nr_free_pages_diff")
ZONE_FLAGS = 3
"""The bits of ``zone->flags`` that the allocator reads: boosted watermark, reclaim active."""


def _link(state: Pgdat, heads: np.ndarray, pfns: np.ndarray) -> None:
    """Chains `pfns` into the lists of their `heads`; rows of one list are adjacent and in order."""
    following = np.append(pfns[1:], -1)
    preceding = np.insert(pfns[:-1], 0, -1)
    last = np.append(heads[1:] != heads[:-1], True)
    first = np.insert(heads[1:] != heads[:-1], 0, True)
    state.page["next"][pfns] = np.where(last, heads, following)
    state.page["prev"][pfns] = np.where(first, heads, preceding)
    state.page["next"][heads[first]] = pfns[first]
    state.page["prev"][heads[last]] = pfns[last]


def restore(snapshot: Snapshot, batch_scale_max: int = 5, thp: bool = True, cpus: int = 0) -> Pgdat:
    """The machine state that a snapshot holds.

    :param batch_scale_max: the kernel's CONFIG_PCP_BATCH_SCALE_MAX.
    :param thp: the kernel has transparent huge pages, so that pageblock-order pages have per-CPU lists.
    :param cpus: CPUs of the machine, if it has more than were online.
    """
    cpus = max(cpus, int(snapshot.pcp["cpu"].to_numpy().max(initial=0)) + 1)
    kind = profiles.for_zones(snapshot.zones["name"].to_list())
    block_order = snapshot.scalars["pageblock_order"]
    state = new_pgdat(snapshot.scalars["max_pfn"], cpus, kind.gfp_zones, block_order, snapshot.scalars.get("pageblock_split", 0))
    state.pageblock[:] = snapshot.pageblocks
    spans = [
        physical.ZoneSpan(start, start + size, present)
        for start, size, present in snapshot.zones.select("start_pfn", "spanned_pages", "present_pages").iter_rows()
    ]
    state.zone["is_highmem"][: len(spans)] = physical.is_highmem(kind, spans)
    for row in snapshot.zones.iter_rows(named=True):
        zone = state.zone[row["index"]]
        for name in ZONE_COLUMNS:
            zone[name] = row[name]
        zone["start_pfn"], zone["end_pfn"], zone["flags"] = row["start_pfn"], row["start_pfn"] + row["spanned_pages"], row["flags"] & ZONE_FLAGS
        zone["pgalloc"], zone["pgfree"] = 0, 0
        for j in range(len(spans)):
            state.lowmem_reserve[row["index"], j] = row[f"lowmem_reserve_{j}"]
    config = state.config[0]
    for name in (
        "min_free_kbytes",
        "watermark_scale_factor",
        "watermark_boost_factor",
        "percpu_pagelist_high_fraction",
        "page_group_by_mobility_disabled",
        "totalreserve_pages",
    ):
        config[name] = snapshot.scalars[name]
    config["pcp_batch_scale_max"], config["thp"], config["nofragment_zone"] = batch_scale_max, thp, kind.nofragment_zone
    state.page["flags"][: len(snapshot.pages)] = np.where(snapshot.pages & 1, PG_LRU, 0) | np.where(snapshot.pages & 2, PG_MOVABLE, 0)
    free = snapshot.free.sort("zone", "order", "migratetype", "position")
    if len(free):
        zone_order = free["zone"].cast(pl.Int64).to_numpy() * NR_ORDERS + free["order"].cast(pl.Int64).to_numpy()
        pfns = free["pfn"].to_numpy()
        _link(state, int(config["free_list_base"]) + zone_order * MIGRATE_TYPES + free["migratetype"].cast(pl.Int64).to_numpy(), pfns)
        state.page["order"][pfns] = free["order"].to_numpy()
        state.page["flags"][pfns] = PG_BUDDY
        state.free_area["nr_free"][:] = np.bincount(zone_order, minlength=len(state.free_area))
    for row in snapshot.pcp.iter_rows(named=True):
        for name in PCP_COLUMNS:
            state.pcp[row["zone"] * cpus + row["cpu"]][name] = row[name]
    listed = snapshot.pcp_pages.sort("zone", "cpu", "list", "position")
    if len(listed):
        index = listed["list"].cast(pl.Int64).to_numpy()
        row_of = listed["zone"].cast(pl.Int64).to_numpy() * cpus + listed["cpu"].cast(pl.Int64).to_numpy()
        pfns = listed["pfn"].to_numpy()
        _link(state, int(config["pcp_list_base"]) + row_of * NR_PCP_LISTS + index, pfns)
        state.page["order"][pfns] = np.where(index >= 12, block_order, index // 3)
        state.page["flags"][pfns] = PG_PCP
        state.page["migratetype"][pfns] = listed["migratetype"].to_numpy()
    return state


def walk(state: Pgdat, head: int) -> list[int]:
    """The rows on a list, from the head on."""
    found = []
    at = int(state.page[head]["next"])
    while at != head:
        found.append(at)
        at = int(state.page[at]["next"])
    return found


def free_lists(state: Pgdat) -> pl.DataFrame:
    """The free blocks as in `Snapshot.free`."""
    rows = []
    for z in range(MAX_NR_ZONES):
        for order in range(NR_ORDERS):
            for migratetype in range(MIGRATE_TYPES):
                head = int(state.config[0]["free_list_base"]) + (z * NR_ORDERS + order) * MIGRATE_TYPES + migratetype
                rows += [(z, order, migratetype, i, pfn) for i, pfn in enumerate(walk(state, head))]
    return pl.DataFrame(rows, schema={"zone": pl.Int8, "order": pl.Int8, "migratetype": pl.Int8, "position": pl.Int32, "pfn": pl.Int64}, orient="row")


def pcp_pages(state: Pgdat) -> pl.DataFrame:
    """The pages on per-CPU lists as in `Snapshot.pcp_pages`."""
    rows = []
    cpus = int(state.config[0]["nr_cpus"])
    for row in range(MAX_NR_ZONES * cpus):
        for index in range(NR_PCP_LISTS):
            for i, pfn in enumerate(walk(state, int(state.config[0]["pcp_list_base"]) + row * NR_PCP_LISTS + index)):
                rows.append((row // cpus, row % cpus, index, i, pfn, int(state.page[pfn]["migratetype"])))
    return pl.DataFrame(
        rows, schema={"zone": pl.Int8, "cpu": pl.Int16, "list": pl.Int8, "position": pl.Int32, "pfn": pl.Int64, "migratetype": pl.Int8}, orient="row"
    )
