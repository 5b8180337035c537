"""Replays the classic SLAB's part of a recording: every allocated object predicted, and the final state compared.

A pass of its own over the events. On one CPU each mark of `recording.capture.slab_probes_classic` stands for a section that runs with interrupts off,
so the sections are executed at their marks, one after the other. Pages of new slabs are taken from the ``mm_page_alloc`` that is raised inside the section.

An object is predicted at its section's mark; the tracepoint that names it comes later, after interrupts were on again. Predictions wait until then, and
each tracepoint must name one that waits. With several CPUs the marks come before the node's lock is taken, and figures are only nearly those of the kernel.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin._jit import inner, kernel, slow
from mmtwin.errors import RecordingError
from mmtwin.mm.slab import (
    alloc_block,
    check_free,
    cpu_array,
    drain_array_locked,
    drain_one,
    flush,
    grow_begin,
    grow_end,
    has_room,
    node_alloc,
    number_of,
    put,
    refill,
    release_row,
    slab_get_obj,
    take,
)
from mmtwin.mm.slab_classic_geometry import OFF_SLAB
from mmtwin.mm.slab_classic_tables import END, SLAB_DISCARDED, SLAB_LIVE, V6_1, ClassicSlab
from mmtwin.recording.model import Recording, Snapshot
from mmtwin.recording.slab_classic import CLASSIC_TABLES
from mmtwin.recording.slab_classic_state import CHANGING, classic_tables_of, restore_classic
from mmtwin.replay.part import Part

PAGE_SHIFT = 12
(NOP, ALLOC, BULK_ALLOC, FREE, GROW_END, NODE_ALLOC, UNTOUCH, DRAIN, NODE_REAP, FREE_UNTOUCH, DRAIN_FREE, DO_DRAIN, PAGE_ALLOC, PAGE_FREE, SAID) = range(15)
OP_OF_KIND = {
    "cslab_alloc": ALLOC, "cslab_bulk_alloc": BULK_ALLOC, "cslab_free": FREE, "cslab_grow_end": GROW_END, "cslab_node_alloc": NODE_ALLOC,
    "cslab_untouch": UNTOUCH, "cslab_drain": DRAIN, "cslab_node_reap": NODE_REAP, "cslab_free_untouch": FREE_UNTOUCH, "cslab_drain_free": DRAIN_FREE,
    "cslab_do_drain": DO_DRAIN, "mm_page_alloc": PAGE_ALLOC, "mm_page_free": PAGE_FREE, "kmalloc": SAID, "kmem_cache_alloc": SAID, "kmalloc_node": SAID,
    "kmem_cache_alloc_node": SAID,
}  # fmt: skip
LARGEST = 8192
"""KMALLOC_MAX_CACHE_SIZE: larger kmalloc requests are pages."""
DEPTH, PARKED, WAITING = 16, 64, 4096
REFILL, NODE, FALLBACK = 1, 2, 3
"""What an open request grows for: its array, itself, or itself with reclaim (and interrupts on)."""
UNKNOWN = -2

FRAME = np.dtype([("cache", "i8"), ("batch", "i8"), ("stage", "i8"), ("row", "i8"), ("failed", "i8"), ("bulk", "i8"), ("pid", "i8")])
"""A request that has begun and waits for a new slab."""
COUNT = np.dtype(
    [(name, "i8") for name in (
        "objects", "equal", "bulk_objects", "frees", "wrong_frees", "slabs_made", "slabs_freed", "wrong_pages", "failed", "fallbacks", "unknown", "unmatched",
        "missing", "no_room", "depth", "parked", "waiting",
    )]
)  # fmt: skip


class Events(NamedTuple):
    """Columns of the operations: what, on which CPU, whose (pid), a row, page frame or object, and another number."""

    op: npt.NDArray[np.int64]
    cpu: npt.NDArray[np.int64]
    pid: npt.NDArray[np.int64]
    a: npt.NDArray[np.int64]
    z: npt.NDArray[np.int64]


class Progress(NamedTuple):
    """The replay's own state: open requests by CPU, parked ones, predictions that wait, counts, and the first differences."""

    frames: npt.NDArray[np.void]
    depth: npt.NDArray[np.int64]
    parked: npt.NDArray[np.void]
    waiting: npt.NDArray[np.int64]
    counts: npt.NDArray[np.void]
    differences: npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassicResult:
    """What the replay found.

    :param slab_allocs: objects that a tracepoint names, and how many of them were predicted.
    :param bulk_objects: predicted objects that no tracepoint names; their frees are checked.
    :param frees: frees, and those of objects that the twin does not have handed out.
    :param wrong_pages: pages that the kernel uses otherwise while the twin has a slab there, or frees while the twin keeps it.
    :param fallbacks: requests that had to wait for reclaim.
    :param unknown: marks of caches that the first snapshot does not have.
    :param unmatched: marks that fit to no request.
    :param differences: event, the kernel's object and the prediction (physical addresses, -1 for none) of the first few.
    """

    events: int
    slab_allocs: int
    slab_allocs_equal: int
    bulk_objects: int
    frees: int
    wrong_frees: int
    slabs_made: int
    slabs_freed: int
    wrong_pages: int
    failed_allocs: int
    fallbacks: int
    unknown: int
    unmatched: int
    differences: list[tuple[int, int, int]]
    parts: list[Part]
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether the twin answered every request as the kernel did and ended in the same state."""
        good = self.slab_allocs == self.slab_allocs_equal and not (self.wrong_frees or self.wrong_pages or self.unmatched)
        return good and all(part.equal == part.total for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return {"equal": self.equal, **asdict(self)}


@inner
def promise(p: Any, address: int, bulk: int) -> None:
    """An object was predicted; unless it is a bulk request's, a tracepoint will name it."""
    count = p.counts[0]
    if bulk:
        count["bulk_objects"] = int(count["bulk_objects"]) + 1
        return
    n = int(count["waiting"])
    if n < len(p.waiting):
        p.waiting[n] = address
        count["waiting"] = n + 1


@slow
def said(p: Any, event: int, address: int) -> None:
    """A tracepoint names an object: it must be one that waits."""
    count = p.counts[0]
    n = int(count["waiting"])
    count["objects"] = int(count["objects"]) + 1
    at = -1
    for i in range(n - 1, -1, -1):
        if p.waiting[i] == address:
            at = i
            break
    if at >= 0:
        count["equal"] = int(count["equal"]) + 1
    else:
        for i in range(n - 1, -1, -1):
            if p.waiting[i] == UNKNOWN:
                at = i
                break
        if at >= 0:
            count["objects"] = int(count["objects"]) - 1
        else:
            k = int(count["missing"])
            if k < len(p.differences):
                p.differences[k, 0] = event
                p.differences[k, 1] = address
                p.differences[k, 2] = p.waiting[n - 1] if n else -1
            count["missing"] = k + 1
            at = n - 1
    if at >= 0:
        for i in range(at, n - 1):
            p.waiting[i] = p.waiting[i + 1]
        count["waiting"] = n - 1


@slow
def begin(s: Any, p: Any, cpu: int, pid: int, array: int, bulk: int) -> None:
    """``____cache_alloc``: from the array, after a refill, or after a new slab, for which the request stays open."""
    count = p.counts[0]
    if array < 0:
        count["unknown"] = int(count["unknown"]) + 1
        promise(p, UNKNOWN, bulk)
        return
    address = take(s, array)
    if address == END:
        c = array // (int(s.config[0]["nr_cpus"]) + 1)
        batch = refill(s, c, cpu)
        if int(s.array[array]["avail"]) == 0:
            depth = int(p.depth[cpu])
            if depth >= DEPTH:
                count["unmatched"] = int(count["unmatched"]) + 1
                return
            frame = p.frames[cpu * DEPTH + depth]
            frame["cache"] = c
            frame["batch"] = batch
            frame["stage"] = REFILL
            frame["row"] = END
            frame["failed"] = 0
            frame["bulk"] = bulk
            frame["pid"] = pid
            p.depth[cpu] = depth + 1
            return
        address = take(s, array)
    promise(p, address, bulk)


@slow
def page_got(s: Any, p: Any, cpu: int, pfn: int, order: int) -> bool:
    """A page allocation inside an open request gives the slab's pages; false if there is no request that waits for any."""
    depth = int(p.depth[cpu])
    if depth == 0:
        return False
    frame = p.frames[cpu * DEPTH + depth - 1]
    c = int(frame["cache"])
    if int(frame["row"]) != END or int(frame["failed"]) or int(s.cache[c]["order"]) != order:
        return False
    if pfn < 0:
        frame["failed"] = 1
        return True
    frame["row"] = make(s, p, c, pfn)
    return True


@slow
def make(s: Any, p: Any, c: int, pfn: int) -> int:
    """``cache_grow_begin`` at these pages; END if the tables are full."""
    if not has_room(s, c) or pfn + (1 << int(s.cache[c]["order"])) > len(s.frame):
        p.counts[0]["no_room"] = 1
        return END
    p.counts[0]["slabs_made"] = int(p.counts[0]["slabs_made"]) + 1
    return grow_begin(s, c, pfn)


@slow
def own(s: Any, row: int) -> int:
    """An object of a new slab for the request itself."""
    address = slab_get_obj(s, row)
    s.used[int(s.slab[row]["index"]) + number_of(s, row, address)] = 1
    return address


@slow
def parked(p: Any, c: int, pid: int) -> int:
    """The parked request of this task for this cache, or -1."""
    for i in range(int(p.counts[0]["parked"])):
        if int(p.parked[i]["cache"]) == c and int(p.parked[i]["pid"]) == pid:
            return i
    return -1


@slow
def unpark(p: Any, at: int) -> None:
    """Forgets a parked request."""
    count = p.counts[0]
    last = int(count["parked"]) - 1
    p.parked[at]["cache"] = int(p.parked[last]["cache"])
    p.parked[at]["pid"] = int(p.parked[last]["pid"])
    p.parked[at]["bulk"] = int(p.parked[last]["bulk"])
    count["parked"] = last


@slow
def park(p: Any, c: int, pid: int, bulk: int) -> None:
    """A request goes on with interrupts on: what follows on this CPU need not be its own."""
    count = p.counts[0]
    n = int(count["parked"])
    if n < PARKED:
        p.parked[n]["cache"] = c
        p.parked[n]["pid"] = pid
        p.parked[n]["bulk"] = bulk
        count["parked"] = n + 1
    count["fallbacks"] = int(count["fallbacks"]) + 1


@slow
def grown(s: Any, p: Any, cpu: int, pid: int, c: int, pfn: int) -> None:
    """``cache_grow_end``: the new slab comes on its list, and its request has its object; or there is no slab."""
    count = p.counts[0]
    depth = int(p.depth[cpu])
    if depth and int(p.frames[cpu * DEPTH + depth - 1]["cache"]) == c:
        frame = p.frames[cpu * DEPTH + depth - 1]
        row = int(frame["row"])
        bulk = int(frame["bulk"])
        if row == END:
            if int(frame["stage"]) == REFILL:
                frame["stage"] = NODE
                frame["failed"] = 0
            else:
                p.depth[cpu] = depth - 1
                park(p, c, int(frame["pid"]), bulk)
            return
        p.depth[cpu] = depth - 1
        if int(frame["stage"]) == REFILL:
            ac = cpu_array(s, c, cpu)
            if int(s.array[ac]["avail"]) == 0:
                alloc_block(s, c, ac, row, int(frame["batch"]))
            grow_end(s, c, row)
            promise(p, take(s, ac), bulk)
        else:
            address = own(s, row)
            grow_end(s, c, row)
            promise(p, address, bulk)
        return
    if parked(p, c, pid) >= 0:
        if pfn >= 0:
            row = make(s, p, c, pfn)
            if row != END:
                grow_end(s, c, row)
    else:
        count["unmatched"] = int(count["unmatched"]) + 1


@slow
def from_node(s: Any, p: Any, cpu: int, pid: int, c: int) -> None:
    """``____cache_alloc_node``, after a refill that got no page, or after reclaim."""
    depth = int(p.depth[cpu])
    if depth and int(p.frames[cpu * DEPTH + depth - 1]["cache"]) == c and int(p.frames[cpu * DEPTH + depth - 1]["stage"]) == NODE:
        address = node_alloc(s, c)
        if address != END:
            p.depth[cpu] = depth - 1
            promise(p, address, int(p.frames[cpu * DEPTH + depth - 1]["bulk"]))
        return
    at = parked(p, c, pid)
    if at < 0:
        p.counts[0]["unmatched"] = int(p.counts[0]["unmatched"]) + 1
        return
    address = node_alloc(s, c)
    if address != END:
        promise(p, address, int(p.parked[at]["bulk"]))
        unpark(p, at)


@slow
def give(s: Any, p: Any, cpu: int, address: int) -> None:
    """``___cache_free``."""
    count = p.counts[0]
    count["frees"] = int(count["frees"]) + 1
    row = check_free(s, address)
    if row < 0:
        count["wrong_frees"] = int(count["wrong_frees"]) + 1
        return
    c = int(s.slab[row]["cache"])
    ac = cpu_array(s, c, cpu)
    if int(s.array[ac]["avail"]) >= int(s.array[ac]["limit"]):
        flush(s, c, ac)
    put(s, ac, address)


@slow
def page_freed(s: Any, p: Any, pfn: int) -> None:
    """The pages of a slab that the twin has given up are free; those of any other slab must not be."""
    row = int(s.frame[pfn]) if pfn < len(s.frame) else 0
    if row == 0:
        return
    if int(s.slab[row]["state"]) == SLAB_DISCARDED and int(s.slab[row]["pfn"]) == pfn:
        release_row(s, row)
        p.counts[0]["slabs_freed"] = int(p.counts[0]["slabs_freed"]) + 1
    else:
        p.counts[0]["wrong_pages"] = int(p.counts[0]["wrong_pages"]) + 1


@kernel
def replay_kernel(s: Any, e: Any, p: Any) -> None:
    """Executes all sections in their order."""
    count = p.counts[0]
    stride = int(s.config[0]["nr_cpus"]) + 1
    for i in range(len(e.op)):
        op = int(e.op[i])
        if op == NOP:
            continue
        cpu = int(e.cpu[i])
        pid = int(e.pid[i])
        a = int(e.a[i])
        z = int(e.z[i])
        if op == SAID:
            if a < 0:
                count["failed"] = int(count["failed"]) + 1
                for at in range(int(count["parked"])):
                    if int(p.parked[at]["pid"]) == pid:
                        unpark(p, at)
                        break
            else:
                said(p, i, a)
                row = int(s.frame[a >> PAGE_SHIFT]) if a >> PAGE_SHIFT < len(s.frame) else 0
                depth = int(p.depth[cpu])
                if row and depth:  # management data of the slab that is being made
                    frame = p.frames[cpu * DEPTH + depth - 1]
                    new = int(frame["row"])
                    if new != END and int(s.cache[int(frame["cache"])]["management"]) == OFF_SLAB and int(s.slab[new]["management"]) == END:
                        s.slab[new]["management"] = a
        elif op == ALLOC or op == BULK_ALLOC:
            begin(s, p, cpu, pid, a, 1 if op == BULK_ALLOC else 0)
        elif op == FREE:
            give(s, p, cpu, a)
        elif op == PAGE_ALLOC:
            if not page_got(s, p, cpu, a, z) and a >= 0 and a < len(s.frame) and int(s.frame[a]):
                count["wrong_pages"] = int(count["wrong_pages"]) + 1
        elif op == PAGE_FREE:
            page_freed(s, p, a)
        elif a < 0:
            count["unknown"] = int(count["unknown"]) + 1
        elif op == GROW_END:
            grown(s, p, cpu, pid, a, z)
        elif op == NODE_ALLOC:
            from_node(s, p, cpu, pid, a)
        elif op == UNTOUCH:
            s.array[a]["touched"] = 0
        elif op == DRAIN:
            drain_array_locked(s, a // stride, a, z != 0)
        elif op == NODE_REAP:
            s.cache[a]["next_reap"] = z
        elif op == FREE_UNTOUCH:
            s.cache[a]["free_touched"] = 0
        elif op == DRAIN_FREE:
            drain_one(s, a)
        elif op == DO_DRAIN:
            drain_array_locked(s, a, cpu_array(s, a, cpu), True)


def operations(recording: Recording, cache: dict[int, int], node: dict[int, int], array: dict[int, int]) -> Events:
    """The recording's events as operations: addresses become rows and physical addresses."""
    assert recording.before is not None
    base = recording.before.scalars["page_offset_base"]
    base = base - (1 << 64) if base >> 63 else base
    frames = recording.before.scalars["max_pfn"]
    table = recording.events
    op = table["kind"].cast(pl.String).replace_strict(OP_OF_KIND, default=NOP, return_dtype=pl.Int64).to_numpy().copy()
    ptr, arg, pfn = (table[c].cast(pl.Int64).to_numpy() for c in ("ptr", "arg", "pfn"))
    a, z = np.full(len(op), -1, dtype=np.int64), np.zeros(len(op), dtype=np.int64)
    for ops, names in (((ALLOC, BULK_ALLOC, UNTOUCH, DRAIN), array), ((GROW_END, NODE_ALLOC, DO_DRAIN), cache), ((NODE_REAP, FREE_UNTOUCH, DRAIN_FREE), node)):
        here = np.isin(op, ops)
        a[here] = pl.Series(ptr[here]).replace_strict(names, default=-1, return_dtype=pl.Int64).to_numpy()
    objects = np.isin(op, (FREE, SAID))
    a[objects] = np.where(ptr[objects] == 0, -1, ptr[objects] - base)
    op[(op == SAID) & (table["bytes_alloc"].to_numpy() > LARGEST) & (table["kind"].cast(pl.String).to_numpy() == "kmalloc")] = NOP
    op[(op == SAID) & (ptr == 16)] = NOP  # ZERO_SIZE_PTR
    pages = np.isin(op, (PAGE_ALLOC, PAGE_FREE))
    a[pages] = pfn[pages]
    z[pages] = table["order"].cast(pl.Int64).to_numpy()[pages]
    grow = op == GROW_END
    z[grow] = np.where((pfn[grow] >= 0) & (pfn[grow] < frames), pfn[grow], -1)
    for kind in (DRAIN, NODE_REAP):
        z[op == kind] = arg[op == kind]
    return Events(op, table["cpu"].cast(pl.Int64).to_numpy(), table["pid"].cast(pl.Int64).to_numpy(), a, z)


def replay_classic(recording: Recording, *, check: bool = True) -> tuple[ClassicResult, ClassicSlab]:
    """Replays the SLAB events of a recording from its first snapshot.

    :param check: compare the final state with the second snapshot.
    :raises RecordingError: the recording has none, caches were given other arrays in it, or the twin's tables ran full.
    """
    if recording.before is None or recording.before.classic is None or not any(p.startswith("cslab_") for p in recording.provenance.probes):
        raise RecordingError("the recording has no SLAB events; record a kernel of oracle/slab-kernel.sh with --slab")
    kinds = set(recording.events["kind"].unique().to_list())
    if "cslab_tune" in kinds:
        raise RecordingError("a cache was given other arrays during the recording (slabinfo was written, or a cache was made), which is not replayed")
    cpus = recording.provenance.cpus
    num = dict(recording.before.classic["classic_caches"].select("address", "num").iter_rows())
    grown = recording.events.filter(pl.col("kind") == "cslab_grow_end")["ptr"].to_list()
    state, _, pointers = restore_classic(recording.before, cpus, len(grown) + 16, sum(num.get(address, 0) for address in grown) + 4096)
    events = operations(recording, dict(pointers.cache), dict(pointers.node), dict(pointers.array))
    count = np.zeros(1, dtype=COUNT)
    progress = Progress(
        np.zeros(cpus * DEPTH, dtype=FRAME), np.zeros(cpus, dtype=np.int64), np.zeros(PARKED, dtype=FRAME), np.zeros(WAITING, dtype=np.int64), count,
        np.zeros((32, 3), dtype=np.int64),
    )  # fmt: skip
    start = time.perf_counter()
    replay_kernel(state, events, progress)
    seconds = time.perf_counter() - start
    c = count[0]
    if c["no_room"]:
        raise RecordingError("the recording makes more slabs than it announces; is it damaged?")
    parts = compare_classic(state, recording.after) if check and recording.after is not None and recording.after.classic is not None else []
    differences = [tuple(row) for row in progress.differences[: min(int(c["missing"]), 32)].tolist()]
    return ClassicResult(
        events=len(recording.events), slab_allocs=int(c["objects"]), slab_allocs_equal=int(c["equal"]), bulk_objects=int(c["bulk_objects"]), frees=int(c["frees"]),
        wrong_frees=int(c["wrong_frees"]), slabs_made=int(c["slabs_made"]), slabs_freed=int(c["slabs_freed"]), wrong_pages=int(c["wrong_pages"]),
        failed_allocs=int(c["failed"]), fallbacks=int(c["fallbacks"]), unknown=int(c["unknown"]), unmatched=int(c["unmatched"]), differences=differences,
        parts=parts, seconds=seconds,
    ), state  # fmt: skip


KEYS = {
    "classic_caches": ("caches and their counts", ["id"]),
    "classic_arrays": ("arrays", ["cache", "cpu"]),
    "classic_entries": ("entries of the arrays, in order", ["cache", "cpu", "position"]),
    "classic_slabs": ("slabs on their lists, in order", ["pfn"]),
    "classic_indices": ("free objects of the slabs, in order", ["slab", "position"]),
}


def compare_classic(state: ClassicSlab, after: Snapshot) -> list[Part]:
    """The twin's state beside a snapshot, table by table; caches that the twin does not know are left out."""
    assert after.classic is not None
    mine = classic_tables_of(state)
    known = pl.col("id" if "id" in after.classic["classic_caches"].columns else "cache") < int(state.config[0]["caches"])
    owners = after.classic["classic_slabs"].filter(pl.col("cache") < int(state.config[0]["caches"]))["pfn"].implode()
    found = []
    for name, (title, key) in KEYS.items():
        theirs = after.classic[name]
        if name == "classic_caches":
            theirs = theirs.filter(known).select("id", *CHANGING)
        elif name == "classic_indices":
            theirs = theirs.filter(pl.col("slab").is_in(owners))
        else:
            theirs = theirs.filter(pl.col("cache") < int(state.config[0]["caches"]))
        columns = mine[name].columns
        theirs = theirs.select(pl.col(columns).cast(pl.Int64))
        missing, extra = theirs.join(mine[name], on=columns, how="anti"), mine[name].join(theirs, on=columns, how="anti")
        only_mine = len(extra.join(theirs, on=key, how="anti"))
        first = ""
        if len(missing) or len(extra):
            row = (missing if len(missing) else extra).sort(key).row(0, named=True)
            other = (extra if len(missing) else missing).filter(*(pl.col(k) == row[k] for k in key))
            first = f"kernel {row}, twin {other.row(0, named=True) if len(other) else None}" if len(missing) else f"only in the twin: {row}"
        total = len(theirs) + only_mine
        found.append(Part(title, total - len(missing) - only_mine, total, first))
    return found


assert V6_1 == 2 and SLAB_LIVE == 1 and len(CLASSIC_TABLES) == len(KEYS)
