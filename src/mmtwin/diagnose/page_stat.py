"""Page requests added up: by order, migrate type and flags, with the pages that are live at the end and the requests that failed.

Blocks may be freed in pieces (split_page, alloc_pages_exact) and their pages handed out again in other sizes, so allocations and frees are
paired page by page: a page frame's free belongs to the last allocation that held it.

mm_page_alloc names no caller. Where call chains were recorded, or the recorder's `--sites`, the first function above the page allocator is the call site
(recording/readers/page_callers.py); elsewhere a table by call site is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.diagnose.stat import (
    StatResult,
    _function,
    call_sites,
    check_choice,
    check_raw_ip,
    clock,
    event_window,
    following,
    reading_notes,
    site_name,
    sort_keys,
    sorted_rows,
    tasks_only,
)
from mmtwin.errors import RequestError
from mmtwin.recording.model import Recording
from mmtwin.recording.symbols import Symbols
from mmtwin.units import PAGE_SIZE

GROUPS = {
    "kind": "Order, type, flags", "callsite": "Callsite", "function": "Function", "order": "Order", "migtype": "Mig.type", "gfp": "GFP flags", "pid": "PID",
    "cpu": "CPU",
}  # fmt: skip
"""What page requests can be added up by; "kind" is one row for each order, migrate type and set of flags."""
NOBODY = "(no call site)"
SORT = {"bytes": "bytes", "hit": "hits", "failed": "failed", "live": "live_bytes", "reused": "pages_reused", "freed": "pages_freed", "age": "age_oldest"}
"""Sort keys and their columns, largest first; the name of the group itself sorts too, smallest first."""
TYPES = {0: "Unmovable", 1: "Movable", 2: "Reclaimable", 3: "HighAtomic"}
"""``enum migratetype`` (include/linux/mmzone.h); a request's flags give one of the first three."""
TYPES_BEFORE_4_4 = {0: "Unmovable", 1: "Reclaimable", 2: "Movable", 3: "Reserve"}
"""Linux 4.4 exchanged the numbers 1 and 2. Which numbering holds is known from the kernel's release, else from the flags, which name the type as well."""
EXCHANGED = (4, 4)
GFP_MOVABLE_BITS, GFP_MOVABLE = 0x18, 0x8
HIGHEST_ORDER = 18
"""No kernel has larger blocks: even with pages of 64 KiB and huge pages of 16 GiB."""
PIECE = 1 << 23
"""Page frames paired at a time, to bound the memory used."""
BLOCK_SHIFT = 18  # a naturally aligned block of the highest order never crosses this boundary

Int = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PageSummary:
    """Sums over all page requests. Pages are base pages of 4 KiB.

    :ivar requests: mm_page_alloc events with a page; `failed`: without.
    :ivar free_requests: mm_page_free events; mm_page_free_batched repeats them and is not counted.
    :ivar pages_freed: of the pages allocated, those freed later; `pages_freed_unmatched`: freed pages whose allocation is not in the recording
        (older, or by the bulk allocator, which raises no event); `pages_freed_earlier`: allocated before the time asked for.
    :ivar pages_reused: handed out again without a recorded free.
    :ivar net_bytes: growth; None unless every free has its allocation and the other way round.
    :ivar orders: requests by order and name of the migrate type.
    """

    requests: int
    failed: int
    pages: int
    bytes: int
    free_requests: int
    pages_freed: int
    pages_freed_earlier: int
    pages_freed_unmatched: int
    pages_reused: int
    pages_live: int
    live_bytes: int
    net_bytes: int | None
    orders: dict[int, dict[str, int]]
    old_migrate_types: bool
    tasks_only: bool = False


def page_stat(
    recording: Recording,
    by: str = "kind",
    *,
    sort: Sequence[str] = (),
    live: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    symbols: Symbols | None = None,
    raw_ip: bool = False,
) -> StatResult:
    """Adds up a recording's page requests.

    :param by: one of `GROUPS`.
    :param sort: keys of `SORT` or the name of the group; default: bytes allocated, with `live` bytes live.
    :param live: only groups with pages that are live at the end.
    :param window: first and last time on the trace clock, as for `stat`.
    :param symbols: names for call sites that are addresses; `raw_ip`: none at all.
    :returns: rows with columns label, key, hits, failed, pages, bytes, pages_freed, pages_reused, live (blocks of which a page is live), live_pages,
        live_bytes, age_oldest, age_youngest; by "kind" also order, migtype and gfp as text.
    :raises RequestError: an unknown group or sort key, no page events, none in the window, or no call sites where they are asked for.
    """
    check_choice("group", by, GROUPS)
    check_raw_ip(recording, raw_ip)
    keys = sort_keys(sort, by, SORT, ("live",) if live else ("bytes",))
    allocations, frees, old, (start, end), notes = _paired(recording, by, window)
    names = TYPES_BEFORE_4_4 if old else TYPES
    rows = _grouped(allocations, by, names, call_sites(recording, raw_ip) | {0: NOBODY}, symbols if not raw_ip else None)
    if live:
        rows = rows.filter(pl.col("live") > 0)
    summary = _summary(allocations, frees, names, old, tasks_only(recording))
    return StatResult("page", by, keys, live, clock(recording), start, end, summary, sorted_rows(rows, keys, by, SORT), notes)


def _paired(recording: Recording, by: str, window: tuple[int | None, int | None]) -> tuple[pl.DataFrame, dict[str, int], bool, tuple[int, int], list[str]]:
    """What `page_stat` groups: allocations with the fate of their pages, counts of frees, whether types have their old numbers, the window's times, and notes."""
    events = (
        recording.events.lazy()
        .filter(pl.col("kind").is_in(["mm_page_alloc", "mm_page_free"]))
        .select("time", "cpu", "pid", pl.col("kind").cast(pl.String) == "mm_page_alloc", "pfn", "order", "migratetype", "gfp", "call_site")
        .collect()
    )
    if not len(events):
        raise RequestError("no page events: mm_page_alloc and mm_page_free were not recorded")
    if by in ("callsite", "function"):
        _check_sites(recording, events)
    start, end = event_window(events["time"], window)
    if window[1] is not None:
        events = events.filter(pl.col("time") <= end)
    if (too_large := events.filter(pl.col("order") > HIGHEST_ORDER)).height:
        raise RequestError(f"order {too_large['order'][0]} of a page event: no kernel has blocks of more than order {HIGHEST_ORDER}; the trace is damaged")
    notes = reading_notes(recording)
    old = _numbered_before_4_4(events, recording.provenance.kernel_release)
    inside = (events["time"] >= start).to_numpy()
    allocations, frees = _pair(events, inside, end)
    return allocations, frees, old, (start, end), notes


def by_kind_and_pid(recording: Recording) -> tuple[StatResult, pl.DataFrame]:
    """Sums by kind, and by migrate type, flags and process together.

    :returns: what `page_stat` returns, and a table with columns type, gfp, process, bytes, live_bytes, waste_bytes (0: pages are whole), hits.
    :raises RequestError: there are no page events.
    """
    allocations, frees, old, (start, end), notes = _paired(recording, "kind", (None, None))
    names, keys = TYPES_BEFORE_4_4 if old else TYPES, ("bytes",)
    rows = sorted_rows(_grouped(allocations, "kind", names, {}, None), keys, "kind", SORT)
    result = StatResult("page", "kind", keys, False, clock(recording), start, end, _summary(allocations, frees, names, old, tasks_only(recording)), rows, notes)
    sums = (
        allocations.filter(pl.col("pfn") >= 0)
        .group_by("migratetype", "gfp", "pid")
        .agg(
            (pl.col("pages").sum() * PAGE_SIZE).alias("bytes"), (pl.col("live_pages").sum() * PAGE_SIZE).alias("live_bytes"),
            pl.lit(0, dtype=pl.Int64).alias("waste_bytes"), pl.len().cast(pl.Int64).alias("hits"),
        )
    )  # fmt: skip
    return result, sums.select(
        pl.Series("type", [_type(value, names) for value in sums["migratetype"]], dtype=pl.String),
        pl.Series("gfp", [_gfp(value) for value in sums["gfp"]], dtype=pl.String),
        pl.Series("process", [f"PID {value}" for value in sums["pid"]], dtype=pl.String),
        "bytes", "live_bytes", "waste_bytes", "hits",
    )  # fmt: skip


def _check_sites(recording: Recording, events: pl.DataFrame) -> None:
    """:raises RequestError: no page request has a call site; with the reason, if the reader gave one."""
    if not events.filter(pl.col("kind") & (pl.col("call_site") != 0)).height:
        why = next((note for note in recording.provenance.notes if note.startswith("page events have call chains, but")), None)
        raise RequestError(why or "no call sites of pages: mm_page_alloc names no caller; record call chains (perf record -g), or mmtwin record --sites")


def _numbered_before_4_4(events: pl.DataFrame, release: str) -> bool:
    """Whether Movable is 2: by the kernel's release if that is known, else whether requests with __GFP_MOVABLE have that number."""
    if version := re.match(r"(\d+)\.(\d+)", release):
        return (int(version[1]), int(version[2])) < EXCHANGED
    movable = events.filter(pl.col("kind") & (pl.col("gfp") & GFP_MOVABLE_BITS == GFP_MOVABLE))["migratetype"]
    return int((movable == 2).sum()) > int((movable == 1).sum())


def _pair(events: pl.DataFrame, inside: npt.NDArray[np.bool_], end: int) -> tuple[pl.DataFrame, dict[str, int]]:
    """Allocations of the window with the fate of their pages, and counts of frees."""
    allocates, pfn, time = events["kind"].to_numpy(), events["pfn"].to_numpy(), events["time"].to_numpy()
    order = np.maximum(events["order"].to_numpy().astype(np.int64), 0)
    freed, reused = np.zeros(len(events), dtype=np.int64), np.zeros(len(events), dtype=np.int64)
    frees = {"requests": int((~allocates & inside).sum()), "matched": 0, "unmatched": 0}
    for row, frame in _frames(pfn, order):
        later, earlier = following(frame, np.arange(len(frame)))
        has_next, has_before = later >= 0, earlier >= 0
        mine = allocates[row]
        ends = mine & has_next
        freed += np.bincount(row[ends & ~mine[later]], minlength=len(events))
        reused += np.bincount(row[ends & mine[later]], minlength=len(events))
        here = ~mine & inside[row]
        matched = here & has_before & mine[earlier]
        frees["matched"] += int(matched.sum())
        frees["unmatched"] += int((here & ~matched).sum())
    chosen = np.flatnonzero(allocates & inside)
    pages = np.where(pfn[chosen] >= 0, 1 << order[chosen], 0)
    left = pages - freed[chosen] - reused[chosen]
    table = events[chosen].with_columns(
        pl.Series("pages", pages), pl.Series("pages_freed", freed[chosen]), pl.Series("pages_reused", reused[chosen]), pl.Series("live_pages", left),
        pl.Series("age", end - time[chosen]),
    )  # fmt: skip
    return table, frees


def _frames(pfn: Int, order: Int) -> Iterator[tuple[Int, Int]]:
    """Every page frame of every event, in the order of the events: the event's row and the frame; in pieces that share no frame."""
    rows = np.flatnonzero(pfn >= 0)
    area = pfn[rows] >> BLOCK_SHIFT
    by_area = np.argsort(area, kind="stable")
    rows, area = rows[by_area], area[by_area]
    pages = np.cumsum(1 << order[rows])
    first = np.append(np.flatnonzero(np.diff(area, prepend=-1)), len(rows))
    start = 0
    for stop in first[1:].tolist():
        if stop < len(rows) and pages[stop - 1] - (pages[start - 1] if start else 0) < PIECE:
            continue
        some = np.sort(rows[start:stop])
        count = 1 << order[some]
        row = np.repeat(some, count)
        offset = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        yield row, pfn[row] + offset
        start = stop


def _grouped(table: pl.DataFrame, by: str, names: dict[int, str], sites: dict[int, str], symbols: Symbols | None) -> pl.DataFrame:
    keys = {"kind": ["order", "migratetype", "gfp"], "migtype": ["migratetype"], "callsite": ["call_site"], "function": ["function"]}.get(by, [by])
    if by == "function":
        unique = table["call_site"].unique()
        functions = pl.Series([_function(site_name(value, sites, symbols)) for value in unique], dtype=pl.String)
        table = table.with_columns(pl.col("call_site").replace_strict(unique, functions, return_dtype=pl.String).alias("function"))
    is_live = pl.col("live_pages") > 0
    grouped = (
        table.lazy()
        .group_by([pl.col(key).alias(f"key {key}") for key in keys])
        .agg(
            (pl.col("pfn") >= 0).sum().cast(pl.Int64).alias("hits"),
            (pl.col("pfn") < 0).sum().cast(pl.Int64).alias("failed"),
            pl.col("pages", "pages_freed", "pages_reused", "live_pages").sum(),
            is_live.sum().cast(pl.Int64).alias("live"),
            pl.col("age").filter(is_live).max().alias("age_oldest"),
            pl.col("age").filter(is_live).min().alias("age_youngest"),
        )
        .with_columns((pl.col("pages") * PAGE_SIZE).alias("bytes"), (pl.col("live_pages") * PAGE_SIZE).alias("live_bytes"))
        .collect()
    )
    values = list(grouped.select([f"key {key}" for key in keys]).iter_rows())
    extra: list[pl.Series] = []
    key: list[Any] = [value[0] for value in values]
    match by:
        case "kind":
            texts = [f"order {order}, {_type(kind, names)}, {_gfp(gfp)}" for order, kind, gfp in values]
            key = texts
            extra = [
                pl.Series("order", [value[0] for value in values], dtype=pl.Int64),
                pl.Series("migtype", [_type(value[1], names) for value in values], dtype=pl.String),
                pl.Series("gfp", [_gfp(value[2]) for value in values], dtype=pl.String),
            ]
        case "migtype":
            texts = [_type(value, names) for value in key]
        case "gfp":
            texts = [_gfp(value) for value in key]
        case "callsite":
            texts = [site_name(value, sites, symbols) for value in key]
        case _:
            texts = [str(value) for value in key]
    columns = ("hits", "failed", "pages", "bytes", "pages_freed", "pages_reused", "live", "live_pages", "live_bytes", "age_oldest", "age_youngest")
    labels = [pl.Series("label", texts, dtype=pl.String), pl.Series("key", key, dtype=pl.String if by in ("kind", "function") else pl.Int64)]
    return grouped.with_columns(*labels, *extra).select("label", "key", *columns, *(series.name for series in extra))


def _type(number: int, names: dict[int, str]) -> str:
    return names.get(number, f"type {number}")


def _gfp(flags: int) -> str:
    from mmtwin.gfp import gfp_names

    return gfp_names(flags & 0xFFFF_FFFF)


def _summary(table: pl.DataFrame, frees: dict[str, int], names: dict[int, str], old: bool, some_tasks: bool) -> PageSummary:
    sums = table.select(pl.col("pages", "pages_freed", "pages_reused", "live_pages").sum(), (pl.col("pfn") < 0).sum().alias("failed")).row(0, named=True)
    orders: dict[int, dict[str, int]] = {}
    for order, kind, count in table.filter(pl.col("pfn") >= 0).group_by("order", "migratetype").len().sort("order", "migratetype").iter_rows():
        orders.setdefault(order, {})[_type(kind, names)] = count
    known = not frees["unmatched"] and not sums["pages_reused"] and frees["matched"] == sums["pages_freed"]
    known = known and not (some_tasks and sums["live_pages"])
    return PageSummary(
        requests=len(table) - sums["failed"],
        failed=sums["failed"],
        pages=sums["pages"],
        bytes=sums["pages"] * PAGE_SIZE,
        free_requests=frees["requests"],
        pages_freed=sums["pages_freed"],
        pages_freed_earlier=frees["matched"] - sums["pages_freed"],
        pages_freed_unmatched=frees["unmatched"],
        pages_reused=sums["pages_reused"],
        pages_live=sums["live_pages"],
        live_bytes=sums["live_pages"] * PAGE_SIZE,
        net_bytes=(sums["pages"] - sums["pages_freed"]) * PAGE_SIZE if known else None,
        orders=orders,
        old_migrate_types=old,
        tasks_only=some_tasks,
    )
