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
from typing import Any

import numpy as np
import numpy.typing as npt

from mmtwin._jit import call, callback, carray, inline_routine, inner, kernel, maker, pointer, routine, slow
from mmtwin.gfp import ALLOC_NO_WATERMARKS, HIGHATOMIC, ISOLATE, MAX_NR_ZONES
from mmtwin.mm.buddy import free_list, free_one_page, get_pageblock_migratetype, is_free_block, isolate_free_page, page_zone, unreserve_highatomic_pageblock
from mmtwin.mm.handle import INT8, INT16, INT32, INT64, address_table
from mmtwin.mm.page_alloc import (
    EAGAIN,
    ENOMEM,
    alloc_pages,
    alloc_pages_bulk,
    free_pages_prepare,
    get_page_from_freelist,
    get_page_from_freelist_cold,
    highest_zone,
    mark_allocated,
)  # fmt: skip
from mmtwin.mm.pcp import add_to_pcp_list, free_pcppages_bulk, pcp_allowed_order, pcp_surplus, pindex_of_free
from mmtwin.mm.slab_tables import END, KMEM_CACHE, KMEM_CACHE_CPU, SLAB, SLAB_DISCARDED, SLUB_CONFIG, Slub, copy_slub, reserve
from mmtwin.mm.slub import (
    DEACTIVATE_TO_HEAD,
    DISCARD,
    GFP_NORETRY,
    PUT_CPU_PARTIAL,
    SLOT_BITS,
    SLOT_MASK,
    add_partial,
    build_detached_freelist,
    count_slab,
    deactivate_slab,
    discard_slab,
    draw,
    first_gfp,
    flush_slab,
    free_row,
    free_single,
    free_slowpath,
    fresh_freelist,
    get_partial_node,
    give_fast,
    has_cpu_slabs,
    load,
    object_at,
    open_slab,
    own_slab,
    pop,
    put_cpu_partial,
    refill,
    remove_partial,
    shrink_lists,
    slab_gfp,
    slot_class,
    take_cpu_partial,
    take_fast,
    take_partials,
    unfreeze_partials,
)  # fmt: skip
from mmtwin.mm.tables import (
    CONFIG,
    FREE_AREA,
    NR_ORDERS,
    PAGE,
    PAGE_ALLOC_COSTLY_ORDER,
    PCP,
    PG_ALLOCATED,
    PG_BUDDY,
    PG_LRU,
    PG_PCP,
    PG_SLAB,
    ZONE,
    ZONE_RECLAIM_ACTIVE,
    Pgdat,
    copy_pgdat,
)  # fmt: skip
from mmtwin.mm.vmstat import refresh_cpu_vm_stats, refresh_zone_stat_thresholds, set_pgdat_percpu_threshold
from mmtwin.mm.watermark import setup_per_zone_wmarks, zone_set_pageset_high_and_batch
from mmtwin.replay.requests import (
    BALANCE,
    CACHE_CREATE,
    CACHE_DESTROY,
    CACHE_FLUSH,
    CACHE_SHRINK,
    CPU_DEAD,
    DRAIN,
    FLAG_CONTENDED,
    FLAG_MEMALLOC,
    FLAG_REFUSED,
    FLAG_TAIL,
    FOLD,
    LRU_ADD,
    OBJECT_ALLOC,
    OBJECT_FREE,
    OBJECTS_ALLOC,
    OBJECTS_FREE,
    PAGES_ALLOC,
    PAGES_BULK,
    PAGES_FREE,
    PAGES_ISOLATE,
    PAGESET,
    RECLAIM_CLEAR,
    RECLAIM_SET,
    SLAB_RELEASE,
    STAT_THRESHOLDS,
    THRESHOLDS,
    UNBOOST,
    UNRESERVE,
    WMARKS,
    Requests,
)  # fmt: skip

SAMPLES = 64
"""Moments at which the machine is looked at."""
COUNTERS = (
    "page_requests", "page_failures", "new_failures", "new_successes", "page_frees", "bulk_pages", "reclaim_waits", "slab_requests", "slab_failures", "slab_frees",
    "slab_slow_paths", "slabs_made", "slabs_freed", "small_slabs", "page_list_drains", "isolations_missed", "skipped_frees", "moved_lru",
)  # fmt: skip
(
    C_PAGES, C_FAILED, C_NEW_FAILURES, C_NEW_SUCCESSES, C_FREES, C_BULK, C_WAITS, C_SLAB, C_SLAB_FAILED, C_SLAB_FREES, C_SLOW, C_MADE, C_FREED, C_SMALL, C_DRAINS,
    C_ISOLATION, C_SKIPPED, C_LRU,
) = range(len(COUNTERS))  # fmt: skip
GFP_MOVABLE = 0x100CCA
GONE = -1
"""In the tables of where things are: not there (not yet, no more, or refused)."""

ALLOC_SIGNATURE = "int64(int64, int64, int64, int64, int64)"
FREE_SIGNATURE = "int64(int64, int64, int64, int64)"


# One array of words holds all that the loop carries: the counters first, then what follows, then where the objects and the blocks are.
W_FAILED = 24
"""Requests refused, by order."""
P_USER, P_HANDLE, P_SLOTS = range(40, 43)
"""1: pages are the business of functions written by the user; the handle they get; slots of the largest slab."""
W_FIXED = 44
"""Settings that the recording's own changes must leave alone: min_free_kbytes, watermark_scale_factor, CPUs online."""
W_BLOCKS, W_IDS, W_SCRATCH = 48, 49, 50
"""Where those begin: first page frames of blocks; `Requests.ids`; room for the objects of one bulk request."""
W_STOP = 51
W_OBJECTS = 64
"""And the objects: slab and slot of each."""
SCRATCH = 1 << 12


PAGES, SLABS = len(Pgdat._fields), len(Slub._fields)


def address_of(pages: Pgdat, slubs: Slub, words: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Address and length of each table; its own address is the handle. Keep it, and the tables, as long as that is in use."""
    return np.concatenate([address_table(pages, slubs), np.array([(words.ctypes.data, len(words))], dtype=np.int64)])


# As `mm.handle.tables_at`, in parts: a routine that makes fewer arrays is compiled sooner.


@maker
def pages_at(h: int) -> Any:
    """The page allocator's tables behind a handle."""
    t = carray(pointer(h), (PAGES, 2), INT64)
    return Pgdat(
        carray(pointer(t[0, 0]), t[0, 1], PAGE),
        carray(pointer(t[1, 0]), t[1, 1], INT8),
        carray(pointer(t[2, 0]), t[2, 1], ZONE),
        carray(pointer(t[3, 0]), (MAX_NR_ZONES, MAX_NR_ZONES), INT64),
        carray(pointer(t[4, 0]), t[4, 1], FREE_AREA),
        carray(pointer(t[5, 0]), t[5, 1], PCP),
        carray(pointer(t[6, 0]), t[6, 1], CONFIG),
        carray(pointer(t[7, 0]), t[7, 1], INT64),
    )


@maker
def slabs_at(h: int) -> Any:
    """SLUB's tables behind a handle."""
    t = carray(pointer(h), (PAGES + SLABS, 2), INT64)
    return Slub(
        carray(pointer(t[8, 0]), t[8, 1], KMEM_CACHE),
        carray(pointer(t[9, 0]), t[9, 1], KMEM_CACHE_CPU),
        carray(pointer(t[10, 0]), t[10, 1], SLAB),
        carray(pointer(t[11, 0]), t[11, 1], INT16),
        carray(pointer(t[12, 0]), t[12, 1], INT32),
        carray(pointer(t[13, 0]), t[13, 1], INT64),
        carray(pointer(t[14, 0]), t[14, 1], INT64),
        carray(pointer(t[15, 0]), t[15, 1], SLUB_CONFIG),
    )


@maker
def words_at(h: int) -> Any:
    """The run's own words behind a handle."""
    t = carray(pointer(h), (PAGES + SLABS + 1, 2), INT64)
    return carray(pointer(t[16, 0]), t[16, 1], INT64)


# Pages. What takes and frees them is called through a pointer: compiled by itself (code that is linked in is optimised again at every level of calls, which
# would take minutes), and a policy of the user's can stand there instead.

CONTENDED, NO_WATERMARKS = 1, 2
"""What `page_alloc` is told besides: the per-CPU lists are locked; take from the reserves."""


def page_alloc(handle: int, cpu: int, order: int, gfp: int, flags: int) -> int:
    """The kernel's own allocator: a block, or a negative error."""
    b = pages_at(handle)
    if flags & NO_WATERMARKS:
        return get_page_from_freelist_cold(b, cpu, order, gfp, highest_zone(b, gfp), ALLOC_NO_WATERMARKS, flags & CONTENDED != 0)
    return alloc_pages(b, cpu, order, gfp, flags & CONTENDED != 0)


def page_free(handle: int, cpu: int, pfn: int, order: int) -> int:
    """The kernel's own way back for a block, which has been prepared: to its CPU's list, or to the buddy lists."""
    b = pages_at(handle)
    z = page_zone(b, pfn)
    if pcp_allowed_order(b, order) and int(b.page[pfn]["migratetype"]) != ISOLATE:
        add_to_pcp_list(b, z, cpu, pfn, order)
        surplus = pcp_surplus(b, z, cpu, order)
        if surplus:
            free_pcppages_bulk(b, z, cpu, cpu, surplus, pindex_of_free(b, pfn, order))
            return 1
    else:
        free_one_page_cold(b, pfn, z, cpu, order, int(b.page[pfn]["migratetype"]), False)
    return 0


free_one_page_cold = slow(free_one_page)
callbacks: dict[str, Any] = {}


def own_callbacks() -> tuple[Any, Any]:
    """`page_alloc` and `page_free`, compiled when first needed (and cached)."""
    if not callbacks:
        callbacks["alloc"], callbacks["free"] = callback(ALLOC_SIGNATURE, page_alloc), callback(FREE_SIGNATURE, page_free)
    return callbacks["alloc"], callbacks["free"]


@inline_routine
def get_pages(w: Any, alloc: Any, own: Any, cpu: int, order: int, gfp: int, contended: int, memalloc: bool) -> int:
    """A block, or a negative error. Where none is found and the kernel would reclaim, the reserves give one, if the request is one that it would go on trying for."""
    pfn: int = alloc(w[P_HANDLE], cpu, order, gfp, contended)
    if pfn == -EAGAIN or (pfn < 0 and memalloc):
        w[C_WAITS] += 1
        pfn = -ENOMEM
        if memalloc or (order <= PAGE_ALLOC_COSTLY_ORDER and not gfp & GFP_NORETRY):
            pfn = own(w[P_HANDLE], cpu, order, gfp, contended | NO_WATERMARKS)
    return pfn


@routine
def put_pages(h: int, free: Any, cpu: int, pfn: int, order: int) -> None:
    """A block goes back."""
    b = pages_at(h)
    w = words_at(h)
    free_pages_prepare(b, pfn, order)
    zone = b.zone[page_zone(b, pfn)]
    zone["pgfree"] = int(zone["pgfree"]) + (1 << order)
    w[C_DRAINS] += free(w[P_HANDLE], cpu, pfn, order)


@inline_routine
def pages_alloc(w: Any, alloc: Any, own: Any, op: Any) -> None:
    """A request for pages."""
    order = int(op["order"])
    flag = int(op["flag"])
    w[C_PAGES] += 1
    pfn = get_pages(w, alloc, own, int(op["cpu"]), order, int(op["gfp"]), CONTENDED if flag & FLAG_CONTENDED else 0, flag & FLAG_MEMALLOC != 0)
    if pfn < 0:
        w[C_FAILED] += 1
        w[W_FAILED + order] += 1
        w[C_NEW_FAILURES] += 0 if flag & FLAG_REFUSED else 1
        pfn = GONE
    elif flag & FLAG_REFUSED:
        w[C_NEW_SUCCESSES] += 1
    w[w[W_BLOCKS] + int(op["id"])] = pfn


@inline_routine
def pages_free(h: int, w: Any, free: Any, op: Any) -> None:
    """A block, or a part of one, is freed."""
    first = w[w[W_BLOCKS] + int(op["id"])]
    if first < 0:
        w[C_SKIPPED] += 1
        return
    w[C_FREES] += 1
    put_pages(h, free, int(op["cpu"]), first + int(op["arg2"]), int(op["order"]))


@routine
def lru_add(h: int, op: Any) -> None:
    """A page, with its tails if it is the head of a block, is put on an LRU list."""
    b = pages_at(h)
    w = words_at(h)
    first = w[w[W_BLOCKS] + int(op["id"])]
    if first < 0:
        return
    pfn = first + int(op["arg2"])
    flags = int(b.page[pfn]["flags"])
    size = 1 << int(b.page[pfn]["order"]) if flags & PG_ALLOCATED else 1
    w[C_LRU] += size
    for i in range(pfn, pfn + size):
        if not int(b.page[i]["flags"]) & (PG_BUDDY | PG_PCP):
            b.page[i]["flags"] = int(b.page[i]["flags"]) | PG_LRU


# What is rare: the loop stops for it, and the interpreter does it (there is nothing to compile then)


def rare(b: Pgdat, w: npt.NDArray[np.int64], alloc: Any, op: np.void) -> None:
    """Everything but the frequent requests."""
    kind, block = int(op["op"]), int(w[W_BLOCKS]) + int(op["id"])
    if kind == PAGES_BULK:
        _pages_bulk(b, w, alloc, op, block)
    elif kind == PAGES_ISOLATE:
        w[block] = _isolate(b, w, op)
    elif kind == PAGES_FREE:  # to the tails of the buddy lists
        if w[block] >= 0:
            pfn, order = int(w[block]) + int(op["arg2"]), int(op["order"])
            w[C_FREES] += 1
            free_pages_prepare(b, pfn, order)
            z = page_zone(b, pfn)
            b.zone[z]["pgfree"] = int(b.zone[z]["pgfree"]) + (1 << order)
            free_one_page(b, pfn, z, int(op["cpu"]), order, int(b.page[pfn]["migratetype"]), True)
        else:
            w[C_SKIPPED] += 1
    else:
        setting(b, w, op, kind)


def _pages_bulk(b: Pgdat, w: npt.NDArray[np.int64], alloc: Any, op: np.void, block: int) -> None:
    """A bulk request for single pages."""
    cpu, gfp, count = int(op["cpu"]), int(op["gfp"]), int(op["arg"])
    pages = np.full(count, GONE, dtype=np.int64)
    got = 0 if w[P_USER] else max(0, alloc_pages_bulk(b, cpu, gfp, pages))
    for i in range(got, count):
        pages[i] = max(GONE, call(alloc, int(w[P_HANDLE]), cpu, 0, gfp, 0))
    w[block : block + count] = pages
    w[C_BULK] += count


def _isolate(b: Pgdat, w: npt.NDArray[np.int64], op: np.void) -> int:
    """Compaction takes a free block: the same one if it is free here, else any."""
    pfn, order, cpu = int(op["arg2"]), int(op["order"]), int(op["cpu"])
    if pfn + (1 << order) <= int(b.config[0]["nr_frames"]) and is_free_block(b, pfn, order):
        isolate_free_page(b, pfn, page_zone(b, pfn), cpu, order)
    else:
        w[C_ISOLATION] += 1
        pfn = get_page_from_freelist(b, cpu, order, GFP_MOVABLE, highest_zone(b, GFP_MOVABLE), ALLOC_NO_WATERMARKS, False)
    for i in range(pfn, pfn + (1 << order) if pfn >= 0 else pfn):
        mark_allocated(b, i, 0)
    return max(pfn, GONE)


def unreserve(b: Pgdat, migratetype: int) -> None:
    """Reclaim gives a reserved pageblock back: the first that has a free block, of the lowest order (``unreserve_highatomic_pageblock``)."""
    for z in range(len(b.zone) - 1, -1, -1):
        for order in range(NR_ORDERS):
            head = free_list(b, z, order, HIGHATOMIC)
            pfn = int(b.page[head]["next"])
            if pfn != head and get_pageblock_migratetype(b, pfn) == HIGHATOMIC:
                unreserve_highatomic_pageblock(b, pfn, z, migratetype)
                return


def setting(b: Pgdat, w: npt.NDArray[np.int64], op: np.void, kind: int) -> None:
    """What somebody sets, and what reclaim says."""
    arg, z, cpus = int(op["arg"]), int(op["migratetype"]), int(b.config[0]["nr_cpus"])
    if kind == FOLD:
        refresh_cpu_vm_stats(b, arg if arg < cpus else 0)
    elif kind == DRAIN:
        cpu = arg if arg < cpus else 0
        pcp = b.pcp[z * cpus + cpu]
        free_pcppages_bulk(b, z, cpu, int(op["cpu"]), int(pcp["batch"]) << int(b.config[0]["pcp_batch_scale_max"]), 0)
    elif kind == WMARKS:
        if not w[W_FIXED]:
            b.config[0]["min_free_kbytes"] = arg
        if not w[W_FIXED + 1]:
            b.config[0]["watermark_scale_factor"] = int(op["arg2"])
        b.config[0]["percpu_pagelist_high_fraction"] = int(op["gfp"])
        setup_per_zone_wmarks(b)
    elif kind == STAT_THRESHOLDS:
        if not w[W_FIXED + 2]:
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


@routine
def release(h: int, free: Any, row: int, cpu: int) -> None:
    """A discarded slab's pages go back. (Those that wait for RCU too: the free run knows no grace periods.)"""
    s = slabs_at(h)
    w = words_at(h)
    pfn, order = int(s.slab[row]["pfn"]), int(s.slab[row]["order"])
    free_row(s, row)
    w[C_FREED] += 1
    put_pages(h, free, cpu, pfn, order)


@routine
def discard_chain(h: int, free: Any, first: int, cpu: int) -> None:
    """Discards a chain of slabs."""
    s = slabs_at(h)
    row = first
    while row != END:
        following = int(s.slab[row]["next"])
        discard_slab(s, row)
        release(h, free, row, cpu)
        row = following


@routine
def new_slab(h: int, alloc: Any, own: Any, c: int, cpu: int, gfp: int) -> int:
    """``allocate_slab``: the row, or a negative error."""
    b = pages_at(h)
    s = slabs_at(h)
    w = words_at(h)
    cache = s.cache[c]
    order = int(cache["order"])
    least = int(cache["min_order"])
    pfn = -ENOMEM
    if order > least:
        pfn = get_pages(w, alloc, own, cpu, order, first_gfp(cache, gfp), 0, False)
        w[C_SMALL] += 1 if pfn < 0 else 0
    if pfn < 0:
        order = least
        flags = slab_gfp(cache, gfp)
        pfn = get_pages(w, alloc, own, cpu, order, flags, 0, flags & 0x20000 != 0)
        if pfn < 0:
            return pfn
    row = own_slab(b, s, c, pfn, order)
    fresh_freelist(s, row, draw(s, int(cache["objects"])) if int(cache["random_seq"]) >= 0 else 0)
    w[C_MADE] += 1
    return row


@routine
def take_single(h: int, alloc: Any, own: Any, c: int, cpu: int, gfp: int) -> int:
    """``alloc_single_from_partial``, else ``alloc_single_from_new_slab`` (debug caches): an object, or a negative error."""
    s = slabs_at(h)
    row = int(s.slab[c]["next"])
    fresh = row == c
    if fresh:
        row = new_slab(h, alloc, own, c, cpu, gfp)
        if row < 0:
            return row
        count_slab(s, row)
    slab = s.slab[row]
    slot = int(slab["freelist"])
    slab["freelist"] = pop(s, row, slot)
    slab["inuse"] = int(slab["inuse"]) + 1
    if int(slab["inuse"]) == int(slab["objects"]):
        if not fresh:
            remove_partial(s, row)
    elif fresh:
        add_partial(s, row, DEACTIVATE_TO_HEAD)
    return row << SLOT_BITS | slot


@routine
def object_alloc_slow(h: int, alloc: Any, own: Any, c: int, cpu: int, gfp: int) -> int:
    """``___slab_alloc``."""
    s = slabs_at(h)
    w = words_at(h)
    w[C_SLOW] += 1
    if not has_cpu_slabs(s.cache[c]):
        return take_single(h, alloc, own, c, cpu, gfp)
    while True:
        packed = refill(s, c, cpu)
        if packed != END:
            return packed
        if not take_cpu_partial(s, c, cpu):
            break
    packed = get_partial_node(s, c, cpu)
    if packed == END:
        row = new_slab(h, alloc, own, c, cpu, gfp)
        if row < 0:
            return row
        packed = open_slab(s, row)
    return load(s, c, cpu, packed)


@inline_routine
def object_alloc(h: int, s: Any, w: Any, alloc: Any, own: Any, c: int, cpu: int, gfp: int) -> int:
    """``slab_alloc_node``."""
    packed = take_fast(s, c, cpu)
    if packed == END:
        packed = object_alloc_slow(h, alloc, own, c, cpu, gfp)
    w[C_SLAB] += 1
    if packed < 0:
        w[C_SLAB_FAILED] += 1
    return packed


@routine
def objects_free_slow(h: int, free: Any, c: int, cpu: int, row: int, head: int, tail: int, count: int) -> None:
    """``__slab_free``."""
    s = slabs_at(h)
    w = words_at(h)
    w[C_SLOW] += 1
    if not has_cpu_slabs(s.cache[c]):
        left = free_single(s, row, head, tail, count)
    else:
        left = free_slowpath(s, row, head, tail, count)
    if left == PUT_CPU_PARTIAL:
        first = put_cpu_partial(s, c, cpu, row, True)
        if first != END:
            discard_chain(h, free, unfreeze_partials(s, c, first), cpu)
    elif left == DISCARD:
        discard_slab(s, row)
        release(h, free, row, cpu)


@inline_routine
def objects_free(h: int, s: Any, w: Any, free: Any, cpu: int, row: int, head: int, tail: int, count: int) -> None:
    """``do_slab_free``."""
    c = int(s.slab[row]["cache"])
    w[C_SLAB_FREES] += count
    if not give_fast(s, c, cpu, row, head, tail):
        objects_free_slow(h, free, c, cpu, row, head, tail, count)


@routine
def bulk_alloc(h: int, alloc: Any, own: Any, op: Any) -> None:
    """``kmem_cache_alloc_bulk``."""
    s = slabs_at(h)
    w = words_at(h)
    first = int(op["id"])
    for i in range(first, first + int(op["arg2"])):
        w[W_OBJECTS + w[w[W_IDS] + i]] = max(object_alloc(h, s, w, alloc, own, int(op["arg"]), int(op["cpu"]), int(op["gfp"])), GONE)


@routine
def bulk_free(h: int, free: Any, op: Any) -> None:
    """``kmem_cache_free_bulk``, ``kfree_bulk``."""
    s = slabs_at(h)
    w = words_at(h)
    first = int(op["id"])
    size = 0
    for i in range(first, first + int(op["arg2"])):
        packed = w[W_OBJECTS + w[w[W_IDS] + i]]
        if packed < 0:
            w[C_SKIPPED] += 1
        elif size < SCRATCH:
            w[w[W_SCRATCH] + size] = packed
            size += 1
        w[W_OBJECTS + w[w[W_IDS] + i]] = GONE
    while size:
        row = w[w[W_SCRATCH] + size - 1] >> SLOT_BITS
        size, head, tail, count = build_detached_freelist(s, w[w[W_SCRATCH] : w[W_SCRATCH] + SCRATCH], size)
        objects_free(h, s, w, free, int(op["cpu"]), row, head, tail, count)


@routine
def flush_cpu(h: int, free: Any, c: int, cpu: int) -> None:
    """``flush_cpu_slab``."""
    s = slabs_at(h)
    packed = flush_slab(s, c, cpu)
    if packed != END and deactivate_slab(s, packed):
        discard_slab(s, packed >> SLOT_BITS)
        release(h, free, packed >> SLOT_BITS, cpu)
    first = take_partials(s, c, cpu)
    if first != END:
        discard_chain(h, free, unfreeze_partials(s, c, first), cpu)


@routine
def cache_request(h: int, free: Any, op: Any, kind: int) -> None:
    """What is asked of a whole cache."""
    s = slabs_at(h)
    c = int(op["arg"])
    cpu = int(op["cpu"])
    if kind == CACHE_CREATE:
        s.cache[c]["live"] = 1
        return
    if kind == CACHE_FLUSH:
        flush_cpu(h, free, c, cpu)
        return
    if kind == CPU_DEAD:
        if c < int(s.config[0]["nr_cpus"]):
            for other in range(int(s.config[0]["caches"])):
                flush_cpu(h, free, other, c)
        return
    for other in range(int(s.config[0]["nr_cpus"])):
        flush_cpu(h, free, c, other)
    if kind == CACHE_SHRINK:
        discard_chain(h, free, shrink_lists(s, c), cpu)
        return
    row = int(s.slab[c]["next"])
    while row != c:
        following = int(s.slab[row]["next"])
        if int(s.slab[row]["inuse"]) == 0:
            remove_partial(s, row)
            discard_slab(s, row)
            release(h, free, row, cpu)
        row = following
    s.cache[c]["live"] = 0


@routine
def release_old(h: int, free: Any, op: Any) -> None:
    """A grace period that began before the recording is over: the slab's pages go."""
    b = pages_at(h)
    s = slabs_at(h)
    pfn = int(op["arg2"])
    if pfn < int(b.config[0]["nr_frames"]) and int(b.page[pfn]["flags"]) & PG_SLAB:
        row = int(b.page[pfn]["next"])
        if int(s.slab[row]["state"]) == SLAB_DISCARDED and int(s.slab[row]["pfn"]) == pfn:
            release(h, free, row, int(op["cpu"]))


@inner
def room(s: Any, w: Any, slabs: int) -> bool:
    """Whether the tables have room for so many more slabs."""
    config = s.config[0]
    return int(config["slabs"]) + slabs < len(s.slab) and int(config["slots"]) + slabs * w[P_SLOTS] < len(s.slot)


@kernel
def run_requests(h: int, requests: npt.NDArray[np.void], alloc: Any, own: Any, free: Any, start: int) -> int:
    """Answers requests from `start` on; returns how many are done: fewer than all when the slab tables have no more room, or
    (W_STOP is 1) the next one is rare."""
    s = slabs_at(h)
    w = words_at(h)
    for i in range(start, len(requests)):
        op = requests[i]
        kind = int(op["op"])
        if kind == OBJECT_ALLOC:
            if not room(s, w, 1):
                return i
            c = int(op["arg"])
            packed = object_alloc(h, s, w, alloc, own, c, int(op["cpu"]), int(op["gfp"]))
            w[W_OBJECTS + int(op["id"])] = max(packed, GONE)
            if int(op["flag"]) & FLAG_REFUSED and packed >= 0:
                objects_free(h, s, w, free, int(op["cpu"]), packed >> SLOT_BITS, packed & SLOT_MASK, packed & SLOT_MASK, 1)
                w[W_OBJECTS + int(op["id"])] = GONE
        elif kind == OBJECT_FREE:
            packed = w[W_OBJECTS + int(op["id"])]
            if packed >= 0:
                objects_free(h, s, w, free, int(op["cpu"]), packed >> SLOT_BITS, packed & SLOT_MASK, packed & SLOT_MASK, 1)
                w[W_OBJECTS + int(op["id"])] = GONE
            else:
                w[C_SKIPPED] += 1
        elif kind == PAGES_ALLOC:
            pages_alloc(w, alloc, own, op)
        elif kind == PAGES_FREE:
            if int(op["flag"]) & FLAG_TAIL:
                w[W_STOP] = 1
                return i
            pages_free(h, w, free, op)
        elif kind == LRU_ADD:
            lru_add(h, op)
        elif kind == OBJECTS_ALLOC:
            if not room(s, w, int(op["arg2"])):
                return i
            bulk_alloc(h, alloc, own, op)
        elif kind == OBJECTS_FREE:
            bulk_free(h, free, op)
        elif kind == SLAB_RELEASE:
            release_old(h, free, op)
        elif kind == CACHE_CREATE or kind == CACHE_DESTROY or kind == CACHE_FLUSH or kind == CACHE_SHRINK or kind == CPU_DEAD:
            cache_request(h, free, op, kind)
        elif kind:
            w[W_STOP] = 1
            return i
    return len(requests)


@dataclass(frozen=True)
class Start:
    """Where a free run begins.

    :param objects: where each object is that is older than the recording: number, and slab and slot in one (`mmtwin.mm.slub`), END if it has no place.
    :param blocks: number and first page frame of each such block.
    :param table: the requests, perhaps on other CPUs and from other caches than recorded.
    :param fixed: settings that the recording's own changes leave alone (see W_FIXED).
    """

    pages: Pgdat
    slub: Slub
    table: npt.NDArray[np.void]
    objects: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]
    fixed: tuple[int, int, int] = (0, 0, 0)


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
    :param blocks: first page frame of each block, by its number; GONE where the request was refused.
    """

    pages: Pgdat
    slub: Slub
    counters: dict[str, int]
    failed: tuple[int, ...]
    looks: list[Look]
    seconds: float
    blocks: npt.NDArray[np.int64] = field(repr=False)


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
    blocks, ids = W_OBJECTS + requests.objects, W_OBJECTS + requests.objects + requests.blocks
    w = np.full(ids + len(requests.ids) + SCRATCH, GONE, dtype=np.int64)
    w[:W_OBJECTS] = 0
    w[W_BLOCKS], w[W_IDS], w[W_SCRATCH] = blocks, ids, ids + len(requests.ids)
    w[ids : ids + len(requests.ids)] = requests.ids
    w[W_OBJECTS + start.objects[:, 0]], w[blocks + start.blocks[:, 0]] = start.objects[:, 1], start.blocks[:, 1]
    assert (start.blocks[:, 1] < int(pages.config[0]["nr_frames"])).all()
    most = 1 << slot_class(int(slub.cache["objects"].max(initial=1)))
    w[P_USER], w[P_SLOTS] = policy is not None, most
    w[W_FIXED : W_FIXED + 3] = start.fixed
    own, own_free = own_callbacks()
    alloc, free = (own, own_free) if policy is None else (policy.alloc, policy.free)
    pages.config[0]["extfrag"] = 0
    looks, total, seconds = [look(pages, slub, 0, 0)], len(table), 0.0
    for end in np.unique(np.linspace(0, total, SAMPLES + 1, dtype=np.int64)[1:]).tolist():
        at = looks[-1].request
        while at < end:
            slub = reserve(slub, 1 << 10, (1 << 10) * most)
            addresses = address_of(pages, slub, w)
            handle = w[P_HANDLE] = addresses.ctypes.data
            began = time.perf_counter()
            at = run_requests(handle, table[:end], alloc, own, free, at)
            if w[W_STOP]:
                w[W_STOP] = 0
                rare(pages, w, alloc, table[at])
                at += 1
            seconds += time.perf_counter() - began
        looks.append(look(pages, slub, end, int(w[C_FAILED])))
        progress(end, total)
    counters = {name: int(w[i]) for i, name in enumerate(COUNTERS)}
    return Outcome(pages, slub, counters, tuple(int(n) for n in w[W_FAILED : W_FAILED + NR_ORDERS]), looks, seconds, w[blocks:ids])
