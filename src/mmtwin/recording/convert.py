"""Turns raw trace records into the events table, by the formats that the kernel itself publishes in tracefs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.recording.capture.ring_buffer import DATA_OFFSET, gather, parse_pages
from mmtwin.recording.model import EVENTS_SCHEMA, KIND, KINDS, Snapshot
from mmtwin.recording.slab_classic import CLASSIC_COLUMNS
from mmtwin.recording.vmaps import NO_ROW, VMAP_COLUMNS, VMAP_TARGETS, vmap_column

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "mm_page_alloc": {"pfn": "pfn", "order": "order", "gfp_flags": "gfp", "migratetype": "migratetype"},
    "mm_page_free": {"pfn": "pfn", "order": "order"},
    "mm_page_free_batched": {"pfn": "pfn"},
    "mm_page_alloc_zone_locked": {"pfn": "pfn", "order": "order", "migratetype": "migratetype", "percpu_refill": "arg"},
    "mm_page_pcpu_drain": {"pfn": "pfn", "order": "order", "migratetype": "migratetype"},
    "mm_page_alloc_extfrag": {
        "pfn": "pfn",
        "alloc_order": "order",
        "alloc_migratetype": "migratetype",
        "fallback_order": "arg",
        "fallback_migratetype": "bytes_req",
        "change_ownership": "bytes_alloc",
    },
    "mm_lru_insertion": {"pfn": "pfn", "lru": "arg"},
    "kmalloc": {"call_site": "call_site", "ptr": "ptr", "bytes_req": "bytes_req", "bytes_alloc": "bytes_alloc", "gfp_flags": "gfp", "node": "node"},
    "kmem_cache_alloc": {
        "call_site": "call_site",
        "ptr": "ptr",
        "bytes_req": "bytes_req",
        "bytes_alloc": "bytes_alloc",
        "gfp_flags": "gfp",
        "node": "node",
        "accounted": "arg",
    },
    "kfree": {"call_site": "call_site", "ptr": "ptr"},
    "kmem_cache_free": {"call_site": "call_site", "ptr": "ptr", "name": "name"},
    "pcp_alloc": {},
    "pcp_free": {"page": "page", "order": "order", "migratetype": "migratetype"},
    "buddy_free": {"pfn": "pfn", "order": "order", "migratetype": "migratetype", "fpi": "arg"},
    "bulk": {"gfp": "gfp", "nr": "arg"},
    "bulk_end": {},
    "bulk_ret": {"got": "arg"},
    "drain_zone": {"cpu": "arg", "zone": "zone"},
    "isolate": {"page": "page", "order": "order"},
    "isolate_ret": {"got": "arg"},
    "move_block": {"page": "page", "migratetype": "migratetype"},
    "fold": {},
    "wmarks": {"min_free_kbytes": "arg", "scale": "bytes_req", "fraction": "bytes_alloc"},
    "balance": {"order": "order", "highest": "arg"},
    "reclaim_set": {"zone": "zone"},
    "reclaim_clear": {"zone": "zone"},
    "unboost": {"lock": "lock"},
    "thresholds": {"calculate": "calculate"},
    "rotate": {"lock": "lock"} | {f"h{order}": f"head{order}" for order in range(11)},
    "pageset": {"zone": "zone", "high": "bytes_req", "batch": "bytes_alloc"},
    "stat_thresholds": {"online": "arg"},
    "cpu_fold": {"cpu": "arg"},
    "steal": {},
    "walk": {"gfp": "gfp", "order": "order", "alloc_flags": "arg"},
    "mm_vmscan_wakeup_kswapd": {"zid": "arg", "order": "order", "gfp_flags": "gfp"},
    "mm_vmscan_kswapd_wake": {"zid": "arg", "order": "order"},
    "mm_vmscan_kswapd_sleep": {},
    "mm_vmscan_direct_reclaim_begin": {"order": "order", "gfp_flags": "gfp"},
    "mm_vmscan_direct_reclaim_end": {"nr_reclaimed": "arg"},
    "mm_compaction_begin": {"zone_start": "pfn", "migrate_pfn": "bytes_req", "free_pfn": "bytes_alloc", "sync": "node"},
    "mm_compaction_end": {"zone_start": "pfn", "migrate_pfn": "bytes_req", "free_pfn": "bytes_alloc", "sync": "node", "status": "arg"},
    "mm_compaction_try_to_compact_pages": {"order": "order", "gfp_mask": "gfp", "prio": "arg"},
    "mark_victim": {"pid": "arg", "comm": "name"},
    "reclaim_retry_zone": {
        "zone_idx": "migratetype",
        "order": "order",
        "reclaimable": "bytes_req",
        "available": "bytes_alloc",
        "min_wmark": "ptr",
        "no_progress_loops": "arg",
        "wmark_check": "node",
    },
    "compact_retry": {"order": "order", "priority": "arg", "result": "bytes_req", "retries": "bytes_alloc", "max_retries": "node", "ret": "ptr"},
    "mm_vmscan_write_folio": {"pfn": "pfn", "reclaim_flags": "arg"},
    "wakeup_kswapd": {"gfp": "gfp", "order": "order", "highest": "arg", "first": "ptr", "second": "call_site", "failures": "bytes_alloc"},
    "swap_in": {"page": "page"},
    "page_site": {"ra": "call_site"},
    "slab_take": {"ptr": "ptr"},
    "slab_give": {"ptr": "ptr", "head": "arg"},
    "slab_slow": {"ptr": "ptr", "gfp": "gfp", "node": "node"},
    "slab_refill": {},
    "slab_cpu_partial": {},
    "slab_deactivate": {},
    "slab_load": {},
    "slab_node_partial": {},
    "slab_new": {"ptr": "ptr", "slab": "page"},
    "slab_cmpxchg": {"page": "page", "head": "arg"},
    "slab_put_partial": {"drain": "arg"},
    "slab_unfreeze": {},
    "slab_bulk_alloc": {"ptr": "ptr", "gfp": "gfp", "n": "arg"},
    "slab_bulk_pop": {},
    "slab_bulk_got": {"n": "arg"},
    "slab_bulk_free": {"ptr": "ptr", "n": "arg"},
    "slab_flush": {"ptr": "ptr"},
    "slab_flush_slab": {},
    "slab_flush_partial": {},
    "slab_shrink": {"ptr": "ptr"},
    "slab_shrink_lock": {},
    "slab_create": {
        "ptr": "ptr",
        "cpu_slab": "call_site",
        "object_size": "bytes_req",
        "size": "bytes_alloc",
        "gfp": "gfp",
        "align": "node",
        "oo": "arg",
        "min_partial": "pfn",
        "name": "name",
    },
    "slab_alias": {"ptr": "ptr", "object_size": "bytes_req", "inuse": "bytes_alloc", "refcount": "arg", "name": "name"},
    "slab_destroy": {"ptr": "ptr"},
    "slab_shutdown_lock": {},
    "slab_dead_cpu": {"cpu": "arg"},
    **CLASSIC_COLUMNS,
    **VMAP_COLUMNS,
}
"""For each kind: which field of the kernel's record goes to which column. "page", "zone" and "lock" are pointers that are turned into a
page frame number (pfn) and a zone index (migratetype); "calculate" becomes arg = 1 for the pressure threshold, 0 for the normal one. A "rotate" becomes
one row per order with a page on its movable free list: pfn (the first page), order, and the zone index in arg.
In wakeup_kswapd ptr and call_site are the first entry of kswapd's wait queue and the one behind it: an empty queue's head is its own successor, so kswapd
sleeps where the two differ.
In slab events ptr is a cache (``struct kmem_cache``; in slab_take and slab_give its per-CPU pointer; in slab_new the new slab's first free object, 0 if
there is no slab). slab_create: gfp = flags, node = align, arg = ``oo``, pfn = min_partial, call_site = the per-CPU pointer. What a bulk function frees or
got follows as rows slab_bulk_object (ptr = the object, arg = its index), a new cache's ``random_seq`` as rows slab_random (ptr = the entry, a byte offset)."""
ARRAYS = {"slab_bulk_got": ("p", "slab_bulk_object"), "slab_bulk_free": ("p", "slab_bulk_object"), "slab_create": ("r", "slab_random")}
"""Kinds of records with an array: the beginning of its field's name (the index of its first element follows), and the kind of the rows it becomes.
A long array comes in several records of one moment; the one with element 0 is the first."""


MASK = (1 << 64) - 1
LIST_OFFSET = 8
"""Of ``lru`` in ``struct page`` of 64-bit kernels: list pointers point there."""


def signed(address: int) -> int:
    """An address as the 64-bit signed number that a column holds; those of 32-bit kernels are positive."""
    return address - (1 << 64) if address >> 63 else address


@dataclass(frozen=True)
class Field:
    """One field of a trace record: byte offset, size, signedness; `dynamic` for ``__data_loc`` strings."""

    offset: int
    size: int
    signed: bool
    dynamic: bool


@dataclass(frozen=True)
class EventFormat:
    """An event's record layout (tracefs ``events/*/*/format``)."""

    name: str
    id: int
    fields: Mapping[str, Field]


FIELD = re.compile(r"field:(?P<type>[^;]*?)(?P<name>\w+)(?:\[[^\]]*\])?;\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);\s*signed:(?P<signed>[01]);")
NUMBERED = re.compile(r"^(pcp_free|page_site|rotate|unboost|bulk_end|bulk_ret|buddy_free|isolate_ret|reclaim_set|reclaim_clear|c?slab_\w*?|vmap_\w*?)\d+$")
"""Names of probes that stand for one kind of event at several places."""


def parse_format(text: str) -> EventFormat:
    """Reads the text of a tracefs ``format`` file.

    :raises ValueError: the text has no name or no ID.
    """
    name, number = re.search(r"^name: (\w+)", text, re.M), re.search(r"^ID: (\d+)", text, re.M)
    if not name or not number:
        raise ValueError("not the text of a tracefs format file: no name or ID line")
    fields = {m["name"]: Field(int(m["offset"]), int(m["size"]), m["signed"] == "1", "__data_loc" in m["type"]) for m in FIELD.finditer(text)}
    return EventFormat(NUMBERED.sub(r"\1", name[1]), int(number[1]), fields)


def _context(flags: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
    """0 task, 1 soft interrupt, 2 hard interrupt, 3 hard interrupt in a soft one (trace_flag_type: 0x40 NMI, 0x08 hard, 0x10 soft; include/linux/trace_events.h).

    A kprobe on an instruction is a breakpoint, whose handler counts as NMI and as hard interrupt: what it interrupted is then known
    only down to "soft interrupt or not", and a hard interrupt passes for the task (page allocation in one is all but unknown).
    """
    hard = (flags & 0x08 != 0) & (flags & 0x40 == 0)
    soft = flags & 0x10 != 0
    return np.select([hard & soft, hard, soft], [3, 2, 1], 0).astype(np.int8)


def _strings(data: npt.NDArray[np.uint8], at: npt.NDArray[np.int64], where: npt.NDArray[np.int64]) -> list[str]:
    """``__data_loc`` strings: the low half of the word is the offset in the record, the high half the length."""
    text = data.tobytes()
    spans = ((start + (w & 0xFFFF), start + (w & 0xFFFF) + (w >> 16)) for start, w in zip(at.tolist(), where.tolist(), strict=True))
    return [text[a:b].split(b"\0")[0].decode(errors="replace") for a, b in spans]


def events_table(
    cpu_pages: list[list[bytes]], formats: Mapping[int, EventFormat], before: Snapshot, after: Snapshot, data_offset: int = DATA_OFFSET
) -> tuple[pl.DataFrame, int]:
    """All CPUs' events between two snapshots, in the order of the trace clock.

    The dump holds each CPU's count of events so far, which says exactly which events it already contains.

    :param data_offset: bytes before the data of a ring buffer's page.
    :returns: the table and the number of events that the ring buffer lost.
    """
    parts, lost = [], 0
    for cpu, pages in enumerate(cpu_pages):
        times, offsets, data = parse_pages(pages, data_offset)
        lost += after.scalars[f"trace_entries_{cpu}"] - len(times)
        inside = slice(before.scalars[f"trace_entries_{cpu}"], after.scalars[f"trace_entries_{cpu}"])
        parts.append(_records(cpu, times[inside].astype(np.int64), offsets[inside], data, formats, before))
    table = pl.concat(parts).sort("time", maintain_order=True)
    if (table["kind"] == "page_site").any():
        from mmtwin.recording.capture.page_sites import with_sites

        table = with_sites(table)
    return table, max(lost, 0)


def _records(
    cpu: int, times: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64], data: npt.NDArray[np.uint8], formats: Mapping[int, EventFormat], before: Snapshot
) -> pl.DataFrame:
    ids = gather(data, offsets, 2, False)
    length = len(times)
    absent = {"pfn": -1, "order": -1, "migratetype": -1}
    columns = {name: np.full(length, absent.get(name, 0), dtype=np.int64) for name in EVENTS_SCHEMA if name not in ("kind", "name")}
    kinds = np.full(length, 255, dtype=np.uint8)
    names = np.full(length, None, dtype=object)
    columns["time"], columns["cpu"] = times, np.full(length, cpu)
    columns["pid"] = gather(data, offsets + 4, 4, True)
    columns["context"] = _context(gather(data, offsets + 2, 1, False)).astype(np.int64)
    page_base, page_size = before.scalars["vmemmap_base"], before.scalars["page_size_bytes"]
    heads: list[pl.DataFrame] = []
    arrays: dict[str, list[tuple[int, npt.NDArray[np.int64], EventFormat, Field]]] = {}
    zone_of = {before.scalars[f"zone_address_{i}"]: i for i in range(len(before.zones))}
    for number, form in formats.items():
        wanted = np.flatnonzero(ids == number)
        if not len(wanted) or form.name not in COLUMNS:
            continue
        if form.name == "rotate":
            heads.append(_rotations(form, data, offsets[wanted], times[wanted], cpu, zone_of, before))
            continue
        if form.name in ARRAYS:
            first, values = _array(form)
            arrays.setdefault(form.name, []).append((first, wanted, form, values))
            if first:
                continue
        kinds[wanted] = KIND[form.name]
        for source, target in COLUMNS[form.name].items():
            if source not in form.fields and (form.name in VMAP_COLUMNS or form.name == "mark_victim"):  # kernels without vmap nodes; 6.1.0 names no victim
                continue
            f = form.fields[source]
            value = gather(data, offsets[wanted] + f.offset, f.size, f.signed)
            if f.dynamic:
                names[wanted] = np.array(_strings(data, offsets[wanted], value), dtype=object)
            elif target == "page":
                columns["pfn"][wanted] = (value - np.int64(signed(page_base))) // page_size
            elif target == "zone":
                columns["migratetype"][wanted] = [zone_of.get(v & MASK, -1) for v in value.tolist()]
            elif target == "lock":
                columns["migratetype"][wanted] = [zone_of.get((v & MASK) - before.scalars["zone_lock_offset"], -1) for v in value.tolist()]
            elif target in VMAP_TARGETS:
                for column, numbers in vmap_column(target, value, before.scalars).items():
                    columns[column][wanted] = numbers
            elif target == "calculate":
                columns["arg"][wanted] = value == np.int64(signed(before.scalars["pressure_threshold_function"]))
            else:
                columns[target][wanted] = value
        if form.name == "slab_new":  # without a slab there was nothing to read from
            slab = form.fields["slab"]
            failed = gather(data, offsets[wanted] + slab.offset, slab.size, False) == 0
            columns["pfn"][wanted[failed]], columns["ptr"][wanted[failed]] = -1, 0
        elif form.name.startswith("vmap_block_"):  # a queue's lock has no block behind it
            queue = wanted[columns["node"][wanted] >= 0]
            columns["ptr"][queue] = columns["arg"][queue] = columns["bytes_req"][queue] = 0
    heads += [_elements(ARRAYS[kind][1], chunks, data, offsets, columns) for kind, chunks in arrays.items()]
    kept = (kinds != 255) & (columns["node"] != NO_ROW)
    frame = {name: pl.Series(name, column[kept]).cast(EVENTS_SCHEMA[name], strict=False) for name, column in columns.items()}
    frame["kind"] = pl.Series("kind", [KINDS[k] for k in kinds[kept].tolist()], dtype=pl.Enum(KINDS))
    frame["name"] = pl.Series("name", names[kept].tolist(), dtype=pl.String)
    return pl.concat([pl.DataFrame({name: frame[name] for name in EVENTS_SCHEMA}), *heads])


def _array(form: EventFormat) -> tuple[int, Field]:
    """Index of the first element of a record's array, and the field."""
    for name, field in form.fields.items():
        if re.fullmatch(rf"{ARRAYS[form.name][0]}\d+", name):
            return int(name[1:]), field
    return 0, Field(0, 0, False, False)


def _elements(
    kind: str,
    chunks: list[tuple[int, npt.NDArray[np.int64], EventFormat, Field]],
    data: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    columns: Mapping[str, npt.NDArray[np.int64]],
) -> pl.DataFrame:
    """One row for each element of the records' arrays, with the time, task and CPU of the record that has element 0."""
    begins = np.sort(np.concatenate([wanted for first, wanted, _, _ in chunks if first == 0] or [np.zeros(0, dtype=np.int64)]))
    owners, values, indices = [], [], []
    for first, wanted, form, field in chunks:
        if not field.size or not len(begins):
            continue
        at = offsets[wanted]
        if kind == "slab_bulk_object":
            width = form.fields["n"].size
            count = gather(data, at + form.fields["n"].offset, width, True)
        else:
            width, sequence = 4, form.fields["seq"]
            count = gather(data, at + form.fields["objects"].offset, form.fields["objects"].size, False)
            count[gather(data, at + sequence.offset, sequence.size, False) == 0] = 0
        here = np.clip(count - first, 0, field.size // width)
        record = np.repeat(np.arange(len(at)), here)
        index = np.arange(len(record)) - np.repeat(np.cumsum(here) - here, here)
        owners.append(begins[np.maximum(np.searchsorted(begins, wanted, side="right") - 1, 0)][record])
        values.append(gather(data, at[record] + field.offset + width * index, width, False))
        indices.append(index + first)
    owner, value, index = (np.concatenate(x) if x else np.zeros(0, dtype=np.int64) for x in (owners, values, indices))
    in_order = np.lexsort((index, owner))
    owner = owner[in_order]
    same = {name: columns[name][owner] for name in ("time", "cpu", "pid", "context")}
    rows = same | {"ptr": value[in_order], "arg": index[in_order]}
    absent = {"pfn": -1, "order": -1, "migratetype": -1}
    series = [
        pl.Series(name, rows.get(name, np.full(len(owner), absent.get(name, 0)))).cast(dtype)
        for name, dtype in EVENTS_SCHEMA.items()
        if name not in ("kind", "name")
    ]
    table = pl.DataFrame(series).with_columns(pl.lit(kind, dtype=pl.Enum(KINDS)).alias("kind"), pl.lit(None, dtype=pl.String).alias("name"))
    return table.select(list(EVENTS_SCHEMA))


def _rotations(
    form: EventFormat,
    data: npt.NDArray[np.uint8],
    at: npt.NDArray[np.int64],
    times: npt.NDArray[np.int64],
    cpu: int,
    zone_of: Mapping[int, int],
    before: Snapshot,
) -> pl.DataFrame:
    """The rows of compaction's turned free lists."""
    lock = gather(data, at + form.fields["lock"].offset, form.fields["lock"].size, False)
    lru = before.scalars.get("page_list_offset", LIST_OFFSET)
    pid, context = gather(data, at + 4, 4, True), _context(gather(data, at + 2, 1, False))
    rows = []
    for order in range(11):
        first = form.fields[f"h{order}"]
        head = gather(data, at + first.offset, first.size, False)
        for i, pointer in enumerate(head.tolist()):
            pfn, rest = divmod((pointer & MASK) - lru - before.scalars["vmemmap_base"], before.scalars["page_size_bytes"])
            zone = zone_of.get((int(lock[i]) & MASK) - before.scalars["zone_lock_offset"], -1)
            if zone >= 0 and not rest and 0 <= pfn < before.scalars["max_pfn"]:
                rows.append(
                    {
                        "time": int(times[i]),
                        "cpu": cpu,
                        "pid": int(pid[i]),
                        "context": int(context[i]),
                        "kind": "rotate",
                        "pfn": pfn,
                        "order": order,
                        "migratetype": 1,
                        "arg": zone,
                    }
                )
    table = pl.DataFrame(rows, schema={name: EVENTS_SCHEMA[name] for name in ("time", "cpu", "pid", "context", "kind", "pfn", "order", "migratetype", "arg")})
    absent = [pl.lit(0).cast(EVENTS_SCHEMA[name]).alias(name) for name in EVENTS_SCHEMA if name not in table.columns and name != "name"]
    return table.with_columns(*absent, pl.lit(None, dtype=pl.String).alias("name")).select(list(EVENTS_SCHEMA))
