"""What holds each page frame at a moment of a recording, and so which pageblocks can be emptied and what pins the others.

A page is movable if the kernel can put its contents elsewhere: it is on an LRU list, or a driver offers to move it (__PageMovable, mm/compaction.c). Everything else that is
not free stays where it is until its owner frees it. Whose it is: the slab cache by SLUB's tables, else the mm_page_alloc event that handed the frame out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.diagnose.cache_names import BULK, KMALLOCS
from mmtwin.diagnose.stat import CACHE_ALLOCS, FREES, call_sites, site_name
from mmtwin.gfp import gfp_names
from mmtwin.mm.slab_tables import SLAB_UNUSED
from mmtwin.mm.tables import PG_BUDDY, PG_LRU, PG_MOVABLE, PG_PCP, PG_SLAB, pageblock_rows, pageblock_starts
from mmtwin.recording.model import Recording, Snapshot
from mmtwin.recording.symbols import Symbols
from mmtwin.replay.moments import EARLIER, FREE, Moment
from mmtwin.units import PAGE_SHIFT

WHAT = (
    "no RAM", "free", "per-CPU list", "movable", "movable, not on the LRU", "slab", "page table", "vmalloc", "hugetlb", "pages", "no event",
    "before the recording",
)  # fmt: skip
"""What a frame is. "movable, not on the LRU": asked for with __GFP_MOVABLE, but not to be moved now (on its way to the LRU or off
it for a moment, or its owner keeps it to itself). "page table", "vmalloc" and "hugetlb" are told by the request's flags (`held_by_flags`). "no event": freed by the events and yet in use: taken by a bulk request, which no event announces, or on its way to a list. "before the
recording": not named by any event, so allocated before it, the kernel's own image included."""
NO_RAM, FREE_LIST, PCP_LIST, MOVABLE, MOVABLE_OFF_LRU, SLAB, PAGE_TABLE, VMALLOC, HUGETLB, PAGES, NO_EVENT, BEFORE = range(len(WHAT))
PINS = (MOVABLE_OFF_LRU, SLAB, PAGE_TABLE, VMALLOC, HUGETLB, PAGES, NO_EVENT, BEFORE)
"""What keeps a block from being emptied."""
GFP_HIGHMEM, GFP_MOVABLE, GFP_COMP, GFP_HARDWALL = 0x2, 0x8, 0x40000, 0x100000
GFP_HUGETLB = 0x244000
"""__GFP_RETRY_MAYFAIL | __GFP_COMP | __GFP_THISNODE: what mm/hugetlb.c asks for pages of its pool with."""
HUGETLB_ORDER = 9
GFP_PGTABLE_USER = 0x400DC0
"""GFP_KERNEL_ACCOUNT | __GFP_ZERO (include/asm-generic/pgalloc.h); newer kernels add __GFP_COMP."""
BY = {"callsite": "who", "pid": "PID", "gfp": "GFP flags"}
"""What pages can be added up by; "callsite" is the slab cache, the caller where the event names one, else flags and order."""
E820_RAM = (1, 128)

Int = npt.NDArray[np.int64]


class Frames(NamedTuple):
    """Every page frame of a machine at one moment.

    :param what: index into `WHAT`.
    :param owner: row of the mm_page_alloc event, `EARLIER` or `FREE` (replay/moments.py).
    :param cache: index into `caches`, -1 where the frame is no slab's.
    :param block: row of the pageblock table; `blocks` are that table's migrate types.
    """

    what: npt.NDArray[np.int8]
    owner: Int
    cache: npt.NDArray[np.int32]
    caches: list[str]
    block: Int
    blocks: npt.NDArray[np.int8]

    @property
    def pinned(self) -> npt.NDArray[np.bool_]:
        """Frames that cannot be moved."""
        return self.what >= MOVABLE_OFF_LRU

    def in_blocks_of(self, migratetype: int) -> npt.NDArray[np.bool_]:
        """Frames whose pageblock has this migrate type."""
        found: npt.NDArray[np.bool_] = self.blocks[self.block] == migratetype
        return found


def held_by_flags(gfp: Int, order: Int) -> npt.NDArray[np.int8]:
    """What a request's flags say that its pages are for.

    vmalloc adds __GFP_HIGHMEM to its callers' flags (mm/vmalloc.c, __vmalloc_area_node), which only user memory has besides (with __GFP_HARDWALL); page tables of processes are single
    pages for GFP_PGTABLE_USER (two for the uppermost table where the kernel has one of its own, mitigating Meltdown); hugetlb asks for its pool with __GFP_RETRY_MAYFAIL | __GFP_COMP | __GFP_THISNODE. Conclusions, not facts: a driver may ask with the same flags.
    """
    found = np.full(len(gfp), PAGES, dtype=np.int8)
    found[(gfp & GFP_HIGHMEM != 0) & (gfp & (GFP_MOVABLE | GFP_HARDWALL) == 0)] = VMALLOC
    found[(gfp & 0xFFFF_FFFF & ~GFP_COMP == GFP_PGTABLE_USER) & (order <= 1)] = PAGE_TABLE
    found[gfp & (GFP_MOVABLE | 0x10) == GFP_MOVABLE] = MOVABLE_OFF_LRU
    found[(gfp & GFP_HUGETLB == GFP_HUGETLB) & (order >= HUGETLB_ORDER)] = HUGETLB
    return found


class Requests(NamedTuple):
    """What is looked up for the owners of frames, by row of the events; rows that are no mm_page_alloc hold nothing.

    :param what: `held_by_flags`.
    """

    what: npt.NDArray[np.int8]


def requests_of(events: pl.DataFrame) -> Requests:
    """`Requests` of a recording's events."""
    what = np.zeros(len(events), dtype=np.int8)
    some = events.lazy().select("kind", "gfp", "order").with_row_index("row").filter(pl.col("kind") == "mm_page_alloc").collect()
    what[some["row"].to_numpy()] = held_by_flags(some["gfp"].to_numpy(), some["order"].to_numpy())
    return Requests(what)


def ram(snapshot: Snapshot, frames: int) -> npt.NDArray[np.bool_]:
    """Which page frames are RAM by the firmware's map."""
    found = np.zeros(frames, dtype=bool)
    for start, size, kind in snapshot.memory_map.select("start", "size", "type").iter_rows():
        if kind in E820_RAM:
            found[-(-start >> PAGE_SHIFT) : start + size >> PAGE_SHIFT] = True
    return found if found.any() else np.ones(frames, dtype=bool)


def frames_at(moment: Moment, recording: Recording, requests: Requests | None = None, named: SlabFrames | None = None) -> Frames:
    """What each page frame is at a moment.

    :param requests: `requests_of` the recording, if the caller has it already.
    :param named: slabs of a recording without slab events (`slab_frames`).
    """
    requests = requests_of(recording.events) if requests is None else requests
    state = moment.state
    n = int(state.config[0]["nr_frames"])
    flags, orders, owner = state.page["flags"][:n], state.page["order"][:n], moment.owner
    what = np.full(n, BEFORE, dtype=np.int8)
    what[owner == FREE] = NO_EVENT
    known = np.flatnonzero(owner >= 0)
    what[known] = requests.what[owner[known]]
    what[flags & (PG_LRU | PG_MOVABLE) != 0] = MOVABLE
    cache = np.full(n, -1, dtype=np.int32)
    caches = list(moment.cache_names)
    if moment.slub is not None:
        slab = np.flatnonzero(flags & PG_SLAB)
        rows = state.page["next"][slab]
        used = moment.slub.slab["state"][rows] != SLAB_UNUSED
        cache[slab[used]] = moment.slub.slab["cache"][rows[used]]
    elif named is not None:
        caches = named.names
        cache = named.at(owner)
    what[cache >= 0] = SLAB
    for flag, mine in ((PG_BUDDY, FREE_LIST), (PG_PCP, PCP_LIST)):
        heads = np.flatnonzero(flags & flag)
        for order in np.unique(orders[heads]).tolist():
            some = heads[orders[heads] == order]
            covered = (some[:, None] + np.arange(1 << order)).ravel()
            what[covered], cache[covered] = mine, -1
    inside = np.zeros(n, dtype=bool)
    for zone in state.zone:
        inside[int(zone["start_pfn"]) : int(zone["end_pfn"])] = True
    assert recording.before is not None
    what[~(inside & ram(recording.before, n)) & (what >= MOVABLE_OFF_LRU)] = NO_RAM
    return Frames(what, owner, cache, caches, pageblock_rows(state, np.arange(n, dtype=np.int64)), state.pageblock)


class SlabFrames(NamedTuple):
    """Slabs of a recording whose slab events were not recorded, by the two memory dumps.

    :param first: cache of each frame in the first dump (-1: none), which holds as long as no event named the frame; `last` in the second, which holds as soon as the frame's owner
        is the one it has at the end (`owner`).
    """

    names: list[str]
    first: npt.NDArray[np.int32]
    last: npt.NDArray[np.int32]
    owner: Int

    def at(self, owner: Int) -> npt.NDArray[np.int32]:
        """The cache of each frame at a moment, -1 where the dumps do not tell."""
        found = np.where(owner == EARLIER, self.first, -1)
        return np.where((owner >= 0) & (owner == self.owner), self.last, found).astype(np.int32)


def slab_frames(recording: Recording) -> SlabFrames | None:
    """What the dumps say of slabs; None where they have no slab tables."""
    from mmtwin.replay.moments import _page_events, follow

    before, after = recording.before, recording.after
    if before is None or not before.has_pages or before.slabs is None:
        return None
    n = before.scalars["max_pfn"]
    owner = np.full(n, EARLIER, dtype=np.int64)
    follow(owner, _page_events(recording.events))
    names: dict[str, int] = {}
    tables = [_caches_of(snapshot, n, names) for snapshot in (before, after)]
    return SlabFrames(list(names), tables[0], tables[1], owner)


def _caches_of(snapshot: Snapshot | None, n: int, names: dict[str, int]) -> npt.NDArray[np.int32]:
    found = np.full(n, -1, dtype=np.int32)
    if snapshot is None or snapshot.slabs is None or snapshot.caches is None:
        return found
    number = {key: names.setdefault(name, len(names)) for key, name in snapshot.caches.select("id", "name").iter_rows()}
    for pfn, order, cache in snapshot.slabs.select("pfn", "order", "cache").iter_rows():
        if cache in number:
            found[pfn : pfn + (1 << order)] = number[cache]
    return found


# Names for owners


@dataclass
class Owners:
    """Numbers and names for what holds frames.

    :ivar of_row: by row of the events, the number of its request's group; -1 for rows that are no mm_page_alloc.
    :ivar names: of the groups; those of slab caches and of `WHAT` are added when they are met.
    """

    by: str
    of_row: npt.NDArray[np.int32]
    names: list[str]
    _numbers: dict[str, int]

    def number(self, name: str) -> int:
        """A group's number."""
        found = self._numbers.get(name)
        if found is None:
            found = self._numbers[name] = len(self.names)
            self.names.append(name)
        return found

    def groups(self, frames: Frames, some: Int) -> Int:
        """The group of each of these frames."""
        what, owner = frames.what[some], frames.owner[some]
        fixed = np.array([self.number(f"({name})") for name in WHAT], dtype=np.int64)
        found = fixed[what]
        known = owner >= 0
        found[known] = self.of_row[owner[known]]
        if self.by == "callsite":
            cache = frames.cache[some]
            for number in np.unique(cache[cache >= 0]).tolist():
                found[cache == number] = self.number(f"slab {frames.caches[number]}")
        return found


def owners(recording: Recording, by: str = "callsite", symbols: Symbols | None = None) -> Owners:
    """Groups of a recording's page requests.

    :param by: one of `BY`.
    """
    events = recording.events
    some = events.lazy().select("kind", "gfp", "order", "pid", "call_site").with_row_index("row").filter(pl.col("kind") == "mm_page_alloc").collect()
    site = site_names(recording, symbols)
    keys = {"callsite": ["call_site", "gfp", "order"], "pid": ["pid"], "gfp": ["gfp"]}[by]
    if by == "callsite":
        named = pl.col("call_site") != 0
        some = some.with_columns(pl.when(named).then(-1).otherwise("gfp").alias("gfp"), pl.when(named).then(0).otherwise("order").alias("order"))
    some = some.with_columns(pl.struct(keys).rank("dense").cast(pl.Int64).alias("group") - 1)
    found = Owners(by, np.full(len(events), -1, dtype=np.int32), [], {})
    numbers = []
    for row in some.unique("group").sort("group").select(keys).iter_rows():
        numbers.append(found.number(_request_name(by, row, site)))
    if numbers:
        found.of_row[some["row"].to_numpy()] = np.array(numbers, dtype=np.int32)[some["group"].to_numpy()]
    return found


def _request_name(by: str, key: tuple[Any, ...], site_name: Callable[[int], str]) -> str:
    if by == "pid":
        return f"pid {key[0]}" if key[0] else "idle task or interrupt"
    if by == "gfp":
        return gfp_names(key[0] & 0xFFFF_FFFF)
    site, gfp, order = key
    if site:
        return site_name(site)
    what = int(held_by_flags(np.array([gfp]), np.array([order]))[0])
    text = f"order {order} {gfp_names(gfp & 0xFFFF_FFFF)}"
    return f"{WHAT[what]}: {text}" if what in (PAGE_TABLE, VMALLOC, HUGETLB) else text


# Pageblocks


class Pin(NamedTuple):
    """Frames of one owner in one place.

    :param who: the group's name (`Owners`), `frames` how many it holds there.
    :param pids: tasks that asked for them; empty where no event tells.
    :param oldest: age of the oldest in events, None where no event tells.
    :param sites: of slabs, the callers whose live objects are in it, with their numbers.
    """

    who: str
    frames: int
    pids: tuple[int, ...]
    oldest: int | None
    sites: tuple[tuple[str, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "who": self.who,
            "frames": self.frames,
            "pids": list(self.pids),
            "oldest_events": self.oldest,
            "call_sites": [list(pair) for pair in self.sites],
        }


def pins_in(
    frames: Frames, some: Int, moment: Moment, recording: Recording, groups: Owners, symbols: Symbols | None = None, sites_of: pl.DataFrame | None = None
) -> list[Pin]:
    """Who pins these frames, most frames first.

    :param some: pinned page frames.
    :param sites_of: `live_objects` of the moment, for the callers behind slabs.
    """
    group = groups.groups(frames, some)
    rows = frames.owner[some]
    pid = np.zeros(len(rows), dtype=np.int64)
    if len(recording.events):  # looked up for all frames at once
        pid = recording.events["pid"].gather(np.maximum(rows, 0)).to_numpy()
    site_name = site_names(recording, symbols) if sites_of is not None else str
    order = np.argsort(group, kind="stable")
    numbers, begins = np.unique(group[order], return_index=True)
    found = []
    for number, here in zip(numbers.tolist(), np.split(order, begins[1:]), strict=True):
        mine = here[rows[here] >= 0]
        known = rows[mine]
        pids = tuple(np.unique(pid[mine]).tolist())
        callers: tuple[tuple[str, int], ...] = ()
        if sites_of is not None and len(sites_of):
            callers_here = (
                sites_of.filter(pl.col("pfn").is_in(some[here].tolist())).group_by("call_site").len().sort("len", "call_site", descending=[True, False])
            )
            callers = tuple((site_name(site), count) for site, count in callers_here.head(3).iter_rows())
        found.append(Pin(groups.names[number], len(here), pids, int(moment.event - known.min()) if len(known) else None, callers))
    return sorted(found, key=lambda pin: (-pin.frames, pin.who))


def site_names(recording: Recording, symbols: Symbols | None = None) -> Callable[[int], str]:
    """How callers are named: as the trace text named them, else by symbols, else by their address."""
    known = call_sites(recording)
    return lambda site: site_name(site, known, symbols)


def function_of(site: str) -> str:
    """A caller's function: without offset and size, with its module."""
    name, plus, rest = site.partition("+")
    _, space, module = rest.partition(" ")
    return f"{name}{space}{module}" if plus else site


def object_events(recording: Recording) -> pl.DataFrame:
    """The slab events with their objects' page frames: row, ptr, pfn, call_site, got (an allocation, not a free). For `live_objects`."""
    schema = {"row": pl.Int64, "ptr": pl.Int64, "pfn": pl.Int64, "call_site": pl.Int64, "got": pl.Boolean}
    base = recording.before.scalars.get("page_offset_base") if recording.before is not None else None
    if base is None:
        return pl.DataFrame(schema=schema)
    base = base - (1 << 64) if base >> 63 else base
    some = [*KMALLOCS, *CACHE_ALLOCS, *FREES, *BULK]
    role = pl.when(pl.col("kind") != "slab_bulk_object").then(pl.col("kind")).forward_fill().over("cpu")  # an object stands behind its call's row, on that CPU
    return (
        recording.events.lazy()
        .select("cpu", "kind", "ptr", "call_site")
        .with_row_index("row")
        .filter(pl.col("kind").is_in(some))
        .with_columns(pl.when(pl.col("kind") == "slab_bulk_object").then(role).otherwise("kind").alias("role"))
        .filter((pl.col("kind") == "slab_bulk_object") | ~pl.col("kind").is_in(list(BULK)))
        .with_columns(((pl.col("ptr") - base) // (1 << PAGE_SHIFT)).alias("pfn"), pl.col("row").cast(pl.Int64))
        .with_columns(pl.col("role").is_in([*KMALLOCS, *CACHE_ALLOCS, "slab_bulk_got"]).alias("got"))
        .select(list(schema))
        .collect()
    )


def live_objects(recording: Recording, event: int, pfns: Iterable[int], events: pl.DataFrame | None = None) -> pl.DataFrame:
    """Objects in these frames that the slab events say are live just before an event: ptr, pfn, call_site, row (of the allocation).

    Objects older than the recording are not among them.

    :param events: `object_events` of the recording, if the caller has them already.
    """
    wanted = list(pfns)
    if not wanted:
        return pl.DataFrame(schema={"ptr": pl.Int64, "pfn": pl.Int64, "call_site": pl.Int64, "row": pl.Int64})
    events = object_events(recording) if events is None else events
    before = events.slice(0, int(events["row"].search_sorted(event, "left")))
    return before.filter(pl.col("pfn").is_in(wanted)).group_by("ptr", maintain_order=True).last().filter("got").select("ptr", "pfn", "call_site", "row")


class BlockRoom(NamedTuple):
    """The best aligned range of an order's size in one pageblock (or of several pageblocks, if the order is larger).

    :param pfn: its first frame; `block` its (first) row of the pageblock table.
    :param pinned: frames in it that cannot be moved; 0: compaction can empty it. `movable`: frames that would have to be moved. `free`: on buddy or per-CPU lists.
    :param whole: it is one free block already, or part of one.
    """

    pfn: int
    block: int
    pinned: int
    movable: int
    free: int


def rooms(frames: Frames, order: int, first: int, last: int) -> list[BlockRoom]:
    """For each pageblock between two frames, its aligned range of 2^order frames that fewest pages pin (of those the one with fewest to move).

    :param first: first frame of the zone, `last` the one behind it. Ranges that are not wholly in it or not wholly RAM are left out.
    """
    size = 1 << order
    start = -(-first >> order) << order
    count = max(0, (min(last, len(frames.what)) - start) >> order)
    if not count:
        return []
    what = frames.what[start : start + (count << order)].reshape(count, size)
    lost = (what == NO_RAM).any(axis=1)
    pinned, free = (what >= MOVABLE_OFF_LRU).sum(axis=1), ((what == FREE_LIST) | (what == PCP_LIST)).sum(axis=1)
    chosen = np.flatnonzero(~lost)
    pinned, free = pinned[chosen], free[chosen]
    movable, pfn = size - pinned - free, start + (chosen << order)
    block = frames.block[pfn]
    best = np.lexsort((pfn, movable, pinned))
    _, once = np.unique(block[best], return_index=True)  # sorted by goodness, so the first of each block is its best
    best = best[np.sort(once)]
    columns = (pfn, block, pinned, movable, free)
    return [BlockRoom(*row) for row in zip(*(column[best].tolist() for column in columns), strict=True)]


__all__ = (
    "BY",
    "PINS",
    "WHAT",
    "Frames",
    "Owners",
    "Pin",
    "Requests",
    "SlabFrames",
    "frames_at",
    "live_objects",
    "object_events",
    "owners",
    "pageblock_starts",
    "pins_in",
    "requests_of",
    "rooms",
    "slab_frames",
)  # fmt: skip
