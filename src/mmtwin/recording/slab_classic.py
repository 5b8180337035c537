"""What a recording of a kernel with the classic SLAB allocator has besides the page allocator's data: tables of its snapshots, kinds of events, and checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.errors import RecordingError

CLASSIC_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "cslab_alloc": {"ptr": "ptr"},
    "cslab_bulk_alloc": {"ptr": "ptr"},
    "cslab_free": {"ptr": "ptr", "cache": "arg"},
    "cslab_grow_end": {"ptr": "ptr", "page": "page"},
    "cslab_node_alloc": {"ptr": "ptr"},
    "cslab_untouch": {"ptr": "ptr"},
    "cslab_drain": {"ptr": "ptr", "all": "arg"},
    "cslab_node_reap": {"ptr": "ptr", "next": "arg"},
    "cslab_free_untouch": {"ptr": "ptr"},
    "cslab_drain_free": {"ptr": "ptr"},
    "cslab_do_drain": {"ptr": "ptr"},
    "cslab_tune": {"ptr": "ptr", "limit": "arg", "batchcount": "bytes_req", "shared": "bytes_alloc"},
    "cslab_create": {"ptr": "ptr"},
}
"""For each kind of event: which field of the kernel's record goes to which column (as `mmtwin.recording.convert.COLUMNS`). ptr is an array of objects
(cslab_alloc, cslab_bulk_alloc, cslab_untouch, cslab_drain), a node (cslab_node_reap, cslab_free_untouch, cslab_drain_free), the object (cslab_free; arg is its
cache), or a cache. A cslab_grow_end without a slab has a pfn outside the machine."""
CLASSIC_KINDS = tuple(CLASSIC_COLUMNS)

SHARED = -1
"""In the column cpu: the node's shared array."""
NUMBERS = (
    "id", "address", "cpu_cache", "node", "flags", "size", "object_size", "align", "num", "gfporder", "colour", "colour_off", "freelist_size", "allocflags",
    "limit", "batchcount", "shared", "refcount", "ctor", "colour_next", "free_objects", "free_limit", "free_touched", "total_slabs", "free_slabs", "next_reap",
)  # fmt: skip
CLASSIC_TABLES: Mapping[str, Mapping[str, Any]] = {
    "classic_caches": {**dict.fromkeys(NUMBERS, pl.Int64), "name": pl.String},
    "classic_arrays": {
        "cache": pl.Int32, "cpu": pl.Int16, "address": pl.Int64, "avail": pl.Int32, "limit": pl.Int32, "batchcount": pl.Int64, "touched": pl.Int8,
    },
    "classic_entries": {"cache": pl.Int32, "cpu": pl.Int16, "position": pl.Int32, "object": pl.Int64},
    "classic_slabs": {
        "pfn": pl.Int64, "cache": pl.Int32, "list": pl.Int8, "position": pl.Int32, "active": pl.Int32, "first": pl.Int32, "freelist": pl.Int64,
    },
    "classic_indices": {"slab": pl.Int64, "position": pl.Int32, "object": pl.Int32},
}  # fmt: skip
"""A snapshot's tables and their columns.

- classic_caches: one row per ``struct kmem_cache`` in the order of ``slab_caches`` (newest first): id (0 = the oldest), address, cpu_cache (the per-CPU
  pointer), node (address of its ``kmem_cache_node``), then fields of both structs by their names; ctor is 0 or 1.
- classic_arrays: ``struct array_cache`` of each online CPU and the shared one (cpu -1; only if there is one).
- classic_entries: their entries, oldest first: physical addresses.
- classic_slabs: pfn, cache (an id), list (0 full, 1 partial, 2 free), position (0 = head), active, first (offset of the first object: ``s_mem``), freelist
  (physical address of the array of object numbers, -1 if there is none: a full slab with the array in an object).
- classic_indices: numbers of the free objects, in the order in which they will be taken (position counts from ``active``).
"""

MAX_CACHES, MAX_OBJECTS, MAX_LIMIT = 512, 255, 1 << 14
PAGE_SHIFT = 12
Int = npt.NDArray[np.int64]


def check_classic(tables: Mapping[str, pl.DataFrame], cpus: int, frames: int, label: str) -> None:
    """Checks that the tables are possible: whatever the compiled replay uses as an index is in range.

    :param frames: ``max_pfn``.
    :raises RecordingError: naming the first table and what is wrong with it.
    """
    if set(tables) != set(CLASSIC_TABLES):
        raise RecordingError(f"{label}: tables {sorted(tables)}; expected {sorted(CLASSIC_TABLES)}")
    column: dict[str, dict[str, Int]] = {}
    for name, schema in CLASSIC_TABLES.items():
        if dict(tables[name].schema) != dict(schema) or any(tables[name].null_count().row(0)):
            raise RecordingError(f"{label}.{name}: columns or types are not the expected ones, or values are missing")
        column[name] = {c: tables[name][c].cast(pl.Int64).to_numpy() for c in schema if c != "name"}
    caches, arrays, entries, slabs, indices = (column[name] for name in CLASSIC_TABLES)

    def need(good: npt.NDArray[np.bool_] | bool, table: str, what: str) -> None:
        if not np.all(good):
            raise RecordingError(f"{label}.{table}: {what}")

    count = len(caches["id"])
    need(count <= MAX_CACHES, "classic_caches", f"{count} caches; expected {MAX_CACHES} at most")
    need(caches["id"] == np.arange(count - 1, -1, -1), "classic_caches", "id: expected the newest first, numbered from the oldest")
    limits = {
        "size": (1, 1 << 25), "num": (1, MAX_OBJECTS), "gfporder": (0, 10), "colour": (0, 1 << 22), "colour_off": (1, 1 << 22), "freelist_size": (0, 512),
        "limit": (1, MAX_LIMIT), "batchcount": (1, MAX_LIMIT), "shared": (0, MAX_LIMIT), "colour_next": (0, 1 << 22), "free_objects": (0, 1 << 30),
        "free_limit": (0, 1 << 30), "total_slabs": (0, 1 << 30), "free_slabs": (0, 1 << 30), "object_size": (1, 1 << 25), "align": (1, 1 << 25),
    }  # fmt: skip
    for name, (low, high) in limits.items():
        need((caches[name] >= low) & (caches[name] <= high), "classic_caches", f"{name}: expected {low} to {high}")
    need(caches["num"] * caches["size"] <= np.int64(4096) << caches["gfporder"], "classic_caches", "num: more objects than fit into a slab")
    by_id = {name: values[::-1] for name, values in caches.items()}
    for table, values in (("classic_arrays", arrays), ("classic_entries", entries), ("classic_slabs", slabs)):
        need((values["cache"] >= 0) & (values["cache"] < count), table, "cache: there is no such cache")
    for table, values in (("classic_arrays", arrays), ("classic_entries", entries)):
        need((values["cpu"] >= SHARED) & (values["cpu"] < cpus), table, f"cpu: expected {SHARED} to {cpus - 1}")
    need((arrays["limit"] >= 1) & (arrays["limit"] <= MAX_LIMIT), "classic_arrays", f"limit: expected 1 to {MAX_LIMIT}")
    need((arrays["avail"] >= 0) & (arrays["avail"] <= arrays["limit"]), "classic_arrays", "avail: expected 0 to the limit")
    own = arrays["cpu"] >= 0
    need((arrays["batchcount"] >= 1)[own] & (arrays["batchcount"] <= arrays["limit"])[own], "classic_arrays", "batchcount: expected 1 to the limit")
    key = arrays["cache"] * (cpus + 1) + arrays["cpu"] + 1
    need(len(np.unique(key)) == len(key), "classic_arrays", "an array is there twice")
    held = np.zeros(count * (cpus + 1), dtype=np.int64)
    held[key] = arrays["avail"]
    filled = np.bincount(entries["cache"] * (cpus + 1) + entries["cpu"] + 1, minlength=len(held))
    need(filled == held, "classic_entries", "not as many entries as the arrays say")
    place = entries["position"]
    need((place >= 0) & (place < held[entries["cache"] * (cpus + 1) + entries["cpu"] + 1]), "classic_entries", "position: expected 0 to avail - 1")
    last = slabs["pfn"] + (np.int64(1) << by_id["gfporder"][slabs["cache"]])
    need((slabs["pfn"] >= 0) & (last <= frames), "classic_slabs", f"pfn: outside the machine's {frames} page frames")
    order = np.argsort(slabs["pfn"])
    need(slabs["pfn"][order][1:] >= last[order][:-1], "classic_slabs", "pfn: slabs overlap")
    need((slabs["list"] >= 0) & (slabs["list"] <= 2), "classic_slabs", "list: expected 0 to 2")
    num = by_id["num"][slabs["cache"]]
    need((slabs["active"] >= 0) & (slabs["active"] <= num), "classic_slabs", "active: expected 0 to the cache's num")
    need(np.select([slabs["active"] == 0, slabs["active"] == num], [2, 0], 1) == slabs["list"], "classic_slabs", "list: not the one for its objects in use")
    room = (np.int64(4096) << by_id["gfporder"][slabs["cache"]]) - num * by_id["size"][slabs["cache"]]
    need((slabs["first"] >= 0) & (slabs["first"] <= room), "classic_slabs", "first: the objects would end behind the slab")
    row = np.full(frames + 1, -1, dtype=np.int64)
    for page in range(int((last - slabs["pfn"]).max()) if len(order) else 0):
        inside = slabs["pfn"] + page < last
        row[slabs["pfn"][inside] + page] = np.flatnonzero(inside)
    need((indices["slab"] >= 0) & (indices["slab"] < frames), "classic_indices", "slab: outside the machine")
    at = row[np.clip(indices["slab"], 0, frames)]
    need((at >= 0) & (slabs["pfn"][at] == indices["slab"]), "classic_indices", "slab: there is no such slab")
    need(np.bincount(at, minlength=len(num)) == num - slabs["active"], "classic_indices", "not as many free objects as the slabs say")
    need((indices["object"] >= 0) & (indices["object"] < num[at]), "classic_indices", "object: the slab has not that many")
    need((indices["position"] >= 0) & (indices["position"] < (num - slabs["active"])[at]), "classic_indices", "position: outside the slab's free objects")
    for name in ("position", "object"):
        pair = at * (MAX_OBJECTS + 1) + indices[name]
        need(len(np.unique(pair)) == len(pair), "classic_indices", f"{name}: one is there twice")
    pfn = entries["object"] >> PAGE_SHIFT
    need((pfn >= 0) & (pfn < frames), "classic_entries", "object: outside the machine")
    at = row[np.clip(pfn, 0, frames)]
    need((at >= 0) & (slabs["cache"][at] == entries["cache"]), "classic_entries", "object: not in a slab of its cache")
    inside = entries["object"] - (slabs["pfn"][at] << PAGE_SHIFT) - slabs["first"][at]
    size = by_id["size"][entries["cache"]]
    need((inside >= 0) & (inside % size == 0) & (inside // size < num[at]), "classic_entries", "object: not the beginning of an object")
    need(len(np.unique(entries["object"])) == len(pfn), "classic_entries", "object: one is there twice")
    taken = set((at * (MAX_OBJECTS + 1) + inside // size).tolist()) & set((row[indices["slab"]] * (MAX_OBJECTS + 1) + indices["object"]).tolist())
    need(not taken, "classic_entries", "object: free in its slab as well")
