"""Between a snapshot's slab tables and SLUB's state: `restore` makes the state, `Frames.of` the tables of a state, `names` what addresses mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.mm.list import list_add_tail
from mmtwin.mm.slab_tables import END, KMALLOC_INDEXES, KMALLOC_TYPES, MAX_CACHES, SLAB_DISCARDED, Slub, new_slub, reserve
from mmtwin.mm.slub import new_row, slot_class
from mmtwin.mm.tables import PG_ALLOCATED, PG_SLAB, Pgdat
from mmtwin.recording.model import SLAB_PLACES, Snapshot

NONE, CPU, CPU_PARTIAL, NODE_PARTIAL, DISCARDED = range(len(SLAB_PLACES))
GEOMETRY = (
    "flags", "size", "object_size", "inuse", "offset", "align", "red_left_pad", "order", "objects", "min_order", "min_objects", "allocflags", "min_partial",
    "cpu_partial", "cpu_partial_slabs", "refcount", "usersize", "ctor",
)  # fmt: skip
"""Columns that `Snapshot.caches` and `KMEM_CACHE` share: what a cache is."""
COUNTS = ("nr_partial", "nr_slabs", "total_objects")
"""And how much it has."""


def has_slabs(snapshot: Snapshot | None) -> bool:
    """Whether a snapshot holds SLUB's state."""
    return snapshot is not None and snapshot.caches is not None


def restore(snapshot: Snapshot, pages: Pgdat, cpus: int) -> tuple[Slub, list[str]]:
    """SLUB's state in a snapshot, and the caches' names by id; the page frames of slabs are marked in `pages`."""
    assert snapshot.caches is not None and snapshot.slabs is not None and snapshot.free_objects is not None
    assert snapshot.cache_cpus is not None and snapshot.random_seq is not None
    slabs = snapshot.slabs.filter(pl.col("cache") >= 0)
    slots = sum(1 << slot_class(int(n)) for n in slabs["objects"].to_list())
    state = new_slub(cpus, snapshot.scalars["page_offset_base"], slabs=len(slabs) + 1024, slots=slots + (1 << 16))
    names = add_caches(state, snapshot.caches.sort("id"))
    state = state._replace(random=_random(state, snapshot.random_seq))
    rows = _slabs(state, slabs, pages)
    _free_lists(state, snapshot.free_objects, rows)
    for row in snapshot.cache_cpus.iter_rows(named=True):
        k = state.cpu[row["cache"] * cpus + row["cpu"]]
        k["slab"], k["freelist"] = rows.get(row["slab"], END), row["freelist"]
    return reserve(state, 0, 0), names


def add_caches(state: Slub, caches: pl.DataFrame) -> list[str]:
    """Fills rows of `KMEM_CACHE` from a table sorted by id; returns the names. The kmalloc caches are found by their names."""
    names = []
    for row in caches.iter_rows(named=True):
        cache = state.cache[row["id"]]
        for name in GEOMETRY + COUNTS:
            cache[name] = row[name]
        cache["live"], cache["random_seq"] = 1, -1
        names.append(row["name"])
    state.config[0]["caches"] = max(int(state.config[0]["caches"]), len(names))
    prefixes = ("kmalloc-", "kmalloc-cg-", "kmalloc-rcl-", "dma-kmalloc-")
    sizes = {1: "96", 2: "192"} | {i: str(1 << i) if i < 10 else f"{1 << i - 10}k" for i in range(3, KMALLOC_INDEXES)}
    known = {name: i for i, name in enumerate(names)}
    for kind, prefix in enumerate(prefixes):
        for index, size in sizes.items():
            found = known.get(prefix + size, known.get("kmalloc-" + size, -1))  # without accounting the charged ones are the ordinary ones
            state.kmalloc[kind * KMALLOC_INDEXES + index] = found
    assert len(state.kmalloc) == KMALLOC_TYPES * KMALLOC_INDEXES
    return names


def _random(state: Slub, sequences: pl.DataFrame) -> npt.NDArray[np.int32]:
    """All permutations, one behind the other; each cache is told where its own begins."""
    ordered = sequences.sort("cache", "position")
    cache = ordered["cache"].to_numpy()
    first = np.flatnonzero(np.append(True, cache[1:] != cache[:-1])) if len(cache) else np.zeros(0, dtype=np.int64)
    state.cache["random_seq"][cache[first]] = first
    return ordered["object"].cast(pl.Int32).to_numpy().copy()


def _slabs(state: Slub, slabs: pl.DataFrame, pages: Pgdat) -> dict[int, int]:
    """A row for each slab, on the list it is on; returns the rows by page frame."""
    rows: dict[int, int] = {}
    partial: dict[tuple[int, int], list[int]] = {}
    frames = int(pages.config[0]["nr_frames"])
    for slab in slabs.sort("where", "cache", "cpu", "position").iter_rows(named=True):
        row = new_row(state, slab["cache"], slab["pfn"], slab["order"], slab["objects"])
        rows[slab["pfn"]] = row
        entry = state.slab[row]
        entry["inuse"], entry["frozen"], entry["slabs"] = slab["inuse"], slab["frozen"], slab["slabs"]
        if slab["where"] == NODE_PARTIAL:
            list_add_tail(state.slab, row, slab["cache"])
            entry["on_list"] = 1
        elif slab["where"] == CPU_PARTIAL:
            partial.setdefault((slab["cache"], slab["cpu"]), []).append(row)
            entry["on_list"] = 2
        elif slab["where"] == DISCARDED:
            entry["state"] = SLAB_DISCARDED
        end = min(slab["pfn"] + (1 << slab["order"]), frames)
        pages.page["flags"][slab["pfn"] : end] |= PG_SLAB
        pages.page["next"][slab["pfn"] : end] = row
        pages.page["flags"][slab["pfn"]] |= PG_ALLOCATED
        pages.page["order"][slab["pfn"]] = slab["order"]
    cpus = int(state.config[0]["nr_cpus"])
    for (cache, cpu), listed in partial.items():
        state.cpu[cache * cpus + cpu]["partial"] = listed[0]
        for row, following in zip(listed, [*listed[1:], END], strict=True):
            state.slab[row]["next"] = following
    return rows


def _free_lists(state: Slub, free: pl.DataFrame, rows: dict[int, int]) -> None:
    """Chains the free objects of each list."""
    ordered = free.filter(pl.col("slab").is_in(list(rows))).sort("slab", "list", "position")
    if not len(ordered):
        return
    pfn, which, slot = (ordered[c].cast(pl.Int64).to_numpy() for c in ("slab", "list", "object"))
    row = np.array([rows[p] for p in pfn.tolist()], dtype=np.int64)
    at = state.slab["slots"][row] + slot
    last = np.append((row[1:] != row[:-1]) | (which[1:] != which[:-1]), True)
    state.slot[at] = np.where(last, END, np.append(slot[1:], END))
    first = np.insert(last[:-1], 0, True) & (which == 0)
    state.slab["freelist"][row[first]] = slot[first]


@dataclass(frozen=True)
class Frames:
    """A state's slab tables in the form of a snapshot's, sorted, for comparing and for people.

    :param caches: id, and the columns of GEOMETRY and COUNTS.
    :param cache_cpus: cache, cpu, slab (pfn or -1), freelist (object or -1).
    :param slabs: pfn, cache, order, objects, inuse, frozen, where, cpu, position, slabs.
    :param free_objects: slab (pfn), list, position, object.
    """

    caches: pl.DataFrame
    cache_cpus: pl.DataFrame
    slabs: pl.DataFrame
    free_objects: pl.DataFrame

    @staticmethod
    def of(state: Slub) -> Frames:
        """The tables of a state."""
        live = np.flatnonzero(state.cache["live"] == 1)
        caches = pl.DataFrame({"id": live} | {c: state.cache[c][live].astype(np.int64) for c in GEOMETRY + COUNTS})
        cpus = int(state.config[0]["nr_cpus"])
        places: dict[int, tuple[int, int, int]] = {}
        per_cpu, objects = [], []
        for c in live.tolist():
            for cpu in range(cpus):
                k = state.cpu[c * cpus + cpu]
                row, head = int(k["slab"]), int(k["freelist"])
                per_cpu.append((c, cpu, int(state.slab[row]["pfn"]) if row != END else -1, head))
                if row != END:
                    places[row] = (CPU, cpu, 0)
                    objects += _chain(state, row, head, 1)
                for position, partial in enumerate(_partials(state, int(k["partial"]))):
                    places[partial] = (CPU_PARTIAL, cpu, position)
            at, position = int(state.slab[c]["next"]), 0
            while at != c:
                places[at] = (NODE_PARTIAL, -1, position)
                at, position = int(state.slab[at]["next"]), position + 1
        used = MAX_CACHES + np.flatnonzero(state.slab["state"][MAX_CACHES:] != 0)
        slabs = []
        for row in used.tolist():
            slab = state.slab[row]
            where, cpu, position = places.get(row, (NONE, -1, -1))
            if int(slab["state"]) == SLAB_DISCARDED:
                where, cpu, position = DISCARDED, -1, -1
            slabs.append(
                (
                    *(int(slab[c]) for c in ("pfn", "cache", "order", "objects", "inuse", "frozen")),
                    where,
                    cpu,
                    position,
                    int(slab["slabs"]) if where == CPU_PARTIAL else 0,
                )
            )
            objects += _chain(state, row, int(slab["freelist"]), 0)
        columns = ["pfn", "cache", "order", "objects", "inuse", "frozen", "where", "cpu", "position", "slabs"]
        return Frames(
            caches,
            pl.DataFrame(per_cpu, schema=dict.fromkeys(["cache", "cpu", "slab", "freelist"], pl.Int64), orient="row"),
            pl.DataFrame(slabs, schema=dict.fromkeys(columns, pl.Int64), orient="row").sort("pfn"),
            pl.DataFrame(objects, schema=dict.fromkeys(["slab", "list", "position", "object"], pl.Int64), orient="row"),
        )


def _partials(state: Slub, first: int) -> list[int]:
    found: list[int] = []
    while first != END and len(found) <= len(state.slab):
        found.append(first)
        first = int(state.slab[first]["next"])
    return found


def _chain(state: Slub, row: int, head: int, which: int) -> list[tuple[int, int, int, int]]:
    pfn, first = int(state.slab[row]["pfn"]), int(state.slab[row]["slots"])
    found: list[tuple[int, int, int, int]] = []
    while head >= 0 and len(found) <= int(state.slab[row]["objects"]):
        found.append((pfn, which, len(found), head))
        head = int(state.slot[first + head])
    return found
