"""Checks that a recording is possible, so that the compiled replay, which checks nothing, never leaves its tables or loops for ever.

With snapshots the limits are those of the replay's tables (`mmtwin.mm.tables`: five migrate types, orders up to 10, per-CPU lists 0 to
13). Imported text is never replayed and may come from a kernel with other limits, so only its types and plain ranges are checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin import profiles
from mmtwin.errors import ProfileError, RecordingError
from mmtwin.recording.convert import COLUMNS
from mmtwin.recording.model import EVENTS_SCHEMA, KINDS, Recording, Snapshot
from mmtwin.recording.slab_classic import check_classic
from mmtwin.recording.vmaps import MAX_POOLS, VMAP_KINDS, check_vmaps, unsigned

# The same as in mmtwin.mm.tables, mmtwin.mm.slab_tables and mmtwin.gfp (a test compares them), written here so that reading a file does not import numba.
MAX_ORDER, MIGRATE_TYPES, NR_PCP_LISTS, MAX_NR_ZONES = 10, 5, 14, 5
PAGEBLOCK_ORDERS = (9, 10)
"""Of huge pages of 2 and 4 MiB."""
BAD_ZONE_BITS = (3, 5, 6, 7, 11, 13, 14, 15)
"""Values of the four low GFP bits that select no zone (GFP_ZONE_BAD)."""
MAX_CPUS = 8192  # the largest CONFIG_NR_CPUS of x86
MAX_FRAMES = 1 << 30  # the replay numbers page frames and list heads in 31 bits

ZONE_COLUMNS = (
    "index", "start_pfn", "spanned_pages", "present_pages", "managed_pages", "reserved_pages", "wmark_min", "wmark_low", "wmark_high", "wmark_promo",
    "watermark_boost", "nr_reserved_highatomic", "flags", "percpu_drift_mark", "nr_free_pages",
)  # fmt: skip
TABLES: dict[str, dict[str, pl.DataType | type[pl.DataType]]] = {
    "zones": {"name": pl.String, **dict.fromkeys(ZONE_COLUMNS, pl.Int64)},
    "free": {"zone": pl.Int8, "order": pl.Int8, "migratetype": pl.Int8, "position": pl.Int32, "pfn": pl.Int64},
    "pcp": dict.fromkeys(("zone", "cpu", "count", "high", "batch", "free_factor", "stat_threshold", "nr_free_pages_diff"), pl.Int64),
    "pcp_pages": {"zone": pl.Int8, "cpu": pl.Int16, "list": pl.Int8, "position": pl.Int32, "pfn": pl.Int64, "migratetype": pl.Int8},
    "memory_map": {"start": pl.Int64, "size": pl.Int64, "type": pl.Int32},
}
"""Columns of a snapshot's tables; `zones` also has lowmem_reserve_<j> for each zone j."""
CACHE_COLUMNS = (
    "flags", "size", "object_size", "inuse", "offset", "align", "red_left_pad", "order", "objects", "min_order", "min_objects", "allocflags", "min_partial",
    "cpu_partial", "cpu_partial_slabs", "refcount", "usersize", "useroffset", "ctor", "nr_partial", "nr_slabs", "total_objects",
)  # fmt: skip
SLAB_TABLES: dict[str, dict[str, pl.DataType | type[pl.DataType]]] = {
    "caches": {"id": pl.Int32, "address": pl.Int64, "cpu_slab": pl.Int64, "name": pl.String, **dict.fromkeys(CACHE_COLUMNS, pl.Int64)},
    "cache_cpus": {"cache": pl.Int32, "cpu": pl.Int16, "slab": pl.Int64, "freelist": pl.Int32},
    "slabs": {
        "pfn": pl.Int64, "cache": pl.Int32, "order": pl.Int8, "objects": pl.Int32, "inuse": pl.Int32, "frozen": pl.Int8, "where": pl.Int8, "cpu": pl.Int16,
        "position": pl.Int32, "slabs": pl.Int64,
    },
    "free_objects": {"slab": pl.Int64, "list": pl.Int8, "position": pl.Int32, "object": pl.Int32},
    "random_seq": {"cache": pl.Int32, "position": pl.Int32, "object": pl.Int32},
}  # fmt: skip
"""Columns of a snapshot's tables of SLUB, which older recordings do not have."""
MAX_CACHES, MAX_OBJECTS = 1024, 32767
SCALARS = (
    "min_free_kbytes", "watermark_scale_factor", "watermark_boost_factor", "percpu_pagelist_high_fraction", "page_group_by_mobility_disabled",
    "totalreserve_pages", "pageblock_order", "max_pfn", "possible_cpus",
)  # fmt: skip
"""Scalars every snapshot must have."""
PAGELESS_SCALARS = ("max_pfn", "possible_cpus")
"""The same, without the page allocator's state."""

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


def check(recording: Recording) -> None:
    """Checks a recording: types, ranges, and that tables fit together. About 0.1 s for a million events.

    :raises RecordingError: naming the first table, row, column and value that cannot be.
    """
    cpus = recording.provenance.cpus
    if not 1 <= cpus <= MAX_CPUS:
        raise RecordingError(f"provenance: {cpus} CPUs; expected 1 to {MAX_CPUS}")
    scale = recording.provenance.kernel_config.get("PCP_BATCH_SCALE_MAX", "5")
    if scale not in ("0", "1", "2", "3", "4", "5", "6"):
        raise RecordingError(f"provenance: PCP_BATCH_SCALE_MAX {scale[:20]!r}; expected 0 to 6")
    for label, snapshot in (("before", recording.before), ("after", recording.after)):
        if snapshot is not None:
            check_snapshot(snapshot, cpus, label)
    if recording.before is not None and recording.after is not None:
        _check_same_machine(recording.before, recording.after)
    some = recording.before or recording.after
    check_events(recording.events, cpus, some)


def check_snapshot(snapshot: Snapshot, cpus: int, label: str) -> None:
    """Checks one snapshot of a machine with `cpus` CPUs; `label` ("before" or "after") goes into the message.

    :raises RecordingError: naming the first table, row, column and value that cannot be.
    """
    scalars = snapshot.scalars
    for name in SCALARS if snapshot.has_pages else PAGELESS_SCALARS:
        if name not in scalars:
            raise RecordingError(f"{label}: no scalar {name}; the file was not written by mmtwin or is incomplete")
    for name, value in scalars.items():
        if isinstance(value, bool) or not isinstance(value, int) or not -(1 << 63) <= value < 1 << 64:
            raise RecordingError(f"{label}: scalar {name} is {value!r}; expected an integer of 64 bits")
    frames = scalars["max_pfn"]
    if not 0 < frames <= MAX_FRAMES:
        raise RecordingError(f"{label}: max_pfn is {frames}; expected 1 to {MAX_FRAMES}")
    if snapshot.vmaps is not None:
        check_vmaps(snapshot.vmaps, scalars, cpus, label)
    if not snapshot.has_pages:
        _check_pageless(snapshot, label)
        return
    if scalars["pageblock_order"] not in PAGEBLOCK_ORDERS:
        raise RecordingError(f"{label}: pageblock_order is {scalars['pageblock_order']}; only {' and '.join(map(str, PAGEBLOCK_ORDERS))} can be replayed")
    split = scalars.get("pageblock_split", 0)
    if not 0 <= split < frames:
        raise RecordingError(f"{label}: pageblock_split is {split}; expected 0 or a page frame below {frames}")
    blocks = -(-frames >> scalars["pageblock_order"]) + bool(split)
    for name, array, length in (("pages", snapshot.pages, frames), ("pageblocks", snapshot.pageblocks, blocks)):
        if array.dtype != np.uint8 or array.shape != (length,):
            raise RecordingError(f"{label}.{name}: {array.dtype} of shape {array.shape}; expected uint8 of shape ({length},)")
    _where(f"{label}.pageblocks", "migratetype", snapshot.pageblocks, snapshot.pageblocks >= MIGRATE_TYPES, f"expected 0 to {MIGRATE_TYPES - 1}")
    for name, columns in TABLES.items():
        extra = {f"lowmem_reserve_{j}": pl.Int64 for j in range(len(snapshot.zones))} if name == "zones" else {}
        check_columns(getattr(snapshot, name), {**columns, **extra}, f"{label}.{name}")
    spans = _check_zones(snapshot.zones, frames, label)
    _check_pcp(snapshot, cpus, label)
    _check_blocks(snapshot, spans, frames, cpus, label)
    check_slabs(snapshot, cpus, label)
    if snapshot.classic is not None:
        check_classic(snapshot.classic, cpus, frames, label)
    memory = snapshot.memory_map
    for column in ("start", "size"):
        _range(f"{label}.memory_map", column, _numbers(memory, column), 0, (1 << 63) - 1)


def _check_pageless(snapshot: Snapshot, label: str) -> None:
    """A snapshot of virtual areas alone: everything else is empty."""
    if snapshot.vmaps is None:
        raise RecordingError(f"{label}.zones: no rows; expected {MAX_NR_ZONES}")
    for name, columns in TABLES.items():
        check_columns(getattr(snapshot, name), columns, f"{label}.{name}")
    filled = [name for name in ("free", "pcp", "pcp_pages", "pages", "pageblocks") if len(getattr(snapshot, name))]
    if filled or any(getattr(snapshot, name) is not None for name in (*SLAB_TABLES, "classic")):
        raise RecordingError(f"{label}: {filled[0] if filled else 'slabs'}, but no zones")


def check_columns(table: pl.DataFrame, schema: dict[str, Any], label: str) -> None:
    """Checks that a table has exactly these columns and types, and no absent values except in text columns.

    :raises RecordingError: naming the first column that is wrong.
    """
    for name, dtype in schema.items():
        if name not in table.columns:
            raise RecordingError(f"{label}: no column {name}")
        if table.schema[name] != dtype:
            raise RecordingError(f"{label}: column {name} is {table.schema[name]}; expected {dtype}")
        if dtype != pl.String and table[name].null_count():
            raise RecordingError(f"{label} row {table[name].is_null().arg_max()}: no {name}")
    unknown = [name for name in table.columns if name not in schema]
    if unknown:
        raise RecordingError(f"{label}: unknown column {unknown[0]!r}; a newer mmtwin may have written the file")


def check_events(events: pl.DataFrame, cpus: int, snapshot: Snapshot | None, label: str = "events") -> None:
    """Checks events (all, or one chunk) against the machine that a snapshot shows; without one only types and plain ranges.

    :raises RecordingError: naming the first row, column and value that cannot be.
    """
    if list(events.columns) != list(EVENTS_SCHEMA):
        wrong = next((c for c in EVENTS_SCHEMA if c not in events.columns), None) or next((c for c in events.columns if c not in EVENTS_SCHEMA), "order")
        raise RecordingError(f"{label}: wrong columns (first difference: {wrong}); expected {', '.join(EVENTS_SCHEMA)}")
    check_columns(events, EVENTS_SCHEMA, label)
    column = {name: events[name].to_numpy() for name in ("cpu", "context", "pfn", "order", "migratetype", "gfp")}
    _range(label, "cpu", column["cpu"], 0, cpus - 1)
    _range(label, "context", column["context"], 0, 3)
    _range(label, "gfp", column["gfp"], 0, (1 << 32) - 1)
    for name in ("pfn", "order", "migratetype"):
        _range(label, name, column[name], -1, {"pfn": (1 << 52) - 1, "order": 63, "migratetype": 15}[name])
    if snapshot is None:
        return
    kinds = events["kind"].to_physical().to_numpy()
    frames = snapshot.scalars["max_pfn"]
    time = events["time"].to_numpy()
    if len(time) > 1:
        _where(label, "time", time, np.concatenate(([False], time[1:] < time[:-1])), "earlier than the event before it")
    _range(label, "order", column["order"], -1, MAX_ORDER)
    _range(label, "migratetype", column["migratetype"], -1, MIGRATE_TYPES - 1)
    order = np.maximum(column["order"], 0).astype(np.int64)
    pfn = column["pfn"]
    _where(label, "pfn", pfn, pfn + ((pfn >= 0).astype(np.int64) << order) > frames, f"with its order beyond the last page frame {frames - 1}")
    _where(label, "pfn", pfn, (pfn >= 0) & (pfn & ((1 << order) - 1) != 0), "not a multiple of the block's size")
    for name in ("pfn", "order", "migratetype"):
        needed = np.array([_needs(kind, name) for kind in KINDS])[kinds]
        _where(label, name, column[name], needed & (column[name] < 0), "this kind of event must have one")
    created = kinds == KINDS.index("slab_create")  # its pfn is a count of slabs
    _in_one_zone(label, np.where(created, -1, pfn), order, snapshot)
    requests = np.isin(np.arange(len(KINDS)), [KINDS.index(kind) for kind in ("mm_page_alloc", "bulk", "walk")])[kinds]
    _where(label, "gfp", column["gfp"], requests & (column["gfp"] & 0x18 == 0x18), "movable and reclaimable at once")
    _where(label, "gfp", column["gfp"], requests & np.isin(column["gfp"] & 15, BAD_ZONE_BITS), "its low four bits select no zone")
    zones = len(snapshot.zones)
    _check_vmap_events(label, events, kinds, snapshot)
    for kind, name, high in (
        ("drain_zone", "arg", cpus - 1), ("drain_zone", "migratetype", zones - 1), ("balance", "arg", zones - 1), ("thresholds", "arg", 1),
        ("mm_page_alloc_extfrag", "arg", MAX_ORDER), ("mm_page_alloc_extfrag", "bytes_req", MIGRATE_TYPES - 1), ("mm_page_alloc_extfrag", "bytes_alloc", 1),
        ("mm_page_alloc_zone_locked", "arg", 1), ("wmarks", "arg", 1 << 31), ("wmarks", "bytes_req", 3000), ("wmarks", "bytes_alloc", 1 << 31),
        ("bulk", "arg", frames), ("bulk_ret", "arg", frames), ("rotate", "arg", zones - 1), ("cpu_fold", "arg", cpus - 1), ("stat_thresholds", "arg", cpus),
        ("pageset", "bytes_req", 1 << 30), ("pageset", "bytes_alloc", 1 << 20),
        ("wakeup_kswapd", "arg", zones - 1), ("reclaim_retry_zone", "migratetype", zones - 1),
        ("slab_dead_cpu", "arg", cpus - 1), ("slab_bulk_alloc", "arg", 1 << 40), ("slab_bulk_got", "arg", 1 << 40), ("slab_bulk_free", "arg", 1 << 40),
        ("slab_bulk_object", "arg", 1 << 20), ("slab_put_partial", "arg", 1), ("slab_create", "bytes_req", 1 << 31), ("slab_create", "bytes_alloc", 1 << 31),
        ("slab_create", "arg", (1 << 32) - 1), ("slab_create", "node", 1 << 30), ("slab_create", "pfn", 1 << 20), ("slab_random", "arg", MAX_OBJECTS - 1),
        ("slab_random", "ptr", (1 << 32) - 1),
    ):  # fmt: skip
        values = events[name].to_numpy()
        low = 1 if (kind, name) in (("stat_thresholds", "arg"), ("pageset", "bytes_alloc")) else 0
        _where(label, name, values, (kinds == KINDS.index(kind)) & ((values < low) | (values > high)), f"expected {low} to {high} in {kind}")


def _check_vmap_events(label: str, events: pl.DataFrame, kinds: Int, snapshot: Snapshot) -> None:
    """Events of virtual areas name nodes and CPUs that exist, and sizes that fit into the space."""
    rows = np.isin(kinds, [KINDS.index(kind) for kind in VMAP_KINDS])
    if not rows.any():
        return
    if snapshot.vmaps is None:
        _where(label, "kind", events["kind"].to_numpy(), rows, "the recording has no tables of virtual areas")
    node = events["node"].to_numpy()
    blocks = np.isin(kinds, [KINDS.index(kind) for kind in VMAP_KINDS if kind.startswith("vmap_block_")])
    limit = np.where(blocks, snapshot.scalars["possible_cpus"], snapshot.scalars["nr_vmap_nodes"])
    _where(label, "node", node, rows & ((node < np.where(blocks, -1, 0)) | (node >= limit)), "there is no such vmap node or CPU")
    start, end = (unsigned(events[name].to_numpy()) for name in ("ptr", "call_site"))
    ranges = np.isin(kinds, [KINDS.index(kind) for kind in ("vmap_request", "vmap_busy", "vmap_unlink")])
    _where(
        label, "call_site", events["call_site"].to_numpy(), ranges & (start >= end), "the end of a virtual area, or of a range for one, is not behind its begin"
    )
    asked = np.isin(kinds, [KINDS.index(kind) for kind in ("vmap_request", "vmap_percpu")])
    for name in ("bytes_req", "bytes_alloc"):
        values = events[name].to_numpy()
        _where(label, name, values, asked & ((values <= 0) | (values >= 1 << 57)), "no size or alignment of a virtual area")
    _where(label, "bytes_alloc", values, asked & (values & (values - 1) != 0), "no power of two")
    values = events["arg"].to_numpy()
    _where(label, "arg", values, (kinds == KINDS.index("vmap_pool_out")) & ((values < 0) | (values >= MAX_POOLS)), "no number of a pool")
    counts = np.isin(kinds, [KINDS.index(kind) for kind in ("vmap_ram", "vmap_unram")])
    _where(label, "arg", values, counts & ((values < 0) | (values >= 1 << 32)), "no number of pages")


def _in_one_zone(label: str, pfn: Int, order: Int, snapshot: Snapshot) -> None:
    """Every block an event speaks of lies in one zone."""
    start = _numbers(snapshot.zones, "start_pfn")
    end = start + _numbers(snapshot.zones, "spanned_pages")
    bad = pfn >= 0
    for z in range(len(start)):
        bad &= (pfn < start[z]) | (pfn + (np.int64(1) << order) > end[z])
    _where(label, "pfn", pfn, bad, "not inside one zone, with its order")


def _needs(kind: str, column: str) -> bool:
    """Whether events of a kind always have this column (a failed mm_page_alloc or slab_new has no pfn)."""
    if kind == "rotate":  # made of pointers
        return True
    targets = COLUMNS.get(kind, {}).values()
    if column == "pfn":
        return kind not in ("mm_page_alloc", "slab_new") and ("pfn" in targets or "page" in targets)
    return column in targets or (column == "migratetype" and ("zone" in targets or "lock" in targets))


def _numbers(table: pl.DataFrame, column: str) -> Int:
    return table[column].cast(pl.Int64).to_numpy()


def _where(label: str, column: str, values: npt.NDArray[Any], bad: Bool, why: str) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise RecordingError(f"{label} row {row}: {column} {values[row]} is impossible: {why}")


def _range(label: str, column: str, values: npt.NDArray[Any], low: int, high: int) -> None:
    # min and max first: they make no temporary arrays, and almost always settle it
    if len(values) and (int(values.min()) < low or int(values.max()) > high):
        _where(label, column, values, (values < low) | (values > high), f"expected {low} to {high}")


def _check_zones(zones: pl.DataFrame, frames: int, label: str) -> tuple[Int, Int]:
    """:returns: start and end page frame of each zone."""
    label = f"{label}.zones"
    if not 1 <= len(zones) <= MAX_NR_ZONES:
        raise RecordingError(f"{label}: {len(zones)} rows; expected 1 to {MAX_NR_ZONES}")
    column = {name: _numbers(zones, name) for name in zones.columns if name != "name"}
    _where(label, "index", column["index"], column["index"] != np.arange(len(zones)), "expected 0, 1, 2 and so on")
    if zones["name"].null_count():
        raise RecordingError(f"{label}: a zone without a name")
    try:
        profiles.for_zones(zones["name"].to_list())
    except ProfileError as error:
        raise RecordingError(f"{label}: {error}") from None
    for name, values in column.items():
        if name == "nr_free_pages":  # the global counter alone, without the CPUs' differences, may be below zero
            _range(label, name, values, -frames - (1 << 20), frames)
        elif name != "flags":
            _range(label, name, values, 0, (1 << 40) - 1)
    start, spanned = column["start_pfn"], column["spanned_pages"]
    _where(label, "spanned_pages", spanned, start + spanned > frames, f"beyond the last page frame {frames - 1}")
    _where(label, "present_pages", column["present_pages"], column["present_pages"] > spanned, "more than spanned_pages")
    if not column["present_pages"].any():
        raise RecordingError(f"{label}: no zone has memory")
    populated = np.flatnonzero(spanned)
    by_start = populated[np.argsort(start[populated])]
    overlap = np.zeros(len(start), dtype=bool)
    overlap[by_start[1:]] = start[by_start[1:]] < (start + spanned)[by_start[:-1]]
    _where(label, "start_pfn", start, overlap, "inside another zone")
    _where(label, "managed_pages", column["managed_pages"], column["managed_pages"] > column["present_pages"], "more than present_pages")
    return start, start + spanned


def _check_pcp(snapshot: Snapshot, cpus: int, label: str) -> None:
    label, pcp = f"{label}.pcp", snapshot.pcp
    zone, cpu = _numbers(pcp, "zone"), _numbers(pcp, "cpu")
    _range(label, "zone", zone, 0, len(snapshot.zones) - 1)
    _range(label, "cpu", cpu, 0, cpus - 1)
    for name, low, high in (
        ("count", 0, 1 << 30),
        ("high", 0, 1 << 30),
        ("batch", 1, 1 << 20),
        ("free_factor", 0, 30),
        ("stat_threshold", 0, 127),
        ("nr_free_pages_diff", -128, 127),
    ):
        _range(label, name, _numbers(pcp, name), low, high)
    have = np.bincount(zone * cpus + cpu, minlength=len(snapshot.zones) * cpus)
    need = np.repeat(_numbers(snapshot.zones, "present_pages") > 0, cpus)
    for at in np.flatnonzero((have > 1) | (need & (have == 0)))[:1].tolist():
        raise RecordingError(f"{label}: {have[at]} rows for zone {at // cpus}, CPU {at % cpus}; expected one")


def _check_blocks(snapshot: Snapshot, spans: tuple[Int, Int], frames: int, cpus: int, label: str) -> None:
    """Both kinds of lists: inside their zones, positions in order, no page frame twice."""
    zones = len(snapshot.zones)
    starts, orders = [], []
    for name, keys in (("free", ("zone", "order", "migratetype")), ("pcp_pages", ("zone", "cpu", "list"))):
        where, table = f"{label}.{name}", getattr(snapshot, name)
        column = {c: _numbers(table, c) for c in table.columns}
        limits = {"zone": zones - 1, "migratetype": MIGRATE_TYPES - 1, "pfn": frames - 1} | (
            {"order": MAX_ORDER} if name == "free" else {"cpu": cpus - 1, "list": NR_PCP_LISTS - 1}
        )
        for c, high in limits.items():
            _range(where, c, column[c], 0, high)
        # lists 0 to 11 are orders 0 to 3 of three types, the rest is for transparent huge pages
        order = column["order"] if name == "free" else np.where(column["list"] < 12, column["list"] // 3, snapshot.scalars["pageblock_order"])
        pfn, size = column["pfn"], 1 << order
        outside = (pfn < spans[0][column["zone"]]) | (pfn + size > spans[1][column["zone"]])
        _where(where, "pfn", pfn, outside, "not inside its zone")
        _where(where, "pfn", pfn, pfn & (size - 1) != 0, "not a multiple of the block's size")
        expected = table.select(pl.int_range(pl.len()).over(*keys)).to_series().to_numpy()
        _where(where, "position", column["position"], column["position"] != expected, "positions of a list must be 0, 1, 2 and so on")
        starts.append(pfn)
        orders.append(order)
        if name == "pcp_pages":
            _check_counts(snapshot, column["zone"] * cpus + column["cpu"], size, cpus, label)
    pfn, order = np.concatenate(starts), np.concatenate(orders)
    by_pfn = np.argsort(pfn, kind="stable")
    ends = pfn[by_pfn] + (1 << order[by_pfn])
    twice = np.flatnonzero(pfn[by_pfn][1:] < ends[:-1])
    if len(twice):
        raise RecordingError(f"{label}: page frame {pfn[by_pfn][1:][twice[0]]} is free twice")


def _check_counts(snapshot: Snapshot, owner: Int, size: Int, cpus: int, label: str) -> None:
    """A count above what the lists hold would make a drain search empty lists for ever."""
    held = np.bincount(owner, weights=size, minlength=len(snapshot.zones) * cpus).astype(np.int64)
    mine = _numbers(snapshot.pcp, "zone") * cpus + _numbers(snapshot.pcp, "cpu")
    count = _numbers(snapshot.pcp, "count")
    for row in np.flatnonzero(count != held[mine])[:1].tolist():
        raise RecordingError(f"{label}.pcp row {row}: count {count[row]} is impossible: its lists hold {held[mine][row]} pages")
    held[mine] = 0
    for at in np.flatnonzero(held)[:1].tolist():
        raise RecordingError(f"{label}.pcp_pages: pages on lists of zone {at // cpus}, CPU {at % cpus}, which {label}.pcp does not have")


def check_slabs(snapshot: Snapshot, cpus: int, label: str) -> None:
    """SLUB's tables: all or none; what the replay uses as an index is one, lists have no holes, and nothing is in two places.

    :raises RecordingError: naming the first table, row, column and value that cannot be.
    """
    frames = snapshot.scalars["max_pfn"]
    tables = {name: getattr(snapshot, name) for name in SLAB_TABLES}
    absent = [name for name, table in tables.items() if table is None]
    if absent:
        if len(absent) < len(tables):
            raise RecordingError(f"{label}: has no table {absent[0]} but other tables of SLUB; expected all or none")
        return
    for name, table in tables.items():
        check_columns(table, SLAB_TABLES[name], f"{label}.{name}")
    column = {name: {c: _numbers(table, c) for c in SLAB_TABLES[name] if c != "name"} for name, table in tables.items()}
    caches, per_cpu, slabs, free, random = (column[name] for name in SLAB_TABLES)
    _check_caches(tables["caches"], caches, f"{label}.caches")
    count = len(tables["caches"])
    objects_of = np.zeros(max(count, 1), dtype=np.int64)
    objects_of[caches["id"]] = caches["objects"]
    where = f"{label}.slabs"
    for name, low, high in (
        ("pfn", 0, frames - 1), ("cache", -1, count - 1), ("order", 0, MAX_ORDER), ("objects", 1, MAX_OBJECTS), ("frozen", 0, 1), ("where", 0, 4),
        ("cpu", -1, cpus - 1), ("position", -1, len(slabs["pfn"])), ("slabs", 0, 1 << 31),
    ):  # fmt: skip
        _range(where, name, slabs[name], low, high)
    pfn, place, cache = slabs["pfn"], slabs["where"], slabs["cache"]
    size = np.int64(1) << slabs["order"]
    _where(where, "pfn", pfn, (pfn + size > frames) | (pfn & (size - 1) != 0), "beyond the last page frame, or not a multiple of the slab's size")
    _where(where, "inuse", slabs["inuse"], (slabs["inuse"] < 0) | (slabs["inuse"] > slabs["objects"]), "expected 0 to its objects")
    _where(where, "cache", cache, (cache < 0) & (place != 4), "only a discarded slab has no cache")
    known = np.maximum(cache, 0)
    size_of = np.ones(max(count, 1), dtype=np.int64)
    size_of[caches["id"]] = caches["size"]
    _where(where, "objects", slabs["objects"], (cache >= 0) & (slabs["objects"] * size_of[known] > 4096 * size), "more than fit into the slab")
    _where(where, "cpu", slabs["cpu"], (slabs["cpu"] >= 0) != np.isin(place, (1, 2)), "only CPU slabs and slabs on a CPU partial list have one")
    _where(where, "position", slabs["position"], (slabs["position"] >= 0) != np.isin(place, (1, 2, 3)), "only slabs on a list have one")
    by_pfn = np.argsort(pfn, kind="stable")
    _where(where, "pfn", pfn[by_pfn], np.concatenate(([False], pfn[by_pfn][1:] < (pfn + size)[by_pfn][:-1])), "inside another slab")
    _where(where, "pfn", pfn, _touches_free_pages(snapshot, pfn, size, frames), "page frames of it are free")
    for number in (2, 3):
        _dense(where, np.stack((cache, slabs["cpu"], slabs["position"]))[:, place == number])
    listed = np.bincount(cache[place == 3], minlength=count)
    _where(f"{label}.caches", "nr_partial", caches["nr_partial"], caches["nr_partial"] != listed[caches["id"]], "not the length of the node's partial list")
    _check_cache_cpus(per_cpu, slabs, by_pfn, (count, cpus), f"{label}.cache_cpus")
    _check_free_objects(free, slabs, per_cpu, by_pfn, f"{label}.free_objects")
    where = f"{label}.random_seq"
    _range(where, "cache", random["cache"], 0, count - 1)
    _where(
        where,
        "object",
        random["object"],
        (random["object"] < 0) | (random["object"] >= objects_of[random["cache"]]),
        "expected a number below the cache's objects",
    )
    lengths = np.bincount(random["cache"], minlength=count)
    for number in np.flatnonzero((lengths != 0) & (lengths != objects_of[:count]))[:1].tolist():
        raise RecordingError(f"{where}: {lengths[number]} entries for cache {number}; expected {objects_of[number]}")
    _dense(where, np.stack((random["cache"], random["cache"] * 0, random["position"])))
    _unique(where, "object", random["object"], random["cache"] * (MAX_OBJECTS + 1) + random["object"])


def _check_caches(table: pl.DataFrame, caches: dict[str, Int], label: str) -> None:
    count = len(table)
    if count > MAX_CACHES:
        raise RecordingError(f"{label}: {count} caches; expected {MAX_CACHES} at most")
    _where(label, "id", caches["id"], caches["id"] != np.arange(count - 1, -1, -1), "expected the newest first, numbered from the oldest")
    if table["name"].null_count():
        raise RecordingError(f"{label}: a cache without a name")
    for name, low, high in (
        ("size", 8, 1 << 23), ("object_size", 0, 1 << 23), ("inuse", 0, 1 << 23), ("offset", 0, 1 << 23), ("align", 0, 1 << 23), ("red_left_pad", 0, 1 << 20),
        ("order", 0, MAX_ORDER), ("objects", 1, MAX_OBJECTS), ("min_order", 0, MAX_ORDER), ("min_objects", 1, MAX_OBJECTS), ("min_partial", 0, 1 << 30),
        ("cpu_partial", 0, 1 << 30), ("cpu_partial_slabs", 0, 1 << 30), ("ctor", 0, 1), ("nr_partial", 0, 1 << 30), ("nr_slabs", 0, 1 << 30),
        ("flags", 0, (1 << 32) - 1), ("allocflags", 0, (1 << 32) - 1), ("total_objects", 0, 1 << 45), ("refcount", -(1 << 31), (1 << 31) - 1),
        ("usersize", 0, 1 << 23), ("useroffset", 0, 1 << 23),
    ):  # fmt: skip
        _range(label, name, caches[name], low, high)
    for prefix in ("", "min_"):
        objects = caches[f"{prefix}objects"]
        _where(label, f"{prefix}objects", objects, objects * caches["size"] > np.int64(4096) << caches[f"{prefix}order"], "more than fit into the slab")
    for name in ("address", "cpu_slab"):
        _unique(label, name, caches[name], caches[name])


def _check_cache_cpus(per_cpu: dict[str, Int], slabs: dict[str, Int], by_pfn: Int, limits: tuple[int, int], label: str) -> None:
    """One row for each cache and CPU, and each CPU slab in the one row of its cache and CPU."""
    count, cpus = limits
    cache, cpu, slab = per_cpu["cache"], per_cpu["cpu"], per_cpu["slab"]
    _range(label, "cache", cache, 0, count - 1)
    _range(label, "cpu", cpu, 0, cpus - 1)
    _unique(label, "cpu", cpu, cache * cpus + cpu)
    rows = _rows(slabs["pfn"], by_pfn, slab)
    has = slab >= 0
    _where(label, "slab", slab, (slab < -1) | (has & (rows < 0)), "no slab of that page frame")
    at = np.maximum(rows, 0)
    if has.any():
        wrong = has & ((slabs["where"][at] != 1) | (slabs["cache"][at] != cache) | (slabs["cpu"][at] != cpu))
        _where(label, "slab", slab, wrong, "that slab is not this cache's and CPU's own")
        _where(label, "freelist", per_cpu["freelist"], has & (per_cpu["freelist"] >= slabs["objects"][at]), "the slab has not that many objects")
    _where(label, "freelist", per_cpu["freelist"], (per_cpu["freelist"] < -1) | (~has & (per_cpu["freelist"] >= 0)), "expected -1 without a slab")
    if int(has.sum()) != int((slabs["where"] == 1).sum()):
        raise RecordingError(f"{label}: {int(has.sum())} CPU slabs; in the table of slabs there are {int((slabs['where'] == 1).sum())}")


def _check_free_objects(free: dict[str, Int], slabs: dict[str, Int], per_cpu: dict[str, Int], by_pfn: Int, label: str) -> None:
    """Objects of their slabs, none twice, as many as the slab's counters say, and the CPU's list beginning where the CPU says."""
    _range(label, "list", free["list"], 0, 1)
    rows = _rows(slabs["pfn"], by_pfn, free["slab"])
    _where(label, "slab", free["slab"], rows < 0, "no slab of that page frame")
    if len(rows):
        _where(label, "object", free["object"], (free["object"] < 0) | (free["object"] >= slabs["objects"][rows]), "the slab has not that many objects")
        _where(label, "list", free["list"], (free["list"] == 1) & (slabs["where"][rows] != 1), "only a CPU slab has a CPU's freelist")
    _unique(label, "object", free["object"], free["slab"] * (MAX_OBJECTS + 1) + free["object"])
    _dense(label, np.stack((rows, free["list"], free["position"])))
    held = np.bincount(rows[free["list"] == 0], minlength=len(slabs["pfn"])).astype(np.int64)
    wrong = (slabs["cache"] >= 0) & (held != slabs["objects"] - slabs["inuse"])
    for row in np.flatnonzero(wrong)[:1].tolist():
        raise RecordingError(f"{label}: {held[row]} objects of the slab at {slabs['pfn'][row]}; its counters say {slabs['objects'][row] - slabs['inuse'][row]}")
    first = np.full(len(slabs["pfn"]) + 1, -1, dtype=np.int64)
    begins = (free["list"] == 1) & (free["position"] == 0)
    first[rows[begins]] = free["object"][begins]
    at = np.where(per_cpu["slab"] >= 0, _rows(slabs["pfn"], by_pfn, per_cpu["slab"]), -1)
    _where(label.replace("free_objects", "cache_cpus"), "freelist", per_cpu["freelist"], per_cpu["freelist"] != first[at], "its list begins otherwise")


def _touches_free_pages(snapshot: Snapshot, pfn: Int, size: Int, frames: int) -> Bool:
    """Whether a page frame of each range is on a free list or a per-CPU list."""
    order = _numbers(snapshot.pcp_pages, "list")
    starts = np.concatenate((_numbers(snapshot.free, "pfn"), _numbers(snapshot.pcp_pages, "pfn")))
    orders = np.concatenate((_numbers(snapshot.free, "order"), np.where(order < 12, order // 3, snapshot.scalars["pageblock_order"])))
    edges = np.bincount(starts, minlength=frames + 1) - np.bincount(starts + (1 << orders), minlength=frames + 1)
    free_below = np.concatenate(([0], np.cumsum(np.cumsum(edges[:frames]) > 0)))
    touched: Bool = free_below[pfn + size] > free_below[pfn]
    return touched


def _rows(pfns: Int, by_pfn: Int, wanted: Int) -> Int:
    """Row of each wanted page frame, -1 for none."""
    if not len(pfns):
        return np.full(len(wanted), -1, dtype=np.int64)
    at = by_pfn[np.minimum(np.searchsorted(pfns[by_pfn], wanted), len(pfns) - 1)]
    return np.where(pfns[at] == wanted, at, -1)


def _unique(label: str, name: str, values: Int, keys: Int) -> None:
    """No key twice."""
    by_key = np.argsort(keys, kind="stable")
    twice = np.zeros(len(keys), dtype=bool)
    twice[by_key[1:]] = keys[by_key[1:]] == keys[by_key[:-1]]
    _where(label, name, values, twice, "there already")


def _dense(label: str, keys: Int) -> None:
    """Positions (the last row of `keys`) count from 0 in each list (the rows before)."""
    order = np.lexsort(keys[::-1])
    sorted_keys = keys[:, order]
    new = np.concatenate(([True], (sorted_keys[:-1, 1:] != sorted_keys[:-1, :-1]).any(axis=0))) if len(order) else np.zeros(0, dtype=bool)
    starts = np.flatnonzero(new)
    expected = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    if (sorted_keys[-1] != expected).any():
        row = int(order[(sorted_keys[-1] != expected).argmax()])
        raise RecordingError(f"{label}: position {keys[-1][row]} is impossible: positions of a list must be 0, 1, 2 and so on")


def _check_same_machine(before: Snapshot, after: Snapshot) -> None:
    names: Sequence[str] = ("index", "name", "start_pfn", "spanned_pages")
    if not before.zones.select(names).equals(after.zones.select(names)) or before.scalars["max_pfn"] != after.scalars["max_pfn"]:
        raise RecordingError("before and after: zones or max_pfn differ; both snapshots must be of one machine without memory hotplug")
