from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from mmtwin import gfp
from mmtwin.errors import RecordingError
from mmtwin.mm import slab_tables, tables
from mmtwin.recording import validate
from mmtwin.recording.model import Recording
from mmtwin.recording.validate import check


def put(table: pl.DataFrame, column: str, row: int, value: Any) -> pl.DataFrame:
    values = table[column].to_list()
    values[row] = value
    return table.with_columns(pl.Series(column, values, dtype=table.schema[column]))


def test_the_limits_are_those_of_the_replay() -> None:
    ours = (validate.MAX_ORDER, validate.PAGEBLOCK_ORDERS[0], validate.MIGRATE_TYPES, validate.NR_PCP_LISTS, validate.MAX_NR_ZONES)
    assert ours == (tables.MAX_ORDER, tables.PAGEBLOCK_ORDER, gfp.MIGRATE_TYPES, tables.NR_PCP_LISTS, gfp.MAX_NR_ZONES)
    assert (validate.MAX_CACHES, validate.MAX_OBJECTS) == (slab_tables.MAX_CACHES, slab_tables.MAX_OBJS_PER_PAGE)
    assert tuple(bits for bits, zone in enumerate(gfp.GFP_ZONES) if zone < 0) == validate.BAD_ZONE_BITS


def test_a_possible_recording_passes(small: Recording) -> None:
    check(small)
    check(replace(small, before=None, after=None))


@pytest.mark.parametrize(
    ("table", "column", "row", "value", "says"),
    [
        ("free", "order", 2, 11, "before.free row 2: order 11"),
        ("free", "migratetype", 0, -1, "migratetype -1"),
        ("free", "zone", 0, 5, "zone 5"),
        ("free", "pfn", 0, 4096, "pfn 4096"),
        ("free", "pfn", 0, 0, "not inside its zone"),
        ("free", "pfn", 2, 2049, "not a multiple"),
        ("free", "pfn", 1, 512, "free twice"),
        ("free", "pfn", 2, 1024, "free twice"),
        ("free", "position", 1, 2, "before.free row 1: position 2"),
        ("pcp_pages", "position", 0, 1, "position 1"),
        ("pcp_pages", "list", 0, 14, "list 14"),
        ("pcp_pages", "cpu", 2, 2, "cpu 2"),
        ("pcp_pages", "pfn", 3, 1537, "not a multiple"),
        ("pcp", "count", 2, 3, "its lists hold 2 pages"),
        ("pcp", "batch", 0, 0, "batch 0"),
        ("pcp", "cpu", 3, 0, "2 rows for zone 1, CPU 0"),
        ("zones", "index", 1, 0, "index 0"),
        ("zones", "spanned_pages", 1, 3073, "beyond the last page frame"),
        ("zones", "managed_pages", 0, 1024, "more than present_pages"),
        ("zones", "name", 0, None, "without a name"),
        ("zones", "wmark_low", 0, None, "no wmark_low"),
        ("memory_map", "size", 0, -1, "size -1"),
    ],
)
def test_an_impossible_snapshot_is_named(small: Recording, table: str, column: str, row: int, value: Any, says: str) -> None:
    assert small.before
    changes: dict[str, Any] = {table: put(getattr(small.before, table), column, row, value)}
    bad = replace(small.before, **changes)
    with pytest.raises(RecordingError, match=says):
        check(replace(small, before=bad))


@pytest.mark.parametrize(
    ("column", "row", "value", "says"),
    [
        ("cpu", 3, 2, "events row 3: cpu 2 is impossible: expected 0 to 1"),
        ("order", 1, 11, "order 11"),
        ("order", 3, -1, "must have one"),
        ("migratetype", 1, 5, "migratetype 5"),
        ("migratetype", 1, -1, "must have one"),
        ("pfn", 1, 4096, "beyond"),
        ("pfn", 4, 4096 - 256, "beyond"),
        ("pfn", 4, 2049, "not a multiple"),
        ("pfn", 3, -1, "must have one"),
        ("pfn", 3, -2, "pfn -2"),
        ("gfp", 1, 3, "select no zone"),
        ("gfp", 1, -1, "gfp -1"),
        ("arg", 6, 2, "in drain_zone"),
        ("arg", 4, 2, "in mm_page_alloc_zone_locked"),
        ("context", 0, 4, "context 4"),
        ("time", 2, 5, "earlier"),
        ("kind", 2, None, "no kind"),
    ],
)
def test_an_impossible_event_is_named(small: Recording, column: str, row: int, value: Any, says: str) -> None:
    with pytest.raises(RecordingError, match=says):
        check(replace(small, events=put(small.events, column, row, value)))


def test_without_a_snapshot_only_plain_ranges_count(small: Recording) -> None:
    text = replace(small, before=None, after=None)
    check(replace(text, events=put(text.events, "order", 3, 14)))
    with pytest.raises(RecordingError, match="order 64"):
        check(replace(text, events=put(text.events, "order", 3, 64)))


def test_wrong_tables_scalars_and_arrays(small: Recording) -> None:
    before = small.before
    assert before
    half: Any = 1.5
    for bad, says in (
        (replace(before, free=before.free.drop("pfn")), "before.free: no column pfn"),
        (replace(before, pcp=before.pcp.cast(pl.Int32)), "column zone is Int32; expected Int64"),
        (replace(before, free=before.free.with_columns(x=1)), "unknown column 'x'"),
        (replace(before, pages=before.pages[1:]), r"expected uint8 of shape \(4096,\)"),
        (replace(before, pageblocks=before.pageblocks.astype(np.int64)), "before.pageblocks: int64"),
        (replace(before, pageblocks=np.full(8, 5, dtype=np.uint8)), "before.pageblocks row 0"),
        (replace(before, scalars={**before.scalars, "max_pfn": 1 << 40}), "max_pfn is"),
        (replace(before, scalars={**before.scalars, "pageblock_order": 8}), "pageblock_order is 8"),
        (replace(before, scalars={**before.scalars, "pageblock_order": 10}), "pageblocks: uint8 of shape"),
        (replace(before, scalars={**before.scalars, "pageblock_split": -1}), "pageblock_split is -1"),
        (replace(before, scalars={k: v for k, v in before.scalars.items() if k != "min_free_kbytes"}), "no scalar min_free_kbytes"),
        (replace(before, scalars={**before.scalars, "x": half}), "scalar x is 1.5"),
        (replace(before, zones=before.zones.with_columns(name=pl.lit("A"))), "no profile has the zones A, A"),
        (replace(before, zones=before.zones.with_columns(start_pfn=pl.col("start_pfn") + (pl.col("spanned_pages") == 0))), "zones or max_pfn differ"),
        (replace(before, pcp=before.pcp.slice(1)), "0 rows for zone 0, CPU 0"),
    ):
        with pytest.raises(RecordingError, match=says):
            check(replace(small, before=bad))
    with pytest.raises(RecordingError, match="wrong columns"):
        check(replace(small, events=small.events.drop("pid")))
    with pytest.raises(RecordingError, match="0 CPUs"):
        check(replace(small, provenance=replace(small.provenance, cpus=0)))


def test_a_million_events_cost_no_more_steps_than_a_few(small: Recording) -> None:
    """No event is looked at one by one: the steps that Python takes do not depend on how many there are."""
    events = pl.concat([small.events] * 125_000).with_columns(time=pl.int_range(pl.len(), dtype=pl.Int64))
    check(small)
    assert _calls(replace(small, events=events)) <= 2 * _calls(small)


def _calls(recording: Recording) -> int:
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        check(recording)
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        ("rotate", {"pfn": 2048, "order": 10, "migratetype": 1, "arg": 1 << 40}, "in rotate"),
        ("rotate", {"pfn": 2048, "order": 10, "migratetype": -1, "arg": 1}, "must have one"),
        ("cpu_fold", {"arg": 1 << 40}, "in cpu_fold"),
        ("stat_thresholds", {"arg": 0}, "in stat_thresholds"),
        ("stat_thresholds", {"arg": -5}, "in stat_thresholds"),
        ("pageset", {"migratetype": 1, "bytes_req": 42, "bytes_alloc": 0}, "in pageset"),
        ("pageset", {"migratetype": 1, "bytes_req": 1 << 40, "bytes_alloc": 1}, "in pageset"),
        ("unboost", {}, "must have one"),
        ("reclaim_set", {}, "must have one"),
        ("wmarks", {"bytes_req": 1 << 20}, "in wmarks"),
        ("walk", {"gfp": 0xCD8, "order": 0}, "movable and reclaimable"),
        ("bulk", {"gfp": 0xCDB, "arg": 2}, "movable and reclaimable"),
        ("pcp_free", {"pfn": 0, "order": 0, "migratetype": 0}, "not inside one zone"),
        ("buddy_free", {"pfn": 0, "order": 10, "migratetype": 0}, "not inside one zone"),
        ("mm_lru_insertion", {"pfn": 0}, "not inside one zone"),
    ],
)
def test_events_that_would_leave_the_tables_are_refused(small: Recording, kind: str, values: dict[str, int], says: str) -> None:
    """The compiled replay has no bounds checks: whatever it uses as an index or a limit is checked before."""
    row = (
        {name: {"pfn": -1, "order": -1, "migratetype": -1, "name": None}.get(name, 0) for name in small.events.columns} | {"time": 1000, "kind": kind} | values
    )
    events = pl.concat([small.events, pl.DataFrame([row], schema=small.events.schema)])
    with pytest.raises(RecordingError, match=says):
        check(replace(small, events=events))


@pytest.mark.parametrize(
    ("table", "column", "row", "value", "says"),
    [
        ("caches", "id", 0, 0, "id 0"),
        ("caches", "name", 0, None, "without a name"),
        ("caches", "size", 0, 0, "size 0"),
        ("caches", "objects", 0, 5, "more than fit"),
        ("caches", "objects", 1, 32768, "objects 32768"),
        ("caches", "min_objects", 1, 9, "more than fit"),
        ("caches", "address", 0, -8192, "there already"),
        ("caches", "nr_partial", 0, 2, "not the length"),
        ("caches", "order", 0, None, "no order"),
        ("cache_cpus", "cache", 0, 2, "cache 2"),
        ("cache_cpus", "cpu", 0, 2, "cpu 2"),
        ("cache_cpus", "cpu", 0, 1, "there already"),
        ("cache_cpus", "slab", 2, 99, "no slab of that page frame"),
        ("cache_cpus", "slab", 2, 101, "not this cache's and CPU's own"),
        ("cache_cpus", "slab", 3, 100, "not this cache's and CPU's own"),
        ("cache_cpus", "freelist", 2, 4, "not that many objects"),
        ("cache_cpus", "freelist", 2, 0, "begins otherwise"),
        ("cache_cpus", "freelist", 0, 0, "expected -1 without a slab"),
        ("slabs", "pfn", 0, 4096, "pfn 4096"),
        ("slabs", "pfn", 3, 103, "not a multiple"),
        ("slabs", "pfn", 4, 105, "inside another slab"),
        ("slabs", "pfn", 4, 1029, "are free"),
        ("slabs", "pfn", 4, 3, "are free"),
        ("slabs", "cache", 3, -1, "only a discarded slab"),
        ("slabs", "cache", 3, 2, "cache 2"),
        ("slabs", "order", 3, 11, "order 11"),
        ("slabs", "objects", 1, 5, "more than fit"),
        ("slabs", "inuse", 0, 5, "inuse 5"),
        ("slabs", "where", 0, 5, "where 5"),
        ("slabs", "cpu", 2, 0, "only CPU slabs"),
        ("slabs", "cpu", 0, 1, "not this cache's and CPU's own"),
        ("slabs", "position", 2, -1, "only slabs on a list"),
        ("slabs", "position", 2, 1, "position 1"),
        ("slabs", "frozen", 0, 2, "frozen 2"),
        ("free_objects", "slab", 0, 99, "no slab"),
        ("free_objects", "object", 0, 4, "not that many objects"),
        ("free_objects", "object", 1, 3, "there already"),
        ("free_objects", "list", 2, 1, "only a CPU slab"),
        ("free_objects", "list", 1, 0, "position 1"),
        ("free_objects", "position", 1, 2, "position 2"),
        ("random_seq", "cache", 0, 2, "cache 2"),
        ("random_seq", "object", 0, 4, "object 4"),
        ("random_seq", "object", 0, 1, "there already"),
        ("random_seq", "position", 0, 4, "position"),
    ],
)
def test_an_impossible_slab_is_named(slabs: Recording, table: str, column: str, row: int, value: Any, says: str) -> None:
    check(slabs)
    assert slabs.after
    changes: dict[str, Any] = {table: put(getattr(slabs.after, table), column, row, value)}
    bad = replace(slabs.after, **changes)
    with pytest.raises(RecordingError, match=says) as caught:
        check(replace(slabs, after=bad))
    assert "\n" not in str(caught.value)


def test_slab_tables_of_a_wrong_size(slabs: Recording) -> None:
    before = slabs.before
    assert before
    assert before.free_objects is not None
    assert before.random_seq is not None
    assert before.slabs is not None
    for bad, says in (
        (replace(before, caches=None), "no table caches but other tables"),
        (replace(before, free_objects=before.free_objects[:-1]), "2 objects of the slab at 102; its counters say 3"),
        (replace(before, random_seq=before.random_seq[:-1]), "3 entries for cache 1; expected 4"),
        (replace(before, slabs=before.slabs.drop("frozen")), "no column frozen"),
    ):
        with pytest.raises(RecordingError, match=says):
            check(replace(slabs, before=bad))


def test_no_slabs_at_all_are_possible(slabs: Recording) -> None:
    assert slabs.before
    names = ("caches", "cache_cpus", "slabs", "free_objects", "random_seq")
    nothing: dict[str, Any] = {name: getattr(slabs.before, name).clear() for name in names}
    check(replace(slabs, before=replace(slabs.before, **nothing)))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "slab_dead_cpu", "arg": 2}, "in slab_dead_cpu"),
        ({"kind": "slab_random", "arg": 32767}, "in slab_random"),
        ({"kind": "slab_put_partial", "arg": 2}, "in slab_put_partial"),
        ({"kind": "slab_cmpxchg"}, "must have one"),
        ({"kind": "slab_new", "pfn": 0}, "not inside one zone"),
        ({"kind": "slab_create", "pfn": 5, "bytes_alloc": -1}, "in slab_create"),
        ({"kind": "slab_create", "pfn": 0, "node": 8}, None),
        ({"kind": "slab_new"}, None),
    ],
)
def test_slab_events(small: Recording, values: dict[str, Any], says: str | None) -> None:
    row = {name: {"pfn": -1, "order": -1, "migratetype": -1, "name": None}.get(name, 0) for name in small.events.columns} | {"time": 1000} | values
    recording = replace(small, events=pl.concat([small.events, pl.DataFrame([row], schema=small.events.schema)]))
    if says is None:
        check(recording)
    else:
        with pytest.raises(RecordingError, match=says):
            check(recording)
