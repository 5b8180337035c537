"""A recording's events of virtual areas as operations."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from mmtwin.mm.vmap_tables import bias
from mmtwin.recording.vmaps import VMAP_KINDS
from mmtwin.replay import vmap_ops as vmaps
from mmtwin.replay.vmap_ops import K_BUSY, K_REQUEST, K_RESULT, VMAP_COUNTERS, vmap_ops


def test_the_operations_are_numbered_as_the_kinds() -> None:
    names = {"alloc_vmap_area": "K_TRACE_ALLOC", "free_vmap_area_noflush": "K_TRACE_FREE", "purge_vmap_area_lazy": "K_TRACE_PURGE"}
    assert [getattr(vmaps, names.get(kind, kind.upper().replace("VMAP_", "K_", 1))) for kind in VMAP_KINDS] == list(range(len(VMAP_KINDS)))


def test_the_counters_are_numbered() -> None:
    assert len(VMAP_COUNTERS) == len(set(VMAP_COUNTERS))
    assert len(VMAP_COUNTERS) - 1 == vmaps.V_SPARES and VMAP_COUNTERS[vmaps.V_ALLOCS] == "vmap_allocs"


def test_addresses_are_biased_and_tasks_are_contexts(events: Callable[..., pl.DataFrame]) -> None:
    start = 0xFFA0000000045000
    table = events(
        ("mm_page_free", {"pfn": 3, "order": 0}),
        ("vmap_request", {"pid": 9, "ptr": start - (1 << 64), "call_site": start + 8192 - (1 << 64), "bytes_req": 8192, "bytes_alloc": 1}),
        ("vmap_busy", {"pid": 4, "ptr": start - (1 << 64), "call_site": start + 8192 - (1 << 64), "node": 2, "cpu": 1}),
        ("vmap_result", {"pid": 9, "ptr": -12}),
    )
    ops, contexts = vmap_ops(table)
    assert (contexts, ops["kind"].tolist(), ops["event"].tolist()) == (2, [K_REQUEST, K_BUSY, K_RESULT], [1, 2, 3])
    assert ops["ptr"][:2].tolist() == [bias(start)] * 2 and ops["end"][1] == bias(start + 8192)
    assert ops["context"].tolist() == [1, 0, 1]
    assert (int(ops["arg"][2]), int(ops["node"][1]), int(ops["cpu"][1])) == (-12, 2, 1)
