"""Why a decision differs: whether the zone was just being changed by another CPU, an interrupt or another task.

The kernel tests a watermark between two of its events: the mark at the begin of the walk and whatever comes next. The twin tests at the mark. In between,
and on several CPUs a little before (another CPU's change is placed at its first event under the lock, and is made a little later), others may have taken or
freed pages. So the replay is done once more up to there, and the same test is made after each operation of that window: if its answer changes at one that is
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
from mmtwin.mm.tables import Pgdat
from mmtwin.replay.engine import NEAR, new_progress, replay_ops
from mmtwin.replay.placement import NOP, RETRIED, WAKE_KSWAPD, WALK, Placement
from mmtwin.replay.slabs import new_slabs

if TYPE_CHECKING:
    from mmtwin.replay.decisions import Differing

CAUSES = {
    "direct_reclaims": "a task that is being killed was held back and skipped reclaim",
    "oom_kills": "an earlier victim was still dying",
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
    several = len(np.unique(cpu)) > 1
    raced: dict[int, str] = {}
    tested = sorted((d for d in differing if d.what in ("walks", "wakeups")), key=lambda d: d.event)
    for d, cause in zip(tested, _races(state, placement, tested, NEAR if several else 0, cpu, pid), strict=True):
        raced[d.event] = cause
    for d in differing:
        cause = raced.get(d.event, "")
        follows = d.what in CAUSES and not cause
        text = CAUSES[d.what] if follows else cause or "not known"
        yield {
            "event": d.event,
            "what": d.what,
            "kernel": d.kernel,
            "order": d.order,
            "cpu": int(cpu[d.event]),
            "pid": int(pid[d.event]),
            "cause": text,
            "raced": bool(cause) or d.what in ("direct_reclaims", "oom_kills"),
        }


def _races(state: Pgdat, placement: Placement, tested: Sequence[Differing], before: int, cpu: npt.NDArray[Any], pid: npt.NDArray[Any]) -> Iterator[str]:
    """For each difference, in the order of events, with what it raced, or nothing."""
    ops, done = placement.ops, 0
    r, q, slub = new_progress(placement, state), new_slabs(placement), new_slub(1, 0, slabs=0, slots=0)
    page_ops = ops.copy()
    page_ops["op"][ops["op"] >= RETRIED] = NOP  # the slab's are left out: no zone depends on them
    contexts = {int(op["event"]): int(op["context"]) for op in ops[np.isin(ops["op"], (WALK, WAKE_KSWAPD))]}
    for d in tested:
        start, mark, stop = (int(np.searchsorted(ops["at"], at)) for at in (d.event - before, d.event, d.until))
        if start > done:
            replay_ops(state, slub, r, q, page_ops[done:start])
            done = start
        cause, said = "", _says(state, d)
        while done < stop:
            op = ops[done]
            replay_ops(state, slub, r, q, page_ops[done : done + 1])
            done += 1
            now = _says(state, d)
            # what this context itself did comes before its test, and so does what its CPU did before the mark
            other = int(op["context"]) != contexts[d.event] and (done > mark or int(op["cpu"]) != cpu[d.event])
            if not cause and now != said and other:
                event = int(op["event"])
                here = "an interrupt on this CPU" if pid[event] == pid[d.event] else f"task {pid[event]} on this CPU"
                cause = f"a race: {f'CPU {cpu[event]}' if cpu[event] != cpu[d.event] else here} changed the zone at event {event:,}"
            said = now
        yield cause


def _says(state: Pgdat, d: Differing) -> bool:
    if d.what == "wakeups":
        return bool(_kswapd_needed(state, d.order, d.flags))
    return bool(_walk_finds(state, d.order, d.gfp, d.flags))
