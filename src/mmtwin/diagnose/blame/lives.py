"""From events to lives: every object and every page with its beginning and its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.diagnose.cache_names import cache_label, with_caches
from mmtwin.diagnose.page_stat import HIGHEST_ORDER, _frames
from mmtwin.diagnose.pins import Owners, function_of, site_names
from mmtwin.diagnose.stat import CACHE_ALLOCS, FREED, FREES, LIVE, REUSED, ZERO_SIZE_PTR, _is_allocation, _slab_events, following
from mmtwin.errors import RequestError
from mmtwin.recording.model import Recording
from mmtwin.recording.symbols import Symbols
from mmtwin.units import PAGE_SIZE

BY = {"callsite": "Callsite", "function": "Function", "cache": "Cache", "pid": "PID"}
"""What objects can be added up by."""

Bool = npt.NDArray[np.bool_]


class Lives(NamedTuple):
    """Objects or pages, each with its life.

    :param table: time, end (null: live at the end), fate (`LIVE`, `FREED` or `REUSED`: handed out again without a recorded free, so it ended at an unknown time before), bytes,
        bytes_req (of pages: the same), pid, cpu, group; of objects also ptr, call_site, and the columns of `with_caches`.
    :param names: of the groups.
    :param unmatched: frees (of pages: freed pages) of what was allocated before the recording, or silently.
    """

    table: pl.DataFrame
    names: list[str]
    unmatched: int


def object_lives(recording: Recording, by: str, end: int, symbols: Symbols | None, notes: list[str], to_the_end: bool = True) -> Lives | None:
    """Every object of a slab cache that was allocated in the recording; None if slab events were not recorded.

    :param end: what happens after this time is not looked at.
    :param notes: gets what is inferred.
    :param to_the_end: `end` is the recording's own, so that the second memory dump may be asked.
    """
    has_pid = recording.events.select("time", "pid")
    events = _slab_events(recording, "cache")
    if not len(events):
        return None
    if "pid" not in events.columns:
        kinds = events["kind"].unique().to_list()
        events = events.with_columns(has_pid.filter(recording.events["kind"].is_in(kinds))["pid"])
    events = events.filter(pl.col("time") <= end)
    allocates, frees, bulk = _is_allocation(events)
    ptr, time = events["ptr"].to_numpy(), events["time"].to_numpy()
    real = (ptr != 0) & (ptr != ZERO_SIZE_PTR)
    later, earlier = following(ptr, np.flatnonzero((allocates | frees) & real))
    unmatched = int((frees & real & ~((earlier >= 0) & allocates[earlier])).sum())
    chosen = np.flatnonzero(allocates & real)
    then = later[chosen]
    fate = np.where(then < 0, LIVE, np.where(frees[then], FREED, REUSED)).astype(np.uint8)
    table = events[chosen].with_columns(
        pl.Series("fate", fate), pl.Series("real", np.ones(len(chosen), dtype=bool)), pl.Series("bulk", bulk[chosen]),
        pl.when(pl.Series(then >= 0)).then(pl.Series(time[np.maximum(then, 0)])).alias("end"),
    )  # fmt: skip
    freed_name = events["name"].gather(np.maximum(then, 0))
    table = table.with_columns(pl.coalesce("name", pl.when(pl.Series(fate == FREED)).then(freed_name)).alias("name"))
    table = with_caches(table, recording, notes, pl.col("fate") == LIVE if to_the_end else None).rename({"bytes_alloc": "bytes"})
    return _grouped(table, recording, by, symbols, unmatched)


def by_cache(lives: Lives, recording: Recording) -> Lives:
    """The same objects, added up by cache."""
    return _grouped(lives.table, recording, "cache", None, lives.unmatched)


def _grouped(table: pl.DataFrame, recording: Recording, by: str, symbols: Symbols | None, unmatched: int) -> Lives:
    site_name = site_names(recording, symbols)
    keys: Sequence[str] = {"callsite": ("call_site",), "function": ("call_site",), "cache": ("kmalloc", "type", "class", "cache"), "pid": ("pid",)}[by]
    table = table.with_columns(pl.struct(keys).rank("dense").cast(pl.Int64).alias("group") - 1)
    names = []
    for row in table.unique("group").sort("group").select(keys).iter_rows():
        if by == "cache":
            names.append(cache_label(*row))
        elif by == "pid":
            names.append(f"pid {row[0]}" if row[0] else "idle task or interrupt")
        else:
            name = site_name(row[0])
            names.append(function_of(name) if by == "function" else name)
    return _merged(table, names, unmatched)


def _merged(table: pl.DataFrame, names: list[str], unmatched: int) -> Lives:
    """Groups of one name become one."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    renumber = np.array([numbers[name] for name in names], dtype=np.int64)
    return Lives(table.with_columns(pl.Series("group", renumber[table["group"].to_numpy()] if len(table) else [], dtype=pl.Int64)), list(numbers), unmatched)


def page_lives(recording: Recording, owners: Owners, end: int) -> Lives | None:
    """Every page that the page allocator handed out in the recording; None if page events were not recorded. Pages of one request that ended together are one row.

    :param owners: the groups.
    """
    rows = recording.events.lazy().select("time", "kind", "pfn", "order", "pid", "cpu").with_row_index("row").filter(
        pl.col("kind").is_in(["mm_page_alloc", "mm_page_free"]) & (pl.col("pfn") >= 0) & (pl.col("time") <= end)
    )  # fmt: skip
    events = rows.with_columns((pl.col("kind") == "mm_page_alloc").alias("alloc")).drop("kind").collect()
    if not len(events):
        return None
    if len(high := events.filter(pl.col("order") > HIGHEST_ORDER)):
        raise RequestError(f"order {high['order'][0]} of a page event: no kernel has blocks of more than order {HIGHEST_ORDER}; the trace is damaged")
    allocates, pfn, time = events["alloc"].to_numpy(), events["pfn"].to_numpy(), events["time"].to_numpy()
    order = np.maximum(events["order"].to_numpy().astype(np.int64), 0)
    pieces, unmatched = [], 0
    for row, frame in _frames(pfn, order):
        later, earlier = following(frame, np.arange(len(frame)))
        mine = allocates[row]
        unmatched += int((~mine & ~((earlier >= 0) & mine[earlier])).sum())
        then = np.where(later >= 0, row[later], -1)[mine]
        lives = pl.DataFrame({"at": row[mine], "then": then})
        pieces.append(lives.group_by("at", "then").len("pages"))
    if not pieces:
        return None
    found = pl.concat(pieces).sort("at", "then")
    at, then = found["at"].to_numpy(), found["then"].to_numpy()
    fate = np.where(then < 0, LIVE, np.where(allocates[then], REUSED, FREED)).astype(np.uint8)
    amount = found["pages"].cast(pl.Int64) * PAGE_SIZE
    table = events[at].select("time", "pid", "cpu", "order", "row").with_columns(
        pl.Series("fate", fate), amount.alias("bytes"), amount.alias("bytes_req"), found["pages"].cast(pl.Int64),
        pl.when(pl.Series(then >= 0)).then(pl.Series(time[np.maximum(then, 0)])).alias("end"),
        pl.Series("group", owners.of_row[events["row"].to_numpy()[at]].astype(np.int64)),
    )  # fmt: skip
    return _merged(table, owners.names, unmatched)


__all__ = ("BY", "CACHE_ALLOCS", "FREES", "Lives", "by_cache", "object_lives", "page_lives")
