"""Call sites of pages in recordings (``mmtwin record --sites``): mm_page_alloc names no caller, so probes at the allocator's doors tell the return address.

A probe stands at the entry of every function through which pages are asked for (alloc_pages, __get_free_pages, folio_alloc, ...), and a filter in the guest
drops entries whose caller is itself in the allocator, so that only the outermost one is told. The event has no place in a replay: it is turned
into the call site of the mm_page_alloc that follows in the same task, and dropped.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from mmtwin.recording.capture.probes import GROUP, Probe, Symbols
from mmtwin.recording.readers.page_callers import is_allocator

DOORS = (
    "__alloc_pages", "alloc_pages", "folio_alloc", "__folio_alloc", "vma_alloc_folio", "__get_free_pages", "get_zeroed_page", "alloc_pages_exact",
)  # fmt: skip
"""mm/page_alloc.c, mm/mempolicy.c. Not alloc_pages_exact_nid, which is gone after boot (__meminit). Not the bulk allocator: its pages raise no mm_page_alloc but those that it asks for one by one, through __alloc_pages."""
PROBE = "page_site"


def site_probes(symbols: Symbols) -> list[Probe]:
    """One probe for each door that this kernel has as a function."""
    inside = [bounds for name in symbols.names("") if is_allocator(name) and (bounds := symbols.range(name)) and bounds[0] < bounds[1]]
    outside = " && ".join(f"(ra < {start:#x} || ra >= {end:#x})" for start, end in _joined(inside))
    doors = [name for name in DOORS if symbols.range(name)]
    return [
        Probe(f"{PROBE}{i}", f"p:{GROUP}/{PROBE}{i} {name}+{symbols.entry(name)} ra=+0($stack):{symbols.abi.pointer}", outside) for i, name in enumerate(doors)
    ]


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that touch (but for the padding between functions) as one: the kernel's filters are short."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(set(ranges)):
        if found and start <= found[-1][1] + 64:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def with_sites(events: pl.DataFrame) -> pl.DataFrame:
    """Gives mm_page_alloc rows the call sites that the probes told, and drops the probes' rows.

    Requests nest: a task that reclaims for one may make others. So each task has a stack of sites; a request takes the uppermost that no request
    has taken. One that finds none (a second attempt after a refusal) has the site of the one before.
    """
    is_site = pl.col("kind") == PROBE
    rows = events.with_row_index("row").filter(is_site | (pl.col("kind") == "mm_page_alloc"))
    task = pl.when(pl.col("context") == 0).then(pl.col("pid") + 16).otherwise(-4 * pl.col("cpu").cast(pl.Int32) - pl.col("context"))
    idle = pl.when((pl.col("pid") == 0) & (pl.col("context") == 0)).then(-(1 << 20) - pl.col("cpu").cast(pl.Int32)).otherwise(task)
    waiting: dict[int, list[int]] = {}
    last: dict[int, int] = {}
    found: dict[int, int] = {}
    for row, who, site, address in rows.select("row", idle.alias("who"), is_site.alias("site"), "call_site").iter_rows():
        if site:
            waiting.setdefault(who, []).append(address)
        elif sites := waiting.get(who):
            found[row] = last[who] = sites.pop()
        elif who in last:
            found[row] = last[who]
    sited = pl.DataFrame({"row": list(found), "found": list(found.values())}, schema={"row": pl.UInt32, "found": pl.Int64})
    joined = events.with_row_index("row").join(sited, on="row", how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce("found", "call_site").alias("call_site")).filter(~is_site).select(events.columns)
