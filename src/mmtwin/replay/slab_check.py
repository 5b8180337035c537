"""The slab part of the final comparison: every cache, slab and free list of the twin beside the second dump's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest

import polars as pl

from mmtwin import profiles
from mmtwin.mm.slab_common import CMPXCHG_DOUBLE, OBJECT_POISON, Mergeable, SlubConfig, open_cache, slub_cpus, sysfs_name
from mmtwin.mm.slab_tables import Slub
from mmtwin.procfs import slabinfo
from mmtwin.recording.model import Provenance, Snapshot
from mmtwin.recording.slab_state import COUNTS, Frames
from mmtwin.replay.part import Part


def compare_slabs(state: Slub, names: list[str], ids: Mapping[int, int], after: Snapshot) -> Iterator[Part]:
    """Compares part by part.

    :param names: the twin's caches by id.
    :param ids: the twin's id of each cache of the snapshot, by the snapshot's own id.
    """
    assert after.caches is not None and after.cache_cpus is not None and after.slabs is not None and after.free_objects is not None
    mine = Frames.of(state)
    label = dict(enumerate(names))
    theirs = _renumbered(after.caches, "id", ids).select("id", *COUNTS)
    yield _tables("slab caches and their counts", mine.caches.select("id", *COUNTS), theirs, ["id"], "id", label)
    cpus = _renumbered(after.cache_cpus, "cache", ids)
    online = cpus["cpu"].unique().implode()
    mine_cpus = mine.cache_cpus.filter(pl.col("cpu").is_in(online))
    yield _tables("CPU slabs and free lists", mine_cpus, cpus.select(mine_cpus.columns), ["cache", "cpu"], "cache", label)
    slabs = _renumbered(after.slabs.filter(pl.col("cache") >= 0), "cache", ids).select(mine.slabs.columns)
    yield _tables("slabs, in order", mine.slabs, slabs, ["pfn"], "cache", label)
    owner = slabs.select(pl.col("pfn").alias("slab"), "cache")
    columns = mine.free_objects.columns
    listed = after.free_objects.select(pl.col(columns).cast(pl.Int64)).join(owner, on="slab", how="inner")
    own = mine.free_objects.join(mine.slabs.select(pl.col("pfn").alias("slab"), "cache"), on="slab", how="inner")
    yield _tables("free objects, in order", own, listed, ["slab", "list", "position"], "cache", label)


def compare_texts(state: Slub, names: list[str], provenance: Provenance) -> Iterator[Part]:
    """What the guest's own files say: /proc/slabinfo line by line, and the caches' geometry in /sys/kernel/slab."""
    theirs = provenance.procfs.get("slabinfo", "").splitlines()
    if theirs:
        mine = slabinfo(state, names).splitlines()
        differ = [(a, b) for a, b in zip_longest(mine, theirs, fillvalue="") if a != b]
        yield Part("lines of /proc/slabinfo", max(len(mine), len(theirs)) - len(differ), max(len(mine), len(theirs)), f"{differ[0][1]}" if differ else "")
    found: dict[str, dict[str, int]] = {}
    for line in provenance.procfs.get("sys_kernel_slab", "").splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] != "alias" and words[1] in SYSFS_FILES and words[2].isdecimal():
            found.setdefault(words[0], {})[words[1]] = int(words[2])
    if found:
        yield _geometry(state, names, provenance, found)


SYSFS_FILES = ("slab_size", "objs_per_slab", "order", "min_partial", "cpu_partial")


def _geometry(state: Slub, names: list[str], provenance: Provenance, found: Mapping[str, Mapping[str, int]]) -> Part:
    """Every cache's geometry, computed from its object size, alignment and flags, beside /sys/kernel/slab."""
    config = SlubConfig.from_cmdline(provenance.cmdline, slub_cpus(provenance.cpus, provenance.cpus), profiles.for_release(provenance.kernel_release).slab)
    total, first = 0, []
    for i in range(int(state.config[0]["caches"])):
        row = state.cache[i]
        if not int(row["live"]):
            continue
        total += 1
        flags = int(row["flags"]) & ~(CMPXCHG_DOUBLE | OBJECT_POISON)
        geometry = open_cache(names[i], int(row["object_size"]), int(row["align"]), flags, bool(row["ctor"]), config)
        merge = Mergeable(*(int(row[c]) for c in ("flags", "size", "ctor", "usersize", "refcount")))
        theirs = found.get(sysfs_name(names[i], merge, config), found.get(names[i], {}))
        mine = (
            {}
            if geometry is None
            else dict(zip(SYSFS_FILES, (geometry.size, geometry.objects, geometry.order, geometry.min_partial, geometry.cpu_partial), strict=True))
        )
        if dict(theirs) != mine:
            first.append(f"{names[i]}: {mine}, the kernel's is {dict(theirs)}")
    return Part("geometry in /sys/kernel/slab", total - len(first), total, first[0] if first else "")


def _renumbered(table: pl.DataFrame, column: str, ids: Mapping[int, int]) -> pl.DataFrame:
    """The snapshot's table with the twin's cache ids, all numbers 64 bits wide."""
    numbers = [c for c, kind in table.schema.items() if kind.is_integer()]
    return table.select(pl.col(numbers).cast(pl.Int64)).with_columns(pl.col(column).replace_strict(ids, default=-1, return_dtype=pl.Int64))


def _tables(name: str, mine: pl.DataFrame, theirs: pl.DataFrame, key: list[str], cache: str, label: Mapping[int, str]) -> Part:
    """How many rows of either table are equal, and the first that is not."""
    columns = theirs.columns
    mine = mine.select(pl.col(columns).cast(pl.Int64))
    missing, extra = theirs.join(mine, on=columns, how="anti"), mine.join(theirs, on=columns, how="anti")
    total = len(theirs) + len(extra.join(theirs, on=key, how="anti"))
    first = ""
    if len(missing) or len(extra):
        row = (missing if len(missing) else extra).sort(key).row(0, named=True)
        other = (extra if len(missing) else missing).filter(*(pl.col(k) == row[k] for k in key))
        changed = {k: (other.row(0, named=True)[k], v) for k, v in row.items() if other.row(0, named=True)[k] != v} if len(other) else {}
        where = ", ".join(f"{k} {row[k]}" for k in key if k not in (cache,))
        what = ", ".join(f"{k} {a}, the kernel's is {b}" for k, (a, b) in changed.items()) or ("only in the kernel" if len(missing) else "only in the twin")
        first = f"{label.get(row[cache], '?')} {where}: {what}"
    return Part(name, total - len(missing) - len(extra.join(theirs, on=key, how="anti")), total, first)
