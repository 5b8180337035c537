"""A free run: requests are answered by the twin alone, under whatever settings its state has, and whatever follows from the answers is followed.

Addresses of the recording do not occur: an object or block is known by its number in `requests.Requests`, and two tables say where the twin has put it. What
the kernel was refused and the twin grants is held for as long as such blocks usually were; what the twin refuses, its later free passes over. Both are counted.

A request that would enter direct reclaim cannot be followed there, because what reclaim finds is not in the state: what the recording's own reclaim freed comes
with its events, and beyond that such a request takes from the reserves, if it is one that the kernel would go on trying for; `reclaim_waits` counts them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin._jit import callback, inner, kernel, slow
from mmtwin.gfp import ALLOC_NO_WATERMARKS, HIGHATOMIC
from mmtwin.mm.buddy import free_list, free_one_page, get_pageblock_migratetype, is_free_block, isolate_free_page, page_zone, unreserve_highatomic_pageblock
from mmtwin.mm.handle import address_table
from mmtwin.mm.kmalloc import kmalloc_slab
from mmtwin.mm.page_alloc import (
    EAGAIN, ENOMEM, GFP_DIRECT_RECLAIM, alloc_pages, alloc_pages_bulk, free_pages_prepare, free_the_page, get_page_from_freelist, highest_zone, mark_allocated,
    request_migratetype,
)  # fmt: skip
from mmtwin.mm.pcp import free_pcppages_bulk
from mmtwin.mm.slab_tables import END, SLAB_DISCARDED, Slub, copy_slub, reserve
from mmtwin.mm.slub import (
    DISCARD, GFP_NORETRY, PUT_CPU_PARTIAL, SLOT_BITS, SLOT_MASK, build_detached_freelist, deactivate_slab, discard_slab, draw, first_gfp, flush_slab, free_row,
    free_single, free_slowpath, fresh_freelist, get_partial_node, give_fast, has_cpu_slabs, load, object_at, open_slab, own_slab, put_cpu_partial, refill, remove_partial,
    shrink_lists, slab_gfp, slot_class, take_cpu_partial, take_fast, take_partials, take_single, unfreeze_partials,
)  # fmt: skip
from mmtwin.mm.tables import NR_ORDERS, PAGE_ALLOC_COSTLY_ORDER, PG_ALLOCATED, PG_BUDDY, PG_LRU, PG_PCP, PG_SLAB, ZONE_RECLAIM_ACTIVE, Pgdat, copy_pgdat
from mmtwin.mm.vmstat import refresh_cpu_vm_stats, refresh_zone_stat_thresholds, set_pgdat_percpu_threshold
from mmtwin.mm.watermark import setup_per_zone_wmarks, zone_set_pageset_high_and_batch
from mmtwin.replay.requests import (
    BALANCE, CACHE_CREATE, CACHE_DESTROY, CACHE_FLUSH, CACHE_SHRINK, CPU_DEAD, DRAIN, FLAG_CONTENDED, FLAG_KMALLOC, FLAG_MAYBE, FLAG_MEMALLOC, FLAG_REFUSED,
    FLAG_TAIL, FOLD, LRU_ADD, OBJECT_ALLOC, OBJECT_FREE, OBJECTS_ALLOC, OBJECTS_FREE, PAGES_ALLOC, PAGES_BULK, PAGES_FREE, PAGES_ISOLATE, PAGESET, RECLAIM_CLEAR,
    RECLAIM_SET, SLAB_RELEASE, STAT_THRESHOLDS, THRESHOLDS, UNBOOST, UNRESERVE, WMARKS, Requests,
)  # fmt: skip

SAMPLES = 64
"""Moments at which the machine is looked at."""
COUNTERS = (
    "page_requests", "page_failures", "new_failures", "new_successes", "page_frees", "bulk_pages", "reclaim_waits", "slab_requests", "slab_failures", "slab_frees",
    "slab_slow_paths", "slabs_made", "slabs_freed", "small_slabs", "page_list_refills", "page_list_drains", "isolations_missed", "skipped_frees", "moved_lru",
)  # fmt: skip
(
    C_PAGES, C_FAILED, C_NEW_FAILURES, C_NEW_SUCCESSES, C_FREES, C_BULK, C_WAITS, C_SLAB, C_SLAB_FAILED, C_SLAB_FREES, C_SLOW, C_MADE, C_FREED, C_SMALL, C_REFILLS,
    C_DRAINS, C_ISOLATION, C_SKIPPED, C_LRU,
) = range(len(COUNTERS))  # fmt: skip
GONE = -1
"""In the tables of where things are: not there (not yet, no more, or refused)."""
P_USER, P_HANDLE, P_SIZES, P_SLOTS = range(4)
"""In `Run.policy`: 1: pages are the business of functions written by the user; the handle they get; 1: kmalloc looks for its cache anew; slots of the largest slab."""

ALLOC_SIGNATURE = "int64(int64, int64, int64, int64, int64)"
FREE_SIGNATURE = "int64(int64, int64, int64, int64)"


class Run(NamedTuple):
    """What the loop carries.

    :param object: the object's slab and slot, by number; `block` the first page frame of a block.
    :param ids: `Requests.ids`.
    :param failed: requests refused, by order.
    :param policy: see the P_ constants.
    :param fixed: settings that the recording's own changes must leave alone: min_free_kbytes, watermark_scale_factor, CPUs online.
    :param scratch: objects of one bulk request.
    """

    object: npt.NDArray[np.int64]
    block: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    counters: npt.NDArray[np.int64]
    failed: npt.NDArray[np.int64]
    policy: npt.NDArray[np.int64]
    fixed: npt.NDArray[np.int64]
    scratch: npt.NDArray[np.int64]


free_one_page_cold, free_pcppages_bulk_cold, get_page_cold = slow(free_one_page), slow(free_pcppages_bulk), slow(get_page_from_freelist)


@callback(ALLOC_SIGNATURE)
def no_alloc(handle: int, cpu: int, order: int, gfp: int, migratetype: int) -> int:
    """Stands where a user's `alloc` would be."""
    return -ENOMEM


@callback(FREE_SIGNATURE)
def no_free(handle: int, cpu: int, pfn: int, order: int) -> int:
    """Stands where a user's `free` would be."""
    return 0


# Pages


@slow
def get_pages(b: Any, f: Any, alloc: Any, cpu: int, order: int, gfp: int, contended: bool, memalloc: bool) -> int:
    """A block, or a negative error: from the policy; where that gives none and the kernel would reclaim, from the reserves."""
    if f.policy[P_USER]:
        pfn = alloc(f.policy[P_HANDLE], cpu, order, gfp, request_migratetype(b, gfp))
        if pfn >= 0:
            mark_allocated(b, pfn, order)
            zone = b.zone[page_zone(b, pfn)]
            zone["pgalloc"] = int(zone["pgalloc"]) + (1 << order)
        else:
            pfn = -EAGAIN if gfp & GFP_DIRECT_RECLAIM else -ENOMEM
    else:
        pfn = alloc_pages(b, cpu, order, gfp, contended)
    if pfn == -EAGAIN or (pfn < 0 and memalloc):
        f.counters[C_WAITS] += 1
        pfn = -ENOMEM
        if memalloc or (order <= PAGE_ALLOC_COSTLY_ORDER and not gfp & GFP_NORETRY):
            pfn = get_page_cold(b, cpu, order, gfp, highest_zone(b, gfp), ALLOC_NO_WATERMARKS, contended)
    return pfn


@slow
def put_pages(b: Any, f: Any, free: Any, cpu: int, pfn: int, order: int) -> None:
    """A block goes back."""
    free_pages_prepare(b, pfn, order)
    if f.policy[P_USER]:
        zone = b.zone[page_zone(b, pfn)]
        zone["pgfree"] = int(zone["pgfree"]) + (1 << order)
        free(f.policy[P_HANDLE], cpu, pfn, order)
    else:
        free_the_page(b, cpu, pfn, order)


@slow
def pages_alloc(b: Any, f: Any, alloc: Any, op: Any) -> None:
    """A request for pages."""
    order = int(op["order"])
    flag = int(op["flag"])
    f.counters[C_PAGES] += 1
    pfn = get_pages(b, f, alloc, int(op["cpu"]), order, int(op["gfp"]), flag & FLAG_CONTENDED != 0, flag & FLAG_MEMALLOC != 0)
    if pfn < 0:
        f.counters[C_FAILED] += 1
        f.failed[order] += 1
        f.counters[C_NEW_FAILURES] += 0 if flag & FLAG_REFUSED else 1
        pfn = GONE
    elif flag & FLAG_REFUSED:
        f.counters[C_NEW_SUCCESSES] += 1
    f.block[int(op["id"])] = pfn


@slow
def pages_free(b: Any, f: Any, free: Any, op: Any) -> None:
    """A block, or a part of one, is freed."""
    first = f.block[int(op["id"])]
    if first < 0:
        f.counters[C_SKIPPED] += 1
        return
    pfn = first + int(op["arg2"])
    order = int(op["order"])
    f.counters[C_FREES] += 1
    if int(op["flag"]) & FLAG_TAIL:
        free_pages_prepare(b, pfn, order)
        z = page_zone(b, pfn)
        b.zone[z]["pgfree"] = int(b.zone[z]["pgfree"]) + (1 << order)
        free_one_page_cold(b, pfn, z, int(op["cpu"]), order, int(b.page[pfn]["migratetype"]), True)
    else:
        put_pages(b, f, free, int(op["cpu"]), pfn, order)
    if int(op["flag"]) & FLAG_MAYBE:
        f.block[int(op["id"])] = GONE


@slow
def pages_bulk(b: Any, f: Any, alloc: Any, op: Any) -> None:
    """A bulk request for single pages."""
    first = int(op["id"])
    count = int(op["arg"])
    got = 0
    if not f.policy[P_USER]:
        got = max(0, alloc_pages_bulk(b, int(op["cpu"]), int(op["gfp"]), f.block[first : first + count]))
    while got < count:
        f.block[first + got] = max(get_pages(b, f, alloc, int(op["cpu"]), 0, int(op["gfp"]), False, False), GONE)
        got += 1
    f.counters[C_BULK] += count


@slow
def pages_isolate(b: Any, f: Any, alloc: Any, op: Any) -> None:
    """Compaction takes a free block: the same one if it is free here, else any."""
    pfn = int(op["arg2"])
    order = int(op["order"])
    if pfn + (1 << order) <= int(b.config[0]["nr_frames"]) and is_free_block(b, pfn, order):
        isolate_free_page(b, pfn, page_zone(b, pfn), int(op["cpu"]), order)
    else:
        f.counters[C_ISOLATION] += 1
        pfn = get_page_cold(b, int(op["cpu"]), order, 0x100CCA, highest_zone(b, 0x100CCA), ALLOC_NO_WATERMARKS, False)
    if pfn >= 0:
        for i in range(pfn, pfn + (1 << order)):
            mark_allocated(b, i, 0)
    f.block[int(op["id"])] = max(pfn, GONE)


@slow
def lru_add(b: Any, f: Any, op: Any) -> None:
    """A page, with its tails if it is the head of a block, is put on an LRU list."""
    first = f.block[int(op["id"])]
    if first < 0:
        return
    pfn = first + int(op["arg2"])
    flags = int(b.page[pfn]["flags"])
    size = 1 << int(b.page[pfn]["order"]) if flags & PG_ALLOCATED else 1
    f.counters[C_LRU] += size
    for i in range(pfn, pfn + size):
        if not int(b.page[i]["flags"]) & (PG_BUDDY | PG_PCP):
            b.page[i]["flags"] = int(b.page[i]["flags"]) | PG_LRU


@slow
def unreserve(b: Any, migratetype: int) -> None:
    """Reclaim gives a reserved pageblock back: the first that has a free block, of the lowest order (``unreserve_highatomic_pageblock``)."""
    for z in range(len(b.zone) - 1, -1, -1):
        for order in range(NR_ORDERS):
            head = free_list(b, z, order, HIGHATOMIC)
            pfn = int(b.page[head]["next"])
            if pfn != head and get_pageblock_migratetype(b, pfn) == HIGHATOMIC:
                unreserve_highatomic_pageblock(b, pfn, z, migratetype)
                return


@slow
def setting(b: Any, f: Any, op: Any, kind: int) -> None:
    """What somebody sets, and what reclaim says."""
    arg = int(op["arg"])
    z = int(op["migratetype"])
    if kind == FOLD:
        refresh_cpu_vm_stats(b, arg if arg < int(b.config[0]["nr_cpus"]) else 0)
    elif kind == DRAIN:
        cpu = arg if arg < int(b.config[0]["nr_cpus"]) else 0
        pcp = b.pcp[z * int(b.config[0]["nr_cpus"]) + cpu]
        free_pcppages_bulk_cold(b, z, cpu, int(op["cpu"]), int(pcp["batch"]) << int(b.config[0]["pcp_batch_scale_max"]), 0)
    elif kind == WMARKS:
        if not f.fixed[0]:
            b.config[0]["min_free_kbytes"] = arg
        if not f.fixed[1]:
            b.config[0]["watermark_scale_factor"] = int(op["arg2"])
        b.config[0]["percpu_pagelist_high_fraction"] = int(op["gfp"])
        setup_per_zone_wmarks(b)
    elif kind == STAT_THRESHOLDS:
        if not f.fixed[2]:
            b.config[0]["online_cpus"] = arg
        refresh_zone_stat_thresholds(b)
    elif kind == PAGESET:
        zone_set_pageset_high_and_batch(b, z)
    elif kind == BALANCE:
        for i in range(arg + 1):
            b.zone[i]["boost_at_balance"] = int(b.zone[i]["watermark_boost"])
    elif kind == RECLAIM_SET:
        b.zone[z]["flags"] = int(b.zone[z]["flags"]) | ZONE_RECLAIM_ACTIVE
    elif kind == RECLAIM_CLEAR:
        b.zone[z]["flags"] = int(b.zone[z]["flags"]) & ~ZONE_RECLAIM_ACTIVE
    elif kind == UNBOOST:
        zone = b.zone[z]
        zone["watermark_boost"] = int(zone["watermark_boost"]) - min(int(zone["watermark_boost"]), int(zone["boost_at_balance"]))
    elif kind == THRESHOLDS:
        set_pgdat_percpu_threshold(b, arg != 0)
    elif kind == UNRESERVE:
        unreserve(b, z)


# Slabs: SLUB's own sections (mm/slub.py), with pages from the policy


@slow
def release(b: Any, s: Any, f: Any, free: Any, row: int, cpu: int) -> None:
    """A discarded slab's pages go back. (Those that wait for RCU too: the free run knows no grace periods.)"""
    pfn, order = int(s.slab[row]["pfn"]), int(s.slab[row]["order"])
    free_row(s, row)
    f.counters[C_FREED] += 1
    put_pages(b, f, free, cpu, pfn, order)


@slow
def discard_chain(b: Any, s: Any, f: Any, free: Any, first: int, cpu: int) -> None:
    """Discards a chain of slabs."""
    row = first
    while row != END:
        following = int(s.slab[row]["next"])
        discard_slab(s, row)
        release(b, s, f, free, row, cpu)
        row = following


@slow
def new_slab(b: Any, s: Any, f: Any, alloc: Any, c: int, cpu: int, gfp: int) -> int:
    """``allocate_slab``: the row, or a negative error."""
    cache = s.cache[c]
    order = int(cache["order"])
    least = int(cache["min_order"])
    pfn = -ENOMEM
    if order > least:
        pfn = get_pages(b, f, alloc, cpu, order, first_gfp(cache, gfp), False, False)
        f.counters[C_SMALL] += 1 if pfn < 0 else 0
    if pfn < 0:
        order = least
        flags = slab_gfp(cache, gfp)
        pfn = get_pages(b, f, alloc, cpu, order, flags, False, flags & 0x20000 != 0)
        if pfn < 0:
            return pfn
    row = own_slab(b, s, c, pfn, order)
    fresh_freelist(s, row, draw(s, int(cache["objects"])) if int(cache["random_seq"]) >= 0 else 0)
    f.counters[C_MADE] += 1
    return row


@slow
def object_alloc_slow(b: Any, s: Any, f: Any, alloc: Any, c: int, cpu: int, gfp: int) -> int:
    """``___slab_alloc``."""
    f.counters[C_SLOW] += 1
    if not has_cpu_slabs(s.cache[c]):
        return take_single(b, s, c, cpu, gfp)
    while True:
        packed = refill(s, c, cpu)
        if packed != END:
            return packed
        if not take_cpu_partial(s, c, cpu):
            break
    packed = get_partial_node(s, c, cpu)
    if packed == END:
        row = new_slab(b, s, f, alloc, c, cpu, gfp)
        if row < 0:
            return row
        packed = open_slab(s, row)
    return load(s, c, cpu, packed)


@inner
def object_alloc(b: Any, s: Any, f: Any, alloc: Any, c: int, cpu: int, gfp: int) -> int:
    """``slab_alloc_node``."""
    packed = take_fast(s, c, cpu)
    if packed == END:
        packed = object_alloc_slow(b, s, f, alloc, c, cpu, gfp)
    f.counters[C_SLAB] += 1
    if packed < 0:
        f.counters[C_SLAB_FAILED] += 1
    return packed


@slow
def objects_free_slow(b: Any, s: Any, f: Any, free: Any, c: int, cpu: int, row: int, head: int, tail: int, count: int) -> None:
    """``__slab_free``."""
    f.counters[C_SLOW] += 1
    if not has_cpu_slabs(s.cache[c]):
        left = free_single(s, row, head, tail, count)
    else:
        left = free_slowpath(s, row, head, tail, count)
    if left == PUT_CPU_PARTIAL:
        first = put_cpu_partial(s, c, cpu, row, True)
        if first != END:
            discard_chain(b, s, f, free, unfreeze_partials(s, c, first), cpu)
    elif left == DISCARD:
        discard_slab(s, row)
        release(b, s, f, free, row, cpu)


@inner
def objects_free(b: Any, s: Any, f: Any, free: Any, cpu: int, row: int, head: int, tail: int, count: int) -> None:
    """``do_slab_free``."""
    c = int(s.slab[row]["cache"])
    f.counters[C_SLAB_FREES] += count
    if not give_fast(s, c, cpu, row, head, tail):
        objects_free_slow(b, s, f, free, c, cpu, row, head, tail, count)


@slow
def bulk_alloc(b: Any, s: Any, f: Any, alloc: Any, op: Any) -> None:
    """``kmem_cache_alloc_bulk``."""
    first = int(op["id"])
    for i in range(first, first + int(op["arg2"])):
        f.object[f.ids[i]] = max(object_alloc(b, s, f, alloc, int(op["arg"]), int(op["cpu"]), int(op["gfp"])), GONE)


@slow
def bulk_free(b: Any, s: Any, f: Any, free: Any, op: Any) -> None:
    """``kmem_cache_free_bulk``, ``kfree_bulk``."""
    first = int(op["id"])
    size = 0
    for i in range(first, first + int(op["arg2"])):
        packed = f.object[f.ids[i]]
        if packed < 0:
            f.counters[C_SKIPPED] += 1
        elif size < len(f.scratch):
            f.scratch[size] = packed
            size += 1
        f.object[f.ids[i]] = GONE
    while size:
        row = f.scratch[size - 1] >> SLOT_BITS
        size, head, tail, count = build_detached_freelist(s, f.scratch, size)
        objects_free(b, s, f, free, int(op["cpu"]), row, head, tail, count)


@slow
def flush_cpu(b: Any, s: Any, f: Any, free: Any, c: int, cpu: int) -> None:
    """``flush_cpu_slab``."""
    packed = flush_slab(s, c, cpu)
    if packed != END and deactivate_slab(s, packed):
        discard_slab(s, packed >> SLOT_BITS)
        release(b, s, f, free, packed >> SLOT_BITS, cpu)
    first = take_partials(s, c, cpu)
    if first != END:
        discard_chain(b, s, f, free, unfreeze_partials(s, c, first), cpu)


@slow
def cache_request(b: Any, s: Any, f: Any, free: Any, op: Any, kind: int) -> None:
    """What is asked of a whole cache."""
    c = int(op["arg"])
    cpu = int(op["cpu"])
    if kind == CACHE_CREATE:
        s.cache[c]["live"] = 1
        return
    if kind == CACHE_FLUSH:
        flush_cpu(b, s, f, free, c, cpu)
        return
    if kind == CPU_DEAD:
        if c < int(s.config[0]["nr_cpus"]):
            for other in range(int(s.config[0]["caches"])):
                flush_cpu(b, s, f, free, other, c)
        return
    for other in range(int(s.config[0]["nr_cpus"])):
        flush_cpu(b, s, f, free, c, other)
    if kind == CACHE_SHRINK:
        discard_chain(b, s, f, free, shrink_lists(s, c), cpu)
        return
    row = int(s.slab[c]["next"])
    while row != c:
        following = int(s.slab[row]["next"])
        if int(s.slab[row]["inuse"]) == 0:
            remove_partial(s, row)
            discard_slab(s, row)
            release(b, s, f, free, row, cpu)
        row = following
    s.cache[c]["live"] = 0


@slow
def release_old(b: Any, s: Any, f: Any, free: Any, op: Any) -> None:
    """A grace period that began before the recording is over: the slab's pages go."""
    pfn = int(op["arg2"])
    if pfn < int(b.config[0]["nr_frames"]) and int(b.page[pfn]["flags"]) & PG_SLAB:
        row = int(b.page[pfn]["next"])
        if int(s.slab[row]["state"]) == SLAB_DISCARDED and int(s.slab[row]["pfn"]) == pfn:
            release(b, s, f, free, row, int(op["cpu"]))


@inner
def room(s: Any, f: Any, slabs: int) -> bool:
    """Whether the tables have room for so many more slabs."""
    config = s.config[0]
    return int(config["slabs"]) + slabs < len(s.slab) and int(config["slots"]) + slabs * f.policy[P_SLOTS] < len(s.slot)


@kernel
def run_requests(b: Pgdat, s: Slub, f: Run, requests: npt.NDArray[np.void], alloc: Any, free: Any, start: int) -> int:
    """Answers requests from `start` on; returns how many are done: fewer than all when the slab tables have no more room."""
    for i in range(start, len(requests)):
        op = requests[i]
        kind = int(op["op"])
        if kind == OBJECT_ALLOC:
            if not room(s, f, 1):
                return i
            c = int(op["arg"])
            if int(op["flag"]) & FLAG_KMALLOC and f.policy[P_SIZES]:
                c = kmalloc_slab(s, int(op["arg2"]), int(op["gfp"]))
            packed = object_alloc(b, s, f, alloc, c, int(op["cpu"]), int(op["gfp"]))
            f.object[int(op["id"])] = max(packed, GONE)
            if int(op["flag"]) & FLAG_REFUSED and packed >= 0:
                objects_free(b, s, f, free, int(op["cpu"]), packed >> SLOT_BITS, packed & SLOT_MASK, packed & SLOT_MASK, 1)
                f.object[int(op["id"])] = GONE
        elif kind == OBJECT_FREE:
            packed = f.object[int(op["id"])]
            if packed >= 0:
                objects_free(b, s, f, free, int(op["cpu"]), packed >> SLOT_BITS, packed & SLOT_MASK, packed & SLOT_MASK, 1)
                f.object[int(op["id"])] = GONE
            else:
                f.counters[C_SKIPPED] += 1
        elif kind == PAGES_ALLOC:
            pages_alloc(b, f, alloc, op)
        elif kind == PAGES_FREE:
            pages_free(b, f, free, op)
        elif kind == LRU_ADD:
            lru_add(b, f, op)
        elif kind == OBJECTS_ALLOC:
            if not room(s, f, int(op["arg2"])):
                return i
            bulk_alloc(b, s, f, alloc, op)
        elif kind == OBJECTS_FREE:
            bulk_free(b, s, f, free, op)
        elif kind == PAGES_BULK:
            pages_bulk(b, f, alloc, op)
        elif kind == PAGES_ISOLATE:
            pages_isolate(b, f, alloc, op)
        elif kind == SLAB_RELEASE:
            release_old(b, s, f, free, op)
        elif kind == CACHE_CREATE or kind == CACHE_DESTROY or kind == CACHE_FLUSH or kind == CACHE_SHRINK or kind == CPU_DEAD:
            cache_request(b, s, f, free, op, kind)
        elif kind:
            setting(b, f, op, kind)
    return len(requests)


@dataclass(frozen=True)
class Start:
    """Where a free run begins.

    :param objects: where each object is that is older than the recording: number, and slab and slot in one (`mmtwin.mm.slub`), END if it has no place.
    :param blocks: number and first page frame of each such block.
    :param table: the requests, perhaps on other CPUs and from other caches than recorded.
    :param fixed: settings that the recording's own changes leave alone (`Run.fixed`).
    :param sizes: kmalloc finds its cache by size, because there are other size classes than the recording's.
    """

    pages: Pgdat
    slub: Slub
    table: npt.NDArray[np.void]
    objects: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]
    fixed: tuple[int, int, int] = (0, 0, 0)
    sizes: bool = False


@dataclass(frozen=True)
class Policy:
    """Functions of the user's in place of the page allocator's: what `mmtwin.replay.policy` makes of them."""

    name: str
    alloc: Any
    free: Any


@dataclass(frozen=True)
class Look:
    """The machine at one moment.

    :param request: how many requests have been answered.
    :param free_blocks: by order, all zones together; `nr_free` of the free areas.
    :param free_pages: on the buddy lists; `listed_pages` on per-CPU lists; `slab_pages` in slabs.
    :param extfrag: pageblocks taken from another migrate type since the start (mm_page_alloc_extfrag).
    """

    request: int
    free_blocks: tuple[int, ...]
    free_pages: int
    listed_pages: int
    slab_pages: int
    extfrag: int
    page_failures: int

    def unusable(self, order: int) -> float:
        """The share of free memory that is in blocks too small for a request of this order (the kernel's unusable free space index)."""
        usable = sum(n << o for o, n in enumerate(self.free_blocks) if o >= order)
        return 1 - usable / self.free_pages if self.free_pages else 0.0


@dataclass(frozen=True)
class Outcome:
    """How a free run ended.

    :param counters: by the names in `COUNTERS`.
    :param failed: page requests refused, by order.
    :param looks: the machine at the start, at `SAMPLES` moments, and at the end.
    :param seconds: of the loop alone.
    """

    pages: Pgdat
    slub: Slub
    counters: dict[str, int]
    failed: tuple[int, ...]
    looks: list[Look]
    seconds: float
    run: Run = field(repr=False)


def look(pages: Pgdat, slub: Slub, request: int, failures: int) -> Look:
    """The machine as it is now."""
    blocks = pages.free_area["nr_free"].reshape(-1, NR_ORDERS).sum(axis=0)
    return Look(
        request, tuple(int(n) for n in blocks), int((blocks << np.arange(NR_ORDERS)).sum()), int(pages.pcp["count"].sum()), int(slub.config[0]["pages"]),
        int(pages.config[0]["extfrag"]), failures,
    )  # fmt: skip


def start_of(requests: Requests) -> Start:
    """The recording's own start, with its own settings."""
    pages, slub = copy_pgdat(requests.pages), copy_slub(requests.slub)
    objects = np.array([(n, object_at(pages, slub, a)) for n, a in requests.old_objects.tolist()], dtype=np.int64).reshape(-1, 2)
    return Start(pages, slub, requests.table, objects, requests.old_blocks[:, :2].copy())


def run(start: Start, requests: Requests, policy: Policy | None = None, progress: Callable[[int, int], None] = lambda done, total: None) -> Outcome:
    """Answers all requests, beginning at `start`, whose tables are changed.

    :param policy: the user's page allocator; None for the kernel's.
    :param progress: called with the requests answered and their number.
    """
    pages, slub, table = start.pages, start.slub, start.table
    f = Run(
        np.full(max(requests.objects, 1), GONE, np.int64), np.full(max(requests.blocks, 1), GONE, np.int64), requests.ids, np.zeros(len(COUNTERS), np.int64),
        np.zeros(NR_ORDERS, np.int64), np.zeros(4, np.int64), np.array(start.fixed, np.int64), np.zeros(1 << 12, np.int64),
    )  # fmt: skip
    f.object[start.objects[:, 0]], f.block[start.blocks[:, 0]] = start.objects[:, 1], start.blocks[:, 1]
    most = 1 << slot_class(int(slub.cache["objects"].max(initial=1)))
    f.policy[P_USER], f.policy[P_SIZES], f.policy[P_SLOTS] = policy is not None, start.sizes, most
    alloc, free = (no_alloc, no_free) if policy is None else (policy.alloc, policy.free)
    pages.config[0]["extfrag"] = 0
    looks, total, seconds = [look(pages, slub, 0, 0)], len(table), 0.0
    for end in np.unique(np.linspace(0, total, SAMPLES + 1, dtype=np.int64)[1:]).tolist():
        at = looks[-1].request
        while at < end:
            slub = reserve(slub, 1 << 10, (1 << 10) * most)
            handle = address_table(pages, slub)
            f.policy[P_HANDLE] = handle.ctypes.data
            began = time.perf_counter()
            at = run_requests(pages, slub, f, table[:end], alloc, free, at)
            seconds += time.perf_counter() - began
        looks.append(look(pages, slub, end, int(f.counters[C_FAILED])))
        progress(end, total)
    counters = {name: int(f.counters[i]) for i, name in enumerate(COUNTERS)}
    return Outcome(pages, slub, counters, tuple(int(n) for n in f.failed), looks, seconds, f)
