"""Requests that the kernel refused, and processes it killed: what was asked for, and how the zones stood just then.

`explain` says why one request was refused, by the twin's state at that moment. It is a plain function of a moment, so another explanation can take its place: give
it to `failures` as `explain`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from mmtwin.gfp import (
    ALLOC_MIN_RESERVE,
    ALLOC_NON_BLOCK,
    ALLOC_OOM,
    ALLOC_RESERVES,
    ALLOC_WMARK_HIGH,
    ALLOC_WMARK_MASK,
    PCPTYPES,
    gfp_names,
    gfp_to_alloc_flags,
)
from mmtwin.mm.tables import NR_ORDERS
from mmtwin.mm.validate import free_blocks
from mmtwin.notebook import readable_size
from mmtwin.recording.model import Recording
from mmtwin.replay.moments import Moment
from mmtwin.units import PAGE_SIZE

LOOKED_AT = 100
"""Refused requests of which the zones are shown; looking at one costs as much as a step."""
LISTED = 1000

Explain = Callable[[Moment, dict[str, Any], list[str]], dict[str, Any]]
"""Takes the moment, the refused request (a row of `refused`), and names of zones by index; returns at least `reason`, `text` and `zones`."""


def refused(recording: Recording) -> pl.DataFrame:
    """The requests for pages that failed: event (its row), time, cpu, pid, order, gfp, tested, alloc_flags.

    The event is printed when the request has given up. `tested` is the row of its last test of the zones and `alloc_flags` what that test allowed, where the recording
    has the recorder's probe in get_page_from_freelist; else the event's own row, and -1.
    """
    rows = recording.events.lazy().with_row_index("event").with_columns(pl.col("event").cast(pl.Int64))
    failed = (
        rows.filter((pl.col("kind") == "mm_page_alloc") & (pl.col("pfn") < 0))
        .select("event", "time", pl.col("cpu").cast(pl.Int64), pl.col("pid").cast(pl.Int64), pl.col("order").cast(pl.Int64), "gfp")
        .collect()
    )
    walks = (
        rows.filter(pl.col("kind") == "walk")
        .select(pl.col("event").alias("tested"), pl.col("pid").cast(pl.Int64), pl.col("order").cast(pl.Int64), pl.col("arg").alias("alloc_flags"))
        .collect()
    )
    return failed.join_asof(walks, left_on="event", right_on="tested", by=["pid", "order"], coalesce=False, check_sortedness=False).with_columns(
        pl.col("tested").fill_null(pl.col("event")), pl.col("alloc_flags").fill_null(-1)
    )


def looked_at(rows: pl.DataFrame) -> pl.DataFrame:
    """Which of the refused requests are looked at: all, or as many as possible, equally far apart, the first and the last among them."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT)).round().astype(np.int64))] if len(rows) else rows


def explain(moment: Moment, request: dict[str, Any], zones: list[str]) -> dict[str, Any]:
    """Each zone's numbers against what the request needs of it, by the minimum watermark's test (``__zone_watermark_ok``).

    Where the recording does not tell what the last test allowed (`alloc_flags`), what the request's flags alone allow is counted: a task's own rights
    (PF_MEMALLOC, a victim of the OOM killer) are then not known.
    """
    state, order, gfp = moment.state, int(request["order"]), int(request["gfp"])
    highest = int(state.gfp_zone[gfp & 0xF])
    flags = int(request["alloc_flags"]) if request["alloc_flags"] >= 0 else gfp_to_alloc_flags(gfp, order)
    mark = ("wmark_min", "wmark_low", "wmark_high")[min(flags & ALLOC_WMARK_MASK, ALLOC_WMARK_HIGH)]
    free = free_blocks(state)
    cpus = int(state.config[0]["nr_cpus"])
    rows = []
    for z, zone in enumerate(state.zone):
        if not int(zone["present_pages"]):
            continue
        least = int(zone[mark]) + int(zone["watermark_boost"])
        if flags & ALLOC_RESERVES:
            least -= least // 2 if flags & ALLOC_MIN_RESERVE else 0
            least -= least // 4 if flags & ALLOC_MIN_RESERVE and flags & ALLOC_NON_BLOCK else 0
            least -= least // 2 if flags & ALLOC_OOM else 0
        reserve = int(state.lowmem_reserve[z, highest]) if z <= highest else 0
        counts = np.bincount(free.order[(free.zone == z) & (free.migratetype < PCPTYPES)], minlength=NR_ORDERS)
        fitting = int(counts[order:].sum()) if order < NR_ORDERS else 0
        pages = int(zone["nr_free_pages"])
        kept = 0 if flags & ALLOC_RESERVES else int(zone["nr_reserved_highatomic"])
        below = pages - ((1 << order) - 1) - kept <= least + reserve
        if z > highest:
            rule = "not for this request"
        elif below:
            rule = "too few free pages"
        elif order and not fitting:
            rule = f"no free block of order {order}"
        else:
            rule = "would pass"
        rows.append({
            "zone": zones[z], "free_pages": pages, "needs_more_than": least + reserve, "watermark": mark.removeprefix("wmark_"), "mark": int(zone[mark]), "watermark_boost": int(zone["watermark_boost"]),
            "kept_highatomic": kept, "lowmem_reserve": reserve, "blocks_large_enough": fitting, "largest_free_order": int(np.flatnonzero(counts).max(initial=-1)),
            "on_cpu_lists": int(state.pcp["count"][z * cpus : (z + 1) * cpus].sum()), "rule": rule,
        })  # fmt: skip
    reason, text = _why(rows, order)
    return {"reason": reason, "text": text, "at": moment.event, "zones": rows}


def _why(rows: list[dict[str, Any]], order: int) -> tuple[str, str]:
    """The reason in a few words, and in a sentence with the numbers."""
    usable = [row for row in rows if row["rule"] != "not for this request"]
    if any(row["rule"] == "would pass" for row in usable):
        return "not seen in the zones", "Some zone would have passed at that moment: another CPU changed it just then, or another rule refused."
    fragmented = [row for row in usable if row["rule"].startswith("no free block")]
    if fragmented:
        size, largest = readable_size(PAGE_SIZE << order), readable_size(PAGE_SIZE << max(max(row["largest_free_order"] for row in fragmented), 0))
        free = readable_size(sum(row["free_pages"] for row in fragmented) * PAGE_SIZE)
        return "fragmentation: no block large enough", f"{free} were free, but no block of {size} in one piece; the largest was {largest}."
    boosted = [
        row
        for row in usable
        if row["free_pages"] - row["kept_highatomic"] - ((1 << order) - 1) > row["needs_more_than"] - row["watermark_boost"]
        and (not order or row["blocks_large_enough"])
    ]
    if boosted:
        zone = boosted[0]
        pages = f"{zone['free_pages']:,} free pages, and needed more than {zone['needs_more_than']:,}; without the boost of {zone['watermark_boost']:,} it would have passed"
        why = "The boost is there for a while after another request had to break up a block of another type (watermark_boost_factor)."
        return "raised watermark (boost)", f"{zone['zone']} had {pages}. {why}"
    mark = usable[0]["watermark"] if usable else "min"
    free = ", ".join(f"{row['zone']} {row['free_pages']:,} free pages of more than {row['needs_more_than']:,} needed" for row in usable)
    return f"too little memory ({mark} watermark)", f"Too little memory in every zone that the request may use: {free}."


def failures(rows: pl.DataFrame, explained: dict[int, dict[str, Any]], recording: Recording) -> dict[str, Any]:
    """The section's data.

    :param rows: of `refused`.
    :param explained: what `explain` said, by the row of the test.
    """
    listed = []
    for row in rows.head(LISTED).iter_rows(named=True):
        listed.append(
            {**row, "gfp": gfp_names(row["gfp"] & 0xFFFF_FFFF), "bytes": PAGE_SIZE << max(row["order"], 0), "explained": explained.get(row["tested"])}
        )
    victims = (
        recording.events.lazy()
        .with_row_index("event")
        .filter(pl.col("kind") == "mark_victim")
        .select(pl.col("event").cast(pl.Int64), "time", pl.col("arg").alias("pid"), pl.col("name").fill_null("").alias("comm"))
        .collect()
    )
    by_kind = rows.group_by("order", "gfp").len().sort("len", "order", "gfp", descending=[True, False, False])
    kinds = [{"order": order, "gfp": gfp_names(gfp & 0xFFFF_FFFF), "count": count} for order, gfp, count in by_kind.iter_rows()]
    reasons = Counter(row["reason"] for row in explained.values())
    return {
        "total": len(rows), "kinds": kinds, "reasons": [{"text": text, "count": count} for text, count in reasons.most_common()], "requests": listed,
        "not_listed": max(len(rows) - LISTED, 0), "explained": len(explained), "oom_kills": victims.to_dicts(),
    }  # fmt: skip
