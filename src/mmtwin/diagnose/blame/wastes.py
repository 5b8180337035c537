"""Who wastes: bytes that nobody asked for, slabs that are mostly empty, and pages and addresses that only serve others.

What each is: a size class hands out more than was asked for (mm/slab_common.c); a slab keeps its pages as long as one object is live (mm/slub.c); vmalloc leaves a page of addresses, not of memory, unmapped
behind each area (mm/vmalloc.c); page tables of processes take a page for every 2 MiB or part of them that is mapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from mmtwin.diagnose.blame.lives import Lives
from mmtwin.diagnose.blame.steps import Steps
from mmtwin.diagnose.stat import LIVE
from mmtwin.mm.slab_tables import ALLOCATED, MAX_CACHES, SLAB_LIVE, Slub
from mmtwin.recording.model import Snapshot
from mmtwin.units import PAGE_SIZE

VM_NO_GUARD = 0x40
"""include/linux/vmalloc.h."""
SLABS = {
    "cache": pl.String, "slabs": pl.Int64, "bytes": pl.Int64, "objects": pl.Int64, "in_use": pl.Int64, "idle_bytes": pl.Int64, "half_empty": pl.Int64, "half_empty_bytes": pl.Int64,
}  # fmt: skip


@dataclass(frozen=True)
class Wastes:
    """Waste of four kinds; None where the recording does not tell.

    :ivar classes: by cache: label, hits, bytes_req, bytes, waste_bytes (of everything allocated), live_waste_bytes (of what is live at the end); only caches that waste.
    :ivar slabs: by cache at the end: slabs, bytes (of their pages), objects (room for), in_use, idle_bytes (bytes less those of objects in use), half_empty (slabs with at most half of
        their objects in use), half_empty_bytes.
    :ivar guards: areas (with a guard page), guard_bytes and area_bytes (both of addresses), lazy_areas and lazy_bytes (freed, their addresses not yet usable again).
    :ivar page_tables: pages of page tables, told by the request's flags, from the recording's own requests, and the largest holders by pid.
    :ivar when: where `slabs` is from.
    """

    classes: pl.DataFrame | None
    slabs: pl.DataFrame | None
    guards: dict[str, int] | None
    page_tables: dict[str, Any] | None
    when: str = ""

    def to_dict(self, lines: int) -> dict[str, Any]:
        """For JSON."""

        def rows(table: pl.DataFrame | None) -> list[dict[str, Any]] | None:
            return None if table is None else (table.head(lines) if lines else table).to_dicts()

        return {
            "size_classes": rows(self.classes), "size_classes_total": None if self.classes is None else len(self.classes), "slabs": rows(self.slabs),
            "slabs_total": None if self.slabs is None else len(self.slabs), "slabs_when": self.when, "guard_pages": self.guards, "page_tables": self.page_tables,
        }  # fmt: skip


def size_classes(lives: Lives, steps: Steps) -> pl.DataFrame:
    """Waste by size class, by the events.

    :param lives: grouped by cache.
    """
    waste = pl.col("bytes") - pl.col("bytes_req")
    return (
        lives.table.lazy()
        .filter(pl.col("time") >= steps.start)
        .group_by("group")
        .agg(
            pl.len().cast(pl.Int64).alias("hits"), pl.col("bytes_req", "bytes").sum(), waste.sum().alias("waste_bytes"),
            waste.filter(pl.col("fate") == LIVE).sum().alias("live_waste_bytes"),
        )
        .collect()
        .with_columns(pl.col("group").replace_strict(list(range(len(lives.names))), lives.names, return_dtype=pl.String).alias("label"))
        .filter(pl.col("waste_bytes") > 0)
        .select("label", "hits", "bytes_req", "bytes", "waste_bytes", "live_waste_bytes")
        .sort("live_waste_bytes", "waste_bytes", "label", descending=[True, True, False])
    )  # fmt: skip


def slabs_of_tables(slub: Slub, names: list[str]) -> pl.DataFrame:
    """Slabs by cache, by SLUB's tables at a moment."""
    used = np.flatnonzero(slub.slab["state"] == SLAB_LIVE)
    used = used[used >= MAX_CACHES]
    first, objects = slub.slab["slots"][used], slub.slab["objects"][used].astype(np.int64)
    sums = np.concatenate([[0], np.cumsum(slub.slot == ALLOCATED, dtype=np.int64)])
    cache = slub.slab["cache"][used].astype(np.int64)
    table = pl.DataFrame(
        {
            "cache": [names[c] if 0 <= c < len(names) else f"cache {c}" for c in cache.tolist()], "order": slub.slab["order"][used].astype(np.int64), "objects": objects,
            "in_use": sums[first + objects] - sums[first], "size": slub.cache["size"][cache].astype(np.int64),
        }
    )  # fmt: skip
    return _slabs(table)


def slabs_of_snapshot(snapshot: Snapshot) -> pl.DataFrame | None:
    """The same by a memory dump; None if it has no slabs."""
    if snapshot.slabs is None or snapshot.caches is None or snapshot.free_objects is None:
        return None
    free = snapshot.free_objects.group_by("slab").len("free")
    table = (
        snapshot.slabs.filter((pl.col("cache") >= 0) & (pl.col("where") != 4))
        .join(free, left_on="pfn", right_on="slab", how="left")
        .join(snapshot.caches.select(pl.col("id").cast(pl.Int64), "name", "size"), left_on=pl.col("cache").cast(pl.Int64), right_on="id")
        .select(
            pl.col("name").alias("cache"), pl.col("order").cast(pl.Int64), pl.col("objects").cast(pl.Int64),
            (pl.col("objects").cast(pl.Int64) - pl.col("free").fill_null(0).cast(pl.Int64)).alias("in_use"), pl.col("size").cast(pl.Int64),
        )
    )  # fmt: skip
    return _slabs(table)


def _slabs(table: pl.DataFrame) -> pl.DataFrame:
    """Sums by cache.

    :param table: one row per slab: cache, order, objects, in_use, size.
    """
    pages = table.select(pl.lit(1, dtype=pl.Int64) * 2 ** pl.col("order")).to_series().cast(pl.Int64) * PAGE_SIZE
    half = pl.col("in_use") * 2 <= pl.col("objects")
    return (
        table.with_columns(pages.alias("bytes"))
        .group_by("cache")
        .agg(
            pl.len().cast(pl.Int64).alias("slabs"), pl.col("bytes", "objects", "in_use").sum(), (pl.col("bytes") - pl.col("in_use") * pl.col("size")).sum().alias("idle_bytes"),
            half.sum().cast(pl.Int64).alias("half_empty"), pl.col("bytes").filter(half).sum().alias("half_empty_bytes"),
        )
        .select(list(SLABS))
        .sort("half_empty_bytes", "idle_bytes", "cache", descending=[True, True, False])
    )  # fmt: skip


def in_use_bytes(table: pl.DataFrame) -> Mapping[str, int]:
    """Bytes of live objects by cache, of a table of `slabs_of_tables`."""
    return {row[0]: row[1] for row in table.select("cache", pl.col("bytes") - pl.col("idle_bytes")).iter_rows()}


def guard_pages(snapshot: Snapshot | None) -> dict[str, int] | None:
    """Addresses that separate virtual areas, by a memory dump; None if it has none."""
    if snapshot is None or snapshot.vmaps is None:
        return None
    areas, vms = snapshot.vmaps["areas"], snapshot.vmaps["vms"]
    busy = areas.filter((pl.col("tree") == "busy") & (pl.col("vm") >= 0))["vm"].to_list()
    mine = vms[busy].filter(pl.col("flags") & VM_NO_GUARD == 0)
    lazy = areas.filter(pl.col("tree").is_in(["lazy", "pool"])).select((pl.col("va_end") - pl.col("va_start")).alias("size"))["size"]
    return {
        "areas": len(mine), "guard_bytes": len(mine) * PAGE_SIZE, "area_bytes": int(mine["size"].sum()), "lazy_areas": len(lazy), "lazy_bytes": int(lazy.sum()),
    }  # fmt: skip


def page_tables(recording_pids: pl.DataFrame) -> dict[str, Any]:
    """Page tables that are live at the end.

    :param recording_pids: pid and pages of each live request.
    """
    by_pid = recording_pids.group_by("pid").agg(pl.col("pages").sum()).sort("pages", "pid", descending=[True, False])
    pages = int(by_pid["pages"].sum())
    return {"pages": pages, "bytes": pages * PAGE_SIZE, "by_pid": [list(row) for row in by_pid.head(5).iter_rows()]}
