"""Which slab cache an object is from: kmalloc's caches follow from size and flags, others from names that events and memory dumps tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.mm.slab_common import KMALLOC_MAX_CACHE_SIZE, KMALLOC_TYPE_PREFIX, kmalloc_name, kmalloc_size_roundup, kmalloc_type
from mmtwin.recording.model import Recording, Snapshot
from mmtwin.units import PAGE_SHIFT

KMALLOCS = ("kmalloc", "kmalloc_node")
BULK = ("slab_bulk_alloc", "slab_bulk_got", "slab_bulk_free", "slab_bulk_object", "slab_create")
"""The recorder's events about bulk calls, and those about new caches."""
CLASSES = np.unique([kmalloc_size_roundup(size) for size in range(1, KMALLOC_MAX_CACHE_SIZE + 1, 8)]).astype(np.int64)
KMALLOC_LARGE = "(kmalloc, whole pages)"
UNKNOWN = "(unknown)"

Int = npt.NDArray[np.int64]


def describe_bulk(events: pl.DataFrame, recording: Recording) -> pl.DataFrame:
    """Gives objects of kmem_cache_alloc_bulk the name and sizes of their cache, as far as a snapshot or the cache's creation tells them."""
    if not (events["kind"] == "slab_bulk_object").any():
        return events
    some = events.with_row_index("at").filter(pl.col("kind").is_in(list(BULK)))
    kind = pl.col("kind").cast(pl.String)
    task = pl.when(pl.col("pid") == 0).then("cpu").otherwise(-1)  # a task may move to another CPU in between; each CPU has its own task 0
    some = some.with_columns(
        pl.when(kind == "slab_bulk_alloc").then("ptr").forward_fill().over("pid", "context", task).alias("address"),
        pl.when(kind != "slab_bulk_object").then(kind).forward_fill().over("cpu").alias("role"),
    ).filter((kind == "slab_bulk_object") & (pl.col("role") == "slab_bulk_got") & pl.col("address").is_not_null())
    known = [(_signed(event["ptr"]), event["at"], event["name"], event["bytes_req"], event["bytes_alloc"]) for event in _created(events)]
    if recording.before is not None and recording.before.caches is not None:
        known += [(_signed(c["address"]), -1, c["name"], c["object_size"], c["size"]) for c in recording.before.caches.iter_rows(named=True)]
    schema = {"address": pl.Int64, "since": pl.Int64, "cache": pl.String, "object_size": pl.Int64, "size": pl.Int64}
    caches = pl.DataFrame(known, schema=schema, orient="row").sort("since")
    found = (
        some.select(pl.col("at").cast(pl.Int64), "address")
        .sort("at")
        .join_asof(caches, left_on="at", right_on="since", by="address", strategy="backward", check_sortedness=False)
        .select(pl.col("at").cast(pl.get_index_type()), "cache", "object_size", "size")
    )
    return (
        events.with_row_index("at")
        .join(found, on="at", how="left", maintain_order="left")
        .with_columns(pl.coalesce("cache", "name").alias("name"), pl.coalesce("object_size", "bytes_req").alias("bytes_req"))
        .with_columns(pl.coalesce("size", "bytes_alloc").alias("bytes_alloc"))
        .drop("at", "cache", "object_size", "size")
    )


def _created(events: pl.DataFrame) -> list[dict[str, Any]]:
    return events.with_row_index("at").filter(pl.col("kind") == "slab_create").to_dicts()


def _signed(address: int) -> int:
    """As the events keep addresses."""
    return address - (1 << 64) if address >> 63 == 1 else address


def _in_snapshot(ptr: Int, snapshot: Snapshot) -> pl.Series:
    """The caches' names by the slabs that hold these objects in a memory dump; null where no slab does."""
    assert snapshot.slabs is not None and snapshot.caches is not None
    slabs = snapshot.slabs.filter(pl.col("cache") >= 0).select("pfn", "order", "cache").sort("pfn")
    name = dict(snapshot.caches.select("id", "name").iter_rows())
    pfn = ((ptr.astype(np.uint64) - np.uint64(snapshot.scalars["page_offset_base"])) >> np.uint64(PAGE_SHIFT)).astype(np.int64)
    first, order, cache = (slabs[column].to_numpy().astype(np.int64) for column in ("pfn", "order", "cache"))
    if not len(first):
        return pl.Series("snapshot", [None] * len(ptr), dtype=pl.String)
    at = np.maximum(np.searchsorted(first, pfn, side="right") - 1, 0)
    inside = (pfn >= first[at]) & (pfn < first[at] + (1 << order[at]))
    return pl.Series("snapshot", [name[c] if i else None for c, i in zip(cache[at].tolist(), inside.tolist(), strict=True)], dtype=pl.String)


def with_caches(table: pl.DataFrame, recording: Recording, notes: list[str], live: pl.Expr | None) -> pl.DataFrame:
    """Columns kmalloc (0/1), type, class (bytes) and cache (name): which cache each object is from.

    kmalloc's caches follow from the size and the flags. Other allocations print their cache's name only on new
    kernels; else it is the name that the object's free printed, or that of the slab in which the second memory dump has it, or the only name ever
    seen for objects of this call site and size.

    :param live: which objects the second memory dump must have; None if the last event looked at is not the recording's last.
    :param notes: gets a line if names were inferred from other objects.
    """
    after = recording.after
    if live is not None and after is not None and after.slabs is not None and after.caches is not None:
        wanted = table.select((live & pl.col("name").is_null() & pl.col("real")).alias("wanted"))["wanted"]
        names = pl.Series("seen", [None] * 0, dtype=pl.String).extend_constant(None, len(table))
        at = wanted.arg_true()
        names = names.scatter(at, _in_snapshot(table["ptr"].gather(at).to_numpy(), after))
        table = table.with_columns(pl.coalesce("name", names).alias("name"))
    is_kmalloc = pl.col("kind").cast(pl.String).is_in(list(KMALLOCS))
    unnamed = ~is_kmalloc & pl.col("name").is_null() & pl.col("real")
    known = (
        table.lazy()
        .filter(~is_kmalloc & pl.col("name").is_not_null())
        .group_by("call_site", pl.col("bytes_alloc").alias("class"))
        .agg(pl.col("name").n_unique().alias("different"), pl.col("name").first().alias("learnt"))
        .filter(pl.col("different") == 1)
        .drop("different")
        .collect()
    )
    table = table.with_columns(pl.col("bytes_alloc").alias("class"))
    if len(known) and bool(table.select(unnamed.any()).item()):
        table = table.join(known, on=["call_site", "class"], how="left", maintain_order="left")
        learnt = int(table.select((unnamed & pl.col("learnt").is_not_null()).sum()).item())
        if learnt:
            notes.append(f"{learnt:,} objects were not freed in the recording, so no event names their cache; named after others of their call site and size")
        table = table.with_columns(pl.coalesce("name", "learnt").alias("name")).drop("learnt")
    config, cmdline = recording.provenance.kernel_config, recording.provenance.cmdline
    accounted = config.get("MEMCG_KMEM", "y") == "y" and "nokmem" not in cmdline and "cgroup_disable=memory" not in cmdline
    flags = table["gfp"].unique()
    types = [kmalloc_type(value, accounted, config.get("ZONE_DMA", "y") == "y") for value in flags]
    kind = pl.col("gfp").replace_strict(flags, types, return_dtype=pl.Int64)
    return table.with_columns(
        is_kmalloc.alias("kmalloc"),
        pl.when(is_kmalloc).then(kind).otherwise(0).alias("type"),
        pl.when(is_kmalloc).then(pl.Series(_kmalloc_class(table, recording))).when(pl.col("name").is_not_null()).then(0).otherwise("class").alias("class"),
        pl.when(~is_kmalloc).then("name").alias("cache"),
    ).with_columns(pl.when(pl.col("class") < 0).then(0).otherwise("type").alias("type"))


def _kmalloc_class(table: pl.DataFrame, recording: Recording) -> Int:
    """The size in the cache's name, -1 for whole pages. With slub_debug objects are larger than their class, so the request decides then."""
    size, requested = table["bytes_alloc"].to_numpy(), table["bytes_req"].to_numpy()
    classes = CLASSES
    if recording.provenance.kernel_config.get("SLAB") == "y":  # that allocator has caches up to 4 MiB
        classes = np.concatenate([classes, classes[-1] << np.arange(1, 10)])
    at = np.searchsorted(classes, requested)
    by_request = np.append(classes, -1)[at]
    return np.where(np.isin(size, classes), size, np.where(size > classes[-1], -1, by_request)).astype(np.int64)


def cache_label(kmalloc: bool, kind: int, size: int, name: str | None) -> str:
    """A cache's name from the four columns of `with_caches`."""
    if kmalloc:
        if size <= KMALLOC_MAX_CACHE_SIZE:
            return KMALLOC_LARGE if size < 0 else kmalloc_name(kind, size)
        return f"{KMALLOC_TYPE_PREFIX[kind]}{size >> 20}M" if size >> 20 else f"{KMALLOC_TYPE_PREFIX[kind]}{size >> 10}k"
    return name if name is not None else f"(unnamed, {size:,} bytes)" if size else UNKNOWN
