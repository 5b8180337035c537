"""What the page allocator decided under memory pressure, beside what the twin decides at the same requests.

`engine` leaves the twin's own test in each operation: at a walk over the zones which zone is above its watermark (or none), at a call of wakeup_kswapd
whether the node is unbalanced or boosted. Here a request is followed through __alloc_pages_slowpath (mm/page_alloc.c): at each of its branches the twin
says what comes next, then the kernel's event is looked at, and the kernel's way is gone on.

Taken from the recording, because it is not the allocator's to decide: whether kswapd sleeps and how often it had no success (probe wakeup_kswapd), how many
pages reclaim freed, how compaction ended, what could still be reclaimed, and whether the task may use reserves (the flags of its walk).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin.gfp import ALLOC_NO_WATERMARKS, ALLOC_WMARK_HIGH, ALLOC_WMARK_MASK, GFP
from mmtwin.mm.kswapd import MAX_RECLAIM_RETRIES
from mmtwin.mm.page_alloc import highest_zone, request_migratetype
from mmtwin.mm.tables import PAGE_ALLOC_COSTLY_ORDER, Pgdat
from mmtwin.recording.model import KIND, KINDS
from mmtwin.replay.placement import ALLOC, WAKE_KSWAPD, WALK, Placement, context_ids

K_WALK, K_ALLOC, K_CALL, K_WAKEUP, K_RECLAIM, K_RECLAIMED, K_COMPACT, K_COMPACTED, K_TRY, K_RETRY_ZONE, K_COMPACT_RETRY, K_VICTIM = (
    KIND[k]
    for k in (
        "walk", "mm_page_alloc", "wakeup_kswapd", "mm_vmscan_wakeup_kswapd", "mm_vmscan_direct_reclaim_begin", "mm_vmscan_direct_reclaim_end", "mm_compaction_begin",
        "mm_compaction_end", "mm_compaction_try_to_compact_pages", "reclaim_retry_zone", "compact_retry", "mark_victim",
    )
)  # fmt: skip
FOLLOWED = (K_WALK, K_ALLOC, K_CALL, K_WAKEUP, K_RECLAIM, K_RECLAIMED, K_COMPACT, K_COMPACTED, K_TRY, K_RETRY_ZONE, K_COMPACT_RETRY, K_VICTIM)
BEGINS, ENDS = {K_RECLAIM: K_RECLAIMED, K_COMPACT: K_COMPACTED}, {K_RECLAIMED, K_COMPACTED}
"""Between these a task's requests are not the one it is in, but those of reclaim itself."""
DECISIONS = ("walks", "slow_paths", "wakeups", "direct_reclaims", "compactions", "failures", "oom_kills")
"""What is compared: tests of the watermarks (the kernel's number is of those it passed), requests that went to the slow path, kswapd woken, reclaim by the
task itself, compaction tried by it, requests refused, processes killed for want of memory."""
KEPT = 200
"""Differences that are kept."""


@dataclass
class Tally:
    """How often one thing was decided: by the kernel, by the twin, and by both at the same place."""

    kernel: int = 0
    twin: int = 0
    both: int = 0

    @property
    def equal(self) -> bool:
        return self.kernel == self.twin == self.both


class Differing(NamedTuple):
    """One decision that is not the kernel's.

    :param what: of `DECISIONS`.
    :param event: row of the event at which it was made; `until` that of the next event of the same context.
    :param kernel: whether the kernel did it (the twin then did not).
    """

    what: str
    event: int
    until: int
    kernel: bool
    order: int
    gfp: int
    flags: int


@dataclass
class Decisions:
    """What was decided, and where the twin differs.

    :param tallies: by the names in `DECISIONS`.
    :param differences: how many decisions differ; the first are in `differing`.
    :param unfollowed: requests whose events are not those of any way through the slow path.
    """

    tallies: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in DECISIONS})
    differing: list[Differing] = field(default_factory=list)
    differences: int = 0
    requests: int = 0
    unfollowed: int = 0

    def count(self, what: str, kernel: bool, twin: bool, at: Differing) -> None:
        """Compares one decision."""
        tally = self.tallies[what]
        tally.kernel += kernel
        tally.twin += twin
        tally.both += kernel and twin
        if kernel != twin:
            self.differences += 1
            if len(self.differing) < KEPT:
                self.differing.append(at)


class Columns(NamedTuple):
    """What is read of the events, by row; `twin` is the twin's answer at walks (a zone or -1) and at calls of wakeup_kswapd (bits of what is wrong)."""

    kind: npt.NDArray[np.int64]
    pfn: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    gfp: npt.NDArray[np.int64]
    arg: npt.NDArray[np.int64]
    ptr: npt.NDArray[np.int64]
    call_site: npt.NDArray[np.int64]
    bytes_alloc: npt.NDArray[np.int64]
    node: npt.NDArray[np.int64]
    twin: npt.NDArray[np.int64]


class Unfollowable(Exception):
    """The next event of a request is none that the slow path can have here."""


@dataclass
class Request:
    """One request's own events, in order; the last is its mm_page_alloc.

    :param memalloc: the task has PF_MEMALLOC: it is kswapd, or reclaiming or compacting already.
    """

    memalloc: bool
    rows: list[int] = field(default_factory=list)


class Follower:
    """Follows one request. Every method that names a step of the slow path takes that step's events.

    :param e: the events' columns.
    :param boosts: rows of those calls of wakeup_kswapd that the twin makes too when a boost is pending.
    """

    def __init__(self, e: Columns, state: Pgdat, found: Decisions, boosts: set[int]) -> None:
        self.e, self.state, self.found, self.boosts = e, state, found, boosts
        self.rows: list[int] = []
        self.at = 0

    def follow(self, request: Request) -> None:
        """:raises Unfollowable: the events are in no order that the slow path has."""
        e = self.e
        self.rows, self.at = request.rows, 0
        if e.kind[self.rows[0]] != K_WALK:
            raise Unfollowable
        order, gfp = int(e.order[self.rows[0]]), int(e.gfp[self.rows[0]])
        self.found.requests += 1
        fast = self.rows[0]
        done = self.walk()
        self.compare("slow_paths", fast, not done, int(e.twin[fast]) < 0)
        if not done:
            self.slow_path(order, gfp, request.memalloc)

    def slow_path(self, order: int, gfp: int, memalloc: bool) -> None:
        """``__alloc_pages_slowpath``."""
        may_reclaim, may_compact = bool(gfp & GFP.DIRECT_RECLAIM), bool(gfp & GFP.IO)
        costly = order > PAGE_ALLOC_COSTLY_ORDER
        self.wake_all_kswapds(gfp)
        if self.walk():
            return
        entitled = bool(gfp & GFP.MEMALLOC or memalloc) and not gfp & GFP.NOMEMALLOC
        if may_reclaim and may_compact and (costly or (order > 0 and request_migratetype(self.state, gfp) != 1)) and not entitled:
            compacted = self.compact(order, gfp, first=True)
            if self.done():
                return
            # skipped or deferred compaction is known by what it did not do
            hopeless = costly and gfp & GFP.NORETRY and (not compacted or gfp & GFP.THISNODE)
            if hopeless or (costly and gfp & GFP.NORETRY and self.kind() == K_ALLOC):
                self.fail()
                return
        loops = 0
        while True:
            self.wake_all_kswapds(gfp)
            if self.walk():
                return
            flags = int(self.e.arg[self.rows[self.at - 1]])
            if not may_reclaim or memalloc or (flags & ALLOC_NO_WATERMARKS and not gfp & GFP.MEMALLOC):
                self.fail()
                return
            progress = self.reclaim()
            if self.done():
                return
            self.compact(order, gfp)
            if self.done():
                return
            if gfp & GFP.NORETRY or (costly and not (may_compact and gfp & GFP.RETRY_MAYFAIL)):
                self.fail()
                return
            loops = 0 if progress and not costly else loops + 1
            if self.retry_reclaim(loops) or (progress and may_compact and order and self.retry_compaction()):
                continue
            if self.kind() == K_WALK and int(self.e.arg[self.row()]) & ALLOC_WMARK_MASK == ALLOC_WMARK_HIGH:
                if self.out_of_memory(order, gfp):
                    return
                loops = 0
            elif self.kind() == K_ALLOC:  # a task that the OOM killer has chosen
                self.fail()
                return
            elif loops <= MAX_RECLAIM_RETRIES:  # a reserve was given back, or another task was in the OOM stage, which counts as progress
                loops = self.loops_said(loops)
            else:
                loops = 0

    def kind(self) -> int:
        """Kind of the next event."""
        return int(self.e.kind[self.row()])

    def row(self) -> int:
        """Row of the next event."""
        return self.rows[self.at]

    def done(self) -> bool:
        """Whether the request has its page."""
        return self.kind() == K_ALLOC and int(self.e.pfn[self.row()]) >= 0

    def compare(self, what: str, row: int, kernel: bool, twin: bool) -> None:
        """One decision, made at event `row`."""
        self.found.count(what, kernel, twin, self.differing(what, row, kernel))

    def differing(self, what: str, row: int, kernel: bool) -> Differing:
        e, until = self.e, self.rows[min(self.at, len(self.rows) - 1)]
        return Differing(what, row, max(until, row + 1), kernel, max(int(e.order[row]), 0), int(e.gfp[row]), int(e.arg[row]))

    def walk(self) -> bool:
        """A walk over the zones; whether it found a page."""
        row = self.row()
        if self.kind() != K_WALK:
            raise Unfollowable
        self.at += 1
        while self.kind() == K_CALL and not int(self.e.gfp[self.row()]):  # rmqueue, after a boost
            self.call(int(self.row()) in self.boosts)
        done = self.done()
        self.compare("walks", row, done, int(self.e.twin[row]) >= 0)
        return done

    def wake_all_kswapds(self, gfp: int) -> None:
        """A request with __GFP_KSWAPD_RECLAIM calls wakeup_kswapd; others do not."""
        called = self.kind() == K_CALL
        if called != bool(gfp & GFP.KSWAPD_RECLAIM):
            raise Unfollowable
        if called:
            self.call(True)

    def call(self, expected: bool) -> None:
        """``wakeup_kswapd``: it wakes kswapd only if that sleeps, still has hope, and is needed."""
        e, row = self.e, self.row()
        self.at += 1
        woken = self.kind() == K_WAKEUP
        self.at += woken
        sleeps, hope = int(e.ptr[row]) != int(e.call_site[row]), int(e.bytes_alloc[row]) < MAX_RECLAIM_RETRIES
        self.compare("wakeups", row, woken, expected and sleeps and hope and int(e.twin[row]) > 0)

    def reclaim(self) -> bool:
        """``__alloc_pages_direct_reclaim``; whether it freed anything. (A dying task that was held back for reclaim skips it.)"""
        row = self.rows[self.at - 1]
        begun = self.kind() == K_RECLAIM
        self.compare("direct_reclaims", row, begun, True)
        if not begun:
            return self._walks_after_reclaim()
        self.at += 1
        if self.kind() != K_RECLAIMED:
            raise Unfollowable
        self.at += 1
        return self._walks_after_reclaim() if int(self.e.arg[self.rows[self.at - 1]]) > 0 else False

    def _walks_after_reclaim(self) -> bool:
        if not self.walk():
            self.walk()  # once more, when all per-CPU lists have been drained
        return True

    def compact(self, order: int, gfp: int, first: bool = False) -> bool:
        """``__alloc_pages_direct_compact``; False if it was skipped. Whether a zone is compacted and with what result is the recording's.

        :param first: before the first round of reclaim, where a walk follows in any case.
        """
        row, expected = self.rows[self.at - 1], order > 0 and bool(gfp & GFP.IO)
        tried = self.kind() == K_TRY
        self.compare("compactions", row, tried, expected)
        if not tried:
            return False
        self.at += 1
        while self.kind() == K_COMPACT:
            self.at += 2
        if self.done():  # compaction caught a page for it
            return True
        if self.kind() != K_WALK:
            return False
        if int(self.e.arg[self.row()]) & ALLOC_WMARK_MASK == ALLOC_WMARK_HIGH:
            return False
        if first and not gfp & GFP.KSWAPD_RECLAIM and int(self.e.kind[self.rows[self.at + 1]]) not in (K_WALK, K_ALLOC):
            return False  # no call of wakeup_kswapd in between: the one walk is that of the round
        self.walk()
        return True

    def retry_reclaim(self, loops: int) -> bool:
        """``should_reclaim_retry``: the kernel's arithmetic is in its events."""
        if loops > MAX_RECLAIM_RETRIES and self.kind() == K_RETRY_ZONE:
            raise Unfollowable
        enough = False
        while self.kind() == K_RETRY_ZONE:
            if int(self.e.arg[self.row()]) != loops or enough:
                raise Unfollowable
            enough = int(self.e.node[self.row()]) != 0
            self.at += 1
        return enough

    def loops_said(self, loops: int) -> int:
        """`loops`, or 0 if the next event that tells it has begun anew."""
        said = next((int(self.e.arg[row]) for row in self.rows[self.at :] if self.e.kind[row] == K_RETRY_ZONE), loops)
        return 0 if said <= 1 else loops

    def retry_compaction(self) -> bool:
        """``should_compact_retry``."""
        if self.kind() != K_COMPACT_RETRY:
            return False
        self.at += 1
        return int(self.e.ptr[self.rows[self.at - 1]]) & 1 != 0

    def out_of_memory(self, order: int, gfp: int) -> bool:
        """``__alloc_pages_may_oom``; whether the request ends here."""
        row = self.row()
        if self.walk():
            return True
        low = int(highest_zone(self.state, gfp)) < int(highest_zone(self.state, 0))
        excused = order > PAGE_ALLOC_COSTLY_ORDER or bool(gfp & (GFP.RETRY_MAYFAIL | GFP.THISNODE)) or low
        killed = self.kind() == K_VICTIM
        while self.kind() == K_VICTIM:
            self.at += 1
        self.compare("oom_kills", row, killed, not excused and bool(gfp & GFP.FS))
        if excused or self.kind() == K_ALLOC:
            self.fail()
            return True
        return False

    def fail(self) -> None:
        """The twin refuses the request here."""
        row = self.rows[self.at - 1]
        failed = self.kind() == K_ALLOC and not self.done()
        if not failed:
            self.compare("failures", row, False, True)
            raise Unfollowable
        self.compare("failures", row, True, True)


def decisions(events: pl.DataFrame, placement: Placement, state: Pgdat) -> Decisions:
    """Compares every decision of a replay that has been done. The recording must have the events (see `recorded`).

    :param placement: its operations, in which the engine has left the twin's answers.
    :param state: the twin; only what no request changes is looked at.
    """
    kind = events["kind"].cast(pl.Enum(KINDS)).to_physical().cast(pl.Int64).to_numpy()
    ops = placement.ops
    twin = np.full(len(kind), -1, dtype=np.int64)
    answers = ops[(ops["op"] == WALK) | (ops["op"] == WAKE_KSWAPD)]
    twin[answers["event"]] = answers["pfn"]
    column = {name: events[name].cast(pl.Int64).to_numpy() for name in Columns._fields if name not in ("kind", "twin")}
    e = Columns(kind=kind, twin=twin, **column)
    found = Decisions()
    contexts, _ = context_ids(events, True)
    rows = np.flatnonzero(np.isin(kind, FOLLOWED))
    rows = rows[np.argsort(contexts[rows], kind="stable")]
    rows = rows[~_plain(e, contexts, rows, found)]
    pid = events["pid"].to_numpy()
    kswapd = set(np.unique(pid[kind == KIND["balance"]]).tolist())
    task = events["context"].to_numpy() % 2 == 0
    follower = Follower(e, state, found, _boosts(ops, e))
    for request in _requests(e, contexts, rows, lambda row: bool(task[row]) and int(pid[row]) in kswapd):
        try:
            follower.follow(request)
        except (Unfollowable, IndexError):
            found.unfollowed += 1
    return found


def recorded(probes: Sequence[str]) -> bool:
    """Whether a recording with these probes has the events. (In older ones the walks alone do not tell a request from one inside reclaim.)"""
    return "wakeup_kswapd" in probes


def _plain(e: Columns, contexts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], found: Decisions) -> npt.NDArray[np.bool_]:
    """Marks the events of requests that found a page at their first walk, in both: nearly all, and nothing more to be said of them."""
    marks = np.zeros(len(rows), dtype=bool)
    if len(rows) < 2:
        return marks
    kind, context = e.kind[rows], contexts[rows]
    pair = (kind[:-1] == K_WALK) & (kind[1:] == K_ALLOC) & (context[:-1] == context[1:]) & (e.pfn[rows[1:]] >= 0) & (e.twin[rows[:-1]] >= 0)
    first = np.ones(len(pair), dtype=bool)
    first[1:] = (kind[:-2] == K_ALLOC) | (context[:-2] != context[1:-1])
    pair &= first
    marks[:-1] |= pair
    marks[1:] |= pair
    n = int(np.count_nonzero(pair))
    found.requests += n
    walks = found.tallies["walks"]
    walks.kernel, walks.twin, walks.both = walks.kernel + n, walks.twin + n, walks.both + n
    return marks


def _boosts(ops: npt.NDArray[np.void], e: Columns) -> set[int]:
    """Calls of wakeup_kswapd for a boosted watermark (they have no flags) that the twin made as well: its own count went up before each."""
    same, made = set(), 0
    for op in ops[ops["op"] == WAKE_KSWAPD]:
        event = int(op["event"])
        if not int(e.gfp[event]) and int(op["arg2"]) > made:
            same.add(event)
            made += 1
    return same


def _requests(e: Columns, contexts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], is_kswapd: Callable[[int], bool]) -> Iterator[Request]:
    """Takes the events of each context apart into requests. What a task asks for while it reclaims or compacts is a request inside another."""
    current, stack, closing = -1, [Request(False)], [0]
    for row in rows.tolist():
        if contexts[row] != current:
            current, stack, closing = int(contexts[row]), [Request(is_kswapd(row))], [0]
        kind = int(e.kind[row])
        if kind in ENDS and kind == closing[-1]:
            stack.pop()
            closing.pop()
        request = stack[-1]
        if kind != K_WALK and not request.rows:  # of no request: kcompactd, a page fault's OOM, or what began before the recording
            if kind in BEGINS:
                stack.append(Request(kind == K_RECLAIM))
                closing.append(BEGINS[kind])
            continue
        request.rows.append(row)
        if kind == K_ALLOC:
            yield request
            stack[-1] = Request(request.memalloc)
        elif kind in BEGINS:
            stack.append(Request(True))
            closing.append(BEGINS[kind])


def reclaim_begins(events: pl.DataFrame) -> int:
    """Row of the first event of reclaim, or -1."""
    found = events["kind"].cast(pl.String).is_in(["mm_vmscan_kswapd_wake", "mm_vmscan_direct_reclaim_begin"]).arg_true()
    return int(found[0]) if len(found) else -1


def frames_before(ops: npt.NDArray[np.void], differences: npt.NDArray[Any], first: int) -> tuple[int, int]:
    """Allocations that were asked for before event `first` (-1: all), and those of them with the kernel's page frame."""
    limit = first if first >= 0 else np.iinfo(np.int64).max
    total = int(np.count_nonzero((ops["op"] == ALLOC) & (ops["event"] < limit)))
    return total, total - int(np.count_nonzero((differences["what"] == ALLOC) & (differences["event"] < limit)))
