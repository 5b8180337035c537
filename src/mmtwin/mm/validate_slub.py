"""Invariants of SLUB's tables, and of the page table's marks of slabs.

Vectorised as `validate`: free lists and the nodes' lists are followed by pointer doubling, so the cost is a few passes over the slabs' slots and one
over the page table. Short chains (the CPUs' partial lists) are followed step by step, all at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin.errors import InvariantError
from mmtwin.mm.slab_tables import (
    ALLOCATED,
    END,
    KMALLOC_INDEXES,
    KMALLOC_TYPES,
    KMEM_CACHE,
    KMEM_CACHE_CPU,
    MAX_CACHES,
    MAX_OBJS_PER_PAGE,
    SLAB,
    SLAB_DISCARDED,
    SLAB_LIVE,
    SLAB_UNUSED,
    SLOT_CLASSES,
    SLUB_CONFIG,
    Slub,
)
from mmtwin.mm.slub import SLAB_DEBUG_FLAGS
from mmtwin.mm.tables import MAX_ORDER, PG_ALLOCATED, PG_BUDDY, PG_FREEING, PG_PCP, PG_SLAB, Pgdat

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

PAGE_SIZE = 4096
NOWHERE, CPU, CPU_PARTIAL, NODE_PARTIAL = range(4)
PLACES = ("on no list", "a CPU's slab", "on a CPU's partial list", "on the node's partial list")


class Used(NamedTuple):
    """The rows of slabs that have pages, as columns: `row` and the columns of `SLAB`.

    :param of: where in these columns a row of the table is, -1 for a row that is not used.
    """

    row: Int
    next: Int
    prev: Int
    pfn: Int
    slots: Int
    cache: Int
    freelist: Int
    inuse: Int
    objects: Int
    slabs: Int
    frozen: Int
    order: Int
    state: Int
    on_list: Int
    of: Int


class PerCpu(NamedTuple):
    """`KMEM_CACHE_CPU` of all caches in use, as columns, with the cache and the CPU of each."""

    cache: Int
    cpu: Int
    slab: Int
    freelist: Int
    partial: Int


def validate_slub(state: Slub, pages: Pgdat, allow_in_flight: bool = False) -> None:
    """Checks that SLUB's tables are consistent, as the kernel's own structures always are between two requests.

    Checked, in this order: shapes of the tables; rows of caches; rows of slabs; rows to be used again and everyone's slots; the marks in the page table; the
    nodes' lists; the CPUs' slabs and partial lists; that each slab is in the one place that its frozen mark and its free objects say; free lists
    (in range, without rings, no object twice) and the counters of objects in use; the caches' counts.

    :param allow_in_flight: accept what a replay that ends between two sections of a request leaves: a slab that a request has found and not yet
        put anywhere, with its free objects on no list.
    :raises InvariantError: naming the first broken invariant, with indices and values.
    """
    _check_tables(state)
    _check_caches(state)
    used = used_slabs(state)
    _check_slabs(state, used, pages)
    _check_reuse(state)
    _check_marks(used, pages)
    where = np.full(len(used.row), NOWHERE, dtype=np.int64)
    _node_lists(state, used, where)
    per_cpu = _per_cpu(state, used)
    _cpu_places(state, used, per_cpu, where)
    _check_places(used, where, allow_in_flight)
    _check_free_lists(state, used, per_cpu, where, allow_in_flight)
    _check_counts(state, used)


def _first(bad: Bool, message: Any) -> None:
    if bad.any():
        raise InvariantError(message(int(bad.argmax())))


def _integers(table: npt.NDArray[np.void], rows: Any, name: str) -> Int:
    column: Int = table[name][rows].astype(np.int64)
    return column


def _check_tables(state: Slub) -> None:
    if state.config.dtype != SLUB_CONFIG or state.config.shape != (1,):
        raise InvariantError(f"config has shape {state.config.shape}; expected one row")
    config = state.config[0]
    cpus, caches, slabs, slots = (int(config[name]) for name in ("nr_cpus", "caches", "slabs", "slots"))
    if cpus < 1 or not 0 <= caches <= MAX_CACHES:
        raise InvariantError(f"config: {cpus} CPUs and {caches} caches; expected at least one CPU and at most {MAX_CACHES} caches")
    for name, table, dtype, rows in (
        ("cache", state.cache, KMEM_CACHE, MAX_CACHES),
        ("cpu", state.cpu, KMEM_CACHE_CPU, MAX_CACHES * cpus),
        ("slab", state.slab, SLAB, None),
        ("slot", state.slot, np.dtype(np.int16), None),
        ("free_rows", state.free_rows, np.dtype(np.int64), SLOT_CLASSES),
        ("kmalloc", state.kmalloc, np.dtype(np.int64), KMALLOC_TYPES * KMALLOC_INDEXES),
    ):
        if table.dtype != dtype or (rows is not None and table.shape != (rows,)):
            raise InvariantError(f"{name} has shape {table.shape}; expected {rows} rows for {cpus} CPUs")
    if not MAX_CACHES <= slabs <= len(state.slab) or not 0 <= slots <= len(state.slot):
        raise InvariantError(f"config: {slabs} rows of slabs and {slots} slots in use; the tables have {len(state.slab)} and {len(state.slot)}")
    _first((state.kmalloc < -1) | (state.kmalloc >= caches), lambda i: f"kmalloc[{i}] is cache {state.kmalloc[i]}; there are {caches}")


def _check_caches(state: Slub) -> None:
    caches = int(state.config[0]["caches"])
    column = {name: _integers(state.cache, slice(None), name) for name in KMEM_CACHE.names or ()}
    live = column["live"] == 1
    number = np.arange(MAX_CACHES)

    def named(bad: Bool, what: str, *names: str) -> None:
        _first(live & bad, lambda i: f"cache[{i}]: " + ", ".join(f"{name} is {column[name][i]}" for name in names) + f"; {what}")

    _first(
        (column["live"] != 0) & ((column["live"] != 1) | (number >= caches)), lambda i: f"cache[{i}] is marked {column['live'][i]}; {caches} rows are in use"
    )
    named((column["size"] < 1) | (column["object_size"] < 1) | (column["object_size"] > column["size"]), "an object has to fit", "size", "object_size")
    named((column["offset"] < 0) | (column["offset"] >= column["size"]), "the free pointer has to be inside the slot", "offset", "size")
    for prefix in ("", "min_"):
        order, objects = column[f"{prefix}order"], column[f"{prefix}objects"]
        named((order < 0) | (order > MAX_ORDER), f"expected 0 to {MAX_ORDER}", f"{prefix}order")
        room = np.int64(PAGE_SIZE) << np.clip(order, 0, MAX_ORDER)
        fits = (objects >= 1) & (objects <= MAX_OBJS_PER_PAGE) & (objects * column["size"] <= room)
        named(~fits, "a slab has to hold at least one and has room for no more", f"{prefix}objects", "size", f"{prefix}order")
    named(column["min_order"] > column["order"], "the order that is fallen back to is not above the preferred one", "min_order", "order")
    for name in ("min_partial", "cpu_partial", "cpu_partial_slabs", "nr_partial", "nr_slabs", "total_objects", "red_left_pad"):
        named(column[name] < 0, "expected 0 or more", name)
    gone = ~live & ((column["nr_partial"] != 0) | (column["nr_slabs"] != 0) | (column["total_objects"] != 0))
    _first(gone, lambda i: f"cache[{i}] is not in use but has {column['nr_slabs'][i]} slabs, {column['nr_partial'][i]} of them partial")
    _check_random(state, np.flatnonzero(live & (column["random_seq"] >= 0)), column)


def _check_random(state: Slub, cache: Int, column: dict[str, Int]) -> None:
    """Each permutation holds every number below the cache's objects once."""
    begin, length = column["random_seq"][cache], column["objects"][cache]
    outside = begin + length > len(state.random)
    _first(outside, lambda i: f"cache[{cache[i]}]: its permutation of {length[i]} begins at {begin[i]} of {len(state.random)}")
    starts = np.cumsum(length) - length
    number = np.arange(int(length.sum())) + np.repeat(begin - starts, length)
    values, owner = state.random[number].astype(np.int64), np.repeat(np.arange(len(cache)), length)
    bad = (values < 0) | (values >= length[owner])
    _first(bad, lambda i: f"cache[{cache[owner[i]]}]: random[{number[i]}] is {values[i]}; a slab has {length[owner[i]]} objects")
    times = np.bincount(values + starts[owner], minlength=len(number))
    _first(times != 1, lambda i: f"cache[{cache[owner[i]]}]: its permutation holds {i - starts[owner[i]]} {times[i]} times")


def used_slabs(state: Slub) -> Used:
    """The slabs that have pages."""
    last = int(state.config[0]["slabs"])
    states = state.slab["state"][:last]
    wrong = (states < SLAB_UNUSED) | (states > SLAB_DISCARDED)
    wrong[:MAX_CACHES] |= states[:MAX_CACHES] != SLAB_UNUSED
    _first(wrong, lambda i: f"slab[{i}].state is {states[i]}; expected {'0, it is a list head' if i < MAX_CACHES else '0 to 2'}")
    row = np.flatnonzero(states != SLAB_UNUSED)
    of = np.full(len(state.slab), -1, dtype=np.int64)
    of[row] = np.arange(len(row))
    table = state.slab[row]
    columns = {name: _integers(table, slice(None), name) for name in Used._fields if name not in ("row", "of")}
    return Used(row=row, of=of, **columns)


def _check_slabs(state: Slub, used: Used, pages: Pgdat) -> None:
    frames = int(pages.config[0]["nr_frames"])
    caches, slots = int(state.config[0]["caches"]), int(state.config[0]["slots"])

    def named(bad: Bool, name: str, what: str) -> None:
        _first(bad, lambda i: f"slab[{used.row[i]}].{name} is {getattr(used, name)[i]}; {what}")

    named((used.cache < 0) | (used.cache >= caches), "cache", f"there are {caches} caches")
    dead = (state.cache["live"][used.cache] != 1) & (used.state == SLAB_LIVE)
    named(dead, "cache", "that cache is not in use")
    named((used.order < 0) | (used.order > MAX_ORDER), "order", f"expected 0 to {MAX_ORDER}")
    size = np.int64(1) << used.order
    named((used.pfn < 0) | (used.pfn + size > frames) | (used.pfn & (size - 1) != 0), "pfn", "beyond the last page frame, or not a multiple of the slab's size")
    order, least = (_integers(state.cache, used.cache, name) for name in ("order", "min_order"))
    objects, few = (_integers(state.cache, used.cache, name) for name in ("objects", "min_objects"))
    dead = state.cache["live"][used.cache] != 1
    named((used.order != order) & (used.order != least) & ~dead, "order", "neither of its cache's orders")
    named((used.objects < 1) | (used.objects > MAX_OBJS_PER_PAGE), "objects", f"expected 1 to {MAX_OBJS_PER_PAGE}")
    named((used.objects != np.where(used.order == order, objects, few)) & ~dead, "objects", "its cache has another number in a slab of that order")
    named((used.inuse < 0) | (used.inuse > used.objects), "inuse", "expected 0 to its objects")
    named((used.freelist < END) | (used.freelist >= used.objects), "freelist", "the slab has not that many objects")
    named((used.frozen < 0) | (used.frozen > 1), "frozen", "expected 0 or 1")
    named((used.on_list < 0) | (used.on_list > 2), "on_list", "expected 0, 1 or 2")
    named((used.slots < 0) | (used.slots + _run(used.objects) > slots), "slots", f"{slots} slots are in use")


def _run(objects: Int) -> Int:
    """Slots of a slab: the next power of two (`slub.slot_class`)."""
    run: Int = np.int64(1) << np.ceil(np.log2(np.maximum(objects, 1))).astype(np.int64)
    return run


def _check_reuse(state: Slub) -> None:
    """Rows are either a slab's or wait in a chain to be used again, each once; each keeps its own run of slots, and no slot is lost."""
    config = state.config[0]
    last, slots = int(config["slabs"]), int(config["slots"])
    table = state.slab[MAX_CACHES:last]
    states, following = table["state"].tolist(), table["next"].tolist()
    start, run = _integers(table, slice(None), "slots"), _run(_integers(table, slice(None), "objects"))
    runs = run.tolist()
    waiting = set[int]()
    for k in range(SLOT_CLASSES):
        at = int(state.free_rows[k])
        while at != END:
            if not MAX_CACHES <= at < last or states[at - MAX_CACHES] != SLAB_UNUSED or at in waiting:
                why = "twice" if at in waiting else "but it is no row that is free"
                raise InvariantError(f"free_rows[{k}]: slab[{at}] is among the rows to be used again, {why}")
            if runs[at - MAX_CACHES] != 1 << k:
                raise InvariantError(f"free_rows[{k}]: slab[{at}] has {runs[at - MAX_CACHES]} slots; expected {1 << k}")
            waiting.add(at)
            at = following[at - MAX_CACHES]
    unused = states.count(SLAB_UNUSED)
    if len(waiting) != unused:
        raise InvariantError(f"free_rows: {len(waiting)} rows wait to be used again, but {unused} are free")
    by_start = np.argsort(start, kind="stable")
    begins = np.append(start[by_start], slots)
    ends = np.concatenate(([0], (start + run)[by_start]))
    _first(
        begins != ends,
        lambda i: f"slot {min(begins[i], ends[i])} of {slots} belongs to " + ("no row of slabs" if begins[i] > ends[i] else "two rows of slabs"),
    )


def _check_marks(used: Used, pages: Pgdat) -> None:
    """PG_SLAB and the row are at exactly the slabs' frames, and each slab is an allocated block."""
    size = np.int64(1) << used.order
    total = int(size.sum())
    owner = np.repeat(np.arange(len(used.row)), size)
    pfn = np.arange(total) - np.repeat(np.cumsum(size) - size, size) + used.pfn[owner]
    entries = pages.page[pfn]
    flags, following = entries["flags"], entries["next"]
    _first(
        (flags & PG_SLAB == 0) | (following != used.row[owner]),
        lambda i: (
            f"page[{pfn[i]}] is of slab[{used.row[owner[i]]}] but "
            + (f"is marked as slab[{following[i]}]'s" if flags[i] & PG_SLAB else f"has flags {flags[i]}, without {PG_SLAB} (slab)")
        ),
    )
    _first(flags & (PG_BUDDY | PG_PCP | PG_FREEING) != 0, lambda i: f"page[{pfn[i]}] is of slab[{used.row[owner[i]]}] but has flags {flags[i]}: it is free")
    head = pfn == used.pfn[owner]
    _first(
        (flags & PG_ALLOCATED != 0) != head,
        lambda i: f"page[{pfn[i]}] is {'the first' if head[i] else 'a later'} page of slab[{used.row[owner[i]]}] but has flags {flags[i]}",
    )
    order = entries["order"]
    _first(head & (order != used.order[owner]), lambda i: f"page[{pfn[i]}] has order {order[i]}; slab[{used.row[owner[i]]}] has order {used.order[owner[i]]}")
    marked = np.flatnonzero(pages.page["flags"][: int(pages.config[0]["nr_frames"])] & PG_SLAB)
    if len(marked) != total:
        stray = np.setdiff1d(marked, pfn)
        raise InvariantError(f"page[{stray[0]}] is marked as slab[{pages.page['next'][stray[0]]}]'s, which has other pages or none")


def _node_lists(state: Slub, used: Used, where: Int) -> None:
    """Follows every node's partial list; `where` is filled for what is on them."""
    caches = int(state.config[0]["caches"])
    listed = np.flatnonzero(used.on_list == 1)
    rows = np.concatenate((np.arange(caches, dtype=np.int64), used.row[listed]))
    following, preceding = (_integers(state.slab, rows, name) for name in ("next", "prev"))
    number = np.full(len(state.slab), -1, dtype=np.int64)
    number[rows] = np.arange(len(rows))
    for name, linked, back in (("next", following, "prev"), ("prev", preceding, "next")):
        _first((linked < 0) | (linked >= len(state.slab)), lambda i, name=name, linked=linked: f"slab[{rows[i]}].{name} is {linked[i]}, outside the table")
        _first(
            number[linked] < 0,
            lambda i, name=name, linked=linked: f"slab[{rows[i]}].{name} is {linked[i]}, which is neither marked as being on a list nor a list head",
        )
        returned = state.slab[back][linked]
        _first(
            returned != rows,
            lambda i, name=name, linked=linked, back=back, returned=returned: (
                f"slab[{rows[i]}].{name} is {linked[i]}, but slab[{linked[i]}].{back} is {returned[i]}"
            ),
        )
    up = number[preceding]
    up[:caches] = np.arange(caches)
    for _ in range(max(len(rows), 2).bit_length()):
        up = up[up]
    owner = up[caches:]
    _first(owner >= caches, lambda i: f"slab[{used.row[listed[i]]}] is on no list: following prev never reaches a list head")
    _first(owner != used.cache[listed], lambda i: f"slab[{used.row[listed[i]]}] of cache {used.cache[listed[i]]} is on the partial list of cache {owner[i]}")
    _first(used.state[listed] != SLAB_LIVE, lambda i: f"slab[{used.row[listed[i]]}] is discarded but on the node's partial list")
    where[listed] = NODE_PARTIAL
    length, nr_partial = np.bincount(owner, minlength=caches), state.cache["nr_partial"][:caches]
    _first(length != nr_partial, lambda i: f"cache[{i}].nr_partial is {nr_partial[i]}, its list holds {length[i]} slabs")


def _per_cpu(state: Slub, used: Used) -> PerCpu:
    """The caches' per-CPU rows, checked as far as each can be by itself."""
    cpus, caches = int(state.config[0]["nr_cpus"]), int(state.config[0]["caches"])
    slab, freelist, partial = (_integers(state.cpu, slice(None), name) for name in ("slab", "freelist", "partial"))
    number = np.arange(len(slab))
    cache, cpu = number // cpus, number % cpus
    debug = (_integers(state.cache, slice(None), "flags") & SLAB_DEBUG_FLAGS != 0) | (state.cache["live"] != 1)
    for name, column in (("slab", slab), ("freelist", freelist), ("partial", partial)):
        _first(
            (column != END) & debug[cache],
            lambda i, name=name, column=column: (
                f"cache {cache[i]}, CPU {cpu[i]}: {name} is {column[i]}; a cache with debugging, or none at all, has no CPU slabs"
            ),
        )
    for name, column in (("slab", slab), ("partial", partial)):
        inside = (column >= 0) & (column < len(state.slab))
        known = inside & (used.of[np.where(inside, column, 0)] >= 0)
        _first(
            (column != END) & ~known, lambda i, name=name, column=column: f"cache {cache[i]}, CPU {cpu[i]}: {name} is {column[i]}, which is no slab with pages"
        )
    _first((slab == END) & (freelist != END), lambda i: f"cache {cache[i]}, CPU {cpu[i]}: freelist is {freelist[i]} without a CPU slab")
    if len(used.row):
        objects = np.where(slab == END, 1, used.objects[used.of[slab]])
        _first(
            (freelist < END) | ((slab != END) & (freelist >= objects)),
            lambda i: f"cache {cache[i]}, CPU {cpu[i]}: freelist is {freelist[i]}; slab[{slab[i]}] has {objects[i]} objects",
        )
    rows = caches * cpus
    return PerCpu(cache[:rows], cpu[:rows], slab[:rows], freelist[:rows], partial[:rows])


def _cpu_places(state: Slub, used: Used, per_cpu: PerCpu, where: Int) -> None:
    """CPU slabs, then the CPUs' partial lists, one step of all lists at a time."""
    has = np.flatnonzero(per_cpu.slab != END)
    _put(used, per_cpu, where, has, used.of[per_cpu.slab[has]], CPU)
    owner = np.flatnonzero(per_cpu.partial != END)
    at = used.of[per_cpu.partial[owner]]
    while len(owner):
        _put(used, per_cpu, where, owner, at, CPU_PARTIAL)
        following, slabs = used.next[at], used.slabs[at]
        ends = following == END
        inside = (following >= 0) & (following < len(used.of))
        behind = used.of[np.where(inside, following, 0)]
        _first(~ends & (~inside | (behind < 0)), lambda i: f"slab[{used.row[at[i]]}].next is {following[i]} on a CPU's partial list; no slab with pages")
        expected = np.where(ends, 1, used.slabs[behind] + 1)
        _first(
            slabs != expected,
            lambda i: (
                f"slab[{used.row[at[i]]}].slabs is {slabs[i]} on the partial list of cache {per_cpu.cache[owner[i]]}, CPU {per_cpu.cpu[owner[i]]}; expected {expected[i]}"
            ),
        )
        owner, at = owner[~ends], behind[~ends]


def _put(used: Used, per_cpu: PerCpu, where: Int, owner: Int, at: Int, place: int) -> None:
    """Slabs `at` are in `place` of the CPUs' rows `owner`: the right cache's, and nowhere else."""
    cache = per_cpu.cache[owner]

    def name(i: int) -> str:
        what = PLACES[place].replace("a CPU's", f"CPU {per_cpu.cpu[owner[i]]}'s")
        return f"slab[{used.row[at[i]]}] is {what} of cache {cache[i]}"

    _first(used.cache[at] != cache, lambda i: f"{name(i)} but belongs to cache {used.cache[at[i]]}")
    _first(used.state[at] != SLAB_LIVE, lambda i: f"{name(i)} but is discarded")
    _first(where[at] != NOWHERE, lambda i: f"{name(i)} and also {PLACES[where[at[i]]]}")
    by_slab = np.sort(at)
    twice = np.zeros(len(at), dtype=bool)
    twice[:-1] = by_slab[1:] == by_slab[:-1]
    _first(twice, lambda i: f"slab[{used.row[by_slab[i]]}] is twice {PLACES[place]}")
    where[at] = place


def _check_places(used: Used, where: Int, allow_in_flight: bool) -> None:
    """Where a slab is agrees with its mark and with its free objects."""
    live = used.state == SLAB_LIVE
    frozen, on_cpu = used.frozen == 1, (where == CPU) | (where == CPU_PARTIAL)

    def name(i: int) -> str:
        return f"slab[{used.row[i]}] of cache {used.cache[i]} is {PLACES[where[i]]}"

    _first(on_cpu & ~frozen, lambda i: f"{name(i)} but not frozen")
    _first((where == NODE_PARTIAL) & frozen, lambda i: f"{name(i)} but frozen")
    if not allow_in_flight:
        _first(live & (where == NOWHERE) & frozen, lambda i: f"{name(i)} but frozen")
    empty = used.freelist == END
    _first(((where == NODE_PARTIAL) | (where == CPU_PARTIAL)) & empty, lambda i: f"{name(i)} but has no free object")
    if not allow_in_flight:
        _first(live & (where == NOWHERE) & ~empty, lambda i: f"{name(i)} but object {used.freelist[i]} of it is free")


def _check_free_lists(state: Slub, used: Used, per_cpu: PerCpu, where: Int, allow_in_flight: bool) -> None:
    """Each free object is on one list, each list ends, and `inuse` counts what is not on the slab's own list."""
    owner = np.repeat(np.arange(len(used.row)), used.objects)
    first = np.cumsum(used.objects) - used.objects  # of each slab in `value`
    number = np.arange(len(owner)) - first[owner]
    value = state.slot[number + used.slots[owner]].astype(np.int64)

    def name(i: int) -> str:
        return f"object {number[i]} of slab[{used.row[owner[i]]}] (cache {used.cache[owner[i]]})"

    _first((value < ALLOCATED) | (value >= used.objects[owner]), lambda i: f"{name(i)}: the next free object is {value[i]}, of {used.objects[owner[i]]}")
    free = np.flatnonzero(value != ALLOCATED)
    place = np.full(len(owner) + 1, -1, dtype=np.int64)
    place[free] = np.arange(len(free))
    links = np.flatnonzero(value[free] >= 0)
    to = first[owner[free[links]]] + value[free[links]]
    _first(place[to] < 0, lambda i: f"{name(int(free[links[i]]))}: the next free object is {value[free[links[i]]]}, which is allocated")
    own = np.flatnonzero(used.freelist != END)
    has = np.flatnonzero(per_cpu.freelist != END)
    cpu_slab = used.of[per_cpu.slab[has]]
    heads = np.concatenate((first[own] + used.freelist[own], first[cpu_slab] + per_cpu.freelist[has]))
    _first(place[heads] < 0, lambda i: f"{name(int(heads[i]))} begins a free list but is allocated")
    times = np.bincount(np.concatenate((place[to], place[heads])), minlength=len(free))
    _first(times > 1, lambda i: f"{name(int(free[i]))} is on {times[i]} free lists, or twice on one")
    held = where[owner[free]] == NOWHERE if allow_in_flight else np.zeros(len(free), dtype=bool)
    _first((times == 0) & ~held, lambda i: f"{name(int(free[i]))} is free but on no list")
    up = np.arange(len(free))
    up[place[to]] = links
    for _ in range(max(int(used.objects.max(initial=2)), 2).bit_length()):
        up = up[up]
    root = np.zeros(len(free), dtype=bool)
    root[place[heads]] = True
    root |= held & (times == 0)
    _first(~root[up], lambda i: f"{name(int(free[i]))} is on a free list that never ends")
    mine = np.zeros(len(free), dtype=bool)
    mine[place[heads[: len(own)]]] = True
    listed = np.bincount(owner[free[mine[up]]], minlength=len(used.row))
    live = used.state == SLAB_LIVE
    left = used.objects - listed
    _first(
        live & (used.inuse != left),
        lambda i: f"slab[{used.row[i]}] of cache {used.cache[i]}: inuse is {used.inuse[i]}; of {used.objects[i]} objects {listed[i]} are on its free list",
    )
    whole = np.bincount(owner[free], minlength=len(used.row))
    _first(
        (used.state == SLAB_DISCARDED) & (whole != used.objects),
        lambda i: f"slab[{used.row[i]}] of cache {used.cache[i]} is discarded but {used.objects[i] - whole[i]} of its objects are allocated",
    )


def _check_counts(state: Slub, used: Used) -> None:
    live = used.state == SLAB_LIVE
    cache = used.cache[live]
    for name, weights, what in (("nr_slabs", None, "slabs"), ("total_objects", used.objects[live], "objects in its slabs")):
        counted = np.bincount(cache, weights=weights, minlength=MAX_CACHES).astype(np.int64)
        mine = _integers(state.cache, slice(None), name)
        _first(mine != counted, lambda i, name=name, mine=mine, counted=counted, what=what: f"cache[{i}].{name} is {mine[i]}; there are {counted[i]} {what}")
    pages = int((np.int64(1) << used.order).sum())
    if int(state.config[0]["pages"]) != pages:
        raise InvariantError(f"config: {state.config[0]['pages']} pages of slabs; the slabs have {pages}")
