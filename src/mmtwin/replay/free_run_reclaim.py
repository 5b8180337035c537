"""Reclaim in a free run: kswapd and tasks reclaim when the twin needs it, and what they find is what the recording's reclaim found, in its order.

The frees of the recording's reclaim are requests of their own kind (`requests.PAGES_RECLAIM`), each with a number; together they are a queue. A recorded run of kswapd is followed
if the twin needs kswapd too, else its pages stay where they are; so with a task's direct reclaim. Where the twin needs reclaim and the recording had none, the next pages
of the queue go that are in memory. So memory that is short earlier is reclaimed earlier, and memory that is not short stays. So with the shrinkers' objects
(`requests.OBJECT_RECLAIM`).

The loop stops for all of this, and the interpreter does it. Rules: mm/vmscan.c (balance_pgdat, kswapd_try_to_sleep), mm/page_alloc.c (__alloc_pages_slowpath).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mmtwin._jit import call
from mmtwin.gfp import ALLOC_WMARK_LOW, gfp_migratetype
from mmtwin.mm.buddy import page_zone
from mmtwin.mm.kswapd import MAX_RECLAIM_RETRIES, UNBALANCED, node_needs_kswapd, pgdat_balanced
from mmtwin.mm.page_alloc import ENOMEM, free_pages_prepare, highest_zone, next_zone, preferred_zone
from mmtwin.mm.pcp import drain_pages_zone
from mmtwin.mm.tables import ZONE_RECLAIM_ACTIVE, Pgdat
from mmtwin.replay.free_run_pages import (
    C_DRAINS,
    C_FREES,
    C_WAITS,
    CONTENDED,
    KSWAPD_COMES,
    KSWAPD_RUNS,
    KSWAPD_SKIPS,
    NO_WATERMARKS,
    P_HANDLE,
    P_USER,
    STOP_KSWAPD,
    W_BLOCKS,
    W_KSWAPD,
    W_OBJECTS,
    W_OBJECTS_STAY,
    W_PROGRESS,
    W_QUEUE,
    W_STOP,
    W_TASK_SKIPS,
    W_TOP,
    goes_on,
    pages_answered,
    rare,
    unreserve,
)
from mmtwin.replay.requests import (
    BALANCE,
    FLAG_CONTENDED,
    FLAG_MEMALLOC,
    KSWAPD_WOKEN,
    OBJECT_FREE,
    OBJECT_RECLAIM,
    PAGES_ALLOC,
    PAGES_RECLAIM,
    RECLAIM_CLEAR,
    TASK_RECLAIMS,
)

SWAP_CLUSTER_MAX = 32
"""Pages that reclaim frees at a time."""
DEF_PRIORITY = 12
"""Of its lists, reclaim first looks at one page in 2^12."""
SHRINK_BATCH = 128
"""Objects that a shrinker frees at a time."""


class Queue:
    """What the recording's reclaim freed, in order: blocks of pages, and the shrinkers' objects.

    :param words: the loop's words, in which what has gone is marked.
    :param free_objects: answers such requests (OBJECT_FREE).
    """

    def __init__(self, table: npt.NDArray[np.void], words: npt.NDArray[np.int64], free_objects: Callable[[npt.NDArray[np.void]], object]) -> None:
        rows = table[table["op"] == PAGES_RECLAIM]
        self.words, self.block, self.free_objects = words, int(words[W_BLOCKS]) + rows["id"], free_objects
        self.offset, self.order = rows["arg2"].copy(), rows["order"].astype(np.int64)
        self.gone = words[int(words[W_QUEUE]) :]
        self.objects = table[table["op"] == OBJECT_RECLAIM]
        self.objects["op"] = OBJECT_FREE
        where = [np.flatnonzero(table["op"] == kind) for kind in (PAGES_RECLAIM, OBJECT_RECLAIM)]
        self.turn = np.argsort(np.concatenate(where), kind="stable")

    def pages(self) -> int:
        """Blocks that could be freed."""
        return int(np.count_nonzero((self.gone == 0) & (self.words[self.block] >= 0)))

    def free(self, b: Pgdat, free: Any, cpu: int, pages: int) -> int:
        """Frees what is next and in memory, about so many pages; returns how many pages."""
        there = np.concatenate([(self.gone == 0) & (self.words[self.block] >= 0), self.words[W_OBJECTS + self.objects["id"]] >= 0])
        wanted = self.turn[there[self.turn]]
        got, at, blocks = 0, 0, len(self.block)
        is_object = wanted >= blocks
        while got < pages and at < len(wanted):
            if not is_object[at]:
                got += self.free_one(b, free, cpu, int(wanted[at]))
                at += 1
                continue
            batch = wanted[at : at + SHRINK_BATCH]
            batch = batch[: len(batch) if is_object[at : at + SHRINK_BATCH].all() else int(np.argmin(is_object[at : at + SHRINK_BATCH]))]
            before = _free_pages(b)
            rows = self.objects[batch - blocks]
            rows["cpu"] = cpu
            self.free_objects(rows)
            got, at = got + _free_pages(b) - before, at + len(batch)
        if got:
            b.config[0]["kswapd_failures"] = 0
        return got

    def free_one(self, b: Pgdat, free: Any, cpu: int, number: int) -> int:
        """Frees the block with this number, if it is in memory; returns how many pages."""
        w, first, order = self.words, int(self.words[self.block[number]]), int(self.order[number])
        if self.gone[number] or first < 0:
            return 0
        self.gone[number] = 1
        pfn = first + int(self.offset[number])
        free_pages_prepare(b, pfn, order)
        zone = b.zone[page_zone(b, pfn)]
        zone["pgfree"] = int(zone["pgfree"]) + (1 << order)
        w[C_DRAINS] += call(free, int(w[P_HANDLE]), cpu, pfn, order)
        w[C_FREES] += 1
        return 1 << order


def _free_pages(b: Pgdat) -> int:
    """Pages on all lists."""
    return int(b.zone["nr_free_pages"].sum() + b.pcp["nr_free_pages_diff"].sum() + b.pcp["count"].sum())


def stopped(b: Pgdat, w: npt.NDArray[np.int64], queue: Queue, op: np.void, alloc: Any, own: Any, free: Any) -> int:
    """Does what the loop has stopped for, before or at request `op`; returns how many requests that answers."""
    why, kind = int(w[W_STOP]), int(op["op"])
    w[W_STOP] = 0
    if why == STOP_KSWAPD:
        kswapd(b, w, queue, free, int(op["cpu"]))
        return 0
    if kind == PAGES_ALLOC:
        pages_answered(w, op, waits(b, w, queue, op, alloc, own, free))
    elif kind == TASK_RECLAIMS:
        top = highest_zone(b, int(op["gfp"]))
        fits = next_zone(b, preferred_zone(b, top), int(op["order"]), int(op["gfp"]), top, ALLOC_WMARK_LOW) >= 0
        w[W_TASK_SKIPS] = w[W_OBJECTS_STAY] = fits and not w[P_USER]
    elif kind == KSWAPD_WOKEN:
        w[W_KSWAPD] |= KSWAPD_COMES
    elif kind == BALANCE:
        balance(b, w, int(op["arg"]))
    else:
        if kind == RECLAIM_CLEAR:
            balanced(b, w)
        rare(b, w, alloc, op)
    return 1


def balance(b: Pgdat, w: npt.NDArray[np.int64], top: int) -> None:
    """kswapd begins a recorded round: here too, if it is wanted."""
    config = b.config[0]
    wanted = bool(w[P_USER]) or int(config["kswapd_pending"]) != 0 or node_needs_kswapd(b, 0, top) != 0
    w[W_KSWAPD], w[W_OBJECTS_STAY] = KSWAPD_RUNS if wanted else KSWAPD_SKIPS, not wanted
    if wanted:
        config["kswapd_pending"], config["kswapd_order"], config["kswapd_highest_zoneidx"] = 0, 0, -1
        w[W_PROGRESS], w[W_TOP] = 0, top
        for z in range(top + 1):
            b.zone[z]["boost_at_balance"] = int(b.zone[z]["watermark_boost"])


def balanced(b: Pgdat, w: npt.NDArray[np.int64]) -> None:
    """And ends it."""
    if w[W_KSWAPD] & KSWAPD_RUNS:
        top = int(w[W_TOP])
        boosted = unboost(b, top)
        if not w[W_PROGRESS] and (boosted or node_needs_kswapd(b, 0, top) & UNBALANCED):
            b.config[0]["kswapd_failures"] += 1
    w[W_KSWAPD] &= KSWAPD_COMES


def unboost(b: Pgdat, top: int) -> bool:
    """A round's end takes back the boosts that were there at its beginning; returns whether there were any."""
    boosted = False
    for zone in b.zone[: top + 1]:
        noted = int(zone["boost_at_balance"])
        boosted |= noted != 0
        zone["watermark_boost"] = int(zone["watermark_boost"]) - min(int(zone["watermark_boost"]), noted)
        zone["boost_at_balance"] = 0
    return boosted


def kswapd(b: Pgdat, w: npt.NDArray[np.int64], queue: Queue, free: Any, cpu: int) -> None:
    """kswapd runs where the recording's did not: rounds until the node is balanced, or it gives up."""
    config = b.config[0]
    order, top = int(config["kswapd_order"]), max(0, int(config["kswapd_highest_zoneidx"]))
    config["kswapd_pending"], config["kswapd_order"], config["kswapd_highest_zoneidx"] = 0, 0, -1
    while not w[P_USER]:
        for zone in b.zone[: top + 1]:
            zone["boost_at_balance"] = int(zone["watermark_boost"])
            zone["flags"] = int(zone["flags"]) | ZONE_RECLAIM_ACTIVE
        if not _round(b, queue, free, cpu, order, top):
            config["kswapd_failures"] += 1
        for zone in b.zone[: top + 1]:
            zone["flags"] = int(zone["flags"]) & ~ZONE_RECLAIM_ACTIVE
        unboost(b, top)
        order = 0
        if int(config["kswapd_failures"]) >= MAX_RECLAIM_RETRIES or pgdat_balanced(b, order, top):
            break


def _round(b: Pgdat, queue: Queue, free: Any, cpu: int, order: int, top: int) -> bool:
    """``balance_pgdat`` between its marks; False: it should have freed something and did not.

    A node that is short gets what it lacks. One that is only boosted is scanned gently (get_scan_count: a list's length shifted by the priority), which on a small machine is nothing at all.
    """
    freed, wish, priority = 0, int(b.zone["boost_at_balance"][: top + 1].sum()), DEF_PRIORITY
    while True:
        fine = pgdat_balanced(b, order, top)
        if not fine:
            wish = 0  # the restart that forgets the boost
        elif wish <= 0:
            return True
        got = queue.free(b, free, cpu, SWAP_CLUSTER_MAX if not fine else queue.pages() >> priority)
        if not got:
            return freed > 0
        freed, wish, priority = freed + got, wish - got, max(priority - 1, DEF_PRIORITY - 2)
        if freed >= 2 << order:  # compact_gap: the rest is compaction's
            order = 0


def waits(b: Pgdat, w: npt.NDArray[np.int64], queue: Queue, op: np.void, alloc: Any, own: Any, free: Any) -> int:
    """A request that would enter direct reclaim: a block, or a negative error."""
    cpu, order, gfp, flag = (int(op[name]) for name in ("cpu", "order", "gfp", "flag"))
    contended = CONTENDED if flag & FLAG_CONTENDED else 0
    memalloc = flag & FLAG_MEMALLOC != 0
    for turn in range(0 if memalloc or w[P_USER] else MAX_RECLAIM_RETRIES):
        if not queue.free(b, free, cpu, SWAP_CLUSTER_MAX):
            break
        pfn = call(alloc, int(w[P_HANDLE]), cpu, order, gfp, contended)
        if pfn < 0 and turn == 0:  # reserved and listed pages are given back once
            block = 1 << int(b.config[0]["pageblock_order"])
            if (b.zone["nr_reserved_highatomic"] > block).any():
                unreserve(b, gfp_migratetype(gfp))
            for z in range(len(b.zone)):
                for other in range(int(b.config[0]["nr_cpus"])):
                    drain_pages_zone(b, z, other, cpu)
            pfn = call(alloc, int(w[P_HANDLE]), cpu, order, gfp, contended)
        if pfn >= 0:
            return pfn
        if not goes_on(order, gfp):
            break
    w[C_WAITS] += 1
    return call(own, int(w[P_HANDLE]), cpu, order, gfp, contended | NO_WATERMARKS) if memalloc or goes_on(order, gfp) else -ENOMEM
