"""The classic SLAB's tables from a snapshot, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from mmtwin.mm.slab_classic_geometry import CFLGS_OBJFREELIST_SLAB, CFLGS_OFF_SLAB, IN_OBJECT, KMALLOC_SIZES, OFF_SLAB, ON_SLAB, general_size
from mmtwin.mm.slab_classic_tables import END, HEADS, LISTS, MAX_CACHES, SLAB_LIVE, ClassicSlab, new_slab, reserve
from mmtwin.recording.model import Snapshot
from mmtwin.recording.slab_classic import CLASSIC_TABLES, SHARED, check_classic

PAGE_SHIFT = 12
SAME = (
    "flags", "size", "object_size", "num", "colour", "colour_off", "allocflags", "limit", "batchcount", "shared", "align", "colour_next", "free_objects",
    "free_limit", "free_touched", "total_slabs", "free_slabs", "next_reap",
)  # fmt: skip
"""Columns that have one name in `CLASSIC_TABLES` and in the machine's table."""
CHANGING = ("colour_next", "free_objects", "free_limit", "free_touched", "total_slabs", "free_slabs", "next_reap")


class Pointers(NamedTuple):
    """What the addresses in events mean: rows of the machine's tables."""

    cache: Mapping[int, int]
    node: Mapping[int, int]
    array: Mapping[int, int]


def restore_classic(snapshot: Snapshot, cpus: int, slabs: int = 0, indices: int = 0) -> tuple[ClassicSlab, list[str], Pointers]:
    """The machine's tables as they were in a snapshot; caches get their ids as rows.

    :param cpus: of the machine.
    :param slabs: room for that many more slabs, and `indices` objects in them.
    :returns: tables, the caches' names by row, and what addresses mean.
    :raises RecordingError: impossible tables.
    """
    assert snapshot.classic is not None
    tables = snapshot.classic
    frames = snapshot.scalars["max_pfn"]
    check_classic(tables, cpus, frames, "snapshot")
    state = new_slab(frames, cpus, "6.1", snapshot.scalars["page_offset_base"])
    caches = tables["classic_caches"].sort("id")
    count = len(caches)
    for name in SAME:
        state.cache[name][:count] = caches[name].to_numpy()
    flags = caches["flags"].to_numpy()
    state.cache["order"][:count] = caches["gfporder"].to_numpy()
    state.cache["management_size"][:count] = caches["freelist_size"].to_numpy()
    state.cache["management"][:count] = np.where(flags & CFLGS_OFF_SLAB, OFF_SLAB, np.where(flags & CFLGS_OBJFREELIST_SLAB, IN_OBJECT, ON_SLAB))
    state.cache["ctor"][:count] = caches["ctor"].to_numpy()
    state.cache["live"][:count] = 1
    state.cache["unused_slab"][:count] = END
    names = caches["name"].to_list()
    for row, size in enumerate(caches["freelist_size"].to_list()):
        wanted = f"kmalloc-{general_size(size, KMALLOC_SIZES)}"
        off = state.cache[row]["management"] == OFF_SLAB
        state.cache[row]["management_cache"] = names.index(wanted) if off and wanted in names else END
    state.config["caches"] = count
    arrays = tables["classic_arrays"]
    state = _arrays(state, arrays, tables["classic_entries"], cpus)
    rows = len(tables["classic_slabs"])
    own = int(state.cache["num"][tables["classic_slabs"]["cache"].to_numpy()].sum()) if rows else 0
    state = reserve(state, rows + slabs, own + indices)
    _slabs(state, tables["classic_slabs"], tables["classic_indices"])
    at = {(c, p): c * (cpus + 1) + (cpus if p == SHARED else p) for c, p in arrays.select("cache", "cpu").iter_rows()}
    pointers = Pointers(
        {address: row for row, address in enumerate(caches["address"].to_list())},
        {address: row for row, address in enumerate(caches["node"].to_list())},
        {address: at[c, p] for c, p, address in arrays.select("cache", "cpu", "address").iter_rows()},
    )
    return state, names, pointers


def _arrays(state: ClassicSlab, arrays: pl.DataFrame, entries: pl.DataFrame, cpus: int) -> ClassicSlab:
    limits = arrays["limit"].to_numpy().astype(np.int64)
    rows = arrays["cache"].to_numpy().astype(np.int64) * (cpus + 1) + np.where(arrays["cpu"].to_numpy() == SHARED, cpus, arrays["cpu"].to_numpy())
    starts = np.cumsum(limits) - limits
    for name in ("avail", "limit", "touched"):
        state.array[name][rows] = arrays[name].to_numpy()
    state.array["batchcount"][rows] = arrays["batchcount"].to_numpy().astype(np.uint32).view(np.int32)
    state.array["entry"][rows] = starts
    entry = np.zeros(int(limits.sum()), dtype=np.int64)
    row = entries["cache"].to_numpy().astype(np.int64) * (cpus + 1) + np.where(entries["cpu"].to_numpy() == SHARED, cpus, entries["cpu"].to_numpy())
    entry[state.array["entry"][row] + entries["position"].to_numpy()] = entries["object"].to_numpy()
    return state._replace(entry=entry)


def _slabs(state: ClassicSlab, slabs: pl.DataFrame, indices: pl.DataFrame) -> None:
    """Slabs on their lists, in order; then their free objects, and which objects are handed out."""
    ordered = slabs.sort("cache", "list", "position")
    count = len(ordered)
    row = np.arange(HEADS, HEADS + count)
    pfn, cache, which = (ordered[n].to_numpy().astype(np.int64) for n in ("pfn", "cache", "list"))
    num, order = state.cache["num"][cache].astype(np.int64), state.cache["order"][cache].astype(np.int64)
    starts = np.cumsum(num) - num
    table = state.slab
    table["pfn"][row], table["cache"][row], table["order"][row], table["index"][row], table["state"][row] = pfn, cache, order, starts, SLAB_LIVE
    table["active"][row], table["first"][row] = ordered["active"].to_numpy(), ordered["first"].to_numpy()
    freelist, management = ordered["freelist"].to_numpy().astype(np.int64), state.cache["management"][cache]
    table["management"][row] = np.where(management == OFF_SLAB, freelist, END)
    inside = (freelist - (pfn << PAGE_SHIFT) - table["first"][row]) // state.cache["size"][cache]
    table["freelist"][row] = np.where((management == IN_OBJECT) & (freelist >= 0), inside, END)
    head = cache * LISTS + which
    for i in range(count):  # each goes to its list's tail
        h, r = int(head[i]), int(row[i])
        last = int(table["prev"][h])
        table["next"][last], table["prev"][r], table["next"][r], table["prev"][h] = r, last, h, r
        state.frame[pfn[i] : pfn[i] + (1 << int(order[i]))] = r
    state.config["slabs"], state.config["indices"], state.config["pages"] = HEADS + count, int(num.sum()), int((1 << order).sum())
    state.used[: int(num.sum())] = 1
    at = state.frame[indices["slab"].to_numpy()].astype(np.int64)
    first = table["index"][at]
    state.indices[first + table["active"][at] + indices["position"].to_numpy()] = indices["object"].to_numpy()
    state.used[first + indices["object"].to_numpy()] = 0
    filled = state.array[state.array["avail"] > 0]
    for array in filled:
        address = state.entry[int(array["entry"]) : int(array["entry"]) + int(array["avail"])]
        r = state.frame[address >> PAGE_SHIFT].astype(np.int64)
        number = (address - (table["pfn"][r] << PAGE_SHIFT) - table["first"][r]) // state.cache["size"][table["cache"][r]]
        state.used[table["index"][r] + number] = 0


def classic_tables_of(state: ClassicSlab) -> dict[str, pl.DataFrame]:
    """The machine's state as tables with the keys and the changing columns of `CLASSIC_TABLES` (without addresses of caches, nodes and arrays)."""
    config = state.config[0]
    cpus, count = int(config["nr_cpus"]), int(config["caches"])
    caches = pl.DataFrame([pl.Series("id", np.arange(count)), *(pl.Series(name, state.cache[name][:count].astype(np.int64)) for name in CHANGING)])
    arrays, entries, slabs, indices = (list[tuple[int, ...]]() for _ in range(4))
    for c in range(count):
        for p in range(cpus + 1):
            array = state.array[c * (cpus + 1) + p]
            if not array["limit"]:
                continue
            cpu, avail, start = SHARED if p == cpus else p, int(array["avail"]), int(array["entry"])
            arrays.append((c, cpu, avail, int(array["touched"])))
            entries += [(c, cpu, i, int(a)) for i, a in enumerate(state.entry[start : start + avail])]
        num, size, management = (int(state.cache[c][n]) for n in ("num", "size", "management"))
        for which in range(LISTS):
            head = c * LISTS + which
            row, position = int(state.slab[head]["next"]), 0
            while row != head:
                slab = state.slab[row]
                pfn, active, first, start = (int(slab[n]) for n in ("pfn", "active", "first", "index"))
                base = (pfn << PAGE_SHIFT) + first
                if management == IN_OBJECT:
                    freelist = -1 if slab["freelist"] == END else base + int(slab["freelist"]) * size
                elif management == OFF_SLAB:
                    freelist = int(slab["management"])
                else:
                    freelist = (pfn << PAGE_SHIFT) + (4096 << int(slab["order"])) - int(state.cache[c]["management_size"])
                slabs.append((pfn, c, which, position, active, first, freelist))
                indices += [(pfn, i, int(n)) for i, n in enumerate(state.indices[start + active : start + num])]
                row, position = int(slab["next"]), position + 1
    names = {"classic_arrays": ("cache", "cpu", "avail", "touched")} | {
        n: tuple(CLASSIC_TABLES[n]) for n in ("classic_entries", "classic_slabs", "classic_indices")
    }
    found = {"classic_caches": caches}
    for (name, columns), rows in zip(names.items(), (arrays, entries, slabs, indices), strict=True):
        found[name] = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.Int64), orient="row")
    return found


assert MAX_CACHES * LISTS == HEADS
