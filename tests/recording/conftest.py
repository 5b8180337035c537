"""A small recording with every table filled, which no kernel made but one could have."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from mmtwin.recording.model import EVENTS_SCHEMA, Provenance, Recording, Snapshot
from mmtwin.recording.validate import SCALARS, TABLES

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
