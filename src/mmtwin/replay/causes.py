"""Why a decision differs: whether the zone was just being changed by another CPU, an interrupt or another task.

The kernel tests a watermark between two of its events: the mark at the begin of the walk and whatever comes next. The twin tests at the mark. In between
others may have taken or freed pages; and what another CPU does under the zone's lock is one operation for the twin, at the section's first event, while the
kernel's counter changes during the section or at its end. So the replay is done once more up to there, and the same test is made after each operation of that window: if its answer changes at one that is
not the request's own, the two raced, and only the kernel knows who was first. If it never does, the difference is not explained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmtwin._jit import kernel
from mmtwin.mm.kswapd import node_needs_kswapd
from mmtwin.mm.page_alloc import highest_zone, next_zone, preferred_zone
from mmtwin.mm.slab_tables import new_slub
from mmtwin.mm.tables import Pgdat, copy_pgdat
from mmtwin.recording.model import KIND, KINDS
from mmtwin.replay.engine import NEAR, new_progress, replay_ops
from mmtwin.replay.placement import NOP, RETRIED, Placement, context_ids
from mmtwin.replay.slabs import new_slabs

if TYPE_CHECKING:
    from mmtwin.replay.decisions import Differing

SECTION = tuple(KIND[k] for k in ("mm_page_alloc_zone_locked", "mm_page_pcpu_drain", "mm_page_alloc_extfrag", "steal"))
"""Events raised inside a section under zone->lock."""
LOOK_BACK = 4096
"""Events before a mark among which sections are looked for that were open at it."""
CAUSES = {
    "direct_reclaims": "not known; a task that is being killed may skip reclaim",
    "oom_kills": "not known; an earlier victim may still have been dying",
    "slow_paths": "as its first watermark test",
    "failures": "as its watermark tests",
}
"""Of decisions that follow from others, or from what the events do not say."""


@kernel
def _walk_finds(b: Any, order: int, gfp: int, flags: int) -> bool:
    """The watermark test of a walk over the zones."""
    top = highest_zone(b, gfp)
    return next_zone(b, preferred_zone(b, top), order, gfp, top, flags) >= 0


@kernel
def _kswapd_needed(b: Any, order: int, highest: int) -> bool:
    """The test of wakeup_kswapd."""
    return node_needs_kswapd(b, order, highest) != 0


def explain(state: Pgdat, placement: Placement, events: pl.DataFrame, differing: Sequence[Differing]) -> Iterator[dict[str, Any]]:
    """Each difference as plain data, with its cause and whether it was a race. (Compiles two small tests when first needed.)

    :param state: as at the first snapshot; it is changed.
    """
    if not differing:
        return
    cpu, pid = events["cpu"].to_numpy(), events["pid"].to_numpy()
    tested = sorted((d for d in differing if d.what in ("walks", "wakeups")), key=lambda d: d.event)
    raced = {d.event: cause for d, cause in zip(tested, _races(state, placement, tested, events), strict=True)}
    for d in differing:
        cause = raced.get(d.event, "")
        yield {
            "event": d.event,
            "what": d.what,
            "kernel": d.kernel,
            "order": d.order,
            "cpu": int(cpu[d.event]),
            "pid": int(pid[d.event]),
            "cause": cause or CAUSES.get(d.what, "not known"),
            "raced": bool(cause),
        }


def section_ends(events: pl.DataFrame, contexts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each event the row at which what was done in its locked section is done for certain: its context's next event outside of the section, or `NEAR`
    events behind the section's last if that is earlier. (A refill of 63 pages changes the counter once, behind its last event; a drain with each page.)"""
    kind = events["kind"].cast(pl.Enum(KINDS)).to_physical().cast(pl.Int64).to_numpy()
    rows = np.argsort(contexts, kind="stable")
    section = np.isin(kind[rows], SECTION)
    n = len(rows)
    last = np.ones(n, dtype=bool)  # the last of a run: what follows is outside, or another context
    last[:-1] = ~section[:-1] | ~section[1:] | (contexts[rows[1:]] != contexts[rows[:-1]])
    at = np.where(last, np.arange(n), n)
    run_end = np.minimum.accumulate(at[::-1])[::-1]
    follows = np.minimum(run_end + 1, n - 1)
    known = (run_end + 1 < n) & (contexts[rows[follows]] == contexts[rows])
    ends = np.empty(n, dtype=np.int64)
    ends[rows] = np.minimum(np.where(known, rows[follows], n), rows[run_end] + NEAR)
    return ends


def _races(state: Pgdat, placement: Placement, tested: Sequence[Differing], events: pl.DataFrame) -> Iterator[str]:
    """For each difference, in the order of events, with what it raced, or nothing."""
    if not tested:
        return
    ops, done = placement.ops, 0
    cpu, pid = events["cpu"].to_numpy(), events["pid"].to_numpy()
    contexts, _ = context_ids(events, True)
    at, own = np.ascontiguousarray(ops["at"]), np.ascontiguousarray(ops["context"])
    ends = section_ends(events, contexts)[at]
    windows = []
    for d in tested:
        first, mark, stop = (int(np.searchsorted(at, row)) for row in (d.event - LOOK_BACK, d.event, d.until))
        still_open = np.flatnonzero((ends[first:mark] > d.event) & (own[first:mark] != contexts[d.event]))
        windows.append((first + int(still_open[0]) if len(still_open) else mark, mark, stop))
    earliest = np.minimum.accumulate([start for start, _, _ in windows][::-1])[::-1]
    r, q, slub = new_progress(placement, state), new_slabs(placement), new_slub(1, 0, slabs=0, slots=0)
    page_ops = ops.copy()
    page_ops["op"][ops["op"] >= RETRIED] = NOP  # the slab's are left out: no zone depends on them
    for d, (_, mark, stop), start in zip(tested, windows, earliest.tolist(), strict=True):
        if asleep := _went_to_sleep(events, contexts, d):
            yield asleep
            continue
        replay_ops(state, slub, r, q, page_ops[done:start])
        done = start
        here, progress = copy_pgdat(state), r._replace(**{name: a.copy() for name, a in r._asdict().items()})
        cause, said = "", _says(here, d)
        for i in range(start, stop):
            replay_ops(here, slub, progress, q, page_ops[i : i + 1])
            now, event = _says(here, d), int(at[i])
            if now != said and own[i] != contexts[d.event] and (i >= mark or ends[i] > d.event):
                who = "an interrupt on this CPU" if pid[event] == pid[d.event] else f"task {pid[event]} on this CPU"
                cause = f"a race: {f'CPU {cpu[event]}' if cpu[event] != cpu[d.event] else who} changed the zone at event {event:,}"
                break
            said = now
        yield cause


def _went_to_sleep(events: pl.DataFrame, contexts: npt.NDArray[np.int64], d: Differing) -> str:
    """Whether kswapd went to sleep, or was woken by another, between the mark of a call of wakeup_kswapd and what the call did."""
    if d.what != "wakeups":
        return ""
    if d.kernel and events["ptr"][d.event] == events["call_site"][d.event]:
        return "a race: kswapd went to sleep between the mark and the test"
    if d.kernel and not d.gfp:  # rmqueue tests the zone's flag and clears it in two steps
        calls = (events["kind"][max(d.event - NEAR, 0) : d.event].cast(pl.String) == "wakeup_kswapd") & (events["gfp"][max(d.event - NEAR, 0) : d.event] == 0)
        others = [i for i in (calls.arg_true() + max(d.event - NEAR, 0)).to_list() if contexts[i] != contexts[d.event]]
        return f"a race: CPU {events['cpu'][others[-1]]} saw the same boost, at event {others[-1]:,}" if others else ""
    if d.kernel:
        return ""
    after = events["kind"][d.event + 1 : d.event + 1 + LOOK_BACK].cast(pl.String).to_list()
    for i, kind in enumerate(after, d.event + 1):
        if kind == "mm_vmscan_wakeup_kswapd":
            return f"a race: kswapd was woken at event {i:,}" if i < d.until and contexts[i] != contexts[d.event] else ""
        if kind == "mm_vmscan_kswapd_wake":  # nobody woke it, so it was up already: between its nap and its round it is on the queue once more
            return f"a race: kswapd was just getting up, its round begins at event {i:,}"
    return ""


def _says(state: Pgdat, d: Differing) -> bool:
    if d.what == "wakeups":
        return bool(_kswapd_needed(state, d.order, d.flags))
    return bool(_walk_finds(state, d.order, d.gfp, d.flags))
