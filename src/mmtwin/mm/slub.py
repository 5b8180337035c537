"""SLUB: the CPU's free list and slab, its partial list, the node's partial list, and where slabs come from and go to (mm/slub.c).

Each function is one section that the kernel runs without letting go of its lock (or its disabled interrupts). `slab_alloc` and `slab_free` run
them one after the other; a replay runs each where the recording says it happened.

An object inside compiled code is one number, ``slab << 16 | slot``: the slab's row and the object's number in it; END is none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmtwin._jit import inner, slow
from mmtwin.mm.list import list_add, list_add_tail, list_del
from mmtwin.mm.page_alloc import EINVAL, alloc_pages_cold, free_pages_prepare, free_the_page_cold
from mmtwin.mm.slab_tables import ALLOCATED, END, SLAB_DISCARDED, SLAB_LIVE, SLAB_UNUSED
from mmtwin.mm.tables import PG_SLAB

PAGE_SHIFT = 12
SLOT_BITS = 16
SLOT_MASK = (1 << SLOT_BITS) - 1

GFP_DIRECT_RECLAIM = 0x400
GFP_RECLAIM = 0xC00
GFP_NOWARN = 0x2000
GFP_NOFAIL = 0x8000
GFP_NORETRY = 0x10000
GFP_NOMEMALLOC = 0x80000
GFP_SLAB = 0x3BEEE0
"""GFP_RECLAIM_MASK | GFP_CONSTRAINT_MASK: what a slab's page request keeps of the caller's flags (mm/internal.h)."""
GFP_SLAB_BUG = 0xF8000006
"""GFP_SLAB_BUG_MASK: __GFP_DMA32, __GFP_HIGHMEM and unknown bits; dropped with a warning."""
SLAB_TYPESAFE_BY_RCU = 0x80000
SLAB_CONSISTENCY_CHECKS, SLAB_RED_ZONE, SLAB_POISON, SLAB_STORE_USER, SLAB_TRACE = 0x100, 0x400, 0x800, 0x10000, 0x200000
SLAB_DEBUG_FLAGS = SLAB_CONSISTENCY_CHECKS | SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER | SLAB_TRACE
"""With any of these a cache has no CPU slabs: each request works on the node's list under its lock."""
DEACTIVATE_TO_HEAD, DEACTIVATE_TO_TAIL = 0, 1
SHRINK_PROMOTE_MAX = 32

NO_ROOM = -1000
"""The machine's tables are full: the caller enlarges them and asks again."""
GOT_NOTHING, PUT_CPU_PARTIAL, DISCARD = 0, 1, 2
"""What `free_slowpath` leaves to be done."""


# Addresses


@inner
def object_address(s: Any, packed: int) -> int:
    """The object's address, as a signed number."""
    slab = s.slab[packed >> SLOT_BITS]
    cache = s.cache[int(slab["cache"])]
    slot = packed & SLOT_MASK
    return int(s.config[0]["page_offset"]) + (int(slab["pfn"]) << PAGE_SHIFT) + int(cache["red_left_pad"]) + slot * int(cache["size"])


@inner
def slab_of_page(b: Any, pfn: int) -> int:
    """The slab (its row) that a page frame belongs to, or END."""
    if pfn < 0 or pfn >= int(b.config[0]["nr_frames"]):
        return END
    entry = b.page[pfn]
    return int(entry["next"]) if int(entry["flags"]) & PG_SLAB else END


@inner
def object_at(b: Any, s: Any, address: int) -> int:
    """The object that begins at an address; END if there is no slab, -EINVAL if the address is inside an object or beyond the last."""
    at = address - int(s.config[0]["page_offset"])
    row = slab_of_page(b, at >> PAGE_SHIFT)
    if row == END:
        return END
    slab = s.slab[row]
    cache = s.cache[int(slab["cache"])]
    at -= (int(slab["pfn"]) << PAGE_SHIFT) + int(cache["red_left_pad"])
    if at < 0:
        return -EINVAL
    size = int(cache["size"])
    slot = int(np.uint32(at) // np.uint32(size))  # a slab is small, and this division is twice as fast
    if slot * size != at or slot >= int(slab["objects"]):
        return -EINVAL
    return row << SLOT_BITS | slot


@inner
def is_allocated(s: Any, packed: int) -> bool:
    """Whether the object is handed out."""
    return int(s.slot[int(s.slab[packed >> SLOT_BITS]["slots"]) + (packed & SLOT_MASK)]) == ALLOCATED


# Rows


@slow
def slot_class(objects: int) -> int:
    """Runs of slots have a power of two of them, so that a row whose slab is gone serves any slab of about its size."""
    k = 0
    while 1 << k < objects:
        k += 1
    return k


@slow
def new_row(s: Any, cache: int, pfn: int, order: int, objects: int) -> int:
    """A row and slots for a slab; `slab_tables.reserve` has made sure that there is room. All its objects count as allocated."""
    config = s.config[0]
    k = slot_class(objects)
    row = int(s.free_rows[k])
    if row == END:
        row = int(config["slabs"])
        config["slabs"] = row + 1
        first = int(config["slots"])
        config["slots"] = first + (1 << k)
    else:
        s.free_rows[k] = int(s.slab[row]["next"])
        first = int(s.slab[row]["slots"])
    for i in range(first, first + (1 << k)):
        s.slot[i] = ALLOCATED
    slab = s.slab[row]
    slab["pfn"] = pfn
    slab["slots"] = first
    slab["cache"] = cache
    slab["freelist"] = END
    slab["inuse"] = 0
    slab["objects"] = objects
    slab["slabs"] = 0
    slab["frozen"] = 0
    slab["order"] = order
    slab["state"] = SLAB_LIVE
    slab["on_list"] = 0
    slab["next"] = END
    slab["prev"] = END
    config["pages"] = int(config["pages"]) + (1 << order)
    return row


@slow
def free_row(s: Any, row: int) -> None:
    """The slab's pages are gone: its row and slots can be used again."""
    slab = s.slab[row]
    config = s.config[0]
    k = slot_class(int(slab["objects"]))
    slab["state"] = SLAB_UNUSED
    slab["next"] = int(s.free_rows[k])
    s.free_rows[k] = row
    config["pages"] = int(config["pages"]) - (1 << int(slab["order"]))


# Free lists


@inner
def pop(s: Any, row: int, slot: int) -> int:
    """Takes `slot`, the head of some free list of slab `row`; returns the new head."""
    at = int(s.slab[row]["slots"]) + slot
    rest = int(s.slot[at])
    s.slot[at] = ALLOCATED
    return rest


@inner
def push(s: Any, row: int, slot: int, rest: int) -> None:
    """`slot` becomes a head in front of `rest`."""
    s.slot[int(s.slab[row]["slots"]) + slot] = rest


@slow
def fresh_freelist(s: Any, row: int, start: int) -> None:
    """Chains all objects of a new slab: in ascending order, or along the cache's permutation from `start` on (shuffle_freelist)."""
    slab = s.slab[row]
    cache = s.cache[int(slab["cache"])]
    objects = int(slab["objects"])
    first = int(slab["slots"])
    at = int(cache["random_seq"])
    if at < 0 or objects < 2:
        for i in range(objects):
            s.slot[first + i] = i + 1 if i + 1 < objects else END
        slab["freelist"] = 0
        return
    count = int(cache["objects"])
    pos = start
    last = -1
    for _ in range(objects):
        slot = int(s.random[at + pos])
        pos = pos + 1 if pos + 1 < count else 0
        while slot >= objects:  # a slab of the minimum order has fewer objects
            slot = int(s.random[at + pos])
            pos = pos + 1 if pos + 1 < count else 0
        if last < 0:
            slab["freelist"] = slot
        else:
            s.slot[first + last] = slot
        last = slot
    s.slot[first + last] = END


@slow
def start_of(s: Any, cache: int, slot: int) -> int:
    """Where in the cache's permutation a fresh slab began whose first object is `slot`; -1 if it is not in it."""
    at = int(s.cache[cache]["random_seq"])
    if at < 0:
        return 0
    for i in range(int(s.cache[cache]["objects"])):
        if int(s.random[at + i]) == slot:
            return i
    return -1


@inner
def draw(s: Any, below: int) -> int:
    """A random number of the machine's own, below `below` (a Lehmer generator; the kernel's cannot be predicted, and is an input in replays)."""
    x = int(s.config[0]["random_state"]) * 48271 % 2147483647
    s.config[0]["random_state"] = x
    return x % below


# The node's partial list


@inner
def add_partial(s: Any, row: int, tail: int) -> None:
    """``add_partial``."""
    slab = s.slab[row]
    cache = s.cache[int(slab["cache"])]
    cache["nr_partial"] = int(cache["nr_partial"]) + 1
    slab["on_list"] = 1
    if tail:
        list_add_tail(s.slab, row, int(slab["cache"]))
    else:
        list_add(s.slab, row, int(slab["cache"]))


@inner
def remove_partial(s: Any, row: int) -> None:
    """``remove_partial``."""
    slab = s.slab[row]
    cache = s.cache[int(slab["cache"])]
    list_del(s.slab, row)
    slab["on_list"] = 0
    slab["next"] = END
    cache["nr_partial"] = int(cache["nr_partial"]) - 1


@inner
def has_cpu_slabs(cache: Any) -> bool:
    """Whether the cache uses CPU slabs at all: debugging ones do not."""
    return int(cache["flags"]) & SLAB_DEBUG_FLAGS == 0


# Sections of the allocation


@inner
def take_fast(s: Any, c: int, cpu: int) -> int:
    """The fast path: pops the CPU's free list; END if it is empty."""
    k = s.cpu[c * int(s.config[0]["nr_cpus"]) + cpu]
    slot = int(k["freelist"])
    row = int(k["slab"])
    if slot == END or row == END:
        return END
    k["freelist"] = pop(s, row, slot)
    return row << SLOT_BITS | slot


@inner
def refill(s: Any, c: int, cpu: int) -> int:
    """``redo:`` of ___slab_alloc: the CPU slab's own free list becomes the CPU's (get_freelist); an exhausted slab is let go, and the result is END."""
    k = s.cpu[c * int(s.config[0]["nr_cpus"]) + cpu]
    row = int(k["slab"])
    if row == END:
        return END
    slot = int(k["freelist"])
    if slot == END:
        slab = s.slab[row]
        slot = int(slab["freelist"])
        slab["inuse"] = int(slab["objects"])
        if slot == END:
            slab["frozen"] = 0
            k["slab"] = END
            return END
        slab["freelist"] = END
    k["freelist"] = pop(s, row, slot)
    return row << SLOT_BITS | slot


@inner
def take_cpu_partial(s: Any, c: int, cpu: int) -> bool:
    """``new_slab:`` of ___slab_alloc: the first slab of the CPU's partial list becomes its slab; false if there is none."""
    k = s.cpu[c * int(s.config[0]["nr_cpus"]) + cpu]
    row = int(k["partial"])
    if int(k["slab"]) != END or row == END:
        return False
    k["slab"] = row
    k["partial"] = int(s.slab[row]["next"])
    s.slab[row]["on_list"] = 0
    return True


@inner
def put_cpu_partial(s: Any, c: int, cpu: int, row: int, drain: bool) -> int:
    """``put_cpu_partial``: `row` becomes the first slab of the CPU's partial list. With `drain` a full list is taken away first: its first slab
    is returned, for `unfreeze_partials`; else END."""
    k = s.cpu[c * int(s.config[0]["nr_cpus"]) + cpu]
    old = int(k["partial"])
    unfreeze = END
    slabs = 0
    if old != END:
        slabs = int(s.slab[old]["slabs"])
        if drain and slabs >= int(s.cache[c]["cpu_partial_slabs"]):
            unfreeze = old
            old = END
            slabs = 0
    slab = s.slab[row]
    slab["slabs"] = slabs + 1
    slab["next"] = old
    slab["on_list"] = 2
    k["partial"] = row
    return unfreeze


@inner
def unfreeze_partials(s: Any, c: int, first: int) -> int:
    """``__unfreeze_partials``: slabs of a CPU's partial list go to the tail of the node's, the first one first. Empty ones that the node needs no
    more are returned as a chain (by `next`), in the order in which they are discarded."""
    cache = s.cache[c]
    discard = END
    row = first
    while row != END:
        slab = s.slab[row]
        following = int(slab["next"])
        slab["frozen"] = 0
        if int(slab["inuse"]) == 0 and int(cache["nr_partial"]) >= int(cache["min_partial"]):
            slab["next"] = discard
            slab["on_list"] = 0
            discard = row
        else:
            add_partial(s, row, DEACTIVATE_TO_TAIL)
        row = following
    return discard


@inner
def get_partial_node(s: Any, c: int, cpu: int) -> int:
    """``get_partial_node``: the first slab of the node's partial list with its whole free list (``slab << 16 | head``), or END; more of them
    move to the CPU's partial list, up to half of what it holds and one."""
    cache = s.cache[c]
    row = int(s.slab[c]["next"])
    if row == c:
        return END
    slab = s.slab[row]
    packed = row << SLOT_BITS | int(slab["freelist"])
    slab["freelist"] = END
    slab["inuse"] = int(slab["objects"])
    slab["frozen"] = 1
    remove_partial(s, row)
    wanted = int(cache["cpu_partial_slabs"]) // 2
    moved = 0
    while moved <= wanted:
        row = int(s.slab[c]["next"])
        if row == c:
            break
        remove_partial(s, row)
        s.slab[row]["frozen"] = 1
        put_cpu_partial(s, c, cpu, row, False)
        moved += 1
    return packed


@inner
def load(s: Any, c: int, cpu: int, packed: int) -> int:
    """``load_freelist:`` after a slab has been found: it becomes the CPU's, its first object is the answer."""
    k = s.cpu[c * int(s.config[0]["nr_cpus"]) + cpu]
    row = packed >> SLOT_BITS
    k["slab"] = row
    k["freelist"] = pop(s, row, packed & SLOT_MASK)
    return packed


@inner
def flush_slab(s: Any, c: int, cpu: int) -> int:
    """Takes the CPU's slab and free list away: ``slab << 16 | head`` (the head is 0xFFFF if the list is empty), or END if there is no slab."""
    k = s.cpu[c * int(s.config[0]["nr_cpus"]) + cpu]
    row = int(k["slab"])
    if row == END:
        return END
    packed = row << SLOT_BITS | (int(k["freelist"]) & SLOT_MASK)
    k["slab"] = END
    k["freelist"] = END
    return packed


@inner
def take_partials(s: Any, c: int, cpu: int) -> int:
    """Takes the CPU's whole partial list away: its first slab, or END."""
    k = s.cpu[c * int(s.config[0]["nr_cpus"]) + cpu]
    first = int(k["partial"])
    k["partial"] = END
    return first


@slow
def deactivate_slab(s: Any, packed: int) -> bool:
    """``deactivate_slab``: what was the CPU's free list goes in front of the slab's own, and the slab to the node's list if anything is free:
    to its head, or to its tail if others had freed into it. True if it is empty and not needed: the caller discards it."""
    row = packed >> SLOT_BITS
    slab = s.slab[row]
    cache = s.cache[int(slab["cache"])]
    tail = DEACTIVATE_TO_TAIL if int(slab["freelist"]) != END else DEACTIVATE_TO_HEAD
    head = packed & SLOT_MASK
    if head != SLOT_MASK:
        at = head
        count = 1
        following = int(s.slot[int(slab["slots"]) + at])
        while following >= 0:
            at = following
            count += 1
            following = int(s.slot[int(slab["slots"]) + at])
        push(s, row, at, int(slab["freelist"]))
        slab["freelist"] = head
        slab["inuse"] = int(slab["inuse"]) - count
    slab["frozen"] = 0
    if int(slab["inuse"]) == 0 and int(cache["nr_partial"]) >= int(cache["min_partial"]):
        return True
    if int(slab["freelist"]) != END:
        add_partial(s, row, tail)
    return False


# New slabs


@inner
def first_gfp(cache: Any, gfp: int) -> int:
    """The flags of a new slab's first page request, at the cache's preferred order (allocate_slab)."""
    flags = slab_gfp(cache, gfp)
    first = (flags | GFP_NOWARN | GFP_NORETRY) & ~GFP_NOFAIL
    if first & GFP_DIRECT_RECLAIM and int(cache["order"]) > int(cache["min_order"]):
        first = (first | GFP_NOMEMALLOC) & ~GFP_RECLAIM
    return first


@inner
def slab_gfp(cache: Any, gfp: int) -> int:
    """The flags of a new slab's second page request, at the minimum order: the caller's, as far as they concern reclaim and zones, and the cache's."""
    return (gfp & ~GFP_SLAB_BUG & GFP_SLAB) | int(cache["allocflags"])


@inner
def own_slab(b: Any, s: Any, c: int, pfn: int, order: int) -> int:
    """Pages become a slab of cache `c`: its row."""
    cache = s.cache[c]
    objects = int(cache["objects"]) if order == int(cache["order"]) else int(cache["min_objects"])
    row = new_row(s, c, pfn, order, objects)
    for i in range(pfn, pfn + (1 << order)):
        b.page[i]["flags"] = int(b.page[i]["flags"]) | PG_SLAB
        b.page[i]["next"] = row
    return row


@inner
def count_slab(s: Any, row: int) -> None:
    """``inc_slabs_node``."""
    slab = s.slab[row]
    cache = s.cache[int(slab["cache"])]
    cache["nr_slabs"] = int(cache["nr_slabs"]) + 1
    cache["total_objects"] = int(cache["total_objects"]) + int(slab["objects"])


@inner
def open_slab(s: Any, row: int) -> int:
    """A fresh slab is frozen for the CPU that made it: its free list, as `get_partial_node` returns one."""
    slab = s.slab[row]
    packed = row << SLOT_BITS | int(slab["freelist"])
    slab["freelist"] = END
    slab["inuse"] = int(slab["objects"])
    slab["frozen"] = 1
    count_slab(s, row)
    return packed


@inner
def has_room(s: Any, objects: int) -> bool:
    """Whether the tables have room for one more slab (`slab_tables.reserve` makes some)."""
    config = s.config[0]
    return int(config["slabs"]) < len(s.slab) and int(config["slots"]) + (1 << slot_class(objects)) <= len(s.slot)


@slow
def allocate_slab(b: Any, s: Any, c: int, cpu: int, gfp: int) -> int:
    """``allocate_slab``: pages at the preferred order, else at the minimum one; the row, or a negative error (NO_ROOM: the tables are full, nothing was done)."""
    cache = s.cache[c]
    if not has_room(s, int(cache["objects"])):
        return NO_ROOM
    order = int(cache["order"])
    pfn = alloc_pages_cold(b, cpu, order, first_gfp(cache, gfp), False)
    if pfn < 0:
        order = int(cache["min_order"])
        pfn = alloc_pages_cold(b, cpu, order, slab_gfp(cache, gfp), False)
        if pfn < 0:
            return pfn
    row = own_slab(b, s, c, pfn, order)
    fresh_freelist(s, row, draw(s, int(cache["objects"])) if int(cache["random_seq"]) >= 0 else 0)
    return row


@slow
def discard_slab(s: Any, row: int) -> None:
    """``discard_slab``: the slab no longer counts; its pages are to be freed (`release_slab`)."""
    slab = s.slab[row]
    cache = s.cache[int(slab["cache"])]
    cache["nr_slabs"] = int(cache["nr_slabs"]) - 1
    cache["total_objects"] = int(cache["total_objects"]) - int(slab["objects"])
    slab["state"] = SLAB_DISCARDED


@slow
def release_slab(b: Any, s: Any, row: int, cpu: int) -> None:
    """``__free_slab``: a discarded slab's pages go back to the page allocator."""
    slab = s.slab[row]
    pfn, order = int(slab["pfn"]), int(slab["order"])
    free_row(s, row)
    free_pages_prepare(b, pfn, order)
    free_the_page_cold(b, cpu, pfn, order)


@slow
def discard_chain(b: Any, s: Any, first: int, cpu: int) -> None:
    """Discards a chain of slabs and frees their pages."""
    row = first
    while row != END:
        following = int(s.slab[row]["next"])
        discard_slab(s, row)
        release_slab(b, s, row, cpu)
        row = following


# Freeing


@inner
def give_fast(s: Any, c: int, cpu: int, row: int, head: int, tail: int) -> bool:
    """The fast path: a chain of objects of the CPU's slab goes on the CPU's free list; false if it is not the CPU's slab."""
    k = s.cpu[c * int(s.config[0]["nr_cpus"]) + cpu]
    if int(k["slab"]) != row:
        return False
    push(s, row, tail, int(k["freelist"]))
    k["freelist"] = head
    return True


@inner
def free_slowpath(s: Any, row: int, head: int, tail: int, count: int) -> int:
    """``__slab_free`` up to its exchange, with what it does under the list lock: GOT_NOTHING, PUT_CPU_PARTIAL or DISCARD is left to be done."""
    slab = s.slab[row]
    cache = s.cache[int(slab["cache"])]
    prior = int(slab["freelist"])
    push(s, row, tail, prior)
    slab["freelist"] = head
    inuse = int(slab["inuse"]) - count
    slab["inuse"] = inuse
    if int(slab["frozen"]):
        return GOT_NOTHING
    if prior == END:
        slab["frozen"] = 1
        return PUT_CPU_PARTIAL
    if inuse == 0 and int(cache["nr_partial"]) >= int(cache["min_partial"]):
        remove_partial(s, row)
        return DISCARD
    return GOT_NOTHING


@slow
def shrink_lists(s: Any, c: int) -> int:
    """``__kmem_cache_do_shrink`` under the list lock: empty slabs leave, the fullest come first. Returns the chain of those to be discarded."""
    discard = END
    row = int(s.slab[c]["next"])
    while row != c:
        following = int(s.slab[row]["next"])
        slab = s.slab[row]
        if int(slab["inuse"]) == 0:
            remove_partial(s, row)
            slab["next"] = discard  # list_move puts each in front
            discard = row
        row = following
    for free in range(SHRINK_PROMOTE_MAX, 0, -1):
        row = int(s.slab[c]["next"])
        while row != c:
            following = int(s.slab[row]["next"])
            slab = s.slab[row]
            if int(slab["objects"]) - int(slab["inuse"]) == free:
                list_del(s.slab, row)
                list_add(s.slab, row, c)
            row = following
    return discard


# Debug caches: one object at a time, under the node's list lock


@slow
def take_first(s: Any, row: int, fresh: bool) -> int:
    """A slab's first free object; the slab goes on the node's partial list or off it.

    :param fresh: the slab is new, so it is on no list.
    """
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


@slow
def take_single(b: Any, s: Any, c: int, cpu: int, gfp: int) -> int:
    """``alloc_single_from_partial``, else ``alloc_single_from_new_slab``: an object, or a negative error."""
    row = int(s.slab[c]["next"])
    fresh = row == c
    if fresh:
        row = allocate_slab(b, s, c, cpu, gfp)
        if row < 0:
            return row
        count_slab(s, row)
    return take_first(s, row, fresh)


@slow
def free_single(s: Any, row: int, head: int, tail: int, count: int) -> int:
    """``free_to_partial_list``: GOT_NOTHING or DISCARD."""
    slab = s.slab[row]
    cache = s.cache[int(slab["cache"])]
    prior = int(slab["freelist"])
    push(s, row, tail, prior)
    slab["freelist"] = head
    slab["inuse"] = int(slab["inuse"]) - count
    if int(slab["inuse"]) == 0 and int(cache["nr_partial"]) >= int(cache["min_partial"]):
        if prior != END:
            remove_partial(s, row)
        return DISCARD
    if prior == END:
        add_partial(s, row, DEACTIVATE_TO_TAIL)
    return GOT_NOTHING


# Whole requests


@slow
def slab_alloc_slow(b: Any, s: Any, c: int, cpu: int, gfp: int) -> int:
    """``___slab_alloc``."""
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
        row = allocate_slab(b, s, c, cpu, gfp)
        if row < 0:
            return row
        packed = open_slab(s, row)
    return load(s, c, cpu, packed)


@inner
def slab_alloc(b: Any, s: Any, c: int, cpu: int, gfp: int) -> int:
    """``slab_alloc_node``: an object of cache `c` for CPU `cpu`, or a negative error (see `page_alloc`)."""
    packed = take_fast(s, c, cpu)
    if packed == END:
        packed = slab_alloc_slow(b, s, c, cpu, gfp)
    return packed


@slow
def slab_free_slow(b: Any, s: Any, c: int, cpu: int, row: int, head: int, tail: int, count: int) -> None:
    """``__slab_free``."""
    if not has_cpu_slabs(s.cache[c]):
        left = free_single(s, row, head, tail, count)
    else:
        left = free_slowpath(s, row, head, tail, count)
    if left == PUT_CPU_PARTIAL:
        first = put_cpu_partial(s, c, cpu, row, True)
        if first != END:
            discard_chain(b, s, unfreeze_partials(s, c, first), cpu)
    elif left == DISCARD:
        discard_slab(s, row)
        release_slab(b, s, row, cpu)


@inner
def slab_free(b: Any, s: Any, cpu: int, row: int, head: int, tail: int, count: int) -> None:
    """``do_slab_free``: a chain of `count` objects of one slab, from `head` to `tail`."""
    c = int(s.slab[row]["cache"])
    if not give_fast(s, c, cpu, row, head, tail):
        slab_free_slow(b, s, c, cpu, row, head, tail, count)


@slow
def flush_cpu(b: Any, s: Any, c: int, cpu: int) -> None:
    """``flush_cpu_slab``: the CPU gives up its slab and its partial list."""
    packed = flush_slab(s, c, cpu)
    if packed != END and deactivate_slab(s, packed):
        discard_slab(s, packed >> SLOT_BITS)
        release_slab(b, s, packed >> SLOT_BITS, cpu)
    first = take_partials(s, c, cpu)
    if first != END:
        discard_chain(b, s, unfreeze_partials(s, c, first), cpu)


@slow
def shrink(b: Any, s: Any, c: int, cpu: int) -> None:
    """``kmem_cache_shrink``: all CPUs are flushed, empty slabs go, the node's list is sorted."""
    for other in range(int(s.config[0]["nr_cpus"])):
        flush_cpu(b, s, c, other)
    discard_chain(b, s, shrink_lists(s, c), cpu)


@slow
def shutdown_cache(b: Any, s: Any, c: int, cpu: int) -> int:
    """``__kmem_cache_shutdown``: all CPUs are flushed, the empty slabs go. Returns how many slabs still have objects."""
    for other in range(int(s.config[0]["nr_cpus"])):
        flush_cpu(b, s, c, other)
    row = int(s.slab[c]["next"])
    while row != c:
        following = int(s.slab[row]["next"])
        if int(s.slab[row]["inuse"]) == 0:
            remove_partial(s, row)
            discard_slab(s, row)
            release_slab(b, s, row, cpu)
        row = following
    return int(s.cache[c]["nr_slabs"])


# Bulk


@slow
def build_detached_freelist(s: Any, objects: Any, size: int) -> tuple[int, int, int, int]:
    """``build_detached_freelist``: takes the last of the first `size` packed objects and those of the same slab near it (three others may lie in
    between), and chains them, the last one first (slab_free_freelist_hook turns the list round once more). Returns what is left of the size, the
    first and the last slot of the chain, and how many it has."""
    size -= 1
    last = int(objects[size])
    row = last >> SLOT_BITS
    head = tail = last & SLOT_MASK
    count = 1
    lookahead = 3
    same = size
    while size:
        size -= 1
        packed = int(objects[size])
        if packed >= 0 and packed >> SLOT_BITS == row:
            push(s, row, tail, packed & SLOT_MASK)
            tail = packed & SLOT_MASK
            count += 1
            same -= 1
            if size != same:
                objects[size] = objects[same]
                objects[same] = packed
            continue
        lookahead -= 1
        if lookahead == 0:
            break
    return same, head, tail, count


@slow
def free_bulk(b: Any, s: Any, cpu: int, objects: Any) -> None:
    """``kmem_cache_free_bulk``: packed objects; a negative number is the physical address of a large allocation."""
    size = len(objects)
    while size:
        last = int(objects[size - 1])
        if last < 0:
            size -= 1
            pfn = -last >> PAGE_SHIFT
            order = int(b.page[pfn]["order"])
            free_pages_prepare(b, pfn, order)
            free_the_page_cold(b, cpu, pfn, order)
            continue
        row = last >> SLOT_BITS
        size, head, tail, count = build_detached_freelist(s, objects, size)
        slab_free(b, s, cpu, row, head, tail, count)
