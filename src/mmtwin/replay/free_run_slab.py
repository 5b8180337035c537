"""The loop of a free run whose objects come from the classic SLAB (`mmtwin.mm.slab`, 6.1) in place of SLUB; pages come from the same page allocator.

As in `mmtwin.replay.free_run`, what takes and frees pages is called through a pointer: SLAB's own requests are therefore put together anew here, of the
sections of ``mm/slab.c``: cache_alloc_refill, cache_grow_begin, cache_grow_end, fallback_alloc, cache_flusharray, slabs_destroy, cache_reap, kmem_cache_shrink.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmtwin._jit import kernel, routine
from mmtwin.mm.handle import pages_at
from mmtwin.mm.page_alloc import ENOMEM
from mmtwin.mm.slab import (
    GFP_SLAB,
    GFP_THISNODE,
    cpu_array,
    drain_array_locked,
    drain_one,
    first_gfp,
    flush,
    grow_begin,
    mark_slab,
    put,
    reap_slabs,
    refill,
    release_row,
    shared_array,
    slab_of,
    take,
    take_new,
)  # fmt: skip
from mmtwin.mm.slab_classic_geometry import OFF_SLAB
from mmtwin.mm.slab_classic_tables import END
from mmtwin.replay.free_run_pages import (
    C_FREED,
    C_MADE,
    C_SKIPPED,
    C_SLAB,
    C_SLAB_FAILED,
    C_SLAB_FREES,
    C_SLOW,
    GONE,
    P_SLOTS,
    STOP_RARE,
    W_IDS,
    W_OBJECTS,
    W_OBJECTS_STAY,
    W_STOP,
    get_pages,
    kswapd_is_due,
    lru_add,
    pages_alloc,
    pages_free,
    pages_reclaim,
    put_pages,
    words_at,
)
from mmtwin.replay.requests import (
    CACHE_CREATE,
    CACHE_DESTROY,
    CACHE_FLUSH,
    CACHE_SHRINK,
    CPU_DEAD,
    FLAG_REFUSED,
    FLAG_TAIL,
    LRU_ADD,
    OBJECT_ALLOC,
    OBJECT_FREE,
    OBJECT_RECLAIM,
    OBJECTS_ALLOC,
    OBJECTS_FREE,
    PAGES_ALLOC,
    PAGES_FREE,
    PAGES_RECLAIM,
    SLAB_RELEASE,
)  # fmt: skip

CACHE_REAP = 100
"""A kind of request that only SLAB has: a CPU's periodic pass over all caches (``cache_reap``); `arg` is the time in jiffies."""
GFP_MEMALLOC = 0x20000


@routine
def destroy(h: int, s: Any, free: Any, chain: int, cpu: int) -> None:
    """``slabs_destroy``: the pages of a chain of slabs, and management data off the slab. (Those that wait for RCU too: the free run knows no grace periods.)"""
    w = words_at(h)
    while chain != END:
        slab = s.slab[chain]
        following = int(slab["next"])
        pfn, order, management = int(slab["pfn"]), int(slab["order"]), int(slab["management"])
        release_row(s, chain)
        w[C_FREED] += 1
        put_pages(h, free, cpu, pfn, order)
        if management != END:
            give_plain(h, s, free, management, cpu)
        chain = following


@routine
def destroy_plain(h: int, s: Any, free: Any, chain: int, cpu: int) -> None:
    """As `destroy`, of a cache whose management data is not off the slab."""
    w = words_at(h)
    while chain != END:
        following = int(s.slab[chain]["next"])
        pfn, order = int(s.slab[chain]["pfn"]), int(s.slab[chain]["order"])
        release_row(s, chain)
        w[C_FREED] += 1
        put_pages(h, free, cpu, pfn, order)
        chain = following


@routine
def give_plain(h: int, s: Any, free: Any, address: int, cpu: int) -> None:
    """Management data goes back to its cache."""
    c = int(s.slab[slab_of(s, address)]["cache"])
    ac = cpu_array(s, c, cpu)
    if int(s.array[ac]["avail"]) >= int(s.array[ac]["limit"]):
        destroy_plain(h, s, free, flush(s, c, ac), cpu)
    put(s, ac, address)


@routine
def slab_block(h: int, s: Any, alloc: Any, own: Any, c: int, cpu: int, gfp: int) -> int:
    """``cache_grow_begin``'s pages: first this node's without reclaim, then with the request's own flags (``fallback_alloc``)."""
    w = words_at(h)
    order, more = int(s.cache[c]["order"]), int(s.cache[c]["allocflags"])
    pfn = -ENOMEM
    if int(s.config[0]["numa"]) != 0:
        pfn = get_pages(w, alloc, own, cpu, order, first_gfp(s, gfp) & GFP_SLAB | more, 0, False)
    if pfn < 0 and gfp & GFP_THISNODE == 0:
        pfn = get_pages(w, alloc, own, cpu, order, gfp & GFP_SLAB | more, 0, gfp & GFP_MEMALLOC != 0)
    return pfn


@routine
def slab_with(h: int, s: Any, c: int, pfn: int) -> int:
    """A new slab of these pages, on no list yet."""
    b = pages_at(h)
    w = words_at(h)
    row = grow_begin(s, c, pfn)
    mark_slab(b, row, pfn, int(s.cache[c]["order"]))
    w[C_MADE] += 1
    return row


@routine
def take_plain(h: int, s: Any, alloc: Any, own: Any, c: int, cpu: int, gfp: int) -> int:
    """An object of a cache whose management data is not off the slab, or a negative error."""
    ac = cpu_array(s, c, cpu)
    address = take(s, ac)
    if address != END:
        return address
    left = refill(s, c, cpu)
    address = take(s, ac)
    if address != END:
        return address
    pfn = slab_block(h, s, alloc, own, c, cpu, gfp)
    if pfn < 0:
        return pfn
    return take_new(s, c, cpu, slab_with(h, s, c, pfn), left)


@routine
def take_slow(h: int, s: Any, alloc: Any, own: Any, free: Any, c: int, cpu: int, gfp: int) -> int:
    """``cache_alloc_refill``: an object, or a negative error."""
    w = words_at(h)
    w[C_SLOW] += 1
    if int(s.cache[c]["management"]) != OFF_SLAB:
        return take_plain(h, s, alloc, own, c, cpu, gfp)
    left = refill(s, c, cpu)
    address = take(s, cpu_array(s, c, cpu))
    if address != END:
        return address
    pfn = slab_block(h, s, alloc, own, c, cpu, gfp)
    if pfn < 0:
        return pfn
    management = take_plain(h, s, alloc, own, int(s.cache[c]["management_cache"]), cpu, gfp)
    if management < 0:
        put_pages(h, free, cpu, pfn, int(s.cache[c]["order"]))
        return management
    row = slab_with(h, s, c, pfn)
    s.slab[row]["management"] = management
    return take_new(s, c, cpu, row, left)


@routine
def take_object(h: int, s: Any, alloc: Any, own: Any, free: Any, c: int, cpu: int, gfp: int) -> int:
    """``kmem_cache_alloc``: the object's physical address, or GONE."""
    w = words_at(h)
    w[C_SLAB] += 1
    address = take(s, cpu_array(s, c, cpu))
    if address == END:
        address = take_slow(h, s, alloc, own, free, c, cpu, gfp)
    if address < 0:
        w[C_SLAB_FAILED] += 1
        return GONE
    return address


@routine
def give_object(h: int, s: Any, free: Any, number: int, cpu: int) -> None:
    """``kmem_cache_free`` of the object of this number."""
    w = words_at(h)
    address = w[W_OBJECTS + number]
    if address < 0:
        w[C_SKIPPED] += 1
        return
    w[C_SLAB_FREES] += 1
    w[W_OBJECTS + number] = GONE
    c = int(s.slab[slab_of(s, address)]["cache"])
    ac = cpu_array(s, c, cpu)
    if int(s.array[ac]["avail"]) >= int(s.array[ac]["limit"]):
        w[C_SLOW] += 1
        destroy(h, s, free, flush(s, c, ac), cpu)
    put(s, ac, address)


@routine
def drain_free(h: int, s: Any, free: Any, c: int, most: int, cpu: int) -> None:
    """``drain_freelist``."""
    for _ in range(most):
        row = drain_one(s, c)
        if row == END:
            return
        destroy(h, s, free, row, cpu)


@routine
def drain(h: int, s: Any, free: Any, c: int, ac: int, everything: bool, cpu: int) -> None:
    """``drain_array``: an array that was used since the last pass only loses its mark, unless everything is to go."""
    if int(s.array[ac]["touched"]) and not everything:
        s.array[ac]["touched"] = 0
    elif int(s.array[ac]["avail"]):
        destroy(h, s, free, drain_array_locked(s, c, ac, everything), cpu)


@routine
def reap(h: int, s: Any, free: Any, cpu: int, jiffies: int) -> None:
    """``cache_reap``."""
    for c in range(int(s.config[0]["caches"]) - 1, -1, -1):
        cache = s.cache[c]
        if int(cache["live"]) == 0:
            continue
        drain(h, s, free, c, cpu_array(s, c, cpu), False, cpu)
        if int(cache["next_reap"]) > jiffies:
            continue
        cache["next_reap"] = jiffies + 4 * int(s.config[0]["hz"])
        drain(h, s, free, c, shared_array(s, c), False, cpu)
        if int(cache["free_touched"]):
            cache["free_touched"] = 0
        else:
            drain_free(h, s, free, c, reap_slabs(s, c), cpu)


@routine
def shrink(h: int, s: Any, free: Any, c: int, cpu: int) -> None:
    """``kmem_cache_shrink``."""
    for other in range(int(s.config[0]["nr_cpus"])):
        drain(h, s, free, c, cpu_array(s, c, other), True, cpu)
    drain(h, s, free, c, shared_array(s, c), True, cpu)
    drain_free(h, s, free, c, 1 << 30, cpu)


@routine
def cache_request(h: int, s: Any, free: Any, op: Any, kind: int) -> None:
    """What is asked of whole caches."""
    cpu, c = int(op["cpu"]), int(op["arg"])
    if kind == CACHE_REAP:
        reap(h, s, free, cpu, c)
    elif kind == CACHE_CREATE:
        s.cache[c]["live"] = 1
    elif kind in (CACHE_SHRINK, CACHE_DESTROY):
        shrink(h, s, free, c, cpu)
        s.cache[c]["live"] = 1 if kind == CACHE_SHRINK else 0


@routine
def has_room(s: Any, w: Any, slabs: int) -> bool:
    """Whether the tables have room for so many more slabs, each with one of management data."""
    config = s.config[0]
    return int(config["slabs"]) + 2 * slabs < len(s.slab) and int(config["indices"]) + 2 * slabs * w[P_SLOTS] < len(s.indices)


@kernel
def run_classic(h: int, s: Any, requests: npt.NDArray[np.void], alloc: Any, own: Any, free: Any, start: int) -> int:
    """`mmtwin.replay.free_run.run_requests` with SLAB; objects are physical addresses. Returns how many requests are done, as that one."""
    b = pages_at(h)
    w = words_at(h)
    for i in range(start, len(requests)):
        op = requests[i]
        kind = int(op["op"])
        cpu = int(op["cpu"])
        if kind in (OBJECT_ALLOC, OBJECTS_ALLOC):
            count = 1 if kind == OBJECT_ALLOC else int(op["arg2"])
            first = int(op["id"])
            if not has_room(s, w, count):
                return i
            for k in range(first, first + count):
                number = k if kind == OBJECT_ALLOC else w[w[W_IDS] + k]
                w[W_OBJECTS + number] = take_object(h, s, alloc, own, free, int(op["arg"]), cpu, int(op["gfp"]))
                if kind == OBJECT_ALLOC and int(op["flag"]) & FLAG_REFUSED and w[W_OBJECTS + number] >= 0:
                    give_object(h, s, free, number, cpu)
        elif kind == OBJECT_FREE or (kind == OBJECT_RECLAIM and not w[W_OBJECTS_STAY]):
            give_object(h, s, free, int(op["id"]), cpu)
        elif kind == OBJECTS_FREE:
            for k in range(int(op["id"]), int(op["id"]) + int(op["arg2"])):
                give_object(h, s, free, w[w[W_IDS] + k], cpu)
        elif kind == PAGES_ALLOC:
            if kswapd_is_due(b, w) or not pages_alloc(w, alloc, op):
                return i
        elif kind == PAGES_FREE:
            if int(op["flag"]) & FLAG_TAIL:
                w[W_STOP] = STOP_RARE
                return i
            pages_free(h, w, free, op)
        elif kind == LRU_ADD:
            lru_add(h, op)
        elif kind == PAGES_RECLAIM:
            pages_reclaim(h, free, op)
        elif kind in (CACHE_CREATE, CACHE_DESTROY, CACHE_SHRINK, CACHE_REAP):
            cache_request(h, s, free, op, kind)
        elif kind and kind not in (OBJECT_RECLAIM, SLAB_RELEASE, CACHE_FLUSH, CPU_DEAD):
            w[W_STOP] = STOP_RARE
            return i
    return len(requests)
