"""What each call site asks for: sums, sizes, flags, contexts, how much is held at once, and its requests and frees in their order.

Pairs of allocation and free are those of `diagnose.stat`. *Held* is what was allocated and not yet freed; an object that no event frees, but whose address is handed
out again, is held until then, as the silent free was somewhere in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.diagnose.advise.size_classes import Objects
from mmtwin.diagnose.cache_names import with_caches
from mmtwin.diagnose.stat import FAILED, FREED, LIVE, REUSED, ZERO_SIZE, SlabSummary, allocations, call_sites, reading_notes, site_name
from mmtwin.errors import RequestError
from mmtwin.gfp import GFP
from mmtwin.mm.slab_common import KMALLOC_MAX_CACHE_SIZE, kmalloc_type
from mmtwin.recording.model import Recording
from mmtwin.recording.symbols import Symbols

Int = npt.NDArray[np.int64]
TASK = 0
CONTEXTS = ("a task", "a softirq", "a hard interrupt", "a hard interrupt in a softirq")
"""Names of the numbers in the events' column ``context``."""


@dataclass(frozen=True)
class Use:
    """One kind of request of a site: the same flags in the same context.

    :ivar gfp: flags. `context`: 0 to 3, see `CONTEXTS`.
    :ivar requests: all of them; `failed`: those answered with NULL.
    """

    gfp: int
    context: int
    requests: int
    failed: int


@dataclass(frozen=True)
class Site:
    """The traffic of one call site, in one way: kmalloc, or allocation from a cache.

    :ivar key: the call site as the events have it. `name`: for people.
    :ivar kmalloc: asked by size; else it names a cache.
    :ivar cache: the caches that its objects are from, as far as they are known, by name with numbers of objects.
    :ivar hits: successful requests; `failed`, `zero_size` are apart from them.
    :ivar bytes_alloc: given in all; `bytes_req`: asked for.
    :ivar sizes: successful requests by size.
    :ivar freed, reused, live: how they ended; `live_bytes` are given ones.
    :ivar peak: most objects held at once; `peak_bytes`: most bytes (given) held at once; `peak_row`: at which slab event that was.
    :ivar freed_by: kinds of the events that freed objects, with numbers. `freed_in`: contexts of these.
    :ivar pids: different tasks that asked.
    :ivar lifetime_mean: of those freed, in the recording's unit of time; None if there are none.
    :ivar fallbacks: failed requests after which the same task at once got as much in another way.
    :ivar largest_failed: bytes of the largest request that failed, 0 without one.
    :ivar in_task: of the call site's requests in task context: all, those with preemption, interrupts or bottom halves off, and of these those that may sleep; None if
        the recording does not say (only trace text with its flags does, of a kernel that counts).
    """

    key: int
    name: str
    kmalloc: bool
    cache: Mapping[str, int]
    hits: int
    failed: int
    zero_size: int
    bytes_req: int
    bytes_alloc: int
    sizes: Mapping[int, int]
    uses: tuple[Use, ...]
    freed: int
    reused: int
    live: int
    live_bytes: int
    peak: int
    peak_bytes: int
    freed_by: Mapping[str, int]
    freed_in: Mapping[int, int]
    pids: int
    cross_cpu: int
    lifetime_mean: float | None
    fallbacks: int = 0
    largest_failed: int = 0
    in_task: tuple[int, int, int] | None = None

    @property
    def waste_bytes(self) -> int:
        """Given and not asked for, over all requests."""
        return self.bytes_alloc - self.bytes_req

    @property
    def size(self) -> int | None:
        """The one size that all requests have, None if there are several."""
        return next(iter(self.sizes)) if len(self.sizes) == 1 else None

    @property
    def gfp(self) -> int:
        """Flags that every request has."""
        common = -1
        for use in self.uses:
            common &= use.gfp
        return common if self.uses else 0

    @property
    def may_sleep(self) -> bool:
        """Every request allows direct reclaim, and none came from an interrupt."""
        return bool(self.uses) and all(use.gfp & GFP.DIRECT_RECLAIM and use.context == TASK for use in self.uses)

    @property
    def dma(self) -> bool:
        """Some request asks for ZONE_DMA or ZONE_DMA32."""
        return any(use.gfp & (GFP.DMA | GFP.DMA32) for use in self.uses)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "site": self.name, "call_site": self.key, "kmalloc": self.kmalloc, "caches": dict(self.cache), "hits": self.hits, "failed": self.failed,
            "zero_size": self.zero_size, "bytes_req": self.bytes_req, "bytes_alloc": self.bytes_alloc, "waste_bytes": self.waste_bytes,
            "sizes": {str(size): number for size, number in self.sizes.items()},
            "uses": [{"gfp": u.gfp, "context": u.context, "requests": u.requests, "failed": u.failed} for u in self.uses],
            "freed": self.freed, "reused": self.reused, "live": self.live, "live_bytes": self.live_bytes, "peak": self.peak, "peak_bytes": self.peak_bytes,
            "freed_by": dict(self.freed_by), "freed_in": {str(c): n for c, n in self.freed_in.items()}, "pids": self.pids, "cross_cpu_frees": self.cross_cpu,
            "lifetime_mean": self.lifetime_mean, "fallbacks": self.fallbacks, "largest_failed": self.largest_failed,
            "in_task": list(self.in_task) if self.in_task is not None else None,
        }  # fmt: skip


@dataclass(frozen=True)
class Traffic:
    """All sites, and the allocations behind them.

    :ivar sites: most bytes given first.
    :ivar table: one row per allocation, see `stat.allocations`.
    :ivar summary: the sums of `stat`.
    :ivar peak_kmalloc: what kmalloc's caches held when their objects had most bytes, by type and size.
    :ivar requests_kmalloc: all requests to them, likewise.
    :ivar accounted: __GFP_ACCOUNT has caches of its own (CONFIG_MEMCG_KMEM, and not switched off).
    """

    sites: tuple[Site, ...]
    table: pl.DataFrame
    summary: SlabSummary
    peak_kmalloc: Objects
    requests_kmalloc: Objects
    accounted: bool
    notes: list[str] = field(default_factory=list)


NEAR = 16
"""Slab events of a task within which an allocation counts as the fallback of a failed one."""


def traffic(recording: Recording, symbols: Symbols | None = None) -> Traffic:
    """Adds up a recording by call site.

    :raises RequestError: no slab events, or a program's calls of malloc.
    """
    if recording.provenance.how == "malloc":
        raise RequestError("these are a program's calls of malloc; advise is about callers of kmalloc and kmem_cache_alloc in the kernel")
    table, summary = allocations(recording)
    notes = reading_notes(recording)
    table = with_caches(table, recording, notes, pl.col("fate") == LIVE)
    table = table.with_columns(
        pl.when(pl.col("kmalloc")).then(None).otherwise(pl.col("cache")).alias("cache"),
        pl.col("real").not_().and_(pl.col("fate") == FAILED).alias("failed"),
    )
    grouped = _grouped(table)
    peaks = _peaks(table)
    sizes = _lists(table.filter("real"), "bytes_req")
    uses = _uses(table)
    caches = _lists(table.filter(pl.col("real") & pl.col("cache").is_not_null()), "cache")
    freed = table.filter(pl.col("fate") == FREED)
    by, where = _lists(freed.with_columns(pl.col("then_kind").cast(pl.String)), "then_kind"), _lists(freed, "then_context")
    fallbacks = _fallbacks(table)
    names = call_sites(recording)
    in_task = _in_task(recording)
    found = []
    for row in grouped.iter_rows(named=True):
        key = (row["call_site"], row["kmalloc"])
        peak, peak_bytes = peaks.get(key, (0, 0))
        found.append(
            Site(
                key=key[0], name=site_name(key[0], names, symbols), kmalloc=key[1], cache=caches.get(key, {}), hits=row["hits"], failed=row["failed"],
                zero_size=row["zero_size"], bytes_req=row["bytes_req"], bytes_alloc=row["bytes_alloc"], sizes=sizes.get(key, {}), uses=uses[key],
                freed=row["freed"], reused=row["reused"], live=row["live"], live_bytes=row["live_bytes"], peak=peak, peak_bytes=peak_bytes,
                freed_by=by.get(key, {}), freed_in=where.get(key, {}), pids=row["pids"], cross_cpu=row["cross"], lifetime_mean=row["lifetime_mean"],
                fallbacks=fallbacks.get(key, 0), largest_failed=row["largest_failed"] or 0, in_task=in_task.get(key[0]),
            )
        )  # fmt: skip
    found.sort(key=lambda site: (-site.bytes_alloc, -site.failed, site.name, site.kmalloc))
    config, cmdline = recording.provenance.kernel_config, recording.provenance.cmdline
    accounted = config.get("MEMCG_KMEM", "y") == "y" and "nokmem" not in cmdline and "cgroup_disable=memory" not in cmdline
    small = table.filter(pl.col("real") & pl.col("kmalloc") & (pl.col("bytes_req") <= KMALLOC_MAX_CACHE_SIZE))
    return Traffic(tuple(found), table, summary, _objects(_held_at_peak(small), accounted), _objects(small, accounted), accounted, notes)


def requests_of(table: pl.DataFrame, site: Site) -> pl.DataFrame:
    """The site's allocations in their order, failed ones included."""
    return table.filter((pl.col("call_site") == site.key) & (pl.col("kmalloc") == site.kmalloc) & (pl.col("fate") != ZERO_SIZE)).sort("row")


def by_site(table: pl.DataFrame) -> dict[tuple[int, bool], pl.DataFrame]:
    """`requests_of` every site, at once."""
    some = table.filter(pl.col("fate") != ZERO_SIZE).sort("row")
    return {(key[0], key[1]): part for key, part in some.partition_by("call_site", "kmalloc", as_dict=True).items()}


def held_by(requests: pl.DataFrame) -> tuple[tuple[int, int, int], ...]:
    """What these allocations held when they held most bytes: size asked for, bytes given, number; the largest size first."""
    held = _held_at_peak(requests.filter("real"))
    counted = held.group_by("bytes_req", "bytes_alloc").len().sort(["bytes_req", "bytes_alloc"], descending=True)
    return tuple((int(size), int(given), int(number)) for size, given, number in counted.iter_rows())


def _in_task(recording: Recording) -> dict[int, tuple[int, int, int]]:
    """What the reader of trace text counted (``provenance.procfs["in_task"]``)."""
    found = {}
    for line in recording.provenance.procfs.get("in_task", "").splitlines():
        site, requests, atomic, may_sleep = map(int, line.split())
        found[site] = requests, atomic, may_sleep
    return found


def _grouped(table: pl.DataFrame) -> pl.DataFrame:
    fate = pl.col("fate")
    return table.group_by("call_site", "kmalloc").agg(
        pl.col("real").sum().cast(pl.Int64).alias("hits"),
        (fate == FAILED).sum().cast(pl.Int64).alias("failed"),
        pl.col("bytes_req").filter(fate == FAILED).max().alias("largest_failed"),
        (fate == ZERO_SIZE).sum().cast(pl.Int64).alias("zero_size"),
        pl.col("bytes_req", "bytes_alloc").filter("real").sum(),
        (fate == FREED).sum().cast(pl.Int64).alias("freed"),
        (fate == REUSED).sum().cast(pl.Int64).alias("reused"),
        (fate == LIVE).sum().cast(pl.Int64).alias("live"),
        pl.col("bytes_alloc").filter(fate == LIVE).sum().alias("live_bytes"),
        pl.col("cross").sum().cast(pl.Int64).alias("cross"),
        pl.col("pid").n_unique().cast(pl.Int64).alias("pids"),
        pl.col("lifetime").filter(fate == FREED).mean().alias("lifetime_mean"),
    )


def _steps(table: pl.DataFrame) -> pl.DataFrame:
    """Two rows for each object that was held: +1 when it was allocated, -1 when it ended; in the order of the events.

    Where an address is handed out again (reused), its old object ends at the event that begins the new one; the end comes first.
    """
    some = table.filter("real")
    begins = some.select("row", pl.lit(1, dtype=pl.Int64).alias("step"), "call_site", "kmalloc", "bytes_alloc")
    ends = some.filter(pl.col("then") >= 0).select(pl.col("then").alias("row"), pl.lit(-1, dtype=pl.Int64).alias("step"), "call_site", "kmalloc", "bytes_alloc")
    return pl.concat([begins, ends]).sort("row", "step")


def _peaks(table: pl.DataFrame) -> dict[tuple[int, bool], tuple[int, int]]:
    """By site: most objects, and most bytes, held at once."""
    over = ["call_site", "kmalloc"]
    held = (
        _steps(table)
        .with_columns(pl.col("step").cum_sum().over(over).alias("held"), (pl.col("step") * pl.col("bytes_alloc")).cum_sum().over(over).alias("bytes"))
        .group_by(over)
        .agg(pl.col("held").max(), pl.col("bytes").max())
    )
    return {(site, kmalloc): (objects, size) for site, kmalloc, objects, size in held.iter_rows()}


def _held_at_peak(table: pl.DataFrame) -> pl.DataFrame:
    """The objects that were held when these had most bytes together."""
    if not len(table):
        return table
    some = table.filter("real")
    given, ended = some["bytes_alloc"].to_numpy(), some["then"].to_numpy()
    ends = np.flatnonzero(ended >= 0)
    rows, change = np.concatenate([ended[ends], some["row"].to_numpy()]), np.concatenate([-given[ends], given])
    order = np.argsort(rows, kind="stable")  # at one row the end comes first, as in `_steps`
    row = int(rows[order][np.cumsum(change[order]).argmax()]) if len(rows) else 0
    return table.filter((pl.col("row") <= row) & ((pl.col("then") < 0) | (pl.col("then") > row)))


def _objects(table: pl.DataFrame, accounted: bool) -> Objects:
    counts: dict[int, dict[int, int]] = {}
    for gfp, size, number in table.group_by("gfp", "bytes_req").len().sort("gfp", "bytes_req").iter_rows():
        of_type = counts.setdefault(kmalloc_type(gfp, accounted), {})
        of_type[size] = of_type.get(size, 0) + number
    return Objects(counts)


def _lists(table: pl.DataFrame, column: str) -> dict[tuple[int, bool], dict[Any, int]]:
    """By site: the values of a column with their numbers, the most frequent first."""
    found: dict[tuple[int, bool], dict[Any, int]] = {}
    counted = table.group_by("call_site", "kmalloc", column).len().sort(["len", column], descending=[True, False])
    for site, kmalloc, value, number in counted.iter_rows():
        found.setdefault((site, kmalloc), {})[value] = number
    return found


def _uses(table: pl.DataFrame) -> dict[tuple[int, bool], tuple[Use, ...]]:
    counted = (
        table.group_by("call_site", "kmalloc", "gfp", "context")
        .agg(pl.len().alias("requests"), (pl.col("fate") == FAILED).sum().cast(pl.Int64).alias("failed"))
        .sort(["requests", "gfp", "context"], descending=[True, False, False])
    )
    found: dict[tuple[int, bool], list[Use]] = {}
    for site, kmalloc, gfp, context, requests, failed in counted.iter_rows():
        found.setdefault((site, kmalloc), []).append(Use(gfp & 0xFFFF_FFFF, context, requests, failed))
    return {key: tuple(uses) for key, uses in found.items()}


def _fallbacks(table: pl.DataFrame) -> dict[tuple[int, bool], int]:
    """By site: failed requests that the same task followed at once by a successful one of at least the size, from the same function's neighbourhood or not."""
    if not bool(table["failed"].any()):
        return {}
    following = pl.col("row").shift(-1).over("pid") - pl.col("row")
    enough = pl.col("real").shift(-1).over("pid") & (pl.col("bytes_req").shift(-1).over("pid") * 2 >= pl.col("bytes_req"))
    some = table.sort("row").with_columns((pl.col("failed") & enough & (following <= NEAR)).fill_null(False).alias("fallback"))
    counted = some.filter("fallback").group_by("call_site", "kmalloc").len()
    return {(site, kmalloc): number for site, kmalloc, number in counted.iter_rows()}
