"""Pages in a free run: requests for blocks are answered by the kernel's page allocator, or by the user's; and the words that the loops carry.

What takes and frees pages is called through a pointer: so it is compiled by itself, and a policy of the user's can stand there instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmtwin._jit import call, callback, carray, inline_routine, maker, pointer, routine, slow
from mmtwin.gfp import ALLOC_NO_WATERMARKS, HIGHATOMIC, ISOLATE
from mmtwin.mm.buddy import free_list, free_one_page, get_pageblock_migratetype, is_free_block, isolate_free_page, page_zone, unreserve_highatomic_pageblock
from mmtwin.mm.handle import INT64, NR_TABLES, address_table, pages_at
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
from mmtwin.mm.slab_tables import Slub
from mmtwin.mm.slub import (
    GFP_NORETRY,
)  # fmt: skip
from mmtwin.mm.tables import (
    NR_ORDERS,
    PAGE_ALLOC_COSTLY_ORDER,
    PG_ALLOCATED,
    PG_BUDDY,
    PG_LRU,
    PG_PCP,
    ZONE_RECLAIM_ACTIVE,
    Pgdat,
)  # fmt: skip
from mmtwin.mm.vmstat import refresh_cpu_vm_stats, refresh_zone_stat_thresholds, set_pgdat_percpu_threshold
from mmtwin.mm.watermark import setup_per_zone_wmarks, zone_set_pageset_high_and_batch
from mmtwin.replay.requests import (
    BY_KSWAPD,
    DRAIN,
    FLAG_CONTENDED,
    FLAG_MEMALLOC,
    FLAG_REFUSED,
    FOLD,
    PAGES_BULK,
    PAGES_FREE,
    PAGES_ISOLATE,
    PAGESET,
    RECLAIM_CLEAR,
    RECLAIM_SET,
    STAT_THRESHOLDS,
    THRESHOLDS,
    UNBOOST,
    UNRESERVE,
    WMARKS,
)  # fmt: skip

COUNTERS = (
    "page_requests", "page_failures", "new_failures", "new_successes", "page_frees", "bulk_pages", "reclaim_waits", "slab_requests", "slab_failures", "slab_frees",
    "slab_slow_paths", "slabs_made", "slabs_freed", "small_slabs", "page_list_drains", "isolations_missed", "skipped_frees", "moved_lru",
)  # fmt: skip
(
    C_PAGES, C_FAILED, C_NEW_FAILURES, C_NEW_SUCCESSES, C_FREES, C_BULK, C_WAITS, C_SLAB, C_SLAB_FAILED, C_SLAB_FREES, C_SLOW, C_MADE, C_FREED, C_SMALL, C_DRAINS,
    C_ISOLATION, C_SKIPPED, C_LRU,
) = range(len(COUNTERS))  # fmt: skip
GFP_MOVABLE = 0x100CCA
GFP_RETRY_MAYFAIL = 0x4000
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
"""Why the loop stops: one of the two below."""
STOP_RARE, STOP_KSWAPD = 1, 2
"""The next request is the interpreter's; kswapd is due before the next request."""
W_QUEUE, W_KSWAPD, W_TASK_SKIPS, W_PROGRESS, W_TOP, W_OBJECTS_STAY = 52, 53, 54, 55, 56, 57
"""Where the marks of what reclaim has freed begin, by number; kswapd, see below; 1: what a task's recorded reclaim freed now stays; pages that kswapd's recorded
run has freed; and its highest zone; 1: what shrinkers freed now stays."""
KSWAPD_RUNS, KSWAPD_COMES, KSWAPD_SKIPS = 1, 2, 4
"""kswapd runs as recorded; was woken in the recording and has not run; ran in the recording, but the twin has no need of it."""
W_OBJECTS = 64
"""And the objects: slab and slot of each."""
SCRATCH = 1 << 12


def address_of(pages: Pgdat, slubs: Slub, words: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Address and length of each table; its own address is the handle. Keep it, and the tables, as long as that is in use."""
    return np.concatenate([address_table(pages, slubs), np.array([(words.ctypes.data, len(words))], dtype=np.int64)])


@maker
def words_at(h: int) -> Any:
    """The run's own words behind a handle."""
    t = carray(pointer(h), (NR_TABLES + 1, 2), INT64)
    return carray(pointer(t[NR_TABLES, 0]), t[NR_TABLES, 1], INT64)


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
def goes_on(order: int, gfp: int) -> bool:
    """Whether a request without success goes on trying (__alloc_pages_slowpath): the costly ones and those that say so give up."""
    return order <= PAGE_ALLOC_COSTLY_ORDER and not gfp & (GFP_NORETRY | GFP_RETRY_MAYFAIL)


@inline_routine
def get_pages(w: Any, alloc: Any, own: Any, cpu: int, order: int, gfp: int, contended: int, memalloc: bool) -> int:
    """A block, or a negative error. Where none is found and the kernel would reclaim, the reserves give one, if the request is one that it would go on trying for."""
    pfn: int = alloc(w[P_HANDLE], cpu, order, gfp, contended)
    if pfn == -EAGAIN or (pfn < 0 and memalloc):
        w[C_WAITS] += 1
        pfn = -ENOMEM
        if memalloc or goes_on(order, gfp):
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
def pages_answered(w: Any, op: Any, pfn: int) -> None:
    """A request for pages has got a block, or (a negative number) nothing."""
    flag = int(op["flag"])
    w[C_PAGES] += 1
    if pfn < 0:
        w[C_FAILED] += 1
        w[W_FAILED + int(op["order"])] += 1
        w[C_NEW_FAILURES] += 0 if flag & FLAG_REFUSED else 1
        pfn = GONE
    elif flag & FLAG_REFUSED:
        w[C_NEW_SUCCESSES] += 1
    w[w[W_BLOCKS] + int(op["id"])] = pfn


@inline_routine
def pages_alloc(w: Any, alloc: Any, op: Any) -> bool:
    """A request for pages; False: it would wait for reclaim, and is the interpreter's (`free_run_reclaim`)."""
    flag = int(op["flag"])
    pfn: int = alloc(w[P_HANDLE], int(op["cpu"]), int(op["order"]), int(op["gfp"]), CONTENDED if flag & FLAG_CONTENDED else 0)
    if pfn == -EAGAIN or (pfn < 0 and flag & FLAG_MEMALLOC):
        w[W_STOP] = STOP_RARE
        return False
    pages_answered(w, op, pfn)
    return True


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
def pages_reclaim(h: int, free: Any, op: Any) -> None:
    """A block that reclaim freed in the recording: not if it has gone before, nor while the reclaim that freed it has no need here."""
    w = words_at(h)
    mark = w[W_QUEUE] + int(op["arg"])
    if w[mark] or (w[W_KSWAPD] & KSWAPD_SKIPS if int(op["migratetype"]) == BY_KSWAPD else w[W_TASK_SKIPS]):
        return
    w[mark] = 1
    if w[w[W_BLOCKS] + int(op["id"])] >= 0:
        w[W_PROGRESS] += 1 << int(op["order"])
        pages_at(h).config[0]["kswapd_failures"] = 0
    pages_free(h, w, free, op)


@inline_routine
def kswapd_is_due(b: Any, w: Any) -> bool:
    """Whether kswapd was woken here and neither runs nor is about to, as recorded."""
    if int(b.config[0]["kswapd_pending"]) and not w[W_KSWAPD] & (KSWAPD_RUNS | KSWAPD_COMES):
        w[W_STOP] = STOP_KSWAPD
        return True
    return False


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
    elif kind == RECLAIM_SET:
        if not w[W_KSWAPD] & KSWAPD_SKIPS:
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
