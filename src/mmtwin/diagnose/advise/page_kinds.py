"""Requests to the page allocator itself: the events name no caller, so they are told apart by order and flags."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from mmtwin.diagnose.advise.rules import Suggestion
from mmtwin.gfp import GFP, gfp_names
from mmtwin.recording.model import Recording

OPTIMISTIC = int(GFP.NORETRY)
"""A first try that has a fallback, as SLUB makes for its larger slabs (``allocate_slab``). A text may leave __GFP_NOWARN to GFP_NOWAIT, which has it since 6.6."""
COSTLY_ORDER = 3


def suggestions(recording: Recording) -> Iterator[Suggestion]:
    """What failed, and what is asked for in blocks where nothing can be done to find them. Most first."""
    events = recording.events.filter(pl.col("kind") == "mm_page_alloc")
    kinds = (
        events.group_by("order", "gfp")
        .agg(pl.len().alias("requests"), (pl.col("pfn") < 0).sum().cast(pl.Int64).alias("failed"))
        .sort(["failed", "requests", "order", "gfp"], descending=[True, True, False, False])
    )
    for order, gfp, requests, failed in kinds.iter_rows():
        gfp &= 0xFFFF_FFFF
        if gfp & OPTIMISTIC == OPTIMISTIC or order < 0:
            continue
        present = f"order {order}, {gfp_names(gfp)}"
        if not gfp & GFP.DIRECT_RECLAIM and gfp & GFP.KSWAPD_RECLAIM and order > 0:
            yield Suggestion(
                "high-order-atomic", "failure" if failed else "order", present, "single pages, or blocks taken beforehand",
                f"{requests:,} requests that may neither reclaim nor compact need {1 << order} pages in a row; {failed:,} failed", "any such request",
                ("who asks: these events name no caller",), weight=failed or requests,
            )  # fmt: skip
        elif failed and order > COSTLY_ORDER:
            yield Suggestion(
                "kvmalloc", "failure", present, "kvmalloc, or single pages and vmap", f"{failed:,} of {requests:,} requests for {1 << order} pages in a row failed",
                f"a failure above order {COSTLY_ORDER}", ("who asks: these events name no caller", "whether one piece is needed"), weight=failed,
            )  # fmt: skip
