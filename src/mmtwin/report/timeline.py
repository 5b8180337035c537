"""The machine at moments spread over a recording: free blocks, caches, what holds each page frame. One replay, one look per moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mmtwin.gfp import MIGRATE_TYPES, MIGRATETYPE_NAMES
from mmtwin.mm.slab_tables import ALLOCATED, MAX_CACHES, SLAB_UNUSED, Slub
from mmtwin.mm.tables import NR_ORDERS
from mmtwin.mm.validate import FreeBlocks, free_blocks, pcp_blocks, walk_lists
from mmtwin.recording.model import Recording
from mmtwin.replay.moments import Moment, moments
from mmtwin.report.holders import CLASS, CLASSES, Holders
from mmtwin.report.page_map import PageMap

Int = npt.NDArray[np.int64]

ANSWERED = ("page_allocs", "page_allocs_equal", "failed_allocs", "failed_allocs_equal", "bulk_pages", "frees", "slab_allocs", "slab_allocs_equal")
"""What the replay counted, by the names of ``mmtwin replay --json``."""


Look = Callable[[Moment], None]
"""Looks at the twin at one moment and keeps what it wants."""


@dataclass
class Timeline:
    """What was seen at the moments.

    :ivar steps: the events before which was looked; the last is the recording's end.
    :ivar zones: the populated zones: name, index, start_pfn, end_pfn, present_pages, managed_pages, watermarks (pages), and free_pages of each step.
    :ivar blocks: free blocks by step, zone, migrate type and order.
    :ivar pages: page frames by step and class (`CLASSES`).
    :ivar caches: SLUB's caches by name; None where its events were not recorded.
    :ivar pageblocks: migrate type of each of the map's pageblocks at the first step, and the changes of each step after it as (pageblock, type).
    :ivar replay: what the replay counted up to the end.
    """

    steps: list[int]
    zones: list[dict[str, Any]]
    blocks: list[list[list[list[int]]]] = field(default_factory=list)
    pages: list[list[int]] = field(default_factory=list)
    caches: dict[str, dict[str, Any]] | None = None
    pageblocks: list[list[Any]] = field(default_factory=list)
    replay: dict[str, int] = field(default_factory=dict)
    page_map: dict[str, Any] = field(default_factory=dict)


def spread(events: int, steps: int) -> list[int]:
    """At most so many rows, equally far apart, from the first event to the end."""
    return sorted({round(i * events / max(steps - 1, 1)) for i in range(steps)} | {events})


def follow(
    recording: Recording,
    steps: int,
    looks: Sequence[tuple[int, Look]] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Timeline:
    """Replays a recording and looks at it so many times.

    :param looks: moments to be looked at besides: before which event, and what to do there.
    :param progress: called with the moments done and their number.
    :raises RecordingError: there is no snapshot of the page allocator.
    """
    assert recording.before is not None
    rows = spread(len(recording.events), steps)
    also: dict[int, list[Look]] = {}
    for event, look in looks:
        also.setdefault(event, []).append(look)
    wanted = sorted({*rows, *also})
    seen: _Seen | None = None
    line = Timeline(rows, [])
    sampled = set(rows)
    for done, moment in enumerate(moments(recording, wanted), 1):
        for look in also.get(moment.event, ()):
            look(moment)
        if moment.event in sampled:
            seen = _Seen.first(recording, moment, line) if seen is None else seen
            seen.look(moment)
        progress(done, len(wanted))
    assert seen is not None
    line.page_map = seen.page_map.to_dict() | {"holders": seen.holders.to_dict()}
    return line


@dataclass
class _Seen:
    """What is kept from one moment to the next."""

    line: Timeline
    holders: Holders
    page_map: PageMap
    blocks: Int
    """Rows of `Pgdat.pageblock` that the map shows."""
    types: Int | None = None

    @classmethod
    def first(cls, recording: Recording, moment: Moment, line: Timeline) -> _Seen:
        config = moment.state.config[0]
        order = int(config["pageblock_order"])
        holders = Holders.of(recording, int(config["nr_frames"]), order)
        page_map = PageMap(holders.static != 0, order, len(line.steps))
        for zone in _zones(recording, moment):
            line.zones.append(zone)
        if moment.slub is not None:
            line.caches = {}
        shown = [np.arange(first, first + count, page_map.block) for first, count in page_map.ranges]
        blocks = np.concatenate(shown) >> order if shown else np.zeros(0, dtype=np.int64)
        split = int(config["pageblock_split"])  # the row of the part above it is one higher, as are all that follow
        return cls(line, holders, page_map, blocks + (blocks << order >= split))

    def look(self, moment: Moment) -> None:
        """Adds a moment."""
        line, state = self.line, moment.state
        listed = walk_lists(state)
        free = free_blocks(state, listed)
        holder, event = self.holders.at(moment, free, pcp_blocks(state, listed))
        classes = self.holders.classes()
        frames = np.bincount(holder, minlength=len(classes))
        line.pages.append(np.bincount(classes, frames, minlength=len(CLASSES)).astype(np.int64).tolist())
        line.pages[-1][CLASS["no_ram"]] = 0  # a matter of addresses, not of memory
        self.page_map.add(holder, event, classes)
        line.blocks.append(_blocks(free, [zone["index"] for zone in line.zones]))
        cpus = int(state.config[0]["nr_cpus"])
        for zone in line.zones:
            held_back = state.pcp["nr_free_pages_diff"][zone["index"] * cpus : (zone["index"] + 1) * cpus]
            zone["free_pages"].append(int(state.zone[zone["index"]]["nr_free_pages"]) + int(held_back.sum()))
        types = state.pageblock[np.minimum(self.blocks, len(state.pageblock) - 1)].astype(np.int64)
        if self.types is None:
            line.pageblocks.append(types.tolist())
        else:
            changed = np.flatnonzero(types != self.types)
            line.pageblocks.append([[int(at), int(types[at])] for at in changed])
        self.types = types
        if moment.slub is not None and line.caches is not None:
            add_caches(line.caches, moment.slub, moment.cache_names, len(line.pages) - 1)
        line.replay = {name: moment.outcome.counters[name] for name in ANSWERED}


def _zones(recording: Recording, moment: Moment) -> list[dict[str, Any]]:
    assert recording.before is not None
    names = dict(recording.before.zones.select("index", "name").iter_rows())
    found = []
    for index, zone in enumerate(moment.state.zone):
        if int(zone["present_pages"]):
            numbers = {name: int(zone[name]) for name in ("start_pfn", "end_pfn", "present_pages", "managed_pages", "wmark_min", "wmark_low", "wmark_high")}
            found.append({"name": str(names[index]), "index": index, **numbers, "free_pages": []})
    return found


def _blocks(free: FreeBlocks, zones: list[int]) -> list[list[list[int]]]:
    """Free blocks by zone, migrate type and order."""
    shape = (max(zones, default=0) + 1, MIGRATE_TYPES, NR_ORDERS)
    number = (free.zone * MIGRATE_TYPES + free.migratetype) * NR_ORDERS + free.order
    counts = np.bincount(number, minlength=shape[0] * shape[1] * shape[2])[: shape[0] * shape[1] * shape[2]].reshape(shape)
    return [counts[zone].tolist() for zone in zones]


def add_caches(caches: dict[str, dict[str, Any]], slub: Slub, names: list[str], step: int) -> None:
    """Adds one step to each cache: slabs, pages, objects that they have room for, and objects handed out. A cache that is not there has none."""
    rows = int(slub.config[0]["slabs"])
    slab = slub.slab[MAX_CACHES:rows]
    slab = slab[slab["state"] != SLAB_UNUSED]
    cache, many = slab["cache"].astype(np.int64), len(slub.cache)
    taken = np.concatenate(([0], np.cumsum(slub.slot == ALLOCATED)))
    live = taken[slab["slots"] + slab["objects"]] - taken[slab["slots"]]
    sums = {
        "slabs": np.bincount(cache, minlength=many),
        "pages": np.bincount(cache, 1 << slab["order"].astype(np.int64), minlength=many).astype(np.int64),
        "objects": np.bincount(cache, slab["objects"], minlength=many).astype(np.int64),
        "live": np.bincount(cache, live, minlength=many).astype(np.int64),
    }
    for row in range(int(slub.config[0]["caches"])):
        if not int(slub.cache[row]["live"]) and not sums["slabs"][row]:
            continue
        entry = caches.get(names[row])
        if entry is None:
            entry = caches[names[row]] = {"object_size": 0, "size": 0, "objects_per_slab": 0, "order": 0, **{key: [0] * step for key in sums}}
        for key, values in sums.items():
            column = entry[key]
            column += [0] * (step - len(column))
            if len(column) > step:  # two caches of one name
                column[step] += int(values[row])
            else:
                column.append(int(values[row]))
        about = slub.cache[row]
        entry |= {"object_size": int(about["object_size"]), "size": int(about["size"]), "objects_per_slab": int(about["objects"]), "order": int(about["order"])}


def filled(caches: dict[str, dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """The caches as a list, those with the most pages ever first, each with all steps."""
    found = []
    for name, entry in caches.items():
        for key in ("slabs", "pages", "objects", "live"):
            entry[key] += [0] * (steps - len(entry[key]))
        found.append({"name": name, **entry})
    return sorted(found, key=lambda cache: (-max(cache["pages"], default=0), cache["name"]))


def type_names() -> list[str]:
    """Migrate types by their number."""
    return list(MIGRATETYPE_NAMES)
