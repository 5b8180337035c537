"""A small recording with every table filled, which no kernel made but one could have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from mmtwin.recording.model import EVENTS_SCHEMA, Provenance, Recording, Snapshot
from mmtwin.recording.validate import CACHE_COLUMNS, SCALARS, SLAB_TABLES, TABLES

FRAMES = 4096


def make_snapshot() -> Snapshot:
    zones = []
    for index, (name, start, spanned) in enumerate((("DMA", 1, 1023), ("DMA32", 1024, 3072), ("Normal", 0, 0), ("Movable", 0, 0), ("Device", 0, 0))):
        row: dict[str, object] = dict.fromkeys(TABLES["zones"], 0)
        row |= {
            "index": index,
            "name": name,
            "start_pfn": start,
            "spanned_pages": spanned,
            "present_pages": spanned,
            "managed_pages": spanned,
            "nr_free_pages": 9,
        }
        zones.append(row | {f"lowmem_reserve_{j}": j for j in range(5)})
    free = [(0, 0, 0, 0, 512), (0, 0, 0, 1, 3), (1, 10, 1, 0, 2048)]
    listed = [(1, 0, 0, 0, 1030, 0), (1, 0, 0, 1, 1029, 0), (1, 1, 4, 0, 1032, 1), (1, 1, 13, 0, 1536, 1)]
    pcp = [(z, c, {(1, 0): 2, (1, 1): 2 + 512}.get((z, c), 0), 42, 15, 0, 4, -3) for z in range(2) for c in range(2)]
    return Snapshot(
        zones=pl.DataFrame(zones, schema=TABLES["zones"] | {f"lowmem_reserve_{j}": pl.Int64 for j in range(5)}),
        free=pl.DataFrame(free, schema=TABLES["free"], orient="row"),
        pcp=pl.DataFrame(pcp, schema=TABLES["pcp"], orient="row"),
        pcp_pages=pl.DataFrame(listed, schema=TABLES["pcp_pages"], orient="row"),
        pageblocks=np.array([0, 1, 2, 3, 4, 0, 1, 2], dtype=np.uint8),
        pages=np.arange(FRAMES, dtype=np.uint8) % 3,
        memory_map=pl.DataFrame([(0, FRAMES << 12, 1)], schema=TABLES["memory_map"], orient="row"),
        scalars=dict.fromkeys(SCALARS, 1) | {"pageblock_order": 9, "max_pfn": FRAMES, "vmemmap_base": (1 << 64) - (1 << 40), "user_min_free_kbytes": -1},
    )


def with_slabs(snapshot: Snapshot) -> Snapshot:
    """The same machine with SLUB's state: two caches, a slab in every place."""
    plain = dict.fromkeys(CACHE_COLUMNS, 0)
    big = plain | {"size": 512, "object_size": 512, "order": 1, "objects": 16, "min_objects": 8, "nr_slabs": 1, "total_objects": 16}
    small = plain | {"size": 1024, "object_size": 1000, "order": 0, "objects": 4, "min_objects": 4, "nr_slabs": 3, "total_objects": 12, "nr_partial": 1}
    caches = [
        {"id": 1, "address": -4096, "cpu_slab": 4128, "name": "small"} | small,
        {"id": 0, "address": -8192, "cpu_slab": 4096, "name": "big"} | big,
    ]
    slabs = [  # pfn, cache, order, objects, inuse, frozen, where, cpu, position, slabs
        (100, 1, 0, 4, 4, 1, 1, 0, 0, 0), (101, 1, 0, 4, 2, 1, 2, 0, 0, 1), (102, 1, 0, 4, 1, 0, 3, -1, 0, 0),
        (104, 0, 1, 16, 16, 0, 0, -1, -1, 0), (106, -1, 0, 4, 0, 0, 4, -1, -1, 0),
    ]  # fmt: skip
    free = [(100, 1, 0, 3), (100, 1, 1, 0), (101, 0, 0, 1), (101, 0, 1, 3), (102, 0, 0, 2), (102, 0, 1, 0), (102, 0, 2, 1)]
    rows: dict[str, list[tuple[int, ...]]] = {
        "cache_cpus": [(0, 0, -1, -1), (0, 1, -1, -1), (1, 0, 100, 3), (1, 1, -1, -1)],
        "slabs": slabs,
        "free_objects": free,
        "random_seq": [(1, 0, 2), (1, 1, 0), (1, 2, 3), (1, 3, 1)],
    }
    tables = {name: pl.DataFrame(table, schema=SLAB_TABLES[name], orient="row") for name, table in rows.items()}
    return replace(snapshot, caches=pl.DataFrame(caches, schema=SLAB_TABLES["caches"]), **tables)


def make_events() -> pl.DataFrame:
    absent: dict[str, object] = {"pfn": -1, "order": -1, "migratetype": -1, "name": None}
    rows: list[dict[str, object]] = [
        {"kind": "pcp_alloc"},
        {"kind": "mm_page_alloc", "pfn": 1030, "order": 0, "migratetype": 0, "gfp": 0xCC0},
        {"kind": "mm_page_alloc", "order": 4, "migratetype": 1, "gfp": 0x140CCA},
        {"kind": "mm_page_free", "pfn": 1030, "order": 0, "cpu": 1},
        {"kind": "mm_page_alloc_zone_locked", "pfn": 2048, "order": 9, "migratetype": 1, "arg": 0},
        {"kind": "kmem_cache_free", "call_site": -77, "ptr": -(1 << 62), "name": "dentry", "context": 1},
        {"kind": "drain_zone", "migratetype": 1, "arg": 1},
        {"kind": "fold", "cpu": 1},
    ]
    nothing: dict[str, object] = dict.fromkeys(EVENTS_SCHEMA, 0)
    full = [nothing | absent | {"time": 10 * i} | row for i, row in enumerate(rows)]
    return pl.DataFrame(full, schema=EVENTS_SCHEMA)


@pytest.fixture
def small() -> Recording:
    provenance = Provenance(
        kernel_release="6.1.0", kernel_config={"SMP": "y"}, ram_bytes=FRAMES << 12, cpus=2, workload_seconds=0.5, probes=["fold"], procfs={"a": "é\n"}
    )
    return Recording(provenance, make_snapshot(), make_snapshot(), make_events())


@pytest.fixture
def slabs(small: Recording) -> Recording:
    assert small.before
    assert small.after
    return replace(small, before=with_slabs(small.before), after=with_slabs(small.after))
