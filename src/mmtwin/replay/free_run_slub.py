"""The loop of a free run whose objects come from SLUB: the sections of mm/slub.py, with pages from the policy (`free_run_pages`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmtwin._jit import inline_routine, inner, kernel, routine
from mmtwin.mm.handle import pages_at, slabs_at
from mmtwin.mm.page_alloc import (
    ENOMEM,
)  # fmt: skip
from mmtwin.mm.slab_tables import END, SLAB_DISCARDED
from mmtwin.mm.slub import (
    DISCARD,
    PUT_CPU_PARTIAL,
    SLOT_BITS,
    SLOT_MASK,
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
    open_slab,
    own_slab,
    put_cpu_partial,
    refill,
    remove_partial,
    shrink_lists,
    slab_gfp,
    take_cpu_partial,
    take_fast,
    take_first,
    take_partials,
    unfreeze_partials,
)  # fmt: skip
from mmtwin.mm.tables import (
    PG_SLAB,
)  # fmt: skip
from mmtwin.replay.free_run_pages import (
    C_FREED,
    C_MADE,
    C_SKIPPED,
    C_SLAB,
    C_SLAB_FAILED,
    C_SLAB_FREES,
    C_SLOW,
    C_SMALL,
    GONE,
    P_SLOTS,
    SCRATCH,
    STOP_RARE,
    W_IDS,
    W_OBJECTS,
    W_OBJECTS_STAY,
    W_SCRATCH,
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
    return take_first(s, row, fresh)


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
    (W_STOP says which) the next one is rare or kswapd is due."""
    b = pages_at(h)
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
        elif kind == OBJECT_FREE or (kind == OBJECT_RECLAIM and not w[W_OBJECTS_STAY]):
            packed = w[W_OBJECTS + int(op["id"])]
            if packed >= 0:
                objects_free(h, s, w, free, int(op["cpu"]), packed >> SLOT_BITS, packed & SLOT_MASK, packed & SLOT_MASK, 1)
                w[W_OBJECTS + int(op["id"])] = GONE
            else:
                w[C_SKIPPED] += 1
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
        elif kind and kind != OBJECT_RECLAIM:
            w[W_STOP] = STOP_RARE
            return i
    return len(requests)
