"""``allocator=slab``: a SLUB recording's requests answered by the classic SLAB of 6.1.

Caches are made from the recording's, by SLAB's own rules for their geometry. What lived at the start is packed into SLAB's slabs, neighbours together, as
`mmtwin.diagnose.whatif.caches` does for other orders; every array is empty then, which a machine that had run SLAB from boot would not have.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmtwin.diagnose.whatif.caches import Piece, ask, cut, remove, rows_of
from mmtwin.errors import InvariantError, RequestError
from mmtwin.mm.list import list_add_tail
from mmtwin.mm.slab import grow_begin, grow_end, kmem_cache_create, mark_slab, node_alloc, object_of, slab_of
from mmtwin.mm.slab_classic_geometry import IN_OBJECT, KMALLOC_SIZES, OFF_SLAB, SlabGeometry, general_size, slab_geometry
from mmtwin.mm.slab_classic_tables import END, FREE, FULL, HEADS, LISTS, PARTIAL, SLAB_LIVE, ClassicSlab, new_slab, reserve
from mmtwin.mm.slab_common import KMALLOC_CLASSES, SLAB_DEBUG_FLAGS
from mmtwin.mm.slab_tables import KMALLOC_INDEXES, KMALLOC_TYPES, SLAB_DISCARDED, Slub, new_slub
from mmtwin.mm.slab_tables import MAX_CACHES as SLUB_CACHES
from mmtwin.mm.slub import free_row
from mmtwin.mm.tables import NR_ORDERS, Pgdat
from mmtwin.recording.model import Recording
from mmtwin.replay.free_run import SAMPLES, Outcome, Policy, Start, look, words_of
from mmtwin.replay.free_run_pages import (
    COUNTERS,
    GONE,
    P_HANDLE,
    W_BLOCKS,
    W_FAILED,
    W_IDS,
    W_STOP,
    address_of,
    own_callbacks,
)
from mmtwin.replay.free_run_reclaim import Queue, stopped
from mmtwin.replay.free_run_slab import CACHE_REAP, run_classic
from mmtwin.replay.requests import CACHE_CREATE, CACHE_DESTROY, CACHE_FLUSH, CACHE_SHRINK, OBJECT_ALLOC, OBJECTS_ALLOC, Requests

HZ = 250
REAP_PERIOD = 2.0
"""Seconds between two passes over the caches on a CPU (REAPTIMEOUT_AC)."""
INTERNAL_FLAGS = 0xC0000000
"""Flags of SLUB's own (__OBJECT_POISON, __CMPXCHG_DOUBLE); SLAB has other ones at the same bits."""
GFP_KERNEL = 0xCC0


@dataclass(frozen=True)
class SlabStart:
    """Where a free run with SLAB begins: `start` has no slabs of SLUB's any more, and its objects are physical addresses.

    :param names: the caches' names.
    """

    start: Start
    slab: ClassicSlab
    names: list[str]


def geometries(slub: Slub, names: list[str]) -> tuple[list[int], dict[int, SlabGeometry], list[str]]:
    """What SLAB makes of each SLUB cache: the SLUB cache whose place it takes (itself, or the smallest kmalloc class that SLAB has), the layouts of those
    that are left, and the names of debug caches, which become plain ones.
    """
    to = list(range(len(names)))
    small = {KMALLOC_CLASSES[i].size: i for i in range(1, len(KMALLOC_CLASSES)) if KMALLOC_CLASSES[i].size <= KMALLOC_SIZES[0]}
    least = small[KMALLOC_SIZES[0]]
    for kind in range(KMALLOC_TYPES):
        target = int(slub.kmalloc[kind * KMALLOC_INDEXES + least])
        for size, index in small.items():
            c = int(slub.kmalloc[kind * KMALLOC_INDEXES + index])
            if 0 <= c < len(names) and target >= 0 and size < KMALLOC_SIZES[0]:
                to[c] = target
    layouts: dict[int, SlabGeometry] = {}
    debug = []
    for c, name in enumerate(names):
        cache = slub.cache[c]
        if to[c] != c or int(cache["object_size"]) < 1:
            continue
        flags = int(cache["flags"]) & ~INTERNAL_FLAGS
        if flags & SLAB_DEBUG_FLAGS:
            debug.append(name)
        layouts[c] = slab_geometry(int(cache["object_size"]), int(cache["align"]), flags & ~SLAB_DEBUG_FLAGS, "6.1", ctor=bool(cache["ctor"]))
    return to, layouts, debug


def start_with_slab(start: Start, recording: Recording, names: list[str], notes: list[str]) -> SlabStart:
    """The recording's start with SLAB in SLUB's place.

    :raises RequestError: a 32-bit recording, or what is in use does not fit.
    """
    pages, slub, cpus = start.pages, start.slub, int(start.pages.config[0]["nr_cpus"])
    if recording.before is None or recording.before.scalars.get("page_offset_base", -1) >> 32 == 0:
        raise RequestError("--set allocator=slab: only for recordings of 64-bit kernels: the layouts of a 32-bit SLAB are not modelled for 6.1")
    to, layouts, debug = geometries(slub, names)
    state = new_slab(int(pages.config[0]["nr_frames"]), cpus, "6.1", numa=recording.provenance.kernel_config.get("NUMA", "y") == "y")
    state.config[0]["hz"] = HZ
    state, row_of, kept = _caches(state, slub, names, layouts)
    for c, target in enumerate(to):
        if target != c and target in row_of:
            row_of[c] = row_of[target]
    freed: list[tuple[int, int]] = []
    pieces: list[tuple[int, Piece]] = []
    for c in range(len(names)):
        rows = rows_of(slub, c)
        if c in row_of and len(rows):
            pieces += [(row_of[c], p) for p in cut(slub, c, int(state.cache[row_of[c]]["num"]), rows) if p.live.any()]
        freed += remove(slub, c, rows)
    for row in (SLUB_CACHES + np.flatnonzero(slub.slab["state"][SLUB_CACHES : int(slub.config[0]["slabs"])] == SLAB_DISCARDED)).tolist():
        freed.append((int(slub.slab[row]["pfn"]), int(slub.slab[row]["order"])))
        free_row(slub, row)
    pieces.sort(key=lambda p: int(state.cache[p[0]]["management"]) == OFF_SLAB)  # those whose management data is an object of another cache last
    spare = sum(int(state.cache[c]["management"]) == OFF_SLAB for c, _ in pieces) // 32 + 8
    wanted = [(int(state.cache[c]["order"]), GFP_KERNEL | int(state.cache[c]["allocflags"])) for c, _ in pieces]
    frames = ask(pages, slub, freed, [*wanted, *[(0, GFP_KERNEL)] * spare])
    if len(frames) and frames.min() < 0:
        raise RequestError("--set allocator=slab: what lives at the recording's start does not fit into SLAB's slabs: memory is full")
    most = int(state.cache["num"].max(initial=1))
    state = reserve(state, len(frames) + 1024, (len(frames) + 1024) * most)
    where: dict[int, int] = {}
    extra = frames[len(pieces) :].tolist()
    for (c, piece), pfn in zip(pieces, frames.tolist(), strict=False):
        _fill(pages, state, c, piece, pfn, where, extra)
    if extra:
        ask(pages, slub, [(pfn, 0) for pfn in extra], [])
    objects = start.objects.copy()
    objects[:, 1] = [where.get(int(packed), GONE) for packed in objects[:, 1]]
    table = _with_reaps(_renumbered(start.table, row_of), recording, cpus)
    nothing = new_slub(cpus, 0, slabs=0, slots=0)
    notes.append("SLAB: arrays are empty at the start, and what is older than the recording is packed as it lay in SLUB's slabs")
    notes.append(
        "SLAB: its own structures (arrays, kmem_cache_node) are not counted; caches that SLUB merged stay merged; a free list begins at the lowest object"
    )
    if debug:
        notes.append(f"SLAB: {', '.join(debug)} had debug options, which are left out")
    return SlabStart(Start(pages, nothing, table, objects, start.blocks, start.fixed), state, kept)


def _caches(state: ClassicSlab, slub: Slub, names: list[str], layouts: dict[int, SlabGeometry]) -> tuple[ClassicSlab, dict[int, int], list[str]]:
    """All caches, those for management data first; SLUB's cache to row, and the names by row."""
    order = sorted(layouts, key=lambda c: layouts[c].management == OFF_SLAB)
    normal = {int(slub.cache[int(slub.kmalloc[i])]["object_size"]): int(slub.kmalloc[i]) for i in range(KMALLOC_INDEXES) if int(slub.kmalloc[i]) >= 0}
    row_of: dict[int, int] = {}
    for c in order:
        cache, layout = slub.cache[c], layouts[c]
        management = END
        if layout.management == OFF_SLAB:
            management = row_of[normal[general_size(layout.management_size, KMALLOC_SIZES)]]
        flags = int(cache["flags"]) & ~(INTERNAL_FLAGS | SLAB_DEBUG_FLAGS)
        state, row_of[c] = kmem_cache_create(
            state, layout, object_size=int(cache["object_size"]), flags=flags, management_cache=management, ctor=bool(cache["ctor"]), address=c * 256
        )
        state.cache[row_of[c]]["live"] = int(cache["live"])
    return state, row_of, [names[c] for c in order]


def _fill(pages: Pgdat, state: ClassicSlab, c: int, piece: Piece, pfn: int, where: dict[int, int], extra: list[int]) -> None:
    """One slab of the start, with its live objects in the places that they had."""
    cache = state.cache[c]
    num, order = int(cache["num"]), int(cache["order"])
    row = grow_begin(state, c, pfn)
    mark_slab(pages, row, pfn, order)
    slab = state.slab[row]
    live = np.zeros(num, dtype=bool)
    live[: len(piece.live)] = piece.live
    index = int(slab["index"])
    state.indices[index : index + num] = np.concatenate([np.flatnonzero(live), np.flatnonzero(~live)])
    state.used[index : index + num] = live
    slab["active"] = int(live.sum())
    if int(cache["management"]) == IN_OBJECT:
        slab["freelist"] = END if live.all() else int(state.indices[index + num - 1])
    for number in np.flatnonzero(live).tolist():
        where[int(piece.source[number])] = int(object_of(state, row, number))
    if int(cache["management"]) == OFF_SLAB:
        management = int(cache["management_cache"])
        address = node_alloc(state, management)
        if address == END:
            new = grow_begin(state, management, extra[-1])
            mark_slab(pages, new, extra.pop(), 0)
            grow_end(state, management, new)
            address = node_alloc(state, management)
        slab["management"] = address
    grow_end(state, c, row)
    if slab["active"] < num:  # in the order of page frames, as the partial lists of the recorded machine are not SLAB's
        _to_tail(state, row, c)


def _to_tail(state: ClassicSlab, row: int, c: int) -> None:
    slab = state.slab
    slab["next"][slab["prev"][row]], slab["prev"][slab["next"][row]] = slab["next"][row], slab["prev"][row]
    list_add_tail(slab, row, c * LISTS + PARTIAL)


def _renumbered(table: npt.NDArray[np.void], row_of: dict[int, int]) -> npt.NDArray[np.void]:
    """Requests to SLAB's rows. Those to a cache that is none here (it was never made) are left out."""
    table = table.copy()
    mine = np.isin(table["op"], (OBJECT_ALLOC, OBJECTS_ALLOC, CACHE_SHRINK, CACHE_CREATE, CACHE_DESTROY, CACHE_FLUSH))
    to = np.full(SLUB_CACHES, -1, dtype=np.int64)
    for c, row in row_of.items():
        to[c] = row
    table["arg"][mine] = to[table["arg"][mine]]
    return table[~mine | (table["arg"] >= 0)]


def _with_reaps(table: npt.NDArray[np.void], recording: Recording, cpus: int) -> npt.NDArray[np.void]:
    """Every CPU looks through the caches every two seconds; when it first does so is not known, so that is `REAP_PERIOD`
    after the first request. The workload's seconds are laid over the events."""
    if not len(table):
        return table
    times = recording.events["time"].to_numpy()[table["event"]].astype(np.float64)
    times *= recording.provenance.workload_seconds / max(times[-1] - times[0], 1)  # some recordings only number their events
    first, last = float(times[0]), float(times.max())
    moments = [(first + REAP_PERIOD * (k + (cpu + 1) / cpus), cpu) for k in range(int((last - first) / REAP_PERIOD) + 1) for cpu in range(cpus)]
    moments = sorted(m for m in moments if m[0] < last)
    if not moments:
        return table
    rows = np.zeros(len(moments), dtype=table.dtype)
    rows["op"], rows["cpu"] = CACHE_REAP, [cpu for _, cpu in moments]
    rows["arg"] = [int((moment - first) * HZ) for moment, _ in moments]
    where = np.searchsorted(np.maximum.accumulate(times), [moment for moment, _ in moments])
    return np.insert(table, where, rows)


def run_with_slab(begin: SlabStart, requests: Requests, policy: Policy | None = None) -> tuple[Outcome, ClassicSlab]:
    """As `mmtwin.replay.free_run.run`, with SLAB's loop; also returns the slabs as they are at the end."""
    start, state = begin.start, begin.slab
    pages, slub, table = start.pages, start.slub, start.table
    most = int(state.cache["num"].max(initial=1))
    bulk = int(table["arg2"][table["op"] == OBJECTS_ALLOC].max(initial=1))
    w = words_of(start, requests, policy, most)
    own, own_free = own_callbacks()
    alloc, free = (own, own_free) if policy is None else (policy.alloc, policy.free)
    addresses = address_of(pages, slub, w)
    handle = w[P_HANDLE] = addresses.ctypes.data
    pages.config[0]["extfrag"] = 0
    queue = Queue(table, w, lambda rows: run_classic(handle, state, rows, alloc, own, free, 0))
    slub.config[0]["pages"] = int(state.config[0]["pages"])
    looks, total, seconds = [look(pages, slub, 0, 0)], len(table), 0.0
    for end in np.unique(np.linspace(0, total, SAMPLES + 1, dtype=np.int64)[1:]).tolist():
        at = looks[-1].request
        while at < end:
            state = reserve(state, (1 << 10) + 2 * bulk, ((1 << 10) + 2 * bulk) * most)
            began = time.perf_counter()
            at = run_classic(handle, state, table[:end], alloc, own, free, at)
            if w[W_STOP]:
                at += stopped(pages, w, queue, table[at], alloc, own, free)
            seconds += time.perf_counter() - began
        slub.config[0]["pages"] = int(state.config[0]["pages"])
        looks.append(look(pages, slub, end, int(w[W_FAILED : W_FAILED + NR_ORDERS].sum())))
    counters = {name: int(w[i]) for i, name in enumerate(COUNTERS)}
    return Outcome(pages, slub, counters, tuple(int(n) for n in w[W_FAILED : W_FAILED + NR_ORDERS]), looks, seconds, w[w[W_BLOCKS] : w[W_IDS]]), state


def live_rows(state: ClassicSlab) -> npt.NDArray[np.int64]:
    """Rows of all slabs."""
    return HEADS + np.flatnonzero(state.slab["state"][HEADS : int(state.config[0]["slabs"])] == SLAB_LIVE)


def pages_of(state: ClassicSlab, names: list[str]) -> dict[str, int]:
    """Pages of each cache that has some."""
    slabs = state.slab[live_rows(state)]
    pages = np.bincount(slabs["cache"], weights=1 << slabs["order"].astype(np.int64), minlength=len(names)).astype(int)
    found: dict[str, int] = {}
    for c in np.flatnonzero(pages).tolist():
        found[names[c]] = found.get(names[c], 0) + int(pages[c])
    return found


def object_bytes(state: ClassicSlab) -> int:
    """Bytes of all objects that are handed out (those of management data included), each as large as its cache says."""
    total = 0
    for slab in state.slab[live_rows(state)]:
        cache = state.cache[int(slab["cache"])]
        at = int(slab["index"])
        total += int(state.used[at : at + int(cache["num"])].sum()) * int(cache["object_size"])
    return total


def colours(state: ClassicSlab) -> tuple[int, int]:
    """Of the caches that have slabs: colours that some slab has, and those there are."""
    used, there = 0, 0
    slabs = state.slab[live_rows(state)]
    for c in np.unique(slabs["cache"]).tolist():
        cache = state.cache[c]
        used += len(np.unique(slabs["first"][slabs["cache"] == c]))
        there += max(int(cache["colour"]), 1)
    return used, there


def check(state: ClassicSlab, pages: Pgdat) -> None:
    """What must hold at any time.

    :raises InvariantError: the first thing that does not.
    """
    listed: set[int] = set()
    for c in range(int(state.config[0]["caches"])):
        cache = state.cache[c]
        num, free, count = int(cache["num"]), 0, 0
        for which in (FULL, PARTIAL, FREE):
            row = int(state.slab[c * LISTS + which]["next"])
            while row != c * LISTS + which:
                slab = state.slab[row]
                active = int(slab["active"])
                if int(slab["cache"]) != c or which != (FREE if active == 0 else FULL if active == num else PARTIAL):
                    raise InvariantError(f"slab {row} of cache {c} with {active} of {num} objects is on list {which}")
                rest = state.indices[int(slab["index"]) + active : int(slab["index"]) + num].astype(np.int64)
                if len(np.unique(rest)) != num - active or state.used[int(slab["index"]) + rest].any():
                    raise InvariantError(f"slab {row} of cache {c}: its free objects are not free, or listed twice")
                if slab_of(state, int(slab["pfn"]) << 12) != row or int(pages.page[int(slab["pfn"])]["next"]) != row:
                    raise InvariantError(f"slab {row} of cache {c}: page frame {int(slab['pfn'])} is another's")
                free, count = free + num - active, count + 1
                listed.add(row)
                row = int(slab["next"])
        if free != int(cache["free_objects"]) or count != int(cache["total_slabs"]):
            raise InvariantError(
                f"cache {c} counts {int(cache['free_objects'])} free objects and {int(cache['total_slabs'])} slabs; there are {free} and {count}"
            )
    if listed != set(live_rows(state).tolist()):
        raise InvariantError("some slabs are on no list")
