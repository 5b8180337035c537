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

from mmtwin.errors import RecordingError
from mmtwin.recording.convert import COLUMNS
from mmtwin.recording.model import EVENTS_SCHEMA, KINDS, Recording, Snapshot

# The same as in mmtwin.mm.tables and mmtwin.gfp (a test compares them), written here so that reading a file does not import numba.
MAX_ORDER, PAGEBLOCK_ORDER, MIGRATE_TYPES, NR_PCP_LISTS, MAX_NR_ZONES = 10, 9, 5, 14, 5
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
SCALARS = (
    "min_free_kbytes", "watermark_scale_factor", "watermark_boost_factor", "percpu_pagelist_high_fraction", "page_group_by_mobility_disabled",
    "totalreserve_pages", "pageblock_order", "max_pfn", "possible_cpus",
)  # fmt: skip
"""Scalars every snapshot must have."""

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
    for name in SCALARS:
        if name not in scalars:
            raise RecordingError(f"{label}: no scalar {name}; the file was not written by mmtwin or is incomplete")
    for name, value in scalars.items():
        if isinstance(value, bool) or not isinstance(value, int) or not -(1 << 63) <= value < 1 << 64:
            raise RecordingError(f"{label}: scalar {name} is {value!r}; expected an integer of 64 bits")
    frames = scalars["max_pfn"]
    if not 0 < frames <= MAX_FRAMES:
        raise RecordingError(f"{label}: max_pfn is {frames}; expected 1 to {MAX_FRAMES}")
    if scalars["pageblock_order"] != PAGEBLOCK_ORDER:
        raise RecordingError(f"{label}: pageblock_order is {scalars['pageblock_order']}; only {PAGEBLOCK_ORDER} can be replayed")
    for name, array, length in (("pages", snapshot.pages, frames), ("pageblocks", snapshot.pageblocks, -(-frames // (1 << PAGEBLOCK_ORDER)))):
        if array.dtype != np.uint8 or array.shape != (length,):
            raise RecordingError(f"{label}.{name}: {array.dtype} of shape {array.shape}; expected uint8 of shape ({length},)")
    _where(f"{label}.pageblocks", "migratetype", snapshot.pageblocks, snapshot.pageblocks >= MIGRATE_TYPES, f"expected 0 to {MIGRATE_TYPES - 1}")
    for name, columns in TABLES.items():
        extra = {f"lowmem_reserve_{j}": pl.Int64 for j in range(len(snapshot.zones))} if name == "zones" else {}
        check_columns(getattr(snapshot, name), {**columns, **extra}, f"{label}.{name}")
    spans = _check_zones(snapshot.zones, frames, label)
    _check_pcp(snapshot, cpus, label)
    _check_blocks(snapshot, spans, frames, cpus, label)
    memory = snapshot.memory_map
    for column in ("start", "size"):
        _range(f"{label}.memory_map", column, _numbers(memory, column), 0, (1 << 63) - 1)


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
    _range(label, "context", column["context"], 0, 2)
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
    _in_one_zone(label, pfn, order, snapshot)
    requests = np.isin(np.arange(len(KINDS)), [KINDS.index(kind) for kind in ("mm_page_alloc", "bulk", "walk")])[kinds]
    _where(label, "gfp", column["gfp"], requests & (column["gfp"] & 0x18 == 0x18), "movable and reclaimable at once")
    _where(label, "gfp", column["gfp"], requests & np.isin(column["gfp"] & 15, BAD_ZONE_BITS), "its low four bits select no zone")
    zones = len(snapshot.zones)
    for kind, name, high in (
        ("drain_zone", "arg", cpus - 1), ("drain_zone", "migratetype", zones - 1), ("balance", "arg", zones - 1), ("thresholds", "arg", 1),
        ("mm_page_alloc_extfrag", "arg", MAX_ORDER), ("mm_page_alloc_extfrag", "bytes_req", MIGRATE_TYPES - 1), ("mm_page_alloc_extfrag", "bytes_alloc", 1),
        ("mm_page_alloc_zone_locked", "arg", 1), ("wmarks", "arg", 1 << 31), ("wmarks", "bytes_req", 3000), ("wmarks", "bytes_alloc", 1 << 31),
        ("bulk", "arg", frames), ("bulk_ret", "arg", frames), ("rotate", "arg", zones - 1), ("cpu_fold", "arg", cpus - 1), ("stat_thresholds", "arg", cpus),
        ("pageset", "bytes_req", 1 << 30), ("pageset", "bytes_alloc", 1 << 20),
    ):  # fmt: skip
        values = events[name].to_numpy()
        low = 1 if (kind, name) in (("stat_thresholds", "arg"), ("pageset", "bytes_alloc")) else 0
        _where(label, name, values, (kinds == KINDS.index(kind)) & ((values < low) | (values > high)), f"expected {low} to {high} in {kind}")


def _in_one_zone(label: str, pfn: Int, order: Int, snapshot: Snapshot) -> None:
    """Every block an event speaks of lies in one zone."""
    start = _numbers(snapshot.zones, "start_pfn")
    end = start + _numbers(snapshot.zones, "spanned_pages")
    bad = pfn >= 0
    for z in range(len(start)):
        bad &= (pfn < start[z]) | (pfn + (np.int64(1) << order) > end[z])
    _where(label, "pfn", pfn, bad, "not inside one zone, with its order")


def _needs(kind: str, column: str) -> bool:
    """Whether events of a kind always have this column (a failed mm_page_alloc has no pfn)."""
    if kind == "rotate":  # made of pointers
        return True
    targets = COLUMNS.get(kind, {}).values()
    if column == "pfn":
        return kind != "mm_page_alloc" and ("pfn" in targets or "page" in targets)
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
    if len(zones) != MAX_NR_ZONES:
        raise RecordingError(f"{label}: {len(zones)} rows; expected {MAX_NR_ZONES}")
    column = {name: _numbers(zones, name) for name in zones.columns if name != "name"}
    _where(label, "index", column["index"], column["index"] != np.arange(len(zones)), "expected 0, 1, 2 and so on")
    if zones["name"].null_count():
        raise RecordingError(f"{label}: a zone without a name")
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
        order = column["order"] if name == "free" else np.where(column["list"] < 12, column["list"] // 3, PAGEBLOCK_ORDER)
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


def _check_same_machine(before: Snapshot, after: Snapshot) -> None:
    names: Sequence[str] = ("index", "name", "start_pfn", "spanned_pages")
    if not before.zones.select(names).equals(after.zones.select(names)) or before.scalars["max_pfn"] != after.scalars["max_pfn"]:
        raise RecordingError("before and after: zones or max_pfn differ; both snapshots must be of one machine without memory hotplug")
