"""What the events alone tell about each span between two steps: requests, frees, and how hard memory was to find. Needs no snapshot."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from mmtwin.recording.model import Recording

SLAB_ALLOCS = ("kmalloc", "kmalloc_node", "kmem_cache_alloc", "kmem_cache_alloc_node")
KIND, FAILED = pl.col("kind"), pl.col("pfn") < 0
IS_ALLOC = KIND == "mm_page_alloc"
SERIES: dict[str, tuple[str, pl.Expr]] = {
    "page_allocs": ("page requests", IS_ALLOC & ~FAILED),
    "page_frees": ("pages freed", KIND == "mm_page_free"),
    "slab_allocs": ("objects handed out", KIND.is_in(SLAB_ALLOCS) & (pl.col("ptr") != 0)),
    "slab_frees": ("objects freed", KIND.is_in(["kfree", "kmem_cache_free"]) & (pl.col("ptr") != 0)),
    "calls": ("calls of malloc", KIND.is_in(["malloc", "calloc", "realloc", "memalign", "posix_memalign", "valloc", "pvalloc"])),
    "calls_free": ("calls of free", KIND == "free"),
    "failed": ("requests refused", IS_ALLOC & FAILED),
    "oom_kills": ("OOM kills", KIND == "mark_victim"),
    "direct_reclaims": ("direct reclaim", KIND == "mm_vmscan_direct_reclaim_begin"),
    "compactions": ("direct compaction", KIND == "mm_compaction_try_to_compact_pages"),
    "kswapd_wakes": ("kswapd woken", KIND == "mm_vmscan_wakeup_kswapd"),
    "fallbacks": ("fallbacks to other types' blocks", KIND == "mm_page_alloc_extfrag"),
    "swapped_out": ("pages written to swap", KIND == "mm_vmscan_write_folio"),
}
"""Series by key: its name, and which events count. Up to "calls_free" it is what was asked for, then signs of pressure."""
PRESSURE = ("failed", "oom_kills", "direct_reclaims", "compactions", "kswapd_wakes", "fallbacks", "swapped_out")


def activity(recording: Recording, steps: list[int]) -> dict[str, Any]:
    """How many events of each series lie between one step and the next, and the pages handed out and given back there.

    :param steps: rows of the events, ascending, from 0 to their number; series have one number less.
    :returns: `series`: key, name, pressure, counts; only those that ever happen. `pages`: handed out minus freed in each span, in pages.
    """
    order = pl.col("order").clip(0).cast(pl.Int64)
    pages = pl.when(IS_ALLOC & ~FAILED).then(2**order).when(KIND == "mm_page_free").then(-(2**order)).otherwise(0)
    spans = max(len(steps) - 1, 1)
    sums = (
        recording.events.lazy()
        .select(
            pl.Series("span", np.repeat(np.arange(spans), np.diff(steps)) if len(steps) > 1 else [], dtype=pl.Int64),
            *(chosen.alias(key) for key, (_, chosen) in SERIES.items()),
            pages.cast(pl.Int64).alias("pages"),
        )
        .group_by("span")
        .agg(pl.all().sum())
        .collect()
    )
    every = pl.DataFrame({"span": range(spans)}, schema={"span": pl.Int64}).join(sums, on="span", how="left", maintain_order="left").fill_null(0)
    series = [
        {"key": key, "name": name, "pressure": key in PRESSURE, "counts": every[key].cast(pl.Int64).to_list()}
        for key, (name, _) in SERIES.items()
        if every[key].sum()
    ]
    return {"series": series, "pages": every["pages"].to_list()}
