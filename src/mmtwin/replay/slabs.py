"""The twin's SLUB answers a recording's requests, section by section.

A mark in the recording says that the kernel ran one section of SLUB (popped a CPU's list, took the node's lock, ...) at this moment, for this
context; what the section finds and does is the twin's own. The object that comes out waits in its context until the kernel's event names the
address, and is compared then. Which path a request takes is the twin's prediction too: a mark that it did not expect is counted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin._jit import inner, slow
from mmtwin.mm.slab_tables import ALLOCATED, END, SLAB_DISCARDED
from mmtwin.mm.slub import (
    DISCARD,
    PAGE_SHIFT,
    PUT_CPU_PARTIAL,
    SLOT_BITS,
    SLOT_MASK,
    add_partial,
    build_detached_freelist,
    deactivate_slab,
    discard_slab,
    first_gfp,
    flush_slab,
    free_row,
    free_slowpath,
    fresh_freelist,
    get_partial_node,
    give_fast,
    is_allocated,
    load,
    object_address,
    object_at,
    open_slab,
    own_slab,
    pop,
    push,
    put_cpu_partial,
    refill,
    remove_partial,
    shrink_lists,
    slab_gfp,
    slab_of_page,
    start_of,
    take_cpu_partial,
    take_fast,
    take_partials,
    unfreeze_partials,
)
from mmtwin.mm.tables import PG_ALLOCATED, PG_SLAB
from mmtwin.replay.placement import (
    SLAB_BULK_ALLOC,
    SLAB_BULK_FREE,
    SLAB_BULK_GOT,
    SLAB_BULK_POP,
    SLAB_CPU_PARTIAL,
    SLAB_CREATE,
    SLAB_DEACTIVATE,
    SLAB_DEAD_CPU,
    SLAB_DESTROY,
    SLAB_FLUSH,
    SLAB_FLUSH_PARTIAL,
    SLAB_FLUSH_SLAB,
    SLAB_LOAD,
    SLAB_NEW,
    SLAB_NODE_PARTIAL,
    SLAB_PUT_PARTIAL,
    SLAB_SHRINK,
    SLAB_SHRINK_LOCK,
    SLAB_SHUTDOWN_LOCK,
    SLAB_UNFREEZE,
    Placement,
)

STACK = 8
"""Objects of one context that wait for their event: an allocation may cause another (the vector of cgroup pointers of a slab) before its own event."""
BULK = 64
"""Objects of one bulk call that are compared; the recorder keeps as many."""
LEVELS = 2
"""Slow paths of one context that may wait for an inner one."""
MAX_CACHE = 8192
IO_FS = 0xC0
"""__GFP_IO | __GFP_FS: a task may be in a scope that forbids them, which no event tells."""

SLAB_COUNTERS = (
    "slab_allocs", "slab_allocs_equal", "slab_frees", "slab_learnt", "slab_bulk_objects", "slab_bulk_equal", "slab_bulk_frees", "slab_page_requests",
    "slab_page_requests_equal", "slab_page_frees", "slab_page_frees_equal", "slab_paths", "slab_failed", "slab_unknown_frees", "slab_sizes_equal", "slab_kmallocs",
    "slab_early",
    "slab_races",
)  # fmt: skip
(
    S_ALLOCS, S_EQUAL, S_FREES, S_LEARNT, S_BULK, S_BULK_EQUAL, S_BULK_FREES, S_REQUESTS, S_REQUESTS_EQUAL, S_PAGE_FREES, S_PAGE_FREES_EQUAL, S_PATHS, S_FAILED,
    S_UNKNOWN, S_SIZES, S_KMALLOCS, S_EARLY, S_RACES,
) = range(len(SLAB_COUNTERS))  # fmt: skip

SLAB_DIFFERENCE = np.dtype([("event", "i8"), ("expected", "i8"), ("predicted", "i8"), ("cache", "i8"), ("cpu", "i8"), ("what", "i8")])
D_OBJECT, D_PATH, D_PAGE_REQUEST, D_PAGE_FREE, D_FREE, D_BULK = range(6)
WHATS = ("slab object", "slab path", "slab page request", "slab page free", "slab free", "silent slab object")

SLAB_CONTEXT = np.dtype(
    [
        # what every event reads comes first, in one cache line
        ("depth", "i8"),  # objects on the stack
        ("freeing", "i8"),  # address whose free event came
        ("bulk_cache", "i8"),  # a bulk allocation is under way
        ("bulk_left", "i8"),  # a bulk free is under way: its objects are bulk_at to bulk_at + bulk_left
        ("seen", "i8"),  # 1: something has been taken since the recording began
        ("cache", "i8"),  # of the slow path that is under way
        ("slow", "i8"),  # 1: in the slow path
        ("paged", "i8"),  # 1: and it has been given pages
        ("object", "i8", (STACK,)),  # taken, and their events are still to come
        ("gfp", "i8"),
        ("held", "i8"),  # the slab that the slow path has found, with its free list
        ("fresh", "i8"),  # that slab is new: its first object is learnt
        ("level", "i8"),  # slow paths that wait for this one: a new slab may need a vector of cgroup pointers, which is allocated meanwhile
        ("saved", "i8", (LEVELS * 7,)),  # of each: cache, gfp, left, and the last page block
        ("left", "i8"),  # slabs on the node's list when the slow path went for new pages
        ("put", "i8"),  # slab that __slab_free has frozen, to go on the CPU's partial list
        ("unfreeze", "i8"),  # first slab of a partial list that was taken away
        ("flushed", "i8"),  # a CPU slab with its free list, to be deactivated
        ("bulk_want", "i8"),
        ("bulk_done", "i8"),
        ("bulk_at", "i8"),
    ]
)


class Slabs(NamedTuple):
    """What the loop carries for slabs.

    :param learnt: for each context the number of objects on its stack that came first from a new slab (a bit each).
    :param objects: `Placement.objects`; `packed` the same as slab and slot.
    :param bulk: objects of a context's bulk allocation.
    :param last: the last page block that each context got: pfn, order, gfp; and the order that was refused to a slow path, -1 if none.
    :param race: the slab that was exchanged last and by which context; the slab whose refill waits for an exchange, its context and CPU.
    """

    counters: npt.NDArray[np.int64]
    differences: npt.NDArray[np.void]
    context: npt.NDArray[np.void]
    learnt: npt.NDArray[np.int64]
    objects: npt.NDArray[np.int64]
    packed: npt.NDArray[np.int64]
    bulk: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    race: npt.NDArray[np.int64]


R_EXCHANGED, R_EXCHANGER, R_WAITING, R_WAITER, R_CPU = range(5)
L_PFN, L_ORDER, L_GFP, L_FAILED_ORDER = range(4)
KEPT = 100


def new_slabs(placement: Placement) -> Slabs:
    """The state before the first operation."""
    contexts = max(placement.contexts, 1)
    context = np.zeros(contexts, dtype=SLAB_CONTEXT)
    for name in ("cache", "held", "put", "unfreeze", "flushed", "bulk_cache"):
        context[name] = END
    last = np.full((contexts, 4), -1, dtype=np.int64)
    return Slabs(
        np.zeros(len(SLAB_COUNTERS), np.int64),
        np.zeros(KEPT, SLAB_DIFFERENCE),
        context,
        np.zeros(contexts, np.int64),
        placement.objects,
        np.full(len(placement.objects), END, np.int64),
        np.full((contexts, BULK), END, np.int64),
        last,
        np.full(5, END, np.int64),
    )


@slow
def differ_slab(q: Any, op: Any, what: int, expected: int, predicted: int, cache: int) -> None:
    """Keeps a difference while there is room."""
    q.counters[S_PATHS] += 1 if what == D_PATH else 0
    k = 0
    while k < len(q.differences) and int(q.differences[k]["event"]):
        k += 1
    if k < len(q.differences):
        d = q.differences[k]
        d["event"] = int(op["event"]) + 1
        d["expected"] = expected
        d["predicted"] = predicted
        d["cache"] = cache
        d["cpu"] = int(op["cpu"])
        d["what"] = what


@inner
def took(q: Any, op: Any, packed: int, fresh: int) -> None:
    """An object has been taken: it waits for its event, or belongs to a bulk call."""
    ctx = int(op["context"])
    x = q.context[ctx]
    if int(x["bulk_cache"]) != END:
        if int(x["bulk_done"]) < BULK:
            q.bulk[ctx, int(x["bulk_done"])] = packed
        x["bulk_done"] = int(x["bulk_done"]) + 1
        q.counters[S_LEARNT] += fresh
        return
    x["seen"] = 1
    depth = int(x["depth"])
    if depth == STACK:  # events were lost
        for i in range(STACK - 1):
            x["object"][i] = int(x["object"][i + 1])
        depth -= 1
        q.learnt[ctx] >>= 1
    x["object"][depth] = packed
    x["depth"] = depth + 1
    q.learnt[ctx] = (q.learnt[ctx] & ~(1 << depth)) | fresh << depth


@inner
def enter_slow(q: Any, op: Any) -> None:
    """___slab_alloc begins; the slow path that it is part of, if any, waits."""
    ctx = int(op["context"])
    x = q.context[ctx]
    level = int(x["level"])
    if int(x["slow"]) and int(x["paged"]) and level < LEVELS:
        at = level * 7
        x["saved"][at] = int(x["cache"])
        x["saved"][at + 1] = int(x["gfp"])
        x["saved"][at + 2] = int(x["left"])
        for i in range(4):
            x["saved"][at + 3 + i] = q.last[ctx, i]
        x["level"] = level + 1
    elif not int(x["slow"]):
        x["level"] = 0
    x["cache"] = int(op["arg"])
    x["gfp"] = int(op["gfp"])
    x["slow"] = 1
    x["paged"] = 0
    x["held"] = END
    x["left"] = 0
    q.last[ctx, L_FAILED_ORDER] = -1


@inner
def leave_slow(q: Any, op: Any) -> None:
    """___slab_alloc is done; the one that waited goes on."""
    ctx = int(op["context"])
    x = q.context[ctx]
    x["slow"] = 0
    level = int(x["level"]) - 1
    if level >= 0:
        at = level * 7
        x["cache"] = int(x["saved"][at])
        x["gfp"] = int(x["saved"][at + 1])
        x["left"] = int(x["saved"][at + 2])
        for i in range(4):
            q.last[ctx, i] = int(x["saved"][at + 3 + i])
        x["level"] = level
        x["slow"] = 1
        x["paged"] = 1


@inner
def slab_event(b: Any, s: Any, q: Any, op: Any) -> None:
    """kmalloc or kmem_cache_alloc: the kernel names the object."""
    ctx = int(op["context"])
    expected = int(op["pfn"])
    kmalloc = int(op["order"]) != 0
    size = int(op["arg"])
    q.counters[S_KMALLOCS] += 1 if kmalloc else 0
    if kmalloc and size > MAX_CACHE:
        large_event(s, q, op)
        return
    x = q.context[ctx]
    depth = int(x["depth"])
    if expected == 0:
        q.counters[S_FAILED] += 1
        if int(x["slow"]):
            leave_slow(q, op)
        return
    if depth == 0 and int(x["seen"]) == 0:
        q.counters[S_EARLY] += 1  # taken before the first dump, which shows it so
        return
    q.counters[S_ALLOCS] += 1
    if depth == 0:
        slab_event_differs(b, s, q, op, END)
        return
    packed = int(x["object"][depth - 1])
    x["depth"] = depth - 1
    if packed >= 0 and object_address(s, packed) == expected:
        q.counters[S_EQUAL] += 1
        q.counters[S_LEARNT] += (q.learnt[ctx] >> (depth - 1)) & 1
        if kmalloc:
            q.counters[S_SIZES] += 1 if int(s.cache[int(s.slab[packed >> SLOT_BITS]["cache"])]["size"]) == size else 0
    else:
        slab_event_differs(b, s, q, op, packed)


@slow
def large_event(s: Any, q: Any, op: Any) -> None:
    """A kmalloc above the largest class: the pages this context was just given."""
    expected = int(op["pfn"])
    last = q.last[int(op["context"])]
    if expected == 0:
        q.counters[S_FAILED] += 1
        return
    q.counters[S_ALLOCS] += 1
    predicted = int(s.config[0]["page_offset"]) + (int(last[L_PFN]) << PAGE_SHIFT)
    q.counters[S_SIZES] += 1 if 4096 << int(last[L_ORDER]) == int(op["arg"]) else 0
    if predicted == expected:
        q.counters[S_EQUAL] += 1
    else:
        differ_slab(q, op, D_OBJECT, expected, predicted, -1)


@slow
def slab_event_differs(b: Any, s: Any, q: Any, op: Any, packed: int) -> None:
    """The twin took another object, or none."""
    expected = int(op["pfn"])
    cache = int(s.slab[packed >> SLOT_BITS]["cache"]) if packed >= 0 else int(q.context[int(op["context"])]["cache"])
    differ_slab(q, op, D_OBJECT, expected, object_address(s, packed) if packed >= 0 else 0, cache)
    if packed >= 0:
        put_object_back(s, int(op["cpu"]), packed)
    extract_object(b, s, expected)


@slow
def put_object_back(s: Any, cpu: int, packed: int) -> None:
    """The kernel did not take this object: it goes where the next request finds it."""
    row = packed >> SLOT_BITS
    slot = packed & SLOT_MASK
    if not is_allocated(s, packed):
        return
    slab = s.slab[row]
    c = int(slab["cache"])
    if give_fast(s, c, cpu, row, slot, slot):
        return
    listed = int(slab["freelist"]) != END
    push(s, row, slot, int(slab["freelist"]))
    slab["freelist"] = slot
    slab["inuse"] = int(slab["inuse"]) - 1
    if not listed and not int(slab["frozen"]):
        add_partial(s, row, 1)


@slow
def unlink_slot(s: Any, row: int, head: int, slot: int) -> int:
    """Takes `slot` out of a free list; returns the list's head."""
    first = int(s.slab[row]["slots"])
    if head == slot:
        return pop(s, row, slot)
    at = head
    for _ in range(int(s.slab[row]["objects"])):  # a list that is broken already has no end
        if at < 0:
            break
        following = int(s.slot[first + at])
        if following == slot:
            s.slot[first + at] = pop(s, row, slot)
            return head
        at = following
    return head


@slow
def extract_object(b: Any, s: Any, address: int) -> None:
    """The kernel has handed out this object: in the twin it is on no list any more."""
    packed = object_at(b, s, address)
    if packed < 0 or is_allocated(s, packed):
        return
    row = packed >> SLOT_BITS
    slot = packed & SLOT_MASK
    slab = s.slab[row]
    cpus = int(s.config[0]["nr_cpus"])
    for cpu in range(cpus):
        k = s.cpu[int(slab["cache"]) * cpus + cpu]
        if int(k["slab"]) == row and int(k["freelist"]) != END:
            k["freelist"] = unlink_slot(s, row, int(k["freelist"]), slot)
            if is_allocated(s, packed):
                return
    if int(slab["freelist"]) != END:
        slab["freelist"] = unlink_slot(s, row, int(slab["freelist"]), slot)
        if is_allocated(s, packed):
            slab["inuse"] = int(slab["inuse"]) + 1
            if int(slab["freelist"]) == END and int(slab["on_list"]) == 1:
                remove_partial(s, row)
            return
    s.slot[int(slab["slots"]) + slot] = ALLOCATED  # it was on the list of a slab that a slow path holds


@inner
def slab_take(s: Any, q: Any, op: Any) -> None:
    """The fast path of an allocation."""
    c = int(op["arg"])
    if c >= 0:
        packed = take_fast(s, c, int(op["cpu"]))
        if packed == END:
            q.context[int(op["context"])]["cache"] = c
        took(q, op, packed, 0)


@inner
def free_event(q: Any, op: Any) -> None:
    """kfree or kmem_cache_free: what is about to be freed."""
    q.context[int(op["context"])]["freeing"] = int(op["pfn"])


@inner
def slab_give(b: Any, s: Any, q: Any, op: Any) -> None:
    """The fast path of a free."""
    x = q.context[int(op["context"])]
    if int(x["bulk_left"]):
        give_bulk(b, s, q, op, False)
        return
    packed = object_at(b, s, int(x["freeing"]))
    q.counters[S_FREES] += 1
    slot = packed & SLOT_MASK
    if packed < 0 or int(op["arg"]) < 0 or not is_allocated(s, packed) or not give_fast(s, int(op["arg"]), int(op["cpu"]), packed >> SLOT_BITS, slot, slot):
        give_differs(b, s, q, op, packed)


@slow
def give_differs(b: Any, s: Any, q: Any, op: Any, packed: int) -> None:
    """The kernel freed fast what the twin cannot."""
    x = q.context[int(op["context"])]
    q.counters[S_UNKNOWN] += 1
    differ_slab(q, op, D_FREE, int(x["freeing"]), packed, int(op["arg"]))
    if packed >= 0 and is_allocated(s, packed):
        free_slow_cold(s, q, op, packed >> SLOT_BITS, packed & SLOT_MASK, packed & SLOT_MASK, 1)


@inner
def free_slow(s: Any, q: Any, op: Any, row: int, head: int, tail: int, count: int) -> None:
    """``__slab_free``'s exchange."""
    x = q.context[int(op["context"])]
    left = free_slowpath(s, row, head, tail, count)
    q.race[R_EXCHANGED] = row
    q.race[R_EXCHANGER] = int(op["context"])
    if left == PUT_CPU_PARTIAL:
        if int(s.slab[row]["on_list"]):
            differ_slab(q, op, D_PATH, SLAB_PUT_PARTIAL, 0, int(s.slab[row]["cache"]))
        else:
            x["put"] = row
    if q.race[R_WAITING] == row:
        refill_late(s, q, op)
    elif left == DISCARD:
        discard_slab(s, row)


# A call that is not inlined hands over all tables by value, some 200 words: the frequent operations are inlined, the rare ones share one copy.
free_slow_cold = slow(free_slow)


@slow
def give_bulk(b: Any, s: Any, q: Any, op: Any, exchange: bool) -> None:
    """One group of a bulk free."""
    x = q.context[int(op["context"])]
    at = int(x["bulk_at"])
    left = int(x["bulk_left"])
    while left and q.packed[at + left - 1] < 0:  # large ones are freed one by one
        left -= 1
    if left == 0:
        x["bulk_left"] = 0
        return
    row = q.packed[at + left - 1] >> SLOT_BITS
    left, head, tail, count = build_detached_freelist(s, q.packed[at : at + left], left)
    x["bulk_left"] = left
    q.counters[S_BULK_FREES] += count
    c = int(s.slab[row]["cache"])
    if exchange or not give_fast(s, c, int(op["cpu"]), row, head, tail):
        if not exchange:
            differ_slab(q, op, D_FREE, int(op["arg2"]), row, c)
            q.counters[S_UNKNOWN] += 1
        free_slow_cold(s, q, op, row, head, tail, count)


@inner
def exchange(b: Any, s: Any, q: Any, op: Any) -> None:
    """``cmpxchg_double_slab``: a slow free, or a slab that is deactivated."""
    x = q.context[int(op["context"])]
    if int(x["flushed"]) != END:
        packed = int(x["flushed"])
        x["flushed"] = END
        if deactivate_slab(s, packed):
            discard_slab(s, packed >> SLOT_BITS)
        return
    if int(x["bulk_left"]):
        give_bulk(b, s, q, op, True)
        return
    packed = object_at(b, s, int(x["freeing"]))
    q.counters[S_FREES] += 1
    if packed < 0 or not is_allocated(s, packed):
        q.counters[S_UNKNOWN] += 1
        differ_slab(q, op, D_FREE, int(x["freeing"]), packed, -1)
        return
    free_slow(s, q, op, packed >> SLOT_BITS, packed & SLOT_MASK, packed & SLOT_MASK, 1)


@inner
def page_request(s: Any, q: Any, op: Any) -> None:
    """A context looks for pages: if for a slab, what its node's list still had is of interest."""
    x = q.context[int(op["context"])]
    if int(x["slow"]):
        x["left"] = int(s.cache[int(x["cache"])]["nr_partial"]) if int(x["cache"]) >= 0 else 0


@inner
def page_got(q: Any, op: Any, failed: bool) -> None:
    """The block a context was given, or the order that was refused."""
    last = q.last[int(op["context"])]
    q.context[int(op["context"])]["paged"] = 1
    if failed:
        last[L_FAILED_ORDER] = int(op["order"])
    else:
        last[L_PFN] = int(op["pfn"])
        last[L_ORDER] = int(op["order"])
        last[L_GFP] = int(op["gfp"])


@slow
def new_slab(b: Any, s: Any, q: Any, op: Any) -> None:
    """allocate_slab is done: the pages are the twin's, where the permutation begins is the kernel's random number."""
    ctx = int(op["context"])
    x = q.context[ctx]
    c = int(x["cache"])
    first = int(op["pfn"])
    last = q.last[ctx]
    if first == 0 or c < 0 or int(last[L_PFN]) < 0:
        return
    cache = s.cache[c]
    order = int(last[L_ORDER])
    gfp = int(x["gfp"])
    q.counters[S_REQUESTS] += 1
    expected = first_gfp(cache, gfp) if order == int(cache["order"]) and int(last[L_FAILED_ORDER]) < 0 else slab_gfp(cache, gfp)
    needed = int(x["held"]) == END and int(x["left"]) == 0
    same = (int(last[L_GFP]) | IO_FS) == (expected | IO_FS) and (order == int(cache["order"]) or int(last[L_FAILED_ORDER]) == int(cache["order"]))
    if needed and same:
        q.counters[S_REQUESTS_EQUAL] += 1
    else:
        differ_slab(q, op, D_PAGE_REQUEST, int(last[L_GFP]), expected, c)
    pfn = int(last[L_PFN])
    at = (first - int(s.config[0]["page_offset"])) - (pfn << PAGE_SHIFT) - int(cache["red_left_pad"])
    slot = at // int(cache["size"])
    if not int(b.page[pfn]["flags"]) & PG_ALLOCATED or int(b.page[pfn]["order"]) != order:
        differ_slab(q, op, D_PAGE_REQUEST, pfn, order, c)
        return
    if slab_of_page(b, pfn) != END:
        drop_slab(b, s, slab_of_page(b, pfn))
    row = own_slab(b, s, c, pfn, order)
    start = start_of(s, c, slot)
    if at < 0 or slot >= int(s.slab[row]["objects"]) or start < 0:
        differ_slab(q, op, D_OBJECT, first, pfn << PAGE_SHIFT, c)
        start = 0
    fresh_freelist(s, row, start)
    x["held"] = open_slab(s, row)
    x["fresh"] = 1


@inner
def refill_now(s: Any, q: Any, op: Any) -> None:
    """``redo:`` of ___slab_alloc. Another CPU may be freeing into the same slab at this very moment: then only what the kernel did next
    (`contended` of the operation: it went on without an object) says which exchange came first."""
    ctx = int(op["context"])
    cpu = int(op["cpu"])
    c = int(q.context[ctx]["cache"])
    if c < 0:
        return
    k = s.cpu[c * int(s.config[0]["nr_cpus"]) + cpu]
    row = int(k["slab"])
    if row != END and int(k["freelist"]) == END:
        slab = s.slab[row]
        empty = int(slab["freelist"]) == END
        if empty and not int(op["contended"]):
            q.race[R_WAITING] = row
            q.race[R_WAITER] = ctx
            q.race[R_CPU] = cpu
            q.counters[S_RACES] += 1
            return
        if not empty and int(op["contended"]) and q.race[R_EXCHANGED] == row:
            k["slab"] = END  # the kernel saw it empty and let it go; the exchange then froze it for the other CPU
            slab["frozen"] = 1
            q.context[q.race[R_EXCHANGER]]["put"] = row
            q.counters[S_RACES] += 1
            return
    packed = refill(s, c, cpu)
    if packed != END:
        leave_slow(q, op)
        took(q, op, packed, 0)


@slow
def refill_late(s: Any, q: Any, op: Any) -> None:
    """The exchange has come that a refill on another CPU had seen already."""
    row = q.race[R_WAITING]
    q.race[R_WAITING] = END
    ctx, cpu = q.race[R_WAITER], q.race[R_CPU]
    packed = refill(s, int(s.slab[row]["cache"]), cpu)
    x = q.context[ctx]
    depth = int(x["depth"])
    if packed != END and depth < STACK:
        x["slow"] = 0
        x["object"][depth] = packed
        x["depth"] = depth + 1
        x["seen"] = 1
        q.learnt[ctx] &= ~(1 << depth)


@slow
def load_slab(s: Any, q: Any, op: Any) -> None:
    """``retry_load_slab``: the slab that was found becomes the CPU's; one that came in between is flushed first."""
    x = q.context[int(op["context"])]
    c = int(x["cache"])
    cpu = int(op["cpu"])
    if c < 0 or int(x["held"]) == END:
        differ_slab(q, op, D_PATH, SLAB_LOAD, 0, c)
        return
    x["flushed"] = flush_slab(s, c, cpu)
    if int(x["flushed"]) == END:
        packed = load(s, c, cpu, int(x["held"]))
        fresh = int(x["fresh"])
        x["held"] = END
        x["fresh"] = 0
        leave_slow(q, op)
        took(q, op, packed, fresh)


@slow
def drop_slab(b: Any, s: Any, row: int) -> None:
    """Resync: the kernel has no slab here any more."""
    slab = s.slab[row]
    if int(slab["on_list"]) == 1:
        remove_partial(s, row)
    cpus = int(s.config[0]["nr_cpus"])
    c = int(slab["cache"])
    for cpu in range(cpus):
        k = s.cpu[c * cpus + cpu]
        if int(k["slab"]) == row:
            k["slab"] = END
            k["freelist"] = END
        at = int(k["partial"])
        if at == row:
            k["partial"] = int(slab["next"])
        while at != END and at != row:
            if int(s.slab[at]["next"]) == row:
                s.slab[at]["next"] = int(slab["next"])
            at = int(s.slab[at]["next"])
    if int(slab["state"]) != SLAB_DISCARDED:
        discard_slab(s, row)
    pfn = int(slab["pfn"])
    for i in range(pfn, pfn + (1 << int(slab["order"]))):
        b.page[i]["flags"] = int(b.page[i]["flags"]) & ~PG_SLAB
    free_row(s, row)


@slow
def slab_page_freed(b: Any, s: Any, q: Any, op: Any) -> None:
    """mm_page_free of a slab's pages: the twin must have discarded it."""
    pfn = int(op["pfn"])
    row = slab_of_page(b, pfn)
    slab = s.slab[row]
    q.counters[S_PAGE_FREES] += 1
    if int(slab["state"]) == SLAB_DISCARDED and int(slab["pfn"]) == pfn and int(slab["order"]) == int(op["order"]):
        q.counters[S_PAGE_FREES_EQUAL] += 1
        free_row(s, row)
    else:
        differ_slab(q, op, D_PAGE_FREE, pfn, int(slab["pfn"]), int(slab["cache"]))
        drop_slab(b, s, row)


@slow
def bulk_got(b: Any, s: Any, q: Any, op: Any) -> None:
    """A bulk allocation is done: its objects, as far as they were recorded."""
    ctx = int(op["context"])
    x = q.context[ctx]
    at = int(op["gfp"])
    count = max(0, min(int(op["arg2"]), BULK, len(q.objects) - at))
    x["bulk_cache"] = END
    for i in range(count):
        q.counters[S_BULK] += 1
        expected = q.objects[at + i]
        packed = q.bulk[ctx, i] if i < int(x["bulk_done"]) else END
        if packed >= 0 and object_address(s, packed) == expected:
            q.counters[S_BULK_EQUAL] += 1
        else:
            differ_slab(q, op, D_BULK, expected, object_address(s, packed) if packed >= 0 else 0, int(x["cache"]))
            if packed >= 0:
                put_object_back(s, int(op["cpu"]), packed)
            extract_object(b, s, expected)
    x["bulk_done"] = 0


@slow
def discard_all(s: Any, first: int) -> None:
    """Slabs of a chain are discarded; their pages go when the kernel frees them."""
    row = first
    while row != END:
        following = int(s.slab[row]["next"])
        discard_slab(s, row)
        row = following


@slow
def slab_rare(b: Any, s: Any, q: Any, op: Any) -> None:
    """Everything that is not frequent."""
    kind = int(op["op"])
    ctx = int(op["context"])
    cpu = int(op["cpu"])
    x = q.context[ctx]
    c = int(x["cache"])
    if kind == SLAB_CPU_PARTIAL:
        if c >= 0 and not take_cpu_partial(s, c, cpu):
            differ_slab(q, op, D_PATH, kind, 0, c)
    elif kind == SLAB_DEACTIVATE:
        if c >= 0:
            x["flushed"] = flush_slab(s, c, cpu)
    elif kind == SLAB_NODE_PARTIAL:
        if c >= 0:
            x["held"] = get_partial_node(s, c, cpu)
            x["fresh"] = 0
    elif kind == SLAB_NEW:
        new_slab(b, s, q, op)
    elif kind == SLAB_LOAD:
        load_slab(s, q, op)
    elif kind == SLAB_PUT_PARTIAL:
        if int(op["arg2"]):
            row = int(x["put"])
            x["put"] = END
            if row == END:
                differ_slab(q, op, D_PATH, kind, 0, c)
            else:
                x["unfreeze"] = put_cpu_partial(s, int(s.slab[row]["cache"]), cpu, row, True)
    elif kind == SLAB_UNFREEZE:
        first = int(x["unfreeze"])
        x["unfreeze"] = END
        if first == END:
            differ_slab(q, op, D_PATH, kind, 0, c)
        else:
            discard_all(s, unfreeze_partials(s, int(s.slab[first]["cache"]), first))
    elif kind == SLAB_BULK_ALLOC:
        x["bulk_cache"] = int(op["arg"])
        x["cache"] = int(op["arg"])
        x["bulk_want"] = int(op["arg2"])
        x["bulk_done"] = 0
    elif kind == SLAB_BULK_POP:
        c = int(x["bulk_cache"])
        while c >= 0 and int(x["bulk_done"]) < int(x["bulk_want"]):
            packed = take_fast(s, c, cpu)
            if packed == END:
                break
            took(q, op, packed, 0)
    elif kind == SLAB_BULK_GOT:
        bulk_got(b, s, q, op)
    elif kind == SLAB_BULK_FREE:
        left = max(0, min(int(op["arg2"]), len(q.objects) - int(op["gfp"])))
        x["bulk_at"] = int(op["gfp"])
        x["bulk_left"] = left
        for i in range(int(op["gfp"]), int(op["gfp"]) + left):
            q.packed[i] = object_at(b, s, q.objects[i])
            if q.packed[i] >= 0 and not is_allocated(s, q.packed[i]):
                q.packed[i] = END
                q.counters[S_UNKNOWN] += 1
    elif kind == SLAB_FLUSH or kind == SLAB_SHRINK or kind == SLAB_DESTROY:
        x["cache"] = int(op["arg"])
    elif kind == SLAB_FLUSH_SLAB:
        if c >= 0:
            x["flushed"] = flush_slab(s, c, cpu)
    elif kind == SLAB_FLUSH_PARTIAL:
        if c >= 0:
            x["unfreeze"] = take_partials(s, c, cpu)
    elif kind == SLAB_SHRINK_LOCK:
        if c >= 0:
            discard_all(s, shrink_lists(s, c))
    elif kind == SLAB_SHUTDOWN_LOCK:
        if c >= 0:
            shutdown(s, c)
    elif kind == SLAB_CREATE:
        if int(op["arg"]) >= 0:
            s.cache[int(op["arg"])]["live"] = 1
    elif kind == SLAB_DEAD_CPU:
        dead_cpu(s, int(op["arg2"]))


@slow
def shutdown(s: Any, c: int) -> None:
    """``free_partial``: a cache that goes gives its empty slabs back."""
    row = int(s.slab[c]["next"])
    while row != c:
        following = int(s.slab[row]["next"])
        if int(s.slab[row]["inuse"]) == 0:
            remove_partial(s, row)
            discard_slab(s, row)
        row = following
    s.cache[c]["live"] = 0


@slow
def dead_cpu(s: Any, cpu: int) -> None:
    """``slub_cpu_dead``: all that a CPU held goes to the nodes' lists."""
    for c in range(int(s.config[0]["caches"])):
        packed = flush_slab(s, c, cpu)
        if packed != END and deactivate_slab(s, packed):
            discard_slab(s, packed >> SLOT_BITS)
        first = take_partials(s, c, cpu)
        if first != END:
            discard_all(s, unfreeze_partials(s, c, first))
