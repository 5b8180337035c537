"""From a recording's events the requests themselves: what was asked, by whom and when, not what was answered.

A free run (`free_run`) answers them anew. So whatever is a consequence of an answer is left out: the pages that SLUB takes and gives back for slabs, drains
of full per-CPU lists, stolen pageblocks, reserved pageblocks, the walks over the zones. What came from outside stays: objects and pages asked for and freed,
pages put on LRU lists, counters folded, settings changed, lists drained because somebody said so. What reclaim freed is marked as such: a free run decides when (`free_run_reclaim`).

Objects and page blocks get numbers in place of addresses; those that are older than the recording too, when they are freed in it. Silent bulk requests raise no event
for the pages they got: which ones those were, the checking replay tells, which is made on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.errors import RecordingError
from mmtwin.mm.slab_common import SLAB_RECLAIM_ACCOUNT
from mmtwin.mm.slab_tables import Slub, copy_slub, new_slub, reserve
from mmtwin.mm.slub import SLOT_BITS, is_allocated, object_at, slot_class
from mmtwin.mm.tables import PG_ALLOCATED, PG_BUDDY, PG_PCP, PG_SLAB, Pgdat, copy_pgdat
from mmtwin.recording import slab_state
from mmtwin.recording.model import Recording
from mmtwin.recording.state import restore
from mmtwin.replay import placement as place
from mmtwin.replay.engine import new_progress, replay_ops
from mmtwin.replay.slab_names import slab_names
from mmtwin.replay.slabs import new_slabs

(
    NOTHING, OBJECT_ALLOC, OBJECT_FREE, OBJECTS_ALLOC, OBJECTS_FREE, CACHE_SHRINK, CACHE_FLUSH, CACHE_CREATE, CACHE_DESTROY, CPU_DEAD, PAGES_ALLOC, PAGES_FREE,
    PAGES_BULK, PAGES_ISOLATE, LRU_ADD, DRAIN, FOLD, WMARKS, STAT_THRESHOLDS, PAGESET, BALANCE, RECLAIM_SET, RECLAIM_CLEAR, UNBOOST, THRESHOLDS, UNRESERVE,
    SLAB_RELEASE, PAGES_RECLAIM, OBJECT_RECLAIM, KSWAPD_WOKEN, TASK_RECLAIMS,
) = range(31)  # fmt: skip
"""Kinds of requests."""
REQUEST = np.dtype(
    [
        ("id", "i8"),  # of the object or block, or where the ids of a bulk request begin
        ("gfp", "i8"),
        ("arg", "i8"),  # the cache; the number of pages or objects; what a setting is
        ("arg2", "i8"),  # bytes of a kmalloc; first page of the block that is meant; a further setting
        ("event", "i8"),  # row of the event
        ("site", "i8"),  # the caller's address, 0 if unknown
        ("pid", "i4"),
        ("cpu", "i2"),
        ("op", "i1"),
        ("order", "i1"),
        ("flag", "i1"),  # see the FLAG_ constants
        ("migratetype", "i1"),
    ],
    align=True,
)
FLAG_CONTENDED, FLAG_TAIL, FLAG_MEMALLOC, FLAG_REFUSED, FLAG_KMALLOC, FLAG_MAYBE, FLAG_SOFT = 1, 2, 4, 8, 16, 32, 64
"""The per-CPU lists were locked by somebody else; the block goes to its list's tail; the task may ignore watermarks; the kernel said no; the object is a
kmalloc; this free is only made if the request (which the kernel refused) is granted; an interrupt, which stays on its CPU."""


BY_KSWAPD, BY_TASK = 1, 2
"""Of PAGES_RECLAIM, in `migratetype`: who freed the block; `arg` is its number among them."""
GRACE_EVENTS = 30_000
"""A shrinker's dentries and inodes are freed by RCU, after a grace period. No event says so: objects of reclaimable caches that interrupts free within so many events
after a reclaim's end are taken for those."""


@dataclass(frozen=True)
class Requests:
    """The requests of a recording, and the state they begin at.

    :param table: `REQUEST`, in order.
    :param ids: object numbers of bulk requests, one behind the other.
    :param objects: how many object numbers there are; `blocks` the same for page blocks.
    :param old_objects: number and address (signed) of each object that is older than the recording and freed in it.
    :param old_blocks: number, first page frame and order of each such block (pages put on the LRU count as blocks of order 0).
    :param names: the caches' names by id; those created on the way are in it.
    :param unknown: what could not be known, by kind: frees of objects and pages that the recording never saw handed out.
    :param failed: requests that the kernel refused.
    """

    table: npt.NDArray[np.void]
    ids: npt.NDArray[np.int64]
    objects: int
    blocks: int
    old_objects: npt.NDArray[np.int64]
    old_blocks: npt.NDArray[np.int64]
    pages: Pgdat
    slub: Slub
    names: list[str]
    unknown: dict[str, int] = field(default_factory=dict)
    failed: int = 0

    def __len__(self) -> int:
        return len(self.table)


class _Builder:
    """Takes the operations of a recording one after the other."""

    def __init__(self, pages: Pgdat, slub: Slub, bulk_pages: dict[int, list[int]], event_pfn: npt.NDArray[np.int64]) -> None:
        frames = int(pages.config[0]["nr_frames"])
        self.rows: list[list[int]] = []
        self.ids: list[int] = []
        self.objects = self.blocks = self.failed = 0
        self.live: dict[int, int] = {}
        self.owner = np.full(frames, -1, dtype=np.int64)
        self.base: list[int] = []
        self.old_objects: list[tuple[int, int]] = []
        self.old_blocks: list[tuple[int, int, int]] = []
        self.pages, self.slub, self.bulk_pages, self.event_pfn = pages, slub, bulk_pages, event_pfn
        flags = pages.page["flags"][:frames]
        self.free_at_start = (flags & (PG_BUDDY | PG_PCP)) != 0
        slab_heads = np.flatnonzero((flags & PG_SLAB) != 0)
        self.slab_pages = set(slab_heads.tolist())
        self.discarded: set[int] = {int(slab["pfn"]) for slab in slub.slab[np.flatnonzero(slub.slab["state"] == 2)]}
        self.leaving: set[int] = set()
        self.last_alloc: dict[int, int] = {}
        self.refused: dict[int, list[int]] = {}
        self.stack: dict[int, list[int]] = {}
        self.sites: dict[int, int] = {}
        self.bulk_call: dict[int, int] = {}
        self.bulk_gfp: dict[int, int] = {}
        self.unknown = {"object_frees": 0, "page_frees": 0, "bulk_objects": 0, "object_caches": 0}

    def add(
        self, op: np.void, kind: int, number: int = -1, gfp: int = 0, arg: int = 0, arg2: int = 0, order: int = 0, flag: int = 0, migratetype: int = 0
    ) -> int:
        self.rows.append([number, gfp, arg, arg2, int(op["event"]), int(op["cpu"]), kind, order, flag, migratetype])
        return len(self.rows) - 1

    def new_object(self) -> int:
        self.objects += 1
        return self.objects - 1

    def new_block(self, pfn: int, pages: int) -> int:
        self.owner[pfn : pfn + pages] = self.blocks
        self.base.append(pfn)
        self.blocks += 1
        return self.blocks - 1

    def old_block(self, pfn: int, order: int) -> int:
        number = self.new_block(pfn, 1 << order)
        self.old_blocks.append((number, pfn, order))
        return number

    # objects

    def take(self, op: np.void) -> None:
        """An allocation takes its fast path, or begins its slow one; the event that says what it was for comes later."""
        stack = self.stack.setdefault(int(op["context"]), [])
        if int(op["arg"]) < 0:
            self.unknown["object_caches"] += 1
            stack.append(-1)
            return
        stack.append(self.add(op, OBJECT_ALLOC, self.new_object(), 0xCC0, int(op["arg"])))
        if len(stack) > 8:  # events were lost
            del stack[0]

    def object_event(self, op: np.void) -> None:
        """kmalloc or kmem_cache_alloc."""
        address, kmalloc, size = int(op["pfn"]), int(op["order"]) != 0, int(op["arg"])
        if kmalloc and (size > 8192 or (not address and int(op["arg2"]) > 8192)):
            self.large(op, address)
            return
        stack = self.stack.get(int(op["context"]), [])
        at = stack.pop() if stack else -1
        if at < 0:
            return  # taken before the first snapshot, which shows it so
        row = self.rows[at]
        row[1], row[3], row[4] = int(op["gfp"]), int(op["arg2"]), int(op["event"])
        row[8] |= (FLAG_KMALLOC if kmalloc else 0) | (FLAG_REFUSED if not address else 0)
        self.failed += not address
        if address:
            self.live[address] = row[0]

    def large(self, op: np.void, address: int) -> None:
        """A kmalloc of whole pages, which have had their own event: that learns the caller."""
        found = self.refused.get(int(op["context"]), [])
        at = self.last_alloc.get(address - int(self.slub.config[0]["page_offset"]) >> 12, -1) if address else found[-1] if found else -1
        if at >= 0:
            self.sites[at] = int(op["event"])

    def forget(self, address: int) -> int:
        """The number of an object that is being freed; -1 if it is no slab object or unknown."""
        number = self.live.pop(address, -1)
        if number < 0 and address not in (0, 16):
            packed = object_at(self.pages, self.slub, address)
            if packed >= 0 and is_allocated(self.slub, packed):
                number = self.new_object()
                self.old_objects.append((number, address))
        return number

    def object_freed(self, op: np.void) -> None:
        address = int(op["pfn"])
        number = self.forget(address)
        if number >= 0:
            self.add(op, OBJECT_FREE, number)
        elif address not in (0, 16) and (address - int(self.slub.config[0]["page_offset"])) & 4095:
            self.unknown["object_frees"] += 1

    def bulk_got(self, op: np.void, objects: npt.NDArray[np.int64]) -> None:
        at = self.bulk_call.pop(int(op["context"]), -1)
        count, first = int(op["arg2"]), int(op["gfp"])
        if at < 0 or count <= 0:
            return
        row = self.rows[at]
        row[0], row[3], row[6] = len(self.ids), count, OBJECTS_ALLOC
        known = objects[first : first + min(count, max(0, len(objects) - first), 64)]
        for i in range(count):
            number = self.new_object()
            self.ids.append(number)
            if i < len(known):
                self.live[int(known[i])] = number
            else:
                self.unknown["bulk_objects"] += 1

    def bulk_freed(self, op: np.void, objects: npt.NDArray[np.int64]) -> None:
        count, first = int(op["arg2"]), int(op["gfp"])
        known = objects[first : first + max(0, min(count, len(objects) - first))]
        numbers = [n for n in (self.forget(int(a)) for a in known) if n >= 0]
        self.unknown["bulk_objects"] += max(0, count - len(known))
        if numbers:
            self.add(op, OBJECTS_FREE, len(self.ids), arg2=len(numbers))
            self.ids += numbers

    # pages

    def alloc(self, op: np.void, refused: bool) -> None:
        pfn, order = int(op["pfn"]), int(op["order"])
        flag = (FLAG_CONTENDED if int(op["contended"]) else 0) | (FLAG_REFUSED if refused else 0)
        flag |= FLAG_MEMALLOC if int(op["arg"]) >= 0 and int(op["arg2"]) & 4 else 0
        if refused:
            number = self.blocks
            self.blocks += 1
            self.base.append(-1)
            self.failed += 1
        else:
            number = self.new_block(pfn, 1 << order)
            self.slab_pages.difference_update(range(pfn, pfn + (1 << order)))
        at = self.add(op, PAGES_ALLOC, number, int(op["gfp"]), 0, pfn, order, flag)
        if refused:
            self.refused.setdefault(int(op["context"]), []).append(at)
        else:
            self.last_alloc[pfn] = at

    def slab_new(self, op: np.void) -> None:
        """A slab has been made: the pages that were taken for it are no request, nor are those that were refused on the way."""
        pfn = int(self.event_pfn[int(op["event"])])
        for at in self.refused.pop(int(op["context"]), []):
            self.rows[at][6] = NOTHING
            self.failed -= 1
        at = self.last_alloc.pop(pfn, -1)
        if pfn < 0 or at < 0:
            return
        order = self.rows[at][7]
        self.rows[at][6] = NOTHING
        self.owner[pfn : pfn + (1 << order)] = -1
        self.slab_pages.update(range(pfn, pfn + (1 << order)))

    def prepare(self, op: np.void) -> None:
        pfn, order = int(op["pfn"]), int(op["order"])
        if pfn in self.slab_pages:
            self.slab_pages.difference_update(range(pfn, pfn + (1 << order)))
            self.leaving.add(pfn)
            if pfn in self.discarded:
                self.discarded.discard(pfn)
                self.add(op, SLAB_RELEASE, arg2=pfn)

    def freed(self, op: np.void) -> None:
        """A block reaches its list."""
        pfn, order = int(op["pfn"]), int(op["order"])
        if pfn in self.leaving:
            self.leaving.discard(pfn)
            return
        number = int(self.owner[pfn])
        if number < 0:
            if self.free_at_start[pfn]:
                self.unknown["page_frees"] += 1
                return
            number = self.old_block(pfn, order)
        tail = int(op["op"]) == place.BUDDY_FREE and int(op["arg"]) & 2
        self.add(op, PAGES_FREE, number, arg2=pfn - self.base[number], order=order, flag=FLAG_TAIL if tail else 0)
        self.owner[pfn : pfn + (1 << order)] = -1

    def bulk_pages_got(self, op: np.void) -> None:
        """A silent bulk request is done: its pages, as the checking replay found them."""
        pages = self.bulk_pages.get(int(op["arg"]), [])
        if int(op["arg2"]) and pages:
            first = self.blocks
            for pfn in pages:
                self.new_block(pfn, 1)
            self.add(op, PAGES_BULK, first, self.bulk_gfp.get(int(op["arg"]), 0xCC2), len(pages))


def _bulk_pages(pages: Pgdat, slub: Slub, placed: place.Placement) -> dict[int, list[int]]:
    """Which pages each silent bulk request got, by the number of the request: the checking replay is made, and looked at where such a request took some."""
    pages, slub = copy_pgdat(pages), copy_slub(slub)
    r, q = new_progress(placed, pages), new_slabs(placed)
    objects = int(slub.cache["objects"].max(initial=1))
    slub = reserve(slub, len(placed.fresh), len(placed.fresh) << slot_class(objects))
    found: dict[int, list[int]] = {}
    kinds = placed.ops["op"]
    stops = np.flatnonzero((kinds == place.BULK_LOCKED) | (kinds == place.BULK_END)).tolist()
    frames, at = int(pages.config[0]["nr_frames"]), 0
    for stop in stops:
        replay_ops(pages, slub, r, q, placed.ops[at:stop])
        before = (pages.page["flags"][:frames] & PG_ALLOCATED) != 0
        replay_ops(pages, slub, r, q, placed.ops[stop : stop + 1])
        got = np.flatnonzero(((pages.page["flags"][:frames] & PG_ALLOCATED) != 0) & ~before)
        found.setdefault(int(placed.ops["arg"][stop]), []).extend(got.tolist())
        at = stop + 1
    return found


def requests(recording: Recording, progress: Callable[[str], None] = lambda text: None) -> Requests:
    """The requests of a recording.

    :param progress: called with what is being done.
    :raises RecordingError: there is no snapshot to start from, or no slab events made by mmtwin record --slab.
    """
    before = recording.before
    if before is None or not before.has_pages:
        raise RecordingError("a what-if needs the machine's state to start from, and this recording has none; make one with mmtwin record --vm --slab")
    probes = recording.provenance.probes
    if not any(p.startswith("pcp_free") for p in probes):
        raise RecordingError("a what-if needs the events of mmtwin record (--vm), which say when a page really reached its list; this recording has none")
    config = recording.provenance.kernel_config
    scale = int(config.get("PCP_BATCH_SCALE_MAX", 5))
    pages = restore(before, scale, config.get("TRANSPARENT_HUGEPAGE", "y") == "y", recording.provenance.cpus)
    names: list[str] = []
    slub, meanings = new_slub(int(pages.config[0]["nr_cpus"]), 0, slabs=0, slots=0), None
    if slab_state.has_slabs(before) and any(p.startswith("slab_take") for p in probes):
        slub, names = slab_state.restore(before, pages, int(pages.config[0]["nr_cpus"]))
        meanings, slub = slab_names(recording.events, before, recording.after, slub, names)
    progress("placing events")
    placed = place.place(recording.events, before, scale, meanings)
    progress("looking for the pages of silent requests")
    build = _Builder(pages, slub, _bulk_pages(pages, slub, placed), recording.events["pfn"].to_numpy())
    _collect(build, placed)
    return _finish(build, recording, pages, slub, names)


def _collect(build: _Builder, placed: place.Placement) -> None:
    """Goes through the operations."""
    objects = placed.objects
    settings = {
        place.FOLD: FOLD, place.CPU_FOLD: FOLD, place.WMARKS: WMARKS, place.STAT_THRESHOLDS: STAT_THRESHOLDS, place.PAGESET: PAGESET, place.BALANCE: BALANCE,
        place.RECLAIM_SET: RECLAIM_SET, place.RECLAIM_CLEAR: RECLAIM_CLEAR, place.UNBOOST: UNBOOST, place.THRESHOLDS: THRESHOLDS, place.DRAIN: DRAIN,
    }  # fmt: skip
    skipped = (place.NOP, place.WALK, place.SLAB_REFILL, place.FREE_DRAIN, place.OWNERSHIP, place.SLAB_EXCHANGE, place.SLAB_GIVE, place.BULK_LOCKED)
    kept = placed.ops[~np.isin(placed.ops["op"], skipped)]
    kinds = kept["op"].tolist()
    for op, kind in zip(kept, kinds, strict=True):
        if kind == place.SLAB_TAKE:
            build.take(op)
        elif kind == place.SLAB_SLOW:
            build.refused.pop(int(op["context"]), None)
            if int(op["context"]) not in build.bulk_call:
                build.take(op)
        elif kind == place.SLAB_ALLOC_EVENT:
            build.object_event(op)
        elif kind == place.SLAB_FREE_EVENT:
            build.object_freed(op)
        elif kind == place.ALLOC:
            build.alloc(op, False)
        elif kind == place.PREPARE:
            build.prepare(op)
        elif kind in (place.PCP_FREE, place.BUDDY_FREE):
            build.freed(op)
        elif kind == place.LRU_ADD:
            pfn = int(op["pfn"])
            number = int(build.owner[pfn])
            if number < 0 and not build.free_at_start[pfn]:
                number = build.old_block(pfn, 0)
            if number >= 0:
                build.add(op, LRU_ADD, number, arg2=pfn - build.base[number])
        elif kind == place.ALLOC_FAILED:
            build.alloc(op, True)
        elif kind == place.BULK_BEGIN:
            build.bulk_gfp[int(op["arg"])] = int(op["gfp"])
        elif kind == place.BULK_END:
            build.bulk_pages_got(op)
        elif kind == place.SLAB_NEW:
            build.slab_new(op)
        elif kind == place.SLAB_BULK_ALLOC:
            build.bulk_call[int(op["context"])] = build.add(op, NOTHING, gfp=int(op["gfp"]), arg=int(op["arg"]))
        elif kind == place.SLAB_BULK_GOT:
            build.bulk_got(op, objects)
        elif kind == place.SLAB_BULK_FREE:
            build.bulk_freed(op, objects)
        elif kind == place.ISOLATED:
            number = build.new_block(int(op["pfn"]), 1 << int(op["order"]))
            build.add(op, PAGES_ISOLATE, number, order=int(op["order"]), arg2=int(op["pfn"]))
        elif kind in (place.SLAB_SHRINK, place.SLAB_DESTROY, place.SLAB_CREATE, place.SLAB_FLUSH):
            name = {place.SLAB_SHRINK: CACHE_SHRINK, place.SLAB_DESTROY: CACHE_DESTROY, place.SLAB_CREATE: CACHE_CREATE, place.SLAB_FLUSH: CACHE_FLUSH}[kind]
            if int(op["arg"]) >= 0:
                build.add(op, name, arg=int(op["arg"]))
        elif kind == place.SLAB_DEAD_CPU:
            build.add(op, CPU_DEAD, arg=int(op["arg2"]))
        elif kind == place.MOVE_BLOCK:
            if int(op["migratetype"]) != 3:
                build.add(op, UNRESERVE, migratetype=int(op["migratetype"]))
        elif kind in settings:
            arg = int(op["cpu"]) if kind == place.FOLD else int(op["arg"])
            build.add(op, settings[kind], arg=arg, arg2=int(op["arg2"]), gfp=int(op["gfp"]), migratetype=int(op["migratetype"]))


def _finish(build: _Builder, recording: Recording, pages: Pgdat, slub: Slub, names: list[str]) -> Requests:
    """The table, with what only the events say, and the frees of what the kernel refused."""
    rows = np.array(build.rows, dtype=np.int64).reshape(-1, 10)
    table = np.zeros(len(rows), dtype=REQUEST)
    for i, name in enumerate(("id", "gfp", "arg", "arg2", "event", "cpu", "op", "order", "flag", "migratetype")):
        table[name] = rows[:, i]
    events = recording.events
    if len(table):
        table["site"] = events["call_site"].to_numpy()[table["event"]]
        for at, event in build.sites.items():
            table["site"][at] = events["call_site"][event]
        table["pid"] = events["pid"].to_numpy()[table["event"]]
        level = events["context"].to_numpy()[table["event"]]
        table["flag"] |= np.where((level > 0) | (table["pid"] == 0), FLAG_SOFT, 0).astype(np.int8)
    table = table[table["op"] != NOTHING]
    table = _with_reclaim(_with_lifetimes(table), events, _reclaimable(build, table))
    return Requests(
        table, np.array(build.ids, dtype=np.int64), build.objects, build.blocks, np.array(build.old_objects, dtype=np.int64).reshape(-1, 2),
        np.array(build.old_blocks, dtype=np.int64).reshape(-1, 3), pages, slub, names, {k: v for k, v in build.unknown.items() if v}, build.failed,
    )  # fmt: skip


def _with_lifetimes(table: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """A block that the kernel refused may be granted in a free run, and nothing says when it would have been freed: it gets the median lifetime, in requests, of
    blocks of the same order and flags that were granted (of the same order, else of all; 1 if there is none)."""
    refused = np.flatnonzero((table["op"] == PAGES_ALLOC) & (table["flag"] & FLAG_REFUSED != 0))
    if not len(refused):
        return table
    given = np.flatnonzero((table["op"] == PAGES_ALLOC) & (table["flag"] & FLAG_REFUSED == 0))
    born = dict(zip(table["id"][given].tolist(), given.tolist(), strict=True))
    ages: dict[tuple[int, int], list[int]] = {}
    for at in np.flatnonzero(table["op"] == PAGES_FREE).tolist():
        first = born.pop(int(table["id"][at]), -1)
        if first >= 0:
            for key in ((int(table["order"][first]), int(table["gfp"][first])), (int(table["order"][first]), -1), (-1, -1)):
                ages.setdefault(key, []).append(at - first)
    middle = {key: int(np.median(found)) for key, found in ages.items()}
    extra = table[refused].copy()
    extra["op"], extra["flag"], extra["arg2"] = PAGES_FREE, FLAG_MAYBE, 0
    where = []
    for at in refused.tolist():
        order, gfp = int(table["order"][at]), int(table["gfp"][at])
        where.append(min(at + max(1, middle.get((order, gfp), middle.get((order, -1), middle.get((-1, -1), 1)))), len(table)))
    return np.insert(table, where, extra)


def _reclaimable(build: _Builder, table: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Of each object, by its number, whether its cache is one that shrinkers look after (SLAB_RECLAIM_ACCOUNT)."""
    found = np.zeros(build.objects + 1, dtype=bool)
    flags = build.slub.cache["flags"]
    asked = table[table["op"] == OBJECT_ALLOC]
    found[asked["id"]] = flags[asked["arg"]] & SLAB_RECLAIM_ACCOUNT != 0
    for number, address in build.old_objects:
        packed = object_at(build.pages, build.slub, address)
        found[number] = packed >= 0 and int(flags[int(build.slub.slab[packed >> SLOT_BITS]["cache"])]) & SLAB_RECLAIM_ACCOUNT != 0
    return found


def _with_reclaim(table: npt.NDArray[np.void], events: pl.DataFrame, reclaimable: npt.NDArray[np.bool_]) -> npt.NDArray[np.void]:
    """Marks the frees that were reclaim's, kswapd's and those of tasks in direct reclaim, and puts in where kswapd was woken for a run and where a task began to reclaim."""
    names = ("balance", "reclaim_clear", "mm_vmscan_wakeup_kswapd", "mm_vmscan_direct_reclaim_begin", "mm_vmscan_direct_reclaim_end")
    rounds, cleared, woken, begun, ended = (np.flatnonzero((events["kind"] == name).to_numpy()) for name in names)
    pid = events["pid"].to_numpy()
    plain = (table["op"] == PAGES_FREE) & (table["flag"] & (FLAG_SOFT | FLAG_TAIL | FLAG_MAYBE) == 0)
    by = np.where(plain & np.isin(table["pid"], np.unique(pid[rounds])), BY_KSWAPD, 0)
    for task in np.unique(pid[begun]).tolist():
        mine = np.flatnonzero(plain & (table["pid"] == task))
        turn = np.searchsorted(begun[pid[begun] == task], table["event"][mine])
        by[mine[turn > np.searchsorted(ended[pid[ended] == task], table["event"][mine])]] = BY_TASK
    taken = np.flatnonzero(by)
    table["op"][taken], table["migratetype"][taken], table["arg"][taken] = PAGES_RECLAIM, by[taken], np.arange(len(taken))
    if len(rounds) + len(begun):
        first, last = (np.sort(np.concatenate(pair)) for pair in ((rounds, begun), (cleared, ended)))
        objects = np.flatnonzero((table["op"] == OBJECT_FREE) & (table["flag"] & FLAG_SOFT != 0))
        event = table["event"][objects]
        inside = np.searchsorted(first, event) > np.searchsorted(last, event - GRACE_EVENTS)
        table["op"][objects[inside & reclaimable[table["id"][objects]]]] = OBJECT_RECLAIM
    run = np.searchsorted(rounds, woken)
    _, at = np.unique(run, return_index=True)
    woken = woken[at[run[at] < len(rounds)]]
    where = np.concatenate([woken, begun])
    extra = np.zeros(len(where), dtype=REQUEST)
    extra["op"], extra["event"], extra["pid"], extra["cpu"], extra["id"] = TASK_RECLAIMS, where, pid[where], events["cpu"].to_numpy()[where], -1
    extra["op"][: len(woken)] = KSWAPD_WOKEN
    extra["order"], extra["gfp"] = np.maximum(events["order"].to_numpy()[where], 0), events["gfp"].to_numpy()[where]
    return np.insert(table, np.searchsorted(np.maximum.accumulate(table["event"]), where, side="right"), extra) if len(table) else table
