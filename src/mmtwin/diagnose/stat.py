"""Who asks for memory, who wastes it and who keeps it: the sums of ``perf kmem stat``, with what they leave out.

An allocation and a free belong together if they name the same address and no other event names it between them. So each allocation ends
in one of few ways: freed; *reused*, when its address was handed out again though no free was recorded (bulk frees and frees by RCU raise no
event, and trace buffers lose some); or live at the end. A free without its allocation is *unmatched*: the object is older than
the recording, or came from a silent bulk allocation. Both numbers are told, as every sum that mixes allocations and frees depends on them.

perf kmem's own columns are kept by their meaning (tools/perf/builtin-kmem.c); docs/stat.md lists where the numbers differ, and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.diagnose.cache_names import BULK, KMALLOCS, cache_label, describe_bulk, with_caches
from mmtwin.diagnose.malloc_stat import objects
from mmtwin.errors import RequestError
from mmtwin.notebook import Card, InNotebook, Table, readable_size
from mmtwin.recording.model import KIND, KINDS, Recording
from mmtwin.recording.symbols import Symbols

CACHE_ALLOCS = ("kmem_cache_alloc", "kmem_cache_alloc_node")
FREES = ("kfree", "kmem_cache_free")
ZERO_SIZE_PTR = 16  # include/linux/slab.h: what kmalloc(0) returns
BULK_SITE = "(kmem_cache_alloc_bulk)"

LIVE, FREED, REUSED, FAILED, ZERO_SIZE, WITHHELD = range(6)
"""How an allocation ended. `FAILED`: NULL. `ZERO_SIZE`: no memory asked for. `WITHHELD`: the text printed no address."""


GROUPS: Mapping[str, str] = {
    "callsite": "Callsite", "function": "Function", "cache": "Cache", "ptr": "Address", "size": "Requested", "pid": "PID", "cpu": "CPU", "gfp": "GFP flags",
    "node": "Node",
}  # fmt: skip
"""What objects can be added up by, and the heading of that column."""
COLUMNS_BY = {"cache": ("gfp", "name"), "pid": ("pid",), "gfp": ("gfp",), "node": ("node",), "*": ("gfp", "name", "context", "pid")}
SORT: Mapping[str, str] = {
    "bytes": "bytes_alloc", "requested": "bytes_req", "hit": "hits", "frag": "frag_percent", "waste": "waste_bytes", "pingpong": "pingpong",
    "live": "live_bytes", "reused": "reused", "failed": "failed", "lifetime": "lifetime_mean", "age": "age_oldest",
}  # fmt: skip
"""Sort keys and their columns, largest first; the name of the group itself sorts too, smallest first."""
DEFAULT_SORT, DEFAULT_SORT_LIVE = ("bytes",), ("live",)

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SlabSummary:
    """Sums over everything recorded (or over the time asked for). Bytes are of successful allocations.

    :ivar failed: requests answered with NULL; `zero_size`: of no bytes at all. Neither is among `allocations`.
    :ivar frees: of real objects, bulk ones included; = frees_matched + frees_of_earlier + frees_unmatched.
    :ivar frees_of_earlier: the allocation was recorded, but before the time asked for.
    :ivar frees_unmatched: the allocation is not in the recording; `frees_unmatched_again`: of these, those whose address had been freed
        before, so the object came from a silent allocation in between (or it is a double free).
    :ivar reused: allocations whose address was given out again without a recorded free: freed silently.
    :ivar net_bytes: growth of allocated bytes; None unless every free has its allocation and the other way round.
    :ivar cross_cpu_frees: freed on another CPU than allocated.
    :ivar tasks_only: only some tasks were recorded: frees by others, by kernel threads and by RCU are missing, so what seems live may be free.
    :ivar bulk_allocations: of `allocations`, those by kmem_cache_alloc_bulk (only recordings with the recorder's slab probes know them).
    """

    allocations: int
    failed: int
    zero_size: int
    bytes_requested: int
    bytes_allocated: int
    waste_bytes: int
    frag_percent: float
    frees: int
    frees_matched: int
    bytes_freed: int
    frees_of_earlier: int
    frees_unmatched: int
    frees_unmatched_again: int
    frees_of_null: int
    frees_of_zero_size: int
    reused: int
    reused_bytes: int
    live: int
    live_bytes: int
    live_bytes_requested: int
    net_bytes: int | None
    cross_cpu_frees: int
    bulk_allocations: int
    bulk_frees: int
    withheld: int
    tasks_only: bool = False


@dataclass(frozen=True)
class StatResult(InNotebook):
    """What `stat` and `page_stat` return.

    :ivar what: "slab" or "page".
    :ivar rows: one row per group, sorted; its first column is the group's name as text (`label`), the second its value (`key`).
    :ivar clock: unit of lifetimes and ages: "ns", or "events" if the trace clock was a counter.
    """

    what: str
    by: str
    sort: tuple[str, ...]
    live: bool
    clock: str
    start: int
    end: int
    summary: Any
    rows: pl.DataFrame
    notes: list[str] = field(default_factory=list)

    def to_dict(self, lines: int = 0) -> dict[str, Any]:
        """Plain data; `lines` limits the rows, 0 means all."""
        rows = self.rows.head(lines) if lines else self.rows
        return {
            "what": self.what, "by": self.by, "sort": list(self.sort), "live": self.live, "clock": self.clock, "from": self.start, "to": self.end,
            "summary": asdict(self.summary), "rows_total": len(self.rows), "rows": rows.to_dicts(), "notes": self.notes,
        }  # fmt: skip

    def _card(self) -> Card:
        size = "bytes" if self.what == "page" else "bytes_alloc"
        rows = [
            (row["label"], readable_size(row[size]), f"{row['hits']:,}", readable_size(row["live_bytes"]), f"{row['failed']:,}")
            for row in self.rows.select("label", size, "hits", "live_bytes", "failed").iter_rows(named=True)
        ]
        sums = [
            (name.replace("_", " "), "unknown" if value is None else f"{value:,}")
            for name, value in asdict(self.summary).items()
            if isinstance(value, int | None)
        ]
        about = [row for row in sums if row[1] != "0"][:8]
        table = Table((self.by, "allocated", "requests", "live", "refused"), rows)
        return Card(f"{'Pages' if self.what == 'page' else 'Objects'} by {self.by}", about, [table], self.notes)


def stat(
    recording: Recording,
    by: str = "callsite",
    *,
    sort: Sequence[str] = (),
    live: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    symbols: Symbols | None = None,
    raw_ip: bool = False,
) -> StatResult:
    """Adds up a recording's slab events.

    :param by: one of `GROUPS`.
    :param sort: keys of `SORT` or the name of the group, the most important first; default: bytes allocated, with `live` bytes live.
    :param live: only groups with objects that are live at the end: what may be leaking.
    :param window: first and last time on the trace clock. Objects are paired over the whole recording up to the last time; only
        what happens inside the window is counted.
    :param symbols: names for call sites that are addresses.
    :param raw_ip: call sites as addresses, without names; trace text that names them by symbols has no addresses.
    :returns: rows with columns label, key, hits, bytes_alloc, bytes_req, waste_bytes, frag_percent, pingpong, freed, reused, failed, live,
        live_bytes, live_bytes_requested, lifetime_mean, age_oldest, age_youngest (null where nothing was freed, or nothing is live).
    :raises RequestError: an unknown group or sort key, a window without slab events, or `raw_ip` where there are no addresses.
    """
    check_choice("group", by, GROUPS)
    keys = sort_keys(sort, by, SORT, DEFAULT_SORT_LIVE if live else DEFAULT_SORT)
    check_raw_ip(recording, raw_ip)
    recording, allocations, summary, (start, end), notes = _paired(recording, by, window)
    rows = _grouped(allocations, by, recording, notes, symbols if not raw_ip else None, window[1] is None, raw_ip)
    if live:
        rows = rows.filter(pl.col("live") > 0)
    return StatResult("slab", by, keys, live, clock(recording), start, end, summary, sorted_rows(rows, keys, by, SORT), notes)


def _paired(recording: Recording, by: str, window: tuple[int | None, int | None]) -> tuple[Recording, pl.DataFrame, SlabSummary, tuple[int, int], list[str]]:
    """What `stat` groups: the recording as one of objects, its allocations with how they ended, the sums, the window's times, and notes."""
    if recording.provenance.how == "malloc":
        recording = objects(recording)
    events = _slab_events(recording, by)
    if not len(events):
        raise RequestError("no slab events: no kmalloc, kfree or kmem_cache events were recorded; mmtwin record --slab adds them, --page adds up pages")
    notes = reading_notes(recording)
    start, end = event_window(events["time"], window)
    if window[1] is not None:  # what happens later is not known at that time
        events = events.filter(pl.col("time") <= end)
    allocations, summary = _pair(events, (events["time"] >= start).to_numpy(), end, _withheld(recording), tasks_only(recording))
    if summary.withheld:
        notes.append(
            f"{summary.withheld:,} addresses were withheld in the trace text: whether those objects were freed is unknown; trace with no_hash_pointers"
        )
    if by == "ptr" and summary.withheld:
        allocations = allocations.filter(pl.col("fate") != WITHHELD)
    if unknown := int((allocations["bulk"] & (allocations["bytes_alloc"] == 0)).sum()):
        notes.append(f"the cache of {unknown:,} objects from bulk allocations is unknown; they count as 0 bytes")
    return recording, allocations, summary, (start, end), notes


def by_cache_and_site(recording: Recording, symbols: Symbols | None = None) -> tuple[StatResult, pl.DataFrame]:
    """Sums by call site, and by cache, function and call site together.

    :param symbols: names for call sites that are addresses.
    :returns: what `stat` returns, and a table with columns cache, function, site, bytes, live_bytes, waste_bytes, hits.
    :raises RequestError: there are no slab events.
    """
    recording, allocations, summary, (start, end), notes = _paired(recording, "cache", (None, None))
    rows = sorted_rows(_grouped(allocations, "callsite", recording, notes, symbols, True, False), DEFAULT_SORT, "callsite", SORT)
    result = StatResult("slab", "callsite", DEFAULT_SORT, False, clock(recording), start, end, summary, rows, notes)
    keys = ["kmalloc", "type", "class", "cache"]
    real = pl.col("real")
    sums = (
        with_caches(allocations, recording, notes, pl.col("fate") == LIVE)
        .group_by([*keys, "call_site"])
        .agg(
            pl.col("bytes_alloc").filter(real).sum().alias("bytes"),
            pl.col("bytes_alloc").filter(pl.col("fate") == LIVE).sum().alias("live_bytes"),
            (pl.col("bytes_alloc") - pl.col("bytes_req")).filter(real).sum().alias("waste_bytes"),
            real.sum().cast(pl.Int64).alias("hits"),
        )
        .filter(pl.col("hits") > 0)
    )
    known = call_sites(recording)
    sites = [site_name(value, known, symbols) for value in sums["call_site"]]
    return result, sums.select(
        pl.Series("cache", [cache_label(*row) for row in sums.select(keys).iter_rows()], dtype=pl.String),
        pl.Series("function", [_function(site) for site in sites], dtype=pl.String),
        pl.Series("site", sites, dtype=pl.String),
        "bytes", "live_bytes", "waste_bytes", "hits",
    )  # fmt: skip


def allocations(recording: Recording) -> tuple[pl.DataFrame, SlabSummary]:
    """Every allocation with how it ended, and the sums over them; for those who want more than sums.

    Beside the events' own columns (time, cpu, kind, call_site, ptr, bytes_req, bytes_alloc, gfp, name, context, pid): ``fate`` (`LIVE` and so on), ``real``
    (it got memory), ``row`` and ``then``, the positions among the recording's slab events of the allocation and of the event that ended it (-1: none), and
    of that event ``then_kind``, ``then_cpu`` and ``then_context``.

    :raises RequestError: no slab events were recorded.
    """
    events = _slab_events(recording, "*")
    if not len(events):
        raise RequestError("no slab events: no kmalloc, kfree or kmem_cache events were recorded; mmtwin record --slab adds them")
    end = events["time"].max()
    assert isinstance(end, int)
    table, summary = _pair(events, np.ones(len(events), dtype=bool), end, _withheld(recording), tasks_only(recording))
    ended = events.select(pl.col("kind").alias("then_kind"), pl.col("cpu").alias("then_cpu"), pl.col("context").alias("then_context"))
    return pl.concat([table, ended[table["then"].to_numpy().clip(0)]], how="horizontal"), summary


def leaks(recording: Recording, by: str = "callsite", *, window: tuple[int | None, int | None] = (None, None), symbols: Symbols | None = None) -> StatResult:
    """What was allocated in the recording and is live at its end, most bytes first, with the ages of the oldest and the youngest object.

    The parameters and errors are those of `stat`.
    """
    return stat(recording, by, live=True, window=window, symbols=symbols)


def clock(recording: Recording) -> str:
    """Unit of the recording's times: "events" for a counter, else "ns".

    The recorder uses the clock "counter". Trace text does not say what clock it is from: seconds with six digits become whole
    microseconds, and with nine digits pass one second soon after boot; anything else counts.
    """
    if recording.provenance.how in ("vm", "malloc"):
        return "events"
    if trace_clock := recording.provenance.procfs.get("trace_clock"):
        return "events" if trace_clock == "counter" else "ns"
    times = recording.events["time"]
    if recording.provenance.how != "ftrace" or not len(times):
        return "ns"
    highest = times.max()
    return "ns" if bool((times % 1000 == 0).all()) or (isinstance(highest, int) and highest >= 1_000_000_000) else "events"


def check_choice(what: str, value: str, choices: Mapping[str, str]) -> None:
    """:raises RequestError: `value` is none of `choices`."""
    if value not in choices:
        raise RequestError(f"unknown {what} {value!r}; expected one of: {', '.join(choices)}")


def sort_keys(sort: Sequence[str], by: str, columns: Mapping[str, str], default: tuple[str, ...]) -> tuple[str, ...]:
    """The sort keys, checked.

    :raises RequestError: an unknown key.
    """
    for key in sort:
        if key != by:
            check_choice("sort key", key, {**columns, by: by})
    return tuple(sort) or default


def sorted_rows(rows: pl.DataFrame, keys: Sequence[str], by: str, columns: Mapping[str, str]) -> pl.DataFrame:
    """Sorted by the keys, then by name, so that the order is always the same."""
    names = ["key" if key == by and key not in columns else columns[key] for key in keys]
    descending = [not (key == by and key not in columns) for key in keys]
    return rows.sort([*names, "label"], descending=[*descending, False], nulls_last=True)


def _slab_events(recording: Recording, by: str) -> pl.DataFrame:
    """The rows about objects, with the columns that this grouping needs: there may be many millions."""
    kind = pl.col("kind")
    columns = ["time", "cpu", "kind", "call_site", "ptr", "bytes_req", "bytes_alloc", *COLUMNS_BY.get(by, ())]
    if not (recording.events["kind"] == "slab_bulk_object").any():
        return recording.events.lazy().filter(kind.is_in([*KMALLOCS, *CACHE_ALLOCS, *FREES])).select(columns).collect()
    columns += [column for column in ("pid", "context", "name") if column not in columns]
    return describe_bulk(recording.events.lazy().filter(kind.is_in([*KMALLOCS, *CACHE_ALLOCS, *FREES, *BULK])).select(columns).collect(), recording)


def reading_notes(recording: Recording) -> list[str]:
    """What makes the sums less certain: lost events, and what the reader of trace text had to say."""
    lost = recording.provenance.lost_events
    notes = [f"the trace buffer lost {lost:,} events: sums are too low, and some objects that seem live or unmatched are not"] if lost else []
    notes += [TASKS_ONLY] if tasks_only(recording) else []
    return notes + [note for note in recording.provenance.notes if not note.startswith(("call sites are", "the trace buffer lost"))]


TASKS_ONLY = (
    "only some tasks were recorded: frees by other tasks, by kernel threads and by RCU outside of them are missing, so what seems live may be free by now"
    " (perf record -a records all)"
)


def tasks_only(recording: Recording) -> bool:
    """Whether the recording is of some tasks, not of the machine."""
    return recording.provenance.scope == "tasks"


def _withheld(recording: Recording) -> bool:
    return any("pointers were withheld" in note for note in recording.provenance.notes)


def event_window(times: pl.Series, window: tuple[int | None, int | None]) -> tuple[int, int]:
    """First and last time looked at.

    :raises RequestError: no event is between.
    """
    first, last = times.min(), times.max()
    assert isinstance(first, int) and isinstance(last, int)
    start, end = (first if window[0] is None else window[0]), (last if window[1] is None else window[1])
    if not times.is_between(start, end).any():
        raise RequestError(f"no events between {start} and {end}: the recording's times are {first} to {last}")
    return start, end


def following(key: Int, rows: Int) -> tuple[Int, Int]:
    """For each row that `rows` names: the next and the previous of them with the same key, -1 where there is none.

    :returns: two arrays as long as `key`.
    """
    by_key = pl.DataFrame({"key": key[rows], "row": rows}).sort("key", maintain_order=True)
    order, sorted_key = by_key["row"].to_numpy(), by_key["key"].to_numpy()
    same = sorted_key[1:] == sorted_key[:-1]
    later, earlier = np.full(len(key), -1, dtype=np.int64), np.full(len(key), -1, dtype=np.int64)
    later[order[:-1][same]], earlier[order[1:][same]] = order[1:][same], order[:-1][same]
    return later, earlier


def _is_allocation(events: pl.DataFrame) -> tuple[Bool, Bool, Bool]:
    """Which rows allocate, which free, and which of both are objects of bulk calls."""
    kind = events["kind"].to_physical().to_numpy()
    allocates, frees = np.zeros(len(KINDS), dtype=bool), np.zeros(len(KINDS), dtype=bool)
    allocates[[KIND[name] for name in (*KMALLOCS, *CACHE_ALLOCS)]] = True
    frees[[KIND[name] for name in FREES]] = True
    allocates, frees, bulk = allocates[kind], frees[kind], kind == KIND["slab_bulk_object"]
    if bulk.any():  # an object stands behind its call's row, on that CPU
        is_object = pl.col("kind") == "slab_bulk_object"
        role = events.select(pl.when(~is_object).then(pl.col("kind").cast(pl.String)).forward_fill().over("cpu").alias("role"))["role"]
        allocates |= bulk & (role == "slab_bulk_got").fill_null(False).to_numpy()
        frees |= bulk & (role == "slab_bulk_free").fill_null(False).to_numpy()
    return allocates, frees, bulk


def _pair(events: pl.DataFrame, inside: Bool, end: int, withheld: bool, some_tasks: bool) -> tuple[pl.DataFrame, SlabSummary]:
    """Every allocation inside the window with how it ended, and the sums."""
    allocates, frees, bulk = _is_allocation(events)
    ptr, time, cpu = events["ptr"].to_numpy(), events["time"].to_numpy(), events["cpu"].to_numpy()
    nowhere, zero_size = ptr == 0, ptr == ZERO_SIZE_PTR
    later, earlier = following(ptr, np.flatnonzero((allocates | frees) & ~nowhere & ~zero_size))
    ended = later >= 0
    fate = np.where(ended & frees[later], FREED, np.where(ended, REUSED, LIVE)).astype(np.uint8)
    fate[zero_size] = ZERO_SIZE
    fate[nowhere] = WITHHELD if withheld else FAILED
    wanted = allocates & inside
    chosen = np.flatnonzero(wanted)
    fate, then = fate[chosen], later[chosen]
    freed = fate == FREED
    lifetime = np.where(freed, time[then] - time[chosen], 0)
    age = np.where(fate == LIVE, end - time[chosen], 0)
    table = events.filter(pl.Series(wanted)).with_columns(
        pl.Series("fate", fate),
        pl.Series("real", (fate != FAILED) & (fate != ZERO_SIZE)),
        pl.Series("cross", freed & (cpu[then] != cpu[chosen])),
        pl.Series("lifetime", lifetime),
        pl.Series("age", age),
        pl.Series("bulk", bulk[chosen]),
        pl.Series("row", chosen),
        pl.Series("then", then),
    )
    if "name" in events.columns:
        table = table.with_columns(_names(events["name"], table["name"], np.where(freed, then, -1)))
    return table, _summary(table, events, inside, frees, bulk, (nowhere, zero_size), earlier, allocates, withheld, some_tasks)


def _names(every: pl.Series, own: pl.Series, freed_by: Int) -> pl.Series:
    """The cache's name: as the allocation itself printed it (new kernels do), else as its free did (a row, -1 if there is none)."""
    if not len(own):
        return own
    own_or_free = pl.DataFrame({"name": own, "free": every.gather(pl.Series(np.maximum(freed_by, 0))), "freed": freed_by >= 0})
    return own_or_free.select(pl.coalesce("name", pl.when("freed").then("free")).alias("name"))["name"]


def _summary(
    table: pl.DataFrame,
    events: pl.DataFrame,
    inside: Bool,
    frees: Bool,
    bulk: Bool,
    special: tuple[Bool, Bool],
    earlier: Int,
    allocates: Bool,
    withheld: bool,
    some_tasks: bool,
) -> SlabSummary:
    nowhere, zero_size = special
    fate = pl.col("fate")
    sums = table.select(
        allocations=pl.col("real").sum(),
        failed=(fate == FAILED).sum(),
        zero_size=(fate == ZERO_SIZE).sum(),
        requested=pl.col("bytes_req").filter("real").sum(),
        allocated=pl.col("bytes_alloc").filter("real").sum(),
        matched=(fate == FREED).sum(),
        freed=pl.col("bytes_alloc").filter(fate == FREED).sum(),
        reused=(fate == REUSED).sum(),
        reused_bytes=pl.col("bytes_alloc").filter(fate == REUSED).sum(),
        live=(fate == LIVE).sum(),
        live_bytes=pl.col("bytes_alloc").filter(fate == LIVE).sum(),
        live_requested=pl.col("bytes_req").filter(fate == LIVE).sum(),
        cross=pl.col("cross").sum(),
        bulk=(pl.col("bulk") & pl.col("real")).sum(),
        withheld=(fate == WITHHELD).sum(),
    ).row(0, named=True)
    here = frees & inside
    unknown = here & nowhere if withheld else np.zeros(len(here), dtype=bool)
    real = here & ~zero_size & (~nowhere | unknown)
    before = earlier >= 0
    unmatched = real & ~(before & allocates[earlier])
    matched_all = int(real.sum() - unmatched.sum())
    net_known = not unmatched.any() and not sums["reused"] and not sums["withheld"] and matched_all == sums["matched"]
    net_known = net_known and not (some_tasks and sums["live"])
    return SlabSummary(
        allocations=sums["allocations"],
        failed=sums["failed"],
        zero_size=sums["zero_size"],
        bytes_requested=sums["requested"],
        bytes_allocated=sums["allocated"],
        waste_bytes=sums["allocated"] - sums["requested"],
        frag_percent=frag_percent(sums["requested"], sums["allocated"]),
        frees=int(real.sum()),
        frees_matched=sums["matched"],
        bytes_freed=sums["freed"],
        frees_of_earlier=matched_all - sums["matched"],
        frees_unmatched=int(unmatched.sum()),
        frees_unmatched_again=int((unmatched & before).sum()),
        frees_of_null=int((here & nowhere & ~unknown).sum()),
        frees_of_zero_size=int((here & zero_size).sum()),
        reused=sums["reused"],
        reused_bytes=sums["reused_bytes"],
        live=sums["live"],
        live_bytes=sums["live_bytes"],
        live_bytes_requested=sums["live_requested"],
        net_bytes=sums["allocated"] - sums["freed"] if net_known else None,
        cross_cpu_frees=sums["cross"],
        bulk_allocations=sums["bulk"],
        bulk_frees=int((here & bulk & ~nowhere).sum()),
        withheld=sums["withheld"] + int(unknown.sum()),
        tasks_only=some_tasks,
    )


def frag_percent(requested: int, allocated: int) -> float:
    """Share of the allocated bytes that nobody asked for, in percent (perf kmem's "fragmentation")."""
    return 100.0 * (allocated - requested) / allocated if allocated else 0.0


def _grouped(
    table: pl.DataFrame, by: str, recording: Recording, notes: list[str], symbols: Symbols | None, to_the_end: bool, raw_ip: bool = False
) -> pl.DataFrame:
    """Sums per group, with the groups' names."""
    sites = call_sites(recording, raw_ip)
    keys: list[str]
    extra: list[pl.Expr] = []
    match by:
        case "callsite":
            keys = ["call_site"]
        case "function":
            unique = table["call_site"].unique()
            functions = [_function(site_name(value, sites, symbols)) for value in unique]
            numbers = {name: number for number, name in enumerate(dict.fromkeys(functions))}
            table = table.with_columns(
                pl.col("call_site").replace_strict(unique, [numbers[name] for name in functions], return_dtype=pl.Int64).alias("function")
            )
            keys = ["function"]
        case "cache":
            table = with_caches(table, recording, notes, pl.col("fate") == LIVE if to_the_end else None)
            keys = ["kmalloc", "type", "class", "cache"]
        case "ptr":
            keys, extra = ["ptr"], [pl.col("call_site").last().alias("last_call_site")]
        case "size":
            table, keys = table.filter("real"), ["bytes_req"]
        case _:
            keys = [by]
    fate = pl.col("fate")
    grouped = (
        table.lazy()
        .group_by([pl.col(key).alias(f"key {key}") for key in keys])
        .agg(
            pl.col("real").sum().cast(pl.Int64).alias("hits"),
            pl.col("bytes_alloc", "bytes_req").filter("real").sum(),
            pl.col("cross").sum().cast(pl.Int64).alias("pingpong"),
            (fate == FREED).sum().cast(pl.Int64).alias("freed"),
            (fate == REUSED).sum().cast(pl.Int64).alias("reused"),
            (fate == FAILED).sum().cast(pl.Int64).alias("failed"),
            (fate == LIVE).sum().cast(pl.Int64).alias("live"),
            pl.col("bytes_alloc").filter(fate == LIVE).sum().alias("live_bytes"),
            pl.col("bytes_req").filter(fate == LIVE).sum().alias("live_bytes_requested"),
            pl.col("lifetime").filter(fate == FREED).mean().alias("lifetime_mean"),
            pl.col("age").filter(fate == LIVE).max().alias("age_oldest"),
            pl.col("age").filter(fate == LIVE).min().alias("age_youngest"),
            *extra,
        )
        .with_columns(
            (pl.col("bytes_alloc") - pl.col("bytes_req")).alias("waste_bytes"),
            pl.when(pl.col("bytes_alloc") > 0)
            .then(100.0 * (pl.col("bytes_alloc") - pl.col("bytes_req")) / pl.col("bytes_alloc"))
            .otherwise(0.0)
            .alias("frag_percent"),
        )
        .collect()
    )
    values = list(grouped.select([f"key {key}" for key in keys]).iter_rows())
    texts: list[str]
    key: list[Any]
    if by == "function":
        by_number = {number: name for name, number in numbers.items()}
        texts = [by_number[value] for (value,) in values]
        key = texts
    elif by == "cache":
        texts = [cache_label(*value) for value in values]
        key = texts
    else:
        key = [value for (value,) in values]
        if by == "callsite":
            texts = [site_name(value, sites, symbols) for value in key]
        elif by == "ptr":
            texts = [f"{value & (1 << 64) - 1:#x}" for value in key]
        elif by == "gfp":
            from mmtwin.gfp import gfp_names

            texts = [gfp_names(value & 0xFFFF_FFFF) for value in key]
        else:
            texts = [str(value) for value in key]
    last = [pl.Series("last_call_site", [site_name(value, sites, symbols) for value in grouped["last_call_site"]], dtype=pl.String)] if by == "ptr" else []
    columns = (
        "hits", "bytes_alloc", "bytes_req", "waste_bytes", "frag_percent", "pingpong", "freed", "reused", "failed", "live", "live_bytes", "live_bytes_requested",
        "lifetime_mean", "age_oldest", "age_youngest",
    )  # fmt: skip
    dtype = pl.String if by in ("function", "cache") else pl.Int64
    labels = [pl.Series("label", texts, dtype=pl.String), pl.Series("key", key, dtype=dtype)]
    return grouped.with_columns(*labels, *last).select("label", "key", *columns, *(["last_call_site"] if last else []))


def call_sites(recording: Recording, raw_ip: bool = False) -> dict[int, str]:
    """Names of call sites: symbols that trace text printed, by the number the recording has in their place, and names that the reader or the recorder
    knew for addresses (not with `raw_ip`)."""
    printed = _numbered(recording.provenance.procfs.get("call_sites", ""), 10)
    resolved = {} if raw_ip else _numbered(recording.provenance.procfs.get("symbols", ""), 16)
    return {**resolved, **printed, **({0: "(none)"} if printed else {})}


def check_raw_ip(recording: Recording, raw_ip: bool) -> None:
    """:raises RequestError: addresses are wanted where there are none."""
    if raw_ip and recording.provenance.procfs.get("call_sites"):
        raise RequestError("no raw call sites: this trace text names its call sites by symbols, without addresses")


def _numbered(text: str, base: int) -> dict[int, str]:
    """Lines "number name"; numbers with their highest of 64 bits set are negative in the table."""
    found = {}
    for line in text.splitlines():
        number, _, symbol = line.partition(" ")
        try:
            value = int(number, base)
        except ValueError:
            continue
        if symbol and 0 < value < 1 << 64:
            found[value - (1 << 64) if value >> 63 else value] = symbol
    return found


def site_name(value: int, sites: Mapping[int, str], symbols: Symbols | None) -> str:
    """What a call site is called: its symbol, else its address; 0, where nothing else is said of it, is a bulk allocation."""
    if value in sites:
        return sites[value]
    if value == 0:
        return BULK_SITE
    resolved = symbols.resolve(value) if symbols else None
    return resolved or f"{value & (1 << 64) - 1:#x}"


def _function(site: str) -> str:
    """A call site's function: without offset and size, with its module."""
    name, plus, rest = site.partition("+")
    _, space, module = rest.partition(" ")
    return f"{name}{space}{module}" if plus else site
