"""From printed events to requests in the order in which the free lists really changed.

``mm_page_alloc`` is printed after the page was taken and outside every lock, so between the taking and the printing another task, a soft
interrupt or another CPU may take or free pages. What is raised inside the work gives the true order:

- ``mm_page_alloc_zone_locked``, ``mm_page_alloc_extfrag`` and ``mm_page_pcpu_drain`` under ``zone->lock``;
- the recorder's probes (recording/capture/probes.py) under the per-CPU lock or the zone lock.

Each request is placed at the event inside its own locked section. A section that takes the zone lock for a refill is placed at the first
event under that lock: what it does to the per-CPU list is invisible to others until it lets go of it. A free that leads to a drain is two
operations: the list takes the page, and says how much must go, at the free's own mark; the pages go at the first event under the zone lock. A request belongs to the marks of its own context: the
task, or for interrupts the CPU and the interrupt level. Nothing is taken from the answers: a page frame number never places an event.

The result is a table of operations (`OP`) that `engine` executes one after the other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin._jit import inner, kernel
from mmtwin.recording.model import KIND, KINDS, Snapshot

(
    NOP,
    ALLOC,
    ALLOC_FAILED,
    PREPARE,
    PCP_FREE,
    BUDDY_FREE,
    BULK_BEGIN,
    BULK_LOCKED,
    BULK_END,
    DRAIN,
    ISOLATED,
    MOVE_BLOCK,
    FOLD,
    WMARKS,
    BALANCE,
    RECLAIM_SET,
    RECLAIM_CLEAR,
    THRESHOLDS,
    LRU_ADD,
    ROTATE,
    PAGESET,
    STAT_THRESHOLDS,
    CPU_FOLD,
    WALK,
    UNBOOST,
    FREE_DRAIN,
    OWNERSHIP,
    WAKE_KSWAPD,
) = range(28)

(
    SLAB_TAKE,
    SLAB_GIVE,
    SLAB_ALLOC_EVENT,
    SLAB_FREE_EVENT,
    SLAB_SLOW,
    SLAB_REFILL,
    SLAB_CPU_PARTIAL,
    SLAB_DEACTIVATE,
    SLAB_LOAD,
    SLAB_NODE_PARTIAL,
    SLAB_NEW,
    SLAB_EXCHANGE,
    SLAB_PUT_PARTIAL,
    SLAB_UNFREEZE,
    SLAB_BULK_ALLOC,
    SLAB_BULK_POP,
    SLAB_BULK_GOT,
    SLAB_BULK_FREE,
    SLAB_FLUSH,
    SLAB_FLUSH_SLAB,
    SLAB_FLUSH_PARTIAL,
    SLAB_SHRINK,
    SLAB_SHRINK_LOCK,
    SLAB_CREATE,
    SLAB_DESTROY,
    SLAB_SHUTDOWN_LOCK,
    SLAB_DEAD_CPU,
) = range(32, 59)
RETRIED = 31
"""An exchange that failed: nothing to be done."""
"""Operations of the slab allocator: `slabs` executes them. Each is already at its true place, because its mark is raised where the work is done."""

OP = np.dtype(
    [
        ("at", "i8"),  # place: row of the event inside the lock
        ("event", "i8"),  # row of the event that says what was asked
        ("pfn", "i8"),  # what the kernel answered, or what is freed
        ("gfp", "i8"),
        ("arg", "i8"),
        ("arg2", "i8"),
        ("op", "i1"),
        ("cpu", "i2"),
        ("order", "i1"),
        ("migratetype", "i1"),
        ("contended", "i1"),  # the per-CPU lock was taken, so the request went straight to the buddy lists
        ("placed", "i1"),  # 1: by an event inside the lock; 0: there was none, the printed place stands
        ("context", "i4"),  # the task or interrupt that did it
    ],
    align=True,
)

CONTEXT = np.dtype(
    [
        ("group", "i8"), ("group_cpu", "i8"),  # first event of an open section under zone->lock
        ("mark", "i8"), ("mark_cpu", "i8"),  # a page has been taken from a per-CPU list
        ("bulk", "i8"), ("bulk_op", "i8"), ("bulk_end", "i8"),
        ("free", "i8"),  # the operation a following drain belongs to
        ("drain", "i8"), ("drain_left", "i8"), ("drain_zone", "i8"), ("drain_cpu", "i8"),
        ("isolate", "i8"),
        ("walk", "i8"), ("walk_flags", "i8"),  # the zones have been tested, with these flags
        ("take", "i8"), ("give", "i8"),  # a slab's exchange that may yet turn out to have failed
        ("refill", "i8"),  # whether it got an object is known by what comes next
    ]
)  # fmt: skip
"""What is going on in one context (a task, or an interrupt level of a CPU)."""

K_ALLOC, K_FREE, K_BATCHED, K_LOCKED, K_DRAIN, K_EXTFRAG = (
    KIND[k] for k in ("mm_page_alloc", "mm_page_free", "mm_page_free_batched", "mm_page_alloc_zone_locked", "mm_page_pcpu_drain", "mm_page_alloc_extfrag")
)
K_PCP_ALLOC, K_PCP_FREE, K_BUDDY_FREE, K_WALK, K_STEAL, K_PAGESET = (KIND[k] for k in ("pcp_alloc", "pcp_free", "buddy_free", "walk", "steal", "pageset"))
K_KMALLOC = KIND["kmalloc"]
K_BULK, K_BULK_END, K_BULK_RET, K_DRAIN_ZONE, K_ISOLATE, K_ISOLATE_RET = (
    KIND[k] for k in ("bulk", "bulk_end", "bulk_ret", "drain_zone", "isolate", "isolate_ret")
)

SINGLE = {
    "mm_lru_insertion": LRU_ADD, "move_block": MOVE_BLOCK, "fold": FOLD, "cpu_fold": CPU_FOLD, "wmarks": WMARKS, "balance": BALANCE, "reclaim_set": RECLAIM_SET,
    "reclaim_clear": RECLAIM_CLEAR, "unboost": UNBOOST, "thresholds": THRESHOLDS, "stat_thresholds": STAT_THRESHOLDS, "pageset": PAGESET, "rotate": ROTATE,
    "wakeup_kswapd": WAKE_KSWAPD,
}  # fmt: skip
"""Kinds of events that are an operation by themselves, at their own place."""
SLAB_SINGLE = {
    "kmalloc": SLAB_ALLOC_EVENT, "kmem_cache_alloc": SLAB_ALLOC_EVENT, "kfree": SLAB_FREE_EVENT, "kmem_cache_free": SLAB_FREE_EVENT, "slab_take": SLAB_TAKE,
    "slab_give": SLAB_GIVE, "slab_slow": SLAB_SLOW, "slab_refill": SLAB_REFILL, "slab_cpu_partial": SLAB_CPU_PARTIAL, "slab_deactivate": SLAB_DEACTIVATE,
    "slab_load": SLAB_LOAD, "slab_node_partial": SLAB_NODE_PARTIAL, "slab_new": SLAB_NEW, "slab_cmpxchg": SLAB_EXCHANGE, "slab_put_partial": SLAB_PUT_PARTIAL,
    "slab_unfreeze": SLAB_UNFREEZE, "slab_bulk_alloc": SLAB_BULK_ALLOC, "slab_bulk_pop": SLAB_BULK_POP, "slab_bulk_got": SLAB_BULK_GOT,
    "slab_bulk_free": SLAB_BULK_FREE, "slab_flush": SLAB_FLUSH, "slab_flush_slab": SLAB_FLUSH_SLAB, "slab_flush_partial": SLAB_FLUSH_PARTIAL,
    "slab_shrink": SLAB_SHRINK, "slab_shrink_lock": SLAB_SHRINK_LOCK, "slab_create": SLAB_CREATE, "slab_destroy": SLAB_DESTROY,
    "slab_shutdown_lock": SLAB_SHUTDOWN_LOCK, "slab_dead_cpu": SLAB_DEAD_CPU,
}  # fmt: skip
"""Kinds of events that are an operation of the slab allocator, where the recording has its marks."""
OP_OF_KIND = tuple(SINGLE.get(kind, NOP) for kind in KINDS)
SLAB_OP_OF_KIND = tuple(SLAB_SINGLE.get(kind, NOP) for kind in KINDS)


class Events(NamedTuple):
    """The columns that placement reads, as arrays of equal length. `cache` is the slab cache that an event names by its address, -1 if it names none;
    `objects` where the pointers of a silent bulk call begin in `Placement.objects`."""

    kind: npt.NDArray[np.int64]
    cpu: npt.NDArray[np.int64]
    context: npt.NDArray[np.int64]
    pfn: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    migratetype: npt.NDArray[np.int64]
    gfp: npt.NDArray[np.int64]
    arg: npt.NDArray[np.int64]
    bytes_req: npt.NDArray[np.int64]
    bytes_alloc: npt.NDArray[np.int64]
    ptr: npt.NDArray[np.int64]
    cache: npt.NDArray[np.int64]
    objects: npt.NDArray[np.int64]


class Placement(NamedTuple):
    """The operations in their true order, and what it took to find it.

    :param bulks: number of bulk requests (they share state across several operations).
    :param contexts: number of contexts (what a walk over the zones found waits there for the allocation).
    :param late: allocations that were printed after something that really came later.
    :param unplaced: allocations without any event inside a lock.
    :param objects: pointers of the slab's silent bulk calls, one call behind the other.
    :param retried: marks of exchanges that failed and were done again.
    :param fresh: which operations make a slab, ascending: the tables must have room for it.
    """

    ops: npt.NDArray[np.void]
    bulks: int
    contexts: int
    late: int
    unplaced: int
    objects: npt.NDArray[np.int64]
    retried: int
    fresh: npt.NDArray[np.int64]


@inner
def _add(ops: npt.NDArray[np.void], n: int, kind: int, e: Events, i: int) -> int:
    """Writes operation `n` with all that event `i` says, placed where it was printed; returns n + 1."""
    op = ops[n]
    op["op"] = kind
    op["at"] = i
    op["event"] = i
    op["cpu"] = e.cpu[i]
    op["pfn"] = e.pfn[i]
    op["order"] = max(e.order[i], 0)
    op["migratetype"] = e.migratetype[i]
    op["gfp"] = e.gfp[i]
    op["arg"] = e.arg[i]
    op["arg2"] = 0
    op["contended"] = 0
    op["placed"] = 0
    op["context"] = e.context[i]
    return n + 1


@inner
def _move(op: npt.NDArray[np.void], at: int, cpu: int) -> None:
    """Places an operation at the event inside its lock, on the CPU that held it."""
    op["at"] = at
    op["cpu"] = cpu
    op["placed"] = 1


@inner
def _leave_bulk(ops: npt.NDArray[np.void], n: int, c: npt.NDArray[np.void]) -> None:
    """The bulk request of this context fell back to a single page, operation n - 1: the locked sections it went through were that one's."""
    op = ops[n - 1]
    for k in range(n - 2, int(c["bulk_op"]), -1):
        if int(ops[k]["op"]) == BULK_LOCKED and int(ops[k]["arg"]) == int(c["bulk"]):
            ops[k]["op"] = NOP
            _move(op, int(ops[k]["at"]), int(ops[k]["cpu"]))
    if int(c["bulk_end"]) >= 0:
        ops[int(c["bulk_end"])]["op"] = NOP
    c["bulk"] = -1


@inner
def _place_alloc(e: Events, i: int, c: npt.NDArray[np.void], ops: npt.NDArray[np.void], n: int, probed: bool) -> int:
    """mm_page_alloc: the request ends here; its place is the context's last mark."""
    n = _add(ops, n, ALLOC if e.pfn[i] >= 0 else ALLOC_FAILED, e, i)
    op = ops[n - 1]
    op["arg"] = 1 if int(c["walk"]) else -1
    op["arg2"] = int(c["walk_flags"])
    if int(c["bulk"]) >= 0:
        _leave_bulk(ops, n, c)
    if e.pfn[i] >= 0:
        if int(c["group"]) >= 0:
            _move(op, int(c["group"]), int(c["group_cpu"]))
            op["contended"] = 1 if probed and int(c["mark"]) < 0 else 0
        elif int(c["mark"]) >= 0 and int(op["placed"]) == 0:
            _move(op, int(c["mark"]), int(c["mark_cpu"]))
    c["group"] = -1
    c["mark"] = -1
    c["walk"] = 0
    return n


@inner
def _place_drain(e: Events, i: int, c: npt.NDArray[np.void], ops: npt.NDArray[np.void], n: int, chunk: npt.NDArray[np.int64]) -> int:
    """mm_page_pcpu_drain: the first one places the drain that a free led to, or a piece of a drain of the whole list."""
    if int(c["free"]) >= 0:
        free = ops[int(c["free"])]
        free["arg2"] = 1
        n = _add(ops, n, FREE_DRAIN, e, i)
        ops[n - 1]["pfn"] = int(free["pfn"])
        ops[n - 1]["order"] = int(free["order"])
        c["free"] = -1
        c["drain"] = -1
    elif int(c["drain"]) >= 0:
        if int(c["drain_left"]) <= 0:
            n = _add(ops, n, DRAIN, e, i)
            ops[n - 1]["arg"] = int(c["drain_cpu"])
            ops[n - 1]["migratetype"] = int(c["drain_zone"])
            c["drain_left"] = chunk[int(c["drain_zone"])]
        c["drain_left"] = int(c["drain_left"]) - (1 << e.order[i])
    return n


@inner
def _slab_op(e: Events, i: int, c: npt.NDArray[np.void], ops: npt.NDArray[np.void], n: int, kind: int) -> int:
    """An operation of the slab allocator.

    The mark of an exchange (``cmpxchg16b``) is raised before it, and the exchange may fail: then the kernel tries again, and only the last one counts.
    A refill that another CPU raced with is told by what came next: it went on looking, or it had its object (`contended`).
    An allocation's has failed if the same context goes for the same cache once more before its event; a free's if the same object comes again.
    """
    n = _add(ops, n, kind, e, i)
    op = ops[n - 1]
    op["pfn"] = e.ptr[i]
    op["arg"] = e.cache[i]
    op["arg2"] = e.arg[i]
    if kind == SLAB_TAKE or kind == SLAB_SLOW:
        if int(c["take"]) >= 0 and int(ops[int(c["take"])]["arg"]) == e.cache[i]:
            ops[int(c["take"])]["op"] = RETRIED
        c["take"] = n - 1 if kind == SLAB_TAKE else -1
        c["give"] = -1
        c["refill"] = -1
    elif kind == SLAB_GIVE or kind == SLAB_EXCHANGE:
        op["pfn"] = e.pfn[i]
        if int(c["give"]) >= 0 and int(ops[int(c["give"])]["arg2"]) == e.arg[i]:
            ops[int(c["give"])]["op"] = RETRIED
        c["give"] = n - 1
        c["take"] = -1
    else:
        c["give"] = -1
        c["take"] = -1
        if int(c["refill"]) >= 0:
            if kind == SLAB_CPU_PARTIAL or kind == SLAB_NODE_PARTIAL or kind == SLAB_NEW or kind == SLAB_REFILL:
                ops[int(c["refill"])]["contended"] = 1
            c["refill"] = -1
        if kind == SLAB_REFILL:
            c["refill"] = n - 1
        if kind == SLAB_ALLOC_EVENT:
            op["arg"] = e.bytes_alloc[i]
            op["arg2"] = e.bytes_req[i]
            op["order"] = 1 if e.kind[i] == K_KMALLOC else 0
        elif kind == SLAB_BULK_FREE or kind == SLAB_BULK_GOT:
            op["gfp"] = e.objects[i]
    return n


@kernel
def _place(
    e: Events, contexts: npt.NDArray[np.void], ops: npt.NDArray[np.void], batched: npt.NDArray[np.uint8], probed: bool, chunk: npt.NDArray[np.int64],
    scale: int, slabs: bool,
) -> tuple[int, int]:  # fmt: skip
    """Fills `ops` (at most two per event); returns how many there are, and the number of bulk requests."""
    n = 0
    bulks = 0
    for i in range(len(e.kind)):
        kind = e.kind[i]
        c = contexts[e.context[i]]
        if kind == K_ALLOC:
            n = _place_alloc(e, i, c, ops, n, probed)
        elif kind == K_LOCKED or kind == K_EXTFRAG or kind == K_STEAL:
            if int(c["bulk"]) >= 0:
                if kind == K_LOCKED:
                    n = _add(ops, n, BULK_LOCKED, e, i)
                    ops[n - 1]["arg"] = int(c["bulk"])
            elif int(c["group"]) < 0:
                c["group"] = i
                c["group_cpu"] = e.cpu[i]
            if kind == K_EXTFRAG and int(c["bulk"]) < 0:
                n = _add(ops, n, OWNERSHIP, e, i)
                ops[n - 1]["arg"] = e.bytes_req[i]
                ops[n - 1]["arg2"] = e.bytes_alloc[i]
        elif kind == K_WALK:
            n = _add(ops, n, WALK, e, i)
            ops[n - 1]["arg2"] = e.arg[i]
            c["walk"] = 1
            c["walk_flags"] = e.arg[i]
            if int(c["refill"]) >= 0:  # it needed a new slab
                ops[int(c["refill"])]["contended"] = 1
                c["refill"] = -1
        elif kind == K_PCP_ALLOC:
            c["mark"] = int(c["group"]) if int(c["group"]) >= 0 else i
            c["mark_cpu"] = e.cpu[i]
            c["group"] = -1
        elif kind == K_FREE:
            n = _add(ops, n, PREPARE, e, i)
            if not probed and not batched[i]:
                n = _add(ops, n, PCP_FREE, e, i)
                c["free"] = n - 1
        elif kind == K_PCP_FREE or (kind == K_BATCHED and not probed):
            n = _add(ops, n, PCP_FREE, e, i)
            c["free"] = n - 1
            c["drain"] = -1
        elif kind == K_BUDDY_FREE:
            n = _add(ops, n, BUDDY_FREE, e, i)
            c["free"] = -1
            c["drain"] = -1
        elif kind == K_DRAIN:
            n = _place_drain(e, i, c, ops, n, chunk)
        elif kind == K_DRAIN_ZONE:
            c["drain"] = i
            c["drain_left"] = 0
            c["drain_cpu"] = e.arg[i]
            c["drain_zone"] = e.migratetype[i]
            c["free"] = -1
        elif kind == K_BULK:
            n = _add(ops, n, BULK_BEGIN, e, i)
            ops[n - 1]["arg"] = bulks
            ops[n - 1]["arg2"] = e.arg[i]
            c["bulk"] = bulks
            c["bulk_op"] = n - 1
            c["bulk_end"] = -1
            bulks += 1
        elif kind == K_BULK_END:
            n = _add(ops, n, BULK_END, e, i)
            ops[n - 1]["arg"] = int(c["bulk"])
            c["bulk_end"] = n - 1
        elif kind == K_BULK_RET:
            if int(c["bulk"]) >= 0 and int(c["bulk_end"]) >= 0:
                ops[int(c["bulk_end"])]["arg2"] = e.arg[i]
            c["bulk"] = -1
        elif kind == K_ISOLATE:
            n = _add(ops, n, ISOLATED, e, i)
            c["isolate"] = n - 1
        elif kind == K_ISOLATE_RET:
            if int(c["isolate"]) >= 0 and e.arg[i] == 0:
                ops[int(c["isolate"])]["op"] = NOP
            c["isolate"] = -1
        elif slabs and SLAB_OP_OF_KIND[kind]:
            n = _slab_op(e, i, c, ops, n, SLAB_OP_OF_KIND[kind])
        elif OP_OF_KIND[kind]:
            if kind == K_PAGESET:
                chunk[e.migratetype[i]] = e.bytes_alloc[i] << scale
            n = _add(ops, n, OP_OF_KIND[kind], e, i)
            ops[n - 1]["arg2"] = e.bytes_req[i]
            ops[n - 1]["gfp"] = e.bytes_alloc[i]
    return n, bulks


def context_ids(events: pl.DataFrame, probed: bool) -> tuple[npt.NDArray[np.int64], int]:
    """A dense number for each context. A task keeps its own across CPUs; the idle task and interrupts belong to a CPU.

    A probe cannot tell a hard interrupt from what it interrupted, so with probes both are one context: what a hard interrupt does is nested in the other.
    """
    pid, cpu, level = (events[c].cast(pl.Int64).to_numpy() for c in ("pid", "cpu", "context"))
    if probed:
        level = np.where(level == 2, 0, np.where(level == 3, 1, level))
    if not len(pid):
        return np.zeros(0, dtype=np.int64), 0
    slots = 4 * (int(cpu.max()) + 1)
    key = np.where((level > 0) | (pid == 0), cpu * 4 + level, slots + np.maximum(pid, 0))
    used = np.zeros(int(key.max()) + 1, dtype=bool)
    used[key] = True
    return (np.cumsum(used) - 1)[key], int(np.count_nonzero(used))


def place(events: pl.DataFrame, before: Snapshot | None = None, batch_scale_max: int = 5, caches: SlabNames | None = None) -> Placement:
    """Puts the requests of an events table in their true order.

    :param before: the first snapshot; its batch sizes tell where one drain of a CPU's lists ends and the next begins.
    :param caches: which slab cache an address means; without it the slab's events are left out.
    """
    kind = events["kind"].cast(pl.Enum(KINDS)).to_physical().cast(pl.Int64).to_numpy()
    contexts, count = context_ids(events, bool(np.any(kind == K_PCP_FREE)))
    columns = ("cpu", "pfn", "order", "migratetype", "gfp", "arg", "bytes_req", "bytes_alloc")
    column = {c: np.ascontiguousarray(events[c].cast(pl.Int64).to_numpy()) for c in columns}
    column["ptr"] = column["arg"] if caches is None else np.ascontiguousarray(events["ptr"].cast(pl.Int64).to_numpy())
    cache, where, objects = _slab_columns(kind, column["ptr"], caches)
    e = Events(kind=np.ascontiguousarray(kind), context=contexts, cache=cache, objects=where, **column)
    e = Events(*(np.require(a, np.int64, ["C", "W"]) for a in e))
    context_table = np.zeros(max(count, 1), dtype=CONTEXT)
    for name in ("group", "mark", "bulk", "bulk_end", "free", "drain", "isolate", "take", "give", "refill"):
        context_table[name] = -1
    probed = bool(np.any(kind == K_PCP_FREE))
    batched = np.zeros(len(kind), dtype=np.uint8) if probed else _batched(e)
    chunk = np.full(8, 1 << 30, dtype=np.int64)
    if before is not None:
        for zone, batch in before.pcp.group_by("zone").agg(pl.col("batch").max()).iter_rows():
            chunk[zone] = batch << batch_scale_max
    room = int(np.count_nonzero(kind == K_FREE)) + len(kind)
    ops = np.zeros(room, dtype=OP)
    n, bulks = _place(e, context_table, ops, batched, probed, chunk, batch_scale_max, caches is not None)
    ops = ops[:n]
    retried = int(np.count_nonzero(ops["op"] == RETRIED))
    ops["op"][ops["op"] == RETRIED] = NOP
    words = ops.view(np.int64).reshape(len(ops), OP.itemsize // 8)  # moving whole rows as words is ten times as fast as moving records
    ops = words.take(np.argsort(ops["at"], kind="stable"), axis=0).view(OP).ravel()
    requests = (ops["op"] == ALLOC) | (ops["op"] == PCP_FREE) | (ops["op"] == BUDDY_FREE) | (ops["op"] == PREPARE)
    printed = ops["event"][requests]
    later = np.minimum.accumulate(printed[::-1])[::-1]
    late = int(np.count_nonzero((printed > later) & (ops["op"][requests] == ALLOC)))
    unplaced = int(np.count_nonzero((ops["op"] == ALLOC) & (ops["placed"] == 0)))
    return Placement(ops, bulks, count, late, unplaced, objects, retried, np.flatnonzero(ops["op"] == SLAB_NEW))


def _slab_columns(
    kind: npt.NDArray[np.int64], ptr: npt.NDArray[np.int64], caches: SlabNames | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each event the slab cache it names and where its bulk pointers begin; and all bulk pointers."""
    cache = np.full(len(kind), -1, dtype=np.int64)
    if caches is None:
        return cache, np.zeros(len(kind), dtype=np.int64), np.zeros(0, dtype=np.int64)
    object_row = kind == KIND["slab_bulk_object"]
    where = np.cumsum(object_row)  # the pointers of a call are the rows behind it
    for names, kinds in ((caches.cpu_slabs, ("slab_take", "slab_give")), (caches.caches, CACHE_KINDS)):
        rows = np.flatnonzero(np.isin(kind, [KIND[k] for k in kinds]))
        cache[rows] = names.look_up(ptr[rows], rows)
    return cache, where, ptr[object_row]


CACHE_KINDS = ("slab_slow", "slab_bulk_alloc", "slab_bulk_free", "slab_flush", "slab_shrink", "slab_create", "slab_destroy")
"""Events that name a cache by the address of its ``struct kmem_cache``."""


class Names(NamedTuple):
    """What an address stood for, event by event: caches come and go, and their addresses are used again.

    :param address: sorted; with `since`, the event from which on it stood for `cache`.
    """

    address: npt.NDArray[np.int64]
    since: npt.NDArray[np.int64]
    cache: npt.NDArray[np.int64]

    def look_up(self, addresses: npt.NDArray[np.int64], events: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The cache of each address at each event, -1 if unknown."""
        found = np.full(len(addresses), -1, dtype=np.int64)
        known, first, times = np.unique(self.address, return_index=True, return_counts=True)
        if len(known):
            at = np.minimum(np.searchsorted(known, addresses), len(known) - 1)
            hit = (known[at] == addresses) & (events >= self.since[first[at]])
            found[hit] = self.cache[first[at[hit]]]
        for k in np.flatnonzero(times > 1).tolist():  # an address that was used again
            for row in np.flatnonzero(self.address == known[k]).tolist():
                found[(addresses == known[k]) & (events >= self.since[row])] = self.cache[row]
        return found


class SlabNames(NamedTuple):
    """Slab caches by the address of their ``struct kmem_cache`` and of their ``cpu_slab``."""

    caches: Names
    cpu_slabs: Names


def _batched(e: Events) -> npt.NDArray[np.uint8]:
    """Marks each mm_page_free that a mm_page_free_batched of the same page follows: the page reaches its list only there."""
    marks = np.zeros(len(e.kind), dtype=np.uint8)
    pending: dict[int, int] = {}
    for i in np.flatnonzero((e.kind == K_FREE) | (e.kind == K_BATCHED)).tolist():
        if e.kind[i] == K_FREE:
            pending[int(e.pfn[i])] = i
        elif (at := pending.pop(int(e.pfn[i]), None)) is not None:
            marks[at] = 1
    return marks
