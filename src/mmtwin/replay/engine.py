"""The twin answers a recording's requests: predict, compare, go on.

At each request the twin answers first; the recorded answer is looked at afterwards. A difference is counted and kept, and the twin is moved to
what the kernel did (`resync`), so that what follows stays comparable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin._jit import inner, kernel, slow
from mmtwin.gfp import ALLOC_NO_WATERMARKS, HIGHATOMIC
from mmtwin.mm.buddy import (
    free_list,
    free_one_page,
    get_pageblock_migratetype,
    is_free_block,
    isolate_free_page,
    page_zone,
    pageblock_row,
    reserve_highatomic_pageblock,
    unreserve_highatomic_pageblock,
)
from mmtwin.mm.kswapd import node_needs_kswapd
from mmtwin.mm.list import rotate_to_front
from mmtwin.mm.page_alloc import (
    alloc_pages,
    alloc_pages_cold,
    bulk_page,
    bulk_zone,
    free_pages_prepare,
    get_page_from_freelist,
    get_page_from_zones,
    highest_zone,
    mark_allocated,
    next_zone,
    preferred_zone,
    request_migratetype,
)
from mmtwin.mm.pcp import add_to_pcp_list, free_pcppages_bulk, pcp_surplus, pindex_of_free
from mmtwin.mm.slab_tables import Slub, new_slub, reserve
from mmtwin.mm.slub import slot_class
from mmtwin.mm.tables import PG_ALLOCATED, PG_BUDDY, PG_FREEING, PG_LRU, PG_PCP, PG_SLAB, ZONE_RECLAIM_ACTIVE, Pgdat
from mmtwin.mm.vmstat import refresh_cpu_vm_stats, refresh_zone_stat_thresholds, set_pgdat_percpu_threshold
from mmtwin.mm.watermark import setup_per_zone_wmarks
from mmtwin.replay.placement import (
    ALLOC,
    ALLOC_FAILED,
    BALANCE,
    BUDDY_FREE,
    BULK_BEGIN,
    BULK_END,
    BULK_LOCKED,
    CPU_FOLD,
    DRAIN,
    FOLD,
    FREE_DRAIN,
    ISOLATED,
    LRU_ADD,
    MOVE_BLOCK,
    OWNERSHIP,
    PAGESET,
    PCP_FREE,
    PREPARE,
    RECLAIM_CLEAR,
    RECLAIM_SET,
    ROTATE,
    SLAB_ALLOC_EVENT,
    SLAB_EXCHANGE,
    SLAB_FREE_EVENT,
    SLAB_GIVE,
    SLAB_REFILL,
    SLAB_SLOW,
    SLAB_TAKE,
    STAT_THRESHOLDS,
    THRESHOLDS,
    UNBOOST,
    WAKE_KSWAPD,
    WALK,
    WMARKS,
    Placement,
)
from mmtwin.replay.resync import any_covered, covered, extract, put_back
from mmtwin.replay.slabs import (
    SLAB_COUNTERS,
    SLAB_DIFFERENCE,
    Slabs,
    enter_slow,
    exchange,
    free_event,
    new_slabs,
    page_got,
    page_request,
    refill_now,
    slab_event,
    slab_give,
    slab_page_freed,
    slab_rare,
    slab_take,
)

CHUNK = 1 << 18
"""Operations per call of the compiled loop, so that progress and Ctrl-C work."""
NEAR = 64
"""Events within which a change of the watermark boost on one CPU and a test of the watermark on another may really be the other way round."""
KEPT = 100
"""Differences that are kept with their context."""

COUNTERS = (
    "page_allocs", "page_allocs_equal", "failed_allocs", "failed_allocs_equal", "bulk_pages", "frees", "retyped_frees", "unknown_frees", "reserve_learnt",
    "isolated_blocks", "isolated_unknown", "highatomic_moves", "drains", "contended", "differences", "refills_checked", "refills_equal", "zones_learnt", "limits_learnt", "ownership_learnt",
)  # fmt: skip
(
    C_ALLOCS,
    C_EQUAL,
    C_FAILED,
    C_FAILED_EQUAL,
    C_BULK,
    C_FREES,
    C_RETYPED,
    C_UNKNOWN,
    C_RESERVE,
    C_ISOLATED,
    C_ISOLATED_UNKNOWN,
    C_HIGHATOMIC,
    C_DRAINS,
    C_CONTENDED,
    C_DIFFERENCES,
    C_REFILLS,
    C_REFILLS_EQUAL,
    C_ZONES,
    C_LIMITS,
    C_OWNERSHIP,
) = range(len(COUNTERS))

DIFFERENCE = np.dtype([("event", "i8"), ("expected", "i8"), ("predicted", "i8"), ("order", "i8"), ("gfp", "i8"), ("cpu", "i8"), ("what", "i8")])
"""A kept difference; `what` is the kind of operation."""


class Progress(NamedTuple):
    """What the compiled loop carries from chunk to chunk."""

    counters: npt.NDArray[np.int64]
    differences: npt.NDArray[np.void]
    bulk_zone: npt.NDArray[np.int64]
    bulk_gfp: npt.NDArray[np.int64]
    bulk_done: npt.NDArray[np.int64]
    walk_zone: npt.NDArray[np.int64]
    walk_at: npt.NDArray[np.int64]
    boost_before: npt.NDArray[np.int64]
    boost_at: npt.NDArray[np.int64]
    flag_at: npt.NDArray[np.int64]
    surplus: npt.NDArray[np.int64]


# One copy of each that is not inlined, for the rare paths: every inlined copy costs seconds of compile time.
free_pcppages_bulk_cold, get_page_from_freelist_cold, get_page_from_zones_cold = (
    slow(free_pcppages_bulk),
    slow(get_page_from_freelist),
    slow(get_page_from_zones),
)


@inner
def count(r: Any, which: int, by: int) -> None:
    """Adds to a counter."""
    r.counters[which] += by


@slow
def differ(r: Any, op: Any, predicted: int) -> None:
    """Counts a difference and keeps it while there is room."""
    k = r.counters[C_DIFFERENCES]
    if k < len(r.differences):
        d = r.differences[k]
        d["event"] = int(op["event"])
        d["expected"] = int(op["pfn"])
        d["predicted"] = predicted
        d["order"] = int(op["order"])
        d["gfp"] = int(op["gfp"])
        d["cpu"] = int(op["cpu"])
        d["what"] = int(op["op"])
    r.counters[C_DIFFERENCES] = k + 1


@inner
def replay_alloc(b: Any, r: Any, op: Any) -> None:
    """One page allocation: the twin's answer beside the kernel's."""
    cpu = int(op["cpu"])
    order = int(op["order"])
    gfp = int(op["gfp"])
    expected = int(op["pfn"])
    contended = int(op["contended"]) != 0
    if int(op["arg"]) >= 0:
        flags = int(op["arg2"])
        top = highest_zone(b, gfp)
        z = int(r.walk_zone[int(op["context"])])
        now = next_zone(b, preferred_zone(b, top), order, gfp, top, flags)
        real = page_zone(b, expected)
        if z != real and zone_could_be(b, r, op, z, now, real):
            z = real
            count(r, C_ZONES, 1)
        boost = int(b.zone[z]["watermark_boost"]) if z >= 0 else 0
        pfn = get_page_from_zones(b, z, cpu, order, gfp, top, flags, contended)
        if z >= 0 and int(b.zone[z]["watermark_boost"]) != boost:
            boost_changed(r, z, boost, int(op["at"]))
    else:
        pfn = alloc_pages(b, cpu, order, gfp, contended)
    count(r, C_ALLOCS, 1)
    if pfn != expected:
        replay_alloc_differs(b, r, op, pfn)
    else:
        count(r, C_EQUAL, 1)


@inner
def boost_changed(r: Any, z: int, before: int, at: int) -> None:
    """Remembers what a zone's boost was and where it changed."""
    r.boost_before[z] = before
    r.boost_at[z] = at


@slow
def zone_could_be(b: Any, r: Any, op: Any, z: int, now: int, real: int) -> bool:
    """Whether the kernel may have chosen zone `real` where the twin chose `z`.

    The kernel tests the zones somewhere between the walk's mark and the one at the taking. Where the twin's counters say one thing at the
    first and another at the second (`now`), or where another CPU was just changing the watermark boost, only the kernel knows which held.
    """
    if real < 0 or now == real or (z > real > now) or (now > real > z):
        return real >= 0 and z != now
    top = highest_zone(b, int(op["gfp"]))
    upper = max(z, real)
    if upper < 0 or r.boost_at[upper] < r.walk_at[int(op["context"])] - NEAR:
        return False
    zone = b.zone[upper]
    boost = int(zone["watermark_boost"])
    zone["watermark_boost"] = r.boost_before[upper]
    other = next_zone(b, preferred_zone(b, top), int(op["order"]), int(op["gfp"]), top, int(op["arg2"]))
    zone["watermark_boost"] = boost
    return other == real


@slow
def replay_alloc_differs(b: Any, r: Any, op: Any, pfn: int) -> None:
    """The twin had no page, or another one."""
    cpu = int(op["cpu"])
    order = int(op["order"])
    gfp = int(op["gfp"])
    expected = int(op["pfn"])
    if pfn < 0:  # the kernel's task may ignore watermarks (PF_MEMALLOC, an OOM victim): that is not in the event
        pfn = get_page_from_freelist_cold(b, cpu, order, gfp, highest_zone(b, gfp), ALLOC_NO_WATERMARKS, int(op["contended"]) != 0)
        count(r, C_RESERVE, 1)
    if pfn == expected:
        count(r, C_EQUAL, 1)
    else:
        differ(r, op, pfn)
        if pfn >= 0:
            put_back(b, cpu, pfn, order)
        extract(b, cpu, expected, order)
        mark_allocated(b, expected, order)


@slow
def bulk_step(b: Any, r: Any, op: Any, until_refill: bool) -> None:
    """Pages of a bulk request: all that are left, or as many as come before the next refill and one more."""
    k = int(op["arg"])
    cpu = int(op["cpu"])
    z = int(r.bulk_zone[k])
    if z < 0:
        return
    migratetype = request_migratetype(b, int(r.bulk_gfp[k]))
    row = z * int(b.config[0]["nr_cpus"]) + cpu
    while until_refill or r.bulk_done[k] < int(op["arg2"]):
        before = int(b.pcp[row]["count"])
        pfn = bulk_page(b, z, cpu, migratetype)
        if pfn < 0:
            break
        r.bulk_done[k] += 1
        count(r, C_BULK, 1)
        if until_refill and int(b.pcp[row]["count"]) >= before:
            break


@slow
def replay_rare(b: Any, r: Any, op: Any, kind: int) -> None:
    """Everything that is not a plain allocation or free."""
    cpu = int(op["cpu"])
    pfn = int(op["pfn"])
    order = int(op["order"])
    if kind == BULK_BEGIN:
        k = int(op["arg"])
        r.bulk_gfp[k] = int(op["gfp"])
        r.bulk_zone[k] = bulk_zone(b, int(op["gfp"]), int(op["arg2"]))
    elif kind == BULK_LOCKED:
        count(r, C_REFILLS, 1)
        if covered(b, pfn, PG_BUDDY) >= 0:
            bulk_step(b, r, op, True)
        count(r, C_REFILLS_EQUAL, 1 if covered(b, pfn, PG_BUDDY) < 0 else 0)
    elif kind == BULK_END:
        bulk_step(b, r, op, False)
    elif kind == ALLOC_FAILED:
        count(r, C_FAILED, 1)
        page = -1
        if int(op["arg"]) < 0:
            page = alloc_pages_cold(b, cpu, order, int(op["gfp"]), False)
        elif int(r.walk_zone[int(op["context"])]) >= 0:
            page = get_page_from_zones_cold(
                b, int(r.walk_zone[int(op["context"])]), cpu, order, int(op["gfp"]), highest_zone(b, int(op["gfp"])), int(op["arg2"]), False
            )
        if page < 0:
            count(r, C_FAILED_EQUAL, 1)
        else:
            differ(r, op, page)
            put_back(b, cpu, page, order)
    elif kind == DRAIN:
        z = int(op["migratetype"])
        target = int(op["arg"])
        pcp = b.pcp[z * int(b.config[0]["nr_cpus"]) + target]
        free_pcppages_bulk_cold(b, z, target, cpu, int(pcp["batch"]) << int(b.config[0]["pcp_batch_scale_max"]), 0)
        count(r, C_DRAINS, 1)
    elif kind == ISOLATED:
        count(r, C_ISOLATED, 1)
        if is_free_block(b, pfn, order):
            isolate_free_page(b, pfn, page_zone(b, pfn), cpu, order)
            for i in range(pfn, pfn + (1 << order)):
                mark_allocated(b, i, 0)  # compaction splits what it takes
        else:
            count(r, C_ISOLATED_UNKNOWN, 1)
            differ(r, op, -1)
            extract(b, cpu, pfn, order)
            mark_allocated(b, pfn, order)
    elif kind == MOVE_BLOCK:
        migratetype = int(op["migratetype"])
        if migratetype == HIGHATOMIC:
            if get_pageblock_migratetype(b, pfn) != HIGHATOMIC:
                reserve_highatomic_pageblock(b, pfn, page_zone(b, pfn))
                count(r, C_HIGHATOMIC, 1)
        else:
            unreserve_highatomic_pageblock(b, pfn, page_zone(b, pfn), migratetype)
            count(r, C_HIGHATOMIC, 1)
    elif kind == FOLD:
        refresh_cpu_vm_stats(b, cpu)
    elif kind == CPU_FOLD:
        refresh_cpu_vm_stats(b, int(op["arg"]))
    elif kind == ROTATE:
        if not rotate_to_front(b.page, free_list(b, int(op["arg"]), order, int(op["migratetype"])), pfn):
            differ(r, op, -1)
    elif kind == PAGESET:
        for c in range(int(b.config[0]["nr_cpus"])):
            pcp = b.pcp[int(op["migratetype"]) * int(b.config[0]["nr_cpus"]) + c]
            pcp["high"] = int(op["arg2"])
            pcp["batch"] = int(op["gfp"])
    elif kind == OWNERSHIP:
        now = get_pageblock_migratetype(b, pfn)
        owned = now == int(op["migratetype"])
        if now == HIGHATOMIC:  # the request that stole the block has reserved it as well: every type ends there
            pass
        elif owned != (int(op["arg2"]) != 0):  # pages that reclaim held off the LRU at that moment: the twin counts them as movable
            b.pageblock[pageblock_row(b, pfn)] = int(op["migratetype"]) if int(op["arg2"]) else int(op["arg"])
            count(r, C_OWNERSHIP, 1)
    elif kind == STAT_THRESHOLDS:
        b.config[0]["online_cpus"] = int(op["arg"])
        refresh_zone_stat_thresholds(b)
    elif kind == WMARKS:
        b.config[0]["min_free_kbytes"] = int(op["arg"])
        b.config[0]["watermark_scale_factor"] = int(op["arg2"])
        b.config[0]["percpu_pagelist_high_fraction"] = int(op["gfp"])
        setup_per_zone_wmarks(b)
    elif kind == BALANCE:
        for z in range(int(op["arg"]) + 1):
            b.zone[z]["boost_at_balance"] = int(b.zone[z]["watermark_boost"])
    elif kind == RECLAIM_SET:
        r.flag_at[int(op["migratetype"])] = int(op["at"])
        b.zone[int(op["migratetype"])]["flags"] = int(b.zone[int(op["migratetype"])]["flags"]) | ZONE_RECLAIM_ACTIVE
    elif kind == RECLAIM_CLEAR:
        r.flag_at[int(op["migratetype"])] = int(op["at"])
        b.zone[int(op["migratetype"])]["flags"] = int(b.zone[int(op["migratetype"])]["flags"]) & ~ZONE_RECLAIM_ACTIVE
    elif kind == UNBOOST:
        zone = b.zone[int(op["migratetype"])]
        boost_changed(r, int(op["migratetype"]), int(zone["watermark_boost"]), int(op["at"]))
        zone["watermark_boost"] = int(zone["watermark_boost"]) - min(int(zone["watermark_boost"]), int(zone["boost_at_balance"]))
    elif kind == WAKE_KSWAPD:
        op["pfn"] = node_needs_kswapd(b, order, int(op["arg"]))
        op["arg2"] = int(b.config[0]["kswapd_wakeups"])
    elif kind == THRESHOLDS:
        set_pgdat_percpu_threshold(b, int(op["arg"]) != 0)


@inner
def replay_walk(b: Any, r: Any, op: Any) -> None:
    """The zones are tested now; the page is taken later, when other CPUs may have changed the counters. The operation keeps the answer (pfn)."""
    gfp = int(op["gfp"])
    top = highest_zone(b, gfp)
    if top >= 0:
        z = next_zone(b, preferred_zone(b, top), int(op["order"]), gfp, top, int(op["arg2"]))
        r.walk_at[int(op["context"])] = int(op["at"])
        r.walk_zone[int(op["context"])] = z
        op["pfn"] = z


@slow
def take_from_lists(b: Any, r: Any, op: Any) -> None:
    """A block that is being freed is not on any list; if the twin has some of it on one, it missed something."""
    pfn = int(op["pfn"])
    order = int(op["order"])
    if any_covered(b, pfn, order):
        count(r, C_UNKNOWN, 1)
        differ(r, op, -1)
        extract(b, int(op["cpu"]), pfn, order)


@inner
def replay_prepare(b: Any, r: Any, op: Any) -> None:
    """A block is being freed."""
    pfn = int(op["pfn"])
    order = int(op["order"])
    entry = b.page[pfn]
    suspect = 0 if int(entry["flags"]) & PG_ALLOCATED and int(entry["order"]) == order else PG_BUDDY
    for i in range(pfn + 1, pfn + (1 << order)):
        suspect |= int(b.page[i]["flags"])
    if suspect & (PG_BUDDY | PG_PCP):
        take_from_lists(b, r, op)
    free_pages_prepare(b, pfn, order)
    count(r, C_FREES, 1)


@inner
def replay_reaches_list(b: Any, r: Any, op: Any) -> None:
    """A freed block reaches a list; if its mm_page_free is missing, it is prepared now."""
    entry = b.page[int(op["pfn"])]
    if not int(entry["flags"]) & PG_FREEING or int(entry["order"]) != int(op["order"]):
        take_from_lists(b, r, op)
        free_pages_prepare(b, int(op["pfn"]), int(op["order"]))


@inner
def replay_pcp_free(b: Any, r: Any, op: Any) -> None:
    """A block reaches its per-CPU list. The pageblock may have changed its type since the kernel read it: then the kernel's type holds."""
    pfn = int(op["pfn"])
    order = int(op["order"])
    migratetype = int(op["migratetype"])
    z = page_zone(b, pfn)
    replay_reaches_list(b, r, op)
    entry = b.page[pfn]
    cached = int(entry["migratetype"])
    if migratetype >= 0 and migratetype != (cached if cached < HIGHATOMIC else 1):
        entry["migratetype"] = migratetype
        count(r, C_RETYPED, 1)
    zone = b.zone[z]
    zone["pgfree"] = int(zone["pgfree"]) + (1 << order)
    if order > 3 and order != 9:  # only without probes: such orders have no per-CPU list
        free_one_page(b, pfn, z, int(op["cpu"]), order, int(entry["migratetype"]), False)
        return
    cpu = int(op["cpu"])
    row = z * int(b.config[0]["nr_cpus"]) + cpu
    factor = int(b.pcp[row]["free_factor"])
    add_to_pcp_list(b, z, cpu, pfn, order)
    surplus = pcp_surplus(b, z, cpu, order)
    drained = int(op["arg2"]) != 0
    if (surplus > 0) != drained and r.flag_at[z] >= int(op["at"]) - NEAR:
        surplus = other_surplus(b, r, z, cpu, order, factor, surplus, drained)
    if drained:  # how much to give back is decided now, and done under the zone lock, later
        r.surplus[row] = surplus
    elif surplus:
        free_pcppages_bulk(b, z, cpu, cpu, surplus, pindex_of_free(b, pfn, order))


@slow
def other_surplus(b: Any, r: Any, z: int, cpu: int, order: int, factor: int, surplus: int, drained: bool) -> int:
    """kswapd was just changing the limit of the lists on another CPU: the kernel's free saw the one or the other. Returns the surplus that agrees
    with whether the kernel gave pages back, if one does.

    :param factor: free_factor before `surplus` was computed, which may have raised it.
    """
    pcp = b.pcp[z * int(b.config[0]["nr_cpus"]) + cpu]
    zone = b.zone[z]
    flags = int(zone["flags"])
    raised = int(pcp["free_factor"])
    pcp["free_factor"] = factor
    zone["flags"] = flags ^ ZONE_RECLAIM_ACTIVE
    other = pcp_surplus(b, z, cpu, order)
    zone["flags"] = flags
    if (other > 0) == drained:
        count(r, C_LIMITS, 1)
        return other
    pcp["free_factor"] = raised
    return surplus


@inner
def replay_free_drain(b: Any, r: Any, op: Any) -> None:
    """The drain that a free led to."""
    pfn = int(op["pfn"])
    cpu = int(op["cpu"])
    z = page_zone(b, pfn)
    row = z * int(b.config[0]["nr_cpus"]) + cpu
    if r.surplus[row]:
        free_pcppages_bulk(b, z, cpu, cpu, r.surplus[row], pindex_of_free(b, pfn, int(op["order"])))
        r.surplus[row] = 0


@inner
def replay_buddy_free(b: Any, r: Any, op: Any) -> None:
    """A block goes straight to the buddy lists, with the type and the flags the kernel passed (2 is FPI_TO_TAIL)."""
    pfn = int(op["pfn"])
    order = int(op["order"])
    z = page_zone(b, pfn)
    replay_reaches_list(b, r, op)
    entry = b.page[pfn]
    if int(entry["migratetype"]) != int(op["migratetype"]) and int(entry["flags"]) & PG_FREEING:
        count(r, C_RETYPED, 1)
    zone = b.zone[z]
    zone["pgfree"] = int(zone["pgfree"]) + (1 << order)
    free_one_page(b, pfn, z, int(op["cpu"]), order, int(op["migratetype"]), int(op["arg"]) & 2 != 0)


@inner
def replay_lru_add(b: Any, op: Any) -> None:
    """A page (with its tails, if it is the head of a block) is put on an LRU list: from now on it counts as movable."""
    pfn = int(op["pfn"])
    flags = int(b.page[pfn]["flags"])
    size = 1 << int(b.page[pfn]["order"]) if flags & PG_ALLOCATED else 1
    for i in range(pfn, pfn + size):
        if not int(b.page[i]["flags"]) & (PG_BUDDY | PG_PCP):  # part of a split block that was freed already
            b.page[i]["flags"] = int(b.page[i]["flags"]) | PG_LRU


@kernel
def replay_ops(b: Pgdat, s: Slub, r: Progress, q: Slabs, ops: npt.NDArray[np.void]) -> None:
    """Executes operations in order."""
    for i in range(len(ops)):
        op = ops[i]
        kind = int(op["op"])
        if kind >= SLAB_TAKE:
            if kind == SLAB_TAKE:
                slab_take(s, q, op)
            elif kind == SLAB_GIVE:
                slab_give(b, s, q, op)
            elif kind == SLAB_ALLOC_EVENT:
                slab_event(b, s, q, op)
            elif kind == SLAB_FREE_EVENT:
                free_event(q, op)
            elif kind == SLAB_EXCHANGE:
                exchange(b, s, q, op)
            elif kind == SLAB_REFILL:
                refill_now(s, q, op)
            elif kind == SLAB_SLOW:
                enter_slow(q, op)
            else:
                slab_rare(b, s, q, op)
        elif kind == ALLOC:
            if int(op["contended"]):
                r.counters[C_CONTENDED] += 1
            replay_alloc(b, r, op)
            page_got(q, op, False)
        elif kind == PREPARE:
            if int(b.page[int(op["pfn"])]["flags"]) & PG_SLAB:
                slab_page_freed(b, s, q, op)
            replay_prepare(b, r, op)
        elif kind == PCP_FREE:
            replay_pcp_free(b, r, op)
        elif kind == FREE_DRAIN:
            replay_free_drain(b, r, op)
        elif kind == LRU_ADD:
            replay_lru_add(b, op)
        elif kind == WALK:
            replay_walk(b, r, op)
            page_request(s, q, op)
        elif kind == BUDDY_FREE:
            replay_buddy_free(b, r, op)
        elif kind:
            if kind == ALLOC_FAILED:
                page_got(q, op, True)
            replay_rare(b, r, op, kind)


@dataclass(frozen=True)
class Outcome:
    """What a replay counted.

    :param counters: by name, see `COUNTERS`.
    :param differences: the first ones: event, expected, predicted, order, gfp, cpu, what.
    """

    state: Pgdat
    slub: Slub
    counters: dict[str, int]
    differences: npt.NDArray[np.void] = field(default_factory=lambda: np.zeros(0, dtype=DIFFERENCE))
    slab_differences: npt.NDArray[np.void] = field(default_factory=lambda: np.zeros(0, dtype=SLAB_DIFFERENCE))


def new_progress(placement: Placement, state: Pgdat) -> Progress:
    """The loop's state before the first operation."""
    bulks = max(placement.bulks, 1)
    return Progress(
        np.zeros(len(COUNTERS), np.int64),
        np.zeros(KEPT, DIFFERENCE),
        np.full(bulks, -1, np.int64),
        np.zeros(bulks, np.int64),
        np.zeros(bulks, np.int64),
        np.full(max(placement.contexts, 1), -1, np.int64),
        np.zeros(max(placement.contexts, 1), np.int64),
        np.zeros(len(state.zone), np.int64),
        np.full(len(state.zone), -NEAR, np.int64),
        np.full(len(state.zone), -NEAR, np.int64),
        np.zeros(len(state.pcp), np.int64),
    )


def run(state: Pgdat, placement: Placement, progress: Callable[[int], None] = lambda done: None, slub: Slub | None = None) -> Outcome:
    """Replays operations on `state` and `slub`, which are changed (the outcome holds the slab tables, which may have grown).

    :param progress: called with the number of operations done after each chunk.
    """
    return deque(run_until(state, placement, [len(placement.ops)], progress, slub), maxlen=1)[0]


def run_until(
    state: Pgdat, placement: Placement, stops: Sequence[int], progress: Callable[[int], None] = lambda done: None, slub: Slub | None = None
) -> Iterator[Outcome]:
    """As `run`, stopping on the way: gives the outcome so far before operation `stops[0]`, `stops[1]`, ... (ascending; len(placement.ops) is the end).

    The tables are the running ones: look at them, or copy them, before asking for the next.
    """
    r, q = new_progress(placement, state), new_slabs(placement)
    slub = new_slub(1, 0, slabs=0, slots=0) if slub is None else slub
    done = 0
    for stop in stops:
        while done < stop:
            end = min(done + CHUNK, stop)
            first, last = np.searchsorted(placement.fresh, (done, end))
            fresh = int(last - first)
            if fresh:
                slub = reserve(slub, fresh, fresh << slot_class(int(slub.cache["objects"].max(initial=1))))
            replay_ops(state, slub, r, q, placement.ops[done:end])
            progress(end)
            done = end
        counters = {name: int(r.counters[i]) for i, name in enumerate(COUNTERS)} | {name: int(q.counters[i]) for i, name in enumerate(SLAB_COUNTERS)}
        kept = q.differences[q.differences["event"] > 0]
        yield Outcome(state, slub, counters, r.differences[: min(counters["differences"], KEPT)], kept)
